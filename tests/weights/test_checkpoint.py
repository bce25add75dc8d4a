"""weights/checkpoint.py: whole or not at all, whatever happens on the way; damage is found."""
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from common.cli import InputError
from weights import checkpoint


def write(run, step, value=0.0, **options):
    """A small checkpoint whose tensor "a" holds a value -> its directory."""
    tensors = {"model": {"a": torch.full((10_000,), value), "b": torch.ones(2, 4).T}}
    checkpoint.save(run, step, config={"format": "open-unix"}, tensors=tensors,
                    tokenizer='{"é": 1}', state={"n": torch.arange(50_000)}, **options)
    return run / f"{step:08d}"


def holds(directory, value):
    """Whether a checkpoint is whole and holds this value."""
    config = checkpoint.read_config(directory, thorough=True)
    assert config["step"] == int(directory.name)
    return bool((load_file(directory / "model.safetensors")["a"] == value).all())


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_what_is_saved_can_be_read(tmp_path):
    path = write(tmp_path / "a" / "run", 7)
    assert names(path) == ["config.json", "model.safetensors", "state.pt", "tokenizer.json"]
    sizes = checkpoint.read_config(path)["files"]
    assert sizes == {name: (path / name).stat().st_size for name in names(path)[1:]}
    assert torch.equal(load_file(path / "model.safetensors")["b"], torch.ones(4, 2))
    assert torch.equal(torch.load(path / "state.pt")["n"], torch.arange(50_000))
    assert (path / "tokenizer.json").read_text(encoding="utf-8") == '{"é": 1}'


def test_the_newest_few_are_kept_and_the_same_step_is_replaced(tmp_path):
    for step in (5, 10, 100):
        write(tmp_path, step)
    assert names(tmp_path) == ["00000010", "00000100"]
    assert checkpoint.newest(tmp_path) == tmp_path / "00000100"
    assert checkpoint.newest(tmp_path / "00000010") == tmp_path / "00000010"
    write(tmp_path, 100, 2.0, keep=1)
    assert names(tmp_path) == ["00000100"] and holds(tmp_path / "00000100", 2.0)


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
    ("state.pt", Path.unlink, "lacks state.pt; copy it anew"),
    ("model.safetensors", cut, "should have .* the checkpoint is damaged"),
    ("tokenizer.json", change, "holds other bytes than were written"),
    ("config.json", Path.unlink, "holds no config.json, so it is not a checkpoint"),
    ("config.json", cut, "is not JSON"),
    ("config.json", lambda path: path.write_text("[1, 2]"), "holds no settings"),
    ("config.json", lambda path: path.write_text("{}"), "does not name the files beside it"),
])
def test_damage_is_named_in_one_sentence(tmp_path, name, harm, sentence):
    directory = write(tmp_path, 5)
    harm(directory / name)
    with pytest.raises(InputError, match=sentence) as error:
        checkpoint.read_config(directory, thorough=True)
    assert "\n" not in str(error.value)


def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path, capsys):
    with pytest.raises(InputError, match="there is no checkpoint at"):
        checkpoint.newest(tmp_path / "run")
    with pytest.raises(InputError, match="neither a config.json nor a checkpoint"):
        checkpoint.newest(tmp_path)

    whole = write(tmp_path, 5)
    cut(write(tmp_path, 10) / "model.safetensors")
    assert checkpoint.newest(tmp_path) == whole
    printed = capsys.readouterr().err
    assert printed.startswith(f"passing over {tmp_path / '00000010'}") and printed.count("\n") == 1

    change(whole / "state.pt")              # found only where one looks thoroughly
    assert checkpoint.newest(tmp_path) == whole
    with pytest.raises(InputError, match="no whole checkpoint"):
        checkpoint.newest(tmp_path, thorough=True)


# ---- what may happen in the middle of writing ----

class Kill(BaseException):
    """Like a signal: no handler of ours catches it."""


def interrupt(patch, owner, name, error, call=1):
    """Raise the error at the n-th call of a function; tensors or states are in a file by then."""
    original = getattr(owner, name)
    calls = []

    def fail(*args, **options):
        calls.append(args)
        if name.startswith("save") or len(calls) != call:
            original(*args, **options)
        if len(calls) == call:
            raise error
    patch.setattr(owner, name, fail)


MOMENTS = [
    (Path, "mkdir"), (checkpoint, "save_file"), (torch, "save"), (checkpoint, "write_json"),
    (checkpoint, "flush"), (Path, "rename"),
]


@pytest.mark.parametrize("owner, name, call, step, whole", [
    *[(*moment, 1, 10, "00000005") for moment in MOMENTS],
    # the same step again: before the old one steps aside, before the new one takes its place, after
    (Path, "rename", 1, 5, ".tmp-00000005"),
    (Path, "rename", 2, 5, ".tmp-00000005"),
    (checkpoint, "flush", 6, 5, "00000005"),    # four files and a directory were flushed before
])
def test_a_kill_leaves_a_whole_checkpoint_and_the_next_attempt_succeeds(
        tmp_path, monkeypatch, owner, name, call, step, whole):
    write(tmp_path, 5, 1.0)
    with monkeypatch.context() as patch, pytest.raises(Kill):
        interrupt(patch, owner, name, Kill(), call)
        write(tmp_path, step, 2.0)
    assert checkpoint.read_config(tmp_path / whole, thorough=True)["step"] == 5
    if step == 10:
        assert checkpoint.newest(tmp_path) == tmp_path / whole and holds(tmp_path / whole, 1.0)
    write(tmp_path, step, 3.0)
    assert holds(tmp_path / f"{step:08d}", 3.0) and not list(tmp_path.glob(".tmp-*"))


@pytest.mark.parametrize("owner, name, call, step", [
    *[(*moment, 1, 10) for moment in MOMENTS],
    (Path, "rename", 2, 5),                     # the old one, which had stepped aside, comes back
])
def test_a_disk_that_refuses_is_one_sentence_and_leaves_what_was_there(
        tmp_path, monkeypatch, owner, name, call, step):
    write(tmp_path, 5, 1.0)
    with monkeypatch.context() as patch:
        interrupt(patch, owner, name, OSError("No space left on device"), call)
        with pytest.raises(InputError, match="could not be written .No space left on device"):
            write(tmp_path, step, 2.0)
    assert names(tmp_path) == ["00000005"] and holds(tmp_path / "00000005", 1.0)


@pytest.mark.parametrize("limit", [2_000, 100_000])     # the first file already, or only state.pt
def test_a_full_disk_as_safetensors_and_torch_report_it(tmp_path, limit):
    """Neither raises an OSError. The system's limit on the size of a file stands for the disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(InputError, match="could not be written") as refusal:
            write(tmp_path, 5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(refusal.value)
    assert names(tmp_path) == []
