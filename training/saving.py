"""Checkpoints off the critical path: training goes on while a thread writes and hashes them.

    saver = Saver(out, keep=2)
    saver.save(step, changing, config=..., tensors=..., state=...)  # returns after copying
    saver.check()                                                   # in every step
    saver.wait()                                                    # at the end

A full-size checkpoint is 29 GB and takes a minute or more to write, flush and hash. Training
changes its tensors meanwhile, so `save` first copies those to the CPU, which must have room for one
copy; frozen ones are read as they are. One checkpoint is written at a time, and a write that fails
ends the run in its next step. How a checkpoint is whole or not there at all, also after a kill:
weights/checkpoint.py.
"""
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from common.cli import InputError, until_the_end
from weights import checkpoint


class Saver:
    """Writes the checkpoints of a run in a thread.

    before: the checkpoint that the run goes on from, or None.
    """

    def __init__(self, out, keep, before=None):
        self.out = out
        self.keep = keep
        self.before = before            # whose files of frozen weights can be used again
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing = None             # the Future of a checkpoint whose end nobody has seen yet
        # a run that gives up in the middle of a write finishes it first
        until_the_end.callback(self.finish)

    def save(self, step, changing, *, config, tensors, tokenizer=None, state=None):
        """Copy what training changes and have the checkpoint written. Waits for the one before.

        changing: all tensors that training changes; what is not among them is frozen. The others
        are those of `checkpoint.write`. Raises what went wrong with the one before.
        """
        self.wait()
        tables, frozen = divided(tensors, changing)
        for name in tables.keys() - set(frozen):
            tables[name] = snapshot(tables[name])
        parts = dict(config=config, tensors=tables, tokenizer=tokenizer, state=snapshot(state),
                     frozen=frozen, before=self.before)
        self.writing = self.thread.submit(self.write, step, parts)

    def write(self, step, parts):
        """What the thread does. What it raises, bad luck or a mistake of ours, waits in the Future.
        """
        checkpoint.save(self.out, step, self.keep, **parts)
        self.before = Path(self.out) / f"{step:08d}"

    def check(self):
        """Raise what went wrong with the last checkpoint, if that is known by now."""
        if self.writing is not None and self.writing.done():
            self.wait()

    def wait(self):
        """Wait until the last checkpoint is written; raise what went wrong, once."""
        writing = self.writing
        self.writing = None
        if writing is not None:
            writing.result()

    def finish(self):
        """The same at the end of a run that gives up: it has an error of its own to tell."""
        error = None if self.writing is None else self.writing.exception()
        if isinstance(error, (InputError, OSError)):
            print(f"error: {error}", file=sys.stderr)
        elif error is not None:
            traceback.print_exception(error)


def divided(tensors, changing):
    """Tables of tensors -> the same tables with what is frozen apart, and the names of those.

    A table of which only a part is trained becomes two: "model" and "model-frozen".
    """
    # the tensors of a state dict are views of the parameters: others, in the same memory
    addresses = {tensor.data_ptr() for tensor in changing}
    tables = {}
    frozen = []
    for name, table in tensors.items():
        fixed = {key: t for key, t in table.items() if t.data_ptr() not in addresses}
        if not fixed:
            tables[name] = table
        elif len(fixed) == len(table):
            tables[name] = table
            frozen.append(name)
        else:
            tables[name] = {key: t for key, t in table.items() if key not in fixed}
            tables[f"{name}-frozen"] = fixed
            frozen.append(f"{name}-frozen")
    return tables, frozen


def snapshot(value):
    """A copy on the CPU of all tensors in nested dictionaries and lists."""
    if torch.is_tensor(value):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [snapshot(part) for part in value]
    return value
