"""One image file of a collection -> the square that the network sees, as a JPEG or PNG.

    picture = read(path, largest=512)           # 8-bit grey; images.Unusable says why not
    square = fit(picture, 384, "pad", 141)      # 384 x 384
    encode(square, "jpg", quality=95)           # bytes

A file is decoded once for all sizes, by the reader of common/images.py, whose header says how deep
pixels, DICOM and transparency become grey.
"""
import glob
import io
import os
from pathlib import Path

from PIL import Image, ImageOps

from common import images
from vision import preprocess

# MIMIC-CXR as JPG, as DICOM, or as somebody's PNG come first; "" for a path that has its ending
ENDINGS = ("", ".jpg", ".dcm", ".png", *images.IMAGES, *(name.upper() for name in images.IMAGES))


def locate(path):
    """The file itself, with the ending that it has here; images.Unusable if there is none."""
    # CheXpert Plus names .jpg files and hands out .png and .dcm: another ending will do as well
    stems = [path]
    if path.suffix.lower() in images.IMAGES:
        stems.append(path.with_suffix(""))
    for stem in stems:
        for ending in ENDINGS:
            # Path.is_file raises for names that cannot be
            if os.path.isfile(f"{stem}{ending}"):
                return Path(f"{stem}{ending}")
    # Google's gsutil leaves <name>.gstmp where a download has stopped
    possible = path.name and "\0" not in str(path)
    if possible and any(path.parent.glob(f"{glob.escape(path.name)}*.gstmp")):
        raise images.Unusable("unfinished download (.gstmp)")
    raise images.Unusable("missing")


def stamp(path):
    """Ending, size and time of the file, or why there is none: enough to notice that it was
    replaced or came back."""
    try:
        file = locate(path)
    except images.Unusable as reason:
        return str(reason)
    about = file.stat()
    return file.suffix, about.st_size, about.st_mtime_ns


def read(path, largest, min_side=64, max_aspect=3.0, equalize=False):
    """An image -> 8-bit grey picture, at least twice `largest` or whole; images.Unusable if not.

    path: with or without its ending. equalize: spread the greys of DICOM and PNG evenly, as those
    of MIMIC-CXR-JPG are already.
    """
    file = locate(path)
    picture = images.read_grey(file, largest, min_side, max_aspect)
    # a placeholder, or an exposure that failed
    darkest, brightest = picture.getextrema()
    if darkest == brightest:
        raise images.Unusable("all pixels are alike")
    if equalize and file.suffix.lower() not in (".jpg", ".jpeg"):
        picture = ImageOps.equalize(picture)
    return picture


def fit(picture, size, how, pad):
    """A picture -> (size, size): `pad` keeps all, centred between bars of grey `pad`; `stretch`
    squashes; `crop` cuts the long side."""
    if how == "pad":
        # by the function that also prepares a user's image, so that both look alike
        return Image.fromarray(preprocess(picture, size, pad).numpy())
    if how == "crop":
        return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
    return picture.resize((size, size), Image.Resampling.BICUBIC)


def encode(picture, form, quality=95):
    """A picture -> the bytes of a jpg or png."""
    buffer = io.BytesIO()
    if form == "png":
        picture.save(buffer, "PNG")
    else:
        picture.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
