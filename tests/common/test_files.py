"""common/files.py: files are whole or not there; lines end where people's editors end them."""
import errno
import os
from pathlib import Path

import pytest

from common import files
from common.cli import InputError


def test_an_error_that_does_not_know_its_file_gets_the_name(tmp_path, monkeypatch):
    """As that of a full disk; what was there stays whole."""
    path = tmp_path / "x.jsonl"
    path.write_text("old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError) as error:
        files.write_jsonl(path, [{"a": 1}])
    assert error.value.filename == str(path) and path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_is_replaced_in_one_step_or_stays_as_it_was(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": [1, 2]})
    files.write_json(path, {"a": "Größe"})
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyError
    assert files.read_json(path) == {"a": "Größe"}
    assert list(tmp_path.iterdir()) == [path]


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    """A report may hold U+0085, U+2028 or a form feed; str.splitlines would break it there."""
    rows = [{"report": "first\u0085second\u2028third\x0cfourth"}, {"report": "Größe"}, 3]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows


def test_lines_of_other_peoples_editors(tmp_path):
    """A byte-order mark, Windows' line ends and blank lines are no part of the values."""
    path = tmp_path / "rows"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert files.read_jsonl(path) == [{"a": 1}, {"a": 2}]
    path.write_bytes("\ufeffGröße 3 × 4 mm\r\n\n  \nsecond\u0085half".encode())
    assert files.text_lines(path) == ["Größe 3 × 4 mm", "second\u0085half"]


def test_file_names_that_are_no_utf8_come_back(tmp_path):
    """They are half characters in Python, in JSON \\udcff; in a text they are written that way."""
    rows = [{"file": os.fsdecode(b"film-\xff.png")}]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    files.append_jsonl(tmp_path / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows * 2
    files.write_text(tmp_path / "table.md", rows[0]["file"])
    assert files.read_text(tmp_path / "table.md") == r"film-\udcff.png"


def test_lines_are_added_without_windows_line_ends(tmp_path, monkeypatch):
    """Text mode would translate them there (io.TextIOWrapper writes os.linesep)."""
    monkeypatch.setattr(os, "linesep", "\r\n")
    files.append_jsonl(tmp_path / "rows.jsonl", [1, "é"])
    assert (tmp_path / "rows.jsonl").read_bytes() == '1\n"é"\n'.encode()


@pytest.mark.parametrize("content, sentence", [
    ("one\ntwo…".encode("cp1252"), "not a text file in UTF-8: byte 0x85 in line 2; .*iconv -f "
                                   "WINDOWS-1252"),
    (b"\xef\xbb\xbfone\n\n\xff", "byte 0xff in line 3"),
    ("one".encode("utf-16"), "looks like UTF-16.*iconv -f UTF-16"),
    ("one".encode("utf-16-le"), "looks like UTF-16"),
    (b"PK\3\4\0\0", "is an Excel workbook or an archive, no text"),
    (b"\xd0\xcf\x11\xe0\0\0", "is an Excel workbook or an archive, no text"),
])
@pytest.mark.parametrize("read", [files.text_lines, files.read_json, files.read_jsonl])
def test_another_encoding_is_told_by_its_first_byte(tmp_path, read, content, sentence):
    (tmp_path / "reports").write_bytes(content)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path / "reports")


@pytest.mark.parametrize("read, content, sentence", [
    (files.read_jsonl, b'{"a": 1}\n\n{"a": \n', "line 3 of .* is not JSON"),
    (files.read_json, b"{", "is not JSON"),
    (files.text_lines, b"\x89PNG\r\n", "not a text file in UTF-8"),
    (files.text_lines, None, "missing or not a text file in UTF-8")])
def test_what_cannot_be_read_is_named_in_a_sentence(tmp_path, read, content, sentence):
    path = tmp_path / "reports.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=sentence) as error:
        read(path)
    assert str(path) in str(error.value)


def test_hashes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")            # FIPS 180-2, appendix B.1
    assert files.digest(tmp_path / "x").startswith("ba7816bf8f01cfea")
    assert files.settings_hash({"a": 1, "b": 2}) == files.settings_hash({"b": 2, "a": 1})
    assert files.settings_hash({"a": 1}) != files.settings_hash({"a": 2})
