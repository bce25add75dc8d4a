"""common/files.py: files are whole or not there; lines end where people's editors end them."""
import pytest

from common import files
from common.cli import InputError


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


@pytest.mark.parametrize("read, content, sentence", [
    (files.read_jsonl, b'{"a": 1}\n\n{"a": \n', "line 3 of .* is not JSON"),
    (files.read_json, b"{", "is not JSON"),
    (files.text_lines, b"\xff\xfe\x00broken\xff", "missing or not a text file in UTF-8"),
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
