"""How fast drawing and decoding are, against what the machine can do; how good few steps are.

    python -m bench.sampling                # velocities, and tokens of a report; random weights
    python -m bench.sampling --solvers      # few-step solvers against the converged solution

A guided velocity is compared with the rate of one large matrix product of the same dtype: the
operations of its linear layers and its attention, over its time. Decoding one token must read every
weight once, so it is compared with summing a tensor of that size.
"""
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import flow
import weights
from attention import DecodeCache
from bench.measuring import large_product, medians, random_decoder, tell
from common.cli import cli, override
from common.processes import DTYPES, decoding, generator, number_format, setup, torch_dtype
from phantom.prepare import Settings, held_out
from sample import Sampling, guided
from training.cost import velocity_flops


@dataclass
class SamplingBenchConfig:
    solvers: bool = False       # measure how near few-step solvers come, and no speed
    n_embd: int = 512           # width
    n_layer: int = 8            # layers
    n_head: int = 8             # heads
    n_inner: int = 1408         # width inside the MLP
    grid: int = 16              # rows and columns of the latent
    text: int = 96              # tokens of the report
    cached: int = 674           # tokens before decoding: 576 vision, SOI, EOI, 96 of the prompt
    repeats: int = 15           # measurements a figure; the median counts
    dtype: Literal[*DTYPES] = "auto"    # number format of the weights
    device: str = "auto"        # auto, cpu, cuda, mps
    threads: int = 0            # CPU threads; 0: a fair share of the cores
    checkpoint: str = str(Path(__file__).resolve().parents[1] / "demo")   # of --solvers
    reports: int = 64           # of --solvers
    json: bool = False          # print the line of JSON alone, without the words


# ---- speed ----

def measure_velocity(cfg, model, images):
    """One guided velocity of so many images at once, against a large matrix product."""
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    ids = torch.randint(4, 1024, (images, cfg.text), device=device)
    _, cache = model.prefill_text(ids)

    # the rows with the report and the empty ones of guidance are one batch
    rows = torch.arange(2 * images, device=device)
    cache = cache.rows(rows % images).drop(rows >= images)
    x = torch.randn(2 * images, 16, cfg.grid, cfg.grid, device=device).to(dtype)
    t = torch.full((2 * images,), 0.5, device=device)

    product, operations = large_product(device, dtype)
    seconds = medians(cfg.repeats, device, product=product,
                      velocity=lambda: model.velocity(x, t, cache))
    peak = operations / seconds["product"]
    work = 2 * images * velocity_flops(model.cfg, cfg.text, cfg.grid ** 2)
    rate = work / seconds["velocity"]
    return {"ms": 1e3 * seconds["velocity"], "gflops": rate / 1e9, "product_gflops": peak / 1e9,
            "share": rate / peak}


def measure_decoding(cfg, model, cached):
    """One token after so many, against reading the weights that it uses."""
    device = model.embed.weight.device
    used = [p for name, p in model.named_parameters()
            if ".u." in name or name.startswith(("lm_head", "norm_u"))]
    # summed as float32, whatever the bytes mean: sums of bf16 are slow for reasons of their own
    block = torch.cat([p.flatten() for p in used]).view(torch.float32)

    _, cache = model.prefill_text(torch.randint(4, 1024, (1, cached), device=device))
    cache = DecodeCache(cache, 4 * cfg.repeats + 8)
    token = torch.zeros(1, 1, dtype=torch.long, device=device)

    def decode():
        with decoding(1, device):
            hidden, _ = model.prefill_text(token, cache=cache)
            model.logits(hidden)

    seconds = medians(2 * cfg.repeats, device, read=block.sum, token=decode)
    return {"ms": 1e3 * seconds["token"], "read_ms": 1e3 * seconds["read"],
            "ratio": seconds["token"] / seconds["read"], "weights_mb": block.nbytes / 1e6}


@torch.inference_mode()
def measure_speed(cfg):
    """-> {"velocity": {images: figures}, "decoding": {tokens before: figures}, ...}."""
    device = setup(cfg.device, cfg.threads).device
    model = random_decoder(cfg.n_embd, cfg.n_layer, cfg.n_head, cfg.n_inner, cfg.grid)
    dtype = number_format(cfg.dtype, device)
    model = model.to(device, torch_dtype(dtype)).eval()
    return {
        "device": str(device),
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "velocity": {images: measure_velocity(cfg, model, images) for images in (1, 8)},
        "decoding": {cached: measure_decoding(cfg, model, cached)
                     for cached in (cfg.cached // 8, cfg.cached)},
    }


def show_speed(figures):
    print(f"{figures['device']}, {figures['dtype']}, {figures['threads']} threads")
    for images, f in figures["velocity"].items():
        print(f"guided velocity, {images} image(s): {f['ms']:.1f} ms, {f['gflops']:.0f} GFLOP/s = "
              f"{f['share']:.2f} of a matrix product ({f['product_gflops']:.0f} GFLOP/s)")
    for cached, f in figures["decoding"].items():
        print(f"decoding after {cached} tokens: {f['ms']:.2f} ms a token = {f['ratio']:.2f} times "
              f"reading the {f['weights_mb']:.0f} MB of weights once ({f['read_ms']:.2f} ms)")


# ---- few steps ----

# solver, steps, shift; the release's setting first
SETTINGS = [
    ("euler", 49, 3.0), ("euler", 16, 3.0), ("euler", 16, 1.0), ("heun", 8, 1.0),
    ("ab2", 16, 3.0), ("ab2", 16, 1.0), ("ab2", 12, 1.0), ("ab2", 8, 1.0),
]


@torch.inference_mode()
def measure_solvers(cfg):
    """Relative RMS distance of the final latents to 200 Heun steps, mean over held-out phantoms.

    Guidance 2 on (0.4, 1], as sample.py has it.
    """
    device = setup(cfg.device, cfg.threads).device
    model, vae, tokenizer = weights.load(cfg.checkpoint)
    model = model.to(device)
    reports = [held_out(Settings(), i)[0]["report"] for i in range(cfg.reports)]
    velocity = guided(model, [tokenizer.prompt(report) for report in reports], Sampling())
    shape = (vae.cfg.embed_dim, model.cfg.max_latent_size, model.cfg.max_latent_size)
    noise = [torch.randn(shape, generator=generator(0, i)) for i in range(cfg.reports)]
    noise = torch.stack(noise).to(device)

    bar = partial(tqdm, desc="200 Heun steps", leave=False)
    converged = flow.heun(velocity, noise, flow.schedule(200), bar)
    size = converged.square().mean((1, 2, 3))
    figures = {}
    for solver, steps, shift in SETTINGS:
        solve, evaluations = flow.SOLVERS[solver]
        error = solve(velocity, noise, flow.schedule(steps, shift)) - converged
        distance = (error.square().mean((1, 2, 3)) / size).sqrt().mean()
        name = f"{solver} {steps} steps, shift {shift:g}"
        figures[name] = {"velocities": steps * evaluations, "distance": float(distance)}
    return figures


def show_solvers(figures):
    for name, f in figures.items():
        print(f"{name:24} {f['velocities']:3} velocities, distance {f['distance']:.4f}")


def main(argv):
    cfg = override(SamplingBenchConfig(), argv, __doc__)
    if cfg.solvers:
        tell(measure_solvers(cfg), cfg.json, show_solvers)
    else:
        tell(measure_speed(cfg), cfg.json, show_speed)


if __name__ == "__main__":
    cli(main)
