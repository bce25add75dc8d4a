"""train_und.py on a tiny phantom: it learns, and sees neither micro-batches nor recomputation."""
import shutil

import pytest
import torch

import train_und
import weights
from common.cli import InputError
from model import is_generation
from tiny_runs import column, gradients, identical, log, tensors, und
from helpers import close
from weights import checkpoint


def test_stage_1_learns(stage1):
    losses = column(stage1, "loss")
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    assert len(column(stage1, "val_loss")) == 1


def test_a_checkpoint_says_what_it_is_and_has_no_generation_set(stage1):
    config = checkpoint.read_config(checkpoint.newest(stage1))
    assert config["stage"] == 1
    assert config["step"] == 30
    assert not config["model"]["generation"]
    assert not any(is_generation(name) for name in tensors(stage1))


@pytest.mark.parametrize("micro", [1, 2])
def test_every_token_weighs_the_same_in_any_micro_batch(phantom, tmp_path, micro):
    """Reports of different length, in different micro-batches: the gradient of the whole batch."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_und.main(und(phantom, whole, "--steps", 1))
    train_und.main(und(phantom, parts, "--steps", 1, "--micro-batch", micro))
    close(gradients(parts), gradients(whole))
    assert column(parts, "loss") == pytest.approx(column(whole, "loss"), rel=1e-5)


def test_recomputing_changes_nothing(phantom, tmp_path):
    for name, more in (("plain", []), ("again", ["--recompute"])):
        train_und.main(und(phantom, tmp_path / name, "--steps", 3, *more))
    assert identical(tensors(tmp_path / "plain"), tensors(tmp_path / "again"))
    assert log(tmp_path / "plain") == log(tmp_path / "again")


def test_it_goes_on_from_a_later_stage(phantom, stage2, tmp_path):
    """The generation set is carried along untouched; the understanding set learns."""
    train_und.main(und(phantom, tmp_path, "--init", stage2, "--steps", 2))
    before, after = (dict(weights.load(run)[0].named_parameters()) for run in (stage2, tmp_path))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if is_generation(name)} <= same
    assert "lm_head.weight" not in same


@pytest.mark.parametrize("more, words", [
    (["--data", "nowhere"], "tokenizer.*phantom.prepare"),
    (["--image-size", 32], "und-32.*prepare"),
    (["--init", "nowhere"], "no checkpoint at"),
    (["--micro-batch", 3], "multiple of 3"),
    (["--max-text", 8], "max_text 8"),
    (["--dtype", "float16"], "float16"),
    (["--n-head", 3], "3 heads"),
    (["--n-head", 0], "0 heads"),
    (["--vit-head", 3], "heads"),
    (["--repa-layer", 9], "repa_layer 9"),
    (["--encoder", "x"], "unknown option --encoder")])
def test_what_is_wrong_is_one_sentence(phantom, tmp_path, more, words):
    with pytest.raises(InputError, match=words) as error:
        train_und.main(und(phantom, tmp_path / "run", "--steps", 1, *more))
    assert "\n" not in str(error.value)


def test_what_is_refused_costs_no_checkpoint(stage1, phantom, tmp_path):
    """--overwrite with something that is wrong besides leaves the old run as it was."""
    run = shutil.copytree(stage1, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for more in (["--data", "nowhere"], ["--image-size", 32], ["--n-head", 3],
                 ["--init", "nowhere"], ["--boards", "paper"]):
        with pytest.raises(InputError):
            train_und.main(und(phantom, run, "--steps", 30, "--overwrite", *more))
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before

    train_und.main(und(phantom, run, "--steps", 1, "--overwrite"))
    assert [path.name for path in checkpoint.checkpoints(run)] == ["00000001"]
    assert len(column(run, "loss")) == 1
