"""training/curves.py: logs are read as they are, runs are told apart, the picture is drawn."""
import json
import sys

import numpy as np
import pytest
from PIL import Image

from common.cli import InputError
from training import curves


def write_run(directory, *lines):
    """A run directory whose log has these lines: dictionaries, or text as it is."""
    directory.mkdir(parents=True)
    text = "".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines)
    (directory / "log.jsonl").write_text(text)
    return directory


def test_a_log_is_read_by_quantity(tmp_path):
    """A loss that was no number is a gap; names of samples and a torn last line are left out."""
    run = write_run(
        tmp_path / "a",
        {"step": 1, "mse": 2.0, "lr": 0.1},
        {"step": 2, "mse": None, "lr": 0.1, "skipped": ["x"]},
        {"step": 2, "val_mse": 1.5, "val_mse_bins": [1.0, 2.0]},
        '{"step": 3, "ms')
    log = curves.read(run)
    assert log.keys() == {"mse", "lr", "val_mse", "val_mse_bins"}
    steps, values = log["mse"]
    assert steps.tolist() == [1, 2] and values[0] == 2.0 and np.isnan(values[1])
    assert log["val_mse_bins"][1].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("lines, sentence", [
    ([], "is empty"), ([{"step": 1, "mse": 1.0}, "{broken\n"], "line 2 of"),
    (["[1]\n"], "line 1 of"), (['{"mse": 1}\n'], "line 1 of")])
def test_a_bad_log_ends_in_one_sentence(tmp_path, lines, sentence):
    with pytest.raises(InputError, match=sentence):
        curves.read(write_run(tmp_path / "a", *lines))


def test_without_runs_logs_or_matplotlib_a_sentence_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="name the directories"):
        curves.main(["--out", "curves.png"])
    with pytest.raises(InputError, match="has no log.jsonl"):
        curves.main([str(tmp_path / "nowhere")])
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        curves.main([str(write_run(tmp_path / "a", {"step": 1, "mse": 1.0}))])


def test_smoothing_is_the_mean_of_neighbours():
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    np.testing.assert_allclose(curves.smooth(values, 3), [1.5, 1.5, 3.0, 5.0, 5.0])
    np.testing.assert_allclose(curves.smooth(np.ones(9), 4), 1.0)


@pytest.mark.parametrize("quantity, values, logarithmic", [
    ("mse", [2.0, 0.1], True), ("mse", [0.3, 0.2], False),
    ("repa", [-0.1, -0.9], False), ("lr", [1e-3, 1e-9], False)])
def test_losses_that_fall_far_get_a_logarithmic_axis(quantity, values, logarithmic):
    assert curves.wants_log(quantity, [np.array(values)]) == logarithmic


def test_a_picture_of_two_runs(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    lines = [{"step": n, "mse": 2 / n, "lr": 0.1, "val_mse_bins": [1 / n, 2 / n]}
             for n in range(1, 99)]
    first, second = write_run(tmp_path / "a/gen", *lines), write_run(tmp_path / "b/gen", lines[0])
    assert list(curves.names_of([first, second, second]).values()) == ["a/gen", "b/gen"]
    out = tmp_path / "curves.png"
    curves.main([str(first), str(second), "--out", str(out)])
    assert "mse, val_mse_bins, lr of 2 run(s)" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > 3 * picture.height           # three panels in a row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "curves.png"]
