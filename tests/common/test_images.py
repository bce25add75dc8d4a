"""common/images.py: every odd image file is read rightly or refused in one sentence."""
import io
import json
import os
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from common.cli import InputError
from common.images import (
    NOTICE, Unusable, captioned, checked, image_files, read_grey, read_image, save_png)
from helpers import SHARED, dicom_file, needs_films, png_chunk

RAMP = np.linspace(0, 1, 64)[None].repeat(48, 0)            # 48 rows, 64 columns, dark to bright


def read_back(image, path, **options):
    """Save a PIL image and read it -> floats from 0 to 255."""
    image.save(path, **options)
    result = read_image(path)
    assert result.mode == "L"
    return np.asarray(result).astype(float)


def encoded(size, kind="PNG"):
    """The bytes of a noise image of that size (width, height)."""
    noise = np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, kind)
    return buffer.getvalue()


# ---- depth and sign ----

@pytest.mark.parametrize("kind, black, white, scale", [
    (np.uint8, 0, 255, 255),
    (np.uint16, 0, 1023, 1023),
    (np.uint16, 0, 4095, 4095),
    (np.uint16, 0, 3000, 4095),         # the brightest pixel decides the number of bits only
    (np.uint16, 0, 65535, 65535),
    (np.uint16, 0, 0, 255),             # all black
    (np.int32, 0, 4095, 4095),
    (np.float32, 0, 4095, 4095),
    (np.float32, 0, 1, 1),
    (np.int32, -1000, 1000, None)])     # Hounsfield units: from the smallest to the largest
def test_deep_pictures_are_scaled_not_clipped(tmp_path, kind, black, white, scale):
    values = black + RAMP * (white - black)
    if kind != np.float32:
        values = values.round()
    pixels = read_back(Image.fromarray(values.astype(kind)), tmp_path / "deep.tif")
    brightest = 255 if scale is None else white / scale * 255
    assert np.abs(pixels - RAMP * brightest).max() <= 1


def test_a_tiff_that_counts_from_white_to_black_is_turned_over(tmp_path):
    values = (65535 - RAMP * 60000).round().astype(np.uint16)
    pixels = read_back(Image.fromarray(values), tmp_path / "white.tif", tiffinfo={262: 0})
    assert Image.open(tmp_path / "white.tif").tag_v2[262] == 0
    assert np.abs(pixels - RAMP * 60000 / 65535 * 255).max() <= 1


def test_values_that_are_no_numbers_are_refused(tmp_path):
    values = RAMP.astype(np.float32)
    values[3, 5] = np.nan
    with pytest.raises(InputError, match="no numbers"):
        read_back(Image.fromarray(values), tmp_path / "nan.tif")


# ---- colour, transparency, orientation ----

@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_lies_on_black(tmp_path, mode):
    pixels = np.full((40, 40, 4), 200, np.uint8)
    pixels[:, :20, 3] = 0
    pixels[:, 20:, 3] = 255
    image = Image.fromarray(pixels, "RGBA").convert(mode)
    result = read_back(image, tmp_path / "alpha.png")
    assert (result[:, :20] == 0).all() and (result[:, 20:] == 200).all()


def test_palettes_one_bit_and_cmyk(tmp_path):
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 90, 90, 90, 255, 255, 255])
    assert (read_back(image, tmp_path / "palette.png") == 90).all()
    assert (read_back(image, tmp_path / "transparent.png", transparency=1) == 0).all()

    pixels = read_back(Image.fromarray(RAMP > 0.5), tmp_path / "bits.png")
    assert np.array_equal(pixels, np.where(RAMP > 0.5, 255, 0))

    cmyk = Image.fromarray((RAMP * 255).astype(np.uint8)).convert("CMYK")
    assert np.abs(read_back(cmyk, tmp_path / "cmyk.jpg", quality=95) - RAMP * 255).mean() < 4


def test_turned_upright_by_its_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6                    # orientation: turn by 90 degrees
    assert read_back(Image.new("L", (64, 48)), tmp_path / "x.jpg", exif=exif).shape == (64, 48)


# ---- refused ----

def bomb(side=20_000):
    """A PNG of 64 x 64 whose header claims 400 million pixels."""
    whole = encoded((64, 64))
    return whole[:8] + png_chunk(b"IHDR", side.to_bytes(4, "big") * 2 + whole[24:29]) + whole[33:]


@pytest.mark.parametrize("content, words", [
    (None, "no such file"),
    (b"", "empty or no image"),
    (b"hello, I am text" * 100, "empty or no image"),
    (encoded((40, 31)), "shorter than 32"),
    (encoded((257, 32)), "more than 8 times"),
    (encoded((64, 64))[:2000], "damaged"),
    (encoded((64, 64), "JPEG")[:1500], "damaged"),
    (bomb(), "200 million"),
    (encoded((256, 32)), None),         # the limits themselves are allowed
])
def test_refused_in_a_sentence_with_the_name(tmp_path, content, words):
    path = tmp_path / "film.png"
    if content is not None:
        path.write_bytes(content)
    if words is None:
        assert read_image(path).size == (256, 32)
        return
    with pytest.raises(InputError, match=words) as error:
        read_image(path)
    with pytest.raises(InputError, match="the open file cannot be read"):
        read_image(io.BytesIO(content if content else b""))
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_what_is_no_readable_file_is_said_to_be_so(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, words in (("pipe.png", "a pipe or a device"), ("folder.png", "a folder"),
                        ("folder.png/x.png", "no such file"), ("x" * 300, "File name too long"),
                        ("a\0b", "no such file"), ("x.png/y.png", "no such file")):
        with pytest.raises(Unusable, match=words):
            read_grey(tmp_path / name)


def test_a_bomb_is_refused_before_memory_is_taken(monkeypatch):
    """By its header; and a small one with a text that unfolds to a thousand times its size."""
    with pytest.raises(Unusable, match="more than 200 million"):
        read_grey(io.BytesIO(bomb(40_000)))
    whole = encoded((64, 64))
    text = png_chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(1 << 25)))
    tracemalloc.start()
    with pytest.raises(Unusable):
        read_grey(io.BytesIO(whole[:33] + text + whole[33:]))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 1 << 23


def test_only_what_may_be_a_film_is_opened():
    """Pillow would hand PostScript to a program."""
    with pytest.raises(Unusable, match="no image that Pillow reads"):
        read_grey(io.BytesIO(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\nshowpage\n"))


# ---- DICOM, JPEG and real films ----

def test_dicom_is_known_by_its_content_and_monochrome1_is_turned_over(tmp_path):
    path = tmp_path / "IM00001"
    for photometric, expected in (("MONOCHROME2", RAMP), ("MONOCHROME1", 1 - RAMP)):
        path.write_bytes(dicom_file(RAMP * 4000, photometric))
        assert np.abs(np.asarray(read_image(path), float) - expected * 255).max() <= 1

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
        assert image.mode == "L" and values.std() > 10 and values.max() > 100, path


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
    assert len(failures) == 1 and "empty holds no image" in failures[0]


def test_what_a_folder_holds_besides_is_counted(tmp_path, capsys):
    """Folders below are looked into; DICOM needs no ending."""
    films = tmp_path / "films"
    for folder in ("p2/s1", "p10", ".git", "p2/nothing"):
        (films / folder).mkdir(parents=True)
    (films / "again").symlink_to(films)                     # leads in a circle
    wanted = ["p10/a.tif", "p2/IM0001", "p2/s1/1.2.840.3", "p2/s1/broken.avif", "z.jp2"]
    for name in (*wanted, "a.csv", "p10/a.txt", "p2/b.TXT", "._z.jp2", ".git/x.png", "README",
                 "DICOMDIR"):
        is_dicom = name in ("p2/IM0001", "p2/s1/1.2.840.3", "DICOMDIR")
        (films / name).write_bytes(bytes(128) + b"DICM" if is_dicom else b"")
    failures = []
    found = [path for _, path in image_files([films], failures)]
    assert found == [films / name for name in wanted] and failures == []
    assert capsys.readouterr().err == (
        f"folder {films}: 5 images in 4 folders; passed over 6 other files (.txt 2, no ending 2, "
        ".csv 1, hidden 1) and 2 folders (hidden 1, link 1).\n")

    # one sentence too where nothing was found; none where all is as it seems
    (films / "p2" / "nothing" / "x.txt").write_bytes(b"")
    assert image_files([films / "p2" / "nothing"], failures) == []
    assert "holds no image" in failures[0] and "passed over 1 other file (.txt 1)." in failures[0]
    image_files([films / "p2" / "s1"], failures)
    assert capsys.readouterr().err == ""


def test_names_that_are_no_utf_8(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/film\xff\xe9.png")
    try:
        Image.new("L", (40, 40), 9).save(name)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    (files,) = image_files([tmp_path], [])
    assert files[0] == name and read_image(files[1]).getpixel((0, 0)) == 9
    with open(name, "wb") as file:
        file.write(b"damaged")
    with pytest.raises(InputError, match="film.*png cannot be read as an image"):
        read_image(name)


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
    assert image.text["notice"] == NOTICE and image.text["report"] == "Größe 3 × 4 mm"
    assert json.loads(image.text["seed"]) == 3 and image.getpixel((3, 3)) == 7
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_captioned_pictures_stand_in_a_grid_over_their_captions():
    pictures = np.stack([np.full((32, 32), 40 * i, np.uint8) for i in range(5)])
    captions = ["short", "a much longer caption " * 5, "two\nlines", "", "end"]
    sheet = captioned(pictures, captions)
    assert sheet.width == 3 * (64 + 4) and sheet.height % 2 == 0
    for n in range(5):
        row, column = divmod(n, 3)
        assert sheet.getpixel((column * 68 + 30, row * sheet.height // 2 + 30)) == 40 * n
