"""`sample.py --grid` with braces: reports that differ in a word, drawn from the same noise."""
import json

import numpy as np
import pytest
from PIL import Image

import sample
import weights
from abilities import grid
from common.cli import InputError
from helpers import ROOT
from sample import Sampling, generate_images

TEMPLATE = "{Small,Large} {left,right} pleural effusion."


def test_the_first_braces_make_rows_and_the_second_columns():
    rows, columns, reports = grid.variants("No edema. {Small, Large} {left,right} effusion.")
    assert (rows, columns) == (["Small", "Large"], ["left", "right"])
    assert reports == [["No edema. Small left effusion.", "No edema. Small right effusion."],
                       ["No edema. Large left effusion.", "No edema. Large right effusion."]]


def test_a_single_pair_makes_columns_and_a_word_may_be_empty():
    rows, columns, reports = grid.variants(r"{,Large\1} effusion.")
    assert (rows, columns) == ([""], ["", r"Large\1"])
    assert reports == [["effusion.", r"Large\1 effusion."]]


@pytest.mark.parametrize("template", [
    "{Small} effusion.", "{Small,Small} effusion.", "{} effusion.", "{Small,{mild,x}} effusion.",
    "{a,b} {c,d} {e,f}", "{Small,Large effusion.", "Small} effusion."])
def test_braces_that_make_no_sheet(template):
    with pytest.raises(InputError) as error:
        grid.variants(template)
    assert "\n" not in str(error.value)


def test_a_sheet_has_room_for_its_headings():
    pictures = np.full((2, 3, 16, 16), 100, np.uint8)
    bare = grid.sheet(pictures, ["", ""], ["a", "b", "c"])
    headed = grid.sheet(pictures, ["a long heading", ""], ["a", "b", "a longer heading"], "title")
    assert bare.height == 28 + 2 * 36 and bare.width == 3 * 36
    assert headed.width > bare.width + 100 and headed.height > bare.height
    dark = np.asarray(headed) == 100
    assert dark.sum() >= 6 * 32 * 32, "all pictures are there, and nothing lies over them"


def test_headings_wider_than_a_picture_are_whole_and_a_long_title_is_wrapped():
    pictures = np.full((1, 2, 16, 16), 100, np.uint8)
    columns = ["a heading much wider than its picture", "another heading, as wide as that one"]
    picture = grid.sheet(pictures, [""], columns, "title\n" + "and words of it " * 20)
    pixels = np.asarray(picture)
    assert picture.width < 800 and pixels[:, :2].min() == 255, "nothing is cut off on the left"
    assert (pixels == 100).sum() >= 2 * 32 * 32, "and nothing lies over the pictures"


def test_all_pictures_of_a_noise_share_it():
    demo = weights.load(ROOT / "demo")
    sampling = Sampling(steps=1, seed=3)
    _, _, reports = grid.variants(TEMPLATE)
    drawn = grid.draw_variants(*demo, reports, sampling, num=2, progress=False)
    assert drawn.shape == (2, 2, 2, 128, 128)
    for k in range(2):
        for row in range(2):
            alone = generate_images(*demo, reports[row], sampling, numbers=[k, k], progress=False)
            assert np.abs(alone[:, 0].astype(int) - drawn[k, row]).max() <= 1


def test_the_command_writes_one_picture_and_names_every_report(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    line = ["--grid", "--report", TEMPLATE, "--steps", "1", "--num", "2", "--device", "cpu"]
    assert sample.main(line) is None
    printed = capsys.readouterr()
    assert printed.out.splitlines()[:2] == ["sample.png: Small left pleural effusion.",
                                            "sample.png: Small right pleural effusion."]
    assert "unknown" not in printed.err, "the words between braces are those of the reports"
    picture = Image.open("sample.png")
    assert picture.height == 52 + 4 * 260 and "clinical use" in picture.text["notice"]
    assert json.loads(picture.text["reports"])[-1] == "Large right pleural effusion."
    grid.main([*line, "--json"])
    assert json.loads(capsys.readouterr().out.splitlines()[0])["file"] == "sample.png"


def test_a_grid_without_braces_is_the_plain_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(grid, "main", None)
    line = ["--grid", "--report", "No edema.", "--steps", "1", "--num", "2", "--device", "cpu"]
    assert sample.main(line) == 0 and Image.open("sample.png").width == 2 * 260


def test_braces_want_a_sheet(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="add --grid, or leave the braces out"):
        sample.main(["--report", TEMPLATE, "--device", "cpu"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line, words", [
    (["--report", TEMPLATE, TEMPLATE], "takes one --report"),
    (["--report", TEMPLATE, "--image", "x.png"], "no --reports or --image"),
    (["--report", "{a,b} {c,d} {e,f}"], "one or two pairs"),
    (["--report", "Small,Large} effusion."], "one or two pairs"),
    (["--report", TEMPLATE, "--out", "x.jpg"], "name a .png file"),
    (["--report", TEMPLATE, "--size", "100"], "size 100"),
    (["--report", "{a,b} " + "nodule " * 200], "shorten it"),
])
def test_asked_wrongly(tmp_path, monkeypatch, line, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        sample.main(["--grid", "--device", "cpu", *line])
    assert words in str(error.value) and not list(tmp_path.iterdir())
