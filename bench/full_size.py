"""A UniX of the released sizes with random weights, in the release's layout: memory, loading, both tasks.

    python -m bench.full_size
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


class Numbers:
    """A tokenizer that has the special ids of the release, and only that."""
    json = tokenizers.Tokenizer(tokenizers.models.BPE({f"<{i}>": i for i in range(102_400)}, [])).to_str()


def write_random_release(directory):
    """UniX and kl-f16 at full size, random bf16 weights, in the release's layout."""
    with torch.device("meta"):
        model, vae = UniX(UniXConfig(double_bos=True, connector_gelu="tanh")), VAE(VAEConfig())
    for module in (model, vae):
        for name, p in tqdm(list(module.named_parameters()), desc="random weights", leave=False):
            value = torch.ones(p.shape) if p.ndim == 1 else torch.empty(p.shape).normal_(std=0.02)
            parent, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(parent), leaf, torch.nn.Parameter(value.bfloat16(), requires_grad=False))
    export_release(model, vae, Numbers, directory)


@torch.inference_mode()
def measure_release(cfg, pipe):
    """In a process of its own, so that its peak of memory is its own: load, draw a few steps, write a few tokens."""
    common.setup("cpu", cfg.threads)
    figures, began = {}, time.perf_counter()
    model, vae, tokenizer = weights.load(cfg.out, dtype=torch.bfloat16)
    figures["load_s"] = time.perf_counter() - began

    steps, grid = 4, 16
    velocity = sample.guided(model, [[model.cfg.bos] * 2 + [7] * cfg.text + [model.cfg.eos]],
                             sample.Sampling(cfg_interval=(0.0, 1.0)))
    noise = torch.randn(1, 16, grid, grid, generator=common.generator(0, 0))
    velocity(noise, torch.ones(1))                              # the pages of the generation set are read from the disk here
    began = time.perf_counter()
    latents = flow.euler(velocity, noise, flow.schedule(steps, 3.0))
    figures["seconds_a_guided_step_256_px"] = step = (time.perf_counter() - began) / steps
    began = time.perf_counter()
    vae.pictures(latents.bfloat16())
    figures["seconds_to_decode_256_px"] = time.perf_counter() - began

    image, tokens = torch.zeros(1, 384, 384, dtype=torch.uint8), 32
    write = partial(sample.generate_reports, model, tokenizer, image, prompt="", progress=False)
    write(max_tokens=1)
    began = time.perf_counter()
    write(max_tokens=1)
    once = time.perf_counter() - began
    began = time.perf_counter()
    write(max_tokens=1 + tokens)
    figures["seconds_a_token"] = token = (time.perf_counter() - began - once) / tokens
    figures["tokens_a_second"] = 1 / token
    figures["seconds_before_the_first_token"] = once
    figures["peak_memory_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9

    # the limits of the machine, in the same process: one large product, and summing as many bytes as a token reads
    a, b = torch.randn(2, 2048, 2048).bfloat16()
    used = sum(p.numel() for n, p in model.named_parameters() if ".u." in n or n.startswith("lm_head")) * 2
    block = torch.ones(used // 4)
    limits = medians(5, torch.device("cpu"), product=lambda: a @ b, read=block.sum)
    flops = velocity_flops(model, 2, cfg.text + 3, grid ** 2)
    figures["step_as_share_of_a_matrix_product"] = flops / step / (2 * 2048 ** 3 / limits["product"])
    figures["token_as_multiple_of_reading_its_weights"] = token / limits["read"]
    pipe.send(figures)


def bench_weights(cfg):
    cfg.out = cfg.out or "out/bench-UniX"
    spawn = multiprocessing.get_context("spawn")
    if not Path(cfg.out).exists():
        writer = spawn.Process(target=write_random_release, args=(cfg.out,))
        writer.start()
        writer.join()
        if writer.exitcode:
            raise InputError(f"{cfg.out} could not be written; see above.")
    receive, send = spawn.Pipe(duplex=False)
    measured = spawn.Process(target=measure_release, args=(cfg, send))
    measured.start()
    measured.join()
    if measured.exitcode:
        raise InputError("the measuring process ended early; see above.")
    return receive.recv()


def show_weights(figures):
    print("\n".join(f"{name.replace('_', ' '):48} {value:.4g}" for name, value in figures.items()))


