"""training/run.py: settings that are no settings, signals, steps without numbers, samples."""
import shutil
import signal

import pytest
import torch
from PIL import Image

import flow
import train_gen
import train_und
from common.cli import InputError
from common.images import NOTICE
from tiny_runs import gen, identical, log, same_run, tensors, und
from weights import checkpoint


@pytest.mark.parametrize("name, value", [
    ("log_every", 0), ("eval_every", 0), ("save_every", 0), ("keep", 0), ("max_skipped", 0),
    ("steps", 0), ("sample_every", -1), ("warmup", -5), ("lr", -1), ("weight_decay", -1),
    ("ema", 2), ("ema", -0.1), ("clip", 0), ("threads", -1), ("optimizer", "adam"),
    ("decay", "linear"), ("dtype", "float16")])
@pytest.mark.parametrize("script", [train_und, train_gen])
def test_absurd_settings_are_refused_by_name(script, name, value, tmp_path):
    """Before anything is loaded."""
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value}"):
        script.main([f"--{name}", str(value), "--data", "nowhere", "--out", str(tmp_path / "run")])


def test_signals_mean_afterwards_what_they_meant_before(phantom, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train_und.main(und(phantom, tmp_path, "--steps", 1))
    assert signal.getsignal(signal.SIGINT) is before


# ---- samples ----

def test_samples_change_nothing_of_the_run(phantom, stage2, tmp_path):
    """Pictures and reports at intervals, in <out>/samples."""
    without, with_samples = tmp_path / "without", tmp_path / "with"
    for out, every in ((without, 0), (with_samples, 2)):
        more = ("--steps", 3, "--sample-every", every)
        train_gen.main(gen(phantom, out / "gen", stage2, *more))
        train_und.main(und(phantom, out / "und", *more))
    for kind, ending in (("gen", "png"), ("und", "txt")):
        assert identical(tensors(without / kind), tensors(with_samples / kind))
        assert not (without / kind / "samples").exists()
        names = [path.name for path in (with_samples / kind / "samples").iterdir()]
        assert names == [f"00000002.{ending}"]

    picture = Image.open(with_samples / "gen" / "samples" / "00000002.png")
    assert picture.text["notice"] == NOTICE
    assert picture.width > 4 * 32
    text = (with_samples / "und" / "samples" / "00000002.txt").read_text()
    assert text.count("given  ") == text.count("written  ") == 4
    assert NOTICE in text


# ---- steps without numbers ----

def poison(monkeypatch, *calls):
    """The loss of these calls, counted from 1, evaluations included, is not a number."""
    real = flow.flow_loss
    count = 0

    def flow_loss(v, target):
        nonlocal count
        count += 1
        loss = real(v, target)
        return loss * float("nan") if count in calls else loss
    monkeypatch.setattr(flow, "flow_loss", flow_loss)


def test_a_step_without_numbers_is_skipped_and_repeated(phantom, stage2, tmp_path, monkeypatch):
    """Step 2 leaves everything as it was; a run resumed before it does the same again."""
    more = ("--repa", 0, "--save-every", 1, "--keep", 9)
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    poison(monkeypatch, 2)
    train_gen.main(gen(phantom, whole, stage2, *more, "--steps", 4))
    at = {step: tensors(whole / f"{step:08d}") for step in (1, 2, 3)}
    assert identical(at[1], at[2])
    assert not identical(at[2], at[3])
    assert identical(tensors(whole / "00000001", "ema"), tensors(whole / "00000002", "ema"))
    lines = {line["step"]: line for line in log(whole) if "mse" in line}
    assert lines[2]["mse"] is None
    assert len(lines[2]["skipped"]) == 4
    assert "skipped" not in lines[3]

    monkeypatch.undo()
    train_gen.main(gen(phantom, resumed, stage2, *more, "--steps", 1))
    poison(monkeypatch, 1)
    train_gen.main(gen(phantom, resumed, stage2, *more, "--steps", 4))
    assert identical(tensors(whole), tensors(resumed))


def test_too_many_in_a_row_end_the_run(phantom, stage2, tmp_path, monkeypatch):
    more = ("--repa", 0, "--steps", 9, "--save-every", 1, "--keep", 9, "--max-skipped", 3)
    poison(monkeypatch, *range(2, 99))
    with pytest.raises(InputError, match="3 steps in a row; the samples of the last: train-"):
        train_gen.main(gen(phantom, tmp_path, stage2, *more))
    newest = tensors(checkpoint.newest(tmp_path))
    assert identical(tensors(tmp_path / "00000001"), newest)
    assert all(torch.isfinite(tensor).all() for tensor in newest.values())


# ---- the average ----

@pytest.mark.parametrize("stage", [1, 2])
def test_validation_and_samples_leave_the_live_weights(phantom, stage2, tmp_path, stage):
    """The average is live while validating; afterwards the run goes on with its own weights."""
    main = train_und.main if stage == 1 else train_gen.main
    for out, every in ((tmp_path / "often", 1), (tmp_path / "seldom", 99)):
        more = ("--steps", 3, "--eval-every", every)
        main(und(phantom, out, *more) if stage == 1 else gen(phantom, out, stage2, *more))
    assert identical(tensors(tmp_path / "often"), tensors(tmp_path / "seldom"))


def test_a_finished_run_is_left_alone(stage1, phantom, tmp_path):
    run = shutil.copytree(stage1, tmp_path / "run")
    train_und.main(und(phantom, run, "--steps", 30))
    same_run(run, stage1)
