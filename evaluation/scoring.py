"""From lists to numbers with intervals: reports against references, images against real ones.

A number is {"value", "interval", "n"}: its 95 % interval, or None, and how many items it is over.
No network of ours is in here. Labels of reports come from CheXbert or, for phantoms, exactly from
the text. A score that needs a package or weights that are not there is left out, with a sentence
that says so.
"""
import importlib.util
from pathlib import Path

import numpy as np

from evaluation import chexbert, image_metrics, radgraph_biovil, text_metrics
from evaluation.tables import numbers
from phantom.facts import FINDINGS, report_to_facts

FEW = 768       # RAD-DINO's features have 768 numbers: with fewer images, covariances are singular
LEAST = 6       # images that precision to coverage need: a sample and its five nearest neighbours


# ---- labels of reports ----

class PhantomLabels:
    """Labels of the phantom's reports: the (finding, side or zone, degree) triples that they state.

    They are read off the text exactly. "Normal" statements are not counted.
    """

    def __call__(self, texts):
        """Texts -> a set of triples for each."""
        return [report_to_facts(text) for text in texts]

    def scores(self, references, predictions):
        """Sets of triples -> a function from row numbers to the scores of these rows.

        micro: F1 over all triples. macro: mean over the F1 of the findings that occur, in a
        reference or a prediction. exact: share of reports whose triples are all right. Beside these
        the F1 of each finding, None for one that does not occur.
        """
        # count once: a draw of the bootstrap then only adds up rows of a table
        outcomes = []                               # of each report: hits, extras, misses
        for wanted, given in zip(references, predictions):
            outcomes.append([count_findings(wanted & given),
                             count_findings(given - wanted),
                             count_findings(wanted - given)])
        outcomes = np.array(outcomes)               # (N, 3, findings)
        exact = np.array([wanted == given for wanted, given in zip(references, predictions)])

        def scores_at(rows=slice(None)):
            # micro adds up all findings first, macro takes the mean of their F1
            counts = outcomes[rows].sum(0)          # (3, findings)
            by_finding = text_metrics.f1(*counts)
            occurs = counts.any(0)
            scores = {
                "micro": float(text_metrics.f1(*counts.sum(1))),
                "macro": float(by_finding[occurs].mean()) if occurs.any() else 0.0,
                "exact": float(exact[rows].mean()),
            }
            for name, score, there in zip(FINDINGS, by_finding, occurs):
                scores[name] = float(score) if there else None
            return scores
        return scores_at

    def details(self, references, predictions):
        return {}


def count_findings(facts):
    """How many triples there are of each finding, in the order of FINDINGS."""
    named = [finding for finding, _, _ in facts]
    return [named.count(name) for name in FINDINGS]


class CheXbertLabels:
    """Labels of radiology reports: CheXbert's codes of fourteen findings, (N, 14)."""

    def __init__(self, path, cut, device):
        self.model = chexbert.load(path).to(device)
        self.cut = chexbert.CUT if cut else 0

    def __call__(self, texts):
        return self.model.label(texts, self.cut)

    def scores(self, references, predictions):
        # lists of rows as well: two systems have the same references, one behind the other
        references, predictions = np.asarray(references), np.asarray(predictions)

        def scores_at(rows=slice(None)):
            return text_metrics.chexbert_scores(references, predictions, rows)
        return scores_at

    def details(self, references, predictions):
        return text_metrics.chexbert_details(references, predictions)


def load_labeller(path, cut, device, phantom):
    """-> (labeller, []), or (None, [which scores are left out, and how to get them]).

    path, cut: see ReportNetworks. phantom: whether all reports are of phantoms.
    """
    # no network for phantoms: their sentences come from a grammar that can be read back
    if phantom:
        return PhantomLabels(), []
    if not Path(path).exists():
        return None, [f"CheXbert F1 and the cycle score are left out (nothing at {path}): "
                      f"{chexbert.GET}."]
    return CheXbertLabels(path, cut, device), []


def label_f1(labeller, predictions, references, replicates):
    """F1 of the labels of texts against those of their references -> (numbers, details)."""
    # label first, for the labels stay the same in every draw
    wanted, given = labeller(references), labeller(predictions)
    scores_at = labeller.scores(wanted, given)
    values = with_bootstrap(scores_at, len(predictions), replicates)
    return values, labeller.details(wanted, given)


def with_bootstrap(scores_at, n, replicates):
    """A function from row numbers to {name: value}, over all n rows -> numbers with intervals.

    replicates: draws of the bootstrap; 0 for numbers without intervals.
    """
    intervals = {}
    if replicates:
        intervals = image_metrics.bootstrap(scores_at, n, replicates)
    return numbers(scores_at(), intervals, n)


# ---- reports ----

def reports(predictions, references, labeller, replicates=1000, python=""):
    """Parallel lists of texts -> (numbers, details, sentences about what is left out)."""
    scores, details = {}, {}
    # F1 is no mean over reports, so it is drawn as a whole
    if labeller is not None:
        scores, details = label_f1(labeller, predictions, references, replicates)

    # the others are means over reports
    of_reports, left_out = columns(predictions, references, python)
    for name, column in of_reports.items():
        column = column[np.isfinite(column)]        # BLEU leaves out reports without a token
        if len(column):
            scores |= mean_of(name, column, replicates)
    return scores, details, left_out


def columns(predictions, references, python=""):
    """Scores that each report has for itself, and whose mean is the number.

    -> ({"BLEU1": (N,), "ROUGE_L": (N,), ...}, sentences about what is left out). nan: no score.
    """
    scores, left_out = {}, []
    for more, sentences in (
            bleu(predictions, references),
            rouge_l(predictions, references),
            radgraph_f1(predictions, references, python)):
        scores |= more
        left_out += sentences
    return scores, left_out


def mean_of(name, values, replicates):
    """The mean of an array as a number with an interval -> {name: number}."""
    def mean_at(rows=slice(None)):
        return {name: float(values[rows].mean())}
    return with_bootstrap(mean_at, len(values), replicates)


def bleu(predictions, references):
    """Of each report -> ({"BLEU1": (N,), ...}, []), or ({}, [why BLEU is left out])."""
    # nltk and rouge-score are for this table only: a missing one costs a column, not the run
    if importlib.util.find_spec("nltk") is None:
        return {}, ["BLEU is left out (no nltk): pip install -r requirements-eval.txt."]
    if not has_punkt():
        return {}, ["BLEU is left out (nltk lacks the sentence splitter's data): "
                    "python -m nltk.downloader punkt_tab."]
    scores = text_metrics.bleu(text_metrics.tokens(predictions), text_metrics.tokens(references))
    return dict(zip(text_metrics.BLEU_WEIGHTS, scores.T)), []


def has_punkt():
    """Whether nltk finds the data of its sentence splitter, which pip does not install."""
    import nltk
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


def rouge_l(predictions, references):
    """Of each report -> ({"ROUGE_L": (N,)}, []), or ({}, [why it is left out])."""
    if importlib.util.find_spec("rouge_score") is None:
        return {}, ["ROUGE-L is left out (no rouge-score): "
                    "pip install -r requirements-eval.txt."]
    return {"ROUGE_L": text_metrics.rouge_l(predictions, references)}, []


def radgraph_f1(predictions, references, python):
    """Of each report -> ({"RadGraph_F1": (N,), ...}, []), or ({}, [why it is left out])."""
    # one call for both lists: the package loads its network each time it is asked
    annotations, left_out = radgraph_biovil.radgraph([*predictions, *references], python)
    if annotations is None:
        return {}, left_out
    of_predictions = annotations[:len(predictions)]
    of_references = annotations[len(predictions):]
    columns = {}
    for level in text_metrics.LEVELS:
        # "partial" is the published level, so it has the plain name
        name = "RadGraph_F1" if level == "partial" else f"RadGraph_F1_{level}"
        rewards = text_metrics.radgraph_rewards(of_predictions, of_references, level)
        columns[name] = rewards[:, 0]
    return columns, []


# ---- images ----

def blocks(asked, images, k=5):
    """Into how many blocks images are cut -> (numbers of blocks, [what was left out]).

    Those that were asked for, else 1 and, where the images are enough for it, the 4 of the paper.
    """
    least = 4 * (k + 1)
    if asked:
        return asked, []
    if images >= least:
        return [1, 4], []
    return [1], [f"Means over 4 blocks, as in the paper's table, are left out: they need {least} "
                 f"images or more, there are {images}."]


def images(real, generated, shards=(1,), k=5, replicates=100, paired=True):
    """Features (N, C), (M, C) -> {number of blocks: {name: number}}, FD to coverage.

    shards: numbers of blocks that the lists are cut into; the published numbers have 4. paired:
    whether row i of both belongs to the same prompt.
    """
    # rows can be pairs only where there are as many on both sides
    paired = paired and len(real) == len(generated)
    n = min(len(real), len(generated))
    scores = {}
    for blocks in shards:
        def metric(a, b):
            return image_metrics.sharded(a, b, blocks, k)
        values = metric(real, generated)
        intervals = {}
        # a half must still have k + 1 images a block, for the k-th neighbour
        if replicates and n // 2 >= blocks * (k + 1):
            intervals = image_metrics.half_samples(metric, real, generated, paired, replicates)
        scores[str(blocks)] = numbers(values, intervals, n)
    return scores


def by_finding(rows, real, generated, names, replicates=100):
    """FD of each finding's images, in one block -> {name: {"fd", "n_real", "n_generated", "few"}}.

    rows: {"caption", "labels"} of each image; row i is about row i of both sets of features.
    few: whether the number is mostly the bias of a small sample. A finding with fewer than two
    images has no FD and is not there.
    """
    def metric(a, b):
        return {"fd": image_metrics.fd(a, b)}

    scores = {}
    for name in names:
        real_rows, generated_rows = text_metrics.select(rows, rows, name)
        n = min(len(real_rows), len(generated_rows))
        if n < 2:
            continue
        real_part, generated_part = real[real_rows], generated[generated_rows]
        intervals = {}
        # a half must have two images, for a covariance
        if replicates and len(real_rows) >= 4:
            paired = real_rows == generated_rows
            intervals = image_metrics.half_samples(
                metric, real_part, generated_part, paired, replicates)
        scores[name] = {
            **numbers(metric(real_part, generated_part), intervals, len(real_rows)),
            "n_real": len(real_rows),
            "n_generated": len(generated_rows),
            "few": n < max(FEW, real.shape[1]),
        }
    return scores
