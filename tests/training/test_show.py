"""training/show.py: sheets of what a model draws and writes, to look at while it trains."""
import numpy as np
import pytest
import torch
from PIL import Image

import weights
from common.images import NOTICE
from common.packed import Packed
from training.show import show_drawn, show_written


@pytest.fixture(scope="module")
def loaded(stage2):
    return weights.load(stage2)


@pytest.fixture(scope="module")
def data(phantom):
    """Pictures of 32 pixels, which a sheet enlarges eight times, two in a row of four cells."""
    return Packed(phantom, "gen", 32, "val")


def test_drawn_images_stand_beside_the_given_ones(loaded, data, tmp_path):
    path = tmp_path / "samples" / "1.png"
    show_drawn(*loaded, data, path, n=2)
    sheet = Image.open(path)
    assert sheet.text["notice"].startswith(NOTICE) and sheet.width == 4 * (256 + 4)
    assert looks_like(sheet, data.image(0), column=0) and looks_like(sheet, data.image(1), column=2)


def test_a_sheet_shows_images_over_the_given_and_the_written_report(loaded, data, tmp_path):
    model, _, tokenizer = loaded
    path = tmp_path / "samples" / "1.png"
    show_written(model, tokenizer, data, path, n=2)
    sheet = Image.open(path)
    assert sheet.text["notice"].startswith(NOTICE)
    assert looks_like(sheet, data.image(0), column=0) and looks_like(sheet, data.image(1), column=1)
    assert (np.asarray(sheet)[262:, :256] < 128).any(), "words under the first image"


def test_what_is_written_can_be_read_in_a_terminal_too(loaded, data, tmp_path):
    model, _, tokenizer = loaded
    show_written(model, tokenizer, data, tmp_path / "samples" / "1.png", n=2)
    text = (tmp_path / "samples" / "1.txt").read_text()
    assert text.count("given ") == text.count("written ") == 2
    assert data.rows[1]["report"] in text and NOTICE in text.splitlines()[-1]


def test_a_run_goes_on_when_samples_are_no_numbers(loaded, data, tmp_path, monkeypatch, capsys):
    model, vae, tokenizer = loaded
    path = tmp_path / "samples" / "1.png"
    nothing = torch.tensor(torch.nan)
    monkeypatch.setattr(model, "velocity", lambda x, t, cache: x * nothing)
    show_drawn(model, vae, tokenizer, data, path, n=1)
    monkeypatch.setattr(model, "logits", lambda hidden: hidden * nothing)
    show_written(model, tokenizer, data, path, n=1)
    assert not path.exists()
    assert capsys.readouterr().err.count("no samples now: ") == 2


def looks_like(sheet, image, column):
    """Whether a cell of the sheet's first row shows this image, enlarged."""
    x = column * (256 + 4)
    cell = sheet.crop((x, 0, x + 256, 256)).resize((32, 32), Image.Resampling.BOX)
    return np.abs(np.asarray(cell).astype(float) - image.numpy()).mean() < 5
