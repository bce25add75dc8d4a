"""How a script begins and ends: a dataclass of settings becomes a command line, bad input one sentence and exit code 2.

    cfg = override(TrainConfig(), argv, __doc__, PRESETS)      # one line and one comment a field, presets as tables of fields
"""
import dataclasses
import difflib
import inspect
import math
import os
import re
import sys
import time
import typing

import torch.distributed as dist


class InputError(Exception):
    """Bad input: its message is one sentence for the user that says what was wrong and what to do."""


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
    classes = [c for c in type(cfg).__mro__ if dataclasses.is_dataclass(c)]      # the script's own fields first
    source = "".join(inspect.getsource(c) for c in classes)
    inherited = {f.name for c in classes[1:] for f in dataclasses.fields(c)}
    lines = [doc.strip(), "", "options:"]
    for f in sorted(dataclasses.fields(cfg), key=lambda f: f.name in inherited):
        comment = re.search(rf"^    {f.name}\s*:.*?\s#\s*(.*)$", source, re.MULTILINE)
        default = getattr(cfg, f.name)
        default = "" if default in ("", [], None) else f" [{default}]"
        lines.append(f"  --{f.name.replace('_', '-'):<18} {comment[1] if comment else ''}{default}")
    for name, values in presets.items():
        lines.append(f"preset {name}: " + ", ".join(f"{k}={v}" for k, v in values.items()))
    return "\n".join(lines)


store = None        # where processes leave word for each other, once they have met (common.setup)


def first_to_say():
    """What all processes notice is said once: by the first, or before they have met by rank 0 (torchrun then ends the rest)."""
    if store is not None:
        return store.add("errors", 1) == 1
    time.sleep(min(3 * int(os.environ.get("RANK", 0)), 10))
    return True


def cli(main):
    """Run a script's main(argv): bad input, a full disk or a missing permission is one sentence, exit code 2."""
    try:
        sys.exit(main(sys.argv[1:]))
    except InputError as error:
        if first_to_say():
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
