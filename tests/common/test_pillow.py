"""common/pillow.py: every depth, sign, order of bytes and layout is read rightly or refused.

What Pillow cannot write is written here byte by byte.
"""
import io
import struct
import time

import numpy as np
import pytest
from PIL import Image

from common.images import Unusable, read_grey
from fuzz_images import saved
from helpers import png_chunk, png_of, tiff_of

RAMP = np.linspace(0, 1, 64)[None].repeat(48, 0)
TWELVE = (RAMP * 4095).round().astype(np.uint16)        # a 12-bit film in 16 bits
EIGHT = (RAMP * 255).round().astype(np.uint8)
WHOLE = np.full_like(TWELVE, 65535)                     # opaque


def shown(content):
    """The picture as floats from 0 to 255."""
    return np.asarray(read_grey(io.BytesIO(content))).astype(float)


def refusal(content):
    """Why a file is not read."""
    with pytest.raises(Unusable) as error:
        shown(content)
    return str(error.value)


def is_the_ramp(content, turned_over=False):
    expected = 255 - RAMP * 255 if turned_over else RAMP * 255
    return np.abs(shown(content) - expected).max() <= 1


# ---- 16 bits a channel ----

def test_16_bits_a_channel_keep_their_greys():
    """Pillow keeps the high byte alone, of which a 12-bit film has 16."""
    three = np.dstack([TWELVE] * 3)
    for channels in (three, np.dstack([three, WHOLE]), np.dstack([TWELVE, WHOLE])):
        assert is_the_ramp(png_of(channels)), channels.shape
    for order in "<>":
        for deflate in (False, True):
            assert is_the_ramp(tiff_of(three, 2, order, deflate))
            four = np.dstack([three, WHOLE])
            assert is_the_ramp(tiff_of(four, 2, order, deflate, t338=2))
            assert is_the_ramp(tiff_of(four, 2, order, deflate, t338=0))


def test_deep_colour_is_its_luminance_and_the_brightest_channel_counts():
    pixels = np.zeros((40, 40, 3), np.uint16)
    pixels[:, :10] = 4095, 4095, 4095
    pixels[:, 10:20] = 4095, 0, 0
    pixels[:, 20:30] = 0, 2048, 0
    assert shown(png_of(pixels))[0, ::10].tolist() == [255, 76, 75, 0]
    # blue alone: as bright as blue of 8 bits is
    assert shown(png_of(pixels * np.array([0, 0, 1], np.uint16)))[0, 0] == 29


def test_what_is_transparent_is_black_and_does_not_count():
    alpha = WHOLE.copy()
    alpha[:, 32:] = 0
    values = np.where(alpha > 0, TWELVE, 65535).astype(np.uint16)
    expected = np.where(alpha > 0, RAMP * 255 * 4095 / 2047, 0)
    for channels in ([values, alpha], [values] * 3 + [alpha]):
        assert np.abs(shown(png_of(np.dstack(channels))) - expected).max() <= 1
    # a colour, or a grey, that stands for "transparent"
    key = (65535).to_bytes(2, "big")
    keyed = png_of(np.dstack([values] * 3), png_chunk(b"tRNS", key * 3))
    assert np.abs(shown(keyed) - expected).max() <= 1
    grey = saved(Image.fromarray(values), "PNG")
    start = grey.index(b"IDAT") - 4
    keyed = grey[:start] + png_chunk(b"tRNS", key) + grey[start:]
    assert np.abs(shown(keyed) - expected).max() <= 1
    alpha[:] = 0
    assert "transparent" in refusal(png_of(np.dstack([values, alpha])))


@pytest.mark.parametrize("content", [
    tiff_of(np.dstack([TWELVE] * 3), 2, t284=2),                # in planes
    tiff_of(np.dstack([TWELVE] * 3), 2, deflate=True, t284=2),
    tiff_of(np.dstack([TWELVE] * 4), 5),                        # CMYK
    tiff_of(np.dstack([TWELVE] * 4), 2, t338=1),                # multiplied by its alpha
    b"P6 64 48 65535\n" + np.dstack([TWELVE] * 3).astype(">u2").tobytes(),
    b"P3 64 48 4095\n" + b" ".join(b"%d" % value for value in TWELVE.repeat(3)),
])
def test_16_bits_a_channel_that_would_be_lost_are_refused(content):
    assert "more than 8 bits a channel" in refusal(content)


def test_deep_jpeg_2000_in_colour_is_refused():
    grey = saved(Image.fromarray(EIGHT).convert("RGB"), "JPEG2000", no_jp2=True)
    place = grey.index(b"\xff\x4f\xff\x51") + 42
    deep = bytearray(grey)
    for channel in range(3):
        deep[place + 3 * channel] = 15                          # bits, less one
    assert "JPEG2000 with more than 8 bits" in refusal(bytes(deep))


# ---- grey ----

@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("values, photometric, known", [
    (EIGHT, 1, "<>"),
    (EIGHT, 0, "<>"),
    ((EIGHT.astype(np.int16) - 128).astype(np.int8), 1, "<>"),
    (TWELVE, 1, "<>"),
    (65535 - TWELVE * 16, 0, "<"),
    (TWELVE.astype(np.int16), 1, "<>"),
    (TWELVE.astype(np.int16) - 2000, 1, "<>"),
    (TWELVE.astype(np.uint32) << 20, 1, "<"),                   # beyond what has a sign
    (TWELVE.astype(np.int32) * 1024, 1, "<>"),
    (TWELVE.astype(np.float32), 1, "<>"),
    (TWELVE.astype(np.float32) / 4095, 1, "<>"),
    (1 - TWELVE.astype(np.float32) / 4095, 0, "<>"),
])
def test_tiff_of_any_depth_sign_and_order(values, photometric, known, deflate, order):
    content = tiff_of(values, photometric, order, deflate)
    if order in known:
        assert is_the_ramp(content, turned_over=values.dtype == np.uint8 and not photometric)
    else:                                                       # not by Pillow
        assert "no image that Pillow reads" in refusal(content)


def test_white_is_zero_beyond_8_bits_counts_from_the_largest_of_its_bits():
    assert np.abs(shown(tiff_of(TWELVE, 0)) - (255 - RAMP * 255)).max() <= 1


@pytest.mark.parametrize("content", [
    b"P5 64 48 255\n" + EIGHT.tobytes(),
    b"P5 64 48 4095\n" + TWELVE.astype(">u2").tobytes(),
    b"P5 64 48 65535\n" + TWELVE.astype(">u2").tobytes(),
    b"P2 64 48 4095\n" + b" ".join(b"%d" % value for value in TWELVE.ravel()),
    b"P6 64 48 255\n" + np.dstack([EIGHT] * 3).tobytes(),
    b"Pf 64 48 -1.0\n" + TWELVE[::-1].astype("<f4").tobytes(),
    saved(Image.fromarray(TWELVE), "PNG"),
    saved(Image.fromarray(TWELVE), "JPEG2000", irreversible=False),
    saved(Image.fromarray(EIGHT), "GIF"),
    saved(Image.fromarray(EIGHT), "WEBP", lossless=True),
    saved(Image.fromarray(EIGHT), "BMP"),
])
def test_other_files_of_grey(content):
    assert is_the_ramp(content)


def test_jpeg_2000_with_a_sign_is_stretched():
    content = bytearray(saved(Image.fromarray(TWELVE + 20000), "JPEG2000"))
    place = content.index(b"\xff\x4f\xff\x51") + 42
    content[place] |= 128
    assert is_the_ramp(bytes(content))


def test_fractions_of_which_white_is_not_known_are_refused():
    assert "cannot be known" in refusal(tiff_of(RAMP.astype(np.float32) * 1.01))
    below = shown(tiff_of(RAMP.astype(np.float32) * 0.5))
    assert np.abs(below - RAMP * 127.5).max() <= 1


def test_colours_that_are_not_read_are_named():
    assert "LAB" in refusal(tiff_of(np.dstack([EIGHT] * 3), 8))


def test_alpha_of_8_bits_in_tiff():
    for kind in (1, 2):                                         # multiplied into the grey, or not
        pixels = np.dstack([EIGHT, np.full_like(EIGHT, 255)])
        assert is_the_ramp(tiff_of(pixels, 1, t338=kind))


# ---- several pictures, orientation ----

@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP", "AVIF"])
def test_several_pictures_in_a_file_are_refused(kind):
    # two of one look would be joined into one
    frames = [Image.fromarray(EIGHT[::-1, ::step]).resize((64, 48)) for step in (1, -1)]
    buffer = io.BytesIO()
    frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
    assert "it holds several pictures" in refusal(buffer.getvalue())


def test_thumbnails_are_no_pictures():
    small = Image.fromarray(EIGHT).resize((32, 32))
    for kind, options in (("TIFF", dict(tiffinfo={254: 1})), ("MPO", {})):
        buffer = io.BytesIO()
        small.encoderinfo = options
        Image.fromarray(EIGHT).save(buffer, kind, save_all=True, append_images=[small])
        assert np.abs(shown(buffer.getvalue()) - RAMP * 255).mean() <= 2, kind


@pytest.mark.parametrize("reduced", [0, 1])
def test_a_chain_of_50_000_pages_does_not_take_long(reduced):
    """Pillow looks for each of them among all that came before."""
    fields = {254: reduced, 256: 64, 257: 48, 273: 8}
    page = struct.pack("<H", len(fields)) + b"".join(
        struct.pack("<HHII", tag, 4, 1, value) for tag, value in fields.items())
    chain = bytearray(b"II*\0\x08\0\0\0")
    for _ in range(50_000):
        chain += page + struct.pack("<I", len(chain) + len(page) + 4)
    start = time.monotonic()
    assert "several pictures" in refusal(bytes(chain))
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "AVIF"])
def test_turned_upright_by_its_exif(kind):
    """In every one of the eight ways, once."""
    quarter = np.zeros((48, 64), np.uint8)
    quarter[:24, :32] = 255                                     # bright at the upper left
    quarter[:8, 32:] = 120
    for way, turned in enumerate((
        quarter, quarter[:, ::-1], quarter[::-1, ::-1], quarter[::-1], quarter.T,
        quarter.T[::-1], quarter.T[::-1, ::-1], quarter.T[:, ::-1],
    ), 1):
        exif = Image.Exif()
        exif[0x0112] = way
        image = Image.fromarray(np.ascontiguousarray(turned))
        options = {} if kind in ("PNG", "TIFF") else dict(quality=95)
        picture = shown(saved(image, kind, exif=exif, **options))
        assert picture.shape == quarter.shape, way
        assert np.abs(picture - quarter).mean() < 5, way


def test_junk_instead_of_exif_does_not_matter():
    whole = saved(Image.fromarray(EIGHT), "PNG")
    for junk in (b"", b"hello world, no exif", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff"):
        content = whole[:33] + png_chunk(b"eXIf", junk) + whole[33:]
        assert is_the_ramp(content), junk
