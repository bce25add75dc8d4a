"""Numbers of any depth -> one picture in 8-bit grey, and the reason why a picture is refused.

The rules are those of the table at the top of common/images.py; here they are as arithmetic. Arrays
are (H, W), or (H, W, channels).
"""
import math
import struct
import zlib

import numpy as np
from PIL import Image

MAX_PIXELS = 200_000_000        # beyond this a "radiograph" is a mistake or an attack


# what decoders raise for damaged files: more than they document
DAMAGE = (OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError,
          AssertionError, RuntimeError, EOFError, BufferError, struct.error, zlib.error)


class Unusable(Exception):
    """An image file that cannot be used. The message is the reason, without the file's name."""


def check_size(size, min_side, max_aspect):
    """Refuse what is no radiograph, before memory is taken for it."""
    short, long = sorted(size)
    if short * long > MAX_PIXELS:
        raise Unusable(f"{size[0]}x{size[1]} pixels are more than {MAX_PIXELS // 10**6} million")
    if short < min_side:
        raise Unusable(f"a side is shorter than {min_side} pixels")
    if long > max_aspect * short:
        raise Unusable(f"one side is more than {max_aspect:g} times the other")


def scale(values, turn_over=False, hidden=None, brightest=None):
    """Whole numbers from 0, or floats -> 8-bit grey image: the number of bits says what is white.

    Negative numbers are stretched. turn_over: the largest number that the bits can hold is black.
    hidden: (H, W) truth values of pixels that are no part of the picture; they become black.
    brightest: the largest of all channels, where `values` is the luminance of a colour picture.
    """
    low, high = extremes(values, hidden)
    if low < 0:
        return stretch(values, turn_over, hidden)
    if brightest is not None:
        high = brightest
    # floats are fractions of white, or whole numbers that were stored as floats
    if values.dtype.kind == "f" and high <= 1:
        white = 1.0
    elif high < 128 and (values != np.round(values)).any():
        raise Unusable(f"its numbers are fractions up to {high:.4g}: whether 1 is white or 255 "
                       "cannot be known")
    else:
        white = white_of(high)
    return between(values, white if turn_over else 0.0, 0.0 if turn_over else white, hidden)


def white_of(brightest):
    """The largest number of as many bits as hold the brightest pixel, 8 or more: 3000 -> 4095."""
    return 2.0 ** max(8, math.ceil(math.log2(float(brightest) + 1))) - 1


def stretch(values, turn_over=False, hidden=None):
    """Any numbers -> 8-bit grey image, the smallest black and the largest white."""
    low, high = extremes(values, hidden)
    return between(values, high if turn_over else low, low if turn_over else high, hidden)


def extremes(values, hidden):
    """Smallest and largest of the pixels that show, as floats."""
    shown = values if hidden is None else values[~hidden]
    if not shown.size:
        raise Unusable("nothing in it is to be shown: all of it is transparent or padding")
    low, high = float(shown.min()), float(shown.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise Unusable("it holds values that are no numbers")
    return low, high


def between(values, black, white, hidden):
    """Numbers -> 8-bit grey image: linear, `black` becomes 0 and `white` 255."""
    if black == white:                      # all pixels are alike
        white = black + 1
    factor = 255 / (white - black)
    # some rows at a time: as 64-bit floats a picture takes eight times its memory
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), 256):
        rows = slice(start, start + 256)
        grey[rows] = ((values[rows].astype(np.float64) - black) * factor).round().clip(0, 255)
    if hidden is not None:
        grey[hidden] = 0
    return Image.fromarray(grey)


def from_channels(channels):
    """Deep colour, (H, W, 2 to 4) unsigned: grey or RGB, then alpha -> 8-bit grey image.

    2 channels are grey and alpha, 3 are RGB, 4 RGB and alpha. The brightest channel decides the
    number of bits, and what is transparent lies on black.
    """
    # the weights of ITU-R 601, as Pillow has them for 8 bits
    count = channels.shape[2]
    weights = np.array([1.0] if count == 2 else [0.299, 0.587, 0.114])
    has_alpha = count != 3
    hidden = channels[..., -1] == 0 if has_alpha else None
    opaque = white_of(channels[..., -1].max()) if has_alpha else 1

    grey = np.empty(channels.shape[:2], np.uint32)
    brightest = 0
    for start in range(0, len(channels), 256):
        rows = channels[start:start + 256]
        colours = rows[..., :len(weights)]
        light = colours @ weights
        if has_alpha:
            colours = np.where(rows[..., -1:] > 0, colours, 0)
            light = light * rows[..., -1] / opaque
        brightest = max(brightest, colours.max())
        grey[start:start + 256] = light.round()
    return scale(grey, hidden=hidden, brightest=brightest)
