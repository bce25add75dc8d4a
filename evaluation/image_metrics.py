"""Distances between two sets of image features: FD, KD, precision, recall, density, coverage, nearest neighbours, intervals.

The definitions are those of the paper's Tables 3 and 4, which are CheXGenBench's; docs/evaluation.md states them. All
functions take features (n, C), arrays or tensors of any float type, and compute in float64, a block of rows at a time:
no n x n matrix is ever whole in memory. The order of the rows matters to `sharded` alone.

    real, fake    features (n, C), (m, C)        k    which neighbour's distance is the radius of a sample (5)
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.processes import InputError, generator

BLOCK = 1024            # rows of a distance matrix that are looked at together
NAMES = ("fd", "kd", "precision", "recall", "density", "coverage")
BOUNDS = {"fd": (0, None), "density": (0, None), **dict.fromkeys(("precision", "recall", "coverage"), (0, 1))}


def checked(features, name, least=2):
    """Features as float64 (n, C): at least `least` of them, all finite."""
    x = torch.as_tensor(features).double()
    if x.ndim != 2 or x.shape[0] < least or x.shape[1] == 0:
        raise InputError(f"{name}: {least} or more rows of features are needed, there are {tuple(x.shape)}.")
    bad = (~x.isfinite().all(1)).nonzero()[:, 0]
    if len(bad):
        raise InputError(f"{name}: {len(bad)} of {len(x)} rows of features are not finite, the first is row {int(bad[0])}.")
    return x


def pair(real, fake, least=2):
    real, fake = checked(real, "the real images", least), checked(fake, "the generated images", least)
    if real.shape[1] != fake.shape[1]:
        raise InputError(f"the features have {real.shape[1]} and {fake.shape[1]} numbers: two encoders made them.")
    return real, fake


def blocks(n):
    return (slice(at, min(n, at + BLOCK)) for at in range(0, n, BLOCK))


# ---- Frechet distance ----

def gaussian(x):
    """Mean (C,) and a factor R with R'R = the unbiased covariance. R comes from QR, so n <= C needs no special care."""
    mean = x.mean(0)
    return mean, torch.linalg.qr(x - mean, mode="r")[1] / math.sqrt(len(x) - 1)


def fd(real, fake):
    """|mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2). With S = R'R the last trace is the sum of the singular values of
    R1 R2': no square root of a matrix that may be singular, and exact where the product has rank < C."""
    (mean1, root1), (mean2, root2) = (gaussian(x) for x in pair(real, fake))
    trace = torch.linalg.svdvals(root1 @ root2.T).sum()
    return float((mean1 - mean2).square().sum() + root1.square().sum() + root2.square().sum() - 2 * trace)


# ---- kernel distance, and precision, recall, density, coverage: both are made of the products x.y ----

def products(a, b):
    """Blocks of rows of a b': (which rows, their products (rows, m))."""
    return ((rows, a[rows] @ b.T) for rows in blocks(len(a)))


def cubes(product, width):
    """Sum of the kernel (x.y / C + 1)^3 over a block."""
    z = product.div(width).add_(1).view(-1)
    return float(torch.dot(z * z, z))


def squared(product, a2, b2, nothing):
    """Squared distances |a|^2 + |b|^2 - 2 a.b of a block. What is rounding alone becomes 0: equal images are at distance 0."""
    return F.threshold_(product.mul_(-2).add_(b2).add_(a2[:, None]), nothing, 0)


def within(x, k, nothing):
    """Mean kernel of two different samples of a set, and each one's squared distance to its k-th nearest other (n,): the
    (k+1)-th smallest of the row, which holds the sample itself."""
    (n, width), x2, total, radius = x.shape, x.square().sum(1), 0.0, []
    for rows, product in products(x, x):
        total += cubes(product, width)
        radius.append(squared(product, x2[rows], x2, nothing).topk(k + 1, largest=False).values[:, -1])
    return (total - cubes(x2, width)) / (n * (n - 1)), torch.cat(radius)


def kd_prdc(real, fake, k=5):
    """{"kd", "precision", "recall", "density", "coverage"} in one pass over the three tables of products.

    KD is the unbiased MMD^2 over all samples. The official number is the mean over 100 "subsets" of min(n, m) samples; with
    n = m every subset is the whole set, and otherwise its expectation is this; `kd_subsets` draws them. The rest is Naeem et
    al. 2020 as in `prdc` 0.2: a sample is inside a ball when its distance is smaller than the radius, strictly.
    """
    real, fake = pair(real, fake, max(2, k + 1))
    real2, fake2 = real.square().sum(1), fake.square().sum(1)
    nothing = 2e-12 * float(torch.maximum(real2.max(), fake2.max()))
    (real_kernel, r_real), (fake_kernel, r_fake) = within(real, k, nothing), within(fake, k, nothing)
    cross, balls, recall, coverage = 0.0, torch.zeros(len(fake), dtype=torch.float64), [], []
    for rows, product in products(real, fake):
        cross += cubes(product, real.shape[1])
        d = squared(product, real2[rows], fake2, nothing)           # (rows, m)
        inside = d < r_real[rows, None]
        balls += inside.sum(0)                                      # in how many real balls each generated sample lies
        recall.append((d < r_fake).any(1))
        coverage.append(inside.any(1))
    mean = lambda parts: float(torch.cat(parts).double().mean())
    return {"kd": real_kernel + fake_kernel - 2 * cross / (len(real) * len(fake)),
            "precision": float((balls > 0).double().mean()), "recall": mean(recall),
            "density": float(balls.mean()) / max(k, 1), "coverage": mean(coverage)}


def kd(real, fake):
    return kd_prdc(real, fake, k=0)["kd"]


def kd_subsets(real, fake, size=0, subsets=100, seed=0):
    """(mean, standard deviation) of the kernel distance over random subsets of `size` (0: the smaller set's), drawn as
    torchmetrics draws them after torch.manual_seed(seed): one permutation of each set a subset, the real one first."""
    real, fake = pair(real, fake)
    size, rng = size or min(len(real), len(fake)), torch.Generator().manual_seed(seed)
    if size > min(len(real), len(fake)):
        raise InputError(f"subsets of {size} cannot be drawn from {len(real)} and {len(fake)} images.")
    draw = lambda x: x[torch.randperm(len(x), generator=rng)[:size]]
    values = torch.tensor([kd(draw(real), draw(fake)) for _ in range(subsets)], dtype=torch.float64)
    return float(values.mean()), float(values.std(correction=0))


def prdc(real, fake, k=5):
    return {name: value for name, value in kd_prdc(real, fake, k).items() if name != "kd"}


# ---- all of them, blocks of the list, intervals ----

def distribution(real, fake, k=5):
    """{name: value} of all six, over all samples at once."""
    return {"fd": fd(real, fake), **kd_prdc(real, fake, k)}


def sharded(real, fake, shards, k=5, metric=distribution):
    """The published protocol: both lists in `shards` consecutive blocks, every metric on each block and rounded to 3
    decimals, then their mean. Small blocks raise FD and change precision to coverage: compare equal `shards` alone."""
    if shards == 1:
        return metric(real, fake, k)
    if min(len(real), len(fake)) < shards * (k + 1):
        raise InputError(f"--shards {shards}: {len(real)} and {len(fake)} images are too few for blocks of {k + 1} or more.")
    parts = zip(np.array_split(np.asarray(real), shards), np.array_split(np.asarray(fake), shards))
    values = [{name: round(value, 3) for name, value in metric(*part, k).items()} for part in parts]
    return {name: sum(value[name] for value in values) / shards for name in values[0]}


def half_samples(metric, real, fake, paired, replicates=100, seed=0):
    """95 % intervals {name: [low, high]} of metric(real, fake) -> {name: value}, by half-sampling.

    A bootstrap draws samples twice, and FD and neighbour distances are biased by duplicates and by the number of samples.
    A random half without replacement scatters about as much as a whole new sample would (its variance is s^2/(n/2) times
    the 1/2 that is left when half of the population is drawn) and holds no duplicates. What half as many samples do to the
    *level* is taken out: the replicates are moved to the estimate. paired: row i of both belongs to one prompt, so
    they are drawn together.
    """
    real, fake = np.asarray(real), np.asarray(fake)
    estimate, values = metric(real, fake), []
    for n in tqdm(range(replicates), desc="half samples", unit="draw", leave=False):
        rng = generator(seed, n)
        i, j = (torch.randperm(len(x), generator=rng)[:len(x) // 2].sort().values.numpy() for x in (real, fake))
        values.append(metric(real[i], fake[i if paired else j]))
    moved = {name: np.array([v[name] for v in values]) for name in estimate}
    return {name: interval(np.clip(v - v.mean() + estimate[name], *BOUNDS.get(name, (None, None)))) for name, v in moved.items()}


def bootstrap(statistic, n, replicates=1000, seed=0):
    """95 % percentile intervals {name: [low, high]} of statistic(row numbers) -> {name: value}: n items, drawn with
    replacement."""
    rng, values = np.random.default_rng(seed), []
    for _ in tqdm(range(replicates), desc="bootstrap", unit="draw", leave=False):
        values.append(statistic(rng.integers(0, n, n)))
    return {name: interval(np.array([v[name] for v in values])) for name in values[0]}


def interval(values):
    return [float(q) for q in np.quantile(values, (0.025, 0.975))]


# ---- privacy ----

def nearest(queries, bank):
    """Euclidean distance (n,) of each query to its nearest row of the bank, and that row's number (n,)."""
    queries, bank = checked(queries, "the queries", 1), torch.as_tensor(bank)
    best = torch.full((len(queries),), math.inf, dtype=torch.float64)
    queries2, where = queries.square().sum(1), torch.zeros(len(queries), dtype=torch.long)
    for rows in tqdm(list(blocks(len(bank))), desc="neighbours", unit="block", leave=False):
        part = checked(bank[rows], "the bank", 1)
        part2 = part.square().sum(1)
        d, i = squared(queries @ part.T, queries2, part2, 2e-12 * float(torch.maximum(queries2.max(), part2.max()))).min(1)
        closer = d < best
        best[closer], where[closer] = d[closer], i[closer] + rows.start
    return best.sqrt().numpy(), where.numpy()
