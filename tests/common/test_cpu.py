"""common/cpu.py: memory of freed tensors is kept, and oneDNN is off for one-row decoding alone."""
import subprocess
import sys

import pytest
import torch

from helpers import ROOT
from common.processes import decoding

FAULTS = """if True:
    import resource, sys, torch
    from common.processes import keep_memory
    if sys.argv[1] == "kept":
        keep_memory()
    up, down = torch.nn.Linear(512, 1408), torch.nn.Linear(1408, 512)
    def faults(n):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(n):
            y = torch.ones(2, 256, 512)
            for _ in range(4):
                y = y + down(up(y).relu())
                (y @ y.mT).softmax(-1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    faults(30)
    print(faults(30))"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_of_freed_tensors_is_kept():
    """Page faults of 30 rounds of a small network, after warming up."""
    kept, given_back = (int(subprocess.run([sys.executable, "-c", FAULTS, mode], cwd=ROOT, capture_output=True, text=True,
                                           check=True).stdout) for mode in ("kept", "not"))
    assert 10 * kept < given_back


@pytest.mark.parametrize("rows, lean", [(1, True), (2, False)])
def test_decoding_turns_onednn_off_for_one_row(rows, lean):
    before = torch.backends.mkldnn.enabled
    with pytest.raises(KeyError), decoding(rows, torch.device("cpu")):
        assert torch.backends.mkldnn.enabled == (before and not lean)
        raise KeyError
    assert torch.backends.mkldnn.enabled == before
