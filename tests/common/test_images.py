"""common/images.py: whatever a user may give; every odd file is read rightly or refused in one sentence."""
import io
import json

import numpy as np
import pytest
from PIL import Image

from common import images
from common.cli import InputError
from helpers import SHARED, needs_films
from common.images import NOTICE, captioned, image_files, read_image, save_png

RAMP = np.linspace(0, 1, 64)[None].repeat(48, 0)            # 48 rows, 64 columns, dark to bright


def saved(image, path, **kw):
    image.save(path, **kw)
    return path


def grey(path):
    image = read_image(path)
    assert image.mode == "L"
    return np.asarray(image).astype(float)


@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_deep_pictures_are_scaled_not_clipped(tmp_path, bits):
    values = (RAMP * (2 ** bits - 1)).round().astype(np.uint16)
    got = grey(saved(Image.fromarray(values), tmp_path / "deep.png"))
    assert np.abs(got - RAMP * 255).max() <= 1 and len(np.unique(got)) == 64


def test_a_dark_12_bit_picture_keeps_its_darkness(tmp_path):
    """The brightest pixel decides the number of bits, not the scale: 3000 of 4095 stays 3000 / 4095."""
    got = grey(saved(Image.fromarray((RAMP * 3000).round().astype(np.uint16)), tmp_path / "dark.png"))
    assert abs(got.max() - 3000 / 4095 * 255) <= 1


def test_32_bit_integers_and_floats(tmp_path):
    for values in ((RAMP * 4095).astype(np.int32), (RAMP * 4095).astype(np.float32)):
        assert np.abs(grey(saved(Image.fromarray(values), tmp_path / "deep.tif")) - RAMP * 255).max() <= 1
    broken = (RAMP * 4095).astype(np.float32)
    broken[0, :3] = np.nan, -5, 7
    assert grey(saved(Image.fromarray(broken), tmp_path / "nan.tif"))[0, :2].max() == 0


def test_a_black_deep_picture(tmp_path):
    assert grey(saved(Image.fromarray(np.zeros((40, 40), np.uint16)), tmp_path / "black.png")).max() == 0


def test_transparency_lies_on_black(tmp_path):
    pixels = np.full((40, 40, 4), 200, np.uint8)
    pixels[:, 20:, 3], pixels[:, :20, 3] = 255, 0
    got = grey(saved(Image.fromarray(pixels, "RGBA"), tmp_path / "rgba.png"))
    assert (got[:, :20] == 0).all() and (got[:, 20:] == 200).all()
    got = grey(saved(Image.fromarray(pixels, "RGBA").convert("LA"), tmp_path / "la.png"))
    assert (got[:, :20] == 0).all() and (got[:, 20:] == 200).all()


def test_palette(tmp_path):
    image = Image.new("P", (40, 40), 1)
    image.putpalette([0, 0, 0, 90, 90, 90, 255, 255, 255])
    assert (grey(saved(image, tmp_path / "p.png")) == 90).all()
    assert (grey(saved(image, tmp_path / "t.png", transparency=1)) == 0).all()      # its grey is transparent


def test_cmyk_jpeg(tmp_path):
    got = grey(saved(Image.fromarray((RAMP * 255).astype(np.uint8)).convert("CMYK"), tmp_path / "c.jpg", quality=95))
    assert np.abs(got - RAMP * 255).mean() < 4


def test_one_bit(tmp_path):
    got = grey(saved(Image.fromarray(RAMP > 0.5), tmp_path / "1.png"))
    assert set(np.unique(got)) == {0, 255} and got[0, 0] == 0 and got[0, -1] == 255


def test_rotated_by_its_exif(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(saved(Image.new("L", (64, 48)), tmp_path / "r.jpg", exif=exif)).size == (48, 64)


def file(path, content):
    path.write_bytes(content)
    return path


def encoded(size, kind="PNG"):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, size[::-1], dtype=np.uint8)).save(buffer := io.BytesIO(), kind)
    return buffer.getvalue()


@pytest.mark.parametrize("content, words", [
    (b"", "not an image"), (b"hello, I am text" * 100, "not an image"), (encoded((16, 16)), "at least 32"),
    (encoded((40, 31)), "at least 32"), (encoded((400, 40)), "at most 8:1"), (encoded((40, 400)), "at most 8:1"),
    (encoded((64, 64))[:2000], "damaged"), (encoded((64, 64), "JPEG")[:1500], "damaged"),
    (encoded((64, 64), "TIFF")[:300], "damaged|not an image"), (encoded((64, 64))[:20], "damaged|not an image")])
def test_refused_in_a_sentence(tmp_path, content, words):
    path = file(tmp_path / "film.png", content)
    with pytest.raises(InputError, match=words) as error:
        read_image(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(32, 32), (256, 32)])
def test_the_limits_themselves_are_allowed(tmp_path, size):
    assert read_image(file(tmp_path / "film.png", encoded(size))).size == size


def test_missing_a_folder_and_a_bomb(tmp_path):
    with pytest.raises(InputError, match="there is no image at"):
        read_image(tmp_path / "missing.png")
    with pytest.raises(InputError):
        read_image(tmp_path)
    bomb = encoded((64, 64))
    bomb = bomb[:16] + (20_000).to_bytes(4, "big") * 2 + bomb[24:]      # the header claims 400 million pixels
    import zlib
    bomb = bomb[:29] + zlib.crc32(bomb[12:29]).to_bytes(4, "big") + bomb[33:]
    with pytest.raises(InputError, match="200 million"):
        read_image(file(tmp_path / "bomb.png", bomb))


@pytest.mark.filterwarnings("ignore")
def test_damage_anywhere():
    """Flip bytes and cut files of every kind at random: read, or one sentence; never another exception."""
    rng, refused = np.random.default_rng(0), 0
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF"):
        whole = encoded((48, 48), kind)
        for n in range(40):
            content = bytearray(whole)
            for place in rng.integers(0, len(whole), 8):
                content[place] = rng.integers(256)
            content = bytes(content[:rng.integers(1, len(whole))] if n % 2 else content)
            try:
                read_image(io.BytesIO(content), "film")
            except InputError:
                refused += 1
    assert refused > 100


def test_a_folder_is_its_images(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "empty").mkdir()
    a, b, notes = (tmp_path / name for name in ("a.JPG", "b.png", "notes.txt"))
    failures = []
    assert image_files([tmp_path], failures) == [(str(a), a), (str(b), b)]
    assert image_files([notes], failures) == [(str(notes), notes)] and not failures         # named: tried
    assert image_files([tmp_path / "empty", b], failures) == [(str(b), b)]
    assert len(failures) == 1 and "empty holds no image" in failures[0]


def test_a_picture_that_cannot_be_written_leaves_nothing(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(OSError):
        save_png(Image.new("L", (8, 8)), tmp_path / "x.png")
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_png_tells_how_it_was_made(tmp_path):
    save_png(Image.new("L", (8, 8), 7), tmp_path / "x.png", report="Größe 3 × 4 mm", seed=3)
    image = Image.open(tmp_path / "x.png")
    assert image.text["notice"] == NOTICE and image.text["report"] == "Größe 3 × 4 mm" and json.loads(image.text["seed"]) == 3
    assert image.mode == "L" and image.getpixel((3, 3)) == 7 and [p.name for p in tmp_path.iterdir()] == ["x.png"]


def test_captioned():
    pictures = np.stack([np.full((32, 32), 40 * i, np.uint8) for i in range(5)])
    sheet = captioned(pictures, ["short", "a much longer caption " * 5, "two\nlines", "", "end"])
    assert sheet.width == 3 * (64 + 4) and sheet.height % 2 == 0
    row = sheet.height // 2
    for n in range(5):
        assert sheet.getpixel((n % 3 * 68 + 30, n // 3 * row + 30)) == 40 * n


FILMS = sorted((SHARED / "real_cxr" / "images").glob("*")) if (SHARED / "real_cxr" / "images").exists() else []


@needs_films
@pytest.mark.parametrize("path", [p for p in FILMS if p.suffix != ".dcm"], ids=lambda p: p.name)
def test_real_films(path):
    image = read_image(path)
    values = np.asarray(image)
    assert image.mode == "L" and values.std() > 10 and values.max() > 100


@needs_films
def test_dicom_is_refused():
    for path in [p for p in FILMS if p.suffix == ".dcm"]:
        with pytest.raises(InputError, match="PNG or JPEG"):
            read_image(path)


def test_checked_goes_on_without_what_is_bad():
    def positive(name, x):
        if x < 0:
            raise InputError(f"{name} is negative.")
        return x + 1

    failures = []
    assert images.checked([("a", 1), ("b", -1), ("c", 3)], positive, failures) == [("a", 2), ("c", 4)]
    assert failures == ["b is negative."]
    assert images.checked([("d", -2)], positive, failures) == []
    assert failures == ["b is negative.", "d is negative."]


def test_text_lines(tmp_path):
    path = tmp_path / "r.txt"
    path.write_text("Größe 3 × 4 mm\n\n  \nsecond", encoding="utf-8")
    assert images.text_lines(path) == ["Größe 3 × 4 mm", "second"]
    path.write_bytes(b"\xff\xfe\x00broken\xff")
    for wrong in (path, tmp_path / "none.txt", tmp_path):
        with pytest.raises(InputError, match="missing or not a text file"):
            images.text_lines(wrong)
