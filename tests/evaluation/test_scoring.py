"""evaluation/scoring.py: labels of phantoms' reports, numbers with intervals, what is left out."""
import numpy as np
import pytest

from evaluation import image_metrics, radgraph_biovil, scoring, tables

RNG = np.random.default_rng(0)


def test_phantom_scores_by_hand():
    """A hit, a finding on the wrong side (an extra and a miss), and one that is not there."""
    labels = scoring.PhantomLabels()
    references = labels(["Small left effusion. Right upper nodule.", "No effusion."])
    assert sorted(map(len, references)) == [0, 2]
    hit = {fact for fact in references[0] if fact[0] == "nodule"}
    predictions = [hit | {("effusion", "right", "small")}, {("edema", "", "mild")}]
    scores_at = labels.scores(references, predictions)
    scores = scores_at()
    assert scores["micro"] == pytest.approx(2 / (2 + 2 + 1))
    assert scores["macro"] == pytest.approx(1 / 3), "of nodule, effusion, edema, which occur"
    assert scores["nodule"] == 1 and scores["effusion"] == scores["edema"] == scores["exact"] == 0
    assert scores["catheter"] is None, "right by nobody, wrong by nobody"
    assert scores_at([0])["micro"] == pytest.approx(0.5)


def test_nothing_at_all_has_no_macro_f1_to_speak_of():
    labels = scoring.PhantomLabels()
    scores = labels.scores(labels(["No effusion."]), labels(["No edema."]))()
    assert scores["macro"] == 0 and scores["exact"] == 1


def test_a_finding_that_is_rare_or_absent_has_the_interval_of_the_draws_that_show_it():
    labels = scoring.PhantomLabels()
    texts = [*["Small left effusion."] * 5, "Pulmonary edema."]
    scores, _ = scoring.label_f1(labels, texts, texts, 50)
    assert scores["macro"] == {"value": 1.0, "interval": [1.0, 1.0], "n": 6}
    assert scores["edema"]["interval"] == [1.0, 1.0], "in a third of the draws it is not there"
    assert scores["nodule"] == {"value": None, "interval": None, "n": 6}
    assert tables.understanding({"nodule": scores["nodule"]})[-1].endswith("| nodule | – | 6 |")


def test_f1_has_the_interval_of_the_bootstrap():
    labels, texts = scoring.PhantomLabels(), ["Small left effusion."] * 12
    predictions = [*texts[:-2], "", ""]
    scores, _ = scoring.label_f1(labels, predictions, texts, 50)
    scores_at = labels.scores(labels(texts), labels(predictions))
    interval = image_metrics.bootstrap(scores_at, 12, 50)["exact"]
    assert scores["exact"] == {"value": 10 / 12, "interval": interval, "n": 12}


def test_scores_of_single_reports_are_averaged(monkeypatch):
    """RadGraph's published level has the plain name; BLEU leaves out what has no token."""
    monkeypatch.setattr(radgraph_biovil, "radgraph", lambda texts, python: (
        [{"entities": {"1": {"tokens": text, "label": "OBS-DP", "relations": []}}}
         for text in texts], []))
    monkeypatch.setattr(scoring, "bleu", lambda *texts: ({"BLEU1": np.array([0.5, np.nan])}, []))
    scores, _, _ = scoring.reports(["a", "b"], ["a", "c"], None, 0)
    assert scores["RadGraph_F1"]["value"] == pytest.approx(0.5)
    assert {"RadGraph_F1_simple", "RadGraph_F1_complete"} <= scores.keys()
    assert scores["BLEU1"] == {"value": 0.5, "interval": None, "n": 1}


def test_images_in_blocks_and_in_halves():
    real, generated = RNG.normal(size=(24, 4)), RNG.normal(size=(24, 4)) + 1
    scores = scoring.images(real, generated, shards=(1, 4), replicates=3)
    assert scores["1"]["fd"]["interval"] and scores["1"]["fd"]["n"] == 24
    assert scores["4"]["fd"]["interval"] is None, "a half of four blocks would have three images"


def test_a_finding_needs_two_images():
    real, generated = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 4))
    rows = [{"caption": str(i), "labels": {"Edema": float(i < 3), "Fracture": float(i == 0)}}
            for i in range(6)]
    scores = scoring.by_finding(rows, real, generated, ["Edema", "Fracture"], 0)
    assert list(scores) == ["Edema"] and scores["Edema"]["few"]
    assert scores["Edema"]["fd"]["value"] == image_metrics.fd(real[:3], generated[:3])
