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
    (None, "has no log.jsonl"),
    ([], "is empty"),
    ([{"step": 1, "mse": 1.0}, "{broken\n"], "line 2 of"),
    (["[1]\n"], "line 1 of"),
    (['{"mse": 1}\n'], "line 1 of"),
])
def test_a_bad_log_ends_in_one_sentence(tmp_path, lines, sentence):
    run = tmp_path / "a" if lines is None else write_run(tmp_path / "a", *lines)
    with pytest.raises(InputError, match=sentence):
        curves.read(run)


def test_smoothing_is_the_mean_of_neighbours():
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    np.testing.assert_allclose(curves.smooth(values, 3), [1.5, 1.5, 3.0, 5.0, 5.0])
    np.testing.assert_allclose(curves.smooth(np.ones(9), 4), 1.0)


def test_runs_are_named_by_what_tells_them_apart(tmp_path):
    a, b = tmp_path / "a/gen", tmp_path / "b/gen"
    assert list(curves.names_of([a, b, b]).values()) == ["a/gen", "b/gen"]
    assert list(curves.names_of([a]).values()) == ["gen"]


@pytest.mark.parametrize("quantity, values, logarithmic", [
    ("mse", [2.0, 0.1], True), ("mse", [0.3, 0.2], False),
    ("repa", [-0.1, -0.9], False), ("lr", [1e-3, 1e-9], False),
])
def test_losses_that_fall_far_get_a_logarithmic_axis(quantity, values, logarithmic):
    assert curves.wants_log(quantity, [np.array(values)]) == logarithmic


def test_a_picture_of_two_runs(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    lines = [{"step": n, "mse": 2 / n, "lr": 0.1, "val_mse_bins": [1 / n, 2 / n]}
             for n in range(1, 99)]
    first, second = write_run(tmp_path / "a", *lines), write_run(tmp_path / "b", lines[0])
    out = tmp_path / "curves.png"
    curves.main([str(first), str(second), "--out", str(out)])
    assert "mse, val_mse_bins, lr of 2 run(s)" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > 3 * picture.height           # three panels in a row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "curves.png"]


def test_without_matplotlib_a_sentence_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        curves.main([str(write_run(tmp_path / "a", {"step": 1, "mse": 1.0}))])


@pytest.mark.parametrize("argv", [[], ["--out", "curves.png"]])
def test_without_a_run_there_is_nothing_to_draw(argv):
    with pytest.raises(InputError, match="name the directories"):
        curves.main(argv)
