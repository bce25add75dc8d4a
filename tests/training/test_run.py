"""training/run.py: settings that are no settings, steps without numbers, what samples change."""
import pytest
import torch
from PIL import Image

import flow
import train_gen
import train_und
from common.cli import InputError, until_the_end
from common.images import NOTICE
from tiny_runs import gen, identical, log, tensors, und
from weights import checkpoint


@pytest.mark.parametrize("name, value", [
    ("log_every", 0), ("keep", 0), ("steps", -1), ("sample_every", -1), ("eval_every", -1),
    ("lr", -1), ("ema", 2), ("ema", -0.1), ("clip", 0), ("threads", -1), ("optimizer", "adam"),
    ("decay", "linear"), ("dtype", "float16")])
@pytest.mark.parametrize("script", [train_und, train_gen])
def test_absurd_settings_are_refused_by_name(script, name, value, tmp_path):
    """Before anything is loaded."""
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value}"):
        script.main([f"--{name}", str(value), "--data", "nowhere", "--out", str(tmp_path / "run")])


def test_validation_and_samples_change_nothing_of_the_run(phantom, stage2, tmp_path):
    """The average is live meanwhile; afterwards the run goes on with its own weights."""
    plain, shown = tmp_path / "plain", tmp_path / "shown"
    watched = ["--sample-every", 2, "--eval-every", 1]
    for out, more in ((plain, ["--sample-every", 0, "--eval-every", 0]), (shown, watched)):
        more = ("--steps", 3, *more)
        train_gen.main(gen(phantom, out / "gen", stage2, *more))
        train_und.main(und(phantom, out / "und", *more))
    for kind, endings in (("gen", ["png"]), ("und", ["png", "txt"])):
        assert identical(tensors(plain / kind), tensors(shown / kind))
        assert not (plain / kind / "samples").exists()
        names = sorted(path.name for path in (shown / kind / "samples").iterdir())
        assert names == [f"00000002.{ending}" for ending in endings]
        assert not any(line.keys() & {"val_loss", "val_mse"} for line in log(plain / kind))
        assert any(line.keys() & {"val_loss", "val_mse"} for line in log(shown / kind))

    picture = Image.open(shown / "gen" / "samples" / "00000002.png")
    assert picture.text["notice"].startswith(NOTICE) and picture.width > 4 * 32
    text = (shown / "und" / "samples" / "00000002.txt").read_text()
    assert text.count("given  ") == text.count("written  ") == 4 and NOTICE in text


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
    for part in ("model", "ema"):
        at = {step: tensors(whole / f"{step:08d}", part) for step in (1, 2, 3)}
        assert identical(at[1], at[2]) and not identical(at[2], at[3])
    lines = {line["step"]: line for line in log(whole) if "mse" in line}
    assert lines[2]["mse"] is None and len(lines[2]["skipped"]) == 4
    assert "skipped" not in lines[3]

    monkeypatch.undo()
    train_gen.main(gen(phantom, resumed, stage2, *more, "--steps", 1))
    poison(monkeypatch, 1)
    train_gen.main(gen(phantom, resumed, stage2, *more, "--steps", 4))
    assert identical(tensors(whole), tensors(resumed))


def test_too_many_in_a_row_end_the_run(phantom, stage2, tmp_path, monkeypatch):
    """Steps that were skipped before a resuming count."""
    more = ("--repa", 0, "--save-every", 1, "--keep", 9, "--max-skipped", 3)
    poison(monkeypatch, *range(2, 99))
    train_gen.main(gen(phantom, tmp_path, stage2, *more, "--steps", 2))
    # a script's end waits for the checkpoint that is being written
    with pytest.raises(InputError, match="3 steps in a row; the samples of the last: train-"), \
            until_the_end:
        train_gen.main(gen(phantom, tmp_path, stage2, *more, "--steps", 9))
    assert checkpoint.newest(tmp_path).name == "00000003"
    assert identical(tensors(tmp_path / "00000001"), tensors(tmp_path))
    assert all(torch.isfinite(tensor).all() for tensor in tensors(tmp_path).values())
