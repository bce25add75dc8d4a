"""Packed data sets: `<root>/<task>-<size>/` -> batches. Training reads nothing else.

    00000.bin                  encoded images (PNG or JPEG, 8-bit grey, size x size), one after another
    00000.idx.npy              int64 offsets, one more than images
    00000.jsonl                one row an image: id, subject, study, split, view, prompt, report, labels, source
    00000.latents.safetensors  optional: mean and logvar of the VAE's posterior (train_vae.py --encode)
    dataset.json               schema, task, size, counts, settings and their hash; written last

Everything random about a training sample comes from a generator seeded by (seed, step, index in the global batch), so
a resumed run, more processes or more accumulation see the same samples with the same noise.
"""
import io
import json
import os
import signal
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from common import InputError, generator
from tokenizer import pad

SCHEMA = 1


class Packed:
    """A packed data set, one split or all: `len`, `.rows[i]`, `.image(i)` uint8 (size, size), `.moments(i)`."""

    def __init__(self, root, task, size, split=None):
        self.directory = Path(root) / f"{task}-{size}"
        if not (self.directory / "dataset.json").exists():
            raise InputError(f"there is no packed data set at {self.directory}; prepare_phantom.py makes the phantom's, "
                             "prepare_mimic.py that of MIMIC-CXR.")
        try:
            self.info = json.loads((self.directory / "dataset.json").read_text())
        except ValueError:
            raise InputError(f"{self.directory}/dataset.json is damaged; prepare the data set anew.") from None
        if self.info["schema"] != SCHEMA:
            raise InputError(f"{self.directory} has schema {self.info['schema']}, this code reads {SCHEMA}; prepare it anew.")
        if self.info["size"] != size or self.info["task"] != task:
            raise InputError(f"{self.directory} says it is {self.info['task']}-{self.info['size']}; was it renamed?")
        self.size, self.rows, self.places, self.files = size, [], [], {}
        self.shards = sorted(self.directory.glob("[0-9]*.jsonl"))
        for shard, path in enumerate(self.shards):
            try:
                offsets = np.load(path.with_suffix(".idx.npy"))
                rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
                whole = len(rows) + 1 == len(offsets) and path.with_suffix(".bin").stat().st_size == offsets[-1]
            except (OSError, ValueError):       # a file is missing or ends in the middle
                whole = False
            if not whole:
                raise InputError(f"shard {path.with_suffix('.bin')} is cut short or does not fit its index; prepare it anew.")
            for i, row in enumerate(rows):
                if split in (None, row["split"]):
                    self.rows.append(row)
                    self.places.append((shard, i, int(offsets[i]), int(offsets[i + 1] - offsets[i])))
        if len(self.rows) != (sum(self.info["counts"].values()) if split is None else self.info["counts"].get(split, 0)):
            raise InputError(f"{self.directory} lacks a shard; prepare it anew.")
        if not self.rows:
            raise InputError(f"{self.directory} has no image in split '{split}'.")
        self.latents = None

    def __len__(self):
        return len(self.rows)

    def image(self, i):
        shard, _, offset, length = self.places[i]
        key = (os.getpid(), shard)      # a forked worker opens its own
        if key not in self.files:
            self.files[key] = os.open(self.shards[shard].with_suffix(".bin"), os.O_RDONLY)
        content = os.pread(self.files[key], length, offset)
        try:
            pixels = np.array(Image.open(io.BytesIO(content)).convert("L"))
        except (OSError, SyntaxError, ValueError):
            raise InputError(f"image {self.rows[i]['id']} of {self.directory} cannot be read; prepare it anew.") from None
        if pixels.shape != (self.size, self.size):
            raise InputError(f"image {self.rows[i]['id']} of {self.directory} has {pixels.shape[1]}x{pixels.shape[0]} pixels, "
                             f"not {self.size}x{self.size}; prepare it anew.")
        return torch.from_numpy(pixels)

    def open_latents(self, vae_hash):
        """Use the posteriors stored by `train_vae.py --encode` if they are there -> whether they are."""
        paths = [path.with_suffix(".latents.safetensors") for path in self.shards]
        if not all(path.exists() for path in paths):
            return False
        try:
            files = [safe_open(path, "pt") for path in paths]
        except SafetensorError:
            raise InputError(f"a latents file in {self.directory} is damaged; encode anew (train_vae.py --encode).") from None
        if any(file.metadata() != {"vae": vae_hash, "data": self.info["hash"]} for file in files):
            raise InputError(f"the latents in {self.directory} come from another VAE or data set; encode them anew "
                             "(train_vae.py --encode) or delete them.")
        self.latents = [(file.get_slice("mean"), file.get_slice("logvar")) for file in files]      # mapped, not read
        return True

    def moments(self, i):
        """Posterior mean and log-variance (z, h, w) of image i, before normalisation."""
        shard, n, _, _ = self.places[i]
        return tuple(part[n:n + 1][0].float() for part in self.latents[shard])


@dataclass
class Batch:
    """What one micro-step sees; `index` are the samples' numbers in the data set. Unused fields are None."""
    index: torch.Tensor                     # (B,) for tests and for naming an offending sample
    images: torch.Tensor                    # (B, 1, S, S) uint8
    ids: torch.Tensor                       # (B, T), padded on the right to a multiple of 16
    valid: torch.Tensor                     # (B, T) bool
    labels: torch.Tensor | None = None      # und: (B, T) the next token where it is part of the report, else -100
    normal: torch.Tensor | None = None      # gen: (B,) standard normal draw of the time
    noise: torch.Tensor | None = None       # gen: (B, z, h, w)
    posterior: torch.Tensor | None = None   # gen: (B, z, h, w) noise of the posterior sample
    dropped: torch.Tensor | None = None     # gen: (B,) bool, text dropped
    moments: torch.Tensor | None = None     # gen: (B, 2, z, h, w) mean and log-variance, when they are stored

    @property
    def tokens(self):
        """Tokens that carry loss, a number on the batch's device."""
        return (self.labels != -100).sum()

    def map(self, f):
        kept = {field.name: getattr(self, field.name) for field in fields(self)}
        return Batch(**{k: v if v is None else f(v) for k, v in kept.items()})

    def to(self, device):
        return self.map(lambda x: x.to(device, non_blocking=True))

    def pin_memory(self):
        return self.map(torch.Tensor.pin_memory)


class Samples(torch.utils.data.Dataset):
    """Sample (step, index): which image, and everything random about it. step < 0 is the fixed validation set."""

    def __init__(self, data, tokenizer, max_text, seed, batch_size, latent=None, text_dropout=0.0):
        self.data, self.tokenizer, self.max_text, self.seed, self.batch_size = data, tokenizer, max_text, seed, batch_size
        self.latent, self.text_dropout = latent, text_dropout     # latent: (z, h, w) for the generation task
        self.epoch, self.order = -1, None

    def number(self, step, index):
        """Each epoch is one permutation of the data set, drawn from (seed, epoch)."""
        epoch, place = divmod(step * self.batch_size + index, len(self.data))
        if epoch != self.epoch:
            self.epoch, self.order = epoch, torch.randperm(len(self.data), generator=generator(self.seed, epoch))
        return int(self.order[place])

    def text(self, row, part):
        """The block of a row's "prompt" or "report"; one that is too long stops the run, it is never cut."""
        ids = self.tokenizer.answer(row[part])
        if len(ids) > self.max_text:
            raise InputError(f"the {part} of image {row['id']} has {len(ids)} tokens, more than max_text {self.max_text}.")
        return ids

    def longest(self, *parts, rows=1000):
        """Tokens of the longest text of the first rows: its "prompt", its "report", or both."""
        return max(sum(len(self.text(row, part)) for part in parts) for row in self.data.rows[:rows])

    def __getitem__(self, key):
        step, index = key
        n = index if step < 0 else self.number(step, index)
        row, rng = self.data.rows[n], generator(self.seed, step, index)
        sample = {"index": n, "images": self.data.image(n)[None]}
        answer = self.text(row, "report")
        if self.latent is None:
            prompt = self.text(row, "prompt")
            sample["ids"] = prompt + answer
            sample["labels"] = [-100] * len(prompt) + answer[1:] + [-100]       # BOS predicts the first report token
            return sample
        sample["ids"], sample["dropped"] = answer, torch.rand((), generator=rng) < self.text_dropout and step >= 0
        sample["normal"] = torch.randn((), generator=rng)
        sample["noise"], sample["posterior"] = torch.randn(2, *self.latent, generator=rng)
        if self.data.latents is not None:
            sample["moments"] = torch.stack(self.data.moments(n))
        return sample

    def ids(self, batch):
        """Names of a batch's samples."""
        return [self.data.rows[i]["id"] for i in batch.index.tolist()]

    @staticmethod
    def collate(samples):
        ids, valid = pad([s["ids"] for s in samples], multiple=16)
        batch = {k: torch.stack([torch.as_tensor(s[k]) for s in samples]) for k in samples[0] if k not in ("ids", "labels")}
        if "labels" in samples[0]:
            batch["labels"] = pad([s["labels"] for s in samples], multiple=16, fill=-100)[0]
        return Batch(ids=ids, valid=valid, **batch)


class MicroBatches:
    """The keys (step, index) of this process's micro-batches, in order, for steps start..stop-1."""

    def __init__(self, batch_size, process, micro_batch, start, stop):
        self.share, rest = divmod(batch_size, process.world * micro_batch)
        if rest:
            raise InputError(f"--batch-size {batch_size} does not divide into {process.world} processes with "
                             f"micro-batches of {micro_batch}; choose a multiple of {process.world * micro_batch}.")
        self.process, self.micro_batch, self.start, self.stop = process, micro_batch, start, stop

    def __len__(self):
        return self.share * (self.stop - self.start)

    def __iter__(self):
        for step in range(self.start, self.stop):
            for m in range(self.share):
                first = (m * self.process.world + self.process.rank) * self.micro_batch
                yield [(step, first + i) for i in range(self.micro_batch)]


def loader(samples, process, micro_batch, start, steps, workers=0):
    """Micro-batches of this process, in order: `batch_size / (world * micro_batch)` a step, steps start..steps-1."""
    keys = MicroBatches(samples.batch_size, process, micro_batch, start, steps)
    cuda = process.device.type == "cuda"
    workers = workers if workers >= 0 else 4 * cuda
    return torch.utils.data.DataLoader(samples, batch_sampler=keys, collate_fn=Samples.collate, num_workers=workers,
                                       pin_memory=cuda, worker_init_fn=plain_signals)


def plain_signals(worker):
    """Ctrl-C reaches all processes: the training process decides, its readers go on until it has saved."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
