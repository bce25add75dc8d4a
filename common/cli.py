"""How a script begins and ends: settings from the command line, one sentence for bad input.

    @dataclass
    class Config:
        steps: int = 100        # one line a field; its comment is the text of --help
        solver: Literal[*SOLVERS] = "euler"     # one of these; --help lists them after the comment

    def main(argv):
        cfg = override(Config(), argv, __doc__, PRESETS)

    if __name__ == "__main__":
        cli(main)

Presets are tables of the same fields. A `__post_init__` may check the fields with assert; its
message reaches the user as the one sentence.
"""
import sys

if sys.version_info < (3, 11):          # before anything that older versions cannot read
    sys.exit(f"error: open UniX needs Python 3.11 or newer, this is {sys.version.split()[0]}; "
             "make the virtual environment with a newer one.")

import collections
import contextlib
import dataclasses
import inspect
import json
import math
import os
import re
import typing

import torch.distributed as dist

from common import shortage
from common.ending import leave_at_once, lost_a_process, say, terminable
from common.platforms import NO_READER
from common.spellings import FLAGS, VALUES, about_unknown, others, translated
from common.streams import abandon_output, keep_standard_streams, print_anything


class InputError(Exception):
    """Bad input. The message is one sentence for the user: what was wrong and what to do."""


# the type of a setting that is read by people or a model; other strings are names and paths
Text = typing.NewType("Text", str)


def option(key):
    """A field's name as it is typed: learning_rate -> --learning-rate."""
    return "--" + key.replace("_", "-")


# ---- settings from the command line ----

def override(cfg, argv, doc="", presets=None):
    """Settings from the command line: `--key value`, `--key=value`, `--flag`, `--no-flag`; `-` and
    `_` are alike, and the names of other software are understood (common/spellings.py).

    cfg: a dataclass instance that holds the defaults.
    presets: {name: {field: value}}, chosen with `--preset name`.
    Order of precedence: command line, preset, default. List fields take several values and may be
    repeated. `--help` prints doc and all fields, and ends the script. Raises InputError for
    anything unknown or unfit.
    """
    presets = {} if presets is None else presets
    types = typing.get_type_hints(type(cfg))
    if "--help" in argv or "-h" in argv:
        print(help_text(cfg, doc, presets), flush=True)
        sys.exit(0)
    given = parse(argv, types, with_preset=bool(presets))

    refuse_empty(cfg, given)

    # `preset` may be a field of cfg, whose default counts then, or only a word of the command line
    if "preset" in types:
        name = given.get("preset", cfg.preset)
    else:
        name = given.pop("preset", None)
    if name and name not in presets:
        raise InputError(f"no preset '{name}'; there are: {', '.join(presets)}.")
    values = {**presets[name], **given} if name else given
    try:
        settings = dataclasses.replace(cfg, **values)
    except AssertionError as error:         # a __post_init__ that checks its fields
        raise InputError(str(error)) from None
    shortage.know_settings(settings)
    return settings


# places of which "" is none: as a path it would be the folder that one stands in
PLACES = ("out", "checkpoint", "data", "image")


def refuse_empty(cfg, given):
    """InputError for an empty word in the place of a path, if it does not stand for the default."""
    for key in PLACES:
        if key in given and "" in (given[key], *given[key]) and getattr(cfg, key) != "":
            raise InputError(f"{option(key)} is empty; name a place, or leave it out (is a "
                             "variable of the shell not set?).")


SWITCHES = (bool, bool | None)          # None: a default that depends on the machine


def parse(argv, types, with_preset=False):
    """Words of the command line -> {field: value}. types: {field: its type}."""
    given = {}
    words = translated(argv, types)
    while words:
        # --key, --key=value, --no-key
        word = words.pop(0)
        if not word.startswith("--"):
            raise InputError(
                f"'{word}' stands alone; options look like --key value, and --help lists them.")
        key, equals, value = word[2:].partition("=")
        key = key.replace("-", "_")
        negated = key.startswith("no_") and types.get(key[3:]) in SWITCHES
        if negated:
            key = key[3:]
        if key not in types and not (key == "preset" and with_preset):
            raise InputError(f"unknown option {option(key)}; {about_unknown(key, types)}.")
        kind = types.get(key, str)

        # flags take no value, though True and False may follow
        if kind in SWITCHES:
            if not equals and words and words[0].lower() in ("true", "false"):
                value = words.pop(0)
            if equals and value.lower() not in ("true", "false"):
                name = option(key)
                raise InputError(f"{name} is a flag: write {name} or {option('no_' + key)}, "
                                 f"not {name}={value}.")
            given[key] = not negated and value.lower() != "false"
            continue

        # all others take one value; lists and tuples take as many as follow, up to the next --
        several = typing.get_origin(kind) in (list, tuple)
        values = [value] if equals else []
        while not equals and words and not words[0].startswith("--") and (several or not values):
            values.append(words.pop(0))
        if not values:
            raise InputError(f"{option(key)} needs a value.")
        converted = convert(key, values if several else values[0], kind)
        # a list may be given in pieces: --image a --image b
        if key in given and typing.get_origin(kind) is list:
            converted = given[key] + converted
        given[key] = converted
    return given


def convert(key, value, kind):
    """A word of the command line as the field's type.

    int, float, str, Text, Literal[...] of words, list[...] or tuple[...] of these.
    """
    if isinstance(value, str):
        value = VALUES.get(key, {}).get(value.lower(), value)
    if typing.get_origin(kind) is list:
        inner, = typing.get_args(kind)
        return [convert(key, word, inner) for word in value]
    # a tuple has a fixed length, and may be written with commas: --cfg-interval 0.4,1
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        words = [word for part in value for word in part.split(",")]
        if len(words) != len(inner):
            raise InputError(f"{option(key)} takes {len(inner)} values, got {len(words)}.")
        return tuple(convert(key, word, inner_kind) for word, inner_kind in zip(words, inner))
    if typing.get_origin(kind) is typing.Literal:
        if value not in typing.get_args(kind):
            raise InputError(f"{option(key)} {value} is none of {choices(kind)}.")
        return value
    if kind is Text:
        return whole_text(key, value)
    if kind is str:
        return at_home(key, value)
    # int and float convert by being called; nan and inf are floats that no setting wants
    try:
        number = kind(value)
        if kind is float and not math.isfinite(number):
            raise ValueError("not finite")
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        raise InputError(f"{option(key)} wants {wanted}, got '{value}'.") from None
    return number


def whole_text(key, value):
    """A word of the command line that people read, not a path: it must be UTF-8."""
    # Python keeps bytes that it cannot decode as half characters, which no tokenizer knows; where
    # the system's encoding is ASCII these are all letters beyond it
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise InputError(f"{option(key)} holds the byte 0x{byte:02x}, which is no UTF-8; type it "
                         "anew.") from None


def at_home(key, value):
    """A word that begins like a path in somebody's home, with the home's own path instead of ~.

    A shell leaves the ~ of --out=~/run as it is.
    """
    if not re.match(r"~[\w.-]*([/\\]|$)", value):
        return value
    path = os.path.expanduser(value)
    if path == value:
        raise InputError(f"{option(key)} {value}: there is no home directory that ~ could stand "
                         "for here; write the whole path.")
    return path


def choices(kind):
    """The words that a field may hold, as "euler, heun, ab2"; "" for a type that is no Literal."""
    if typing.get_origin(kind) is list:
        kind, = typing.get_args(kind)
    if typing.get_origin(kind) is not typing.Literal:
        return ""
    return ", ".join(typing.get_args(kind))


def helps(argv, doc):
    """Print the docstring of a script without settings, if --help asks for it -> whether it did."""
    asked = "--help" in argv or "-h" in argv
    if asked:
        print(doc.strip())
    return asked


def help_text(cfg, doc, presets):
    """The docstring, then a line for every field: the comment that stands behind it in the source,
    its choices, its default, and what others call it.
    """
    # comments are no part of a class at run time, so they are read from its source
    classes = [c for c in type(cfg).__mro__ if dataclasses.is_dataclass(c)]
    source = "".join(inspect.getsource(c) for c in classes)
    types = typing.get_type_hints(type(cfg))
    also = collections.defaultdict(list)
    for name, setting in others(types).items():
        also[setting].append(option(name))
    for name, (setting, _) in FLAGS.items():
        also[setting].append(option(name))
    inherited = {field.name for c in classes[1:] for field in dataclasses.fields(c)}

    # the script's own fields first, then those that it shares with others
    fields = sorted(dataclasses.fields(cfg), key=lambda field: field.name in inherited)
    lines = [doc.strip(), "", "options:"]
    for field in fields:
        comment = re.search(rf"^    {field.name}\s*:.*?\s#\s*(.*)$", source, re.MULTILINE)
        text = comment[1] if comment else ""
        if choices(types[field.name]):
            text += f" {{{choices(types[field.name])}}}"
        default = default_text(getattr(cfg, field.name), field.name)
        if default:
            text += f" [{default}]"
        if field.name in also:
            text += f" (also {', '.join(also[field.name])})"
        lines.append(f"  {option(field.name):<20} {text}")
    # presets at the end, each as the fields that it changes
    for name, values in presets.items():
        changes = ", ".join(f"{key}={value}" for key, value in values.items())
        lines.append(f"preset {name}: {changes if changes else 'the defaults'}")
    return "\n".join(lines)


def default_text(default, name):
    """A field's default as --help shows it; a switch that is on says how to turn it off."""
    if default is True:
        return f"on; {option('no_' + name)} turns it off"
    if default is False:
        return "off"
    if isinstance(default, (list, tuple)):
        return " ".join(map(str, default))
    return "" if default is None else str(default)


def differences(theirs, ours, free=()):
    """What two tables of settings do not agree on: {field: (their value, our value)}, without the
    fields in `free`.

    One of them may come from a JSON file, so both are compared as JSON: a tuple equals the list of
    its values. A field that one side lacks counts as None there.
    """
    theirs, ours = (json.loads(json.dumps(settings)) for settings in (theirs, ours))

    # fields of both sides: one that is new or gone is a difference too
    keys = sorted(theirs.keys() | ours.keys())
    return {key: (theirs.get(key), ours.get(key))
            for key in keys if key not in free and theirs.get(key) != ours.get(key)}


# ---- the end of a script ----

def report_failures(failures, results):
    """Print the sentences about what was left out -> the exit code: 0, 1 for some, 2 for all."""
    for sentence in failures:
        print(f"error: {sentence}", file=sys.stderr)
    if not failures:
        return 0
    return 1 if results else 2


# what is given back or brought to an end when a script ends, well or badly: locks, a checkpoint
# that is being written
until_the_end = contextlib.ExitStack()


def sentence_of(error):
    """What an OSError says, for people."""
    # not every OSError knows its file: a full disk, for one
    name = error.filename if error.filename else "a file"
    if error.filename2:                 # a temporary file was to take the place of this one
        name = error.filename2
    reason = error.strerror if error.strerror else error
    return f"{name} could not be read or written: {reason}."


def cli(main, doc=""):
    """Run a script's main(argv) and end the process.

    doc: the help of a script that has no settings, whose main never sees --help.

    Bad input, numbers that are none, a full disk, a missing permission or too little memory is one
    sentence and exit code 2. Output that nobody reads any more (`| head`) ends the script in
    silence.
    """
    keep_standard_streams()
    print_anything()
    code = 1                            # of a bug, whose traceback is shown
    try:
        if not __debug__:
            raise InputError("python -O and PYTHONOPTIMIZE leave out the checks of settings and "
                             "files; start without them.")
        with terminable(), until_the_end:
            if doc and helps(sys.argv[1:], doc):
                code = 0
            else:
                code = main(sys.argv[1:])
        sys.stdout.flush()              # now, while a reader who has gone is listened for
    except (InputError, FloatingPointError) as error:
        code = 2
        say(str(error))
    except OSError as error:
        gone = error.errno in NO_READER and not error.filename
        code = 141 if gone else 2       # 128 + SIGPIPE, as shells say of other programs
        if not gone:
            say(sentence_of(error))
        abandon_output()
    except (MemoryError, RuntimeError) as error:
        if shortage.is_one(error):
            code = 2
            say(shortage.sentence(error))
        elif dist.is_initialized() and lost_a_process(error):
            say("another process of this run has ended, and this one with it; if nothing above "
                "says why, it was killed, most likely for want of memory.")
        else:
            raise
    except KeyboardInterrupt:
        code = 130                      # what a shell expects: 128 + SIGINT
    finally:
        if dist.is_initialized():
            leave_at_once(code)
    sys.exit(code)
