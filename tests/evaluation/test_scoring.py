"""evaluation/scoring.py: labels of phantoms' reports, numbers with intervals, what is left out."""
import numpy as np
import pytest

from evaluation import image_metrics, radgraph_biovil, scoring, text_metrics
from phantom.facts import FINDINGS, facts_to_report, sample_facts

RNG = np.random.default_rng(0)
FACTS = [sample_facts(RNG) for _ in range(12)]
REPORTS = [facts_to_report(facts, RNG) for facts in FACTS]


def test_phantom_labels_are_the_facts():
    labels = scoring.PhantomLabels()
    facts = labels(REPORTS)
    assert [set(map(tuple, found)) for found in facts] == [set(map(tuple, f)) for f in FACTS]
    scores = labels.scores(facts, facts)()
    present = {finding for found in facts for finding, _, _ in found}
    assert scores["micro"] == 1 and scores["exact"] == 1
    assert all(scores[finding] == (finding in present) for finding in FINDINGS)


def test_phantom_scores_by_hand():
    """One hit, one of the wrong side (an extra and a miss), one finding that was not drawn."""
    references = [{("effusion", "left", "small"), ("nodule", "right upper", "small")}, set()]
    predictions = [{("effusion", "right", "small"), ("nodule", "right upper", "small")},
                   {("edema", "", "mild")}]
    scores_at = scoring.PhantomLabels().scores(references, predictions)
    scores = scores_at()
    assert scores["micro"] == pytest.approx(2 / (2 + 2 + 1))
    assert scores["macro"] == pytest.approx(1 / len(FINDINGS)), "nodule alone, over all findings"
    assert scores["exact"] == 0
    assert scores_at([0])["micro"] == pytest.approx(0.5)


def test_f1_of_labels_has_the_bootstrap_interval():
    labels = scoring.PhantomLabels()
    predictions = [*REPORTS[:-1], ""]
    scores, _ = scoring.label_f1(labels, predictions, REPORTS, 50)
    scores_at = labels.scores(labels(REPORTS), labels(predictions))
    intervals = image_metrics.bootstrap(scores_at, 12, 50)
    wanted = {"value": scores_at()["exact"], "interval": intervals["exact"], "n": 12}
    assert scores["exact"] == wanted
    without, _ = scoring.label_f1(labels, predictions, REPORTS, 0)
    assert without["exact"]["interval"] is None


def test_what_is_not_there_is_left_out_with_a_sentence(tmp_path):
    labeller, sentences = scoring.load_labeller(tmp_path / "no", False, "cpu", phantom=False)
    assert labeller is None and "hf download" in sentences[0]
    scores, details, left_out = scoring.reports(["Clear."], ["Clear."], None, 0, str(tmp_path))
    assert details == {} and any(s.startswith("RadGraph F1 is left out") for s in left_out)
    named = " ".join([*scores, *left_out])
    assert all(word in named for word in ("BLEU", "ROUGE", "RadGraph"))


def test_radgraph_has_the_published_level_under_the_plain_name(monkeypatch):
    entity = {"tokens": "effusion", "label": "OBS-DP", "relations": []}
    monkeypatch.setattr(radgraph_biovil, "radgraph", lambda texts, python: (
        [{"entities": {"1": {**entity, "tokens": text}}} for text in texts], []))
    scores, _, _ = scoring.reports(["a", "b"], ["a", "c"], None, 0)
    assert scores["RadGraph_F1"]["value"] == pytest.approx(0.5)
    assert {"RadGraph_F1_simple", "RadGraph_F1_complete"} <= scores.keys()


def test_reports_without_a_token_are_left_out_of_bleu(monkeypatch):
    monkeypatch.setattr(scoring, "bleu", lambda *texts: ({"BLEU1": np.array([0.5, np.nan])}, []))
    scores, _, _ = scoring.reports(["a", ""], ["a", "b"], None, 0)
    assert scores["BLEU1"] == {"value": 0.5, "interval": None, "n": 1}


def test_images_in_blocks_and_in_halves():
    real, generated = RNG.normal(size=(24, 4)), RNG.normal(size=(24, 4)) + 1
    scores = scoring.images(real, generated, shards=(1, 4), replicates=5)
    for blocks in (1, 4):
        wanted = image_metrics.sharded(real, generated, blocks)
        for name, value in wanted.items():
            assert scores[str(blocks)][name]["value"] == value
    assert scores["1"]["fd"]["interval"] and scores["1"]["fd"]["n"] == 24
    assert scores["4"]["fd"]["interval"] is None, "halves of four blocks would have three images"


def test_a_finding_needs_two_images():
    real, generated = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 4))
    rows = [{"caption": str(i), "labels": {"Edema": float(i < 3), "Fracture": float(i == 0)}}
            for i in range(6)]
    scores = scoring.by_finding(rows, real, generated, ["Edema", "Fracture"], 0)
    assert list(scores) == ["Edema"] and scores["Edema"]["few"]
    assert scores["Edema"]["fd"]["value"] == image_metrics.fd(real[:3], generated[:3])
    assert text_metrics.select(rows, rows, "Edema") == ([0, 1, 2], [0, 1, 2])
