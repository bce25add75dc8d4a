"""The boring parts of a run: command line from a dataclass, processes, randomness.

Nothing here knows the model. Every script ends with `common.cli(main)`: bad input ends in one sentence.
"""
import dataclasses
import difflib
import inspect
import json
import math
import os
import re
import sys
import typing
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

import cpu


class InputError(Exception):
    """Bad input: its message is one sentence for the user that says what was wrong and what to do."""


def cli(main):
    """Run a script's main(argv): bad input, a full disk or a missing permission is one sentence, exit code 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        print(f"error: {error.filename or 'a file'} could not be read or written: {error.strerror or error}.", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def override(cfg, argv, doc="", presets=None):
    """Settings from the command line: `--key value`, `--key=value`, `--flag`, `--no-flag`; `-` and `_` are alike.

    cfg is a dataclass instance with the defaults, presets a table {name: {field: value}} chosen by `--preset name`.
    Order of precedence: command line, preset, default. List fields take several values and may be repeated.
    """
    kinds = typing.get_type_hints(type(cfg))
    presets = presets or {}
    if "--help" in argv or "-h" in argv:
        print(help_text(cfg, doc, presets))
        sys.exit(0)
    given, i = {}, 0
    while i < len(argv):
        if not argv[i].startswith("--"):
            raise InputError(f"'{argv[i]}' stands alone; options look like --key value, and --help lists them.")
        key, equals, value = argv[i][2:].partition("=")
        key, i = key.replace("-", "_"), i + 1
        negated = key.startswith("no_") and kinds.get(key[3:]) is bool
        key = key[3:] if negated else key
        if key not in kinds and not (key == "preset" and presets):
            near = difflib.get_close_matches(key, kinds, n=1, cutoff=0)
            raise InputError(f"unknown option --{key.replace('_', '-')}; the nearest is --{near[0].replace('_', '-')}.")
        kind = kinds.get(key, str)
        if kind is bool:
            if equals and value.lower() not in ("true", "false"):
                raise InputError(f"--{key} is a flag: write --{key} or --no-{key}, not --{key}={value}.")
            given[key] = not negated and value.lower() != "false"
            continue
        many = typing.get_origin(kind) in (list, tuple)
        values = [value] if equals else []
        while not equals and i < len(argv) and not argv[i].startswith("--") and (many or not values):
            values.append(argv[i])
            i += 1
        if not values:
            raise InputError(f"--{key.replace('_', '-')} needs a value.")
        value = convert(key, values if many else values[0], kind)
        given[key] = given[key] + value if key in given and typing.get_origin(kind) is list else value
    name = given.pop("preset", None) if "preset" not in kinds else given.get("preset", getattr(cfg, "preset"))
    if name and name not in presets:
        raise InputError(f"no preset '{name}'; there are: {', '.join(presets)}.")
    try:
        return dataclasses.replace(cfg, **{**(presets[name] if name else {}), **given})
    except AssertionError as error:         # a __post_init__ that checks its fields
        raise InputError(str(error)) from None


def convert(key, value, kind):
    """A word of the command line as the field's type: int, float, str, Path-like str, list[...] or tuple[...]."""
    if typing.get_origin(kind) in (list, tuple):
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin is list:
            return [convert(key, v, inner[0]) for v in value]
        value = [part for v in value for part in v.split(",")]
        if len(value) != len(inner):
            raise InputError(f"--{key.replace('_', '-')} takes {len(inner)} values, got {len(value)}.")
        return tuple(convert(key, v, k) for v, k in zip(value, inner))
    try:
        value = kind(value)
        if kind is float and not math.isfinite(value):
            raise ValueError("not finite")
        return value
    except ValueError:
        raise InputError(f"--{key.replace('_', '-')} wants {kind.__name__}, got '{value}'.") from None


def help_text(cfg, doc, presets):
    """The docstring, then every field with its default and the comment that stands behind it in the source."""
    source = inspect.getsource(type(cfg))
    lines = [doc.strip(), "", "options:"]
    for f in dataclasses.fields(cfg):
        comment = re.search(rf"^    {f.name}\s*:.*?\s#\s*(.*)$", source, re.MULTILINE)
        default = getattr(cfg, f.name)
        default = "" if default in ("", [], None) else f" [{default}]"
        lines.append(f"  --{f.name.replace('_', '-'):<18} {comment[1] if comment else ''}{default}")
    for name, values in presets.items():
        lines.append(f"preset {name}: " + ", ".join(f"{k}={v}" for k, v in values.items()))
    return "\n".join(lines)


@dataclasses.dataclass
class Process:
    rank: int
    world: int
    device: torch.device

    @property
    def master(self):
        return self.rank == 0


def setup(device="auto", threads=0, deterministic=False):
    """Join the other processes if torchrun started us (RANK is set), choose the device -> Process."""
    if threads:
        torch.set_num_threads(threads)
    cpu.keep_memory()
    if deterministic:                   # on a CPU the same number of threads is enough
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {device}: no CUDA device here; use --device cpu.")
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise InputError(f"--device {device} is none of auto, cpu, cuda.")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if "RANK" not in os.environ:
        return Process(0, 1, torch.device(device))
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return Process(dist.get_rank(), dist.get_world_size(), torch.device(device))


def wrap(step_module, process, compiled):
    """The step module as the loop calls it: compiled if asked, in DDP if there are others."""
    if compiled:
        step_module.compile()
    return step_module if process.world == 1 else DistributedDataParallel(step_module, gradient_as_bucket_view=True)


def all_sum(tensor):
    """Sum over all processes, in place; nothing to do without torchrun."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def torch_dtype(name):
    if name not in ("float32", "bfloat16"):
        raise InputError(f"--dtype {name} is none of float32, bfloat16.")
    return getattr(torch, name)


def autocast(device, dtype):
    """Context for matrix products in bf16 (parameters and norms stay fp32); nothing for float32."""
    dtype = torch_dtype(dtype)
    return torch.autocast(device.type, torch.bfloat16) if dtype == torch.bfloat16 else nullcontext()


def generator(*key):
    """A CPU generator that depends on the whole numbers in `key`, e.g. (seed, step, index), and on nothing else."""
    seed = np.random.SeedSequence([len(key), *(k % 2**64 for k in key)]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


def print0(*words):
    """Print on the first process only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*words, flush=True)
