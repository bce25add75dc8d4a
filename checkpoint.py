"""Checkpoints: write whole or not at all, find the newest whole one, resume.

A run's directory holds `log.jsonl` and one directory a checkpoint, named by its step:

    out/und/00003840/   config.json  model.safetensors  ema.safetensors  vae.safetensors  tokenizer.json  state.pt

Each is written under a temporary name beside it, flushed, then renamed, so a kill at any moment leaves the old or the
new one whole. `config.json` lists the sizes of the other files; a checkpoint that lacks a byte is not whole.
"""
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from common import InputError


def save(run, step, *, config, tensors, tokenizer=None, state=None, keep=2):
    """Write checkpoint `step` of the run directory and remove all but the newest `keep`.

    config: plain JSON (network, VAE, settings, stage). tensors: {"model": {name: tensor}, "ema": ..., "vae": ...}.
    tokenizer: JSON text. state: what the optimizer needs to go on.
    """
    run = Path(run)
    final, temporary = run / f"{step:08d}", run / f".tmp-{step:08d}"
    try:
        run.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        for name, part in tensors.items():
            save_file({k: t.detach().contiguous() for k, t in part.items()}, temporary / f"{name}.safetensors")
        if tokenizer is not None:
            (temporary / "tokenizer.json").write_text(tokenizer, encoding="utf-8")
        if state is not None:
            torch.save(state, temporary / "state.pt")
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
        (temporary / "config.json").write_text(json.dumps({**config, "step": step, "files": files}, indent=1))
        for path in [*temporary.iterdir(), temporary]:
            flush(path)
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        flush(run)
    except (OSError, RuntimeError, SafetensorError) as error:      # a full disk, as Python, torch and safetensors say it
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"the checkpoint of step {step} could not be written to {run} ({error}); "
                         "earlier checkpoints there are whole. Free some space and start the same command.") from error
    for old in checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return final


def flush(path):
    """fsync a file or a directory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def checkpoints(run):
    """The checkpoint directories of a run, oldest first."""
    return sorted(path for path in Path(run).glob("[0-9]" * 8) if path.is_dir())


def read_config(directory):
    """config.json of a checkpoint directory; every file it lists must be there in full."""
    directory = Path(directory)
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{directory} holds no config.json, so it is not a checkpoint.") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{directory}/config.json is not JSON ({error}); the checkpoint is damaged.") from None
    if not isinstance(config, dict):
        raise InputError(f"{directory}/config.json holds no settings; the checkpoint is damaged.")
    for name, size in config.get("files", {}).items():
        path = directory / name
        if not path.exists():
            raise InputError(f"the checkpoint {directory} lacks {name}; copy it anew or use an earlier one.")
        if path.stat().st_size != size:
            raise InputError(f"{path} has {path.stat().st_size} bytes and should have {size}; the checkpoint is damaged.")
    return config


def newest(path):
    """A checkpoint directory: `path` itself, or the newest checkpoint of the run at `path`."""
    path = Path(path)
    if (path / "config.json").exists():
        return path
    if not path.is_dir():
        raise InputError(f"there is no checkpoint at {path}.")
    if not checkpoints(path):
        raise InputError(f"{path} holds neither a config.json nor a checkpoint of a run.")
    return checkpoints(path)[-1]


def start(run, settings, overwrite, free=("steps", "out", "overwrite")):
    """What a training script does first: -> the newest checkpoint of the run to resume from, or None to start anew.

    A run made with other settings is refused, except those in `free`: a run may be made longer.
    """
    run = Path(run)
    for leftover in run.glob(".tmp-*"):
        shutil.rmtree(leftover)
    if overwrite and run.exists():
        for old in checkpoints(run):
            shutil.rmtree(old)
        (run / "log.jsonl").unlink(missing_ok=True)
    if not checkpoints(run):
        run.mkdir(parents=True, exist_ok=True)
        return None
    config = read_config(newest(run))
    theirs, ours = config["settings"], json.loads(json.dumps(asdict(settings)))
    other = sorted(k for k in theirs.keys() | ours.keys() if theirs.get(k) != ours.get(k) and k not in free)
    if other:
        raise InputError(f"{run} holds a run with other settings ({', '.join(f'{k}={theirs.get(k)}' for k in other)}); "
                         "choose another --out, or --overwrite to start anew.")
    return newest(run)
