"""common/images.py: every odd image file is read rightly or refused in one sentence."""
import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from common.cli import InputError
from common.images import (
    NOTICE, Unusable, captioned, checked, image_files, read_grey, read_image, save_png)
from helpers import SHARED, dicom_file, needs_films

RAMP = np.linspace(0, 1, 64)[None].repeat(48, 0)            # 48 rows, 64 columns, dark to bright


def saved(image, path, **options):
    image.save(path, **options)
    return path


def grey(path):
    """The image at a path, as floats from 0 to 255."""
    image = read_image(path)
    assert image.mode == "L"
    return np.asarray(image).astype(float)


def encoded(size, kind="PNG"):
    """The bytes of a noise image of that size (width, height)."""
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


# ---- depth and sign ----

@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_deep_pictures_are_scaled_not_clipped(tmp_path, bits):
    values = (RAMP * (2 ** bits - 1)).round().astype(np.uint16)
    pixels = grey(saved(Image.fromarray(values), tmp_path / "deep.png"))
    assert np.abs(pixels - RAMP * 255).max() <= 1
    assert len(np.unique(pixels)) == 64


def test_a_dark_12_bit_picture_keeps_its_darkness(tmp_path):
    """The brightest pixel decides the number of bits, not the scale: 3000 stays 3000 / 4095."""
    values = (RAMP * 3000).round().astype(np.uint16)
    pixels = grey(saved(Image.fromarray(values), tmp_path / "dark.png"))
    assert abs(pixels.max() - 3000 / 4095 * 255) <= 1


@pytest.mark.parametrize("kind, white", [(np.int32, 4095), (np.float32, 4095), (np.float32, 1)])
def test_32_bit_integers_and_floats(tmp_path, kind, white):
    values = (RAMP * white).astype(kind)
    pixels = grey(saved(Image.fromarray(values), tmp_path / "deep.tif"))
    assert np.abs(pixels - RAMP * 255).max() <= 1


def test_negative_values_are_stretched_and_not_clipped(tmp_path):
    values = (RAMP * 2000 - 1000).astype(np.int32)
    pixels = grey(saved(Image.fromarray(values), tmp_path / "hounsfield.tif"))
    assert np.abs(pixels - RAMP * 255).max() <= 1


def test_a_tiff_that_counts_from_white_to_black_is_turned_over(tmp_path):
    values = (65535 - RAMP * 60000).round().astype(np.uint16)
    path = saved(Image.fromarray(values), tmp_path / "white.tif", tiffinfo={262: 0})
    assert Image.open(path).tag_v2[262] == 0
    assert np.abs(grey(path) - RAMP * 60000 / 65535 * 255).max() <= 1


def test_values_that_are_no_numbers_are_refused(tmp_path):
    values = RAMP.astype(np.float32)
    values[3, 5] = np.nan
    with pytest.raises(InputError, match="no numbers"):
        read_image(saved(Image.fromarray(values), tmp_path / "nan.tif"))


def test_a_black_deep_picture(tmp_path):
    black = np.zeros((40, 40), np.uint16)
    assert grey(saved(Image.fromarray(black), tmp_path / "black.png")).max() == 0


# ---- colour, transparency, orientation ----

@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_black(tmp_path, mode):
    pixels = np.full((40, 40, 4), 200, np.uint8)
    pixels[:, :20, 3] = 0
    pixels[:, 20:, 3] = 255
    result = grey(saved(Image.fromarray(pixels, "RGBA").convert(mode), tmp_path / "alpha.png"))
    assert (result[:, :20] == 0).all()
    assert (result[:, 20:] == 200).all()


def test_palette(tmp_path):
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 90, 90, 90, 255, 255, 255])
    assert (grey(saved(image, tmp_path / "palette.png")) == 90).all()
    assert (grey(saved(image, tmp_path / "transparent.png", transparency=1)) == 0).all()


def test_cmyk_jpeg(tmp_path):
    image = Image.fromarray((RAMP * 255).astype(np.uint8)).convert("CMYK")
    pixels = grey(saved(image, tmp_path / "cmyk.jpg", quality=95))
    assert np.abs(pixels - RAMP * 255).mean() < 4


def test_one_bit(tmp_path):
    pixels = grey(saved(Image.fromarray(RAMP > 0.5), tmp_path / "bits.png"))
    assert set(np.unique(pixels)) == {0, 255}
    assert pixels[0, 0] == 0
    assert pixels[0, -1] == 255


def test_turned_upright_by_its_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                    # orientation: turn by 90 degrees
    path = saved(Image.new("L", (64, 48)), tmp_path / "turned.jpg", exif=exif)
    assert read_image(path).size == (48, 64)


# ---- refused ----

def bomb():
    """A PNG of 64 x 64 whose header claims 400 million pixels."""
    whole = encoded((64, 64))
    header = whole[12:16] + (20_000).to_bytes(4, "big") * 2 + whole[24:29]
    return whole[:12] + header + zlib.crc32(header).to_bytes(4, "big") + whole[33:]


@pytest.mark.parametrize("content, words", [
    (b"", "empty or no image"),
    (b"hello, I am text" * 100, "empty or no image"),
    (encoded((16, 16)), "shorter than 32"),
    (encoded((40, 31)), "shorter than 32"),
    (encoded((400, 40)), "more than 8 times"),
    (encoded((40, 400)), "more than 8 times"),
    (encoded((64, 64))[:2000], "damaged"),
    (encoded((64, 64), "JPEG")[:1500], "damaged"),
    (encoded((64, 64), "TIFF")[:300], "damaged|no image"),
    (encoded((64, 64))[:20], "damaged|no image"),
    (bomb(), "200 million")])
def test_refused_in_a_sentence_with_the_name(tmp_path, content, words):
    path = tmp_path / "film.png"
    path.write_bytes(content)
    with pytest.raises(InputError, match=words) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_and_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError):
        read_image(tmp_path)


@pytest.mark.parametrize("size", [(32, 32), (256, 32)])
def test_the_limits_themselves_are_allowed(tmp_path, size):
    path = tmp_path / "film.png"
    path.write_bytes(encoded(size))
    assert read_image(path).size == size


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"])
def test_damage_anywhere_is_read_or_one_sentence(kind):
    """Flip bytes and cut files at random: never another exception."""
    rng = np.random.default_rng(0)
    whole = encoded((48, 48), kind)
    refused = 0
    for n in range(40):
        content = bytearray(whole)
        for place in rng.integers(0, len(whole), 8):
            content[place] = rng.integers(256)
        if n % 2:
            content = content[:rng.integers(1, len(whole))]
        try:
            read_image(io.BytesIO(bytes(content)), "film")
        except InputError:
            refused += 1
    assert refused >= 5


# ---- DICOM and real films ----

def dicom(tmp_path, photometric):
    """A DICOM file without an ending that holds the ramp with 12 bits."""
    path = tmp_path / "IM00001"
    path.write_bytes(dicom_file(RAMP * 4000, photometric))
    return path


def test_dicom_is_known_by_its_content(tmp_path):
    pixels = grey(dicom(tmp_path, "MONOCHROME2"))
    assert np.abs(pixels - RAMP * 255).max() <= 1


def test_monochrome1_is_turned_over(tmp_path):
    pixels = grey(dicom(tmp_path, "MONOCHROME1"))
    assert np.abs(pixels - (255 - RAMP * 255)).max() <= 1


def test_damaged_dicom_has_a_reason(tmp_path):
    path = dicom(tmp_path, "MONOCHROME2")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(Unusable, match="damaged or unreadable DICOM"):
        read_grey(path)


def test_a_jpeg_is_decoded_at_a_fraction(tmp_path):
    """As long as twice the size that is wanted is left."""
    path = tmp_path / "film.jpg"
    path.write_bytes(encoded((512, 512), "JPEG"))
    assert read_grey(path, largest=64).size == (128, 128)
    assert read_grey(path, largest=200).size == (512, 512)


@needs_films
def test_real_films():
    for path in sorted((SHARED / "real_cxr" / "images").iterdir()):
        image = read_image(path)
        values = np.asarray(image)
        assert image.mode == "L", path
        assert values.std() > 10, path
        assert values.max() > 100, path


# ---- folders, lists, pictures ----

def test_a_folder_is_its_images(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    a, b, notes = (tmp_path / name for name in ("a.JPG", "b.png", "notes.txt"))
    failures = []
    assert image_files([tmp_path], failures) == [(str(a), a), (str(b), b)]
    assert image_files([notes], failures) == [(str(notes), notes)]       # named: tried
    assert failures == []
    assert image_files([tmp_path / "empty", b], failures) == [(str(b), b)]
    assert len(failures) == 1
    assert "empty holds no image" in failures[0]


def test_checked_goes_on_without_what_is_bad():
    def positive(name, x):
        if x < 0:
            raise InputError(f"{name} is negative.")
        return x + 1

    failures = []
    assert checked([("a", 1), ("b", -1), ("c", 3)], positive, failures) == [("a", 2), ("c", 4)]
    assert failures == ["b is negative."]


def test_png_tells_how_it_was_made(tmp_path):
    save_png(Image.new("L", (8, 8), 7), tmp_path / "x.png", report="Größe 3 × 4 mm", seed=3)
    image = Image.open(tmp_path / "x.png")
    assert image.text["notice"] == NOTICE
    assert image.text["report"] == "Größe 3 × 4 mm"
    assert json.loads(image.text["seed"]) == 3
    assert image.getpixel((3, 3)) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_captioned():
    pictures = np.stack([np.full((32, 32), 40 * i, np.uint8) for i in range(5)])
    captions = ["short", "a much longer caption " * 5, "two\nlines", "", "end"]
    sheet = captioned(pictures, captions)
    assert sheet.width == 3 * (64 + 4)
    assert sheet.height % 2 == 0
    for n in range(5):
        row, column = divmod(n, 3)
        assert sheet.getpixel((column * 68 + 30, row * sheet.height // 2 + 30)) == 40 * n
