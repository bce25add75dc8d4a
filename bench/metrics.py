"""What evaluation/image_metrics.py costs beside the packages that the official code calls, on the same features (docs/evaluation.md quotes it):

    pip install torchmetrics==1.9.0 prdc==0.2
    OMP_NUM_THREADS=2 python -m bench.metrics                # 4352 x 768 against 4352 x 768
    OMP_NUM_THREADS=2 python -m bench.metrics 4352 --repeat 5
"""
import resource
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from evaluation import image_metrics as metrics


def features(n, c=768, seed=0):
    """Two sets with a spectrum that falls like RAD-DINO's might, k^-0.5, a shift and another noise."""
    rng = np.random.default_rng(seed)
    scale = np.arange(1, c + 1) ** -0.25
    mix = np.linalg.qr(rng.normal(size=(c, c)))[0]
    make = lambda shift: ((rng.normal(size=(n, c)) * scale + shift * scale) @ mix).astype(np.float32)
    return make(0), make(0.1)


def theirs(real, fake):
    """FD, KD with one repeat over all samples, and prdc: the three calls of the official code that we replace."""
    from prdc import compute_prdc
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance
    fid = FrechetInceptionDistance(feature=Identity())
    kid = KernelInceptionDistance(feature=Identity(), subsets=1, subset_size=min(len(real), len(fake)))
    for metric in (fid, kid):
        metric.update(torch.tensor(real), real=True)
        metric.update(torch.tensor(fake), real=False)
    return {"fd": float(fid.compute()), "kd": float(kid.compute()[0]), **compute_prdc(real, fake, nearest_k=5)}


class Identity(torch.nn.Module):
    num_features = 768

    def forward(self, x):
        return x


def timed(function, *args):
    start, processor = time.perf_counter(), time.process_time()
    value = function(*args)
    return (time.perf_counter() - start, time.process_time() - processor), value


def main(argv):
    n = int(argv[0]) if argv and not argv[0].startswith("-") else 4352
    repeat = int(argv[argv.index("--repeat") + 1]) if "--repeat" in argv else 3
    real, fake = features(n)
    seconds, found = {}, {}
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024        # of the process so far
    metrics.distribution(real, fake)
    our_peak = peak()                   # before theirs
    for _ in range(repeat):             # by turns: the machine's mood is the same for all
        for name, call in (("fd", metrics.fd), ("all six", metrics.distribution), ("torchmetrics and prdc", theirs)):
            spent, found[name] = timed(call, real, fake)
            seconds.setdefault(name, []).append(spent)
    value, other = found["all six"], found["torchmetrics and prdc"]
    print(f"{n} x 768 against {n} x 768, {torch.get_num_threads()} threads, median of {repeat} (all)")
    for name, values in seconds.items():
        wall, busy = zip(*values)
        print(f"{name:26} {statistics.median(wall):6.2f} s   ({', '.join(f'{v:.2f}' for v in wall)}); "
              f"processor time {statistics.median(busy):.2f} s")
    print(f"largest resident set of ours: {our_peak:.0f} MB; of all {peak():.0f} MB")
    print("largest difference to theirs:", max(abs(value[name] - other[name]) for name in other))


if __name__ == "__main__":
    main(sys.argv[1:])
