"""`evaluate.py phantom`: the weights of demo/ read and draw phantoms that they have never seen."""
import json

import pytest
from PIL import Image

from common.cli import InputError
from evaluation import phantom


def test_the_model_of_the_demo_reads_and_draws_phantoms(tmp_path, capsys):
    out = tmp_path / "score"
    phantom.main(["--num", "14", "--steps", "4", "--bootstrap", "2", "--show", "2",
                  "--out", str(out), "--device", "cpu"])
    page = json.loads((tmp_path / "score.json").read_text())
    scores = page["scores"]
    assert scores["report"]["micro"] > 0.95 and scores["all_normal"]["micro"] == 0
    assert scores["cycle"]["micro"] > 0.8
    low, high = scores["report"]["intervals"]["micro"]
    assert low <= scores["report"]["micro"] <= high

    # the autoencoder loses something, drawing more; other phantoms are at a distance, too
    fd = {name: numbers["fd"]["value"] for name, numbers in page["images"].items()}
    assert 0 < fd["vae_ceiling"] < fd["generated"] and fd["vae_ceiling"] < fd["other_real"]
    assert "cycle / ceiling" in capsys.readouterr().out
    assert page["settings"]["checkpoint"] == "demo", "not where it lies"
    assert "not for clinical use" in Image.open(tmp_path / "score.png").text["notice"]


def test_more_steps_draw_better_phantoms(tmp_path):
    phantom.main(["--num", "12", "--sweep", "steps=1,3", "--bootstrap", "0",
                  "--out", str(tmp_path / "x"), "--device", "cpu"])
    few, more = json.loads((tmp_path / "x.json").read_text())["sweep"]
    assert (few["steps"], few["cfg"]) == (1, 2.0) and (more["steps"], more["cfg"]) == (3, 2.0)
    assert few["fd"]["value"] > more["fd"]["value"]


@pytest.mark.parametrize("options, sentence", [
    (["--nun", "3"], "the nearest is --num"),
    (["--num", "0"], "--num and --show must be at least 1"),
    (["--batch", "0"], "--batch must be at least 1"),
    (["--num", "3", "--sweep", "steps=1"], "--num must be 6 or more"),
])
def test_bad_input_is_one_sentence(options, sentence):
    with pytest.raises(InputError, match=sentence):
        phantom.main(options)
