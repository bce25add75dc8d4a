"""common/platforms.py: what one system lacks is done in another way, here with it taken away."""
import math
import mmap
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common import platforms
from helpers import ROOT


def test_cores_that_may_be_used(monkeypatch):
    """A mask where the system has one, else all there are; Windows waits for 61 at most."""
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5})
        assert platforms.usable_cores() == 3
        monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 96)
    assert platforms.usable_cores() == 96
    monkeypatch.setattr(sys, "platform", "win32")
    assert platforms.usable_cores() == 61
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert platforms.usable_cores() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="a call of Linux")
def test_the_memory_of_a_mapped_tensor_is_given_back_and_nothing_is_lost(tmp_path):
    def resident():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * mmap.PAGESIZE
    size = 2 ** 25
    (tmp_path / "file").write_bytes(os.urandom(2 ** 20) * 32)
    with open(tmp_path / "file", "rb+") as file:
        os.fsync(file.fileno())         # a page that waits to be written would stay
    tensor = torch.from_file(str(tmp_path / "file"), size=size, dtype=torch.uint8)
    total = tensor.sum()
    before = resident()
    platforms.leave_to_file(tensor[100:-100])       # the pages at both ends are not its own
    assert before - resident() > 0.9 * size
    assert tensor.sum() == total


@pytest.mark.parametrize("texts, cores", [
    (["200000 100000\n"], 2), (["150000 100000\n"], 2), (["max 100000\n"], math.inf),
    (["400000\n", "100000\n"], 4), (["-1\n", "100000\n"], math.inf)])
def test_a_container_may_allow_fewer_cores_than_there_are(monkeypatch, tmp_path, texts, cores):
    """In both forms of the kernel's files; without either there is no limit."""
    files = [tmp_path / str(i) for i in range(len(texts))]
    monkeypatch.setattr(platforms, "QUOTAS", [[str(file) for file in files]])
    assert platforms.container_cores() == math.inf
    for file, text in zip(files, texts):
        file.write_text(text)
    assert platforms.container_cores() == cores
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert platforms.usable_cores() == min(cores, 64)


def test_the_most_memory_is_in_bytes(monkeypatch):
    """Python and torch take a few hundred megabytes; Windows does not tell."""
    assert 2**27 < platforms.peak_memory() < 2**37
    monkeypatch.setattr(platforms, "resource", None)
    assert math.isnan(platforms.peak_memory())


@pytest.mark.parametrize("name, safe", [
    ("table5-1:2", "table5-1-2"), ("Größe ×2", "Größe ×2"), ("a/b\\c\n?", "a-b-c--")])
def test_names_that_every_system_takes(name, safe):
    assert platforms.safe_name(name) == safe


@pytest.mark.parametrize("lacks_pread", [False, True])
def test_bytes_from_the_middle_of_a_file(tmp_path, monkeypatch, lacks_pread):
    (tmp_path / "x").write_bytes(b"ab\r\ncd")
    if lacks_pread:
        monkeypatch.delattr(os, "pread", raising=False)
    descriptor = platforms.open_to_read(tmp_path / "x")
    assert platforms.read_at(descriptor, 3, 3) == b"\ncd"
    assert platforms.read_at(descriptor, 4, 0) == b"ab\r\n"
    os.close(descriptor)


def test_windows_flushes_no_directories(tmp_path, monkeypatch):
    """And a file only if it is open for writing."""
    (tmp_path / "x").write_bytes(b"x")
    platforms.flush(tmp_path)
    modes = []
    really_open = os.open

    def open_and_note(path, mode):
        modes.append(mode)
        return really_open(path, mode)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "open", open_and_note)
    platforms.flush(tmp_path)
    platforms.flush(tmp_path / "x")
    assert modes == [os.O_RDWR]


LACKING = ("sched_getaffinity", "fork", "pread", "getuid", "mkfifo", "statvfs", "uname")

WITHOUT = f"""
import importlib, multiprocessing, os, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
import torch, numpy, PIL.Image, tokenizers, safetensors.torch, tqdm
for name in {LACKING}:
    if hasattr(os, name):
        delattr(os, name)
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_every_file_can_be_imported_without_what_linux_alone_has():
    files = [*ROOT.glob("*.py")]
    for room in ("common", "weights", "training", "mimic", "phantom", "evaluation", "bench"):
        files += ROOT.glob(f"{room}/**/*.py")
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files]
    done = subprocess.run([sys.executable, "-c", WITHOUT, *sorted(names)], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_no_copies_of_their_parent(packed_mimic, tmp_path, method):
    """macOS and Windows spawn them, Python 3.14 forks them from a server."""
    line = ["--images", packed_mimic.jpg, "--reports", packed_mimic.zip, "--out", tmp_path,
            "--und-sizes", 48, "--gen-sizes", 32, 48, "--max-bad", 1, "--shard", 32, "--workers", 1]
    program = (f"import multiprocessing, sys; multiprocessing.set_start_method('{method}'); "
               "import prepare_mimic; prepare_mimic.main(sys.argv[1:])")
    words = [sys.executable, "-c", program, *map(str, line)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    packed = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.bin"))
    assert packed
    for path in packed:
        assert (tmp_path / path).read_bytes() == (packed_mimic.out / path).read_bytes()


# ---- glibc ----

FAULTS = """
import resource, torch
from common.platforms import keep_memory
keep_memory()
up, down = torch.nn.Linear(512, 1408), torch.nn.Linear(1408, 512)

def faults(rounds):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        y = torch.ones(2, 256, 512)
        for _ in range(4):
            y = y + down(up(y).relu())
            (y @ y.mT).softmax(-1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults(30)
print(faults(60))"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")
def test_memory_of_freed_tensors_is_kept():
    """Page faults of 60 rounds of a small network, after 30, in a process of its own.

    At most a thousand; without keep_memory it was 6,000 to 140,000, as glibc happens to decide.
    """
    line = [sys.executable, "-c", FAULTS]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 3_000
