"""Tables as they lie on disk: CSV files, gzipped or not.

    for dicom, split in read_table(path, ("dicom_id", "split")):    # published ones, row by row
        ...
    columns, rows = own_table(path)         # anybody's own, CSV or JSON lines, as a whole

Every value stays the text that the file holds: a reader that turns ids into numbers loses zeros.
Published tables are not loaded as a whole: those of MIMIC-CXR have 377,110 rows. A table that is
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
from common.files import from_utf8, json_values

csv.field_size_limit(2**31 - 1)         # the default of 131,072 characters can be too few
HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def find(root, name, hint):
    """The path of the file `name` or `name`.gz in `root` or up to five folders below.

    Five, because `wget -r` leaves physionet.org/files/mimic-cxr-jpg/2.1.0/ above the tables. If one
    level holds several, the last by name counts, which is the newest release. InputError if there
    is none; `hint` ends its sentence.
    """
    root = Path(root)
    # the level next to the root counts: a copy further down may be an older one
    for depth in range(6):
        above = "*/" * depth
        matches = [*root.glob(above + name), *root.glob(above + name + ".gz")]
        matches = [path for path in matches if path.is_file()]
        if matches:
            return max(matches)
    raise InputError(f"there is no {name}[.gz] in {root} or the folders below it; {hint}")


def open_bytes(path):
    """Open a file, gzipped or not."""
    return gzip.open(path) if Path(path).suffix == ".gz" else open(path, "rb")


def open_text(path):
    """Open a UTF-8 text file, gzipped or not, with or without a byte-order mark."""
    # newline as csv wants it
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig", newline="")


@contextmanager
def named_damage(path):
    """Errors of reading a table become an InputError that names the file."""
    try:
        yield
    except UnicodeDecodeError:
        # read whole, to say in which line: the reader of rows knows its own block alone
        with open_bytes(path) as raw:
            from_utf8(raw.read(), path)
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


# ---- a table of anybody's own ----

def own_table(path):
    """A CSV or JSON lines file -> (names of its columns, its rows as dictionaries).

    CSV may be cut by commas, semicolons, tabs or bars. A .json file may also be one list of
    objects. Both may be gzipped. Blank rows are skipped. InputError if there is no row.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"there is no table at {path}.")
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    with named_damage(path), open_bytes(path) as file:
        text = from_utf8(file.read(), path)
    if kind.lower() in (".jsonl", ".json", ".ndjson"):
        rows = json_rows(path, text)
        columns = list(dict.fromkeys(name for row in rows for name in row))
    else:
        columns, rows = csv_rows(path, text)
    if not rows:
        raise InputError(f"{path} has no rows" + (" below its header." if columns else "."))
    return columns, rows


def csv_rows(path, text):
    """The columns and rows of a CSV text, whichever of four characters cuts it."""
    # the header tells: a report may have any separator in it, the name of a column has none
    def header(separator):
        start = io.StringIO(text[:100_000], newline="")
        return next(csv.reader(start, delimiter=separator), [])
    separator = max(",;\t|", key=lambda separator: len(header(separator)))
    columns = [name.strip() for name in header(separator)]

    # strict: a quote that is never closed would swallow all rows behind it
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows = []
    try:
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            if len(values) != len(columns):
                raise InputError(f"{path}, line {reader.line_num}: {len(values)} values in "
                                 f"{len(columns)} columns; is a quote missing?")
            rows.append(dict(zip(columns, values)))
    except csv.Error as error:
        raise InputError(f"{path}, line {reader.line_num}: no CSV ({error}); is a quote missing, "
                         "or one too many?") from None
    return columns, rows[1:]            # the first is the header itself


def json_rows(path, text):
    """The objects of JSON lines, or of one JSON list in a .json file."""
    try:
        if ".json" in path.suffixes and text.lstrip().startswith("["):
            rows = json.loads(text)
        else:
            rows = json_values(text, path)
        rows = [whole_characters(row) for row in rows]
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be JSON lines.") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}).") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise InputError(f"{path}, entry {number}: wanted one JSON object a line, as "
                             '{"image": "a.png", "report": "Clear lungs."}.')
    return rows


def whole_characters(value):
    """A JSON value with U+FFFD in place of half characters.

    JSON can spell half a character ("\\ud800", a lone surrogate), which cannot be written to a file
    again. Its row is flagged as "broken characters".
    """
    text = json.dumps(value, ensure_ascii=False)
    if not HALF_CHARACTER.search(text):
        return value
    return json.loads(HALF_CHARACTER.sub("\ufffd", text))
