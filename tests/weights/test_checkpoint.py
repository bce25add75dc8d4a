"""weights/checkpoint.py: whole or not at all, whatever happens on the way."""
import errno
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from safetensors.torch import load_file

from weights import checkpoint
from common.processes import InputError
from helpers import ROOT


@dataclass
class Settings:
    lr: float = 1e-3
    steps: int = 10
    out: str = ""
    overwrite: bool = False
    interval: tuple = (0.4, 1.0)
    workers: int = 0


def write(run, step, value=0.0, settings=Settings(), **kw):
    from dataclasses import asdict
    tensors = {"model": {"a": torch.full((3,), value), "b": torch.ones(2, 4).T}, "ema": {"a": torch.zeros(3)}}
    checkpoint.save(run, step, config={"format": "open-unix", "settings": asdict(settings)}, tensors=tensors,
                    tokenizer='{"é": 1}', state={"n": torch.arange(3)}, **kw)
    return run / f"{step:08d}"


def files(run):
    return {str(p.relative_to(run)): p.read_bytes() for p in sorted(run.rglob("*")) if p.is_file()}


def whole(directory, value):
    config = checkpoint.read_config(directory)
    return config["step"] == int(directory.name) and load_file(directory / "model.safetensors")["a"].eq(value).all()


def test_save_and_read(tmp_path):
    path = write(tmp_path / "a" / "run", 7, 2.5)
    assert path == tmp_path / "a" / "run" / "00000007"
    assert sorted(p.name for p in path.iterdir()) == ["config.json", "ema.safetensors", "model.safetensors", "state.pt",
                                                      "tokenizer.json"]
    config = checkpoint.read_config(path)
    assert config["step"] == 7 and config["files"] == {p.name: p.stat().st_size for p in path.iterdir() if p.name != "config.json"}
    assert torch.equal(load_file(path / "model.safetensors")["b"], torch.ones(4, 2))
    assert torch.equal(torch.load(path / "state.pt", weights_only=True)["n"], torch.arange(3))
    assert (path / "tokenizer.json").read_text(encoding="utf-8") == '{"é": 1}'


def test_keep_and_newest(tmp_path):
    for step in (5, 10, 100):
        write(tmp_path, step, step)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["00000010", "00000100"]
    assert checkpoint.newest(tmp_path).name == "00000100"
    assert checkpoint.newest(tmp_path / "00000010").name == "00000010"          # a checkpoint itself
    write(tmp_path, 110, keep=1)
    assert [p.name for p in checkpoint.checkpoints(tmp_path)] == ["00000110"]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    write(tmp_path, 5, 1.0), write(tmp_path, 5, 2.0)
    assert whole(tmp_path / "00000005", 2.0) and len(checkpoint.checkpoints(tmp_path)) == 1


@pytest.mark.parametrize("make, words", [
    (lambda run: None, "no checkpoint at"), (lambda run: run.mkdir(), "neither")])
def test_no_checkpoint(tmp_path, make, words):
    make(tmp_path / "run")
    with pytest.raises(InputError, match=words):
        checkpoint.newest(tmp_path / "run")


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("harm, words", [
    (lambda d: (d / "ema.safetensors").unlink(), "lacks ema.safetensors"),
    (lambda d: cut(d / "model.safetensors"), "damaged"),
    (lambda d: cut(d / "state.pt"), "damaged"),
    (lambda d: cut(d / "config.json"), "not JSON"),
    (lambda d: (d / "config.json").write_bytes(b""), "not JSON"),
    (lambda d: (d / "config.json").write_bytes(b"\xff\xfe{}"), "not a text file"),
    (lambda d: (d / "config.json").unlink(), "no config.json")])
def test_damage_is_named(tmp_path, harm, words):
    path = write(tmp_path, 5)
    harm(path)
    with pytest.raises(InputError, match=words) as error:
        checkpoint.read_config(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["[1, 2]", '"step"', "null"])
def test_json_of_another_shape_is_damage_too(tmp_path, text):
    path = write(tmp_path, 5)
    (path / "config.json").write_text(text)
    with pytest.raises(InputError):
        checkpoint.read_config(path)


# ---- a run that starts ----

def test_start(tmp_path):
    run = tmp_path / "run"
    assert checkpoint.start(run, Settings(), False) is None and not run.exists()
    write(run, 5)
    assert checkpoint.start(run, Settings(), False) == run / "00000005"
    assert checkpoint.start(run, Settings(steps=20, out="elsewhere", overwrite=True), False) == run / "00000005"
    assert checkpoint.start(run, Settings(steps=5, workers=4), False) == run / "00000005"
    with pytest.raises(InputError, match="5 steps already.*--steps 4"):
        checkpoint.start(run, Settings(steps=4), False)
    with pytest.raises(InputError, match="lr=0.001.*--overwrite"):
        checkpoint.start(run, Settings(lr=2e-3), False)
    assert whole(run / "00000005", 0.0)


def test_overwrite_starts_anew(tmp_path):
    """`start` looks and `tidy` deletes: what is refused between the two costs nobody a checkpoint."""
    write(tmp_path, 5)
    (tmp_path / "log.jsonl").write_text("{}\n"), (tmp_path / "notes.txt").write_text("mine")
    before = files(tmp_path)
    assert checkpoint.start(tmp_path, Settings(lr=2e-3), True) is None and files(tmp_path) == before
    checkpoint.tidy(tmp_path, anew=True)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_tidy(tmp_path):
    checkpoint.tidy(tmp_path / "a" / "run", anew=True)
    assert (tmp_path / "a" / "run").is_dir()
    write(tmp_path, 5)
    (tmp_path / "log.jsonl").write_text("{}\n")
    before = files(tmp_path)
    (tmp_path / ".tmp-00000010").mkdir(), (tmp_path / ".tmp-00000010" / "model.safetensors").write_bytes(b"half")
    checkpoint.tidy(tmp_path, anew=False)
    assert files(tmp_path) == before


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys):
    write(tmp_path, 5, 1.0), cut(write(tmp_path, 10, 2.0) / "model.safetensors")
    assert checkpoint.newest(tmp_path) == tmp_path / "00000005"
    said = capsys.readouterr().err
    assert "00000010" in said and "damaged" in said and len(said.splitlines()) == 1
    assert checkpoint.start(tmp_path, Settings(), False) == tmp_path / "00000005"
    cut(tmp_path / "00000005" / "state.pt")
    with pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint.newest(tmp_path)


# ---- what may happen in the middle of writing ----

class Kill(BaseException):
    """Like a signal: no handler of ours catches it."""


STAGES = {"tensors": (checkpoint, "save_file"), "state": (checkpoint.torch, "save"), "config": (checkpoint.json, "dumps"),
          "flush": (checkpoint, "flush"), "rename": (checkpoint.Path, "rename")}


def broken(monkeypatch, stage, error, half=False):
    where, name = STAGES[stage]
    original = getattr(where, name)

    def fail(*args, **kw):
        if half and stage in ("tensors", "state"):
            original(*args, **kw)           # the file is there, the checkpoint is not
        raise error
    monkeypatch.setattr(where, name, fail)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("half", [False, True])
def test_a_kill_leaves_the_old_one_whole(tmp_path, monkeypatch, stage, half):
    write(tmp_path, 5, 1.0)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        broken(patch, stage, Kill(), half)
        with pytest.raises(Kill):
            write(tmp_path, 10, 2.0)
    assert checkpoint.newest(tmp_path).name == "00000005" and whole(tmp_path / "00000005", 1.0)
    assert checkpoint.start(tmp_path, Settings(), False).name == "00000005"
    checkpoint.tidy(tmp_path, anew=False)
    assert files(tmp_path) == before                        # nothing temporary is left
    write(tmp_path, 10, 2.0)
    assert whole(tmp_path / "00000010", 2.0)


def test_a_kill_while_the_same_step_is_written_again(tmp_path, monkeypatch):
    """The new one is complete (though still under its temporary name) before the old one goes. No script does this."""
    write(tmp_path, 5, 1.0)
    with monkeypatch.context() as patch:
        broken(patch, "rename", Kill())
        with pytest.raises(Kill):
            write(tmp_path, 5, 2.0)
    left = [p for p in tmp_path.iterdir() if (p / "config.json").exists()]
    assert any(load_file(p / "model.safetensors")["a"].eq(v).all() for p in left for v in (1.0, 2.0))


@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_is_one_sentence(tmp_path, monkeypatch, stage):
    write(tmp_path, 5, 1.0)
    before = files(tmp_path)
    with monkeypatch.context() as patch:
        broken(patch, stage, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), half=True)
        with pytest.raises(InputError, match="No space left") as error:
            write(tmp_path, 10, 2.0)
    assert "\n" not in str(error.value)
    assert files(tmp_path) == before and whole(tmp_path / "00000005", 1.0)


def test_safetensors_own_error_of_a_full_disk(tmp_path, monkeypatch):
    from safetensors import SafetensorError
    write(tmp_path, 5, 1.0)
    with monkeypatch.context() as patch:
        broken(patch, "tensors", SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"))
        with pytest.raises(InputError, match="could not be written"):
            write(tmp_path, 10, 2.0)
    assert whole(tmp_path / "00000005", 1.0) and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("limit", [2_000, 50_000])      # the first file already, or only state.pt
def test_a_disk_that_really_refuses(tmp_path, limit):
    """The true errors of save_file and torch.save, by the system's limit on the size of a file."""
    code = f"""
import resource, sys, torch
sys.path.insert(0, {str(ROOT)!r})
from weights import checkpoint
from common import processes as common
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
common.cli(lambda argv: checkpoint.save({str(tmp_path)!r}, 5, config={{}}, tensors={{"model": {{"a": torch.zeros(10_000)}}}},
                                        state={{"n": torch.zeros(100_000)}}) and None)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and "could not be written" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be written"):
        write(tmp_path / "file" / "run", 5)


def test_copied_elsewhere_it_is_still_whole(tmp_path):
    shutil.copytree(write(tmp_path / "run", 5, 3.0), tmp_path / "my-model")
    assert checkpoint.read_config(checkpoint.newest(tmp_path / "my-model"))["step"] == 5
