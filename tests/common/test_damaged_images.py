"""Damaged image files of every kind: a picture or one sentence, never another exception.

tests/fuzz_images.py makes them, and runs more of them.
"""
import io

import pytest

import fuzz_images
from common.cli import InputError
from common.images import read_image

KINDS = ["PNG", "JPEG", "TIFF", "WEBP", "AVIF", "BMP", "JPEG2000", "PGM", "GIF", "DICOM"]


def run(kind, count, seed):
    """Read damaged copies -> how many were refused; nothing may be written by a decoder."""
    files = fuzz_images.dicom_files() if kind == "DICOM" else fuzz_images.pillow_files()[kind]
    refused = 0
    for number, content in fuzz_images.copies(kind, files, count, seed):
        try:
            image = read_image(io.BytesIO(content), "film")
        except InputError as error:
            sentence = str(error)
            assert sentence.startswith("film cannot be read") and sentence.isprintable(), number
            refused += 1
        else:
            assert image.mode == "L", number
    return refused


@pytest.mark.parametrize("kind", KINDS)
def test_damage_anywhere_is_read_or_one_sentence(kind, capfd, recwarn):
    assert 10 <= run(kind, 30, seed=1) < 31
    assert capfd.readouterr() == ("", "") and not recwarn.list


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_more_damage(kind, capfd):
    assert run(kind, 300, seed=2) >= 100
    assert capfd.readouterr() == ("", "")
