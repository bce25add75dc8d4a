"""evaluation/paired.py: p against all 2^n swaps and against SciPy; two systems side by side."""
import itertools

import numpy as np
import pytest

from evaluation import image_metrics, paired, scoring, text_metrics

DRAWS = 4000


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def means_of(a, b):
    """Two arrays (n,) -> the function from row numbers to their mean."""
    both = np.concatenate([a, b])
    return lambda rows: {"mean": float(both[rows].mean())}


def p_of_all_swaps(scores_at, n, name):
    """The share of all 2^n ways to swap in which the difference is as large as it is."""
    items = np.arange(n)

    def difference(swapped):
        rows = [i + n if swap else i for i, swap in zip(items, swapped)]
        others = [i if swap else i + n for i, swap in zip(items, swapped)]
        return abs(scores_at(np.array(others))[name] - scores_at(np.array(rows))[name])
    there = difference([False] * n)
    every = [difference(swapped) for swapped in itertools.product([False, True], repeat=n)]
    return np.mean([d >= there - 1e-12 for d in every])


def near(p, wanted, draws=DRAWS):
    """Within four standard deviations of what so many draws can say."""
    return abs(p - wanted) <= 4 * np.sqrt(wanted * (1 - wanted) / draws) + 2 / draws


@pytest.mark.parametrize("shift", [0, 0.4, 0.8, 3])
def test_p_of_a_mean_is_that_of_all_swaps(shift, rng):
    a, b = rng.normal(size=9), rng.normal(size=9) + shift
    scores_at = means_of(a, b)
    wanted = p_of_all_swaps(scores_at, 9, "mean")
    p = paired.randomisation(scores_at, 9, DRAWS)["mean"]
    assert near(p, wanted) and p >= 1 / (1 + DRAWS)


@pytest.mark.parametrize("n", [9, 40])
def test_p_is_that_of_scipy(n, rng):
    """Which looks at all swaps of nine items, and draws 40,000 of forty."""
    stats = pytest.importorskip("scipy.stats")
    a, b = rng.normal(size=n), rng.normal(size=n) + 0.3
    wanted = stats.permutation_test(
        (a, b), lambda x, y, axis: (y - x).mean(axis), permutation_type="samples",
        n_resamples=40_000, vectorized=True, rng=np.random.default_rng(1)).pvalue
    assert near(paired.randomisation(means_of(a, b), n, DRAWS)["mean"], wanted)


def test_p_of_an_f1_which_is_no_mean_is_that_of_all_swaps():
    references = ["Small left effusion.", "Pulmonary edema.", "No edema.", "Right pneumothorax.",
                  "Mild cardiomegaly.", "Left pneumothorax. Pulmonary edema."]
    a = ["", "Pulmonary edema.", "Pulmonary edema.", "", "", "Left pneumothorax. Left catheter."]
    b = [references[0] + " Left catheter.", *references[1:]]
    scores_at = paired.labels_of_rows(a, b, references, scoring.PhantomLabels())
    p = paired.randomisation(scores_at, 6, DRAWS)
    for name in ("micro", "exact", "edema", "effusion"):
        assert near(p[name], p_of_all_swaps(scores_at, 6, name)), name
    assert p["nodule"] is None, "neither reference nor report names one"
    assert p["catheter"] is None, "in some draws all that name it are on one side"


def test_systems_that_write_the_same_do_not_differ(rng):
    a = rng.normal(size=12)
    assert paired.randomisation(means_of(a, a), 12, 50)["mean"] == 1


def test_a_difference_that_is_equal_up_to_rounding_counts(rng):
    """0.3 - 0.1 - 0.2 and its opposite are both 0, so half of the draws give the 0.7 that is there;
    rounding makes some of them a little less.
    """
    for _ in range(5):
        a = rng.normal(size=4) * 100
        scores_at = means_of(a, a + np.array([0.3, -0.1, -0.2, 0.7]))
        assert near(paired.randomisation(scores_at, 4, 500)["mean"], 5 / 8, 500)


def test_p_is_uniform_where_there_is_no_difference(rng):
    """Of many comparisons of equals, one in ten has a p of 0.1 or less."""
    p = []
    for _ in range(200):
        a, b = rng.normal(size=20), rng.normal(size=20)
        p.append(paired.randomisation(means_of(a, b), 20, 49)["mean"])
    assert 0.05 <= np.mean(np.array(p) <= 0.1) <= 0.16


def test_two_systems_of_reports(monkeypatch):
    """Each side has the score that it has alone, with its interval; B says nothing once."""
    references = [f"The heart is normal. Nodule number {i}." for i in range(10)]
    a = ["The heart is normal."] * 10
    b = [*references[:9], ""]
    table, left_out = paired.reports(a, b, references, scoring.PhantomLabels(), 50, 200, "no")
    assert any("RadGraph" in sentence for sentence in left_out)
    alone = [scoring.reports(texts, references, scoring.PhantomLabels(), 50, "no")[0]
             for texts in (a, b)]
    for name, row in table.items():
        for side, numbers in zip("ab", alone):
            assert row[side]["value"] == numbers[name]["value"], name
    assert table["exact"]["a"]["interval"] == alone[0]["exact"]["interval"]
    if "ROUGE_L" in table:
        row = table["ROUGE_L"]
        assert row["difference"]["value"] == row["b"]["value"] - row["a"]["value"] > 0
        low, high = row["difference"]["interval"]
        assert low <= row["difference"]["value"] <= high
        rouge = [text_metrics.rouge_l(texts, references) for texts in (a, b)]
        assert row["difference"]["p"] == paired.randomisation(
            lambda rows: {"x": np.concatenate(rouge)[rows].mean()}, 10, 200)["x"] < 0.2
    if "BLEU1" in table:
        assert table["BLEU1"]["b"]["value"] == pytest.approx(1), "the empty one has no BLEU"


def test_two_systems_of_images(rng):
    """B is the real images with a little noise, A is far away; neither is better than itself."""
    real = rng.normal(size=(24, 3))
    noise = rng.normal(size=(24, 3))
    near_real, far = real + 0.1 * noise, real + 2
    table = paired.images(real, far, near_real, (1, 2), 5, 4, 60, paired=True)
    for blocks in (1, 2):
        rows = table[str(blocks)]
        wanted = image_metrics.sharded(real, far, blocks)
        assert {name: rows[name]["a"]["value"] for name in rows} == pytest.approx(wanted)
        assert rows["fd"]["difference"]["value"] < 0
        assert rows["fd"]["difference"]["p"] == 1 / 61
    # no share is below 0: of so bad images, some halves would have a coverage that is
    loose = paired.images(real, far, real + 3 * noise, (1,), 5, 9, 0, paired=True)["1"]
    alone = scoring.images(real, real + 3 * noise, (1,), 5, 9)["1"]
    assert {name: row["b"]["interval"] for name, row in loose.items()} == {
        name: pytest.approx(number["interval"]) for name, number in alone.items()}

    same = paired.images(real, near_real, near_real, (1,), 5, 0, 20, paired=True)["1"]
    assert all(row["difference"]["p"] == 1 for row in same.values())
    assert same["fd"]["a"]["interval"] is None
    no_test = paired.images(real, far, near_real, (1,), 5, 0, 0, paired=True)["1"]
    assert no_test["fd"]["difference"]["p"] is None


def test_fd_is_swapped_image_by_image(rng):
    """p of FD over all swaps of six prompts."""
    real, a = rng.normal(size=(7, 2)), rng.normal(size=(7, 2))
    b = rng.normal(size=(7, 2)) + 0.7
    both = np.concatenate([a, b])

    def fd_at(rows):
        return {"fd": image_metrics.fd(real, both[rows])}
    row = paired.images(real, a, b, (1,), 5, 0, 1000, paired=True)["1"]["fd"]
    wanted = p_of_all_swaps(fd_at, 7, "fd")
    assert row["difference"]["p"] == pytest.approx(wanted, abs=0.06)
