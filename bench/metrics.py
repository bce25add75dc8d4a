"""What evaluation/image_metrics.py costs beside the packages that the official code calls.

    pip install torchmetrics==1.9.0 prdc==0.2
    OMP_NUM_THREADS=1 python -m bench.metrics       # 4352 x 768 against 4352 x 768

Both get the same random features, as many as the paper's test set has images and as wide as
RAD-DINO's. docs/evaluation.md quotes the result.
"""
import importlib.util
import statistics
import time
from dataclasses import dataclass

import numpy as np
import torch

from common.cli import InputError, cli, override
from common.platforms import peak_memory
from evaluation import image_metrics

PACKAGES = ("torchmetrics", "prdc")


@dataclass
class MetricsBenchConfig:
    images: int = 4352          # on each side
    width: int = 768            # numbers a feature
    repeats: int = 3            # measurements a figure; the median counts


def random_features(n, width):
    """Two sets (n, width), the second moved; variances fall as k^-0.5, as RAD-DINO's might."""
    rng = np.random.default_rng(0)
    # falling variances, turned by a random rotation: neither round nor aligned with the axes
    scale = np.arange(1, width + 1) ** -0.25
    rotation, _ = np.linalg.qr(rng.normal(size=(width, width)))
    real = rng.normal(size=(n, width)) * scale
    fake = rng.normal(size=(n, width)) * scale + 0.1 * scale
    return (real @ rotation).astype(np.float32), (fake @ rotation).astype(np.float32)


class Identity(torch.nn.Module):
    """torchmetrics wants a network of features; ours are there already."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, x):
        return x


def official(real, fake):
    """The three calls of the official code: FD, KD with one subset that holds all samples, prdc."""
    # imported here, so that our own peak of memory is measured without them
    from prdc import compute_prdc
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    n, width = real.shape
    fid = FrechetInceptionDistance(feature=Identity(width))
    # one subset of all samples: what 100 of them would repeat
    kid = KernelInceptionDistance(feature=Identity(width), subsets=1, subset_size=n)
    for metric in (fid, kid):
        metric.update(torch.tensor(real), real=True)
        metric.update(torch.tensor(fake), real=False)
    kd, _ = kid.compute()
    return {"fd": float(fid.compute()), "kd": float(kd), **compute_prdc(real, fake, nearest_k=5)}


def measure(call, *args):
    """-> its result, seconds on the clock, seconds of processors (all threads together)."""
    clock, processors = time.perf_counter(), time.process_time()
    result = call(*args)
    return result, time.perf_counter() - clock, time.process_time() - processors


def main(argv):
    cfg = override(MetricsBenchConfig(), argv, __doc__)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"{' and '.join(missing)} must be there: pip install torchmetrics==1.9.0 prdc==0.2.")
    real, fake = random_features(cfg.images, cfg.width)
    # one call before the clock starts, so that no measurement pays for warming up
    image_metrics.distribution(real, fake)
    our_peak = peak_memory()            # before the packages are imported

    # they take turns, so that a busy minute of the machine falls on all
    calls = {
        "FD": image_metrics.fd,
        "all six metrics": image_metrics.distribution,
        "torchmetrics and prdc": official,
    }
    results, seconds = {}, {name: [] for name in calls}
    for _ in range(cfg.repeats):
        for name, call in calls.items():
            results[name], *spent = measure(call, real, fake)
            seconds[name].append(spent)

    # the figures that docs/evaluation.md quotes
    threads = torch.get_num_threads()
    print(f"{cfg.images} x {cfg.width} on each side, {threads} threads, median of {cfg.repeats}")
    for name, spent in seconds.items():
        clock, processors = (statistics.median(values) for values in zip(*spent))
        print(f"{name:26} {clock:6.2f} s on the clock, {processors:6.2f} s of processors")
    print(f"largest resident set: ours {our_peak / 2**20:.0f} MB, "
          f"all {peak_memory() / 2**20:.0f} MB")
    ours, theirs = results["all six metrics"], results["torchmetrics and prdc"]
    difference = max(abs(ours[name] - theirs[name]) for name in theirs)
    print(f"largest difference to the packages: {difference:.1e}")


if __name__ == "__main__":
    cli(main)
