"""evaluation/text_metrics.py against the reference values, edge cases included, and what it refuses."""
import json

import numpy as np
import pytest

from evaluation import text_metrics as tm
from common.processes import InputError
from helpers import GOLDEN, needs_golden


@pytest.fixture(scope="module")
def gold():
    return json.loads((GOLDEN / "metrics.json").read_text())


# ---- CheXbert F1 ----

@needs_golden
@pytest.mark.parametrize("policy", tm.POLICIES)
def test_chexbert(gold, policy):
    part = gold["chexbert_f1"]
    want, limit = part[policy], gold["tolerances"]["chexbert_f1"]
    reference, prediction = tm.codes(part["reference"], "the reference"), tm.codes(part["prediction"], "the prediction")
    got = tm.chexbert_scores(reference, prediction)
    for ours, theirs in (("micro_f1", "micro_f1_14"), ("macro_f1", "macro_f1_14"), ("micro_f1_top5", "micro_f1_5"), ("macro_f1_top5", "macro_f1_5")):
        assert abs(got[f"{policy}_{ours}"] - want[theirs]) <= limit
    details = tm.chexbert_details(reference, prediction)[policy]
    for name, finding in details["findings"].items():
        assert abs(finding["f1"] - want["per_class_f1"][name]) <= limit and finding["support"] == want["support"][name]
    for ours, theirs in (("hits", "tp"), ("extras", "fp"), ("misses", "fn")):
        assert sum(finding[ours] for finding in details["findings"].values()) == want[theirs]
    assert abs(details["examples"]["f1"] - want["example_f1_zero_division_0"]) <= limit
    assert abs(details["examples"]["precision"] - want["official_formula"]["ce_precision"]) <= limit
    assert abs(details["examples"]["recall"] - want["official_formula"]["ce_recall"]) <= limit


@needs_golden
def test_order_of_the_findings(gold):
    assert tm.LABELS == gold["chexbert_f1"]["order"] and tm.FIVE == gold["chexbert_f1"]["five_indices"]


def test_chexbert_by_hand():
    """Two reports: a hit, an uncertain one said positive, a miss; twelve findings without positives stay in the macro."""
    reference, prediction = np.zeros((2, 14), int), np.zeros((2, 14), int)
    reference[0, 1], prediction[0, 1] = 1, 1
    reference[1, 1], prediction[1, 1] = 3, 1
    reference[1, 4], prediction[1, 4] = 1, 2
    got = tm.chexbert_scores(reference, prediction)
    assert got["uncertain_as_negative_micro_f1"] == 2 / (2 + 1 + 1)
    assert got["uncertain_as_positive_micro_f1"] == 4 / (4 + 0 + 1)
    assert got["uncertain_as_positive_macro_f1"] == pytest.approx(1 / 14)
    assert got["uncertain_as_negative_macro_f1_top5"] == pytest.approx(2 / 3 / 5)
    assert tm.chexbert_scores(reference, prediction, [0])["uncertain_as_negative_micro_f1"] == 1


@pytest.mark.parametrize("labels, sentence", [
    (np.zeros((3, 13), int), r"shape \(3, 13\)"), (np.zeros((0, 14), int), r"shape \(0, 14\)"), (np.full((2, 14), 4), "other codes"),
    (np.full((2, 14), 3), "other codes"), (np.full((2, 14), np.nan), "other codes")])
def test_bad_codes(labels, sentence):
    with pytest.raises(InputError, match=sentence):
        tm.codes(labels, "the prediction")


# ---- BLEU, ROUGE-L ----

@needs_golden
def test_bleu_of_stored_tokens(gold):
    pytest.importorskip("nltk")
    pairs, limit = gold["report_text"]["pairs"], gold["tolerances"]["bleu"]
    got = tm.bleu([p["prediction_tokens"] for p in pairs], [p["reference_tokens"] for p in pairs])
    for row, p in zip(got, pairs):
        assert np.abs(row - [p[name] for name in tm.BLEU_WEIGHTS]).max() <= limit
    assert np.abs(got.mean(0) - [gold["report_text"]["official_mean"][name] for name in tm.BLEU_WEIGHTS]).max() <= limit


@needs_golden
def test_bleu_of_edge_cases(gold):
    """Every edge case is its own sentence, so splitting at blanks and before the last stop gives the official tokens."""
    pytest.importorskip("nltk")
    words = lambda text: text.replace(":", " :").replace(".", " .").split()
    cases = gold["report_text"]["edge_cases"]
    got = tm.bleu([words(c["prediction"]) for c in cases], [words(c["reference"]) for c in cases])
    for row, case in zip(got, cases):
        assert np.isnan(row).all() if case["bleu"] is None else \
            np.abs(row - [case["bleu"][name] for name in tm.BLEU_WEIGHTS]).max() <= gold["tolerances"]["bleu"]
    assert sum(case["bleu"] is None for case in cases) == 1


@needs_golden
def test_tokens(gold):
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        pytest.skip("Punkt's data is not here")
    for p in gold["report_text"]["pairs"]:
        assert tm.tokens([p["prediction"], p["reference"]]) == [p["prediction_tokens"], p["reference_tokens"]]


@needs_golden
def test_rouge_l(gold):
    pytest.importorskip("rouge_score")
    part, limit = gold["report_text"], gold["tolerances"]["rougeL_per_pair"]
    got = tm.rouge_l([p["prediction"] for p in part["pairs"]], [p["reference"] for p in part["pairs"]])
    assert np.abs(got - [p["rougeL"]["fmeasure"] for p in part["pairs"]]).max() <= limit
    assert abs(got.mean() - part["rougeL_plain_mean"]) <= limit
    got = tm.rouge_l([c["prediction"] for c in part["edge_cases"]], [c["reference"] for c in part["edge_cases"]])
    assert np.abs(got - [c["rougeL_f"] for c in part["edge_cases"]]).max() <= limit


# ---- RadGraph, selection, alignment ----

@needs_golden
@pytest.mark.parametrize("level", tm.LEVELS)
def test_radgraph(gold, level):
    part, limit = gold["radgraph_reward"], gold["tolerances"]["radgraph"]
    got = tm.radgraph_rewards([p["prediction"] for p in part["pairs"]], [p["reference"] for p in part["pairs"]], level)
    names = ("f1", "precision", "recall")
    assert np.abs(got - [[p[level][name] for name in names] for p in part["pairs"]]).max() <= limit
    assert np.abs(got.mean(0) - [part["mean"][level][name] for name in names]).max() <= limit


def test_radgraph_lower_case():
    """Only "complete" looks past capitals, in the entity and in what it is related to, and only where there is a relation."""
    make = lambda word, place: [{"entities": {"1": {"tokens": word, "label": "OBS-DP", "relations": [["located_at", "2"]]},
                                              "2": {"tokens": place, "label": "ANAT-DP", "relations": []}}}]
    score = lambda level, *words: tm.radgraph_rewards(make(*words), make("edema", "lung"), level)[0, 0]
    assert score("complete", "Edema", "lung") == pytest.approx(1)
    assert score("complete", "edema", "Lung") == pytest.approx(0.5)      # the relation is the same, the lung itself is not
    assert score("partial", "Edema", "lung") == pytest.approx(0.5) and score("simple", "Edema", "Lung") == 0


@needs_golden
def test_selection(gold):
    part = gold["conditional_selection"]
    real, generated = part["real_rows"], part["synthetic_rows"]
    assert [real[n]["path"] for n in tm.unique_captions(real)] == part["after_caption_dedup"]
    for finding, want in part["expected"].items():
        kept, made = tm.select(real, generated, finding)
        assert [real[n]["path"] for n in kept] == want["real"] and [generated[n]["file"] for n in made] == want["synthetic"]
    assert tm.select(real, generated, "Fracture") == ([], [])


@needs_golden
def test_alignment(gold):
    part = gold["alignment"]
    assert tm.alignment_mean(part["scores_raw"]) == part["mean_of_rounded_rounded3"]
    assert tm.alignment_mean([0.0006, 0.0006, 0.0001]) == 0.001 != round(0.0013 / 3, 3), "each is rounded before the mean"


# ---- what is refused ----

def test_reports_and_references_must_be_about_the_same_images():
    assert tm.same_items({"b": "y", "a": "x"}, {"a": "1", "b": "2"}) == (["a", "b"], ["x", "y"], ["1", "2"])
    with pytest.raises(InputError, match="2 references and 1 reports.*without a report: b; without a reference: none"):
        tm.same_items({"a": "x"}, {"a": "1", "b": "2"})
    with pytest.raises(InputError, match="without a report: a, c, d and 1 more; without a reference: b"):
        tm.same_items({"b": "x"}, {"a": "1", "c": "2", "d": "", "e": ""})
    with pytest.raises(InputError, match="no report to score"):
        tm.same_items({}, {})
