"""common/files.py: files are whole or not there; lines end where people's editors end them."""
import pytest

from common import files
from common.cli import InputError


def test_a_file_is_replaced_in_one_step(tmp_path):
    path = tmp_path / "x.json"
    files.write_json(path, {"a": [1, 2]})
    files.write_json(path, {"a": "Größe"})
    assert files.read_json(path) == {"a": "Größe"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


def test_what_fails_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "x.txt"
    files.write_text(path, "old")
    with pytest.raises(KeyError), files.replacing(path) as temporary:
        temporary.write_text("half of the n")
        raise KeyError
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.txt"]


def test_a_folder_in_the_way_is_not_replaced(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError):
        files.write_text(tmp_path / "x", "text")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x"]


def test_json_lines_end_at_line_feeds_alone(tmp_path):
    """A report may hold U+0085, U+2028 or a form feed; str.splitlines would break it there."""
    rows = [{"report": "first\u0085second\u2028third\x0cfourth"}, {"report": "Größe"}, 3]
    files.write_jsonl(tmp_path / "rows.jsonl", rows)
    assert files.read_jsonl(tmp_path / "rows.jsonl") == rows


def test_json_lines_of_other_peoples_editors(tmp_path):
    """A byte-order mark, Windows' line ends and blank lines are no part of the values."""
    (tmp_path / "rows.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert files.read_jsonl(tmp_path / "rows.jsonl") == [{"a": 1}, {"a": 2}]


def test_a_damaged_line_is_named(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"a": 1}\n{"a": \n')
    with pytest.raises(InputError, match="line 2 of .*rows.jsonl is not JSON"):
        files.read_jsonl(tmp_path / "rows.jsonl")


def test_text_lines(tmp_path):
    path = tmp_path / "reports.txt"
    path.write_bytes("\ufeffGröße 3 × 4 mm\r\n\n  \nsecond\u0085half".encode())
    assert files.text_lines(path) == ["Größe 3 × 4 mm", "second\u0085half"]


@pytest.mark.parametrize("content", [b"\xff\xfe\x00broken\xff", None])
def test_what_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / "reports.txt"
    if content is not None:
        path.write_bytes(content)
    for wrong in (path, tmp_path):
        with pytest.raises(InputError, match="missing or not a text file in UTF-8"):
            files.text_lines(wrong)


def test_damaged_json_is_refused(tmp_path):
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(InputError, match="x.json is not JSON"):
        files.read_json(tmp_path / "x.json")


def test_hashes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")            # FIPS 180-2, appendix B.1
    assert files.digest(tmp_path / "x").startswith("ba7816bf8f01cfea")
    assert files.settings_hash({"a": 1, "b": 2}) == files.settings_hash({"b": 2, "a": 1})
    assert files.settings_hash({"a": 1}) != files.settings_hash({"a": 2})
