"""weights/checkpoint.py: whole or not at all, whatever happens on the way; damage is found."""
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.cli import InputError
from helpers import ROOT
from weights import checkpoint


def write(run, step, value=0.0, **options):
    """A small checkpoint whose tensor "a" holds a value -> its directory."""
    tensors = {
        "model": {"a": torch.full((3,), value), "b": torch.ones(2, 4).T},
        "ema": {"a": torch.zeros(3)},
    }
    checkpoint.save(run, step, config={"format": "open-unix"}, tensors=tensors,
                    tokenizer='{"é": 1}', state={"n": torch.arange(3)}, **options)
    return run / f"{step:08d}"


def contents(directory):
    """{path: bytes} of all files of a directory."""
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def holds(directory, value):
    """Whether a checkpoint is whole and holds this value."""
    config = checkpoint.read_config(directory, thorough=True)
    assert config["step"] == int(directory.name)
    return bool((load_file(directory / "model.safetensors")["a"] == value).all())


def steps(run):
    return [int(directory.name) for directory in checkpoint.checkpoints(run)]


# ---- writing and finding ----

def test_what_is_saved_can_be_read(tmp_path):
    path = write(tmp_path / "a" / "run", 7, 2.5)
    assert path == tmp_path / "a" / "run" / "00000007"
    others = {"ema.safetensors", "model.safetensors", "state.pt", "tokenizer.json"}
    assert {file.name for file in path.iterdir()} == {"config.json", *others}
    config = checkpoint.read_config(path)
    assert config["step"] == 7
    assert config["files"] == {name: (path / name).stat().st_size for name in others}
    assert torch.equal(load_file(path / "model.safetensors")["b"], torch.ones(4, 2))
    state = torch.load(path / "state.pt", weights_only=True)
    assert torch.equal(state["n"], torch.arange(3))
    assert (path / "tokenizer.json").read_text(encoding="utf-8") == '{"é": 1}'


def test_the_newest_few_are_kept(tmp_path):
    for step in (5, 10, 100):
        write(tmp_path, step)
    assert steps(tmp_path) == [10, 100]
    assert checkpoint.newest(tmp_path).name == "00000100"
    assert checkpoint.newest(tmp_path / "00000010").name == "00000010"      # itself a checkpoint
    write(tmp_path, 110, keep=1)
    assert steps(tmp_path) == [110]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    write(tmp_path, 5, 1.0)
    write(tmp_path, 5, 2.0)
    assert holds(tmp_path / "00000005", 2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["00000005"]


def test_where_there_is_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="there is no checkpoint at"):
        checkpoint.newest(tmp_path / "run")
    with pytest.raises(InputError, match="neither a config.json nor a checkpoint"):
        checkpoint.newest(tmp_path)


# ---- damage ----

def cut(path):
    """Take the last byte away."""
    path.write_bytes(path.read_bytes()[:-1])


def change(path):
    """Change one bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name, harm, sentence", [
    ("ema.safetensors", Path.unlink, "lacks ema.safetensors; copy it anew"),
    ("model.safetensors", cut, "should have .* the checkpoint is damaged"),
    ("state.pt", cut, "should have .* the checkpoint is damaged"),
    ("state.pt", change, "holds other bytes than were written"),
    ("tokenizer.json", change, "holds other bytes than were written"),
    ("config.json", Path.unlink, "holds no config.json, so it is not a checkpoint"),
    ("config.json", cut, "is not JSON"),
    ("config.json", b"", "is not JSON"),
    ("config.json", b"\xff\xfe{}", "not a text file in UTF-8"),
    ("config.json", b"[1, 2]", "holds no settings"),
    ("config.json", b"{}", "does not name the files beside it"),
])
def test_damage_is_named_in_one_sentence(tmp_path, name, harm, sentence):
    path = write(tmp_path, 5) / name
    if callable(harm):
        harm(path)
    else:
        path.write_bytes(harm)
    with pytest.raises(InputError, match=sentence) as error:
        checkpoint.read_config(path.parent, thorough=True)
    assert "\n" not in str(error.value)


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys):
    write(tmp_path, 5)
    cut(write(tmp_path, 10) / "model.safetensors")
    assert checkpoint.newest(tmp_path) == tmp_path / "00000005"
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert "passing over" in printed and "00000010" in printed and "damaged" in printed
    change(tmp_path / "00000005" / "state.pt")
    with pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint.newest(tmp_path, thorough=True)


# ---- what may happen in the middle of writing ----

class Kill(BaseException):
    """Like a signal: no handler of ours catches it."""


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

# moments of writing -> what is called then
MOMENTS = {
    "tensors": (checkpoint, "save_file"),
    "state": (torch, "save"),
    "config": (checkpoint, "write_json"),
    "flush": (checkpoint, "flush"),
    "rename": (Path, "rename"),
}


def interrupt(monkeypatch, moment, error, call=1):
    """Raise the error at the n-th call of that moment; tensors or states are in a file by then."""
    owner, name = MOMENTS[moment]
    original = getattr(owner, name)
    calls = []

    def fail(*args, **options):
        calls.append(args)
        if moment in ("tensors", "state") or len(calls) != call:
            original(*args, **options)
        if len(calls) == call:
            raise error
    monkeypatch.setattr(owner, name, fail)


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_kill_leaves_the_earlier_checkpoint_whole(tmp_path, monkeypatch, moment):
    write(tmp_path, 5, 1.0)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, moment, Kill())
        with pytest.raises(Kill):
            write(tmp_path, 10, 2.0)
    assert checkpoint.newest(tmp_path, thorough=True) == tmp_path / "00000005"
    left = {path: content for path, content in contents(tmp_path).items() if path not in before}
    assert all(path.parent.name == ".tmp-00000010" for path in left)
    write(tmp_path, 10, 2.0)
    assert holds(tmp_path / "00000010", 2.0)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("moment, call, whole", [
    ("rename", 1, ".tmp-00000005"),         # before the old one steps aside
    ("rename", 2, ".tmp-00000005"),         # before the new one takes its place
    ("flush", 7, "00000005"),               # after that: five files and a directory were flushed
])
def test_a_kill_while_the_same_step_is_written_again(tmp_path, monkeypatch, moment, call, whole):
    """The new one is complete before the old one goes, and the next attempt finds its way."""
    write(tmp_path, 5, 1.0)
    with monkeypatch.context() as patch:
        interrupt(patch, moment, Kill(), call)
        with pytest.raises(Kill):
            write(tmp_path, 5, 2.0)
    assert checkpoint.read_config(tmp_path / whole, thorough=True)["step"] == 5
    write(tmp_path, 5, 3.0)
    assert holds(tmp_path / "00000005", 3.0)
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_disk_that_refuses_the_last_step_gives_the_old_one_back(tmp_path, monkeypatch):
    write(tmp_path, 5, 1.0)
    with monkeypatch.context() as patch:
        interrupt(patch, "rename", FULL, call=2)
        with pytest.raises(InputError, match="could not be written"):
            write(tmp_path, 5, 2.0)
    assert holds(tmp_path / "00000005", 1.0)
    assert not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("moment, error", [
    *[(moment, FULL) for moment in MOMENTS],
    ("tensors", SafetensorError("I/O error: No space left on device (os error 28)")),
    ("state", RuntimeError("PytorchStreamWriter failed: No space left on device")),
])
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, moment, error):
    write(tmp_path, 5, 1.0)
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        interrupt(patch, moment, error)
        with pytest.raises(InputError, match="could not be written .*No space left") as refusal:
            write(tmp_path, 10, 2.0)
    assert "\n" not in str(refusal.value)
    assert contents(tmp_path) == before
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        write(tmp_path / "file" / "run", 5)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2_000, 50_000])      # the first file already, or only state.pt
def test_a_disk_that_really_refuses(tmp_path, limit):
    """The true errors of save_file and torch.save, by the system's limit on the size of a file."""
    script = f"""
import resource, sys, torch
sys.path.insert(0, {str(ROOT)!r})
from common.cli import cli
from weights import checkpoint

def main(argv):
    resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
    tensors = {{"model": {{"a": torch.zeros(10_000)}}}}
    checkpoint.save({str(tmp_path)!r}, 5, config={{}}, tensors=tensors,
                    state={{"n": torch.zeros(100_000)}})

cli(main)
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.returncode == 2, run.stderr
    assert "could not be written" in run.stderr
    assert "Traceback" not in run.stderr
    assert list(tmp_path.iterdir()) == []
