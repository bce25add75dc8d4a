"""abilities/explain.py: statements, maps that lie where a finding is, baselines, command line."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

import sample
import weights
from abilities import explain
from common.cli import InputError
from common.images import read_image, save_png
from evaluation.places import Case, ExplainScoreConfig, cases_of, hit, inside
from helpers import ROOT, close


@pytest.fixture(scope="module")
def demo():
    return weights.load(ROOT / "demo")


@pytest.fixture(scope="module")
def cases():
    return cases_of(ExplainScoreConfig(), 128, "test", 6)


def test_what_is_a_statement():
    report = ("The heart is normal in size. Small left pleural effusion. No nodule. There is a rib "
              "fracture. The lungs are clear.")
    assert explain.statements(report) == ["Small left pleural effusion.",
                                          "There is a rib fracture."]
    assert explain.without(report, "No nodule.") == report.replace("No nodule. ", "")
    assert explain.statements("No edema. The lungs are clear. 1. Bones are unremarkable.") == []
    assert explain.statements("Edema. Edema.") == ["Edema."]


def test_heat_lies_on_the_finding(demo, cases):
    """All cases of six phantoms, and the share of heat is many times that of the area."""
    films, reports, said = ([getattr(case, name) for case in cases]
                            for name in ("film", "report", "statement"))
    maps = explain.heat_maps(*demo, films, reports, said)
    assert maps.shape == (len(cases), 128, 128) and (maps >= 0).all()
    assert all(hit(case, heat) for case, heat in zip(cases, maps))
    assert np.mean([inside(case, heat) / case.place.mean()
                    for case, heat in zip(cases, maps)]) > 4


def test_it_is_the_same_in_any_batch(demo, cases):
    films, reports, said = ([getattr(case, name) for case in cases[:3]]
                            for name in ("film", "report", "statement"))
    how = explain.Explaining(noises=1)
    together = explain.heat_maps(*demo, films, reports, said, how)
    alone = explain.heat_maps(*demo, films, reports, said, explain.Explaining(noises=1, batch=1))
    close(torch.tensor(together), torch.tensor(alone), 2e-3)
    on_grid = explain.heat_maps(*demo, films, reports, said, how, grid=True)
    assert on_grid.shape == (3, 8, 8)


def test_words_are_found_in_the_block_of_their_report(demo):
    _, _, tokenizer = demo
    report = "No pleural effusion. Left pneumothorax. No nodule."
    block = tokenizer.answers([report])[0]
    places = explain.places_of(tokenizer, report, "Left pneumothorax.")
    assert tokenizer.decode(block[places].tolist()) == "Left pneumothorax."
    first = explain.places_of(tokenizer, report, "No pleural effusion.")
    assert first.start == 1 and tokenizer.decode(block[first].tolist()) == "No pleural effusion."


def test_attention_is_a_softmax_over_patches_and_leaves_nothing_behind(demo, cases):
    model, _, tokenizer = demo
    case = cases[0]
    maps = explain.attention_maps(model, tokenizer, case.film, case.report, case.statement)
    cfg = model.cfg
    assert maps.shape == (cfg.n_layer, cfg.n_head, cfg.vision.grid, cfg.vision.grid)
    close(torch.tensor(maps.sum((2, 3))), torch.ones(cfg.n_layer, cfg.n_head), 1e-4)
    assert not any(layer.u.heads._forward_hooks for layer in model.layers)


def test_the_gradient_is_as_large_as_the_film_and_no_weight_gets_one(demo, cases):
    model, _, tokenizer = demo
    case = cases[0]
    gradient = explain.gradient_map(model, tokenizer, case.film, case.report, case.statement)
    assert gradient.shape == (128, 128) and (gradient >= 0).all() and gradient.max() > 0
    assert all(p.grad is None for p in model.parameters())


def test_overlay_is_the_film_where_nothing_is():
    film = np.full((4, 4), 100, dtype=np.uint8)
    heat = np.zeros((4, 4))
    assert (explain.overlay(film, heat) == 100).all()
    heat[1, 1] = 3.0
    red = explain.overlay(film, heat)
    assert red[1, 1, 0] > 200 > red[1, 1, 1] and (red[0] == 100).all()


def test_a_hit_needs_the_maximum_on_the_finding():
    place = np.zeros((4, 4), dtype=bool)
    place[2, 3] = True
    case = Case(None, "", "", "nodule", place)
    heat = np.ones((4, 4))
    heat[2, 3] = 2
    assert hit(case, heat) and inside(case, heat) == pytest.approx(2 / 17)
    heat[0, 0] = 3
    assert not hit(case, heat)


LINE = "--explain --device cpu --dtype float32 --threads 1".split()


def test_a_film_on_the_command_line(cases, tmp_path, capsys):
    film, out = tmp_path / "film.png", tmp_path / "out.png"
    save_png(Image.fromarray(cases[0].film), film)
    assert not sample.main([*LINE, "--image", str(film), "--out", str(out), "--baselines"])
    assert "where each of these is" in capsys.readouterr().out
    result = json.loads(out.with_suffix(".json").read_text())
    assert "not for clinical use" in result["notice"]
    assert np.array(result["statements"][0]["heat"]).shape == (128, 128)
    assert read_image(out).size[0] > 4 * 256


def test_a_report_on_the_command_line(tmp_path):
    out = tmp_path / "out.png"
    report = "Large left pleural effusion. No nodule."
    assert not sample.main([*LINE, "--report", report, "--out", str(out), "--noises", "1"])
    [statement] = json.loads(out.with_suffix(".json").read_text())["statements"]
    x, y = statement["maximum"]
    assert statement["statement"] == "Large left pleural effusion." and x > 64
    assert all(len(str(value)) <= 5 for row in statement["heat"] for value in row), "12.3"


@pytest.mark.parametrize("words, message", [
    ([], "name a film"),
    (["--report", "No edema. The lungs are clear."], "nothing to look for"),
    (["--report", "Edema.", "--out", "a.jpg"], "name a .png file"),
    (["--image", "nowhere.png"], "nowhere.png"),
    (["--image", "film.png", "--out", "./film.png"], "is a picture that is read"),
    (["--report", "Edema.", "--times", "0.5", "1.5"], "between 0 and 1"),
])
def test_bad_input(words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        sample.main([*LINE, *words])
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_cannot_draw(stage1, tmp_path):
    with pytest.raises(InputError, match="cannot draw"):
        sample.main([*LINE, "--report", "Edema.", "--checkpoint", str(stage1),
                     "--out", str(tmp_path / "a.png")])
