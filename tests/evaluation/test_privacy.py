"""`evaluate.py privacy`: a generated image that is a training image is found and shown."""
import json

import numpy as np
import pytest
from PIL import Image

from common.cli import InputError
from common.images import NOTICE
from evaluation import features, privacy


def test_a_copy_is_found_and_shown(feature_files, tmp_path, capsys):
    generated = features.load(feature_files / "made.safetensors")
    train = features.load(feature_files / "train.safetensors")
    generated.x[4] = train.x[17] + 1e-3
    features.save(tmp_path / "copied.safetensors", generated)
    privacy.main(["--generated", str(tmp_path / "copied.safetensors"),
                  "--train", str(feature_files / "train.safetensors"),
                  "--held-out", str(feature_files / "held.safetensors"),
                  "--out", str(tmp_path / "out"), "--show", "3", "--bootstrap", "20"])
    page = json.loads((tmp_path / "out.json").read_text())
    closest, *others = page["closest"]
    assert closest["generated"] == "m04" and closest["train"] == train.ids[17]
    assert closest["held_out_nearer"] == 0 and len(others) == 2
    assert page["quantiles"]["generated"][0] == closest["distance"]
    assert Image.open(tmp_path / "out.png").text["notice"] == NOTICE
    assert "it may show real patients" in capsys.readouterr().out


def test_the_share_that_is_too_near():
    """Held-out distances are 0.01 to 1.00, so 95 % of them lie above 0.0595."""
    reference = np.arange(1, 101) / 100
    distances = np.array([0.001, 0.05, 0.5, 0.9])
    scores = privacy.score(distances, reference, replicates=50)
    assert scores["below_5"]["value"] == 0.5 and scores["below_1"]["value"] == 0.25
    low, high = scores["below_5"]["interval"]
    assert low <= 0.5 <= high
    assert scores["generated_median"]["value"] == pytest.approx(0.275)
    assert scores["held_out_smallest"] == {"value": 0.01, "interval": None, "n": 100}


def test_bad_input_is_one_sentence(feature_files, tmp_path):
    files = {name: str(feature_files / f"{name}.safetensors") for name in ("made", "train", "held")}
    with pytest.raises(InputError, match="three feature files are needed"):
        privacy.main(["--generated", files["made"], "--train", files["train"]])
    with pytest.raises(InputError, match="24 images are in --train and in --held-out"):
        privacy.main(["--generated", files["made"], "--train", files["train"],
                      "--held-out", files["train"]])
    made = features.load(files["made"])
    made.source = str(tmp_path / "gone")
    features.save(tmp_path / "gone.safetensors", made)
    with pytest.raises(InputError, match="no folder of images at .*gone"):
        privacy.main(["--generated", str(tmp_path / "gone.safetensors"), "--train", files["train"],
                      "--held-out", files["held"], "--out", str(tmp_path / "out")])
    assert not list(tmp_path.glob("out*"))
