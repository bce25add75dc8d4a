"""From lists to the numbers of a table, with intervals: written reports against references, generated images against real ones.

Every function returns {name: {"value", "interval", "n"}}, and the first two also sentences about what was left out and why. No
model of ours is in here; labels come from CheXbert, or, for phantoms, exactly from the text.
"""
import importlib.util
from pathlib import Path

import numpy as np

from evaluation import chexbert
from evaluation import radgraph_biovil as foreign
from evaluation import image_metrics as metrics
from evaluation import text_metrics
from phantom.facts import FINDINGS, report_to_facts
from evaluation.tables import numbers

FEW = 768       # fewer images than RAD-DINO's features have numbers: their covariance is singular


# ---- labels of reports ----

class Facts:
    """The phantom's labels: (finding, side or zone, degree) triples read off a text, exactly; "normal" is not counted."""

    def __call__(self, texts):
        return [report_to_facts(text) for text in texts]

    def scores(self, wanted, found):
        """-> a function of row numbers: micro-F1 over all triples, macro-F1 over findings, share of reports with all right."""
        table = np.array([[[sum(f == name for f, _, _ in part) for name in FINDINGS]
                           for part in (want & got, got - want, want - got)] for want, got in zip(wanted, found)])
        right = np.array([want == got for want, got in zip(wanted, found)])

        def at(rows=slice(None)):
            tallies = table[rows].sum(0)                            # hits, extras, misses (3, findings)
            each = text_metrics.f1(*tallies)
            return {"micro": float(text_metrics.f1(*tallies.sum(1))), "macro": float(each.mean()),
                    "exact": float(right[rows].mean()), **{name: float(f) for name, f in zip(FINDINGS, each)}}
        return at

    def details(self, wanted, found):
        return {}


class CheXbertLabels:
    def __init__(self, path, cut, device):
        self.model, self.cut = chexbert.load(path).to(device), cut

    def __call__(self, texts):
        return self.model.label(texts, chexbert.CUT if self.cut else 0)

    def scores(self, wanted, found):
        return lambda rows=slice(None): text_metrics.chexbert_scores(wanted, found, rows)

    def details(self, wanted, found):
        return text_metrics.chexbert_details(wanted, found)


def labeller(path, cut, device, phantom):
    """-> (Facts or CheXbertLabels, []) or (None, [which scores are left out, and how to get them])."""
    if phantom:
        return Facts(), []
    if not Path(path).exists():
        return None, [f"CheXbert F1 and the cycle score are left out (nothing at {path}): {chexbert.GET}."]
    return CheXbertLabels(path, cut, device), []


def labelled(label, said, there, replicates):
    """F1 of the labels of texts against those of references -> (numbers, details)."""
    wanted, found = label(there), label(said)
    scores = label.scores(wanted, found)
    intervals = metrics.bootstrap(scores, len(said), replicates) if replicates else {}
    return numbers(scores(), intervals, len(said)), label.details(wanted, found)


# ---- reports ----

def has_punkt():
    import nltk
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def reports(said, there, label, replicates=1000, python=""):
    """Parallel lists of texts -> (numbers, details, left out)."""
    values, details, left_out, columns = {}, {}, [], {}
    if label is not None:
        values, details = labelled(label, said, there, replicates)
    if importlib.util.find_spec("nltk") is None:
        left_out.append("BLEU is left out (no nltk): pip install -r requirements-eval.txt.")
    elif not has_punkt():
        left_out.append("BLEU is left out (nltk lacks the sentence splitter's data): python -m nltk.downloader punkt_tab.")
    else:
        scores = text_metrics.bleu(text_metrics.tokens(said), text_metrics.tokens(there))
        columns |= dict(zip(text_metrics.BLEU_WEIGHTS, scores.T))
    if importlib.util.find_spec("rouge_score") is None:
        left_out.append("ROUGE-L is left out (no rouge-score): pip install -r requirements-eval.txt.")
    else:
        columns["ROUGE_L"] = text_metrics.rouge_l(said, there)
    annotations, sentences = foreign.radgraph([*said, *there], python)
    left_out += sentences
    if annotations is not None:
        for level in text_metrics.LEVELS:
            rewards = text_metrics.radgraph_rewards(annotations[:len(said)], annotations[len(said):], level)
            columns["RadGraph_F1" + ("" if level == "partial" else f"_{level}")] = rewards[:, 0]
    for name, column in columns.items():
        column = column[np.isfinite(column)]                        # BLEU leaves out reports without a token
        if len(column):
            mean = lambda rows=slice(None): {name: float(column[rows].mean())}
            values |= numbers(mean(), metrics.bootstrap(mean, len(column), replicates) if replicates else {}, len(column))
    return values, details, left_out


# ---- images ----

def images(real, generated, shards=(1,), k=5, replicates=100, paired=True):
    """Features -> {number of blocks: numbers}. paired: row i of both belongs to the same prompt."""
    paired, part = paired and len(real) == len(generated), {}
    for blocks in shards:
        metric = lambda a, b: metrics.sharded(a, b, blocks, k)
        values, halves = metric(real, generated), min(len(real), len(generated)) // 2
        intervals = metrics.half_samples(metric, real, generated, paired, replicates) \
            if replicates and halves >= blocks * (k + 1) else {}
        part[str(blocks)] = numbers(values, intervals, min(len(real), len(generated)))
    return part


def by_finding(rows, real, generated, names, replicates=100):
    """FD of each finding's images, {name: {"fd", "n_real", "n_generated", "few"}}, all of them in one block; those with fewer
    than two images are not there. rows {"caption", "labels"}: row i is about image i of both."""
    part = {}
    for name in names:
        kept, made = text_metrics.select(rows, rows, name)
        if min(len(kept), len(made)) < 2:
            continue
        metric = lambda a, b: {"fd": metrics.fd(a, b)}
        some = real[kept], generated[made]
        intervals = metrics.half_samples(metric, *some, kept == made, replicates) if replicates and len(kept) >= 4 else {}
        part[name] = {**numbers(metric(*some), intervals, len(kept)), "n_real": len(kept), "n_generated": len(made),
                      "few": min(len(kept), len(made)) < max(FEW, real.shape[1])}
    return part


# ---- privacy ----

def privacy(generated, held_out, train, replicates=1000):
    """Distances of generated images to their nearest training image, beside those of real images that were not trained on.

    -> (numbers, (distance (n,), nearest training row (n,)) of the generated, distances of the held-out). "below_5" is the
    share of generated images that are nearer to a training image than 95 % of the held-out ones are: 0.05 where they
    behave alike, more where the model repeats what it has seen.
    """
    (ours, where), (theirs, _) = metrics.nearest(generated, train), metrics.nearest(held_out, train)
    limits = {f"below_{q}": np.quantile(theirs, q / 100) for q in (1, 5)}
    found = {**{name: (ours, lambda d, limit=limit: float((d < limit).mean())) for name, limit in limits.items()},
             **{f"{name}_median": (d, lambda d: float(np.median(d))) for name, d in (("generated", ours), ("held_out", theirs))},
             "generated_smallest": (ours, None), "held_out_smallest": (theirs, None)}
    part = {}
    for name, (d, statistic) in found.items():
        value = statistic(d) if statistic else float(d.min())
        draws = metrics.bootstrap(lambda rows: {name: statistic(d[rows])}, len(d), replicates) if statistic and replicates else {}
        part |= numbers({name: value}, draws, len(d))       # a smallest value has no bootstrap interval
    return part, (ours, where), theirs
