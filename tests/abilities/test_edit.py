"""`sample.py --edit`: the algorithm on fields in closed form, then pictures of the demo's model."""
import json

import numpy as np
import pytest
import torch
from PIL import Image

import flow
import sample
import weights
from abilities import edit
from abilities.edit import Editing, edit_images, editing_velocity
from common.cli import InputError
from common.processes import generator
from helpers import ROOT, normal
from phantom.facts import report_to_facts
from phantom.prepare import Settings, held_out
from sample import Sampling, guided

MODERATE = "Moderate left pleural effusion. No pneumothorax. There is pulmonary edema."
LARGE = "Large left pleural effusion. No pneumothorax. There is pulmonary edema."


# ---- the algorithm ----

def towards(point):
    """The velocity of a flow whose data is this one point: (x - point) / t."""
    def velocity(x, t):
        return (x - point) / t[:, None, None, None]
    return velocity


def some_noise():
    return torch.randn(2, 4, 3, 3)


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_a_picture_goes_where_the_wanted_velocity_leads(strength):
    """Whatever the noise is; the last Euler step of this field lands on the point."""
    given, wanted = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)
    velocity = editing_velocity(towards(given), towards(wanted), given, some_noise)
    edited = flow.euler(velocity, given, strength * flow.schedule(5))
    assert torch.allclose(edited, wanted, atol=1e-5)


def test_what_both_reports_agree_on_stays():
    given, wanted = normal(2, 4, 3, 3), normal(2, 4, 3, 3, seed=1)
    velocity = editing_velocity(towards(wanted), towards(wanted), given, some_noise)
    assert torch.equal(flow.euler(velocity, given, flow.schedule(5)), given)

    free = torch.zeros(2, 1, 3, 3)
    free[:, :, 1] = 1
    velocity = editing_velocity(towards(given), towards(wanted), given, some_noise, free)
    edited = flow.euler(velocity, given, flow.schedule(5))
    assert torch.equal(edited[:, :, [0, 2]], given[:, :, [0, 2]]), "outside, to the last bit"
    assert torch.allclose(edited[:, :, 1], wanted[:, :, 1], atol=1e-5)


def test_a_latent_is_free_if_one_of_its_pixels_is():
    masks = np.zeros((1, 32, 48), bool)
    masks[0, 15, 16] = masks[0, 16, 47] = True
    assert edit.free_latents(masks, 16).tolist() == [[[[0, 1, 0], [0, 0, 1]]]]


# ---- pictures ----

@pytest.fixture(scope="module")
def demo():
    return weights.load(ROOT / "demo")


@pytest.fixture(scope="module")
def films():
    """Two held-out phantoms; the first has a moderate left effusion and an edema."""
    return np.stack([held_out(Settings(), i)[1] for i in (1, 2)])


def edited(demo, films, sources=(MODERATE, MODERATE), reports=(LARGE, LARGE), masks=None,
           numbers=None, **settings):
    editing = Editing(**{"steps": 2, **settings})
    return edit_images(*demo, films, list(sources), list(reports), editing, masks, numbers,
                       progress=False)


def test_the_noise_is_of_seed_and_number_alone(demo, films):
    both = edited(demo, films).astype(int)
    for batch in (both, edited(demo, films, batch=1),
                  edited(demo, films[[1, 0]], numbers=[1, 0])[::-1]):
        assert np.abs(both - batch).max() <= 1
    for other in (edited(demo, films, seed=1), edited(demo, films, numbers=[1, 2])):
        assert np.abs(both - other).max() > 5


@torch.inference_mode()
def test_one_picture_by_hand(demo, films):
    """The loop of the paper's Algorithm 1, with noise that is drawn where it is needed."""
    model, vae, tokenizer = demo
    x_0 = edit.encode(vae, films[:1])
    source = guided(model, [tokenizer.prompt(MODERATE)], Sampling(cfg=1))
    target = guided(model, [tokenizer.prompt(LARGE)], Sampling(cfg=3, cfg_interval=(0, 1)))
    rng, x = generator(5, 0), x_0
    for t, t_next in ((0.8, 0.4), (0.4, 0.0)):
        noise = torch.randn(16, 8, 8, generator=rng)
        given = (1 - t) * x_0 + t * noise
        moved = given + x - x_0
        time = torch.tensor([t])
        x = x + (t_next - t) * (target(moved, time) - source(given, time))
    by_hand = vae.pictures(x).numpy()[0].astype(int)
    settings = dict(strength=0.8, cfg=3.0, seed=5)
    plain = edited(demo, films[:1], [MODERATE], [LARGE], detail=False, **settings)[0]
    assert np.abs(plain - by_hand).max() <= 1
    assert np.abs(by_hand - films[0]).max() > 50


def test_the_same_report_gives_the_same_film(demo, films):
    """With its grain, which the autoencoder alone would smooth."""
    same = [MODERATE, MODERATE]
    assert np.array_equal(edited(demo, films, same, same, cfg=1.0), films)
    smooth = edited(demo, films, same, same, cfg=1.0, detail=False)
    assert 1 < np.abs(smooth - films.astype(int)).mean() < 5


def test_outside_of_a_mask_every_pixel_is_the_same(demo, films):
    masks = np.zeros(films.shape, bool)
    masks[:, 60:, 70:] = True
    for detail in (True, False):
        changed = edited(demo, films, masks=masks, detail=detail)
        assert np.array_equal(changed[~masks], films[~masks])
        assert np.abs(changed[masks] - films[masks].astype(int)).max() > 50


def test_numbers_that_are_none_end_in_a_sentence(demo, films, monkeypatch):
    monkeypatch.setattr(type(demo[0]), "velocity", lambda self, x, *_: x * torch.nan)
    with pytest.raises(FloatingPointError, match="the velocity at step 1 of 2"):
        edited(demo, films)


# ---- the command line ----

@pytest.fixture
def main(films, tmp_path, monkeypatch):
    """The command in a directory with film.png."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(films[0]).save("film.png")

    def main(*words):
        return sample.main(["--device", "cpu", "--dtype", "float32", *map(str, words)])
    return main


def test_an_effusion_grows_and_the_edema_stays(main, films, capsys):
    assert not main("--edit", "film.png", "--change", "Large left pleural effusion.", "--steps", 6)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["before:", "wanted:", "after:", "edit.png:"]
    before, wanted, after = map(report_to_facts, lines[:3])
    edema, effusion = ("edema", "", ""), ("effusion", "left")
    assert before == {edema, (*effusion, "moderate")}
    assert wanted == after == {edema, (*effusion, "large")}
    picture = Image.open("edit.png")
    assert "clinical use" in picture.text["notice"] and picture.text["wanted"] in lines[1]
    assert np.abs(np.asarray(picture)[:, :40] - films[0, :, :40].astype(int)).mean() < 4


def test_a_whole_report_with_its_source_in_json_on_a_sheet(main, capsys):
    main("--edit", "film.png", "--source", MODERATE, "--report", LARGE, "--steps", 1, "--grid",
         "--json", "--out", "sheet.png")
    line = json.loads(capsys.readouterr().out)
    assert (line["file"], line["source"], line["wanted"]) == ("sheet.png", MODERATE, LARGE)
    assert line["read"] and "clinical use" in line["notice"]
    assert Image.open("sheet.png").width == 3 * 260


def test_a_mask_is_kept_to(main, films):
    mask = np.zeros((128, 128), np.uint8)
    mask[40:90, 70:120] = 255
    Image.fromarray(mask).save("mask.png")
    main("--edit", "film.png", "--change", LARGE, "--steps", 1, "--mask", "mask.png")
    assert np.array_equal(np.asarray(Image.open("edit.png"))[mask == 0], films[0][mask == 0])


@pytest.mark.parametrize("line, words", [
    ("--edit= --change x", "name the picture to change"),
    ("--edit film.png", "with one of --report"),
    ("--edit film.png --change x --report y", "with one of --report"),
    ("--edit film.png --change=", "with one of --report"),
    ("--edit missing.png --change x", "missing.png cannot be read as an image"),
    ("--edit text.png --change x", "text.png cannot be read as an image"),
    ("--edit wide.png --change x", "wide.png has 160 x 128 pixels; this checkpoint changes square "
                                   "pictures of 128, or of a smaller multiple of 16"),
    ("--edit odd.png --change x", "odd.png has 100 x 100 pixels"),
    ("--edit large.png --change x", "large.png has 256 x 256 pixels"),
    ("--edit film.png --change x --mask odd.png", "has 100 x 100 pixels and film.png has 128 x "),
    ("--edit film.png --change x --mask black.png", "black.png is black"),
    ("--edit film.png --change x --mask red.png", "red.png is black or dark"),
    ("--edit film.png --change x --out ./film.png", "--out ./film.png is a picture that is read"),
    ("--edit film.png --change x --mask odd.png --out odd.png", "and would be replaced"),
    ("--edit film.png --change x --mask missing.png", "missing.png cannot be read"),
    ("--edit film.png --report " + "nodule," * 200, "the wanted report has"),
    ("--edit film.png --change x --source " + "nodule," * 200, "the report of the picture has"),
    ("--edit film.png --change x --out edit.jpg", "name a .png file"),
    ("--edit film.png --change x --out film.png/x.png", "cannot be written"),
    ("--edit film.png --change x --checkpoint nowhere", "no checkpoint at nowhere"),
    *[(f"--edit film.png --change x {option}", option.split()[0]) for option in (
        "--strength 0", "--strength 1.1", "--steps 0", "--batch 0")],
])
def test_asked_wrongly(main, line, words, tmp_path):
    """One sentence, before anything is written."""
    for name, size in (("wide", (160, 128)), ("odd", (100, 100)), ("large", (256, 256)),
                       ("black", (128, 128))):
        Image.new("L", size).save(f"{name}.png")
    Image.new("RGB", (128, 128), "red").save("red.png")
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError) as error:
        main(*line.split(" "))
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "edit.png").exists()


def test_a_checkpoint_that_only_reads(main, stage1):
    with pytest.raises(InputError, match="this checkpoint cannot draw"):
        main("--edit", "film.png", "--change", "x", "--checkpoint", stage1)
