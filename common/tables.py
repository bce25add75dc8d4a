"""Tables as they lie on disk: CSV files, gzipped or not, read row by row.

    for dicom, split in read_table(path, ("dicom_id", "split")):
        ...

Every value stays the text that the file holds: a reader that turns ids into numbers loses zeros.
Nothing is loaded as a whole, because the tables of MIMIC-CXR have 377,110 rows. A table that is
damaged or in another encoding ends in an InputError that names the file and quotes nothing of it.
"""
import csv
import gzip
import io
import json
import re
import zlib
from contextlib import contextmanager
from pathlib import Path

from common.cli import InputError

csv.field_size_limit(2**31 - 1)         # the default of 131,072 characters can be too few
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def find(root, name, hint):
    """The path of the file `name` or `name`.gz in `root` or up to five folders below.

    Five, because `wget -r` leaves physionet.org/files/mimic-cxr-jpg/2.1.0/ above the tables. If one
    level holds several, the last by name counts, which is the newest release. InputError if there
    is none; `hint` ends its sentence.
    """
    root = Path(root).expanduser()
    # the level next to the root counts: a copy further down may be an older one
    for depth in range(6):
        above = "*/" * depth
        matches = [*root.glob(above + name), *root.glob(above + name + ".gz")]
        matches = [path for path in matches if path.is_file()]
        if matches:
            return max(matches)
    raise InputError(f"there is no {name}[.gz] in {root} or the folders below it; {hint}")


def open_text(path):
    """Open a UTF-8 text file, gzipped or not, with or without a byte-order mark."""
    raw = gzip.open(path) if Path(path).suffix == ".gz" else open(path, "rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")      # newline as csv wants it


@contextmanager
def named_damage(path):
    """Errors of reading a table become an InputError that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8; save it as UTF-8 (CSV UTF-8 in a "
                         "spreadsheet program).") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, csv.Error):
        raise InputError(f"{path} is damaged or no CSV table; download it again.") from None


def read_header(path):
    """The names of a table's columns."""
    with named_damage(path), open_text(path) as file:
        return next(csv.reader(file), [])


def read_table(path, columns):
    """The rows of a CSV file, one by one: tuples of the values of `columns`, in that order."""
    with named_damage(path), open_text(path) as file:
        rows = csv.reader(file)
        header = next(rows, [])
        for column in columns:
            if column not in header:
                raise InputError(f"{path} has no column '{column}'; is it the right table?")
        # columns are known by name: even MIMIC's own tables differ in the order of the ids
        positions = [header.index(column) for column in columns]

        for row in rows:
            if not row:                 # a blank line
                continue
            if len(row) != len(header):
                raise InputError(f"{path}, line {rows.line_num}: {len(row)} values in "
                                 f"{len(header)} columns; is it damaged?")
            yield tuple(row[position] for position in positions)


def whole_characters(value):
    """A JSON value with U+FFFD in place of half characters.

    JSON can spell half a character ("\\ud800", a lone surrogate), which cannot be written to a file
    again. Its row is flagged as "broken characters".
    """
    text = json.dumps(value, ensure_ascii=False)
    if not HALF_CHARACTER.search(text):
        return value
    return json.loads(HALF_CHARACTER.sub("\ufffd", text))
