"""Tiny training runs for the tests: command lines of seconds, and what a run leaves on the disk.

Everything in float32 on the CPU. `und` and `gen` make command lines, the rest reads runs.
"""
import json

import torch
from safetensors.torch import load_file

import train_gen
import train_und
from training.log import TIMED
from weights import checkpoint

COMMON = (
    "--device cpu --dtype float32 --warmup 0 --log-every 1 --eval-every 1000 --save-every 1000 "
    "--ema 0.9 --no-shard --no-recompute").split()
UND = (
    "--init= --n-layer 2 --n-head 2 --n-embd 32 --n-inner 64 --vit-layer 1 --vit-head 2 "
    "--vit-embd 32 --image-size 64 --repa-layer 1 --max-text 256 --batch-size 4 --micro-batch 4 "
    "--lr 3e-3").split()
GEN = (
    "--size 32 --max-latent-size 8 --repa-inner 32 --repa-encoder= --vae= --batch-size 4 "
    "--micro-batch 4 --lr 3e-3").split()

SCRIPT = {1: "train_und.py", 2: "train_gen.py"}
MAIN = {1: train_und.main, 2: train_gen.main}


def und(data, out, *more):
    """The command line of a stage 1; what stands in `more` wins."""
    return [*UND, *COMMON, "--data", str(data), "--out", str(out), *map(str, more)]


def gen(data, out, init, *more):
    """The command line of a stage 2, or of a stage 3 with `--stage 3`."""
    return [*GEN, *COMMON, "--data", str(data), "--out", str(out), "--init", str(init),
            *map(str, more)]


# ---- what a run leaves ----

def log(run):
    """The lines of log.jsonl, without the fields that speak of time."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMED} for line in lines]


def column(run, name):
    """One field of the log, of all lines that have it."""
    return [line[name] for line in log(run) if name in line]


def tensors(run, part="model"):
    """{name: tensor} of a part of the newest checkpoint, or of a checkpoint, frozen or not."""
    files = sorted(checkpoint.newest(run).glob(f"{part}*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


def state(run):
    """state.pt of the newest checkpoint."""
    return torch.load(checkpoint.newest(run) / "state.pt", weights_only=True)


def optimizer(run):
    """{optimizer.parameter.name: tensor} of all optimizers of the newest checkpoint."""
    tensors = {}
    for n, states in enumerate(state(run)["optimizers"]):
        for i, values in states["state"].items():
            for name, value in values.items():
                tensors[f"{n}.{i:04d}.{name}"] = value
    return tensors


def gradients(run):
    """One vector of AdamW's first moments: after one step a tenth of the clipped gradient."""
    moments = sorted((name, value) for name, value in optimizer(run).items()
                     if name.endswith("exp_avg"))
    return torch.cat([value.flatten() for _, value in moments])


def identical(a, b):
    """Whether two tables of tensors are equal, bit for bit; NaN equals the same NaN."""
    if a.keys() != b.keys():
        return False
    return all(torch.equal(bits(a[name]), bits(b[name])) for name in a)


def bits(tensor):
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor


def same_run(run, reference):
    """Two runs have the same log, weights, average and optimizers, bit for bit."""
    assert log(run) == log(reference)
    for part in ("model", "ema"):
        assert identical(tensors(run, part), tensors(reference, part)), part
    assert identical(optimizer(run), optimizer(reference))
    counters = [{name: value for name, value in state(one).items() if name != "optimizers"}
                for one in (run, reference)]
    assert counters[0] == counters[1]
    assert not list(run.glob(".tmp-*"))
