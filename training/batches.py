"""Which image a step sees, and everything random about it: packed data sets become batches.

    samples = Samples(Packed(root, "und", 384, "train"), tokenizer, max_text, seed, batch_size)
    for batch in loader(samples, process, micro_batch, start, steps, workers): ...

Everything random about a training sample comes from a generator seeded by (seed, step, index in the
global batch), and from nothing else. So a resumed run equals an uninterrupted one, and one process,
several or more accumulation see the same samples with the same noise.
"""
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields

import torch

from common.cli import InputError
from common.processes import ahead, generator
from tokenizer import pad


@dataclass
class Batch:
    """What one micro-step sees: B images, T tokens, latents (z, h, w). None is not of the task."""
    index: torch.Tensor                     # (B,) numbers in the data set, to name an image
    images: torch.Tensor                    # (B, 1, S, S) uint8
    ids: torch.Tensor                       # (B, T), padded on the right to a multiple of 16
    valid: torch.Tensor                     # (B, T) bool, which of them are no padding
    # to read
    labels: torch.Tensor | None = None      # (B, T) the next token if it is the report's, else -100
    answers: torch.Tensor | None = None     # (M,) places of the tokens with a label, in B * T
    # to draw
    normal: torch.Tensor | None = None      # (B,) standard normal draws, which become times
    noise: torch.Tensor | None = None       # (B, z, h, w) the noise to start from
    posterior: torch.Tensor | None = None   # (B, z, h, w) noise that samples the VAE's posterior
    dropped: torch.Tensor | None = None     # (B,) bool, whose text is dropped
    moments: torch.Tensor | None = None     # (B, 2, z, h, w) posterior, stored: mean, log-variance

    def __post_init__(self):
        # a batch is made on the CPU, where this is at hand: of a GPU the host would have to wait
        if self.labels is not None and self.answers is None:
            self.answers = (self.labels.flatten() != -100).nonzero()[:, 0]

    def map(self, function):
        """A batch with every tensor changed by a function."""
        changed = {}
        for field in fields(self):
            tensor = getattr(self, field.name)
            changed[field.name] = None if tensor is None else function(tensor)
        return Batch(**changed)

    def to(self, device):
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self):
        return self.map(torch.Tensor.pin_memory)


def repetition(images, steps, batch_size):
    """A sentence for a run that sees each image more often than makes sense, "" for others.

    The paper's runs see one 6 times (stage 1) to 81 times (stage 2): their defaults are for 160,000
    images and more.
    """
    times = steps * batch_size / images
    if times <= 100:
        return ""
    smaller = min(batch_size, 16)
    return (f"each of the {images} images will be seen {times:,.0f} times; 20 times would be "
            f"--batch-size {smaller} --steps {math.ceil(20 * images / smaller)}")


class Samples:
    """samples[step, index]: one sample of the batch of a step; a step below 0 is validation.

    data: Packed. tokenizer: Tokenizer. max_text: the most tokens of a text block.
    latent: (z, h, w) of the latents to draw; None: the samples are to be read.
    text_dropout: share of samples to draw whose text is dropped, never in validation.
    """

    def __init__(self, data, tokenizer, max_text, seed, batch_size, latent=None, text_dropout=0.0):
        self.data = data
        self.tokenizer = tokenizer
        self.max_text = max_text
        self.seed = seed
        self.batch_size = batch_size
        self.latent = latent
        self.text_dropout = text_dropout
        self.order = -1, None               # an epoch and its permutation
        self.texts = {"report": self.encode("report")}
        if latent is None:
            self.texts["prompt"] = self.encode("prompt")

    def encode(self, column):
        """The text blocks of all rows' "prompt" or "report".

        One that is too long stops the run at once: texts are never cut.
        """
        blocks = self.tokenizer.answers([row[column] for row in self.data.rows])
        long = [(len(ids), row["id"]) for row, ids in zip(self.data.rows, blocks)
                if len(ids) > self.max_text]
        if long:
            tokens, name = max(long)
            raise InputError(
                f"the {column} of image {name} has {tokens} tokens, more than max_text "
                f"{self.max_text}, and {len(long) - 1} others are too long: shorten them or leave "
                f"them out; a network from nothing can have --max-text {tokens}.")
        return blocks

    def longest(self, *columns):
        """Tokens of the longest text: of the "prompt", of the "report", or of both together."""
        texts = zip(*(self.texts[column] for column in columns))
        return max(sum(map(len, blocks)) for blocks in texts)

    def number(self, step, index):
        """The number of its image. An epoch is one permutation, drawn from (seed, epoch)."""
        epoch, position = divmod(step * self.batch_size + index, len(self.data))
        order = self.order                  # read once: several threads may change it
        if order[0] != epoch:
            rng = generator(self.seed, epoch)
            order = epoch, torch.randperm(len(self.data), generator=rng)
            self.order = order
        return int(order[1][position])

    def length(self, step, index):
        """Tokens of its texts."""
        n = self.number(step, index)
        return sum(len(texts[n]) for texts in self.texts.values())

    def __getitem__(self, key):
        """(step, index) -> a dictionary with the fields of a Batch, ids and labels as lists."""
        step, index = key
        validation = step < 0
        n = index if validation else self.number(step, index)
        sample = {"index": n, "images": self.data.image(n)[None]}
        report = self.texts["report"][n].tolist()

        # to read: [BOS prompt EOS BOS report EOS], where the report's BOS predicts its first token
        if self.latent is None:
            prompt = self.texts["prompt"][n].tolist()
            sample["ids"] = prompt + report
            sample["labels"] = [-100] * len(prompt) + report[1:] + [-100]
            return sample

        # to draw: the order of the draws is part of what makes a run the same
        rng = generator(self.seed, step, index)
        sample["ids"] = report
        sample["dropped"] = torch.rand((), generator=rng) < self.text_dropout
        if validation:
            sample["dropped"] = False
        sample["normal"] = torch.randn((), generator=rng)
        sample["noise"], sample["posterior"] = torch.randn(2, *self.latent, generator=rng)
        if self.data.latents is not None:
            sample["moments"] = torch.stack(self.data.moments(n))
        return sample

    def ids(self, batch):
        """The names of a batch's images."""
        return [self.data.rows[n]["id"] for n in batch.index.tolist()]

    @staticmethod
    def collate(samples):
        """Samples -> Batch. Texts are padded to a multiple of 16, so that there are few shapes."""
        columns = {}
        for name in samples[0]:
            values = [sample[name] for sample in samples]
            if name == "ids":
                columns["ids"], columns["valid"] = pad(values, multiple=16)
            elif name == "labels":
                columns["labels"], _ = pad(values, multiple=16, fill=-100)
            else:
                columns[name] = torch.stack([torch.as_tensor(value) for value in values])
        return Batch(**columns)


def refuse_uneven(batch_size, process, micro_batch):
    """InputError if a batch cannot be cut into equal micro-batches on all processes."""
    together = process.world * micro_batch
    if batch_size % together:
        raise InputError(f"--batch-size {batch_size} cannot be dealt out evenly: {process.world} x "
                         f"--micro-batch {micro_batch} (processes x samples at once) take "
                         f"{together} at a time; choose a multiple of {together}, or a smaller "
                         "--micro-batch.")


def micro_batches(samples, process, micro_batch, start, stop):
    """This process's micro-batches as lists of (step, index), for steps start..stop-1.

    The samples of a step are dealt out by the length of their texts: a micro-batch is padded to its
    longest, and neighbours, on all processes, are about as long.
    """
    refuse_uneven(samples.batch_size, process, micro_batch)
    together = process.world * micro_batch          # samples of all processes in one micro-step

    def keys():
        for step in range(start, stop):
            order = sorted((samples.length(step, i), i) for i in range(samples.batch_size))
            for first in range(process.rank * micro_batch, len(order), together):
                yield [(step, i) for _, i in order[first:first + micro_batch]]
    return keys()


def loader(samples, process, micro_batch, start, steps, workers=0):
    """This process's micro-batches as Batch, from step `start` up to `steps`.

    workers: threads that read ahead (decoding an image does not hold Python's lock); 0 reads when
    asked, -1 takes four with a GPU, else none.
    """
    cuda = process.device.type == "cuda"
    if workers < 0:
        workers = 4 if cuda else 0
    keys = micro_batches(samples, process, micro_batch, start, steps)

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
