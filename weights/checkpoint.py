"""Our own checkpoints: written whole or not at all, the newest whole one found.

A run's directory holds `log.jsonl` and one directory a checkpoint, named by its step:

    out/und/00003840/   config.json  tokenizer.json  state.pt
                        model.safetensors  model-frozen.safetensors
                        ema.safetensors  vae.safetensors

Weights that a run never trains lie in files of their own (`model-frozen`, the VAE of stages 2 and
3). They are written once; later checkpoints of the run hold the same file under a second name (a
hard link), so each directory is complete by itself, whichever others are deleted.

A checkpoint is written under a temporary name beside its final one, flushed, then renamed, so that
a kill at any moment leaves the old or the new one whole. `config.json` lists the sizes and hashes
of the other files: a checkpoint that lacks a byte is not whole, and a run does not resume from one
in which a byte has changed.

The directories of others (a released UniX, Janus-Pro) have a config.json without such a list; they
are read by the same functions and not checked.
"""
import os
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from common.cli import InputError
from common.files import digest, read_json, write_json, write_text
from common.platforms import flush


# ---- writing ----

@contextmanager
def replacing_directory(path):
    """Write a directory whole or not at all: `with replacing_directory(path) as temporary:` and
    write into `temporary`, which exists and is empty.

    When the block ends well, all files are flushed to the disk and the temporary directory takes
    the place of `path`. When the disk refuses, the temporary directory is removed, what was at
    `path` stays, and an InputError says so. A kill may leave the temporary directory behind; its
    name is no checkpoint's, and the next attempt removes it.
    """
    final = Path(path)
    temporary = final.with_name(f".tmp-{final.name}")
    old = final.with_name(f".tmp-old-{final.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)        # what an earlier kill has left
        temporary.mkdir(parents=True)
        yield temporary

        # flush first: a file system may put a rename on the disk before the bytes it speaks of
        for written in [*temporary.rglob("*"), temporary]:
            flush(written)

        # a directory cannot be renamed onto one that holds files, so the old one steps aside first;
        # a kill between the two renames leaves both of them whole, under their temporary names
        if final.exists():
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
        temporary.rename(final)
        flush(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        # torch reports a full disk as a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        if old.exists() and not final.exists():
            old.rename(final)
        raise InputError(f"{final} could not be written ({error}); what was written before is "
                         "whole. Free some space and start the same command.") from error


def write(directory, *, config, tensors, tokenizer=None, state=None, frozen=(), before=None):
    """Write one checkpoint directory, whole or not at all, in place of what is there.

    config: plain JSON (network, VAE, settings, stage).
    tensors: {"model": {name: tensor}, "ema": ..., "vae": ...}, a file each.
    tokenizer: JSON text. state: what the optimizer needs to go on.
    frozen: which of the tables are the same as in `before`, an earlier checkpoint of the run.
    """
    with replacing_directory(directory) as temporary:
        linked = {}                     # hashes of the files that need not be written again
        for name, table in tensors.items():
            path = temporary / f"{name}.safetensors"
            if name in frozen and before is not None:
                linked |= link(Path(before), path, table)
            if path.name not in linked:
                # safetensors refuses a tensor that is a transposed view of another
                table = {key: tensor.detach().contiguous() for key, tensor in table.items()}
                save_file(table, path)
        if tokenizer is not None:
            write_text(temporary / "tokenizer.json", tokenizer)
        if state is not None:
            torch.save(state, temporary / "state.pt")

        # config.json comes last, since it lists the other files
        paths = sorted(temporary.iterdir())
        sizes = {path.name: path.stat().st_size for path in paths}
        hashes = {path.name: digest(path) for path in paths if path.name not in linked} | linked
        write_json(temporary / "config.json", {**config, "files": sizes, "sha256": hashes})


def link(before, path, table):
    """Give the file of an earlier checkpoint, which holds the same table, a second name at `path`.

    -> {file name: its hash}, or {} where there is no such file or the file system has no hard
    links: then it must be written.
    """
    old = before / path.name
    if not old.exists() or not (before / "config.json").exists():
        return {}
    with safe_open(old, "pt") as file:
        if set(file.keys()) != set(table):
            return {}
    try:
        os.link(old, path)
    except OSError:
        return {}
    return {path.name: read_config(before)["sha256"][path.name]}


def save(run, step, keep=2, *, config, **parts):
    """Write checkpoint `step` of a run's directory; of the older ones the newest `keep` stay."""
    write(Path(run) / f"{step:08d}", config={**config, "step": step}, **parts)
    # only now, when the new checkpoint is whole, may an old one go
    for old in checkpoints(run)[:-keep]:
        remove(old)


def remove(directory):
    """Delete a checkpoint. A kill meanwhile leaves no half of it that looks like one."""
    aside = directory.with_name(f".tmp-old-{directory.name}")
    if aside.exists():
        shutil.rmtree(aside)
    directory.rename(aside)
    shutil.rmtree(aside)


def remove_leftovers(run):
    """Delete what kills have left of checkpoints that were being written or deleted."""
    for pattern in (".tmp-", ".tmp-old-"):
        for leftover in Path(run).glob(pattern + EIGHT_DIGITS):
            shutil.rmtree(leftover)


# ---- finding and checking ----

EIGHT_DIGITS = "[0-9]" * 8


def checkpoints(run):
    """The checkpoint directories of a run, oldest first."""
    # with eight digits names sort as numbers do; half-written directories are called .tmp-...
    return sorted(path for path in Path(run).glob(EIGHT_DIGITS) if path.is_dir())


def is_ours(directory):
    """Whether a directory holds nothing but what `write` writes, be it damaged."""
    for path in directory.iterdir():
        known = ("config.json", "tokenizer.json", "state.pt")
        if path.name not in known and path.suffix != ".safetensors":
            return False
    return True


def read_config(directory, thorough=False):
    """config.json of a checkpoint directory. InputError if a file that it lists lacks a byte.

    thorough: the hashes of all files are compared as well, so a changed byte is found too.
    """
    directory = Path(directory)
    path = directory / "config.json"
    if not path.exists():
        raise InputError(f"{directory} holds no config.json, so it is not a checkpoint.")
    config = read_json(path)
    if not isinstance(config, dict):
        raise InputError(f"{path} holds no settings; the checkpoint is damaged.")
    if thorough and "files" not in config:
        raise InputError(f"{path} does not name the files beside it; the checkpoint is damaged.")
    refuse_damage(directory, config, thorough)
    return config


def refuse_damage(directory, config, thorough):
    """InputError if the files beside config.json are not those that it lists."""
    # sizes are compared always, since that costs nothing; hashes only where a run is resumed,
    # since a full-size checkpoint has gigabytes to read
    hashes = config.get("sha256", {})
    for name, size in config.get("files", {}).items():
        path = directory / name
        if not path.exists():
            raise InputError(f"the checkpoint {directory} lacks {name}; "
                             "copy it anew or use an earlier one.")
        actual_size = path.stat().st_size
        if actual_size != size:
            raise InputError(f"{path} has {actual_size} bytes and should have {size}; "
                             "the checkpoint is damaged.")
        if thorough and name in hashes and digest(path) != hashes[name]:
            raise InputError(f"{path} holds other bytes than were written; "
                             "the checkpoint is damaged.")


def newest(path, thorough=False):
    """The checkpoint at a path: `path` itself, or the newest whole one of the run there.

    A damaged checkpoint of a run is passed over with a line on stderr. thorough: see `read_config`.
    InputError where there is no whole checkpoint.
    """
    path = Path(path)
    if (path / "config.json").exists():
        return path
    if not path.is_dir():
        raise InputError(f"there is no checkpoint at {path}; a stage before writes it to out/, and "
                         "docs/weights.md says where weights of others come from.")

    # a run: try the newest first
    directories = checkpoints(path)
    if not directories:
        raise InputError(f"{path} holds neither a config.json nor a checkpoint.")
    for directory in reversed(directories):
        try:
            read_config(directory, thorough)
            return directory
        except InputError as error:
            print(f"passing over {directory}: {error}", file=sys.stderr)
    raise InputError(f"{path} holds no whole checkpoint.")
