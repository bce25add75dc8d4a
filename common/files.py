"""Reading and writing files: whole or not at all, JSON and JSON lines, hashes.

A file is first written under a temporary name beside its final one, then renamed. Renaming is one
step for the file system, so a kill at any moment leaves the old file or the new one, never half of
either.
"""
import codecs
import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

from common.cli import InputError


# ---- writing ----

@contextmanager
def naming(path):
    """Give errors of the system in this block the file's name: that of a full disk has none."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replacing(path):
    """Write a file whole or not at all: `with replacing(path) as temporary:` and write to
    `temporary`.

    When the block ends well, the temporary file takes the place of `path`; when it fails, it is
    removed. Nothing is fsynced here: a checkpoint, which must survive a power cut, calls `flush`
    itself.
    """
    # beside it, because a file can only be renamed within one file system
    path = Path(path)
    temporary = path.with_name(f".tmp-{path.name}")
    try:
        with naming(path):
            yield temporary
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)       # it is still there only if something failed


def refuse_unwritable(*paths):
    """InputError unless these files can be written, their folders being made if they are not there.

    A command asks before its work, not after hours of it.
    """
    for path in map(Path, paths):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path.parent):
                writable = not path.is_dir()
        except OSError:
            writable = False
        if not writable:
            raise InputError(f"{path} cannot be written; choose an --out in a folder that is "
                             "yours.")


def refuse_replacing(out, *inputs):
    """InputError if a file to write is one of those that are read, which would be lost."""
    if any(os.path.realpath(out) == os.path.realpath(path) for path in inputs if path):
        raise InputError(f"--out {out} is a picture that is read, and would be replaced; name "
                         "another file.")


def write_bytes(path, content):
    """Write bytes, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path, text):
    """Write text as UTF-8 with the line ends that it has, whole or not at all."""
    write_bytes(path, as_utf8(text))


def as_utf8(text):
    """Text -> its bytes.

    Python keeps a byte of a file name that is no UTF-8 as half a character, which UTF-8 lacks. It
    becomes \\udcff, which is also how JSON spells it: whoever reads that gets the name back.
    """
    return text.encode("utf-8", "backslashreplace")


def write_json(path, value):
    """Write one JSON value, indented so that people can read it."""
    write_text(path, json.dumps(value, indent=1))


def json_lines(rows):
    """Rows as JSON lines: one value a line, text as it is and not escaped."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_jsonl(path, rows):
    """Write one JSON value a line."""
    write_text(path, json_lines(rows))


def append_jsonl(path, rows):
    """Add rows to the end of a file of JSON lines."""
    # appending is the one write that a kill cannot make worse than a torn last line; in text mode
    # Windows would write \\r\\n
    with naming(path), open(path, "ab") as file:
        file.write(as_utf8(json_lines(rows)))


def cut_torn_line(path):
    """Take half a line off the end of a file that grows line by line, so that it can grow on.

    A kill may have come while the line was written.
    """
    content = Path(path).read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


# ---- reading ----

def read_text(path):
    """The text of a UTF-8 file without its byte-order mark; InputError if it is no such file."""
    # bytes first: in text mode Python would turn \r\n and lone \r into \n
    try:
        content = Path(path).read_bytes()
    except OSError:
        raise InputError(f"{path} is missing or not a text file in UTF-8.") from None
    return from_utf8(content, path)


PACKED = (b"PK\3\4", b"\xd0\xcf\x11\xe0")         # .xlsx, .docx and .zip; .xls and .doc


def from_utf8(content, path):
    """Bytes -> text without a byte-order mark. InputError says where the first byte is that is no
    UTF-8, and what to do.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    if content.startswith(PACKED):
        raise InputError(f"{path} is an Excel workbook or an archive, no text; save its table as "
                         "CSV (Excel calls it \"CSV UTF-8\"), or unpack it.")
    # UTF-16 has a zero byte beside each Latin letter, which no text in UTF-8 holds
    no_text = f"{path} is not a text file in UTF-8"
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in content:
        raise InputError(f"{no_text}, it looks like UTF-16, which has bytes of zero; save it "
                         "as UTF-8, or convert it (iconv -f UTF-16 -t UTF-8).")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"0x{content[error.start]:02x}"
        raise InputError(f"{no_text}: byte {byte} in line {line}; save it as UTF-8, or convert it "
                         "(iconv -f WINDOWS-1252 -t UTF-8, if Windows wrote it).") from None


def lines_of(text):
    """The lines of a text that are not blank. They end at "\\n", or "\\r\\n", and nowhere else.

    `str.splitlines` would also break at U+0085, U+2028 and form feeds, which occur inside of
    reports.
    """
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def text_lines(path):
    """The lines of a UTF-8 text file that are not blank."""
    text = read_text(path)
    if "\n" not in text:               # an old Mac, and Excel for it, ends lines with \r alone
        text = text.replace("\r", "\n")
    return lines_of(text)


def read_json(path):
    """The value that a JSON file holds. InputError if it is missing or damaged."""
    try:
        return json.loads(read_text(path))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}); it is damaged.") from None


def read_jsonl(path):
    """The values of a file of JSON lines. InputError names the line that is damaged."""
    return json_values(read_text(path), path)


def json_values(text, path):
    """The values of JSON lines. path: of the file that errors name."""
    # numbers count blank lines too, as an editor does
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise InputError(f"line {number} of {path} is not JSON ({error}).") from None
    return rows


# ---- hashes ----

def digest(path):
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def settings_hash(settings):
    """16 hexadecimal digits that tell settings apart. The order of their keys does not matter."""
    # 64 bits: settings are compared with a few others, not with all there could be
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]
