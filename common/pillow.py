"""An image file that Pillow reads -> one picture in 8-bit grey; what must not be left to Pillow.

Pillow's own picture is right for 8 bits and for most grey of 16 and 32. It is not right for

    16 bits a channel       it keeps the high byte, so a 12-bit film has 16 greys left: the file is
                            decoded a second time for the low byte (PNG, TIFF), or refused (PPM,
                            JPEG 2000, CMYK)
    TIFF                    white is zero beyond 8 bits, 32 bits without sign, 8 bits with sign, and
                            big-endian numbers in compressed files
    JPEG 2000 with sign     zero is moved to the middle grey
    several pictures        it shows the first
"""
import os
from contextlib import contextmanager

import numpy as np
from PIL import Image

from common.grey import DAMAGE, Unusable, check_size, from_channels, scale, stretch

# what Pillow may take a file for: its other readers are for no radiographs, and some start programs
FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "AVIF", "BMP", "JPEG2000", "PPM", "GIF")

# tags of TIFF
NEW_SUBFILE_TYPE, BITS_PER_SAMPLE, PHOTOMETRIC_INTERPRETATION = 254, 258, 262
PLANAR_CONFIGURATION, SAMPLE_FORMAT = 284, 339
# and their values
REDUCED, WHITE_IS_ZERO, SEPARATE, SIGNED = 1, 0, 2, 2

# libtiff has put the bytes of numbers in this machine's order, and Pillow does it once more
NATIVE = {"I;16S": "I;16NS", "I;16BS": "I;16NS", "I;32S": "I;32NS", "I;32BS": "I;32NS",
          "F;32F": "F;32NF", "F;32BF": "F;32NF"}

# the tag of EXIF, and what turns a picture upright
ORIENTATION = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(file, largest, min_side, max_aspect):
    """An open file -> 8-bit grey PIL image; raises Unusable and whatever a decoder raises."""
    image = Image.open(file, formats=FORMATS)
    check_size(image.size, min_side, max_aspect)
    refuse_several(image)
    if largest:
        image.draft("L", (2 * largest, 2 * largest))        # for JPEG only; never below that
    with without_words_of_libtiff(image):
        grey = decoded(image, file)
    turn = UPRIGHT.get(orientation(image))
    return grey if turn is None else grey.transpose(turn)


@contextmanager
def without_words_of_libtiff(image):
    """libtiff writes its complaints on standard error by itself; the verdict on a file is ours."""
    kept = None
    if image.format == "TIFF":
        try:
            kept = os.dup(2)
        except OSError:             # the process has no standard error
            kept = None
    if kept is not None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 2)
        os.close(nowhere)
    try:
        yield
    finally:
        if kept is not None:
            os.dup2(kept, 2)
            os.close(kept)


def decoded(image, file):
    """An opened PIL image -> 8-bit grey PIL image, not turned upright."""
    if is_deep_colour(image, file):
        return from_channels(deep_channels(image, file))
    if image.format == "JPEG2000" and image.mode in ("L", "I;16") and jpeg2000_depth(file) < 0:
        return stretch(np.asarray(image))
    if image.mode.startswith(("I", "F")):
        return deep_grey(image)
    return shallow_grey(image)


def refuse_several(image):
    """Unusable if the file holds other pictures than thumbnails: which is meant is not known."""
    # a JPEG with pictures behind it is a camera's, and they are previews
    if image.format == "MPO" or not hasattr(image, "is_animated") or not image.is_animated:
        return
    # a reduced copy stands behind the picture itself; a chain without end is no row of thumbnails
    if image.format == "TIFF":
        pages = 1
        while pages < 100 and has_page(image, pages) and is_reduced(image):
            pages += 1
        if pages < 100 and not has_page(image, pages):
            image.seek(0)
            return
    raise Unusable("it holds several pictures; save the one that is meant as a file of its own")


def has_page(image, number):
    """Whether a TIFF has this page, counted from 0; then it is the one that the tags are of."""
    try:
        image.seek(number)
    except EOFError:
        return False
    return True


def is_reduced(image):
    """Whether the page of a TIFF is a thumbnail of another."""
    return bool(image.tag_v2.get(NEW_SUBFILE_TYPE, 0) & REDUCED)


def orientation(image):
    """The EXIF orientation of a loaded image, 1 to 8; 1 where the EXIF is none or junk."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except DAMAGE:          # what says nothing about the pixels does not make them unreadable
        return 1


# ---- 8 bits ----

def shallow_grey(image):
    """A picture of 8 bits a channel or fewer -> 8-bit grey PIL image."""
    if image.mode in ("LAB", "HSV"):
        raise Unusable(f"its colours are {image.mode}, which is not read; save it as RGB")
    is_signed = is_tiff(image, SAMPLE_FORMAT, SIGNED)
    image.load()            # all of it: `open` and `verify` accept files that are cut short
    if is_signed:
        return scale(np.asarray(image).view(np.int8))
    if image.mode == "La":
        image = image.convert("LA")
    # what is transparent shows the black of the air around a patient
    has_alpha = image.mode in ("RGBA", "LA", "PA")
    if has_alpha and image.getchannel("A").getextrema()[1] == 0:
        raise Unusable("all of it is transparent; save it without the alpha channel")
    if has_alpha or "transparency" in image.info:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return image.convert("L")


def is_tiff(image, tag, value):
    """Whether it is a TIFF whose tag has this value, or begins with it. Asked before anything makes
    a new image of it, which would forget the tags.
    """
    if image.format != "TIFF":
        return False
    found = image.tag_v2.get(tag)
    return found == value or isinstance(found, tuple) and found[:1] == (value,)


# ---- deep grey ----

def deep_grey(image):
    """A grey picture of more than 8 bits, or of floats -> 8-bit grey PIL image."""
    # asked for now: loading forgets how the numbers were stored
    white_is_zero = is_tiff(image, PHOTOMETRIC_INTERPRETATION, WHITE_IS_ZERO)
    unsigned = raw_mode(image) == "I;32N" and not is_tiff(image, SAMPLE_FORMAT, SIGNED)
    if image.format == "TIFF" and image.tile[0].codec_name == "libtiff":
        set_raw_mode(image, NATIVE.get(raw_mode(image), raw_mode(image)))
    image.load()
    values = np.asarray(image)
    if unsigned:
        values = values.view(np.uint32)
    # a grey of PNG that stands for "transparent"
    key = image.info.get("transparency")
    hidden = values == key if isinstance(key, int) else None
    return scale(values, white_is_zero, hidden)


def raw_mode(image):
    """How Pillow says that the pixels of an image lie in its file: "I;16B"; "" where it is not
    said.
    """
    if not image.tile:
        return ""
    args = image.tile[0].args
    first = args[0] if isinstance(args, tuple) else args
    return first if isinstance(first, str) else ""


def set_raw_mode(image, raw):
    """Have the pixels of an image that is not loaded yet read as if they lay so."""
    tiles = []
    for tile in image.tile:
        args = (raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw
        tiles.append(tile._replace(args=args))
    image.tile = tiles


def jpeg2000_depth(file):
    """Bits of a channel of a JPEG 2000 file, negative if they hold a sign."""
    # the marker segment SIZ: the sizes, the number of channels, then a byte for each
    file.seek(0)
    content = file.read()
    depth = content[content.index(b"\xff\x4f\xff\x51") + 42]
    bits = (depth & 127) + 1
    return -bits if depth & 128 else bits


# ---- deep colour ----

def is_deep_colour(image, file):
    """Whether an image has several channels of more than 8 bits. Unusable where it cannot be read
    whole.
    """
    if image.mode.startswith(("I", "F")) or image.mode in ("1", "L", "P"):
        return False
    raw = raw_mode(image)
    if image.format == "PNG" and ";16" in raw:
        return True
    if image.format == "TIFF" and max(image.tag_v2.get(BITS_PER_SAMPLE, (1,))) > 8:
        in_planes = is_tiff(image, PLANAR_CONFIGURATION, SEPARATE)
        if raw.startswith(("RGB;16", "RGBA;16", "RGBX;16")) and not in_planes:
            return True
    elif image.format == "JPEG2000":
        if abs(jpeg2000_depth(file)) <= 8:
            return False
    elif image.format == "PPM":
        if not isinstance(image.tile[0].args, tuple) or image.tile[0].args[-1] <= 255:
            return False
    else:
        return False
    raise Unusable(f"it is {image.format} with more than 8 bits a channel, of which some would be "
                   "lost; save it as grey, or as 16-bit PNG")


def deep_channels(image, file):
    """The pixels of a deep colour image, (H, W, 2 to 4) uint16: grey or RGB, then alpha."""
    # the other order of the two bytes: what Pillow keeps of that is the low byte. "N" is this
    # machine's own order
    raw = raw_mode(image)
    if raw == "LA;16B":                 # four bytes a pixel, which Pillow can hand over as they are
        set_raw_mode(image, "RGBA")
        image.load()
        pairs = np.asarray(image).astype(np.uint16).reshape(*image.size[::-1], 2, 2)
        return pairs[..., 0] * 256 + pairs[..., 1]

    key = image.info.get("transparency")
    file.seek(0)
    again = Image.open(file, formats=(image.format,))
    swapped = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}
    set_raw_mode(again, raw[:-1] + swapped[raw[-1]])
    low = np.asarray(again)
    image.load()
    channels = np.asarray(image).astype(np.uint16) * 256 + low
    if channels.shape[2] == 3 and isinstance(key, tuple):
        opaque = (channels != np.array(key)).any(2, keepdims=True)
        channels = np.concatenate((channels, np.where(opaque, 65535, 0).astype(np.uint16)), 2)
    return channels
