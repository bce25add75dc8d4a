"""train_und.py on a tiny phantom: it learns to read, and what is refused costs nothing."""
import shutil
import sys

import pytest
import torch

import train_und
import weights
from common.cli import InputError
from helpers import lock_of_another
from model import is_generation
from tiny_runs import column, tensors, und
from weights import checkpoint


def test_stage_1_learns_to_read(stage1):
    losses = column(stage1, "loss")
    assert len(losses) == 30 and len(column(stage1, "val_loss")) == 1
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])

    config = checkpoint.read_config(checkpoint.newest(stage1))
    assert (config["stage"], config["step"]) == (1, 30)
    assert not config["model"]["generation"]
    assert not any(is_generation(name) for name in tensors(stage1))


def test_it_goes_on_from_a_later_stage(phantom, stage2, tmp_path):
    """The generation set is carried along untouched; the understanding set learns."""
    train_und.main(und(phantom, tmp_path, "--init", stage2, "--steps", 2))
    before, after = (dict(weights.load(run)[0].named_parameters()) for run in (stage2, tmp_path))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if is_generation(name)} <= same
    assert "lm_head.weight" not in same
    assert not any(is_generation(name) for name in tensors(tmp_path, "ema"))


@pytest.mark.parametrize("more, words", [
    (["--data", "nowhere"], "tokenizer.*phantom.prepare"),
    (["--image-size", 32], "und-32.*prepare"),
    (["--micro-batch", 3], "multiple of 3"),
    (["--init", "nowhere"], "no checkpoint at"),
    (["--boards", "paper"], "--boards paper is none of tensorboard, wandb"),
    (["--boards", "wandb"], "--boards wandb needs a package"),
    (["--max-text", 8], "max_text 8"),
    (["--n-head", 3], "3 heads"),
    (["--n-head", 0], "0 heads"),
    (["--repa-layer", 9], "repa_layer 9")])
def test_what_is_refused_in_one_sentence_costs_no_checkpoint(
        phantom, stage1, tmp_path, monkeypatch, more, words):
    """--overwrite with something that is wrong besides leaves the old run as it was."""
    monkeypatch.setitem(sys.modules, "wandb", None)     # as if it was not installed
    run = shutil.copytree(stage1, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=words) as error:
        train_und.main(und(phantom, run, "--steps", 30, "--overwrite", *more))
    assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_run_that_another_process_is_writing_is_refused_at_once(phantom, stage1, tmp_path):
    """Before the data is looked for, and with all that is there left alone."""
    run = shutil.copytree(stage1, tmp_path / "run")
    lock_of_another(run)
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match="process .* on elsewhere .* remove .*/run/.lock-"):
        train_und.main(und("nowhere", run, "--steps", 30, "--overwrite"))
    assert sorted(run.rglob("*")) == before


def test_overwrite_starts_anew(phantom, stage1, tmp_path):
    run = shutil.copytree(stage1, tmp_path / "run")
    train_und.main(und(phantom, run, "--steps", 1, "--overwrite"))
    assert [path.name for path in checkpoint.checkpoints(run)] == ["00000001"]
    assert len(column(run, "loss")) == 1
