"""evaluate.py explain: cases of phantoms, and what is written about them."""
import json

import numpy as np
import pytest

import evaluate
from common.cli import InputError
from evaluation.places import ExplainScoreConfig, cases_of

LINE = "explain --device cpu --dtype float32 --threads 1 --noises 1 --bootstrap 20".split()


def test_a_case_lies_where_its_finding_is_drawn():
    """On the side that the statement names (left of the picture is the patient's right)."""
    for case in cases_of(ExplainScoreConfig(), 128, "test", 10):
        _, columns = np.nonzero(case.place)
        side = "left" if " left" in case.statement.lower() or "Left" in case.statement else "right"
        assert (columns.mean() > 64) == (side == "left")
        assert 0 < case.place.mean() < 0.5


def test_scores_and_pictures(tmp_path, capsys):
    out = tmp_path / "explain"
    assert not evaluate.main([*LINE, "--num", "4", "--validation", "3", "--out", str(out)])
    assert "velocities, decoded" in capsys.readouterr().out
    result = json.loads((tmp_path / "explain.json").read_text())
    hits = {name: row["hit"]["all"]["value"] for name, row in result["scores"].items()}
    assert hits["velocities, decoded"] > hits["chance"] and len(hits) == 6
    assert (tmp_path / "explain-examples.png").exists()


def test_times_are_chosen_on_validation_phantoms(tmp_path, capsys):
    assert not evaluate.main([*LINE, "--choose", "--validation", "2", "--out",
                              str(tmp_path / "explain")])
    lines = capsys.readouterr().out.splitlines()
    assert "| 0.3, 0.5 |" in "\n".join(lines) and "validation phantoms" in lines[-1]


def test_phantoms_without_findings(tmp_path):
    with pytest.raises(InputError, match="no finding with a place"):
        cases_of(ExplainScoreConfig(data_seed=0), 64, "test", 1)
    with pytest.raises(InputError, match="take more of them, --validation"):
        cases_of(ExplainScoreConfig(data_seed=0), 64, "val", 0)
