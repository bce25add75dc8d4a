"""`evaluate.py und`: every test image is read with its own question, and scored if it can be."""
import numpy as np
import pytest

import sample
import weights
from common import worklist
from common.cli import InputError
from common.images import NOTICE
from evaluation import features, und
from helpers import ROOT
from phantom.facts import FINDINGS


def test_a_report_is_what_sample_writes_for_this_image_and_question(
        phantom, run, und_run, result):
    rows = worklist.read_rows(und_run / "reports.jsonl")
    images = features.PackedImages(phantom / "und-64", "train")
    assert set(rows) == set(images.ids[:12])
    model, _, tokenizer = weights.load(run)
    name = images.ids[7]
    alone = sample.generate_reports(model, tokenizer, np.array(images.read(name))[None],
                                    images.rows[name]["prompt"], max_tokens=12, progress=False)
    assert rows[name]["report"] == alone[0]

    scores = result(und_run)["scores"]["understanding"]
    assert {"micro", "macro", "exact", *FINDINGS} <= scores.keys()
    for number in scores.values():
        low, high = number["interval"]
        assert low <= number["value"] <= high and number["n"] == 12
    text = (und_run / "result.md").read_text()
    assert "RadGraph F1 is left out" in text and NOTICE in text


def test_a_picture_that_cannot_be_read_is_named_and_not_scored(
        words, und_run, damaged, tmp_path, result, capsys):
    """Neither with each row's own question nor with one for all, of fewer images."""
    root, name = damaged("und-64", 5)
    out = tmp_path / "out"
    assert und.main(words("und", out, "--prompt", "What is there?", "--limit", 6, data=root)) == 1
    assert result(out)["scores"]["understanding"]["micro"]["n"] == 5
    assert '"prompt": "What is there?"' in (out / "settings.json").read_text()
    assert und.main(words("und", out, "--overwrite", data=root)) == 1
    page = result(out)
    assert list(page["failures"]) == [name]
    assert page["scores"]["understanding"]["micro"]["n"] == 11
    assert f"error: {name}" in capsys.readouterr().err
    rows = worklist.read_rows(out / "reports.jsonl")
    others = worklist.read_rows(und_run / "reports.jsonl")
    assert "cannot be read" in rows[name]["error"] and "report" not in rows[name]
    del rows[name], others[name]
    assert rows == others


def test_weights_in_int8_read_and_are_not_mixed_with_others(words, und_run, tmp_path, result):
    out = tmp_path / "out"
    line = words("und", out, "--limit", 4)
    assert und.main([*line, "--weights", "int8"]) == 0
    assert result(out)["settings"]["weights"] == "int8"
    with pytest.raises(InputError, match="other settings .weights."):
        und.main(line)
    with pytest.raises(InputError, match="--weights"):
        und.main([*line, "--weights", "int4"])


def test_a_wrong_chexbert_stops_the_run_before_the_reading(
        words, altered, tmp_path, monkeypatch):
    def no_phantom(n, row):
        row["source"] = "openi"
    monkeypatch.setattr(sample, "generate_reports", None)
    (tmp_path / "chexbert").mkdir()
    line = words("und", tmp_path / "out", "--chexbert", tmp_path / "chexbert",
                 data=altered("und-64", no_phantom))
    with pytest.raises(InputError, match="chexbert"):
        und.main(line)


@pytest.mark.parametrize("options, sentence", [
    ("--checkpoint {tmp}/no", "no checkpoint|there is no"),
    ("--checkpoint {demo} --data {tmp}", "there is no packed data set"),
    ("--batch 0", "--batch must be at least 1"),
    ("--limit -1", "--limit, --bootstrap and --max-tokens must be 0 or more"),
])
def test_bad_input_is_one_sentence(tmp_path, options, sentence):
    options = options.format(tmp=tmp_path, demo=ROOT / "demo").split()
    with pytest.raises(InputError, match=sentence):
        und.main([*options, "--device", "cpu"])
