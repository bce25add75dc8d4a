"""Checkpoints: write whole or not at all, find the newest whole one, resume.

A run's directory holds `log.jsonl` and one directory a checkpoint, named by its step:

    out/und/00003840/   config.json  model.safetensors  ema.safetensors  vae.safetensors  tokenizer.json  state.pt

Each is written under a temporary name beside it, flushed, then renamed, so a kill at any moment leaves the old or the
new one whole. `config.json` lists the sizes and hashes of the other files; a checkpoint that lacks a byte is not whole,
and a run does not resume from one in which a byte has changed.
"""
import hashlib
import json
import os
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from common.processes import InputError

FREE = ("steps", "out", "overwrite", "save_every", "eval_every", "sample_every", "log_every", "boards", "keep", "keep_every",
        "max_skipped", "micro_batch", "device", "threads", "workers", "shard", "recompute")


def write(directory, *, config, tensors, tokenizer=None, state=None):
    """Write one checkpoint directory, whole or not at all, in place of what is there.

    config: plain JSON (network, VAE, settings, stage). tensors: {"model": {name: tensor}, "ema": ..., "vae": ...}.
    tokenizer: JSON text. state: what the optimizer needs to go on.
    """
    final = Path(directory)
    temporary, old = (final.with_name(f".tmp-{kind}{final.name}") for kind in ("", "old-"))
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        for name, part in tensors.items():
            save_file({k: t.detach().contiguous() for k, t in part.items()}, temporary / f"{name}.safetensors")
        if tokenizer is not None:
            (temporary / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        if state is not None:
            torch.save(state, temporary / "state.pt")
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        hashes = {name: digest(temporary / name) for name in files}
        (temporary / "config.json").write_text(json.dumps({**config, "files": files, "sha256": hashes}, indent=1))
        for path in [*temporary.iterdir(), temporary]:
            flush(path)
        if final.exists():
            final.rename(old)
        temporary.rename(final)
        flush(final.parent)
        shutil.rmtree(old, ignore_errors=True)
    except (OSError, RuntimeError, SafetensorError) as error:     # torch reports a full disk as a RuntimeError
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"the checkpoint {final} could not be written ({error}); earlier ones beside it are whole. "
                         "Free some space and start the same command.") from error


def save(run, step, keep=2, keep_every=0, *, config, **parts):
    """Write checkpoint `step` of the run directory; of the older ones stay the newest `keep`, and every `keep_every`th step."""
    write(Path(run) / f"{step:08d}", config={**config, "step": step}, **parts)
    for old in checkpoints(run)[:-keep]:
        if not keep_every or int(old.name) % keep_every:
            shutil.rmtree(old)


def flush(path):
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def digest(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checkpoints(run):
    """The checkpoint directories of a run, oldest first."""
    return sorted(path for path in Path(run).glob("[0-9]" * 8) if path.is_dir())


def read_config(directory, thorough=False):
    """config.json of a checkpoint directory; every file it lists must be there in full, thorough: byte for byte."""
    directory = Path(directory)
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{directory} holds no config.json, so it is not a checkpoint.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{directory}/config.json is not JSON ({error}); the checkpoint is damaged.") from None
    if not isinstance(config, dict):
        raise InputError(f"{directory}/config.json holds no settings; the checkpoint is damaged.")
    if thorough and "files" not in config:
        raise InputError(f"{directory}/config.json does not name the files beside it; the checkpoint is damaged.")
    for name, size in config.get("files", {}).items():
        path = directory / name
        if not path.exists():
            raise InputError(f"the checkpoint {directory} lacks {name}; copy it anew or use an earlier one.")
        if path.stat().st_size != size:
            raise InputError(f"{path} has {path.stat().st_size} bytes and should have {size}; the checkpoint is damaged.")
        if thorough and name in config.get("sha256", {}) and digest(path) != config["sha256"][name]:
            raise InputError(f"{path} holds other bytes than were written; the checkpoint is damaged.")
    return config


def newest(path, thorough=False):
    """A checkpoint directory: `path` itself, or the newest whole checkpoint of the run at `path` (see read_config)."""
    path = Path(path)
    if (path / "config.json").exists():
        return path
    if not path.is_dir():
        raise InputError(f"there is no checkpoint at {path}.")
    found = checkpoints(path)
    for directory in reversed(found):
        try:
            read_config(directory, thorough)
            return directory
        except InputError as error:
            print(f"passing over {directory}: {error}", file=sys.stderr)
    raise InputError(f"{path} holds {'no whole checkpoint' if found else 'neither a config.json nor a checkpoint'}.")


def start(run, settings, overwrite):
    """What a training script does first: -> the newest checkpoint of the run to resume from, or None to start anew.

    A run made with other settings is refused, except those in FREE, which change no result. Nothing is deleted here.
    """
    run = Path(run)
    if overwrite or not checkpoints(run):
        return None
    directory = newest(run, thorough=True)
    config = read_config(directory)
    theirs, ours = config["settings"], json.loads(json.dumps(asdict(settings)))
    other = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k) and k not in FREE)
    if other:
        raise InputError(f"{run} holds a run with other settings ({', '.join(f'{k}={theirs.get(k)}' for k in other)}); "
                         "choose another --out, or --overwrite to start anew.")
    if config["step"] > settings.steps:
        raise InputError(f"{run} has made {config['step']} steps already, more than --steps {settings.steps}.")
    return directory


def tidy(run, anew):
    """Make the run's directory ready, once all that may be refused has been checked: no half-written checkpoints; for
    a new start (--overwrite) no old ones and no log. On one process only."""
    run = Path(run)
    run.mkdir(parents=True, exist_ok=True)
    for old in [*run.glob(".tmp-*"), *(checkpoints(run) if anew else [])]:
        shutil.rmtree(old)
    if anew:
        (run / "log.jsonl").unlink(missing_ok=True)
