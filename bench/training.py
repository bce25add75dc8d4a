"""How fast stage 2 trains, as ratios measured in one process: the figures of `python -m bench.sampling train`.

    utilisation   operations of a step (training/cost.py) over its time, against one large matrix product; where the rest goes
    prefix        what 384 more tokens of report cost: bytes at the peak, seconds
    pipeline      images a second that data.loader delivers; the share of a step that the loop waits for them
    processes     what DistributedDataParallel adds with one process

A step is train_gen's own GenStep, random weights and random latents, no REPA, no VAE: the decoder alone.
"""
import copy
import io
import json
import resource
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

from common import processes as common
from training import cost
from training import optim
from training.batches import Batch, Packed, Samples, loader
from model import UniX, UniXConfig
from common.packed import Writer
from phantom.prepare import Settings, held_out, make_tokenizer
from tokenizer import Tokenizer
from train_gen import GenStep, TrainConfig
from vae import VAE, VAEConfig
from vision import ViTConfig

CPU = torch.device("cpu")


@dataclass
class Size:
    """Of a step: the network, the batch, its tokens."""
    n_embd: int = 512
    n_layer: int = 8
    n_head: int = 8
    n_inner: int = 1408
    grid: int = 8               # rows and columns of the latents
    B: int = 16
    text: int = 96


LARGE = Size(n_embd=1024, n_layer=4, n_inner=2816, grid=16, B=8)       # heads of 128, as in the full model
GROUPS = {      # kind of work -> torch's names of it in a profile
    "products of linear layers": ("mm", "addmm"), "products of attention": ("bmm",), "softmax": ("softmax",),
    "copies, casts, concatenation": ("copy_", "cat", "fill_", "zero_"),
    "norms, rotation, SwiGLU, residuals": ("mul", "add", "div", "pow", "mean", "sum", "silu", "silu_backward", "addcmul",
                                           "rsqrt", "neg", "sub", "add_", "mul_", "div_"),
}


def medians(repeats, device, **calls):
    """Call each in turn, `repeats` times after two warm-ups -> median seconds of each."""
    times = {name: [] for name in calls}
    for n in range(repeats + 2):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if n >= 2:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def gen_step(size):
    """A GenStep whose generation set learns, random weights."""
    torch.manual_seed(0)
    model = UniX(UniXConfig(n_layer=size.n_layer, n_head=size.n_head, n_embd=size.n_embd, n_inner=size.n_inner, repa_layer=1,
                            vocab_size=1024, bos=0, eos=1, soi=2, eoi=3, max_latent_size=size.grid,
                            vision=ViTConfig(image_size=32, n_layer=1, n_head=1, n_embd=32, n_inner=32)))
    model.freeze("u")
    vae = VAE(VAEConfig(ch=4, ch_mult=(1,), n_res=1, z_channels=16, embed_dim=16, norm_groups=4))
    return GenStep(model, vae, None, None, TrainConfig(repa=0.0)).train()


def random_batch(size):
    latents = torch.randn(4, size.B, 16, size.grid, size.grid)
    return Batch(index=torch.arange(size.B), images=torch.zeros(size.B, 1, 8, 8, dtype=torch.uint8),
                 ids=torch.randint(4, 1024, (size.B, size.text)), valid=torch.ones(size.B, size.text, dtype=torch.bool),
                 normal=torch.randn(size.B), noise=latents[0], posterior=latents[1], moments=latents[2:].transpose(0, 1),
                 dropped=torch.zeros(size.B, dtype=torch.bool))


def forward_backward(module, batch, dtype):
    with common.autocast(CPU, dtype):
        mse, *_ = module(batch)
    mse.mean().backward()


def utilisation(size, repeats, dtype):
    """Of the step's operations, frozen text 2N a token, trained weights 6N, attention; with and without the optimizer."""
    module, batch = gen_step(size), random_batch(size)
    optimizers, ema = optim.optimizers(module, TrainConfig()), optim.EMA(module.unix, 0.999)
    a, b = torch.randn(2, 2048, 2048).to(common.torch_dtype(dtype))

    def update():
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optim.step_all(optimizers, 1e-4)
        ema.update()

    seconds = medians(repeats, CPU, product=lambda: a @ b, both=lambda: forward_backward(module, batch, dtype), update=update)
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        forward_backward(module, batch, dtype)
    shares = dict.fromkeys([*GROUPS, "all else"], 0.0)
    for event in profiled.key_averages():
        name = event.key.removeprefix("aten::").removeprefix("_").removesuffix("_backward_data")
        shares[next((group for group, names in GROUPS.items() if name in names), "all else")] += event.self_cpu_time_total
    step = cost.Step("g", gen=size.B, report=size.text, latents=size.grid ** 2, stored=True, device="cpu")
    peak, flops = 2 * 2048 ** 3 / seconds["product"], sum(cost.flops(module.unix.cfg, step).values())
    return {"forward_backward_ms": 1e3 * seconds["both"], "update_ms": 1e3 * seconds["update"], "product_gflops": peak / 1e9,
            "gflop": flops / 1e9, "share": flops / seconds["both"] / peak,
            "share_with_update": flops / (seconds["both"] + seconds["update"]) / peak,
            "where": {group: t / sum(shares.values()) for group, t in shares.items()}}


def peak_bytes(call):
    """The most that torch's allocator holds during a call beyond what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    with tempfile.NamedTemporaryFile(suffix=".json") as trace:
        profiled.export_chrome_trace(trace.name)
        events = [e["args"] for e in json.load(open(trace.name))["traceEvents"] if e.get("name") == "[memory]"]
    return max(e["Total Allocated"] for e in events) - (events[0]["Total Allocated"] - events[0]["Bytes"])


def prefix(size, more, repeats, dtype):
    """The step with `more` tokens of text against that with size.text: bytes and seconds, over what these tokens must cost."""
    module, few, many = gen_step(size), random_batch(size), random_batch(replace(size, text=size.text + more))

    def step(batch):
        forward_backward(module, batch, dtype)
        module.zero_grad(set_to_none=True)

    @torch.no_grad()
    def read(batch):
        with common.autocast(CPU, dtype):
            module.unix.prefill_text(batch.ids, batch.valid)

    step(many)
    peaks = [peak_bytes(lambda: step(batch)) for batch in (few, many)]
    added = 2 * size.B * more * size.n_embd * size.n_layer * (2 if dtype == "bfloat16" else 4)
    s = medians(repeats, CPU, few=lambda: step(few), many=lambda: step(many),
                read_few=lambda: read(few), read_many=lambda: read(many))
    return {"peak_mb": peaks[0] / 1e6, "more_mb": (peaks[1] - peaks[0]) / 1e6, "keys_and_values_mb": added / 1e6,
            "memory_ratio": (peaks[1] - peaks[0]) / added, "step_ms": 1e3 * s["few"], "more_ms": 1e3 * (s["many"] - s["few"]),
            "forward_ms": 1e3 * (s["read_many"] - s["read_few"]),
            "time_ratio": (s["many"] - s["few"]) / (s["read_many"] - s["read_few"])}


def pack_phantoms(directory, form, images, pixels=256, drawn=64):
    """A packed set of `images` phantoms (toys, not radiographs), `drawn` of them different -> bytes of an image."""
    pictures = [held_out(Settings(size=pixels), i) for i in range(drawn)]
    encoded = []
    for row, picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, form, **({"quality": 95} if form == "JPEG" else {}))
        encoded.append((buffer.getvalue(), {**row, "split": "train"}))
    with Writer(Path(directory) / f"gen-{pixels}", "gen", pixels, {}) as writer:
        for i in range(images):
            writer.add(*encoded[i % drawn])
    make_tokenizer([row["report"] for row, _ in pictures], 400).save(str(Path(directory) / "tokenizer.json"))
    return sum(len(image) for image, _ in encoded) / drawn


def pipeline(images, workers, repeats, size, dtype):
    """images/s of data.loader alone, and CPU milliseconds an image, which other work on the machine changes less; then
    the share of a step of `size` that the loop waits for its batch, as train_gen does."""
    figures, module = {}, gen_step(size)
    usage = lambda: sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    for form in ("JPEG", "PNG"):
        with tempfile.TemporaryDirectory() as directory:
            length = pack_phantoms(directory, form, images)
            samples = Samples(Packed(directory, "gen", 256, "train"), Tokenizer.with_named_ids(f"{directory}/tokenizer.json"),
                              512, 0, 32, (16, size.grid, size.grid), 0.1)
            rates, spent = [], []
            for n in tqdm(range(repeats), desc=f"reading {form}", leave=False):
                before, began = usage(), time.perf_counter()
                for _ in loader(samples, common.Process(0, 1, CPU), 32, 0, images // 32, workers):
                    pass
                rates.append(images // 32 * 32 / (time.perf_counter() - began)), spent.append(1e3 * (usage() - before) / images)
            waited, began = 0.0, None
            samples.batch_size = size.B
            batches = iter(loader(samples, common.Process(0, 1, CPU), size.B, 0, repeats + 2, workers))
            for n in range(repeats + 2):
                if n == 2:
                    began = time.perf_counter()
                asked = time.perf_counter()
                batch = next(batches)
                waited += (time.perf_counter() - asked) * (n >= 2)
                batch.moments = torch.randn(size.B, 2, 16, size.grid, size.grid)
                forward_backward(module, batch, dtype)
            figures[form] = {"images_s": statistics.median(rates), "cpu_ms": statistics.median(spent), "kb": length / 1e3,
                             "waits": waited / (time.perf_counter() - began)}
    return figures


def processes(size, repeats, dtype):
    """The time of a step inside common.wrap's DDP, alone in its group, over that of a step without."""
    plain, batch = gen_step(size), random_batch(size)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    wrapped = common.wrap(copy.deepcopy(plain), common.Process(0, 2, CPU), False)      # 2: as if there were others

    def step(module):
        forward_backward(module, batch, dtype)
        module.zero_grad(set_to_none=True)

    seconds = medians(repeats, CPU, plain=lambda: step(plain), wrapped=lambda: step(wrapped))
    dist.destroy_process_group()
    return {"ms": 1e3 * seconds["plain"], "ddp_ms": 1e3 * seconds["wrapped"], "ratio": seconds["wrapped"] / seconds["plain"]}


def train(repeats, dtype, images, workers):
    """All four -> {name: figures}."""
    print(f"{dtype}, {torch.get_num_threads()} threads", flush=True)
    return {"utilisation": utilisation(LARGE, repeats, dtype), "prefix": prefix(Size(), 384, repeats, dtype),
            "pipeline": pipeline(images, workers, repeats, LARGE, dtype), "processes": processes(Size(), repeats, dtype)}


def show(figures):
    u, p, d = figures["utilisation"], figures["prefix"], figures["processes"]
    print(f"stage-2 step, width 1024: {u['forward_backward_ms']:.0f} ms forward and backward for {u['gflop']:.0f} GFLOP = "
          f"{u['share']:.2f} of a matrix product ({u['product_gflops']:.0f} GFLOP/s); with clipping, AdamW and the average "
          f"({u['update_ms']:.0f} ms) {u['share_with_update']:.2f}; its time goes to")
    for group, share in u["where"].items():
        print(f"    {group:46} {100 * share:5.1f} %")
    print(f"384 more tokens of text: {p['more_mb']:.0f} MB at the peak = {p['memory_ratio']:.2f} times their keys and values "
          f"({p['keys_and_values_mb']:.0f} MB); {p['more_ms']:.0f} ms = {p['time_ratio']:.2f} times their forward pass "
          f"({p['forward_ms']:.0f} ms)")
    for form, f in figures["pipeline"].items():
        print(f"data, {form} of {f['kb']:.1f} KB: {f['images_s']:.0f} images/s, {f['cpu_ms']:.2f} CPU ms an image; "
              f"a step waits {100 * f['waits']:.2f} % of its time for them")
    print(f"DDP with one process: {d['ddp_ms']:.0f} against {d['ms']:.0f} ms, {100 * (d['ratio'] - 1):+.1f} %")
