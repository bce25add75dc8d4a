"""evaluation/text_metrics.py: the reference values, edge cases included, and what is refused."""
import numpy as np
import pytest

from common.cli import InputError
from evaluation import text_metrics as metrics


# ---- CheXbert F1 ----

@pytest.mark.parametrize("policy", metrics.POLICIES)
def test_chexbert_f1_is_the_official_one(golden_metrics, policy):
    golden = golden_metrics["chexbert_f1"]
    tolerance = golden_metrics["tolerances"]["chexbert_f1"]
    values, official = golden[policy], golden[policy]["official_formula"]
    assert metrics.LABELS == golden["order"] and metrics.FIVE == golden["five_indices"]
    codes = np.array(golden["reference"]), np.array(golden["prediction"])
    scores = metrics.chexbert_scores(*codes)
    assert metrics.chexbert_scores(*codes, rows=[0]) == metrics.chexbert_scores(
        codes[0][:1], codes[1][:1])
    for ours, theirs in (("micro_f1", "micro_f1_14"), ("macro_f1", "macro_f1_14"),
                         ("micro_f1_top5", "micro_f1_5"), ("macro_f1_top5", "macro_f1_5")):
        assert abs(scores[f"{policy}_{ours}"] - values[theirs]) <= tolerance

    details = metrics.chexbert_details(*codes)[policy]
    for label, finding in details["findings"].items():
        assert abs(finding["f1"] - values["per_class_f1"][label]) <= tolerance
        assert finding["support"] == values["support"][label]
    for ours, theirs in (("hits", "tp"), ("extras", "fp"), ("misses", "fn")):
        assert sum(counts[ours] for counts in details["findings"].values()) == values[theirs]
    assert details["examples"] == pytest.approx({
        "precision": official["ce_precision"], "recall": official["ce_recall"],
        "f1": values["example_f1_zero_division_0"]}, abs=tolerance)


# ---- BLEU, ROUGE-L ----

def test_bleu_is_the_official_one(golden_metrics):
    """Of reports, and of one token, no overlap, the text "nan"; no text at all has no score."""
    pytest.importorskip("nltk")
    cases = golden_metrics["report_text"]["edge_cases"]
    tokens, official = [], []
    for pair in golden_metrics["report_text"]["pairs"]:
        tokens.append((pair["prediction_tokens"], pair["reference_tokens"]))
        official.append([pair[name] for name in metrics.BLEU_WEIGHTS])
    for case in cases:
        # every case is one sentence, so these are the official tokens
        tokens.append([case[name].replace(":", " :").replace(".", " .").split()
                       for name in ("prediction", "reference")])
        values = case["bleu"] if case["bleu"] else dict.fromkeys(metrics.BLEU_WEIGHTS, np.nan)
        official.append([values[name] for name in metrics.BLEU_WEIGHTS])
    scores = metrics.bleu(*zip(*tokens))
    assert (np.isnan(scores) == np.isnan(official)).all()
    assert np.nanmax(np.abs(scores - official)) <= golden_metrics["tolerances"]["bleu"]


def test_tokens_are_the_official_ones(golden_metrics):
    nltk = pytest.importorskip("nltk")
    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        pytest.skip("Punkt's data is not here")
    for pair in golden_metrics["report_text"]["pairs"]:
        tokens = metrics.tokens([pair["prediction"], pair["reference"]])
        assert tokens == [pair["prediction_tokens"], pair["reference_tokens"]]


def test_rouge_l_is_the_official_one(golden_metrics):
    pytest.importorskip("rouge_score")
    pairs, cases = (golden_metrics["report_text"][name] for name in ("pairs", "edge_cases"))
    scores = metrics.rouge_l([item["prediction"] for item in pairs + cases],
                             [item["reference"] for item in pairs + cases])
    official = [pair["rougeL"]["fmeasure"] for pair in pairs] + [case["rougeL_f"] for case in cases]
    assert np.abs(scores - official).max() <= golden_metrics["tolerances"]["rougeL_per_pair"]


# ---- RadGraph F1 ----

@pytest.mark.parametrize("level", metrics.LEVELS)
def test_radgraph_f1_is_the_official_one(golden_metrics, level):
    pairs = golden_metrics["radgraph_reward"]["pairs"]
    rewards = metrics.radgraph_rewards([pair["prediction"] for pair in pairs],
                                       [pair["reference"] for pair in pairs], level)
    official = [[pair[level][name] for name in ("f1", "precision", "recall")] for pair in pairs]
    assert np.abs(rewards - official).max() <= golden_metrics["tolerances"]["radgraph"]


# ---- which images have a finding; alignment; which reports are compared ----

def test_images_of_a_finding(golden_metrics):
    golden = golden_metrics["conditional_selection"]
    real, generated = golden["real_rows"], golden["synthetic_rows"]
    unique = [real[number]["path"] for number in metrics.unique_captions(real)]
    assert unique == golden["after_caption_dedup"]
    for finding, expected in golden["expected"].items():
        chosen, matching = metrics.select(real, generated, finding)
        assert [real[number]["path"] for number in chosen] == expected["real"]
        assert [generated[number]["file"] for number in matching] == expected["synthetic"]
    assert metrics.select(real, generated, "Fracture") == ([], [])


def test_each_cosine_is_rounded_before_the_mean(golden_metrics):
    golden = golden_metrics["alignment"]
    assert metrics.alignment_mean(golden["scores_raw"]) == golden["mean_of_rounded_rounded3"]
    assert metrics.alignment_mean([0.0006, 0.0006, 0.0001]) == 0.001, "unrounded it would be 0"


def test_reports_and_references_must_be_of_the_same_images():
    ids, predictions, references = metrics.same_items({"b": "y", "a": "x"}, {"a": "1", "b": "2"})
    assert (ids, predictions, references) == (["a", "b"], ["x", "y"], ["1", "2"])
    with pytest.raises(InputError, match="2 references and 1 .* report: b; .* reference: nothing"):
        metrics.same_items({"a": "x"}, {"a": "1", "b": "2"})
    with pytest.raises(InputError, match="no report to score"):
        metrics.same_items({}, {})
