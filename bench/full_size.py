"""A UniX of the released sizes: memory, time to load, drawing and reading. Random weights.

    python -m bench.full_size       # writes 6.6 GB to out/bench-UniX, the first time

Weights of 3.2 billion parameters are written in the release's layout, in bf16, and loaded by a
process of its own, whose peak of memory is therefore its own. The VAE is a kl-f16.
"""
import multiprocessing
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import tokenizers
import torch
from tqdm import tqdm

import flow
import weights
from bench.measuring import large_product, medians, tell
from common import locks
from common.cli import InputError, cli, override
from common.platforms import peak_memory
from common.processes import DTYPES, generator, number_format, setup, torch_dtype
from model import UniX, UniXConfig
from sample import Sampling, generate_reports, guided
from training.cost import velocity_flops
from vae import VAE, VAEConfig
from weights.export import export_release
from weights.int8 import MATRICES


@dataclass
class FullSizeConfig:
    out: str = "out/bench-UniX"     # where the random weights are, or will be written
    text: int = 96                  # tokens of the report to draw
    grid: int = 16                  # rows of its latents; 16 are 256 pixels
    dtype: Literal[*DTYPES] = "auto"    # of the weights
    weights: Literal[*MATRICES] = "float"       # int8: large matrices as 8-bit integers
    threads: int = 0                # CPU threads; 0: a fair share of the cores
    json: bool = False              # print the line of JSON alone, without the words


class Numbers:
    """A tokenizer with as many entries as the release's, which are numbers."""
    vocabulary = {f"<{i}>": i for i in range(102_400)}
    json = tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [])).to_str()


def randomise(module):
    """Give a module on the device "meta" random bf16 weights, one tensor after another."""
    for name, p in tqdm(list(module.named_parameters()), desc="random weights", leave=False):
        value = torch.ones(p.shape)         # of norms
        if p.ndim > 1:
            value = torch.empty(p.shape).normal_(std=0.02)
        parent, _, leaf = name.rpartition(".")
        parameter = torch.nn.Parameter(value.bfloat16(), requires_grad=False)
        setattr(module.get_submodule(parent), leaf, parameter)


def write_random_release(directory):
    """UniX and kl-f16 of the released sizes with random weights, in the release's layout."""
    with torch.device("meta"):
        model = UniX(UniXConfig(double_bos=True, connector_gelu="tanh"))
        vae = VAE(VAEConfig())
    randomise(model)
    randomise(vae)
    export_release(model, vae, Numbers, directory)


def seconds_of(call):
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


@torch.inference_mode()
def measure(model, vae, tokenizer, text, grid, steps=4, tokens=32):
    """A few guided steps, one picture, a few tokens -> {what: seconds and ratios}."""
    figures = {}

    # drawing; the first velocity reads the generation set from the disk
    ids = [model.cfg.bos] * 2 + [7] * text + [model.cfg.eos]
    velocity = guided(model, [ids], Sampling(cfg_interval=(0.0, 1.0)))
    noise = torch.randn(1, vae.cfg.embed_dim, grid, grid, generator=generator(0, 0))
    velocity(noise, torch.ones(1))
    seconds, latents = seconds_of(lambda: flow.euler(velocity, noise, flow.schedule(steps, 3.0)))
    step = seconds / steps
    figures["seconds a guided step"] = step
    decode, _ = seconds_of(lambda: vae.pictures(latents.to(model.embed.weight.dtype)))
    figures["seconds to decode a picture"] = decode

    # reading: what one token takes is what remains after image, prompt and the first token
    side = model.cfg.vision.image_size
    image = torch.zeros(1, side, side, dtype=torch.uint8)
    write = partial(generate_reports, model, tokenizer, image, prompt="", progress=False)
    write(max_tokens=1)
    first, _ = seconds_of(lambda: write(max_tokens=1))
    all_of_them, _ = seconds_of(lambda: write(max_tokens=1 + tokens))
    token = (all_of_them - first) / tokens
    figures["seconds a token"] = token
    figures["tokens a second"] = 1 / token
    figures["seconds before the first token"] = first
    figures["peak memory in GB"] = peak_memory() / 1e9

    # the limits of the machine, in the same process
    cpu = torch.device("cpu")
    product, operations = large_product(cpu, model.embed.weight.dtype)
    used = [p for name, p in model.state_dict().items()
            if ".u." in name or name.startswith("lm_head")]
    block = torch.ones(sum(p.nbytes for p in used) // 4)        # as many bytes as a token reads
    limits = medians(5, cpu, product=product, read=block.sum)
    work = 2 * velocity_flops(model.cfg, len(ids), grid ** 2)
    figures["step as share of a matrix product"] = work / step * limits["product"] / operations
    figures["token as multiple of reading its weights"] = token / limits["read"]
    return figures


def measure_release(cfg, pipe):
    """What the measuring process does: load, measure, send the figures."""
    device = setup("cpu", cfg.threads).device
    dtype = torch_dtype(number_format(cfg.dtype, device))
    load, loaded = seconds_of(
        lambda: weights.load(cfg.out, dtype=dtype, matrices=cfg.weights))
    pipe.send({"seconds to load": load, **measure(*loaded, cfg.text, cfg.grid)})


def run_alone(function, *args):
    """Run a function in a process of its own and wait for it -> whether it ended well."""
    process = multiprocessing.get_context("spawn").Process(target=function, args=args)
    process.start()
    process.join()
    return process.exitcode == 0


def show(figures):
    for name, value in figures.items():
        print(f"{name:42} {value:.4g}")


def main(argv):
    cfg = override(FullSizeConfig(), argv, __doc__)
    locks.take_files(cfg.out)
    if not Path(cfg.out).exists() and not run_alone(write_random_release, cfg.out):
        raise InputError(f"{cfg.out} could not be written; see above.")
    receive, send = multiprocessing.Pipe(duplex=False)
    if not run_alone(measure_release, cfg, send):
        raise InputError("the measuring process ended early; see above.")
    tell(receive.recv(), cfg.json, show)


if __name__ == "__main__":
    cli(main)
