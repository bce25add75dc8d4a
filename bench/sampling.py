"""Speed as ratios, measured in one process, so that they mean the same on any machine.

    python -m bench.sampling sample      # velocities against a matrix product; decoding against reading the weights once
    python -m bench.sampling steps       # how near few-step solvers come to the converged solution, with the demo/ weights
    python -m bench.sampling train       # the stage-2 step: use of the machine, cost of the text, of data, of DDP (bench/training.py)
    python -m bench.sampling plot RUN... # the curves of training runs in one picture, curves.png (training/curves.py; needs matplotlib)
    python -m bench.sampling weights     # a full-size UniX with random weights in the release's layout: memory, loading, both tasks

A guided velocity is compared with the rate of one large matrix product of the same dtype: the floating-point
operations of its linear layers and its attention, over its time. Decoding one token must read every weight once, so it
is compared with summing a tensor of that size. Every figure is a median; the two sides of a ratio take turns.
"""
import itertools
import json
import multiprocessing
import resource
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import tokenizers
import torch
from tqdm import tqdm

from common import processes as common
from training import curves
import flow
import sample
from bench import training as speed
import weights
from weights.export import export_release
from attention import DecodeCache
from common.processes import InputError
from common.processes import decoding
from model import UniX, UniXConfig
from phantom.prepare import Settings, held_out
from bench.training import medians
from vae import VAE, VAEConfig
from vision import ViTConfig


@dataclass
class BenchConfig:
    n_embd: int = 512           # width
    n_layer: int = 8            # layers
    n_head: int = 8             # heads
    n_inner: int = 1408         # width inside the MLP
    grid: int = 16              # rows and columns of the latent
    text: int = 96              # tokens of the report
    cached: int = 674           # tokens before decoding begins: 576 vision, SOI, EOI, 96 of the prompt
    repeats: int = 15           # measurements a figure; the median counts
    dtype: str = "bfloat16"     # or float32
    device: str = "auto"        # auto, cpu, cuda
    threads: int = 0            # CPU threads; 0 leaves it to torch
    checkpoint: str = str(Path(__file__).parents[1] / "demo")   # of `steps`
    reports: int = 64           # of `steps`
    images: int = 4096          # of `train`: read in one pass
    workers: int = 2            # of `train`: threads that read data ahead
    out: str = ""               # of `weights`: where the 6.6 GB of random weights go, out/bench-UniX; of `plot`: curves.png
    json: bool = False          # print the figures as JSON


def velocity_flops(model, B, text, latents):
    """Multiply-adds times two of one velocity of B rows: each token through its own branch's linear layers, and
    q k^T and p v of the T = latents + 2 queries over S = text + T keys. Norms and SwiGLU's products are not counted."""
    C, n_layer, n_inner = model.cfg.n_embd, model.cfg.n_layer, model.cfg.n_inner
    T = latents + 2
    linear = 2 * T * n_layer * (4 * C * C + 3 * C * n_inner) + 2 * latents * 2 * C * model.cfg.latent_channels
    time_mlp = 2 * (256 * C + C * C)
    attention = 4 * n_layer * T * (text + T) * C
    return B * (linear + time_mlp + attention)


@torch.inference_mode()
def bench_sample(cfg):
    device, dtype = common.setup(cfg.device, cfg.threads).device, common.torch_dtype(cfg.dtype)
    torch.manual_seed(0)
    model = UniX(UniXConfig(n_layer=cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd, n_inner=cfg.n_inner, repa_layer=1,
                            vocab_size=1024, bos=0, eos=1, soi=2, eoi=3, max_latent_size=cfg.grid,
                            vision=ViTConfig(image_size=32, n_layer=1, n_head=1, n_embd=32, n_inner=32)))
    model = model.to(device, dtype).eval()
    side = 4096 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    figures = {"device": str(device), "dtype": cfg.dtype, "threads": torch.get_num_threads()}

    # velocities: the report's row and the empty row of guidance are one batch
    for images in (1, 8):
        _, cache = model.prefill_text(torch.randint(4, 1024, (images, cfg.text), device=device))
        rows = torch.arange(images, device=device).repeat(2)
        cache = cache.rows(rows).drop(torch.arange(2 * images, device=device) >= images)
        x = torch.randn(2 * images, 16, cfg.grid, cfg.grid, device=device).to(dtype)
        t = torch.full((2 * images,), 0.5, device=device)
        seconds = medians(cfg.repeats, device, product=lambda: a @ b, velocity=lambda: model.velocity(x, t, cache))
        peak = 2 * side ** 3 / seconds["product"]
        rate = velocity_flops(model, 2 * images, cfg.text, cfg.grid ** 2) / seconds["velocity"]
        figures[f"velocity_{images}"] = {"ms": 1e3 * seconds["velocity"], "gflops": rate / 1e9,
                                         "product_gflops": peak / 1e9, "share": rate / peak}

    # decoding: every understanding weight that a token uses is read once
    used = [p for n, p in model.named_parameters() if (".u." in n) or n.startswith(("lm_head", "norm_u"))]
    # summed as float32, whatever the bytes mean: the sum of bf16 numbers is slow for reasons of its own
    block = torch.cat([p.flatten() for p in used]).view(torch.float32)
    token = torch.zeros(1, 1, dtype=torch.long, device=device)
    figures["decode"] = {"weights_mb": block.numel() * block.element_size() / 1e6}
    for cached in (cfg.cached // 8, cfg.cached):
        _, cache = model.prefill_text(torch.randint(4, 1024, (1, cached), device=device))
        cache = DecodeCache(cache, 4 * cfg.repeats + 8)

        def decode():
            with decoding(1, device):
                hidden, _ = model.prefill_text(token, cache=cache)
                model.logits(hidden)

        seconds = medians(cfg.repeats * 2, device, read=block.sum, token=decode)
        figures["decode"][f"after_{cached}"] = {"ms": 1e3 * seconds["token"], "read_ms": 1e3 * seconds["read"],
                                                "ratio": seconds["token"] / seconds["read"]}
    return figures


SETTINGS = [("euler", 49, 3.0), ("euler", 16, 3.0), ("euler", 16, 1.0), ("heun", 8, 1.0), ("ab2", 16, 3.0),
            ("ab2", 16, 1.0), ("ab2", 12, 1.0), ("ab2", 8, 1.0)]     # solver, steps, shift; the release's first


@torch.inference_mode()
def bench_steps(cfg):
    """Relative RMS distance of final latents to 200 Heun steps, guidance 2, averaged over held-out reports."""
    device = common.setup(cfg.device, cfg.threads).device
    model, vae, tokenizer = weights.load(cfg.checkpoint)
    model = model.to(device)
    reports = [held_out(Settings(), i)[0]["report"] for i in range(cfg.reports)]
    velocity = sample.guided(model, [tokenizer.prompt(report) for report in reports], sample.Sampling())
    side = model.cfg.max_latent_size
    noise = torch.stack([torch.randn(vae.cfg.embed_dim, side, side, generator=common.generator(0, i))
                         for i in range(cfg.reports)]).to(device)
    converged = flow.heun(velocity, noise, flow.schedule(200), partial(tqdm, desc="200 Heun steps", leave=False))
    figures = {}
    for solver, steps, shift in SETTINGS:
        solve, evaluations = flow.SOLVERS[solver]
        error = solve(velocity, noise, flow.schedule(steps, shift)) - converged
        distance = (error.square().mean((1, 2, 3)) / converged.square().mean((1, 2, 3))).sqrt().mean()
        figures[f"{solver} {steps} steps, shift {shift:g}"] = {"velocities": steps * evaluations, "distance": float(distance)}
        print(f"{solver:6} {steps:3} steps, shift {shift:g}: {steps * evaluations:3} velocities, distance {float(distance):.4f}")
    return figures


def main(argv):
    kinds = {"sample": bench_sample, "steps": bench_steps, "train": bench_train, "weights": bench_weights}
    asked = argv[0] if argv and "--help" not in argv else ""
    if argv and argv[0] not in (*kinds, "plot", "--help") or not argv:
        raise InputError("say what to measure: `python -m bench.sampling " + "`, `python -m bench.sampling ".join([*kinds, "plot RUN..."]) + "`.")
    runs = list(itertools.takewhile(lambda word: not word.startswith("--"), argv[1:])) if asked == "plot" else []
    cfg = common.override(BenchConfig(), argv[bool(asked) + len(runs):], __doc__)
    if asked == "plot":
        if not runs:
            raise InputError("name the directories of the runs: `python -m bench.sampling plot RUN...`.")
        drawn = curves.draw(runs, cfg.out or "curves.png")
        return print(f"{cfg.out or 'curves.png'}: {', '.join(drawn)} of {len(runs)} run(s)")
    figures = kinds[asked](cfg)
    show = {"sample": show_sample, "train": speed.show, "weights": show_weights}
    if cfg.json:
        print(json.dumps(figures))
    elif asked in show:                     # `steps` prints as it goes
        show[asked](figures)


def show_sample(figures):
    print(f"{figures['device']}, {figures['dtype']}, {figures['threads']} threads")
    for images in (1, 8):
        f = figures[f"velocity_{images}"]
        print(f"guided velocity, {images} image(s): {f['ms']:.1f} ms, {f['gflops']:.0f} GFLOP/s = {f['share']:.2f} of a "
              f"matrix product ({f['product_gflops']:.0f} GFLOP/s)")
    for name, f in figures["decode"].items():
        if name != "weights_mb":
            print(f"decoding {name.replace('_', ' ')} tokens: {f['ms']:.2f} ms a token = {f['ratio']:.2f} times reading the "
                  f"{figures['decode']['weights_mb']:.0f} MB of weights once ({f['read_ms']:.2f} ms)")


if __name__ == "__main__":
    common.cli(main)
