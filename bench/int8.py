"""Weights in 8-bit integers: what they change in reports and pictures, and what they cost in time.

    python -m bench.int8            # ten minutes on two cores; a checkpoint of the phantom
    python -m bench.int8 --num 0    # the speed alone

Reports and pictures of held-out phantoms are compared with those of the same checkpoint in fp32,
each made with the same settings and the same noise. Facts are what phantom.facts reads in a report.
How long a token and a velocity take is measured at full width, with random weights. Memory is
measured by `python -m bench.full_size --weights int8`, as a whole process.
"""
import copy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

import weights
from attention import DecodeCache
from bench.measuring import medians, random_decoder, tell
from common.cli import cli, override
from common.processes import decoding, setup
from evaluation.phantom import held_out_phantoms
from phantom.facts import report_to_facts
from sample import Sampling, generate_images, generate_reports
from weights.files import fill
from weights.load import network


@dataclass
class Int8BenchConfig:
    checkpoint: str = str(Path(__file__).resolve().parents[1] / "demo")     # a phantom model
    data_seed: int = 0          # of the held-out phantoms, as of `evaluate.py phantom`
    num: int = 100              # phantoms that are read and drawn; 0: measure the speed alone
    batch: int = 16             # of them at once
    n_embd: int = 2048          # width at which the speed is measured
    n_layer: int = 4            # layers
    n_head: int = 16            # heads
    n_inner: int = 5632         # width inside the MLP
    vocab_size: int = 102400    # words that the head chooses from
    grid: int = 16              # rows and columns of the latent
    text: int = 96              # tokens of the report
    repeats: int = 7            # measurements a figure; the median counts
    threads: int = 0            # CPU threads; 0: a fair share of the cores
    json: bool = False          # print the line of JSON alone, without the words


# number format of what is computed, and how the large matrices are kept; the first is the reference
VARIANTS = {
    "fp32": (torch.float32, "float"),
    "bf16": (torch.bfloat16, "float"),
    "int8, products in fp32": (torch.float32, "int8"),
    "int8, products in bf16": (torch.bfloat16, "int8"),
}


# ---- what changes ----

@torch.inference_mode()
def answers(cfg, phantoms, dtype, matrices):
    """-> reports on the phantoms, and pictures (N, S, S) of their reports, with these weights."""
    model, vae, tokenizer = weights.load(cfg.checkpoint, dtype=dtype, matrices=matrices)
    images = np.stack(phantoms.pictures)
    reports = generate_reports(model, tokenizer, images, batch=cfg.batch)
    pictures = generate_images(model, vae, tokenizer, phantoms.reports, Sampling(batch=cfg.batch),
                               numbers=range(len(phantoms.reports)))[:, 0]
    return reports, pictures


def psnr(picture, reference):
    """Peak signal-to-noise ratio of 8-bit pictures in dB; infinite if they are the same."""
    error = np.square(picture.astype(float) - reference.astype(float)).mean()
    return float(10 * np.log10(255 ** 2 / error)) if error > 0 else float("inf")


def measure_changes(cfg):
    """-> {variant: how many reports and facts are others, and how near the pictures are}."""
    size = weights.load(cfg.checkpoint)[0].cfg.vision.image_size
    phantoms = held_out_phantoms(cfg, size, range(cfg.num))
    reference, *others = VARIANTS
    reports, pictures = answers(cfg, phantoms, *VARIANTS[reference])
    figures = {}
    for name in others:
        new_reports, new_pictures = answers(cfg, phantoms, *VARIANTS[name])
        pairs = list(zip(reports, new_reports))
        distances = [psnr(*pair) for pair in zip(new_pictures, pictures)]
        figures[name] = {
            "reports": cfg.num,
            "other_words": sum(a != b for a, b in pairs),
            "other_facts": sum(report_to_facts(a) != report_to_facts(b) for a, b in pairs),
            "psnr_median": float(np.median(distances)),
            "psnr_lowest": min(distances),
        }
    return figures


# ---- how fast ----

def with_weights_of(model, dtype, matrices):
    """The same network with weights in another format."""
    if matrices == "float":
        return copy.deepcopy(model).to(dtype).eval()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    return fill(network(model.cfg, int8=True), state, "random weights", dtype)


@torch.inference_mode()
def measure_speed(cfg):
    """-> {variant: milliseconds of one token of a report, and of one guided velocity}."""
    device = torch.device("cpu")
    model = random_decoder(cfg.n_embd, cfg.n_layer, cfg.n_head, cfg.n_inner, cfg.grid,
                           cfg.vocab_size)
    calls = {}
    for name, (dtype, matrices) in VARIANTS.items():
        variant = with_weights_of(model, dtype, matrices)
        calls[f"token {name}"] = one_token(cfg, variant)
        calls[f"velocity {name}"] = one_velocity(cfg, variant, dtype)
    seconds = medians(cfg.repeats, device, **calls)
    return {name: {"token_ms": 1e3 * seconds[f"token {name}"],
                   "velocity_ms": 1e3 * seconds[f"velocity {name}"]} for name in VARIANTS}


def one_token(cfg, model):
    """A function that decodes one token of one report."""
    _, cache = model.prefill_text(torch.randint(4, 1024, (1, cfg.text)))
    cache = DecodeCache(cache, cfg.repeats + 8)
    token = torch.zeros(1, 1, dtype=torch.long)

    def decode():
        with decoding(1, torch.device("cpu")):
            hidden, _ = model.prefill_text(token, cache=cache)
            model.logits(hidden)
    return decode


def one_velocity(cfg, model, dtype):
    """A function that computes one velocity of one picture, with guidance: two rows."""
    _, cache = model.prefill_text(torch.randint(4, 1024, (1, cfg.text)))
    cache = cache.rows(torch.tensor([0, 0])).drop(torch.tensor([False, True]))
    x = torch.randn(2, model.cfg.latent_channels, cfg.grid, cfg.grid).to(dtype)
    t = torch.full((2,), 0.5)
    return lambda: model.velocity(x, t, cache)


def show(figures):
    changes, speed = figures["changes"], figures["speed"]
    if changes:
        print("against the same checkpoint in fp32:")
    for name, f in changes.items():
        print(f"{name:24} {f['other_facts']} of {f['reports']} reports with other facts, "
              f"{f['other_words']} in other words; pictures: PSNR {f['psnr_median']:.1f} dB "
              f"(median), {f['psnr_lowest']:.1f} (lowest)")
    print("at full width, random weights:")
    for name, f in speed.items():
        print(f"{name:24} {f['token_ms']:7.1f} ms a token, {f['velocity_ms']:7.1f} ms a guided "
              "velocity")


def main(argv):
    cfg = override(Int8BenchConfig(), argv, __doc__)
    setup("cpu", cfg.threads)
    changes = measure_changes(cfg) if cfg.num > 0 else {}
    tell({"changes": changes, "speed": measure_speed(cfg)}, cfg.json, show)


if __name__ == "__main__":
    cli(main)
