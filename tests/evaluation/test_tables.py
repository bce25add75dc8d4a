"""evaluation/tables.py: the paper's rows are typed right, and stand only where they belong."""
import numpy as np
import pytest
from PIL import Image

from common.cli import report_failures
from common.images import NOTICE
from evaluation import image_metrics, tables, text_metrics

RAD_DINO, TOWER = "rad-dino, benchmark, 00", "vision tower, 00"
NUMBER = {"value": 50.1234, "interval": [40, 60], "n": 4352}
ROW = {"fd": NUMBER, "n_real": 700, "n_generated": 699, "few": True}


def test_the_paper_s_rows():
    """The paper's text draws conclusions from its tables: they must follow from these rows."""
    assert all(len(row) == len(tables.GENERATION) for row in tables.TABLE3.values())
    assert all(len(row) == len(tables.FINDINGS) == 14 for row in tables.TABLE4.values())
    assert all(len(half) == len(tables.F1) for row in tables.TABLE2.values() for half in row)
    improvement = (71.243 - tables.TABLE3["UniX, 512"][0]) / 71.243
    assert improvement == pytest.approx(0.242, abs=1e-3)
    assert tables.TABLE2["UniX 1.5B"][1][0] / 36.0 == pytest.approx(1.461, abs=1e-3)
    assert tables.paper_fd("UniX, 512", "Enlarged Cardiomediastinum") == 142.23


@pytest.mark.parametrize("number, text", [
    (None, "–"),
    (NUMBER, "50.123 [40.000, 60.000]"),
    ({"value": -1e-5, "interval": [-2e-5, 0.1], "n": 5}, "0.000 [0.000, 0.100]"),   # no -0.000
    ({"value": 0.5, "interval": None, "n": 5}, "0.500"),
])
def test_a_number_as_text(number, text):
    assert tables.shown(number) == text


def test_tables_2_to_4():
    """Our row first; the paper's rows stand beside numbers of RAD-DINO alone."""
    codes = np.eye(14, dtype=int)[:5]
    values = text_metrics.chexbert_scores(codes, codes)
    intervals = {"uncertain_as_negative_micro_f1": [0.5, 1.0]}
    text = "\n".join(tables.understanding(tables.numbers(values, intervals, 5)))
    assert "**this model** | 100.0 [50.0, 100.0]" in text
    assert "| UniX 1.5B (paper) | 53.6 | 56.6 | 33.2 | 47.3 |" in text
    assert "| LLM-CXR 12B (paper) | 36.0 | – | 21.1 | – |" in text

    scores = {"1": dict.fromkeys(image_metrics.NAMES, NUMBER),
              "4": dict.fromkeys(tables.GENERATION, NUMBER)}
    text = "\n".join(tables.generation(scores, RAD_DINO))
    cell = "50.123 [40.000, 60.000]"
    assert f"| **this model**, 1 block | {cell} | {cell} | – | {cell} |" in text
    assert f"| **this model**, 4 blocks | {cell} | {cell} | {cell} |" in text
    assert "| UniX, 512 (paper) | 54.022 | 0.024 | 0.635 |" in text
    text = "\n".join(tables.findings({"Edema": ROW, "Nodule": ROW}, RAD_DINO))
    cells = "| 700 | 699 | 50.12 [40.00, 60.00] (†) |"
    assert f"| Edema {cells} 64.36 | 73.88 | 67.84 | 83.18 |" in text
    assert f"| Nodule {cells} – |" in text

    blocks = tables.generation(scores, TOWER) + tables.findings({"Edema": ROW}, TOWER)
    assert "(paper)" not in "\n".join(blocks)
    assert tables.other_features(RAD_DINO) == []
    assert "by the benchmark's way" in tables.other_features("rad-dino, straight, 00")[0]


def test_a_page_says_what_is_missing_and_what_failed(tmp_path):
    text = tables.write(tmp_path / "new" / "x", "Reading", {"cycle": {"micro": NUMBER}},
                        {"steps": 4, "prompt": ""}, ["BLEU is left out."], {"a": "torn"},
                        warnings=["few images"])
    assert text == (tmp_path / "new" / "x.md").read_text()
    for part in ("# Reading", "| micro | 50.123", "## Left out\n\n- BLEU is left out.",
                 "## Mind\n\n- few images", "## Failed: 1, not scored\n\n- a: torn",
                 "Settings: steps 4."):
        assert part in text


def test_what_failed_is_one_sentence_each_and_an_exit_code(capsys):
    sentences = tables.named({"a": "torn", "b": "empty"})
    assert report_failures([], results=0) == 0
    assert report_failures(sentences, results=3) == 1 and report_failures(sentences, results=0) == 2
    assert capsys.readouterr().err == 2 * "error: a: torn\nerror: b: empty\n"


def test_plots(tmp_path):
    pytest.importorskip("matplotlib")
    for names, legend in ((["Edema", "No Finding"], ["UniX, 512 (paper)", "Sana (paper)"]),
                          (["effusion"], [])):      # the paper has no phantoms
        bars = tables.bars({name: ROW for name in names}, RAD_DINO)
        labels = [text.get_text() for text in bars.axes[0].get_legend().get_texts()]
        assert labels == ["this model", *legend]
    curves = tables.curves([
        {"steps": steps, "cfg": cfg, "fd": {"value": 1 / steps}, "cycle_F1": {"value": 1}}
        for steps in (1, 2, 4) for cfg in (1.0, 2.0)])
    assert [axes.get_title() for axes in curves.axes] == ["fd", "cycle F1"]
    tables.save_figure(curves, tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").text["Description"] == NOTICE
