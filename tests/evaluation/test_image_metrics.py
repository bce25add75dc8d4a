"""evaluation/image_metrics.py: the reference values, closed forms, plain loops over all pairs, and every input that must be refused."""
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from evaluation import image_metrics as metrics
from common.processes import InputError
from helpers import GOLDEN, needs_golden

SETS = {"real_fake": ("real", "fake"), "real_fake300": ("real", "fake300"), "real_real": ("real", "real"),
        "wide_rank_deficient": ("real_wide", "fake_wide")}


@pytest.fixture(scope="module")
def gold():
    values = json.loads((GOLDEN / "metrics.json").read_text())
    sets = load_file(GOLDEN / "metrics_features.safetensors")
    return values, {**sets, "fake300": sets["fake"][:300]}


def some(n=60, m=50, c=8, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, c)).astype(np.float32), rng.normal(0.4, 1.2, (m, c)).astype(np.float32)


# ---- against the reference values ----

@needs_golden
@pytest.mark.parametrize("name", SETS)
def test_fd(gold, name):
    values, sets = gold
    want = values["fd"][name]["fd_eigvals_product"]
    got = metrics.fd(*(sets[key] for key in SETS[name]))
    limit = values["tolerances"]["fd_full_rank"] if name != "wide_rank_deficient" else \
        values["tolerances"]["fd_rank_deficient_relative"] * want
    assert abs(got - want) <= limit
    wrong = values["fd"][name].get("fd_population_cov_ddof0_for_contrast")
    assert wrong is None or abs(got - wrong) > 1e-3


@needs_golden
@pytest.mark.parametrize("name, place", [("real_fake", "full_set_float64"), ("real_fake300", "full_set_unequal_n_float64")])
def test_kd(gold, name, place):
    values, sets = gold
    got = metrics.kd(*(sets[key] for key in SETS[name]))
    assert abs(got - values["kd"][name][place]["unbiased"]) <= values["tolerances"]["kd_float64"]
    if name == "real_fake":     # every "subset" of the official code is the whole set
        assert abs(got - values["kd"][name]["torchmetrics_mean"]) <= values["tolerances"]["kd_float32"]
        mean, std = metrics.kd_subsets(sets["real"], sets["fake"], subsets=3)
        assert abs(mean - got) < 1e-9 and std < 1e-9


@needs_golden
def test_kd_of_random_subsets_is_the_official_one(gold):
    """The same permutations as torchmetrics after torch.manual_seed(0), so equal to float32, not only in distribution."""
    values, sets = gold
    want = values["kd"]["real_fake_subset100x50_seed0"]
    mean, std = metrics.kd_subsets(sets["real"], sets["fake"], 100, 50)
    assert abs(mean - want["torchmetrics_mean"]) < 5e-6 and abs(std - want["torchmetrics_std"]) < 5e-6
    want = values["kd"]["real_fake300"]
    mean, std = metrics.kd_subsets(sets["real"], sets["fake300"])
    assert abs(mean - want["expected_value_of_official"]) <= want["torchmetrics_std_seed0"] / 10 * 4


PRDC = {"real_fake_k5": ("real", "fake", 5), "real_fake300_k5": ("real", "fake300", 5), "real_fake_k3": ("real", "fake", 3),
        "wide_k5": ("real_wide", "fake_wide", 5), "identical_sets_k5": ("real", "real", 5)}


@needs_golden
@pytest.mark.parametrize("name", [*PRDC, "hand_example_k1"])
@pytest.mark.parametrize("block", [metrics.BLOCK, 37])
def test_prdc(gold, name, block, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", block)
    values, sets = gold
    want = values["prdc"][name]
    got = metrics.prdc(np.array(want["real"]), np.array(want["fake"]), 1) if name == "hand_example_k1" else \
        metrics.prdc(sets[PRDC[name][0]], sets[PRDC[name][1]], PRDC[name][2])
    assert all(abs(got[key] - want[key]) <= values["tolerances"]["prdc"] for key in got) and len(got) == 4


@needs_golden
def test_four_blocks(gold):
    values, sets = gold
    got = metrics.sharded(sets["real"], sets["fake"], 4)
    want = {"fd": values["fd"]["real_fake_sharded4"]["combined_rounded3"], "kd": values["kd"]["real_fake_sharded4"]["combined_rounded3"],
            **values["prdc"]["real_fake_sharded4_k5"]["combined_rounded3"]}
    assert {name: round(value, 3) for name, value in got.items()} == want
    each = values["fd"]["real_fake_sharded4"]["per_shard_rounded3"]
    assert got["fd"] == sum(each) / 4, "every block is rounded, then the mean is taken"
    parts = [metrics.distribution(sets["real"][i:i + 100], sets["fake"][i:i + 100]) for i in range(0, 400, 100)]
    for name, key in (("fd", "fd"), ("kd", "kd")):
        assert np.abs(np.array([p[key] for p in parts]) - values[name]["real_fake_sharded4"]["per_shard_float64"]).max() < 1e-9


# ---- closed forms and plain loops ----

def test_fd_of_a_shift_and_a_scale():
    """Scaled by s and moved by d, a set is at distance |d + (s-1) mu|^2 + (s-1)^2 tr S: S1 and S2 commute."""
    x, _ = some(n=500)
    moved = 1.5 * x + 0.25
    mean = x.astype(float).mean(0)
    want = ((0.5 * mean + 0.25) ** 2).sum() + 0.25 * np.trace(np.cov(x.astype(float).T))
    assert abs(metrics.fd(x, moved) - want) < 1e-5 and abs(metrics.fd(x, x)) < 1e-12
    rotate = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    y = some()[1]
    assert abs(metrics.fd(x @ rotate, y @ rotate) - metrics.fd(x, y)) < 1e-4


def test_kd_by_loops():
    real, fake = (x.astype(float) for x in some(12, 9))
    k = lambda a, b: (a @ b / 8 + 1) ** 3
    within = lambda x: np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
    want = within(real) + within(fake) - 2 * np.mean([k(a, b) for a in real for b in fake])
    assert abs(metrics.kd(real, fake) - want) < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_prdc_by_loops(seed, monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 16)
    real, fake = some(40, 30, seed=seed)
    real[3], fake[:4] = real[2], real[:4]       # duplicates: within a set and across
    d = lambda a, b: np.sqrt(((a.astype(float) - b.astype(float)) ** 2).sum())
    radius = lambda x, i: sorted(d(x[i], y) for y in x)[5]
    r_real, r_fake = [radius(real, i) for i in range(40)], [radius(fake, j) for j in range(30)]
    inside = np.array([[d(a, b) < r_real[i] for b in fake] for i, a in enumerate(real)])
    want = {"precision": inside.any(0).mean(), "density": inside.sum(0).mean() / 5, "coverage": inside.any(1).mean(),
            "recall": np.mean([any(d(a, b) < r_fake[j] for j, b in enumerate(fake)) for a in real])}
    assert metrics.prdc(real, fake) == pytest.approx(want, abs=1e-12)


def test_equal_images_are_at_distance_nothing():
    """Six black squares have a radius of 0, and nothing is nearer than that: rounding must not put them inside."""
    x = np.repeat(np.random.default_rng(0).normal(30, 10, (1, 768)), 8, 0)
    assert metrics.prdc(x, x.copy()) == dict(precision=0, recall=0, density=0, coverage=0)
    x = np.random.default_rng(1).normal(30, 10, (200, 768))
    distance, where = metrics.nearest(x, x)
    assert (distance == 0).all() and (where == np.arange(200)).all()


def test_nearest_by_loops(monkeypatch):
    monkeypatch.setattr(metrics, "BLOCK", 16)
    bank, queries = some(70, 20)
    d = np.sqrt(((queries[:, None].astype(float) - bank[None]) ** 2).sum(-1))
    got, where = metrics.nearest(queries, bank)
    assert np.abs(got - d.min(1)).max() < 1e-6 and (where == d.argmin(1)).all()


# ---- intervals ----

def test_half_samples_scatter_like_new_samples():
    """The interval of a mean is 2 * 1.96 s / sqrt(n) wide; of FD, as wide as that over new draws from the same source."""
    rng = np.random.default_rng(0)
    draw = lambda: (rng.normal(size=(200, 4)), rng.normal(0.3, 1, (200, 4)))
    real, fake = draw()
    metric = lambda a, b: {"fd": metrics.fd(a, b), "mean": float(b[:, 0].mean())}
    got = metrics.half_samples(metric, real, fake, paired=False, replicates=300)
    width = {name: high - low for name, (low, high) in got.items()}
    assert width["mean"] == pytest.approx(2 * 1.96 * fake[:, 0].std() / 200 ** 0.5, rel=0.2)
    low, high = np.quantile([metrics.fd(*draw()) for _ in range(300)], (0.025, 0.975))
    assert width["fd"] == pytest.approx(high - low, rel=0.3)
    assert got["fd"][0] < metrics.fd(real, fake) < got["fd"][1]
    again = metrics.half_samples(metric, real, fake, paired=False, replicates=300)
    assert again == got, "the interval depends on the seed alone"


def test_half_samples_keep_to_the_estimate():
    """FD of half as many images is far higher; the interval is about the FD at hand all the same."""
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(2, 40, 16))
    value = metrics.fd(real, fake)
    assert metrics.fd(real[::2], fake[::2]) > 1.5 * value
    low, high = metrics.half_samples(lambda a, b: {"fd": metrics.fd(a, b)}, real, fake, True, 50)["fd"]
    assert low < value < high


def test_intervals_hold_no_impossible_values():
    """Moved to an estimate of 0 or 1, half of the replicates would lie beyond it."""
    x = np.random.default_rng(2).normal(size=(40, 4))
    got = metrics.half_samples(metrics.distribution, x, x, paired=False, replicates=20)
    assert metrics.fd(x, x) < 1e-9 and got["fd"][0] >= 0 and got["recall"][1] <= 1 and got["kd"][0] < 0


def test_pairs_stay_together():
    real = np.arange(20.)[:, None]
    seen = []
    metrics.half_samples(lambda a, b: seen.append((a, b)) or {"x": 0.0}, real, real + 100, paired=True, replicates=3)
    assert all((b - a == 100).all() for a, b in seen) and len(seen[1][0]) == 10
    seen.clear()
    metrics.half_samples(lambda a, b: seen.append((a, b)) or {"x": 0.0}, real, real + 100, paired=False, replicates=3)
    assert not (seen[1][1] - seen[1][0] == 100).all()


def test_bootstrap_of_a_mean():
    x = np.random.default_rng(0).normal(size=400)
    low, high = metrics.bootstrap(lambda i: {"mean": float(x[i].mean())}, 400)["mean"]
    assert high - low == pytest.approx(2 * 1.96 * x.std() / 20, rel=0.1) and low < x.mean() < high


# ---- what is refused ----

BAD = {
    "empty": (np.zeros((0, 8)), None, "2 or more rows"),
    "one number a row": (np.zeros(8), None, "rows of features are needed"),
    "not finite": (np.array([[0.0] * 8, [np.nan] * 8, [np.inf] * 8] + [[1.0] * 8] * 9), None, "2 of 12 rows.*row 1"),
    "another encoder": (np.zeros((12, 9)), None, "two encoders"),
    "fewer than k+1": (np.zeros((5, 8)), "prdc", "6 or more rows"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_features(name):
    real, only, sentence = BAD[name]
    for call in [metrics.prdc] if only else [metrics.fd, metrics.kd, metrics.prdc]:
        with pytest.raises(InputError, match=sentence.replace("2 or", "(2|6) or")):
            call(real, some(12, 12)[1])
        with pytest.raises(InputError, match=sentence.replace("2 or", "(2|6) or")):
            call(some(12, 12)[1], real)


def test_too_few_for_the_blocks():
    with pytest.raises(InputError, match="--shards 4: 60 and 20 images are too few"):
        metrics.sharded(*some(60, 20), 4)
    with pytest.raises(InputError, match="subsets of 51"):
        metrics.kd_subsets(*some(), 51)


def test_torch_and_numpy_and_half_precision():
    real, fake = some()
    want = metrics.distribution(real, fake)
    assert metrics.distribution(torch.tensor(real), torch.tensor(fake)) == want
    assert metrics.distribution(torch.tensor(real).half(), torch.tensor(fake).half())["fd"] == pytest.approx(want["fd"], rel=1e-2)
