"""training/batches.py: a sample depends on (seed, step, index) and on nothing else."""
from dataclasses import fields

import numpy as np
import pytest
import torch

from common.cli import InputError
from common.packed import Packed
from common.processes import Process
from helpers import NOISE_SIZE, noise_picture, pack_noise
from training.batches import Samples, loader, micro_batches, repetition

N, BATCH, STEPS = 13, 4, 10     # images to train on, samples of a step, three epochs
KEYS = [(step, i) for step in range(STEPS) for i in range(BATCH)]


def by_length(data):
    """KEYS as they are dealt out: the samples of a step by the length of their texts."""
    return sorted(KEYS, key=lambda key: (key[0], data.length(*key)))


class Letters:
    """A tokenizer of letters: "ab" is [1, 2], between BOS 30 and EOS 31."""

    def encode(self, text):
        return [ord(c) - 96 for c in text]

    def answers(self, texts):
        return [np.array([30, *self.encode(text), 31]) for text in texts]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("packed")
    pack_noise(root, "und")
    return pack_noise(root, "gen")


def samples(root, task="und", split="train", seed=0, batch=BATCH, text_dropout=0.3, max_text=64):
    data = Packed(root, task, NOISE_SIZE, split)
    if task == "und":
        return Samples(data, Letters(), max_text, seed, batch)
    return Samples(data, Letters(), max_text, seed, batch, (4, 2, 2), text_dropout)


def collate(data, keys):
    return Samples.collate([data[key] for key in keys])


def rows_of(batch):
    """A batch as a list of dictionaries, one a sample, with texts freed of their padding."""
    rows = []
    for i, valid in enumerate(batch.valid):
        row = {}
        for field in fields(batch):
            tensor = getattr(batch, field.name)
            if tensor is None or field.name in ("valid", "answers"):
                continue
            row[field.name] = tensor[i]
            if field.name in ("ids", "labels"):
                row[field.name] = tensor[i, :int(valid.sum())]
        rows.append(row)
    return rows


def same(ours, theirs):
    """Two lists of rows, bit for bit."""
    for a, b in zip(ours, theirs, strict=True):
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            return False
    return True


def loaded(root, task, world=1, micro=BATCH, first_step=0, workers=0):
    """What all processes together see, in the order in which a step is dealt out."""
    streams = []
    for rank in range(world):
        process = Process(rank, world, torch.device("cpu"))
        streams.append(loader(samples(root, task), process, micro, first_step, STEPS, workers))
    rows = []
    for batches in zip(*streams, strict=True):
        for batch in batches:
            assert len(batch.index) == micro
            rows += rows_of(batch)
    return rows


# ---- which samples, and when ----

@pytest.mark.parametrize("task", ["und", "gen"])
def test_a_sample_depends_on_its_key_alone(root, task):
    """Not on order, processes, micro-batches, threads or where a run goes on. The seed counts."""
    keys = by_length(samples(root, task))
    rows = rows_of(collate(samples(root, task), keys))
    assert same(rows_of(collate(samples(root, task), keys[::-1])), rows[::-1])
    for world, micro in ((1, 4), (1, 1), (2, 2), (2, 1), (4, 1)):
        assert same(loaded(root, task, world, micro), rows), (world, micro)
    assert same(loaded(root, task, first_step=3), rows[3 * BATCH:])
    assert same(loaded(root, task, workers=3, micro=1), rows)
    assert not same(rows_of(collate(samples(root, task, seed=1), keys)), rows)


def test_a_step_is_dealt_out_by_length(root):
    """The same samples as always, whatever the processes; with little to pad."""
    data = samples(root)
    assert sorted(by_length(data)) == KEYS
    for world, micro in ((1, 2), (2, 1)):
        dealt = []
        for rank in range(world):
            process = Process(rank, world, torch.device("cpu"))
            dealt.append(list(micro_batches(data, process, micro, 0, STEPS)))
        assert [key for keys in zip(*dealt) for part in keys for key in part] == by_length(data)


def test_a_batch_that_does_not_divide_is_refused(root):
    with pytest.raises(InputError, match="2 x --micro-batch 3 .*multiple of 6, or a smaller"):
        loader(samples(root), Process(0, 2, torch.device("cpu")), 3, 0, 1)


def test_every_epoch_is_a_permutation(root):
    data = samples(root)
    seen = [data.number(*divmod(n, BATCH)) for n in range(3 * N)]
    epochs = [seen[n:n + N] for n in range(0, 3 * N, N)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(N))


# ---- what is in a sample ----

def test_noise_is_never_shared(root):
    """The same picture in another epoch has other noise; nothing else is random."""
    batch = collate(samples(root, "gen"), [(step, i) for step in range(60) for i in range(BATCH)])
    for draws in (batch.noise, batch.posterior, batch.normal[:, None]):
        assert len(draws.flatten(1).unique(dim=0)) == len(draws)
        assert abs(draws.mean()) < 0.2 and abs(draws.std() - 1) < 0.2
    assert not torch.equal(batch.noise, batch.posterior)
    for picture, n in zip(batch.images[:, 0], batch.index.tolist()):
        assert np.array_equal(picture.numpy(), noise_picture(n))


@pytest.mark.parametrize("rate, tolerance", [(0.0, 0), (0.1, 0.03), (1.0, 0)])
def test_text_is_dropped_at_its_rate(root, rate, tolerance):
    data = samples(root, "gen", text_dropout=rate)
    batch = collate(data, [(step, i) for step in range(250) for i in range(BATCH)])
    assert abs(batch.dropped.float().mean() - rate) <= tolerance


def test_validation_is_fixed_and_keeps_its_text(root):
    keys = [(-1, i) for i in range(3)]
    batch = collate(samples(root, "gen", "val", text_dropout=1.0), keys)
    assert batch.index.tolist() == [0, 1, 2] and not batch.dropped.any()
    in_other_batches = collate(samples(root, "gen", "val", text_dropout=1.0, batch=32), keys)
    assert same(rows_of(batch), rows_of(in_other_batches))


def test_only_the_report_carries_loss(root):
    """[BOS ask EOS BOS report EOS]: BOS predicts the first token of the report, its last EOS."""
    data = samples(root)
    batch = collate(data, KEYS[:BATCH])
    assert batch.ids.size(1) % 16 == 0 and batch.labels.shape == batch.ids.shape
    assert data.ids(batch) == [f"é-{n}" for n in batch.index.tolist()]
    carrying = 0
    for i, n in enumerate(batch.index.tolist()):
        report = Letters().encode(data.data.rows[n]["report"])
        prompt = [30, *Letters().encode("ask"), 31]
        ids = [*prompt, 30, *report, 31]
        labels = [-100] * len(prompt) + [*report, 31, -100]
        padding = batch.ids.size(1) - len(ids)
        assert batch.ids[i].tolist() == ids + [0] * padding
        assert batch.valid[i].tolist() == [True] * len(ids) + [False] * padding
        assert batch.labels[i].tolist() == labels + [-100] * padding
        carrying += len(report) + 1
    assert torch.equal(batch.answers, (batch.labels != -100).flatten().nonzero()[:, 0])
    assert len(batch.answers) == carrying


def test_what_is_drawn_from_is_the_report_alone(root):
    data = samples(root, "gen")
    sample = data[0, 0]
    report = data.data.rows[sample["index"]]["report"]
    assert sample["ids"] == [30, *Letters().encode(report), 31] and "labels" not in sample


# ---- texts that are too long ----

def test_a_long_text_stops_the_run_and_is_named(root):
    for task in ("und", "gen"):
        words = r"the report of image é-\d+ has \d+ tokens, more than max_text 6, and \d+ others"
        with pytest.raises(InputError, match=words):
            samples(root, task, max_text=6)
    data = Packed(root, "und", NOISE_SIZE)
    data.rows[0] = {**data.rows[0], "prompt": "a" * 70}
    with pytest.raises(InputError, match="the prompt of .* max_text"):
        Samples(data, Letters(), 64, 0, BATCH)


def test_the_longest_text_is_known(root):
    """Of 13 reports the longest has 13 letters, every prompt 3; BOS and EOS come on top."""
    data = samples(root)
    assert (data.longest("report"), data.longest("prompt", "report")) == (15, 20)


# ---- defaults that are meant for large data sets ----

def test_a_run_that_sees_its_images_absurdly_often_says_so():
    said = repetition(90, steps=3840, batch_size=256)
    assert said == ("each of the 90 images will be seen 10,923 times; 20 times would be "
                    "--batch-size 16 --steps 113")
    assert not repetition(237_387, steps=75_000, batch_size=256)
    assert not repetition(9000, steps=2600, batch_size=16)
