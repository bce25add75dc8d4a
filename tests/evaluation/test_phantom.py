"""`evaluate.py phantom`: the weights of demo/ read and draw phantoms that they have never seen."""
import json

import numpy as np
import pytest
from PIL import Image

import sample
from common.cli import InputError
from evaluation import compare, phantom, privacy


def scored(tmp_path, options):
    """Score the model of demo/ -> what the JSON file says."""
    phantom.main([*options.split(), "--out", str(tmp_path / "score"), "--device", "cpu"])
    return json.loads((tmp_path / "score.json").read_text())


def test_the_model_of_the_demo_reads_and_draws_phantoms(tmp_path, capsys):
    page = scored(tmp_path, "--num 4 --steps 2 --bootstrap 2 --show 2")
    scores = page["scores"]
    assert scores["report"]["micro"] > 0.9 and scores["all_normal"]["micro"] == 0
    assert scores["cycle"]["micro"] > 0.7 and scores["report"]["intervals"]["micro"][1] > 0.9
    assert page["images"] == {}, "four images are too few for FD to coverage"
    printed = capsys.readouterr()
    assert "cycle / ceiling" in printed.out and "cycle: reading generated ones" in printed.out
    assert ("macro-F1 is over the findings that occur; these phantoms show no cardiomegaly, "
            "no nodule, no catheter\n") in printed.out
    assert scores["report"]["catheter"] is None and scores["report"]["macro"] == 1
    for which in ("real", "generated", "decoded"):
        assert f"reading {which} phantoms" in printed.err, "three bars, each says of what it is"
    assert page["settings"]["checkpoint"] == "demo", "not where it lies"
    assert "not for clinical use" in Image.open(tmp_path / "score.png").text["notice"]


def test_the_noise_differs_by_phantom_and_the_settings_are_those_of_the_command(monkeypatch):
    def generate_images(model, vae, tokenizer, reports, sampling, numbers):
        assert list(numbers) == [0, 1] and (sampling.steps, sampling.size) == (3, 64)
        return np.zeros((2, 1, 64, 64), np.uint8)
    monkeypatch.setattr(sample, "generate_images", generate_images)
    examinee = phantom.Examinee(None, None, None, None, size=64, batch=2)
    drawn = examinee.draw(["Clear.", "Edema."], phantom.PhantomConfig(steps=3))
    assert drawn.shape == (2, 64, 64)


def test_the_picture_says_what_a_generated_phantom_misses():
    wanted = {("nodule", "left mid", ""), ("effusion", "left", "large"), ("edema", "", "")}
    given = {("nodule", "left upper", ""), ("edema", "", "")}
    assert phantom.mistakes(wanted, given) == (
        "\nMISSED: large left effusion, left mid nodule\nADDED: left upper nodule")
    assert phantom.mistakes(wanted, wanted) == ""


@pytest.mark.parametrize("main, line, name", [
    (phantom.main, "--checkpoint nowhere", "score.png"),
    (phantom.main, "--checkpoint nowhere", "score.json"),
    (compare.main, "nowhere.jsonl nowhere.jsonl", "score.md"),
    (privacy.main, "--generated nowhere --train nowhere --held-out nowhere", "score.json"),
    (compare.extract_features, "--images nowhere", "score")])
def test_files_of_others_are_not_replaced(tmp_path, main, line, name):
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(InputError, match="no result of ours|no file of features"):
        main([*line.split(), "--out", str(tmp_path / "score")])
    assert (tmp_path / name).read_text() == '{"mine": 1}'


@pytest.mark.parametrize("main, line", [
    (phantom.main, "--checkpoint nowhere"),
    (compare.extract_features, "--images nowhere"),
    (compare.main, "nowhere.jsonl nowhere.jsonl"),
    (privacy.main, "--generated nowhere --train nowhere --held-out nowhere"),
])
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, main, line):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written; choose an --out"):
        main([*line.split(), "--out", str(tmp_path / "file" / "score")])


@pytest.mark.slow
def test_fd_to_coverage_and_a_sweep(tmp_path):
    """The autoencoder loses something, drawing more; other phantoms are at a distance, too."""
    images = scored(tmp_path, "--num 12 --steps 4 --bootstrap 2 --show 2")["images"]
    fd = {name: numbers["fd"]["value"] for name, numbers in images.items()}
    assert 0 < fd["vae_ceiling"] < fd["generated"] and fd["vae_ceiling"] < fd["other_real"]

    few, more = scored(tmp_path, "--num 6 --sweep steps=1,3 --bootstrap 0")["sweep"]
    assert (few["steps"], few["cfg"]) == (1, 2.0) and (more["steps"], more["cfg"]) == (3, 2.0)
    assert 0 < few["fd"]["value"] != more["fd"]["value"] > 0 and few["fd"]["n"] == 6


def test_bad_input_is_one_sentence():
    with pytest.raises(InputError, match="--num and --show must be at least 1"):
        phantom.main(["--num", "0"])
    with pytest.raises(InputError, match="--num must be 6 or more"):
        phantom.main("--num 3 --sweep steps=1".split())
