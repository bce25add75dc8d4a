"""common/dicom.py: what a header says about the numbers is done, in order, or the file is refused.
"""
import io
import sys

import numpy as np
import pytest
from PIL import Image

from common.images import Unusable, read_grey
from helpers import dicom_file

# bright to the right and, a little less, downwards: no two sides are alike
SHADE = np.linspace(0.2, 1, 64)[None] * np.linspace(0.5, 1, 48)[:, None]
VALUES = (SHADE * 4000).round()
OBLONG = np.zeros(VALUES.shape, bool)
OBLONG[10:20, 5:30] = True


def shown(content):
    """The picture as floats from 0 to 255."""
    file = io.BytesIO(content) if isinstance(content, bytes) else content
    return np.asarray(read_grey(file)).astype(float)


def stretched(values, hidden=None):
    """Smallest to largest becomes 0 to 255; hidden pixels are black and do not count."""
    values = np.asarray(values, float)
    seen = values if hidden is None else values[~hidden]
    picture = (values - seen.min()) / (seen.max() - seen.min()) * 255
    if hidden is not None:
        picture[hidden] = 0
    return picture


def refusal(content):
    """Why a file is not read."""
    with pytest.raises(Unusable) as error:
        shown(content)
    return str(error.value)


def windowed(center, width):
    """What a viewer shows of a window, by DICOM's formula for it."""
    middle, half = center - 0.5, (width - 1) / 2
    return stretched(np.clip(VALUES, middle - half, middle + half))


def table(last=4095, bits=16, first=0):
    """A lookup table of 4096 squares up to `last`, as a sequence of one item."""
    import pydicom
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [4096, first, bits])
    squares = (np.arange(4096) / 4095) ** 2 * last
    item.add_new("LUTData", "OW", squares.round().astype("<u2").tobytes())
    return [item]


SQUARES = stretched(VALUES ** 2)


# ---- grey: padding, rescaling, window, polarity ----

@pytest.mark.parametrize("fields, expected", [
    (dict(RescaleSlope="", RescaleIntercept=""), stretched(VALUES)),
    (dict(RescaleSlope=0, RescaleIntercept=0), stretched(VALUES)),
    (dict(RescaleSlope=-1, RescaleIntercept=4000), stretched(-VALUES)),
    (dict(RescaleSlope=-1), stretched(-VALUES)),
    (dict(WindowCenter=2000, WindowWidth=2000), windowed(2000, 2000)),
    (dict(WindowCenter=[2000, 1], WindowWidth=[2000, 9]), windowed(2000, 2000)),
    (dict(WindowCenter=[0, 2000], WindowWidth=[0, 2000]), windowed(2000, 2000)),
    (dict(WindowCenter=3900, WindowWidth=3999, RescaleSlope=2, RescaleIntercept=-100),
     windowed(2000.25, 2000)),
    (dict(WindowCenter=0, WindowWidth=0), stretched(VALUES)),
    (dict(WindowCenter="", WindowWidth=""), stretched(VALUES)),
    (dict(WindowCenter=100), stretched(VALUES)),
    (dict(WindowCenter=60000, WindowWidth=10), stretched(VALUES)),      # all would be black
    (dict(WindowCenter=2000, WindowWidth=2000, VOILUTFunction="LINEAR_EXACT"),
     stretched(np.clip(VALUES, 1000, 3000))),
    (dict(WindowCenter=2000, WindowWidth=2000, VOILUTFunction="SIGMOID"),
     stretched(1 / (1 + np.exp(-4 * (VALUES - 2000) / 2000)))),
    (dict(PresentationLUTShape="IDENTITY"), stretched(VALUES)),
    (dict(PresentationLUTShape="INVERSE"), stretched(-VALUES)),
    (dict(photometric="MONOCHROME1"), stretched(-VALUES)),
    (dict(photometric="MONOCHROME1", PresentationLUTShape="INVERSE"), stretched(-VALUES)),
    (dict(NumberOfFrames=1), stretched(VALUES)),
])
def test_grey_is_scaled_as_the_header_says(fields, expected):
    content = dicom_file(VALUES, **{"photometric": "MONOCHROME2", **fields})
    assert np.abs(shown(content) - expected).max() <= 1


def test_tables_are_looked_up_by_rescaled_numbers():
    for fields in (dict(VOILUTSequence=table(), RescaleSlope=1, RescaleIntercept=0),
                   dict(VOILUTSequence=table(last=255, bits=8)),
                   dict(ModalityLUTSequence=table(), WindowCenter="", WindowWidth="")):
        content = dicom_file(VALUES, "MONOCHROME2", **fields)
        assert np.abs(shown(content) - SQUARES).max() <= 2, fields
    # below the table's first number its first entry counts, above its last the last
    shifted = shown(dicom_file(VALUES, "MONOCHROME2", VOILUTSequence=table(first=1000)))
    assert np.abs(shifted - stretched(np.clip(VALUES - 1000, 0, 4095) ** 2)).max() <= 1


@pytest.mark.parametrize("padding, stored, signed", [
    ((63536,), 63536, False),
    ((63536,), -2000, True),                # written without the sign that the pixels have
    ((-2000,), -2000, True),
    ((-2000,), 63536, False),
    ((60000, 60200), np.arange(250) % 200 + 60000, False),
    ((60200, 60000), np.arange(250) % 200 + 60000, False),
    ((63536, 63336), -2000 - np.arange(250) % 200, True),
])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_stays_out_of_the_scaling_and_is_black(padding, stored, signed, photometric):
    values = VALUES.copy()
    values[OBLONG] = stored
    # with 12 bits the padding lies beyond what the pixels can hold; with a sign so would the pixels
    for bits in (16,) if signed else (12, 16):
        content = dicom_file(values.astype(np.int64), photometric, padding, BitsStored=bits,
                             HighBit=bits - 1, PixelRepresentation=int(signed))
        sign = -1 if photometric == "MONOCHROME1" else 1
        difference = shown(content) - stretched(sign * VALUES, OBLONG)
        assert np.abs(difference).max() <= 1


def test_nothing_but_padding_is_refused():
    assert "nothing in it" in refusal(dicom_file(np.full((48, 64), 7), padding=(7,)))


# ---- colour, orientation ----

def colour(pixels, photometric, **fields):
    """A DICOM file of three channels."""
    bits = 8 * pixels.itemsize
    return dicom_file(SHADE, photometric, SamplesPerPixel=3, PlanarConfiguration=0,
                      BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1,
                      PixelData=pixels.tobytes(), **fields)


def test_colour_is_its_luminance():
    grey = (SHADE * 255).round().astype(np.uint8)
    middle = np.full_like(grey, 128)
    assert np.array_equal(shown(colour(np.dstack([grey] * 3), "RGB")), grey)
    assert np.array_equal(shown(colour(np.dstack([grey, middle, middle]), "YBR_FULL")), grey)
    deep = np.dstack([VALUES.astype(np.uint16)] * 3)
    assert np.abs(shown(colour(deep, "RGB")) - VALUES / 4095 * 255).max() <= 1


def test_frontal_films_are_hung_up():
    upright = shown(dicom_file(VALUES))
    turned = {
        "LF": VALUES, "RF": VALUES[:, ::-1], "LH": VALUES[::-1], "RH": VALUES[::-1, ::-1],
        "FL": VALUES.T, "FR": VALUES.T[::-1], "HL": VALUES.T[:, ::-1], "HR": VALUES.T[::-1, ::-1],
        "AF": VALUES,                       # lateral: no side is the right one
    }
    for directions, values in turned.items():
        content = dicom_file(np.ascontiguousarray(values), PatientOrientation=list(directions))
        assert np.array_equal(shown(content), upright), directions
    assert np.array_equal(shown(dicom_file(VALUES, PatientOrientation="")), upright)


# ---- files of other makes ----

def test_compressed_pixels_are_decoded_or_their_decoder_is_named():
    import pydicom
    from pydicom.encaps import encapsulate
    grey = Image.fromarray((SHADE * 255).round().astype(np.uint8))
    jpeg = io.BytesIO()
    grey.save(jpeg, "JPEG", quality=100)
    eight = dict(BitsAllocated=8, BitsStored=8, HighBit=7, photometric="MONOCHROME2")
    pixels = dict(PixelData=encapsulate([jpeg.getvalue()]))
    difference = shown(dicom_file(SHADE, syntax=".4.50", **eight, **pixels)) - stretched(grey)
    assert np.abs(difference).max() <= 4

    for syntax, words in ((".4.70", "JPEG Lossless"), (".4.80", "JPEG-LS")):
        decoder = pydicom.pixels.get_decoder(pydicom.uid.UID("1.2.840.10008.1.2" + syntax))
        if decoder.is_available:
            continue
        reason = refusal(dicom_file(SHADE, syntax=syntax, **eight, **pixels))
        assert words in reason and "pip install pylibjpeg pylibjpeg-libjpeg" in reason
    assert "for which there is no decoder" in refusal(
        dicom_file(SHADE, syntax=".4.102", **eight, **pixels))
    lossless = dicom_file(SHADE, syntax=".4.70", **eight, **pixels)
    assert "DICOM does not know" in refusal(lossless.replace(b"1.2.4.70", b"1.2.4.99"))


@pytest.mark.parametrize("fields, words", [
    (dict(NumberOfFrames=2, PixelData=bytes(2 * 2 * VALUES.size)), "2 frames"),
    (dict(PixelData=None), "without pixels"),
    (dict(PixelData=None, Rows=None), "without a picture"),
    (dict(PixelData=bytes(100)), "damaged or unreadable"),
    (dict(PhotometricInterpretation=None), "damaged or unreadable"),
    (dict(Rows=30, Columns=64), "shorter than 32"),
    (dict(syntax=".1.99"), "deflated"),
])
def test_refused(fields, words):
    assert words in refusal(dicom_file(VALUES, **fields))


def test_without_its_first_bytes_it_is_known_by_its_name(tmp_path):
    """Very old files have neither the preamble nor "DICM", and some programs cut it off."""
    content = dicom_file(VALUES)
    path = tmp_path / "film.dcm"
    path.write_bytes(content[132:])
    assert np.array_equal(shown(path), shown(content))
    path.write_bytes(b"hello, I am text" * 20)
    assert "DICOM by its name alone" in refusal(path)


def test_without_pydicom_it_says_how_to_get_it(monkeypatch):
    content = dicom_file(VALUES)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert refusal(content) == "a DICOM file needs pydicom 3 (pip install pydicom)"
