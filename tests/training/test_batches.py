"""training/batches.py: what is written is read, damage is refused, and a sample depends on (seed, step, index) and nothing else."""
import io
import json
from dataclasses import fields

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.processes import InputError, Process
from training.batches import Packed, Samples, loader
from common.packed import Writer, settings_hash

N, SIZE, BATCH = 13, 16, 4


class Letters:
    """A tokenizer of letters: 'ab' -> [1, 2], BOS 30, EOS 31."""
    bos, eos = 30, 31

    def encode(self, text):
        return [ord(c) - 96 for c in text]

    def answers(self, texts):
        return [np.array([self.bos, *self.encode(text), self.eos]) for text in texts]


def picture(i):
    return np.random.default_rng(i).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)


def png(pixels):
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def row(i, split="train"):
    return dict(id=f"é-{i}", split=split, prompt="ask", report="abcdefghijklmnopqrstuvwxyz"[:i + 1], labels=[["x", i]])


def write(root, task="und", n=N, val=3):
    with Writer(root / f"{task}-{SIZE}", task, SIZE, {"seed": 0}, shard_size=5) as writer:
        for i in range(n):
            writer.add(png(picture(i)), row(i))
        for i in range(n, n + val):
            writer.add(png(picture(i)), row(i, "val"))
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write(write(tmp_path_factory.mktemp("packed")), "gen")


def samples(root, task="und", split="train", seed=0, batch=BATCH, **kw):
    kw = {**(dict(latent=(4, 2, 2), text_dropout=0.3) if task == "gen" else {}), **kw}
    return Samples(Packed(root, task, SIZE, split), Letters(), 64, seed, batch, **kw)


def same(a, b):
    """Two batches, field by field; texts may be padded to other lengths."""
    for f in fields(a):
        x, y = getattr(a, f.name), getattr(b, f.name)
        assert (x is None) == (y is None), f.name
        if x is None:
            continue
        if x.dim() == 2 and f.name in ("ids", "valid", "labels"):
            T, fill = max(x.size(1), y.size(1)), {"ids": 0, "valid": False, "labels": -100}[f.name]
            x, y = (torch.nn.functional.pad(z, (0, T - z.size(1)), value=fill) for z in (x, y))
        assert torch.equal(x, y), f.name
    return True


# ---- the files ----

def test_round_trip(root):
    """Four shards, the last of one picture; umlauts and lists in rows; one split or all."""
    everything = Packed(root, "und", SIZE)
    assert len(everything) == N + 3 and len(everything.shards) == 4
    for i in range(N + 3):
        assert everything.rows[i] == row(i, "train" if i < N else "val")
        assert np.array_equal(everything.image(i).numpy(), picture(i)) and everything.image(i).dtype == torch.uint8
    val = Packed(root, "und", SIZE, "val")
    assert len(val) == 3 and np.array_equal(val.image(1).numpy(), picture(N + 1))
    assert everything.info["counts"] == {"train": N, "val": 3} and everything.info["hash"] == settings_hash({"seed": 0})
    assert not list(everything.directory.glob(".tmp-*"))


def test_an_exception_while_writing_makes_no_data_set(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with Writer(tmp_path / "und-16", "und", SIZE, {}, shard_size=2) as writer:
            for i in range(3):
                writer.add(png(picture(i)), row(i))
            1 / 0
    assert not (tmp_path / "und-16" / "dataset.json").exists()
    with pytest.raises(InputError, match="no packed data set"):
        Packed(tmp_path, "und", SIZE)


def edit(name, change):
    def harm(directory):
        info = json.loads((directory / "dataset.json").read_text())
        (directory / "dataset.json").write_text(json.dumps({**info, name: change}))
    return harm


def cut(name, n=1):
    return lambda directory: (directory / name).write_bytes((directory / name).read_bytes()[:-n])


def drop_row(directory):
    lines = (directory / "00001.jsonl").read_text().splitlines()
    (directory / "00001.jsonl").write_text("\n".join(lines[:-1]) + "\n")


@pytest.mark.parametrize("harm, words", [
    (cut("00001.bin"), "00001.bin.*cut short"), (cut("00003.bin", 50), "cut short"), (drop_row, "cut short"),
    (lambda d: (d / "00002.bin").write_bytes(b""), "cut short"),
    (edit("schema", 99), "schema 99"), (edit("size", 32), "renamed"), (edit("task", "gen"), "renamed")])
def test_damage_is_refused(tmp_path, harm, words):
    write(tmp_path)
    harm(tmp_path / f"und-{SIZE}")
    with pytest.raises(InputError, match=words):
        Packed(tmp_path, "und", SIZE)


@pytest.mark.parametrize("harm", [cut("00001.idx.npy", 8), cut("00001.jsonl", 9), cut("dataset.json"),
                                  lambda d: (d / "00001.bin").unlink(), lambda d: (d / "00001.idx.npy").unlink(),
                                  lambda d: [f.unlink() for f in d.glob("00003.*")]],
                         ids=["index cut", "rows cut", "info cut", "bin gone", "index gone", "shard gone"])
def test_damage_of_other_files_is_a_sentence_too(tmp_path, harm):
    write(tmp_path)
    harm(tmp_path / f"und-{SIZE}")
    with pytest.raises(InputError):
        Packed(tmp_path, "und", SIZE)


@pytest.mark.parametrize("task, size, split, words", [("und", 99, None, "no packed data set.*prepare"),
                                                      ("all", SIZE, None, "no packed data set"),
                                                      ("und", SIZE, "test", "no image in split 'test'")])
def test_what_is_not_there(root, task, size, split, words):
    with pytest.raises(InputError, match=words):
        Packed(root, task, size, split)


def test_latents(tmp_path):
    write(tmp_path, "gen")
    packed, counts = Packed(tmp_path, "gen", SIZE, "val"), (5, 5, 5, 1)
    assert not packed.open_latents("abc") and packed.latents is None
    mean = torch.arange(N + 3.0)[:, None, None, None].expand(-1, 4, 2, 2)
    for shard, (part, n) in enumerate(zip(mean.split(counts), counts)):
        save_file({"mean": part.contiguous(), "logvar": -part.contiguous()},
                  packed.directory / f"{shard:05d}.latents.safetensors", {"vae": "abc", "data": packed.info["hash"]})
    assert packed.open_latents("abc")
    for i in range(3):
        m, logvar = packed.moments(i)
        assert m.shape == (4, 2, 2) and (m == N + i).all() and (logvar == -N - i).all()
    with pytest.raises(InputError, match="another VAE"):
        packed.open_latents("abd")
    edit("hash", settings_hash({"seed": 1}))(packed.directory)      # the same pictures' places, other pictures
    with pytest.raises(InputError, match="another VAE or data set"):
        Packed(tmp_path, "gen", SIZE, "val").open_latents("abc")


def test_writing_again_leaves_nothing_of_the_old_data_set(tmp_path):
    write(tmp_path, "gen")
    directory = tmp_path / f"gen-{SIZE}"
    (directory / "00003.latents.safetensors").write_bytes(b"of the old pictures")
    (tmp_path / "tokenizer.json").write_text("{}"), (directory / "notes.txt").write_text("mine")
    write(tmp_path, "gen", n=4, val=1)
    assert sorted(p.name for p in directory.iterdir()) == ["00000.bin", "00000.idx.npy", "00000.jsonl", "dataset.json",
                                                           "notes.txt"]
    assert len(Packed(tmp_path, "gen", SIZE)) == 5


# ---- the samples ----

@pytest.mark.parametrize("task", ["und", "gen"])
def test_a_sample_depends_on_its_key_alone(root, task):
    """Asked for in any order, from a fresh object, between others."""
    one, two = samples(root, task), samples(root, task)
    keys = [(s, i) for s in range(8) for i in range(BATCH)]
    first = [one[key] for key in keys]
    for key, want in reversed(list(zip(keys, first))):
        assert same(Samples.collate([two[key]]), Samples.collate([want]))


def global_batches(root, task, world, micro, steps=range(6), seed=0, batch=BATCH, workers=0):
    """What all processes together see, per step, put in order of the global index."""
    streams = [iter(loader(samples(root, task, seed=seed, batch=batch), Process(rank, world, torch.device("cpu")), micro,
                           steps.start, steps.stop, workers)) for rank in range(world)]
    got = []
    for _ in steps:
        parts = [next(streams[rank]) for _ in range(batch // (world * micro)) for rank in range(world)]
        assert all(len(part.index) == micro for part in parts)
        rows = []
        for part in parts:
            for i in range(micro):
                length = int(part.valid[i].sum())
                rows.append({f.name: (x[i, :length] if f.name in ("ids", "labels") else x[i]) for f in fields(part)
                             if (x := getattr(part, f.name)) is not None and f.name != "valid"})
        got.append(rows)
    assert all(next(stream, None) is None for stream in streams)
    return got


def equal(a, b):
    return all(len(x) == len(y) and all(r.keys() == s.keys() and all(torch.equal(r[k], s[k]) for k in r) for r, s in zip(x, y))
               for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("task", ["und", "gen"])
def test_processes_and_micro_batches_do_not_matter(root, task):
    want = global_batches(root, task, 1, BATCH)
    for world, micro in ((1, 2), (1, 1), (2, 2), (2, 1), (4, 1)):
        assert equal(global_batches(root, task, world, micro), want), (world, micro)
    assert equal(global_batches(root, task, 1, 2, steps=range(3, 6)), want[3:])         # resumed
    assert equal(global_batches(root, task, 1, BATCH, workers=1), want)
    assert not equal(global_batches(root, task, 1, BATCH, seed=1), want)


def test_a_batch_that_does_not_divide(root):
    with pytest.raises(InputError, match="multiple of 6"):
        loader(samples(root), Process(0, 2, torch.device("cpu")), 3, 0, 1)


def test_epochs_are_permutations(root):
    data = samples(root)
    seen = [data.number(*divmod(n, BATCH)) for n in range(3 * N)]
    epochs = [seen[n:n + N] for n in range(0, 3 * N, N)]
    assert all(sorted(epoch) == list(range(N)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and epochs[0] != list(range(N))


def test_what_is_random(root):
    """The same picture in another epoch has other noise; no two samples share any; nothing else is random."""
    data = samples(root, "gen")
    batch = Samples.collate([data[(s, i)] for s in range(60) for i in range(BATCH)])
    for x in (batch.noise, batch.posterior, batch.normal[:, None]):
        assert len(x.flatten(1).unique(dim=0)) == len(x)
        assert abs(x.mean()) < 0.2 and abs(x.std() - 1) < 0.2
    assert not torch.equal(batch.noise, batch.posterior)
    assert len(batch.index.unique()) == N
    assert torch.equal(batch.images[:, 0], torch.stack([data.data.image(i) for i in batch.index]))


def test_text_dropout_rate(root):
    for rate in (0.0, 0.1, 1.0):
        data = samples(root, "gen", text_dropout=rate)
        dropped = torch.tensor([bool(data[(s, i)]["dropped"]) for s in range(250) for i in range(BATCH)]).float().mean()
        assert abs(dropped - rate) <= (0.03 if 0 < rate < 1 else 0)
    data = samples(root, "gen", split="val", text_dropout=1.0)
    assert not any(data[(-1, i)]["dropped"] for i in range(3))          # never in validation


def test_validation_is_fixed(root):
    a, b = samples(root, "gen", "val"), samples(root, "gen", "val", batch=32)
    for i in range(3):
        assert a[(-1, i)]["index"] == i and same(Samples.collate([a[(-1, i)]]), Samples.collate([b[(-1, i)]]))


def test_labels(root):
    """[BOS ask EOS BOS report EOS]: the report's BOS predicts its first token, its last token EOS, nothing else."""
    data = samples(root)
    batch = Samples.collate([data[(0, i)] for i in range(BATCH)])
    assert batch.ids.size(1) % 16 == 0 and batch.labels.shape == batch.ids.shape
    for i in range(BATCH):
        ids, labels = batch.ids[i].tolist(), batch.labels[i].tolist()
        report = Letters().encode(data.data.rows[batch.index[i]]["report"])
        prompt = [30, *Letters().encode("ask"), 31]
        want = prompt + [30] + report + [31]
        assert ids[:len(want)] == want and batch.valid[i].sum() == len(want)
        start = len(prompt)
        assert labels[start:start + len(report) + 1] == report + [31]
        assert all(x == -100 for n, x in enumerate(labels) if not start <= n <= start + len(report))
        assert all(x == -100 or x == ids[n + 1] for n, x in enumerate(labels))


def test_generation_text_is_the_report(root):
    data = samples(root, "gen")
    sample = data[(0, 0)]
    assert sample["ids"] == Letters().answers([data.data.rows[sample["index"]]["report"]])[0].tolist() and "labels" not in sample


@pytest.mark.parametrize("task", ["und", "gen"])
def test_a_long_report_stops_the_run_and_is_named(root, task):
    data = samples(root, task)
    with pytest.raises(InputError, match=r"the report of image é-\d+ has \d+ tokens, more than max_text 6"):
        Samples(data.data, Letters(), 6, 0, 4, data.latent)


def test_a_long_prompt_stops_the_run(root):
    data = samples(root)
    data.data.rows = [{**r, "prompt": "a" * 70} for r in data.data.rows]
    with pytest.raises(InputError, match="the prompt of .* max_text"):
        Samples(data.data, Letters(), 64, 0, 4)


def test_threads_read_ahead_in_order(root):
    """Two epochs and more, so that threads meet where one permutation ends; and what goes wrong in one is raised."""
    process = Process(0, 1, torch.device("cpu"))
    alone, threads = ([batch.index.tolist() for batch in loader(samples(root), process, 2, 0, 3 * N, workers)] for workers in (0, 3))
    assert alone == threads and len({tuple(row) for row in alone}) > N
    data = samples(root)
    data.texts["report"] = []
    with pytest.raises(IndexError):
        next(loader(data, process, 2, 0, 9, 2))
