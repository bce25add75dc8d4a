"""One image file -> the square that the network sees, or the reason why there is none."""
import io

import numpy as np
import pytest
from PIL import Image

from common.images import Unusable
from helpers import dicom_file
from mimic import pixels
from mimic_tree import film


def reason(path):
    """Why a file cannot be used."""
    with pytest.raises(Unusable) as error:
        pixels.read(path, 32)
    return str(error.value)


def test_a_file_is_located_with_any_ending_and_its_stamp_changes_with_it(tmp_path):
    for ending in ("", ".jpg", ".png", ".dcm", ".tif", ".PNG", ".DCM"):
        path = tmp_path / f"a{ending}"
        path.write_bytes(b"x")
        assert pixels.locate(tmp_path / "a") == path
        first = pixels.stamp(tmp_path / "a")
        path.write_bytes(b"xy")
        assert pixels.stamp(tmp_path / "a") != first
        path.unlink()


@pytest.mark.parametrize("name", ["x" * 300, "a\0b", "[", "**", "..", "0.png/x"])
def test_names_that_no_file_can_have_are_missing(tmp_path, name):
    (tmp_path / "0.png").write_bytes(b"x")
    assert reason(tmp_path / name) == pixels.stamp(tmp_path / name) == "missing"


def test_a_dicom_that_claims_to_be_huge_takes_no_memory(tmp_path):
    content = bytearray(dicom_file(film(3).astype(np.uint16)))
    for tag in (b"\x28\0\x10\0US\x02\0", b"\x28\0\x11\0US\x02\0"):         # rows and columns
        start = content.index(tag) + len(tag)
        content[start:start + 2] = b"\xff\xff"
    (tmp_path / "a.dcm").write_bytes(content)
    assert "more than 200 million" in reason(tmp_path / "a.dcm")


def test_a_dicom_window_makes_what_is_beyond_black_or_white(tmp_path):
    import pydicom
    ramp = np.repeat(np.arange(0, 4000, 40, dtype=np.uint16)[None], 100, 0)
    dataset = pydicom.dcmread(io.BytesIO(dicom_file(ramp, "MONOCHROME2")))
    dataset.WindowCenter, dataset.WindowWidth = 1500, 1000
    dataset.save_as(tmp_path / "a.dcm")
    row = np.asarray(pixels.read(tmp_path / "a", 512))[50]
    assert (row[:25] == 0).all() and (row[51:] == 255).all() and abs(int(row[37]) - 127) < 8


def test_equalize_leaves_jpegs_as_they_are(tmp_path):
    """MIMIC's are equalised already."""
    dark = Image.fromarray(film(1) // 4)
    dark.save(tmp_path / "a.png")
    dark.save(tmp_path / "b.jpg", quality=95)
    assert pixels.read(tmp_path / "a", 512, equalize=True).getextrema()[1] > 200
    assert pixels.read(tmp_path / "b", 512, equalize=True).getextrema()[1] < 100


def test_pad_stretch_and_crop():
    halves = np.repeat(np.array([[0] * 50 + [200] * 50], np.uint8), 300, 0)         # 100 x 300
    image = Image.fromarray(halves)
    pad, stretch, crop = (np.asarray(pixels.fit(image, 60, how, 141))
                          for how in ("pad", "stretch", "crop"))
    assert pad[:, :15].mean() == 141 and pad[30, 25] < 20 and pad[30, 35] > 180
    assert stretch[:, :25].max() < 30 and stretch[:, 35:].min() > 170
    assert crop.shape == (60, 60) and crop[0, 0] < 20


@pytest.mark.parametrize("form, worst", [("jpg", 3), ("png", 0)])
def test_encoded_pictures_are_what_they_were(form, worst):
    picture = Image.fromarray(film(1, 64, 64))
    content = pixels.encode(picture, form, 95)
    difference = np.asarray(Image.open(io.BytesIO(content)), float) - np.asarray(picture)
    assert np.abs(difference).mean() <= worst
