"""evaluate.py match: the list of a data set, the scores on phantoms, and their arithmetic."""
import csv
import json

import numpy as np
import pytest

import evaluate
from abilities.match import Match
from common.cli import InputError
from common.packed import Packed, Writer
from evaluation import match
from evaluation.phantom import Phantoms
from phantom import prepare

LINE = "match --device cpu --dtype float32 --threads 1".split()


def test_auroc_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.integers(0, 6, 9), rng.integers(0, 5, 7)
        expected = metrics.roc_auc_score([1] * 9 + [0] * 7, [*a, *b])
        assert match.auroc(a, b) == pytest.approx(expected)
    assert match.auroc(a, a[:0]) is None


def test_calibration_error_by_hand():
    """Bin 0.0-0.1: said 0.05, is 0.5. Bin 0.9-1.0: said 0.95, is 1."""
    p, there = np.array([0.05, 0.05, 0.95, 0.95]), np.array([0, 1, 1, 1], dtype=bool)
    assert match.calibration_error(p, there) == pytest.approx(0.5 * 0.45 + 0.5 * 0.05)
    assert match.calibration_error(np.array([1.0]), np.array([True])) == 0


@pytest.fixture(scope="module")
def swapped(tmp_path_factory):
    """A data set of 12 phantoms of the demo's size, of which two have each other's report."""
    root = tmp_path_factory.mktemp("pairs")
    prepare.main(["--out", str(root / "right"), "--train", "12", "--val", "1", "--test", "1",
                  "--workers", "1", "--seed", "5", "--vocab-size", "400"])
    old = Packed(root / "right", "und", 128, "train")
    reports = {row["id"]: row["report"] for row in old.rows}
    a, b = [row["id"] for row in old.rows if "effusion on the" in row["report"]
            or "pleural effusion." in row["report"]][:2]
    reports[a], reports[b] = reports[b], reports[a]
    with Writer(root / "und-128", "und", 128, {}) as new:
        for i, row in enumerate(old.rows):
            new.add(old.encoded(i), {**row, "report": reports[row["id"]]})
    return root, {a, b}


def test_swapped_reports_come_first(swapped, tmp_path, capsys):
    root, wrong = swapped
    out = tmp_path / "list"
    assert not evaluate.main([*LINE, "--data", str(root), "--out", str(out), "--show", "4"])
    assert "the most suspicious first" in capsys.readouterr().out
    with open(out / "suspicious.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows[:2]} == wrong and len(rows) == 12
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores) and "(" in rows[0]["least_likely_words"]
    assert (out / "suspicious.png").exists()

    # again: nothing is computed anew; other settings are refused
    before = (out / "suspicious.csv").read_bytes()
    assert not evaluate.main([*LINE, "--data", str(root), "--out", str(out), "--show", "4"])
    assert (out / "suspicious.csv").read_bytes() == before
    with pytest.raises(InputError, match="other settings"):
        evaluate.main([*LINE, "--data", str(root), "--out", str(out), "--limit", "3"])


def test_scores_on_phantoms(tmp_path, capsys):
    """Eight phantoms: every true report is preferred; a table, JSON and a plot."""
    out = tmp_path / "match"
    assert not evaluate.main([*LINE, "--out", str(out), "--num", "8", "--drawer-num", "1",
                              "--bootstrap", "20"])
    printed = capsys.readouterr().out
    assert "true pairs against" in printed and "AUROC, drawing" in printed
    result = json.loads((tmp_path / "match.json").read_text())
    scores = result["scores"]["pairs"]
    assert scores["changed, over the model's own report"]["preferred"]["value"] == 1.0
    assert scores["shuffled, over the model's own report"]["auroc"]["value"] > 0.95
    assert "not for clinical use" in result["notice"]
    pytest.importorskip("matplotlib")
    assert (tmp_path / "match.png").exists()


def test_one_phantom_alone_has_no_wrong_report():
    phantoms = Phantoms([None], ["No edema."], [frozenset()])
    pair = Match("", 0.0, -1.0, 0.0, [])
    found = {name: [pair] for name in ("true", "shuffled", "changed")}
    scores = match.pair_scores(match.MatchConfig(num=1, bootstrap=5), phantoms, found)
    assert scores["shuffled, likelihood a token"]["preferred"]["value"] is None
    assert scores["changed, likelihood a token"]["preferred"]["value"] == 0


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="no packed data set at"):
        evaluate.main([*LINE, "--data", str(tmp_path), "--out", str(tmp_path / "o")])
    with pytest.raises(InputError, match="must be at least 1"):
        evaluate.main([*LINE, "--num", "0"])
