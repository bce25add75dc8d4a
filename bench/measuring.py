"""What the measurements share: calls that take turns, one large matrix product, a small decoder.

Speed is told as ratios within one process, so that it means the same on any machine.
"""
import json
import shutil
import statistics
import subprocess
import time
from pathlib import Path

import torch

from common import platforms
from common.processes import cpu_has_bf16
from model import UniX, UniXConfig
from vision import ViTConfig


def medians(repeats, device, **calls):
    """Call each in turn, `repeats` times after two warm-ups -> {name: median seconds}.

    They take turns because a machine, a virtual one above all, has moods that last for minutes.
    """
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


def large_product(device, dtype):
    """A product of two large square matrices -> a function that computes it, its operations."""
    side = 4096 if device.type == "cuda" else 2048
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return lambda: a @ b, 2 * side ** 3


def tell(figures, as_json, show):
    """Print the figures as `show` puts them into words, unless only JSON is wanted, then as one
    line of JSON with the machine, so that two machines can be compared.
    """
    if not as_json:
        show(figures)
    print(json.dumps({"machine": machine(), "figures": figures}))


def machine():
    """What figures depend on besides their settings: the machine and the version of the code."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {"processor": platforms.processor_name(), "cores": platforms.usable_cores(),
            "threads": torch.get_num_threads(), "cpu_has_bf16": cpu_has_bf16(), "gpu": gpu,
            "torch": torch.__version__, "commit": commit()}


def commit():
    """The commit of this code as git names it, "-dirty" behind it if files differ; "" without git.
    """
    if shutil.which("git") is None:
        return ""
    line = ["git", "-C", Path(__file__).parent, "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(line, capture_output=True, text=True).stdout.strip()


def random_decoder(n_embd, n_layer, n_head, n_inner, grid, vocab_size=1024):
    """A UniX of this size with random weights and a vision tower of next to nothing.

    grid: rows and columns of the largest latent.
    """
    torch.manual_seed(0)
    tower = ViTConfig(image_size=32, n_layer=1, n_head=1, n_embd=32, n_inner=32)
    return UniX(UniXConfig(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, n_inner=n_inner, repa_layer=1,
        vocab_size=vocab_size, bos=0, eos=1, soi=2, eoi=3, max_latent_size=grid, vision=tower))
