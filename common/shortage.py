"""Too little memory ends a script in one sentence, which names the options that help there.

A script does nothing for it: `cli.override` says which settings it has, and `cli.cli` asks for the
sentence when an allocation has failed. Who has an estimate of the memory leaves it here, too.
"""
import re

import torch.distributed as dist

# what a RuntimeError says when an allocation fails: of CUDA, cuBLAS, cuDNN, mps, torch on a CPU
SIGNS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")

# what is known of the script that runs
known = {"settings": {}, "estimate": ""}


def know_settings(settings):
    """Remember the settings of the script, a dataclass instance."""
    known["settings"] = vars(settings)


def know_estimate(text):
    """Remember what it was expected to take, as "61.2 GB with texts of 256 tokens"."""
    known["estimate"] = text


def is_one(error):
    """Whether a MemoryError or RuntimeError says that an allocation has failed."""
    return isinstance(error, MemoryError) or any(sign in str(error) for sign in SIGNS)


def remedies(settings):
    """What would take less memory: the settings of a script, {name: value} -> list of words."""
    words = []
    # where there are micro-batches, the size of the whole batch does not matter, and workers are
    # threads, which hold little
    fewer = ("micro_batch",) if "micro_batch" in settings else ("batch", "batch_size")
    for name in fewer:
        if name in settings and settings[name] > 1:
            words.append(f"--{name.replace('_', '-')} below {settings[name]}")
    if "workers" in settings and "micro_batch" not in settings and settings["workers"] != 1:
        words.append("fewer --workers")
    if "recompute" in settings and not settings["recompute"]:
        words.append("--recompute")
    if "shard" in settings and not settings["shard"] and dist.is_initialized():
        words.append("--shard")
    return words


def sentence(error):
    """What to say about an allocation that has failed."""
    # numpy and torch tell how much was asked for, CUDA how much there is
    text = "out of memory"
    wanted = re.search(r"(?:tried|unable) to allocate ([\d.]+ \w+)", str(error), re.IGNORECASE)
    if wanted:
        text += f": {wanted[1]} more were asked for"
    capacity = re.search(r"total capacity of ([\d.]+ \w+)", str(error))
    if capacity:
        text += f", of a GPU that has {capacity[1]}"
    if known["estimate"]:
        text += f"; the estimate was {known['estimate']}"
    helps = remedies(known["settings"])
    if not helps:
        return f"{text}; it takes a machine with more."
    return f"{text}; what helps: {', or '.join(helps)}."
