"""One image file of a data set -> small 8-bit grey pictures of several sizes, decoded once.

    picture, reason = read(path, largest=512, min_side=64, max_aspect=3)     # a reason instead of a picture: skip it
    fit(picture, 384, "pad", 141)                                           # 384 x 384

An image that is damaged is never repaired: Pillow would fill the rest with grey. The whole file is decoded, because
`open` and `verify` accept truncated JPEGs.
"""
import glob
import io
import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.images import MAX_PIXELS, to_grey
from vision import preprocess

ENDINGS = ("", ".jpg", ".dcm", ".png")      # MIMIC-CXR as JPG, as DICOM, or as somebody's PNG


# what decoders raise for damaged files: more than they document
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError, RuntimeError,
          EOFError, struct.error)


class Unusable(Exception):
    """An image that is skipped; the message is the reason."""


def locate(path):
    """The file itself, with the ending it has here; or why there is none."""
    for ending in ENDINGS:
        if os.path.isfile(f"{path}{ending}"):           # unlike Path.is_file it is content with names that cannot be
            return Path(f"{path}{ending}")
    if path.name and "\0" not in str(path) and any(path.parent.glob(f"{glob.escape(path.name)}*.gstmp")):
        raise Unusable("unfinished download (.gstmp)")
    raise Unusable("missing")


def stamp(path):
    """Size and time of the file, or why there is none: enough to notice that it was replaced or came back."""
    try:
        found = locate(path)
    except Unusable as reason:
        return str(reason)
    about = found.stat()
    return found.suffix, about.st_size, about.st_mtime_ns


def stretch(values):
    """Any numbers -> 8-bit by smallest and largest value, as MIMIC-CXR-JPG was made: scaled, never clipped."""
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    low, high = values.min(), values.max()
    return Image.fromarray(((values - low) * (255 / max(high - low, 1e-9))).round().astype(np.uint8))


def check(size, min_side, max_aspect):
    short, long = sorted(size)
    if short * long > MAX_PIXELS:
        raise Unusable(f"more than {MAX_PIXELS // 10**6} million pixels")
    if short < min_side:
        raise Unusable(f"smaller than {min_side} pixels")
    if long > max_aspect * short:
        raise Unusable(f"longer than {max_aspect:g} to 1")


def read_dicom(path, limits):
    """Window (VOI) as the file says, MONOCHROME1 turned over, scaled to 8 bits."""
    try:
        import pydicom
        from pydicom.errors import BytesLengthException, InvalidDicomError
        from pydicom.pixels import apply_modality_lut, apply_voi_lut
    except ImportError:
        raise Unusable("a DICOM file needs pydicom 3: pip install pydicom") from None
    try:
        dataset = pydicom.dcmread(path)
        check((int(dataset.Rows), int(dataset.Columns)), *limits)       # before memory is taken for them
        values = np.asarray(apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset), dtype=np.float64)
        inverted = dataset.PhotometricInterpretation == "MONOCHROME1"
    except (*DAMAGE, BytesLengthException, InvalidDicomError):
        raise Unusable("damaged or unreadable DICOM") from None
    if values.ndim != 2:
        raise Unusable(f"DICOM with {values.ndim} dimensions, wanted one grey picture")
    check(values.shape, *limits)
    return stretch(-values if inverted else values)


def read_file(path, largest, limits):
    """Any other file. A JPEG is decoded at a half or a quarter when that leaves twice the size that is wanted."""
    try:
        image = Image.open(path)
        check(image.size, *limits)
        image.draft("L", (2 * largest, 2 * largest))        # JPEG only; never below the size asked for
        image.load()
        return stretch(ImageOps.exif_transpose(image)) if image.mode.startswith(("I", "F")) else to_grey(image)
    except UnidentifiedImageError:
        size = path.stat().st_size
        raise Unusable(f"not an image ({size} bytes)" if size else "empty file") from None
    except DAMAGE:
        raise Unusable("truncated or damaged") from None


def read(path, largest, min_side=64, max_aspect=3.0, equalize=False):
    """-> (8-bit grey picture, None) or (None, reason). `equalize` is for DICOM and PNG: MIMIC's JPGs are equalised."""
    try:
        path, limits = locate(path), (min_side, max_aspect)
        dicom = path.suffix.lower() in (".dcm", ".dicom")
        picture = read_dicom(path, limits) if dicom else read_file(path, largest, limits)
        low, high = picture.getextrema()
        if low == high:
            raise Unusable("constant image")
    except Unusable as reason:
        return None, str(reason)
    if equalize and path.suffix.lower() not in (".jpg", ".jpeg"):
        picture = ImageOps.equalize(picture)
    return picture, None


def fit(picture, size, how, pad):
    """A picture -> (size, size): `pad` keeps all, centred on grey `pad`; `stretch` squashes; `crop` cuts the long side."""
    if how == "pad":
        return Image.fromarray(preprocess(picture, size, pad).numpy())
    if how == "crop":
        return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def encode(picture, form, quality=95):
    """-> bytes of a JPEG or PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG") if form == "png" else picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
