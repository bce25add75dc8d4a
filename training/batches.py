"""Packed data sets -> batches. Training reads nothing else.

Everything random about a training sample comes from a generator seeded by (seed, step, index in the global batch), so
a resumed run, more processes or more accumulation see the same samples with the same noise.
"""
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import torch

from common.cli import InputError
from common.packed import Packed        # noqa: F401 (until the callers import it from there)
from common.processes import ahead, generator
from tokenizer import pad


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
    if workers < 0:
        workers = 4 if cuda else 0
    keys = micro_batches(samples.batch_size, process, micro_batch, start, steps)

    def batch(keys):
        batch = Samples.collate([samples[key] for key in keys])
        return batch.pin_memory() if cuda else batch

    def read():
        if not workers:
            yield from ahead(None, batch, keys, 0)
            return
        with ThreadPoolExecutor(workers) as pool:
            yield from ahead(pool, batch, keys, 2 * workers)

    return read()
