"""common/shortage.py: too little memory is one sentence with the options that help, exit code 2."""
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch

import sample
import train_gen
import train_und
from common import shortage
from common.cli import cli, override
from prepare_mimic import Settings as PrepareSettings
from tiny_runs import gen, und

OF_CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB of "
    "which 1.20 GiB is free. Including non-PyTorch memory, this process has 77.85 GiB memory in "
    "use. Of the allocated memory 70.00 GiB is allocated by PyTorch.")


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch):
    monkeypatch.setattr(shortage, "known", {"settings": {}, "estimate": ""})


def fails(*_, **__):
    raise torch.OutOfMemoryError(OF_CUDA)


def ends(capsys, main):
    """What a script has printed that ends with exit code 2, and the sentence that it ends in."""
    with pytest.raises(SystemExit) as end:
        cli(main)
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in err and err.count("error: ") == 1
    # on its way a run shows a progress bar
    return out, err[err.index("error: "):].splitlines()[0]


@dataclass
class Config:
    batch: int = 16         # at once


@pytest.mark.parametrize("allocate, words", [
    (lambda: torch.empty(10**15), "error: out of memory: 4000000000000000 bytes more were asked"),
    (lambda: np.empty(2**52), "error: out of memory: 32.0 PiB more were asked for"),
    (lambda: [0] * 10**17, "error: out of memory; what helps: --batch below 16."),
    (fails, "of memory: 20.00 GiB more were asked for, of a GPU that has 79.10 GiB; what helps"),
])
def test_what_fails_to_be_allocated(allocate, words, capsys):
    def main(argv):
        override(Config(), [])
        allocate()
    _, said = ends(capsys, main)
    assert words in said and said.endswith("what helps: --batch below 16.")


def test_another_error_of_torch_keeps_its_traceback():
    def main(argv):
        torch.ones(2) @ torch.ones(3)
    with pytest.raises(RuntimeError, match="size"):
        cli(main)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_step_of_a_run(stage, phantom, stage1, vae_run, tmp_path, capsys, monkeypatch):
    """The options of the script, and the estimate that it printed at the start."""
    script, step = {1: (train_und, "UndStep"), 2: (train_gen, "GenStep")}[stage]
    monkeypatch.setattr(getattr(script, step), "forward", fails)
    words = und(phantom, tmp_path) if stage == 1 else gen(
        phantom, tmp_path, stage1, "--vae", vae_run)
    monkeypatch.setattr(sys, "argv", ["train", *words])
    capsys.readouterr()
    out, said = ends(capsys, script.main)
    total = next(line.split()[1] for line in out.splitlines() if "total " in line)
    assert f"; the estimate was {total} GB with texts of " in said
    assert said.endswith("; what helps: --micro-batch below 4, or --recompute.")


def test_a_picture_that_does_not_fit(stage2, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sample, "generate_images", fails)
    words = ["--checkpoint", stage2, "--report", "Clear.", "--device", "cpu", "--out",
             tmp_path / "x.png"]
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, words)])
    _, said = ends(capsys, sample.main)
    assert said.endswith("79.10 GiB; what helps: --batch below 16.")


@pytest.mark.parametrize("settings, words", [
    (train_und.TrainConfig(micro_batch=1, recompute=True), []),
    (train_gen.TrainConfig(shard=False), ["--micro-batch below 32", "--recompute", "--shard"]),
    (PrepareSettings(), ["fewer --workers"]),
])
def test_what_helps(settings, words, monkeypatch):
    """One option each, where it is not used already; among several processes --shard does, too."""
    monkeypatch.setattr(shortage.dist, "is_initialized", lambda: True)
    assert shortage.remedies(vars(settings)) == words


def test_where_nothing_helps():
    assert shortage.sentence(MemoryError()) == "out of memory; it takes a machine with more."
