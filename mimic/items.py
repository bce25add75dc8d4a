"""What a collection gives: a list of `Item`, one an image; and a split where it has none.

Each collection is a file of its own (sources names them), and all of them give these items.
"""
import hashlib
import sys
from dataclasses import dataclass

FRONTAL = ("PA", "AP")          # exactly these two views: the convention of the field


@dataclass(slots=True)
class Item:
    """One image with its report, for one task."""
    id: str                     # of the image
    subject: str                # the patient
    study: str                  # one examination: some images, one report
    split: str                  # train, val or test
    view: str                   # PA, AP, frontal, or "" where it is not known
    image: str                  # path below the image root without its ending, or with it
    text: tuple | None = None   # (findings, impression, source), if not from a report file
    labels: dict | None = None  # of the study, {finding: value}

    @property
    def text_key(self):
        """Items with the same key have the same text: the images of a study, unless their texts
        come from different annotations."""
        if not self.text:
            return f"{self.study}/report"
        digest = hashlib.sha256(repr(self.text).encode()).hexdigest()
        return f"{self.study}/{digest[:8]}"


class LeftOut(list):
    """(id, path, reason) of everything that is not packed. Never a word of a report."""

    def add(self, id, path, reason):
        self.append((id, path, sys.intern(reason)))     # few reasons, 130,000 lateral images


# ---- splits for data that has none ----

def fraction(key):
    """A number in [0, 1) that depends on the text `key` alone."""
    # 48 bits of the hash, which a float holds exactly
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12


def hashed_split(key):
    """train, val or test for 70, 10 and 20 % of all keys. It stays when others come or go.

    >>> hashed_split("CXR1")
    'train'
    """
    position = fraction(key)
    if position < 0.7:
        return "train"
    return "val" if position < 0.8 else "test"
