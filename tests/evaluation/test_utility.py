"""evaluate.py utility: the four sets, intervals, and what it says of features that are made up."""
import json

import numpy as np
import pytest

import evaluate
from common.cli import InputError
from common.packed import Packed, Writer
from evaluation import utility
from evaluation.utility import Labelled, UtilityConfig, findings_of

pytest.importorskip("sklearn")
LINE = "utility --device cpu --dtype float32 --threads 1 --bootstrap 20 --seeds 2".split()


def made_up(n, rng, noise, flipped=0.0):
    """Features of which the first two say whether a finding is there, with some labels flipped."""
    there = rng.random((n, 2)) < 0.5
    x = np.concatenate([there + noise * rng.standard_normal((n, 2)),
                        rng.standard_normal((n, 6))], axis=1)
    shown = there ^ (rng.random((n, 2)) < flipped)
    found = [{name for name, is_there in zip("ab", row) if is_there} for row in shown]
    return Labelled(x.astype(np.float32), found, np.array([f"p{i // 2}" for i in range(n)]))


def scores(tmp_path, *sets):
    cfg = UtilityConfig(out=str(tmp_path / "u"), seeds=4, bootstrap=50)
    utility.score(cfg, sets, "made up", "not for clinical use")
    return json.loads((tmp_path / "u.json").read_text())


def test_good_synthetic_images_help_and_repeated_ones_do_not(tmp_path):
    rng = np.random.default_rng(0)
    result = scores(tmp_path, made_up(24, rng, 0.8), made_up(400, rng, 0.8), made_up(300, rng, 0.8))
    mean = {kind: row["mean"]["value"] for kind, row in result["scores"].items()}
    assert mean["real + synthetic"] > mean["real"] + 0.02
    assert abs(mean["real + repeated real"] - mean["real"]) < 0.02
    low, high = result["gain"]["interval"]
    assert 0 < low < result["gain"]["value"] < high
    assert (tmp_path / "u.md").exists()


def test_wrong_synthetic_images_do_harm(tmp_path):
    rng = np.random.default_rng(1)
    result = scores(tmp_path, made_up(40, rng, 0.5), made_up(400, rng, 0.5, flipped=0.5),
                    made_up(200, rng, 0.5))
    assert result["gain"]["value"] < 0
    assert result["scores"]["synthetic"]["mean"]["value"] < 0.7


def test_the_control_repeats_the_real_images_of_the_same_draw():
    rng = np.random.default_rng(2)
    real, synthetic = made_up(6, rng, 1.0), made_up(16, rng, 1.0)
    rows = {kind: utility.training_rows(kind, real, synthetic, np.random.default_rng(7))
            for kind in utility.SETS}
    of_real, nothing = rows["real"]
    assert len(nothing) == 0 and len(rows["synthetic"][0]) == 0
    both, drawn = rows["real + synthetic"]
    assert (both == of_real).all() and (drawn == rows["synthetic"][1]).all() and len(drawn) == 16
    repeated, nothing = rows["real + repeated real"]
    assert len(nothing) == 0 and len(repeated) == len(of_real) + 16
    assert set(repeated) == set(of_real) and (repeated[:len(of_real)] == of_real).all()


def test_patients_are_drawn_whole():
    subjects = np.array(["a", "a", "b", "c", "c", "c"])
    rows = utility.resampled(subjects, np.random.default_rng(3))
    drawn = subjects[rows]
    for name, size in (("a", 2), ("b", 1), ("c", 3)):
        assert (drawn == name).sum() % size == 0


def test_what_is_on_an_image():
    labels = {"Edema": 1.0, "Fracture": 0.0, "Nodule": -1.0}
    assert findings_of({"labels": labels}, grammar=False) == {"Edema"}
    row = {"labels": [["effusion", "left", "small"]], "report": "Left pneumothorax."}
    assert findings_of(row, grammar=True) == {"pneumothorax"}
    assert findings_of({"labels": {}, "report": "Left pneumothorax."}, grammar=False) == set()


def test_a_finding_that_all_have_is_left_out(tmp_path):
    rng = np.random.default_rng(4)
    sets = [made_up(30, rng, 1.0) for _ in range(3)]
    sets[1].found = [each | {"b"} for each in sets[1].found]
    result = scores(tmp_path, *sets)
    assert "b" not in result["scores"]["real"] and "b is left out" in result["left_out"][0]
    for each in sets:
        each.found = [set() for _ in each.found]
    with pytest.raises(InputError, match="no finding is there and not there"):
        scores(tmp_path, *sets)


def test_phantoms_from_end_to_end(tmp_path, capsys):
    out = tmp_path / "utility"
    assert not evaluate.main([*LINE, "--out", str(out), "--num-real", "24", "--num-synthetic", "24",
                              "--num-test", "24", "--steps", "1"])
    assert "real + repeated real" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "utility.json").read_text())["scores"]) == 4


def test_packed_data_sets(phantom, tmp_path):
    """The same data as real and as drawn, of which gen-64 is named: nothing can be gained."""
    out = tmp_path / "utility"
    data = str(phantom / "gen-64")
    assert not evaluate.main([*LINE, "--out", str(out), "--real", data, "--synthetic", data])
    result = json.loads((tmp_path / "utility.json").read_text())
    assert result["images"] == "24 real, 24 drawn, 2 to test on" and result["left_out"]


def test_bad_input(phantom, tmp_path):
    with pytest.raises(InputError, match="give both --real and --synthetic"):
        evaluate.main([*LINE, "--real", str(phantom)])
    with pytest.raises(InputError, match="no packed data set at"):
        evaluate.main([*LINE, "--real", str(tmp_path), "--synthetic", str(phantom),
                       "--out", str(tmp_path / "u")])
    with pytest.raises(InputError, match="prepare both in one size"):
        evaluate.main([*LINE, "--real", str(phantom / "gen-32"), "--synthetic",
                       str(phantom / "und-64"), "--out", str(tmp_path / "u")])


def test_reports_of_others_are_not_read_as_phantoms(phantom, tmp_path):
    old = Packed(phantom, "gen", 64, "train")
    with Writer(tmp_path / "gen-64", "gen", 64, {}) as new:
        for i, row in enumerate(old.rows):
            new.add(old.encoded(i), {**row, "source": "mimic", "labels": {}})
    with pytest.raises(InputError, match="has no labels"):
        evaluate.main([*LINE, "--real", str(tmp_path), "--synthetic", str(phantom),
                       "--out", str(tmp_path / "u")])
