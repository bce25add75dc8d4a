"""A DICOM file -> one picture in 8-bit grey, as a viewer would first show it.

What the file says about its numbers, in the order in which it is applied (DICOM PS3.3, C.7.6.3,
C.11.1, C.11.2):

    padding          PixelPaddingValue, alone or as a range up to PixelPaddingRangeLimit, in the
                     sign of the pixels or the other one: left out of the scaling, black at the end
    modality         the table ModalityLUTSequence, else RescaleSlope and RescaleIntercept
    values of        the table VOILUTSequence, else the first usable window: what is beyond it is
    interest         black or white, because the file says so
    polarity         MONOCHROME1 or PresentationLUTShape INVERSE: turned over
    orientation      PatientOrientation of a frontal image: the patient's left on the right, feet
                     below

Then the smallest number becomes black and the largest white. A value that is empty, a slope of 0, a
window without width or one that leaves nothing to see counts as not given. Colour is shown as other
colour pictures are. Refused are files without pixels or with several frames, and a compression for
which no decoder is installed. Needs pydicom 3.
"""
import logging
import math
import struct

import numpy as np
from PIL import Image

from common.grey import DAMAGE, Unusable, check_size, from_channels, stretch

DECODERS = "pip install pylibjpeg pylibjpeg-libjpeg pylibjpeg-openjpeg"
DEFLATED = b"1.2.840.10008.1.2.1.99"      # a transfer syntax

# where the rows and columns of a frontal film run -> how it is turned to be hung up: L\F
HANG = {
    "RF": Image.Transpose.FLIP_LEFT_RIGHT,
    "LH": Image.Transpose.FLIP_TOP_BOTTOM,
    "RH": Image.Transpose.ROTATE_180,
    "FL": Image.Transpose.TRANSPOSE,
    "FR": Image.Transpose.ROTATE_270,
    "HL": Image.Transpose.ROTATE_90,
    "HR": Image.Transpose.TRANSVERSE,
}


def is_dicom(file):
    """Whether an open file is DICOM, whatever its name: "DICM" stands at byte 128."""
    file.seek(0)
    head = file.read(132)
    file.seek(0)
    return head[128:] == b"DICM"


def read_dicom(file, min_side, max_aspect, force=False):
    """An open DICOM file -> 8-bit grey PIL image, or Unusable with the reason.

    force: read it without "DICM" at byte 128, as very old files and cut ones are.
    """
    try:
        import pydicom
        import pydicom.pixels           # new in version 3
        from pydicom.errors import BytesLengthException, InvalidDicomError
    except ImportError:
        raise Unusable("a DICOM file needs pydicom 3 (pip install pydicom)") from None
    # it logs what it finds odd in single files; the verdict on each is ours
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    # it would unfold to a thousand times its size before anything could be checked
    if DEFLATED in file.read(1 << 16):
        raise Unusable("it is DICOM that is deflated as a whole; save it uncompressed")
    file.seek(0)
    try:
        # without the pixels first: they may be of any size
        head = pydicom.dcmread(file, stop_before_pixels=True, force=force)
        if force and "Rows" not in head:
            raise Unusable("it is empty or no image, and DICOM by its name alone")
        check_header(head, min_side, max_aspect)
        file.seek(0)
        dataset = pydicom.dcmread(file, force=force)
        return to_grey(dataset)
    except (*DAMAGE, BytesLengthException, InvalidDicomError):
        raise Unusable("it is a damaged or unreadable DICOM file") from None


def check_header(head, min_side, max_aspect):
    """Unusable if the file holds no single picture, or one that cannot be decoded here."""
    if "Rows" not in head or "Columns" not in head:
        raise Unusable("it is DICOM without a picture, or truncated")
    check_size((int(head.Columns), int(head.Rows)), min_side, max_aspect)
    frames = number(head, "NumberOfFrames", 1)
    if frames > 1:
        raise Unusable(f"it is DICOM with {frames:.0f} frames; save the one that is meant as a "
                       "file of its own")


def to_grey(dataset):
    """A whole data set -> 8-bit grey PIL image; see the steps at the top of this file."""
    padding = padding_range(dataset)
    if padding and padding[1] >= 2 ** int(dataset.BitsStored):
        dataset.BitsStored = dataset.BitsAllocated      # or pydicom cuts it to the bits of the rest
    values = decode(dataset)
    # colour needs none of what follows but its orientation
    if values.ndim == 3:
        if values.dtype == np.uint8:
            return hang(Image.fromarray(values).convert("L"), dataset)
        return hang(from_channels(values), dataset)
    if values.ndim != 2:
        raise Unusable(f"it is DICOM with {values.ndim} dimensions, not one grey picture")

    hidden = None
    if padding:
        hidden = (values >= padding[0]) & (values <= padding[1])
    values = to_modality(values, dataset)
    interest = to_interest(values, dataset)
    shown = interest if hidden is None else interest[~hidden]
    if shown.size and shown.min() == shown.max():
        interest = values
    inverted = (dataset.PhotometricInterpretation == "MONOCHROME1"
                or dataset.get("PresentationLUTShape") == "INVERSE")
    return hang(stretch(interest, inverted, hidden), dataset)


def decode(dataset):
    """The pixels of a data set, (H, W), or (H, W, 3) RGB."""
    from pydicom.pixels import apply_color_lut, get_decoder, pixel_array
    if not {"PixelData", "FloatPixelData", "DoubleFloatPixelData"} & set(dataset.dir()):
        raise Unusable("it is DICOM without pixels, or truncated")
    name_encoding(dataset)
    syntax = dataset.file_meta.TransferSyntaxUID
    lacks = f"its pixels are compressed as {syntax.name}"
    if syntax.name == syntax:           # the name of what is not known is its number
        raise Unusable("its pixels are stored in a way that DICOM does not know")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise Unusable(f"{lacks}, for which there is no decoder") from None
    if not decoder.is_available:
        raise Unusable(f"{lacks}, which needs a decoder ({DECODERS})")
    try:
        values = pixel_array(dataset)
    except RuntimeError:
        # a decoder that knows some files of this kind may not know others: JPEG of 12 bits
        if decoder.missing_dependencies and syntax.name != "RLE Lossless":
            raise Unusable(f"{lacks}; they are damaged or need another decoder "
                           f"({DECODERS})") from None
        raise
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(values, dataset)
    return values


def name_encoding(dataset):
    """Files that do not name their transfer syntax are uncompressed, in the form they were read."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian
    if "TransferSyntaxUID" in dataset.file_meta:
        return
    implicit, little = dataset.original_encoding
    explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit


def number(dataset, keyword, default=None):
    """A number of a data set, the first of several; `default` if it is empty or none."""
    value = dataset.get(keyword)
    if isinstance(value, (list, tuple)) or hasattr(value, "append"):
        value = value[0] if len(value) else None
    if value is None or value == "" or not math.isfinite(float(value)):
        return default
    return float(value)


def padding_range(dataset):
    """(lowest, highest) stored number of the pixels that only fill the frame up, or None."""
    first = number(dataset, "PixelPaddingValue")
    if first is None or "PixelData" not in dataset:
        return None
    last = number(dataset, "PixelPaddingRangeLimit", first)
    bits = int(dataset.BitsAllocated)
    lowest, highest = (-2 ** (bits - 1), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation \
        else (0, 2 ** bits - 1)
    # a common mistake: -2000 is written as the unsigned 63536, or the other way round
    ends = []
    for value in (first, last):
        if value > highest:
            value -= 2 ** bits
        elif value < lowest:
            value += 2 ** bits
        ends.append(value)
    return min(ends), max(ends)


def to_modality(values, dataset):
    """Stored numbers -> what the machine measured, by a table or by slope and intercept."""
    if dataset.get("ModalityLUTSequence"):
        return look_up(values, dataset.ModalityLUTSequence[0])
    slope = number(dataset, "RescaleSlope", 1.0)
    if slope == 0:
        slope = 1.0
    intercept = number(dataset, "RescaleIntercept", 0.0)
    if slope == 1 and intercept == 0:
        return values
    return values * slope + intercept


def to_interest(values, dataset):
    """Measured numbers -> those that a viewer would show, by a table or a window."""
    if dataset.get("VOILUTSequence"):
        return look_up(values, dataset.VOILUTSequence[0])
    for center, width in windows(dataset):
        kind = dataset.get("VOILUTFunction", "LINEAR")
        if kind == "SIGMOID" and width > 0:
            return 1 / (1 + np.exp(-4 * (values - center) / width))
        if kind == "LINEAR_EXACT" and width > 0:
            return np.clip((values - center) / width, -0.5, 0.5)
        # of the usual kind, a window of width 1 is a threshold
        if kind not in ("SIGMOID", "LINEAR_EXACT") and width > 1:
            return np.clip((values - (center - 0.5)) / (width - 1), -0.5, 0.5)
    return values


def windows(dataset):
    """(center, width) of every window that a data set names whole."""
    named = []
    for keyword in ("WindowCenter", "WindowWidth"):
        value = dataset.get(keyword)
        if value is None or value == "":
            return []
        named.append(list(value) if hasattr(value, "append") else [value])
    pairs = [(float(center), float(width)) for center, width in zip(*named)]
    return [pair for pair in pairs if all(map(math.isfinite, pair))]


def look_up(values, item):
    """Numbers through a table of a data set; what lies outside of it takes its first or last."""
    entries, first, _ = item.LUTDescriptor
    entries = entries if entries else 2 ** 16
    table = item.LUTData
    if isinstance(table, bytes):
        wide = len(table) >= 2 * entries
        kind = f"<{entries}H" if wide else f"<{entries}B"
        table = struct.unpack_from(kind, table)
    table = np.array(table)[:entries]
    places = np.round(values).astype(np.int64) - first
    return table[places.clip(0, len(table) - 1)]


def hang(picture, dataset):
    """A frontal picture as films are hung up: the patient's left on the right, feet below."""
    directions = dataset.get("PatientOrientation")
    if not hasattr(directions, "append") or len(directions) != 2:
        return picture
    # "LF" is to the left and a little to the feet
    turn = HANG.get("".join(str(direction)[:1] for direction in directions))
    return picture if turn is None else picture.transpose(turn)
