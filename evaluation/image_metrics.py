"""Distances between two sets of images, computed from their features (the paper's Tables 3 and 4).

    fd         Frechet distance: do mean and covariance agree?       0 is best, no upper limit
    kd         kernel distance: do the whole distributions agree?    0 is best, may be below it
    precision  share of generated images inside the real set         0 to 1, higher is better
    recall     share of real images inside the generated set         0 to 1, higher is better
    density    how many real images lie around a generated one       1 is like real, no limit
    coverage   share of real images with a generated one nearby      0 to 1, higher is better

The definitions are CheXGenBench's; docs/evaluation.md says where its protocol is unusual. The end
of the file holds confidence intervals, and the search for the nearest training image.

All functions take features (n, C), arrays or tensors of any float type, one row an image, and
compute in float64. Distances are looked at a block of rows at a time: no n x n matrix is in memory.

    real, fake    features (n, C) of the real and (m, C) of the generated images
    k             a sample's radius is the distance to its k-th nearest neighbour; 5 in the paper
"""
import math

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from common.cli import InputError
from common.processes import generator

BLOCK = 1024            # rows of a distance matrix that are looked at together
NAMES = ("fd", "kd", "precision", "recall", "density", "coverage")
LIMITS = {              # lowest and highest possible value; kd has none, its estimate is unbiased
    "fd": (0, None),
    "density": (0, None),
    "precision": (0, 1),
    "recall": (0, 1),
    "coverage": (0, 1),
}


def checked(features, name, least):
    """Features as a float64 tensor (n, C). InputError unless they have `least` rows, all finite."""
    # float64: FD subtracts large numbers that nearly cancel
    features = torch.as_tensor(features).double()
    shape = tuple(features.shape)
    if features.ndim != 2 or shape[0] < least or shape[1] == 0:
        here = " x ".join(map(str, shape))
        raise InputError(f"{name}: features of {least} or more images are needed, these are {here} "
                         "numbers.")
    # one nan would spread to every number of the table
    bad_rows = (~features.isfinite().all(1)).nonzero()[:, 0].tolist()
    if bad_rows:
        raise InputError(
            f"{name}: {len(bad_rows)} of {len(features)} rows of features are not finite, "
            f"the first is row {bad_rows[0]}.")
    return features


def checked_pair(real, fake, least):
    """Both sets of features as float64 tensors. InputError if two encoders must have made them."""
    real = checked(real, "the real images", least)
    fake = checked(fake, "the generated images", least)
    if real.shape[1] != fake.shape[1]:
        raise InputError(
            f"the features have {real.shape[1]} and {fake.shape[1]} numbers: "
            "two encoders made them.")
    return real, fake


# ---- Frechet distance ----

def mean_and_root(x):
    """The mean (C,) of samples (n, C), and a matrix R with R'R = S, the unbiased covariance.

    From x - mean = QR follows (x - mean)'(x - mean) = R'R. So S is never formed, and needs no
    special care where it is singular (n <= C).
    """
    mean = x.mean(0)
    # mode "r" leaves out Q, which is as large as the features and not needed
    _, triangle = torch.linalg.qr(x - mean, mode="r")
    return mean, triangle / math.sqrt(len(x) - 1)


def fd(real, fake):
    """Frechet distance between two Gaussians, as a float; 0 is best (Heusel et al. 2017).

        |mu1 - mu2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

    Small sets raise it, so values are comparable at equal n only. The last trace is the sum of the
    square roots of the eigenvalues of S1 S2. With S = R'R these roots are the singular values of
    R1 R2', and no square root of a singular matrix is needed.
    """
    real, fake = checked_pair(real, fake, least=2)
    mean1, root1 = mean_and_root(real)
    mean2, root2 = mean_and_root(fake)
    # both factors have at most C rows, so this costs the same for any number of images
    trace = torch.linalg.svdvals(root1 @ root2.T).sum()
    shift = (mean1 - mean2).square().sum()
    return float(shift + root1.square().sum() + root2.square().sum() - 2 * trace)


# ---- kernel distance; precision, recall, density and coverage ----
#
# All of them need the products x.y of all pairs of samples, and these are most of the work. So they
# are computed once, a block at a time, and every block serves the kernel and the distances.

def row_blocks(n):
    """Slices of at most BLOCK rows that together make up n rows."""
    for start in range(0, n, BLOCK):
        yield slice(start, min(n, start + BLOCK))


def kernel_sum(products, width):
    """Sum of the kernel (x.y / C + 1)^3 over a block of products x.y; C is the features' width."""
    base = products.div(width).add_(1).view(-1)
    return float(torch.dot(base * base, base))


def squared_distances(products, x_norms, y_norms, rounding):
    """|x - y|^2 = |x|^2 + |y|^2 - 2 x.y of a block of products x.y (rows, m), in the same memory.

    What is not above `rounding` becomes 0, so that equal images are at distance 0 exactly.
    """
    # in place: the products are used up, and a block of doubles is 8 MB for 1,000 images
    distances = products.mul_(-2).add_(y_norms).add_(x_norms[:, None])
    return F.threshold_(distances, rounding, 0)


def rounding_error(x_norms, y_norms):
    """What rounding may leave of the squared distance between equal samples, from their |x|^2.

    Float64 rounds at 1e-16 of |x|^2, and the errors of many products add up. Real distances between
    images are far larger than this.
    """
    return 2e-12 * float(torch.maximum(x_norms.max(), y_norms.max()))


def within_set(x, k, rounding):
    """Mean kernel over pairs of different samples (n, C), and the squared radius of each (n,)."""
    n, width = x.shape
    norms = x.square().sum(1)
    kernel = 0.0
    radii = []
    for rows in row_blocks(n):
        products = x[rows] @ x.T                                            # (rows, n)
        kernel += kernel_sum(products, width)
        distances = squared_distances(products, norms[rows], norms, rounding)
        # every row holds the sample itself, so its k-th neighbour is the (k+1)-th smallest
        radii.append(distances.topk(k + 1, largest=False).values[:, -1])

    kernel -= kernel_sum(norms, width)              # without the pairs of a sample with itself
    return kernel / (n * (n - 1)), torch.cat(radii)


def kd_prdc(real, fake, k=5):
    """{"kd", "precision", "recall", "density", "coverage"}, floats; both sets need k + 1 samples.

    kd is the unbiased MMD^2 (Gretton et al. 2012) with the kernel of KID (Binkowski et al. 2018):

        mean k(x, x') + mean k(y, y') - 2 mean k(x, y)    with k(x, y) = (x.y / C + 1)^3

    over all pairs of real samples x, x' != x and generated samples y, y' != y. The official code
    averages it over 100 random subsets of min(n, m) samples. For n = m each subset is the whole
    set, and otherwise our value is the expectation of that average.

    The other four are those of Naeem et al. 2020, as the package `prdc` 0.2 computes them. Each
    sample has a ball that reaches to its k-th nearest neighbour in its own set; the edge does not
    belong to it. With D_ij the distance of real sample i and generated sample j, and radii r:

        precision    share of j with D_ij < r_i for any i
        recall       share of i with D_ij < r_j for any j
        density      mean over j of how many i have D_ij < r_i, divided by k
        coverage     share of i with D_ij < r_i for any j
    """
    real, fake = checked_pair(real, fake, least=k + 1)
    n, width = real.shape
    m = len(fake)
    real_norms = real.square().sum(1)
    fake_norms = fake.square().sum(1)
    rounding = rounding_error(real_norms, fake_norms)
    real_kernel, real_radii = within_set(real, k, rounding)
    fake_kernel, fake_radii = within_set(fake, k, rounding)

    # distances and radii are both squared, which does not change what is nearer
    cross_kernel = 0.0
    recalled, covered = [], []                              # of each real sample: is it?
    real_balls = torch.zeros(m, dtype=torch.float64)        # real balls around each generated one
    for rows in row_blocks(n):
        products = real[rows] @ fake.T                                      # (rows, m)
        cross_kernel += kernel_sum(products, width)
        distances = squared_distances(products, real_norms[rows], fake_norms, rounding)
        # strictly below: the edge of a ball does not belong to it, as in `prdc`
        in_real_ball = distances < real_radii[rows, None]
        in_fake_ball = distances < fake_radii
        real_balls += in_real_ball.sum(0)
        recalled.append(in_fake_ball.any(1))
        covered.append(in_real_ball.any(1))

    return {
        "kd": real_kernel + fake_kernel - 2 * cross_kernel / (n * m),
        "precision": float((real_balls > 0).double().mean()),
        "recall": float(torch.cat(recalled).double().mean()),
        "density": float(real_balls.mean()) / k,
        "coverage": float(torch.cat(covered).double().mean()),
    }


# ---- all six ----

def distribution(real, fake, k=5):
    """{name: value} of all six metrics, over all samples at once."""
    return {"fd": fd(real, fake), **kd_prdc(real, fake, k)}


def sharded(real, fake, shards, k=5):
    """{name: value} of all six as published: means over `shards` consecutive blocks of the lists.

    Each metric is computed on each block and rounded to 3 decimals before the mean is taken. Table
    3 has 4 blocks. Small blocks raise FD and change precision to coverage: compare values at equal
    `shards` only. With one block nothing is rounded. The order of the rows matters here alone.
    """
    # the plain definition; what follows is how the numbers were published
    if shards == 1:
        return distribution(real, fake, k)
    if min(len(real), len(fake)) < shards * (k + 1):
        raise InputError(
            f"--shards {shards}: {len(real)} and {len(fake)} images are too few for blocks of "
            f"{k + 1} or more.")
    real_blocks = np.array_split(np.asarray(real), shards)
    fake_blocks = np.array_split(np.asarray(fake), shards)
    # block i of one side is compared with block i of the other
    blocks = [distribution(a, b, k) for a, b in zip(real_blocks, fake_blocks)]
    return {name: sum(round(block[name], 3) for block in blocks) / shards for name in NAMES}


# ---- 95 % intervals ----

def percentiles(values):
    """[low, high]: the middle 95 % of the values lie between them."""
    return [float(value) for value in np.quantile(values, (0.025, 0.975))]


def half_samples(metric, real, fake, paired, replicates=100, seed=0, limits=LIMITS):
    """Intervals {name: [low, high]} of metric(real, fake) -> {name: value}, from random half sets.

    A bootstrap would draw images twice, and duplicates bias FD and the distances of neighbours. A
    random half without replacement has none, and it scatters as a new set of n images would: half
    as many images double a variance, and drawing half of the images there are halves it.

    Half as many images also move the *level* of a metric (FD rises). That is taken out: the
    replicates are shifted so that their mean is the metric over all images.

    paired: row i of both sets belongs to the same prompt, so both are drawn or neither.
    limits: {name: (lowest, highest)} of what cannot lie outside.
    """
    real = np.asarray(real)
    fake = np.asarray(fake)
    estimate = metric(real, fake)
    replicas = []
    for replicate in tqdm(range(replicates), desc="half samples", unit="draw", leave=False):
        # each replicate has its own generator: replicate 7 is the same in a run of 10 and of 100
        rng = generator(seed, replicate)
        real_half = torch.randperm(len(real), generator=rng)[:len(real) // 2].sort().values.numpy()
        fake_half = torch.randperm(len(fake), generator=rng)[:len(fake) // 2].sort().values.numpy()
        if paired:
            fake_half = real_half
        replicas.append(metric(real[real_half], fake[fake_half]))

    intervals = {}
    for name, value in estimate.items():
        values = np.array([replica[name] for replica in replicas])
        # the spread of the halves, around the value of the whole
        values = values - values.mean() + value
        if name in limits:
            values = np.clip(values, *limits[name])
        intervals[name] = percentiles(values)
    return intervals


def bootstrap(statistic, n, replicates=1000, seed=0):
    """Intervals {name: [low, high]} of statistic(row numbers) -> {name: value}, for n items.

    Each replicate draws n of the items with replacement. A value may be None in a draw that does
    not have it: the interval is that of the other draws, or None if there are none.
    """
    # all draws from one stream: the seed fixes the interval
    rng = np.random.default_rng(seed)
    replicas = []
    for _ in tqdm(range(replicates), desc="bootstrap", unit="draw", leave=False):
        replicas.append(statistic(rng.integers(0, n, n)))

    intervals = {}
    for name in replicas[0]:
        values = [replica[name] for replica in replicas if replica[name] is not None]
        intervals[name] = percentiles(values) if values else None
    return intervals


# ---- privacy ----

def nearest(queries, bank):
    """The row of a bank (n, C) that is nearest to each query (q, C).

    -> Euclidean distances (q,) and row numbers (q,), as arrays; of equals the first row.
    """
    queries = checked(queries, "the queries", least=1)
    bank = torch.as_tensor(bank)
    query_norms = queries.square().sum(1)
    smallest = torch.full((len(queries),), math.inf, dtype=torch.float64)
    smallest_row = torch.zeros(len(queries), dtype=torch.long)
    for rows in tqdm(list(row_blocks(len(bank))), desc="neighbours", unit="block", leave=False):
        block = checked(bank[rows], "the bank", least=1)
        norms = block.square().sum(1)
        rounding = rounding_error(query_norms, norms)
        distances = squared_distances(queries @ block.T, query_norms, norms, rounding)  # (q, rows)
        distance, row = distances.min(1)
        # strictly, so that of equal distances the first row stays
        closer = distance < smallest
        smallest[closer] = distance[closer]
        smallest_row[closer] = row[closer] + rows.start
    return smallest.sqrt().numpy(), smallest_row.numpy()
