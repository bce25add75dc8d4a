"""Packed data sets: `<root>/<task>-<size>/` -> batches. Training reads nothing else.

    00000.bin                  encoded images (PNG or JPEG, 8-bit grey, size x size), one after another
    00000.idx.npy              int64 offsets, one more than images
    00000.jsonl                one row an image: id, subject, study, split, view, prompt, report, labels, source
    00000.latents.safetensors  optional: mean and logvar of the VAE's posterior (phantom/train_vae.py --encode)
    dataset.json               schema, task, size, counts, settings and their hash; written last

Everything random about a training sample comes from a generator seeded by (seed, step, index in the global batch), so
a resumed run, more processes or more accumulation see the same samples with the same noise.
"""
import io
import json
import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from common.processes import InputError, generator
from tokenizer import pad

SCHEMA = 1


class Packed:
    """A packed data set, one split or all: `len`, `.rows[i]`, `.image(i)` uint8 (size, size), `.moments(i)`."""

    def __init__(self, root, task, size, split=None):
        self.directory = Path(root) / f"{task}-{size}"
        if not (self.directory / "dataset.json").exists():
            raise InputError(f"there is no packed data set at {self.directory}; phantom/prepare.py makes the phantom's, "
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
        if shard not in self.files:
            self.files[shard] = os.open(self.shards[shard].with_suffix(".bin"), os.O_RDONLY)
        content = os.pread(self.files[shard], length, offset)
        try:
            pixels = np.array(Image.open(io.BytesIO(content)).convert("L"))
        except (OSError, SyntaxError, ValueError):
            raise InputError(f"image {self.rows[i]['id']} of {self.directory} cannot be read; prepare it anew.") from None
        if pixels.shape != (self.size, self.size):
            raise InputError(f"image {self.rows[i]['id']} of {self.directory} has {pixels.shape[1]}x{pixels.shape[0]} pixels, "
                             f"not {self.size}x{self.size}; prepare it anew.")
        return torch.from_numpy(pixels)

    def open_latents(self, vae_hash):
        """Use the posteriors stored by `phantom/train_vae.py --encode` if they are there -> whether they are."""
        paths = [path.with_suffix(".latents.safetensors") for path in self.shards]
        if not all(path.exists() for path in paths):
            return False
        try:
            files = [safe_open(path, "pt") for path in paths]
        except SafetensorError:
            raise InputError(f"a latents file in {self.directory} is damaged; encode anew (phantom/train_vae.py --encode).") from None
        if any(file.metadata() != {"vae": vae_hash, "data": self.info["hash"]} for file in files):
            raise InputError(f"the latents in {self.directory} come from another VAE or data set; encode them anew "
                             "(phantom/train_vae.py --encode) or delete them.")
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


class Samples:
    """Sample (step, index): which image, and everything random about it. step < 0 is the fixed validation set."""

    def __init__(self, data, tokenizer, max_text, seed, batch_size, latent=None, text_dropout=0.0):
        self.data, self.tokenizer, self.max_text, self.seed, self.batch_size = data, tokenizer, max_text, seed, batch_size
        self.latent, self.text_dropout = latent, text_dropout     # latent: (z, h, w) for the generation task
        self.order = -1, None                                     # an epoch and its permutation
        self.texts = {part: self.encoded(part) for part in (("report",) if latent else ("prompt", "report"))}

    def number(self, step, index):
        """Each epoch is one permutation of the data set, drawn from (seed, epoch)."""
        epoch, place = divmod(step * self.batch_size + index, len(self.data))
        known = self.order                                        # one look: several threads read
        if known[0] != epoch:
            known = self.order = epoch, torch.randperm(len(self.data), generator=generator(self.seed, epoch))
        return int(known[1][place])

    def encoded(self, part):
        """The text blocks of all rows' "prompt" or "report"; one that is too long stops the run at once, it is never cut."""
        blocks = self.tokenizer.answers([row[part] for row in self.data.rows])
        for row, ids in zip(self.data.rows, blocks):
            if len(ids) > self.max_text:
                raise InputError(f"the {part} of image {row['id']} has {len(ids)} tokens, more than max_text {self.max_text}.")
        return blocks

    def longest(self, *parts):
        """Tokens of the longest text: its "prompt", its "report", or both."""
        return max(sum(map(len, blocks)) for blocks in zip(*(self.texts[part] for part in parts)))

    def __getitem__(self, key):
        step, index = key
        n = index if step < 0 else self.number(step, index)
        row, rng = self.data.rows[n], generator(self.seed, step, index)
        sample = {"index": n, "images": self.data.image(n)[None]}
        answer = self.texts["report"][n].tolist()
        if self.latent is None:
            prompt = self.texts["prompt"][n].tolist()
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


def micro_batches(batch_size, process, micro_batch, start, stop):
    """The keys (step, index) of this process's micro-batches, in order, for steps start..stop-1."""
    share, rest = divmod(batch_size, process.world * micro_batch)
    if rest:
        raise InputError(f"--batch-size {batch_size} does not divide into {process.world} processes with "
                         f"micro-batches of {micro_batch}; choose a multiple of {process.world * micro_batch}.")
    first = lambda m: (m * process.world + process.rank) * micro_batch
    return ([(step, first(m) + i) for i in range(micro_batch)] for step in range(start, stop) for m in range(share))


def loader(samples, process, micro_batch, start, steps, workers=0):
    """Micro-batches of this process, in order: `batch_size / (world * micro_batch)` a step, steps start..steps-1.

    `workers` threads read ahead (decoding an image needs no Python); -1 is four with a GPU, else none.
    """
    cuda = process.device.type == "cuda"

    def batch(keys):
        batch = Samples.collate([samples[key] for key in keys])
        return batch.pin_memory() if cuda else batch
    keys = micro_batches(samples.batch_size, process, micro_batch, start, steps)
    return ahead(batch, keys, workers if workers >= 0 else 4 * cuda)


def ahead(make, keys, workers):
    """make(key) of every key, in order, computed by so many threads before it is asked for."""
    if not workers:
        yield from map(make, keys)
        return
    with ThreadPoolExecutor(workers) as pool:
        waiting = deque()
        for key in keys:
            waiting.append(pool.submit(make, key))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
