"""training/saving.py: training goes on meanwhile, frozen weights are written once, errors arrive.
"""
import os
import shutil
import threading

import pytest
import torch
from safetensors.torch import load_file

from common import cli
from common.cli import InputError
from training.saving import Saver
from weights import checkpoint


class Trained:
    """A run that trains one of its weights, and its saver."""

    def __init__(self, out, before=None):
        self.moving = torch.zeros(1000)
        self.tensors = {"model": {"moving": self.moving.view(10, 100), "still": torch.ones(1000)},
                        "vae": {"still": torch.ones(10)}}
        self.saver = Saver(out, keep=1, before=before)

    def save(self, step):
        self.saver.save(step, [self.moving], config={}, tensors=self.tensors,
                        state={"moments": [self.moving]})


@pytest.fixture
def run(tmp_path):
    return Trained(tmp_path / "run")


@pytest.fixture
def gate(monkeypatch):
    """Writing waits until this is set."""
    gate = threading.Event()
    original = checkpoint.save

    def slow(*args, **parts):
        gate.wait(20)
        original(*args, **parts)
    monkeypatch.setattr(checkpoint, "save", slow)
    return gate


def test_what_is_written_is_what_there_was_when_save_was_called(run, gate):
    run.save(1)
    run.moving += 1                         # training goes on
    assert not checkpoint.checkpoints(run.saver.out)
    gate.set()
    run.saver.wait()
    directory = checkpoint.newest(run.saver.out, thorough=True)
    assert not load_file(directory / "model.safetensors")["moving"].any()
    state = torch.load(directory / "state.pt", weights_only=True)
    assert not state["moments"][0].any()


def test_frozen_weights_are_written_once_and_every_checkpoint_is_complete(run):
    for step in (1, 2):
        run.moving += 1
        run.save(step)
        run.saver.wait()
        if step == 1:
            first = shutil.copytree(run.saver.out / "00000001", run.saver.out / "copy")
            written = {path.name: path.stat().st_ino
                       for path in (run.saver.out / "00000001").iterdir()}
    second = checkpoint.newest(run.saver.out, thorough=True)
    assert second.name == "00000002" and not (run.saver.out / "00000001").exists()
    again = {path.name for path in second.iterdir() if path.stat().st_ino == written[path.name]}
    assert {"model-frozen.safetensors", "vae.safetensors"} <= again
    assert "model.safetensors" not in again
    for name in ("model-frozen", "vae"):
        assert load_file(second / f"{name}.safetensors")["still"].all()
    # a run that goes on from a checkpoint uses its files too
    later = Trained(run.saver.out, before=first)
    later.save(3)
    later.saver.wait()
    assert (first / "vae.safetensors").samefile(run.saver.out / "00000003" / "vae.safetensors")


@pytest.mark.parametrize("what", ["no links", "other weights", "the one before is gone"])
def test_frozen_weights_are_written_anew_where_they_cannot_be_linked(what, run, monkeypatch):
    def refuse(*_):
        raise OSError("Operation not supported")

    run.save(1)
    run.saver.wait()
    if what == "no links":
        monkeypatch.setattr(os, "link", refuse)
    if what == "other weights":
        run.tensors["vae"] = {"others": torch.ones(10)}
    if what == "the one before is gone":
        shutil.rmtree(run.saver.out / "00000001")
    run.save(2)
    run.saver.wait()
    directory = checkpoint.newest(run.saver.out, thorough=True)
    assert load_file(directory / "vae.safetensors").keys() == run.tensors["vae"].keys()
    assert (directory / "model-frozen.safetensors").stat().st_nlink in (1, 2)


def test_a_failed_write_is_reported_at_the_next_step_and_the_old_one_is_whole(run, monkeypatch):
    run.save(1)
    run.saver.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "flush", lambda path: os.open("/nowhere", os.O_RDONLY))
        run.save(2)
        run.saver.writing.exception()
    with pytest.raises(InputError, match="00000002 could not be written"):
        run.saver.check()
    run.saver.check()                       # said once
    assert checkpoint.newest(run.saver.out, thorough=True).name == "00000001"


def mistake(path):
    raise ZeroDivisionError("a mistake of ours")


def test_a_mistake_in_the_thread_ends_the_run_in_its_next_step(run, monkeypatch, capfd):
    """With its traceback, which leads to the place; no step is taken without that checkpoint."""
    monkeypatch.setattr(checkpoint, "flush", mistake)
    run.save(1)
    run.saver.writing.exception()
    assert capfd.readouterr().err == "", "the thread itself says nothing"
    with pytest.raises(ZeroDivisionError) as error:
        run.saver.check()
    assert error.traceback[-1].name == "mistake"
    run.saver.check()                       # said once


def test_what_a_run_that_gives_up_says_of_a_mistake_in_the_thread(run, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "flush", mistake)

    def main(argv):
        run.save(1)
        raise InputError("too many steps were skipped.")

    with pytest.raises(SystemExit):
        cli.cli(main)
    err = capsys.readouterr().err
    assert "ZeroDivisionError: a mistake of ours" in err and "in mistake" in err
    assert err.endswith("error: too many steps were skipped.\n")


def test_a_run_that_gives_up_finishes_its_checkpoint_first(run, gate):
    def main(argv):
        run.save(1)
        threading.Timer(0.2, gate.set).start()
        raise InputError("too many steps were skipped.")

    with pytest.raises(SystemExit):
        cli.cli(main)
    assert checkpoint.newest(run.saver.out, thorough=True).name == "00000001"
