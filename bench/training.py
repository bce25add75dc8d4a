"""How fast stage 2 trains, as ratios measured in one process.

    python -m bench.training        # six minutes on two cores

    utilisation   operations of a step (training/cost.py) over its time, against one large matrix
                  product; where the rest goes
    prefix        what 384 more tokens of report cost: bytes at the peak, seconds
    pipeline      images a second that the loader delivers; the share of a step that waits for them
    processes     what DistributedDataParallel adds with one process

A step is train_gen's own GenStep, random weights and random latents, no REPA, no VAE: the decoder
alone.
"""
import copy
import io
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from PIL import Image
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from bench.measuring import large_product, medians, random_decoder, tell
from common.cli import cli, override
from common.packed import Packed, Writer
from common.processes import DTYPES, Process, autocast, number_format, setup, torch_dtype
from phantom.prepare import Settings, held_out, make_tokenizer
from tokenizer import Tokenizer
from train_gen import GenStep, TrainConfig
from training import cost, optim
from training.batches import Batch, Samples, loader
from vae import VAE, VAEConfig

CPU = torch.device("cpu")


@dataclass
class TrainingBenchConfig:
    repeats: int = 15           # measurements a figure; the median counts
    dtype: Literal[*DTYPES] = "auto"    # of matrix products
    images: int = 4096          # read in one pass
    workers: int = 2            # threads that read data ahead
    threads: int = 0            # CPU threads; 0: a fair share of the cores
    json: bool = False          # print the line of JSON alone, without the words


@dataclass
class Size:
    """Of a step: the network, the batch, its tokens."""
    n_embd: int = 512
    n_layer: int = 8
    n_head: int = 8
    n_inner: int = 1408
    grid: int = 8               # rows and columns of the latents
    B: int = 16                 # images
    text: int = 96              # tokens of each report


LARGE = Size(n_embd=1024, n_layer=4, n_inner=2816, grid=16, B=8)    # heads of 128, as at full size


# ---- the step that is measured ----

def gen_step(size):
    """A GenStep whose generation set learns, random weights."""
    unix = random_decoder(size.n_embd, size.n_layer, size.n_head, size.n_inner, size.grid)
    unix.freeze("u")
    vae = VAE(VAEConfig(
        ch=4, ch_mult=(1,), n_res=1, z_channels=16, embed_dim=16, norm_groups=4))
    return GenStep(unix, vae, None, None, TrainConfig(repa=0.0)).train()


def random_batch(size):
    noise, posterior, mean, logvar = torch.randn(4, size.B, 16, size.grid, size.grid)
    return Batch(
        index=torch.arange(size.B),
        images=torch.zeros(size.B, 1, 8, 8, dtype=torch.uint8),
        ids=torch.randint(4, 1024, (size.B, size.text)),
        valid=torch.ones(size.B, size.text, dtype=torch.bool),
        normal=torch.randn(size.B),
        noise=noise,
        posterior=posterior,
        moments=torch.stack([mean, logvar], dim=1),
        dropped=torch.zeros(size.B, dtype=torch.bool),
    )


def forward_backward(module, batch, dtype):
    with autocast(CPU, dtype):
        mse, *_ = module(batch)
    mse.mean().backward()


# ---- utilisation ----

# kind of work -> torch's names of it in a profile
GROUPS = {
    "products of linear layers": ("mm", "addmm"),
    "products of attention": ("bmm",),
    "softmax": ("softmax",),
    "copies, casts, concatenation": ("copy_", "cat", "fill_", "zero_"),
    "norms, rotation, SwiGLU, residuals": (
        "mul", "add", "div", "pow", "mean", "sum", "silu", "silu_backward", "addcmul", "rsqrt",
        "neg", "sub", "add_", "mul_", "div_"),
}


def shares_of_time(call):
    """-> {kind of work: its share of the time of a call}."""
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        call()
    times = dict.fromkeys([*GROUPS, "all else"], 0.0)
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::").removeprefix("_").removesuffix("_backward_data")
        kinds = [group for group, names in GROUPS.items() if name in names]
        times[kinds[0] if kinds else "all else"] += event.self_cpu_time_total
    total = sum(times.values())
    return {group: seconds / total for group, seconds in times.items()}


def utilisation(size, repeats, dtype):
    """The step's operations over its time, with and without the optimizer."""
    module = gen_step(size)
    batch = random_batch(size)
    optimizers = optim.optimizers(module, TrainConfig())
    average = optim.EMA(module.unix, 0.999)

    def step():
        forward_backward(module, batch, dtype)

    def update():
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optim.step_all(optimizers, 1e-4)
        average.update()

    product, product_operations = large_product(CPU, torch_dtype(dtype))
    seconds = medians(repeats, CPU, product=product, step=step, update=update)
    micro_step = cost.Step(
        "g", gen=size.B, report=size.text, latents=size.grid ** 2, stored=True, device="cpu")
    operations = cost.model_flops(module.unix.cfg, micro_step)
    peak = product_operations / seconds["product"]
    return {
        "forward_backward_ms": 1e3 * seconds["step"],
        "update_ms": 1e3 * seconds["update"],
        "product_gflops": peak / 1e9,
        "gflop": operations / 1e9,
        "share": operations / seconds["step"] / peak,
        "share_with_update": operations / (seconds["step"] + seconds["update"]) / peak,
        "where": shares_of_time(step),
    }


# ---- the frozen text ----

def peak_bytes(call):
    """The most that torch's allocator holds during a call beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        profiled.export_chrome_trace(trace.name)
        events = json.load(open(trace.name))["traceEvents"]
    sizes = [event["args"] for event in events if event.get("name") == "[memory]"]
    before = sizes[0]["Total Allocated"] - sizes[0]["Bytes"]
    return max(size["Total Allocated"] for size in sizes) - before


def prefix(size, more, repeats, dtype):
    """The step with `more` tokens of text: bytes and seconds, over what these tokens must cost.

    They must cost their keys and values, and their forward pass.
    """
    module = gen_step(size)
    few, many = random_batch(size), random_batch(replace(size, text=size.text + more))

    def step(batch):
        forward_backward(module, batch, dtype)
        module.zero_grad(set_to_none=True)

    @torch.no_grad()
    def read(batch):
        with autocast(CPU, dtype):
            module.unix.prefill_text(batch.ids, batch.valid)

    step(many)                                              # torch allocates some things once
    least = peak_bytes(lambda: step(few))
    added = peak_bytes(lambda: step(many)) - least
    per_token = 2 * size.n_embd * size.n_layer * torch_dtype(dtype).itemsize
    keys_and_values = size.B * more * per_token
    seconds = medians(
        repeats, CPU, few=lambda: step(few), many=lambda: step(many),
        read_few=lambda: read(few), read_many=lambda: read(many))
    added_seconds = seconds["many"] - seconds["few"]
    forward = seconds["read_many"] - seconds["read_few"]
    return {
        "peak_mb": least / 1e6,
        "more_mb": added / 1e6,
        "keys_and_values_mb": keys_and_values / 1e6,
        "memory_ratio": added / keys_and_values,
        "step_ms": 1e3 * seconds["few"],
        "more_ms": 1e3 * added_seconds,
        "forward_ms": 1e3 * forward,
        "time_ratio": added_seconds / forward,
    }


# ---- data ----

def pack_phantoms(directory, form, images, pixels=256, drawn=64):
    """A packed set of `images` phantoms (toys, not radiographs), `drawn` of them different.

    -> bytes of an image on average.
    """
    options = {"quality": 95} if form == "JPEG" else {}
    packed = []
    for i in range(drawn):
        row, picture = held_out(Settings(size=pixels), i)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, form, **options)
        packed.append((buffer.getvalue(), {**row, "split": "train"}))
    with Writer(Path(directory) / f"gen-{pixels}", "gen", pixels, {}) as writer:
        for i in range(images):
            writer.add(*packed[i % drawn])
    tokenizer = make_tokenizer([row["report"] for _, row in packed], 400)
    tokenizer.save(str(Path(directory) / "tokenizer.json"))
    return sum(len(image) for image, _ in packed) / drawn


def cpu_seconds():
    """Of this process and those that it waited for."""
    return sum(os.times()[:4])          # user and system time, of both


def reading(samples, images, workers, repeats, form):
    """-> images a second of the loader alone, CPU milliseconds an image: medians of whole passes.

    The second number changes less with other work on the machine.
    """
    rates, spent = [], []
    for _ in tqdm(range(repeats), desc=f"reading {form}", leave=False):
        before, began = cpu_seconds(), time.perf_counter()
        for _ in loader(samples, Process(0, 1, CPU), 32, 0, images // 32, workers):
            pass
        rates.append(images // 32 * 32 / (time.perf_counter() - began))
        spent.append(1e3 * (cpu_seconds() - before) / images)
    return statistics.median(rates), statistics.median(spent)


def waiting(samples, module, size, workers, repeats, dtype):
    """The share of a step's time that the loop waits for its batch, after two steps."""
    samples.batch_size = size.B
    batches = loader(samples, Process(0, 1, CPU), size.B, 0, repeats + 2, workers)
    for n in range(repeats + 2):
        if n == 2:
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        batch = next(batches)
        if n >= 2:
            waited += time.perf_counter() - asked
        batch.moments = torch.randn(size.B, 2, 16, size.grid, size.grid)
        forward_backward(module, batch, dtype)
    return waited / (time.perf_counter() - began)


def pipeline(images, workers, repeats, size, dtype):
    """Data as JPEG and as PNG, at 256 pixels, read by `workers` threads."""
    figures = {}
    module = gen_step(size)
    for form in ("JPEG", "PNG"):
        with tempfile.TemporaryDirectory() as directory:
            length = pack_phantoms(directory, form, images)
            data = Packed(directory, "gen", 256, "train")
            tokenizer = Tokenizer.with_named_ids(f"{directory}/tokenizer.json")
            latent = (16, size.grid, size.grid)
            samples = Samples(data, tokenizer, 512, 0, 32, latent, text_dropout=0.1)
            rate, spent = reading(samples, images, workers, repeats, form)
            waits = waiting(samples, module, size, workers, repeats, dtype)
        figures[form] = {"images_s": rate, "cpu_ms": spent, "kb": length / 1e3, "waits": waits}
    return figures


# ---- processes ----

def processes(size, repeats, dtype):
    """The time of a step in DDP, alone in its group, over that of a step without."""
    plain = gen_step(size)
    batch = random_batch(size)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    wrapped = DistributedDataParallel(
        copy.deepcopy(plain), gradient_as_bucket_view=True, forward_sync_buffers=False)

    def step(module):
        forward_backward(module, batch, dtype)
        module.zero_grad(set_to_none=True)

    seconds = medians(repeats, CPU, plain=lambda: step(plain), wrapped=lambda: step(wrapped))
    dist.destroy_process_group()
    return {"ms": 1e3 * seconds["plain"], "ddp_ms": 1e3 * seconds["wrapped"],
            "ratio": seconds["wrapped"] / seconds["plain"]}


def show(figures):
    u, p, d = figures["utilisation"], figures["prefix"], figures["processes"]
    print(f"stage-2 step, width 1024: {u['forward_backward_ms']:.0f} ms forward and backward for "
          f"{u['gflop']:.0f} GFLOP = {u['share']:.2f} of a matrix product "
          f"({u['product_gflops']:.0f} GFLOP/s); with clipping, AdamW and the average "
          f"({u['update_ms']:.0f} ms) {u['share_with_update']:.2f}; its time goes to")
    for group, share in u["where"].items():
        print(f"    {group:46} {100 * share:5.1f} %")
    print(f"384 more tokens of text: {p['more_mb']:.0f} MB at the peak = {p['memory_ratio']:.2f} "
          f"times their keys and values ({p['keys_and_values_mb']:.0f} MB); {p['more_ms']:.0f} ms "
          f"= {p['time_ratio']:.2f} times their forward pass ({p['forward_ms']:.0f} ms)")
    for form, f in figures["pipeline"].items():
        print(f"data, {form} of {f['kb']:.1f} KB: {f['images_s']:.0f} images/s, "
              f"{f['cpu_ms']:.2f} CPU ms an image; a step waits {100 * f['waits']:.2f} % of its "
              "time for them")
    print(f"DDP with one process: {d['ddp_ms']:.0f} against {d['ms']:.0f} ms, "
          f"{100 * (d['ratio'] - 1):+.1f} %")


def main(argv):
    cfg = override(TrainingBenchConfig(), argv, __doc__)
    device = setup("cpu", cfg.threads).device
    dtype = number_format(cfg.dtype, device)
    print(f"{dtype}, {torch.get_num_threads()} threads", flush=True)
    figures = {
        "utilisation": utilisation(LARGE, cfg.repeats, dtype),
        "prefix": prefix(Size(), 384, cfg.repeats, dtype),
        "pipeline": pipeline(cfg.images, cfg.workers, cfg.repeats, LARGE, dtype),
        "processes": processes(Size(), cfg.repeats, dtype),
    }
    tell(figures, cfg.json, show)


if __name__ == "__main__":
    cli(main)
