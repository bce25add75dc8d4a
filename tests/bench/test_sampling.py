"""bench/sampling.py, training/curves.py and bench/training.py: what goes into the figures, on networks of no size. Speed itself is not tested."""
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from bench import sampling as bench
from training import curves
from bench import training as speed
from attention import Cache
from common.processes import InputError

TINY = speed.Size(n_embd=64, n_layer=2, n_head=2, n_inner=96, grid=4, B=2, text=16)


def run(directory, *lines):
    directory.mkdir(parents=True)
    (directory / "log.jsonl").write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n" for line in lines))
    return directory


def test_read_a_log(tmp_path):
    """Losses that were no number leave a gap, names of skipped samples no curve, a line still being written nothing."""
    path = run(tmp_path / "a", {"step": 1, "mse": 2.0, "lr": 0.1}, {"step": 2, "mse": None, "lr": 0.1, "skipped": ["x"]},
               {"step": 2, "val_mse": 1.5, "val_mse_bins": [1.0, 2.0]}, '{"step": 3, "ms')
    log = curves.read(path)
    assert log.keys() == {"mse", "lr", "val_mse", "val_mse_bins"}
    assert log["mse"][0].tolist() == [1, 2] and log["mse"][1][0] == 2.0 and np.isnan(log["mse"][1][1])
    assert log["val_mse_bins"][1].tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("lines, sentence", [
    (None, "has no log.jsonl"), ([], "is empty"), ([{"step": 1, "mse": 1.0}, "{broken\n"], "line 2 of"),
    (["[1]\n"], "line 1 of"), (['{"mse": 1}\n'], "line 1 of")])
def test_bad_logs_end_in_one_sentence(tmp_path, lines, sentence):
    directory = tmp_path / "a" if lines is None else run(tmp_path / "a", *lines)
    with pytest.raises(InputError, match=sentence):
        curves.read(directory)


def test_smooth_is_the_mean_of_neighbours():
    values = np.array([1.0, 2.0, np.nan, 4.0, 6.0])
    np.testing.assert_allclose(curves.smooth(values, 3), [1.5, 1.5, 3.0, 5.0, 5.0])
    np.testing.assert_allclose(curves.smooth(np.ones(9), 4), 1.0)


def test_runs_are_told_apart(tmp_path):
    names = curves.names_of([tmp_path / "a/gen", tmp_path / "b/gen", tmp_path / "b/gen"])
    assert sorted(names.values()) == ["a/gen", "b/gen"]
    assert list(curves.names_of([tmp_path / "a/gen"]).values()) == ["gen"]


def test_losses_that_fall_far_get_a_logarithmic_axis():
    assert curves.wants_log("mse", [np.array([2.0, 0.1])]) and not curves.wants_log("mse", [np.array([0.3, 0.2])])
    assert not curves.wants_log("repa", [np.array([-0.1, -0.9])]) and not curves.wants_log("lr", [np.array([1e-3, 1e-9])])


def test_plot(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    lines = [{"step": n, "mse": 2 / n, "lr": 0.1, "val_mse_bins": [1 / n, 2 / n]} for n in range(1, 99)]
    out = tmp_path / "curves.png"
    bench.main(["plot", str(run(tmp_path / "a", *lines)), str(run(tmp_path / "b", *lines[:1])), "--out", str(out)])
    assert "mse, val_mse_bins, lr of 2 run(s)" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.width > 3 * picture.height        # three panels in a row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "curves.png"]


def test_plot_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match="pip install matplotlib"):
        bench.main(["plot", str(run(tmp_path / "a", {"step": 1, "mse": 1.0}))])


@pytest.mark.parametrize("argv, sentence", [([], "say what to measure"), (["spele"], "say what to measure"), (["plot"], "name the")])
def test_bad_commands(argv, sentence):
    with pytest.raises(InputError, match=sentence):
        bench.main(argv)


def test_peak_of_tensors():
    """Two tensors of 1 MB at once, a third after they are gone."""
    def call():
        a, b = torch.empty(2**20, dtype=torch.uint8), torch.empty(2**20, dtype=torch.uint8)
        del a, b
        torch.empty(2**20, dtype=torch.uint8)
    assert speed.peak_bytes(call) == 2 * 2**20


def test_frozen_text_costs_no_copy(monkeypatch):
    """More text costs its keys and values once and the attention weights; joined with the block's they cost it again."""
    size = speed.Size(n_embd=256, n_layer=4, n_head=1, n_inner=256, grid=8, B=2, text=16)
    ratio = speed.prefix(size, 64, 1, "float32")["memory_ratio"]
    assert 1.0 < ratio < 1.7
    parts = Cache.read
    joined = lambda self, *args: [[torch.cat(part, 2)] for part in parts(self, *args)]
    monkeypatch.setattr(Cache, "read", joined)
    assert speed.prefix(size, 64, 1, "float32")["memory_ratio"] > ratio + 0.6


def test_data_and_processes():
    """They run, and give what they promise."""
    found = speed.pipeline(64, 1, 1, TINY, "float32")
    assert all(found[form]["images_s"] > 0 and 0 <= found[form]["waits"] < 1 for form in ("JPEG", "PNG"))
    assert speed.processes(TINY, 1, "float32")["ratio"] > 0 and not torch.distributed.is_initialized()


def test_shares_of_a_step_add_up():
    found = speed.utilisation(TINY, 1, "float32")
    assert sum(found["where"].values()) == pytest.approx(1) and found["share"] > found["share_with_update"] > 0
