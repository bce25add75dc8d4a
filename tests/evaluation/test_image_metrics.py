"""evaluation/image_metrics.py: reference values, the definitions over all pairs, intervals."""
import numpy as np
import pytest
from safetensors.numpy import load_file

from common.cli import InputError
from evaluation import image_metrics as metrics
from helpers import GOLDEN

PRDC = ("precision", "recall", "density", "coverage")


@pytest.fixture(scope="module")
def golden_sets(golden_metrics):
    """Features {name: (n, C)} that the reference values are of."""
    sets = load_file(GOLDEN / "metrics_features.safetensors")
    return {**sets, "fake300": sets["fake"][:300]}


def random_sets(n=60, m=50, seed=0):
    """Two sets of features, the second moved and wider."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 8)), rng.normal(0.4, 1.2, (m, 8))


def distance_table(a, b):
    """Euclidean distances (n, m) by the definition."""
    return np.sqrt(((a[:, None] - b[None]) ** 2).sum(-1))


# ---- against the reference values ----

@pytest.mark.parametrize("case, real, fake", [
    ("real_fake", "real", "fake"), ("real_fake300", "real", "fake300"),
    ("real_real", "real", "real"), ("wide_rank_deficient", "real_wide", "fake_wide")])
def test_fd_is_the_official_one(golden_metrics, golden_sets, case, real, fake):
    official = golden_metrics["fd"][case]["fd_eigvals_product"]
    limit = golden_metrics["tolerances"]["fd_full_rank"]
    if case == "wide_rank_deficient":
        limit = golden_metrics["tolerances"]["fd_rank_deficient_relative"] * official
    assert abs(metrics.fd(golden_sets[real], golden_sets[fake]) - official) <= limit


@pytest.mark.parametrize("case, real, fake, k", [
    ("real_fake_k5", "real", "fake", 5), ("real_fake300_k5", "real", "fake300", 5),
    ("real_fake_k3", "real", "fake", 3), ("wide_k5", "real_wide", "fake_wide", 5),
    ("identical_sets_k5", "real", "real", 5)])
def test_kd_and_prdc_are_the_official_ones(golden_metrics, golden_sets, case, real, fake, k):
    scores = metrics.kd_prdc(golden_sets[real], golden_sets[fake], k)
    limits = golden_metrics["tolerances"]
    for name in PRDC:
        assert abs(scores[name] - golden_metrics["prdc"][case][name]) <= limits["prdc"]
    kd = {"real_fake_k5": ("real_fake", "full_set_float64"),
          "real_fake300_k5": ("real_fake300", "full_set_unequal_n_float64")}
    if case in kd:
        sets, value = kd[case]
        official = golden_metrics["kd"][sets][value]["unbiased"]
        assert abs(scores["kd"] - official) <= limits["kd_float64"]


def test_four_blocks_are_rounded_and_then_averaged(golden_metrics, golden_sets):
    scores = metrics.sharded(golden_sets["real"], golden_sets["fake"], 4)
    fd, kd = (golden_metrics[name]["real_fake_sharded4"] for name in ("fd", "kd"))
    prdc = golden_metrics["prdc"]["real_fake_sharded4_k5"]["combined_rounded3"]
    assert {name: round(value, 3) for name, value in scores.items()} == {
        "fd": fd["combined_rounded3"], "kd": kd["combined_rounded3"], **prdc}
    assert scores["fd"] == sum(fd["per_shard_rounded3"]) / 4


# ---- closed forms, and the definitions over all pairs ----

def test_fd_of_a_shift_and_a_scale():
    """A set scaled by s and moved by d is at distance |d + (s - 1) mu|^2 + (s - 1)^2 tr S."""
    x, _ = random_sets(n=500)
    expected = ((0.25 + 0.5 * x.mean(0)) ** 2).sum() + 0.5 ** 2 * np.trace(np.cov(x.T))
    assert metrics.fd(x, 1.5 * x + 0.25) == pytest.approx(expected)
    assert abs(metrics.fd(x, x)) < 1e-12


def test_kd_prdc_and_neighbours_are_their_definitions(monkeypatch):
    """In blocks of rows, with duplicates within a set and across."""
    monkeypatch.setattr(metrics, "BLOCK", 16)
    real, fake = random_sets(40, 30)
    real[3] = real[2]
    fake[:4] = real[:4]
    real_kernel, fake_kernel, cross_kernel = (
        (a @ b.T / 8 + 1) ** 3 for a, b in ((real, real), (fake, fake), (real, fake)))
    within = (real_kernel.sum() - real_kernel.trace()) / (40 * 39)
    within += (fake_kernel.sum() - fake_kernel.trace()) / (30 * 29)
    real_radii, fake_radii = (np.sort(distance_table(x, x))[:, 5] for x in (real, fake))
    table = distance_table(real, fake)
    in_real_ball = table < real_radii[:, None]
    assert metrics.kd_prdc(real, fake) == pytest.approx({
        "kd": within - 2 * cross_kernel.mean(),
        "precision": in_real_ball.any(0).mean(),
        "recall": (table < fake_radii).any(1).mean(),
        "density": in_real_ball.sum(0).mean() / 5,
        "coverage": in_real_ball.any(1).mean(),
    }, abs=1e-12)

    distances, rows = metrics.nearest(fake, real)
    assert distances == pytest.approx(table.min(0)) and (rows == table.argmin(0)).all()


def test_equal_images_are_at_distance_zero():
    """Eight equal images have balls of radius 0, and nothing is inside those, despite rounding."""
    x = np.random.default_rng(0).normal(30, 10, (200, 768))
    equal = np.repeat(x[:1], 8, 0)
    scores = metrics.kd_prdc(equal, equal.copy())
    assert [scores[name] for name in PRDC] == [0, 0, 0, 0]
    distances, rows = metrics.nearest(x, x)
    assert (distances == 0).all() and (rows == np.arange(200)).all()


# ---- intervals ----

def fd_only(real, fake):
    return {"fd": metrics.fd(real, fake)}


def test_half_samples_scatter_like_new_samples_around_the_estimate():
    """The interval of FD is as wide as that over new draws of both sets, and does not move up
    although FD of half as many images is higher.
    """
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(2, 200, 4))
    low, high = metrics.half_samples(fd_only, real, fake + 0.3, paired=False, replicates=300)["fd"]
    draws = [metrics.fd(a, b + 0.3) for a, b in rng.normal(size=(300, 2, 200, 4))]
    new_low, new_high = np.quantile(draws, (0.025, 0.975))
    assert high - low == pytest.approx(new_high - new_low, rel=0.3)

    real, fake = rng.normal(size=(2, 40, 16))
    fd = metrics.fd(real, fake)
    assert metrics.fd(real[::2], fake[::2]) > 1.5 * fd
    low, high = metrics.half_samples(fd_only, real, fake, paired=True, replicates=50)["fd"]
    assert low < fd < high


def test_intervals_hold_no_impossible_values():
    """Moved to an estimate of 0 or 1, half of the replicates would lie beyond it."""
    x = np.random.default_rng(2).normal(size=(40, 4))
    intervals = metrics.half_samples(metrics.distribution, x, x, paired=False, replicates=20)
    assert intervals["fd"][0] >= 0 and intervals["recall"][1] <= 1
    assert intervals["kd"][0] < 0, "an unbiased estimate may be negative"
    again = metrics.half_samples(metrics.distribution, x, x, paired=False, replicates=20)
    assert again == intervals, "they depend on the seed alone"


@pytest.mark.parametrize("paired", [True, False])
def test_images_of_one_prompt_are_drawn_together(paired):
    numbers = np.arange(20.)[:, None]
    halves = []

    def metric(real, fake):
        halves.append((real, fake))
        return {"x": 0.0}

    metrics.half_samples(metric, numbers, numbers + 100, paired, replicates=1)
    real, fake = halves[-1]
    assert len(real) == len(fake) == 10 and bool((fake - real == 100).all()) == paired


def test_bootstrap_of_a_mean():
    x = np.random.default_rng(0).normal(size=400)
    low, high = metrics.bootstrap(lambda rows: {"mean": float(x[rows].mean())}, 400)["mean"]
    assert high - low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1)


# ---- what goes in ----

@pytest.mark.parametrize("bad, sentence", [
    (np.zeros((5, 8)), "features of 6 or more images are needed"),
    (np.zeros(8), "features of 6 or more images are needed"),
    (np.array([[0.0] * 8, [np.nan] * 8, [np.inf] * 8] + [[1.0] * 8] * 9), "2 of 12 rows.*row 1"),
    (np.zeros((12, 9)), "two encoders"),
])
def test_bad_features_are_refused(bad, sentence):
    good, _ = random_sets(12)
    for sets in ((bad, good), (good, bad)):
        with pytest.raises(InputError, match=sentence):
            metrics.kd_prdc(*sets)
    with pytest.raises(InputError, match="--shards 4: 60 and 20 images are too few"):
        metrics.sharded(*random_sets(60, 20), 4)
