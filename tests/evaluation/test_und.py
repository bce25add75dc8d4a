"""`evaluate.py und`: every test image is read with its own question, and scored if it can be."""
import numpy as np
import pytest

import sample
import weights
from common.cli import InputError
from common.images import NOTICE
from evaluation import chexbert, features, text_metrics, und, worklist
from helpers import ROOT
from phantom.facts import FINDINGS

# scores that need packages which a test machine may not have
OPTIONAL = ("BLEU", "ROUGE", "RadGraph", "alignment", "plots")


def test_a_report_is_what_sample_writes_for_this_image_and_question(phantom, run, und_run):
    rows = worklist.read_rows(und_run / "reports.jsonl")
    images = features.PackedImages(phantom / "und-64", "train")
    assert rows.keys() == images.rows.keys() and len(rows) == 24
    model, _, tokenizer = weights.load(run)
    name = images.ids[7]
    picture = np.array(images.read(name))[None]
    alone = sample.generate_reports(
        model, tokenizer, picture, images.rows[name]["prompt"], max_tokens=12, progress=False)
    assert rows[name]["report"] == alone[0]


def test_the_result_has_every_score_with_its_interval(und_run, result):
    page = result(und_run)
    scores = page["scores"]["understanding"]
    assert {"micro", "macro", "exact", *FINDINGS} <= scores.keys()
    assert scores["micro"]["n"] == 24
    for number in scores.values():
        low, high = number["interval"]
        assert low <= number["value"] <= high
    assert all(sentence.startswith(OPTIONAL) for sentence in page["left_out"])
    assert page["notice"] == NOTICE and page["settings"]["checkpoint"].startswith("run")
    text = (und_run / "result.md").read_text()
    assert "RadGraph F1 is left out" in text and NOTICE in text


def test_one_question_for_all_and_fewer_images(words, tmp_path, result):
    out = tmp_path / "out"
    assert und.main(words("und", out, "--prompt", "What is there?", "--limit", 5)) == 0
    assert result(out)["scores"]["understanding"]["micro"]["n"] == 5
    assert '"prompt": "What is there?"' in (out / "settings.json").read_text()


def test_a_picture_that_cannot_be_read_is_named_and_not_scored(
        words, und_run, damaged, tmp_path, result, capsys):
    root, name = damaged("und-64", 5)
    out = tmp_path / "out"
    assert und.main(words("und", out, data=root)) == 1, "the exit code says that something failed"
    page = result(out)
    assert list(page["failures"]) == [name]
    assert page["scores"]["understanding"]["micro"]["n"] == 23
    assert f"error: {name}" in capsys.readouterr().err
    assert "Failed: 1, not scored" in (out / "result.md").read_text()

    rows = worklist.read_rows(out / "reports.jsonl")
    others = worklist.read_rows(und_run / "reports.jsonl")
    assert "cannot be read" in rows[name]["error"] and "report" not in rows[name]
    del rows[name], others[name]
    assert rows == others


def test_radiology_reports_are_scored_by_chexbert(
        words, und_run, altered, chexbert_folder, tmp_path, result, monkeypatch):
    def no_phantom(n, row):
        row["source"] = "openi"
    root = altered("und-64", no_phantom)
    out = tmp_path / "out"
    assert und.main(words("und", out, "--chexbert", chexbert_folder, data=root)) == 0
    model = chexbert.load(chexbert_folder)
    rows = worklist.read_rows(out / "reports.jsonl")
    images = features.PackedImages(root / "und-64", "train")
    references = model.label([images.rows[name]["report"] for name in rows], progress=False)
    predictions = model.label([row["report"] for row in rows.values()], progress=False)
    wanted = text_metrics.chexbert_scores(references, predictions)
    page = result(out)
    for name, value in wanted.items():
        assert page["scores"]["understanding"][name]["value"] == pytest.approx(value)
    assert page["details"].keys() == text_metrics.POLICIES.keys()

    # a wrong CheXbert stops the run before the reading
    monkeypatch.setattr(sample, "generate_reports", None)
    (tmp_path / "chexbert").mkdir()
    with pytest.raises(InputError, match="chexbert"):
        und.main(words("und", tmp_path / "new", "--chexbert", tmp_path / "chexbert", data=root))


@pytest.mark.parametrize("options, sentence", [
    (["--checkpoint", "{tmp}/no"], "no checkpoint|there is no"),
    (["--checkpoint", "{demo}", "--data", "{tmp}"], "there is no packed data set"),
    (["--batch", "0"], "--batch must be at least 1"),
    (["--limit", "-1"], "--limit, --bootstrap and --max-tokens must be 0 or more"),
    (["--limt", "3"], "the nearest is --limit"),
])
def test_bad_input_is_one_sentence(tmp_path, options, sentence):
    words = [word.format(tmp=tmp_path, demo=ROOT / "demo") for word in options]
    with pytest.raises(InputError, match=sentence):
        und.main([*words, "--device", "cpu"])
