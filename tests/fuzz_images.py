"""Small image files of every kind, and damaged copies of them: flipped, cut, spliced.

    python tests/fuzz_images.py 2000                # so many of each kind, in a few minutes

Whatever the damage, the reader of common/images.py gives a picture or a sentence, within seconds
and within memory. The script names the number of every copy for which it does not, or that was
being read when the process died. tests/common/test_damaged_images.py runs some of each kind.
"""
import io
import signal
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from common.images import Unusable, read_grey
from helpers import dicom_file, png_of

SIDE = 40
SECONDS = 20                    # longer is a hang
GIGABYTES = 4


# ---- whole files ----

def saved(image, kind, again=0, **options):
    """The bytes of a PIL image as a file, with the image in it `again` times more."""
    buffer = io.BytesIO()
    # copies: Pillow leaves the settings of a format in an image, where they disturb the next
    if again:
        options |= dict(save_all=True, append_images=[image.copy() for _ in range(again)])
    image.copy().save(buffer, kind, **options)
    return buffer.getvalue()


def exif():
    """An EXIF block with an orientation and a text."""
    block = Image.Exif()
    block[0x0112] = 6
    block[0x010E] = "a film"
    return block


def pillow_files():
    """{kind: [bytes of files]} of what Pillow reads."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8)
    ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE)).astype(np.uint8)
    grey, smooth = Image.fromarray(noise), Image.fromarray(ramp)
    rgb = Image.merge("RGB", (smooth, grey, smooth))
    rgba = Image.merge("RGBA", (smooth, smooth, smooth, grey))
    deep = Image.fromarray(ramp.astype(np.uint16) * 40)
    floats = Image.fromarray(ramp.astype(np.float32) / 80)
    channels = np.dstack([ramp.astype(np.uint16) * 40] * 3)

    files = {
        "PNG": [saved(grey, "PNG", exif=exif()), saved(deep, "PNG"), saved(rgba, "PNG"),
                png_of(channels), saved(grey.convert("P"), "PNG", transparency=3),
                saved(smooth, "PNG", dpi=(72, 72)), saved(grey, "PNG", again=2)],
        "JPEG": [saved(grey, "JPEG", exif=exif()), saved(rgb, "JPEG", progressive=True),
                 saved(rgb.convert("CMYK"), "JPEG"), saved(grey, "MPO", again=2)],
        "TIFF": [saved(image, "TIFF", compression=compression)
                 for image in (grey, rgb, rgba, deep, floats)
                 for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")]
                + [saved(rgb, "TIFF", compression="jpeg"),
                   saved(grey.convert("1"), "TIFF", compression="group4"),
                   saved(grey, "TIFF", exif=exif()), saved(grey, "TIFF", again=2)],
        "WEBP": [saved(rgb, "WEBP"), saved(rgba, "WEBP", lossless=True, exif=exif()),
                 saved(rgb, "WEBP", again=2)],
        "AVIF": [saved(rgb, "AVIF", exif=exif()), saved(rgba, "AVIF")],
        "BMP": [saved(grey, "BMP"), saved(rgb, "BMP"), saved(grey.convert("1"), "BMP"),
                saved(rgba, "BMP")],
        "JPEG2000": [saved(smooth, "JPEG2000"), saved(rgb, "JPEG2000"), saved(deep, "JPEG2000"),
                     saved(rgba, "JPEG2000", no_jp2=True)],
        "PGM": [saved(grey, "PPM"), saved(rgb, "PPM"), saved(floats, "PPM"),
                b"P5 40 40 4095\n" + (ramp.astype(">u2") * 40).tobytes(),
                b"P2 40 40 99\n" + b" ".join(b"%d" % value for value in ramp.ravel())],
        "GIF": [saved(grey, "GIF"), saved(rgb, "GIF", transparency=2),
                saved(smooth, "GIF", again=2)],
    }
    return files


def dicom_files():
    """Bytes of DICOM files, each with something else in its header."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID
    ramp = np.add.outer(np.arange(SIDE), np.arange(SIDE)) * 40
    table = pydicom.Dataset()
    table.add_new("LUTDescriptor", "US", [100, 0, 16])
    table.add_new("LUTData", "US", list(range(0, 1000, 10)))
    headers = (
        {},
        dict(WindowCenter=[900, 5], WindowWidth=[800, 0], RescaleSlope=2, RescaleIntercept=-9),
        dict(VOILUTSequence=[table], PatientOrientation=["R", "F"]),
        dict(ModalityLUTSequence=[table], PresentationLUTShape="INVERSE", NumberOfFrames=1),
    )
    files = []
    for fields in headers:
        dataset = pydicom.dcmread(io.BytesIO(dicom_file(ramp)))
        dataset.add_new("PixelPaddingValue", "US", 40)
        for key, value in fields.items():
            setattr(dataset, key, value)
        for syntax in ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"):
            buffer = io.BytesIO()
            if syntax.endswith(".5"):
                dataset.compress(UID(syntax))
            dataset.file_meta.TransferSyntaxUID = UID(syntax)
            pydicom.dcmwrite(buffer, dataset, enforce_file_format=True)
            files.append(buffer.getvalue())

    grey = Image.fromarray((ramp // 16).astype(np.uint8))
    for syntax, kind in (("50", "JPEG"), ("90", "JPEG2000")):
        dataset = pydicom.dcmread(io.BytesIO(dicom_file(ramp)))
        dataset.BitsAllocated = dataset.BitsStored = 8
        dataset.HighBit = 7
        options = dict(no_jp2=True) if kind == "JPEG2000" else {}
        dataset.PixelData = encapsulate([saved(grey, kind, **options)])
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = UID(f"1.2.840.10008.1.2.4.{syntax}")
        buffer = io.BytesIO()
        dataset.save_as(buffer, enforce_file_format=True)
        files.append(buffer.getvalue())
    return files


# ---- damage ----

def damaged(rng, whole, other):
    """A copy of `whole` with one to three kinds of damage; `other` is a file of the same kind."""
    content = bytearray(whole)
    for _ in range(rng.integers(1, 4)):
        if not content:
            break
        place = int(rng.integers(len(content)))
        # half of all damage is done to the header, where the sizes stand
        if rng.random() < 0.5:
            place = min(place, int(rng.integers(400)))
        length = int(rng.integers(1, 9))
        kind = rng.integers(7)
        if kind == 0:
            content[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            content[place:place + length] = rng.bytes(length)
        elif kind == 2:             # the numbers that programs forget
            content[place:place + 4] = struct.pack("<I", int(rng.choice(EXTREMES)))
        elif kind == 3:
            content[place:place + 4] = struct.pack(">I", int(rng.choice(EXTREMES)))
        elif kind == 4:
            del content[place:]
        elif kind == 5:
            del content[place:place + int(rng.integers(1, 200))]
        else:
            start = int(rng.integers(len(other)))
            content[place:] = other[start:]
    return bytes(content)


EXTREMES = (0, 1, 2, 127, 255, 256, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)


def with_checksums(content):
    """A PNG whose chunks have right checksums again, as far as it can be followed: a decoder stops
    at a wrong one, and damage behind it would never be met.
    """
    out = bytearray(content[:8])
    place = 8
    while place + 12 <= len(content):
        length = struct.unpack_from(">I", content, place)[0]
        body = content[place + 4:place + 8 + length]
        if len(body) < length + 4:
            break
        out += struct.pack(">I", length) + body + struct.pack(">I", zlib.crc32(body))
        place += 12 + length
    return bytes(out) + content[place:]


def copies(kind, files, count, seed=0):
    """`count` damaged copies of files of a kind; the same for the same seed."""
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        whole, other = (files[int(rng.integers(len(files)))] for _ in range(2))
        content = damaged(rng, whole, other)
        if kind == "PNG" and rng.random() < 0.7:
            content = with_checksums(content)
        yield number, content


# ---- the script ----

def hang(*_):
    raise SystemExit("it hangs")


def main(count, kinds):
    import resource                 # not on Windows
    resource.setrlimit(resource.RLIMIT_AS, (GIGABYTES << 30, GIGABYTES << 30))
    signal.signal(signal.SIGALRM, hang)
    last = Path("fuzz_images.last")
    files = {**pillow_files(), "DICOM": dicom_files()}
    for kind in kinds if kinds else files:
        read, reasons, slowest = 0, {}, 0.0
        for number, content in copies(kind, files[kind], count):
            last.write_bytes(content)
            start = time.monotonic()
            signal.alarm(SECONDS)
            try:
                # some decoders read files that have a name by themselves
                read_grey(io.BytesIO(content) if number % 2 else last)
                read += 1
            except Unusable as reason:
                reasons[str(reason)] = reasons.get(str(reason), 0) + 1
            except Exception as error:
                print(f"{kind} {number}: {type(error).__name__}: {error}", flush=True)
                Path(f"fuzz_images.{kind}-{number}").write_bytes(content)
            signal.alarm(0)
            slowest = max(slowest, time.monotonic() - start)
        print(f"{kind}: {read} read, {sum(reasons.values())} refused, slowest {slowest:.2f} s",
              flush=True)
        for reason, times in sorted(reasons.items(), key=lambda pair: -pair[1])[:12]:
            print(f"    {times:5} {reason}", flush=True)
    last.unlink()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
