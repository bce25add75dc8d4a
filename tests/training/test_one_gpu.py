"""training/one_gpu.py: how long a run of one's own data is, and that the scripts take it so."""
import json

import pytest

import train_gen
import train_und
from bench import table5
from tiny_runs import log, und
from training.one_gpu import fitted, length


@pytest.mark.parametrize("images, task, batch, passes", [
    (1, "und", 8, 10), (499, "gen", 8, 100), (500, "und", 16, 6), (4_999, "gen", 16, 30),
    (5_000, "und", 32, 3), (10 ** 6, "gen", 32, 10),
])
def test_the_table(images, task, batch, passes):
    assert length(images, task) == (batch, passes)


def data_set(root, task, train):
    for size in (64, 128):
        folder = root / f"{task}-{size}"
        folder.mkdir()
        (folder / "dataset.json").write_text(json.dumps({"counts": {"train": train, "val": 5}}))
    return str(root)


def test_zeros_follow_from_the_images(tmp_path):
    """300 images: 8 a step, each read ten times. The batch takes whole micro-batches."""
    data = data_set(tmp_path, "und", 300)
    cfg = train_und.TrainConfig(data=data, batch_size=0, steps=0, micro_batch=4)
    new = fitted(cfg, "und")
    assert (new.batch_size, new.steps) == (8, 375)
    new = fitted(train_und.TrainConfig(data=data, batch_size=0, steps=0, micro_batch=6), "und")
    assert (new.batch_size, new.steps) == (12, 250)


def test_numbers_that_were_given_stay(tmp_path):
    data = data_set(tmp_path, "gen", 300)
    cfg = train_gen.TrainConfig(data=data, batch_size=30, steps=0, micro_batch=1)
    assert (fitted(cfg, "gen").batch_size, fitted(cfg, "gen").steps) == (30, 1000)
    cfg = train_gen.TrainConfig(data=data, batch_size=0, steps=7, micro_batch=1)
    assert (fitted(cfg, "gen").batch_size, fitted(cfg, "gen").steps) == (8, 7)
    cfg = train_gen.TrainConfig(data=data)
    assert fitted(cfg, "gen") is cfg


def test_data_that_is_not_there_is_told_by_who_reads_it(tmp_path):
    """Not here: the sentence that says how to make it stands in common/packed.py."""
    cfg = train_und.TrainConfig(data=str(tmp_path), batch_size=0, steps=0)
    assert fitted(cfg, "und").steps == 1


def test_a_row_of_table_5_has_no_length_of_its_own():
    with pytest.raises(AssertionError, match="--steps 0 must be 1 or more"):
        table5.Table5Config(steps=0)


def test_a_run_that_is_continued_has_the_same_length(phantom, tmp_path):
    """24 images, ten times each, 8 at once: 30 steps."""
    line = und(phantom, tmp_path, "--batch-size", 0, "--steps", 0, "--decay", "cosine")
    train_und.main(line)
    before = log(tmp_path)
    assert before[-1]["step"] == 30
    train_und.main(line)
    assert log(tmp_path) == before
