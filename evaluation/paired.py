"""Is one system better than another, or may the difference be chance? A paired randomisation test.

    python evaluate.py compare references.jsonl a.jsonl b.jsonl                 # reports of A and B
    python evaluate.py compare real.safetensors a.safetensors b.safetensors     # images of A and B
    python evaluate.py compare out/score-a out/score-b                          # two runs: und, gen

Both systems have had the same items: images to report on, or reports to draw. If they were alike,
it would not matter which of them made which of the two outputs of an item. So the two outputs of
each item are swapped with probability 1/2, and the difference of the scores is computed again. It
is d for the outputs as they are and d* after a draw of such swaps:

    p = (1 + number of draws with |d*| >= |d|) / (1 + number of draws)

This is the approximate randomisation test (Noreen 1989; Yeh 2000, aclanthology.org/C00-2137), two
sided. It asks of a score only that it can be computed: F1 and FD, which are no means over items,
are tested as BLEU is.

Outputs of A and B stand in one list, and a score is a function from row numbers of that list to
{name: value}. With n items, row i is what A made of item i, and row n + i what B made of it.
"""
import numpy as np
from tqdm import tqdm

from evaluation import image_metrics, scoring
from evaluation.tables import numbers

SIDES = ("a", "b", "difference")        # the three numbers of each score; the last is B minus A
# what A's and B's own scores cannot exceed; differences have no such limits
LIMITS = {(side, name): limits for name, limits in image_metrics.LIMITS.items() for side in "ab"}


# ---- the test ----

def randomisation(scores_at, n, draws, seed=0):
    """p values {name: p} of the differences between A and B over n items.

    scores_at: a function from row numbers to {name: value}, see above. p is None where a value is
    missing in some draw, as the F1 of a finding that only one system ever named.
    """
    items = np.arange(n)

    def scores_after(swapped):
        """Scores of A and of B when the items in `swapped` are swapped: arrays (names,)."""
        rows = np.where(swapped, items + n, items)
        # the other system gets the other output of each item
        sides = scores_at(rows), scores_at((rows + n) % (2 * n))
        # None becomes nan
        return [np.array(list(side.values()), dtype=float) for side in sides]

    a, b = scores_after(np.zeros(n, dtype=bool))
    # sums in another order differ in their last digits: an equal difference is to count as equal
    rounding = 1e-9 * np.maximum(np.abs(a), np.abs(b))
    rng = np.random.default_rng(seed)
    as_large = np.zeros(len(a))
    for _ in tqdm(range(draws), desc="swaps", unit="draw", leave=False):
        a_drawn, b_drawn = scores_after(rng.random(n) < 0.5)
        drawn = np.abs(b_drawn - a_drawn)
        # nan stays nan, whatever the other draws give
        as_large += np.where(np.isnan(drawn), np.nan, drawn >= np.abs(b - a) - rounding)

    p = (1 + as_large) / (1 + draws)
    missing = np.isnan(p) | np.isnan(b - a)
    names = scores_at(items)
    return {name: None if gone else float(value) for name, value, gone in zip(names, p, missing)}


# ---- two systems side by side ----

def of_both(a, b):
    """{name: value} of A and of B -> {(side, name): value} for the three SIDES."""
    values = {}
    for name in a:
        values["a", name] = a[name]
        values["b", name] = b[name]
        missing = a[name] is None or b[name] is None
        values["difference", name] = None if missing else b[name] - a[name]
    return values


def side_by_side(scores_at, n, draws, intervals):
    """-> {name: {"a": number, "b": number, "difference": number with "p"}}.

    intervals: {(side, name): [low, high]}, or {}. draws: of `randomisation`; 0: p is None.
    """
    a, b = scores_at(np.arange(n)), scores_at(np.arange(n, 2 * n))
    values = numbers(of_both(a, b), intervals, n)
    p = randomisation(scores_at, n, draws) if draws else dict.fromkeys(a)
    table = {}
    for name in a:
        table[name] = {side: values[side, name] for side in SIDES}
        table[name]["difference"]["p"] = p[name]
    return table


def with_bootstrap(scores_at, n, replicates, draws):
    """`side_by_side` with intervals of a bootstrap over items: for scores of single outputs."""
    def scores_of_items(items):
        return of_both(scores_at(items), scores_at(items + n))
    intervals = {}
    if replicates:
        intervals = image_metrics.bootstrap(scores_of_items, n, replicates)
    return side_by_side(scores_at, n, draws, intervals)


# ---- reports ----

def labels(a, b, references, labeller, replicates, draws):
    """F1 of the labels of two lists of texts against the same references -> `side_by_side`."""
    return with_bootstrap(
        labels_of_rows(a, b, references, labeller), len(references), replicates, draws)


def labels_of_rows(a, b, references, labeller):
    """Two lists of texts -> a function from row numbers to the F1 of their labels."""
    wanted = labeller(references)
    # the references stand there twice, as what A and as what B was to say
    return labeller.scores([*wanted, *wanted], labeller([*a, *b]))


def reports(a, b, references, labeller, replicates, draws, python=""):
    """All scores of two lists of reports of the same images -> (`side_by_side`, what is left out).

    labeller: as for `scoring.reports`, or None. python: who has RadGraph.
    """
    labels_at = labels_of_rows(a, b, references, labeller) if labeller is not None else None
    columns, left_out = scoring.columns([*a, *b], [*references, *references], python)

    def scores_at(rows):
        scores = labels_at(rows) if labels_at is not None else {}
        return {**scores, **{name: mean_at(column, rows) for name, column in columns.items()}}
    return with_bootstrap(scores_at, len(references), replicates, draws), left_out


def mean_at(column, rows):
    """The mean over these rows; nan is left out, as of a report without a token (BLEU)."""
    values = column[rows]
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


# ---- images ----

def images(real, a, b, shards, k, replicates, draws, paired):
    """FD to coverage of two sets of images against the same real ones -> {blocks: `side_by_side`}.

    real, a, b: features; row i of a and of b belong to the same prompt. paired: row i of the real
    ones does, too. Other arguments: see `scoring.images`.
    """
    n = len(a)
    both = np.concatenate([a, b])
    scores = {}
    for blocks in shards:
        def scores_at(rows):
            return image_metrics.sharded(real, both[rows], blocks, k)

        def metric(real_half, pairs):
            a_half, b_half = np.split(pairs, 2, axis=1)
            return of_both(image_metrics.sharded(real_half, a_half, blocks, k),
                           image_metrics.sharded(real_half, b_half, blocks, k))
        intervals = {}
        # a half must still have k + 1 images a block, for the k-th neighbour
        if replicates and min(len(real), n) // 2 >= blocks * (k + 1):
            # the two images of a prompt are drawn together: they stand in one row
            pairs = np.concatenate([a, b], axis=1)                      # (n, 2 C)
            intervals = image_metrics.half_samples(
                metric, real, pairs, paired, replicates, limits=LIMITS)
        scores[str(blocks)] = side_by_side(scores_at, n, draws, intervals)
    return scores
