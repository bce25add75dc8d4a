"""Going on with a run: which checkpoint, whether it is the same run, and what it needs besides
weights.

A run whose directory holds a checkpoint of the same settings resumes, one of other settings is
refused. The resumed run equals an uninterrupted one bit for bit, since the checkpoint holds the
state of the optimizers and the average, and everything random depends on (seed, step, index) alone.
"""
import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from common.cli import InputError, differences
from common.processes import print0
from training import optim
from weights import adapters, checkpoint

# settings that change no result, so that a run may go on with others (steps: with a constant
# learning rate only)
FREE = ("steps", "out", "overwrite", "save_every", "eval_every", "sample_every", "log_every",
        "boards", "keep", "max_skipped", "micro_batch", "device", "threads", "workers", "shard",
        "recompute", "compile")


# settings that runs of earlier versions hold, at the values that changed nothing
GONE = {"keep_every": 0, "train_u": False, "und_share": 0.0}
# settings that they lack, at the values that change nothing
NEW = {"lora": 0, "lora_alpha": 16.0, "lora_vision": False}


def checkpoint_to_resume(cfg, stage=None):
    """The newest checkpoint of the run in cfg.out, or None to start anew. Nothing is deleted here.

    A run made with other settings is refused, except for those in FREE, which change no result.
    stage: what is trained; --overwrite replaces no run of another stage.
    """
    refuse_foreign(cfg.out, cfg.overwrite)
    if cfg.overwrite:
        refuse_needed(cfg, stage)
    # thorough: every byte is hashed, since a run must not go on from one that has changed
    if cfg.overwrite or not checkpoint.checkpoints(cfg.out):
        return None
    directory = checkpoint.newest(cfg.out, thorough=True)
    # the same run? Then everything that decides a result is the same
    config = checkpoint.read_config(directory)
    free = set(FREE)
    if cfg.decay == "cosine":           # then the number of steps decides every learning rate
        free.remove("steps")
    if cfg.dtype == "auto":             # whatever format it was begun with
        free.add("dtype")
    theirs = {key: value for key, value in config["settings"].items()
              if key not in GONE or value != GONE[key]}
    ours = asdict(cfg)
    theirs = {**{key: value for key, value in NEW.items() if key in ours}, **theirs}
    different = differences(theirs, ours, free)
    if different:
        named = ", ".join(f"{key}={value}" for key, (value, _) in different.items())
        raise InputError(f"{cfg.out} holds a run with other settings ({named}); choose another "
                         "--out, or --overwrite to start anew.")
    if config["step"] > cfg.steps:
        raise InputError(f"{cfg.out} has made {config['step']} steps already, more than --steps "
                         f"{cfg.steps}.")
    return directory


def begun_with(directory, setting):
    """A setting of the run whose checkpoint this is; None without a checkpoint."""
    if directory is None:
        return None
    return checkpoint.read_config(directory)["settings"][setting]


def refuse_foreign(out, overwrite):
    """InputError for a directory that holds what a run would delete and no run has written."""
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is a file; name a directory.")
    # eight digits are a date, too
    for directory in checkpoint.checkpoints(out):
        if not checkpoint.is_ours(directory):
            raise InputError(f"{directory} is no checkpoint of ours, and a run would delete it as "
                             "an old one: choose another --out.")
    log = out / "log.jsonl"
    if log.exists() and not is_log(log):
        raise InputError(f"{log} is no log of ours, and a run would replace it: choose another "
                         "--out.")
    if overwrite and out.exists() and not log.exists() and not checkpoint.checkpoints(out):
        others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
        if others:
            raise InputError(f"{out} holds no run that --overwrite could replace, but other files "
                             f"({others[0]}); choose another --out.")


def refuse_needed(cfg, stage):
    """InputError if --overwrite would delete a run of another stage, or what this run begins with.
    """
    for name in ("init", "vae"):
        source = vars(cfg).get(name)
        if not source:
            continue
        for place in adapters.foundations(source):
            place = place.resolve()
            if Path(cfg.out).resolve() in (place, *place.parents):
                raise InputError(f"--overwrite would delete {cfg.out}, and {place}, which --{name} "
                                 f"{source} needs, lies in it: choose another --out.")
    for directory in checkpoint.checkpoints(cfg.out):
        try:
            theirs = checkpoint.read_config(directory).get("stage")
        except InputError:              # a damaged one is of no use to anybody
            continue
        if None not in (theirs, stage) and theirs != stage:
            raise InputError(f"{cfg.out} holds a run of stage {theirs}, and this is stage {stage}: "
                             "choose another --out, so that --overwrite does not delete it.")


def is_log(path):
    """Whether the first line of a file is one that `Log` writes, or was torn by a kill."""
    with open(path, encoding="utf-8", errors="replace") as file:
        line = file.readline(100_000)
    if not line.endswith("\n"):
        return True
    try:
        fields = json.loads(line)
    except ValueError:
        return False
    return isinstance(fields, dict) and "step" in fields


def tidy(out, anew):
    """Make the run's directory ready, once all that may be refused has been checked.

    Half-written checkpoints go; for a new start (--overwrite) old ones and the log go too.
    """
    # names that only a run gives: a user's own files stay
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint.remove_leftovers(out)
    if anew:
        for directory in checkpoint.checkpoints(out):
            checkpoint.remove(directory)
        (out / "log.jsonl").unlink(missing_ok=True)


# ---- the state of the optimizers and the average ----

def is_sharded(optimizer):
    """Whether the state is spread over the processes (ZeroRedundancyOptimizer, whose import is
    slow).
    """
    return not isinstance(optimizer, (torch.optim.AdamW, optim.Muon))


def optimizer_state(optimizers, ema, skips=0):
    """What a run needs to go on, besides the weights and their average. skips: steps in a row
    skipped.

    All processes call it, since a sharded state is gathered on the first, which alone gets an
    answer.
    """
    for optimizer in optimizers:
        if is_sharded(optimizer):
            optimizer.consolidate_state_dict(to=0)
    if dist.is_initialized() and dist.get_rank() != 0:
        return None
    states = [optimizer.state_dict() for optimizer in optimizers]
    return {"optimizers": states, "ema_steps": ema.steps, "skips": skips}


def restore(directory, optimizers, ema):
    """Put the optimizers and the average of a checkpoint back -> its step, steps skipped in a row.
    """
    on_cuda = optimizers[0].param_groups[0]["params"][0].is_cuda
    # mapped on CUDA: every process takes its part of the file and none reads all of it
    saved = torch.load(directory / "state.pt", weights_only=True, map_location="cpu", mmap=on_cuda)
    for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
        if is_sharded(optimizer):
            # ZeroRedundancyOptimizer keeps a second copy after loading, and leaves `step` on the
            # CPU, while the fused kernel wants it beside the parameter
            optimizer.state.clear()
            for parameter, values in optimizer.optim.state.items():
                values["step"] = values["step"].to(parameter.device)
    # the average, by name: it must be of exactly the weights that are trained
    ema.steps = saved["ema_steps"]
    average = load_file(directory / "ema.safetensors") if ema.decay else {}
    assert average.keys() == ema.live.keys(), "the average is not of what the run trains"
    for name, tensor in ema.shadow.items():
        tensor.copy_(average[name])
    print0(f"resuming {directory}")
    return checkpoint.read_config(directory)["step"], saved["skips"]
