"""Tables as they lie on disk: CSV files, gzipped or not, read as streams; every value stays a string."""
import csv
import gzip
import io
import json
import re
import zlib
from contextlib import contextmanager
from pathlib import Path

from common.processes import InputError

csv.field_size_limit(2**31 - 1)
HALF = re.compile("[\ud800-\udfff]")


def whole_characters(value):
    """JSON can hold half a character (a lone surrogate), which no file can: it becomes U+FFFD, and the row is flagged."""
    text = json.dumps(value, ensure_ascii=False)
    return json.loads(HALF.sub("\ufffd", text)) if HALF.search(text) else value


def open_text(path):
    """A text file, gzipped or not, with or without BOM."""
    raw = gzip.open(path) if Path(path).suffix == ".gz" else open(path, "rb")
    return io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")


def lines_of(path):
    with damage_told(path), open_text(path) as file:
        yield from file


def read_table(path, columns):
    """A CSV file -> tuples of the values of `columns`, row by row."""
    with damage_told(path), open_text(path) as file:
        rows = csv.reader(file)
        header = next(rows, [])
        for column in columns:
            if column not in header:
                raise InputError(f"{path} has no column '{column}'; is it the right table?")
        places = [header.index(column) for column in columns]
        for row in rows:
            if row and len(row) != len(header):
                raise InputError(f"{path}, line {rows.line_num}: {len(row)} values in {len(header)} columns; is it damaged?")
            if row:
                yield tuple(row[place] for place in places)


def header_of(path):
    with damage_told(path), open_text(path) as file:
        return next(csv.reader(file), [])


@contextmanager
def damage_told(path):
    """What is damaged ends in one sentence."""
    try:
        yield
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8; save it as UTF-8 (CSV UTF-8 in a spreadsheet program).") from None
    except (EOFError, gzip.BadGzipFile, zlib.error, csv.Error):
        raise InputError(f"{path} is damaged or no CSV table; download it again.") from None


def find(root, name, what):
    """`name`, gzipped or not, in `root` or up to five folders below (the tree that wget leaves); of several the last."""
    root = Path(root).expanduser()
    for depth in range(6):
        found = sorted(p for ending in ("", ".gz") for p in root.glob("*/" * depth + name + ending) if p.is_file())
        if found:
            return found[-1]
    raise InputError(f"there is no {name}[.gz] in {root} or the folders below it; {what}")
