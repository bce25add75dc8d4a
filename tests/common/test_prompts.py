"""Reports to draw from text files and tables, and the names of the pictures."""
import json

import pytest

from common.cli import InputError
from common.prompts import Prompt, picture_paths, read_prompts


def read(folder, name, content):
    """-> (prompts of a file with this content, the sentences about what is left out)."""
    (folder / name).write_text(content, encoding="utf-8")
    failures = []
    return read_prompts(folder / name, failures), failures


def test_a_text_file_has_a_report_a_line(tmp_path):
    content = "\ufeffid,report\n\n  \nNo effusion, no edema.\r\n"
    prompts, failures = read(tmp_path, "a.txt", content)
    assert prompts == [Prompt("", "id,report"), Prompt("", "No effusion, no edema.")]
    assert not failures


TABLES = {
    "a.csv": "id,report\n1,Clear.\n2,Edema.\n",
    "a.tsv": "report\tid\nClear.\t1.0\nEdema.\t2.0\n",
    "b.csv": "filename;findings\r\n1.png;Clear.\r\n2.dcm;Edema.\r\n",
    "a.jsonl": '{"id": 1, "report": "Clear."}\n{"id": 2, "text": "", "report": "Edema."}\n',
    "a.json": json.dumps([{"id": "1", "caption": "Clear."}, {"id": 2.0, "caption": "Edema."}]),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_ids(tmp_path, name):
    prompts, failures = read(tmp_path, name, TABLES[name])
    assert prompts == [Prompt("1", "Clear."), Prompt("2", "Edema.")] and not failures


def test_rows_that_cannot_be_drawn_are_counted(tmp_path):
    rows = [{"id": "a", "report": "Clear."}, {"id": "b", "report": None},
            {"id": "c", "report": float("nan")}, {"id": "d", "report": ["Clear."]},
            {"id": "A", "report": "Edema."}, {"report": "Effusion."}]
    prompts, failures = read(tmp_path, "a.jsonl", "\n".join(map(json.dumps, rows)))
    assert prompts == [Prompt("a", "Clear."), Prompt("row-6", "Effusion.")]
    assert [sentence.replace(str(tmp_path), "") for sentence in failures] == [
        "2 of 6 reports in /a.jsonl are blank: left out.",
        "1 of 6 reports in /a.jsonl are no text but a list: left out.",
        "1 of 6 reports in /a.jsonl have the id of another one: left out."]


def test_a_table_without_reports_lists_its_columns(tmp_path):
    with pytest.raises(InputError, match=r"has the columns id, bericht\. None is known as the rep"):
        read(tmp_path, "a.csv", "id,bericht\n1,Clear.\n")


def test_pictures_are_called_by_their_ids_or_numbered():
    lines, table = [Prompt("", "x")] * 2, [Prompt("p1/s 2", "x"), Prompt("b" * 300, "x")]
    for prompts, num, names in (
            (lines[:1], 1, ["o.png"]), (lines, 1, ["o-000.png", "o-001.png"]),
            (lines[:1], 2, ["o-000.png", "o-001.png"]),
            (table[:1], 1, ["o-p1_s_2.png"]), (table[:1], 2, ["o-p1_s_2-0.png", "o-p1_s_2-1.png"]),
            (table, 1, ["o-p1_s_2.png", f"o-{'b' * 60}.png"])):
        assert [path.name for path in picture_paths("folder/o.png", prompts, num)] == names
    with pytest.raises(InputError, match="two pictures would be called o-001.png"):
        picture_paths("o.png", [*lines, Prompt("001", "x")], 1)


@pytest.mark.parametrize("content", ["", "\ufeff", " \n\t\n"])
def test_a_file_without_a_report_is_said_to_be_one(tmp_path, content):
    with pytest.raises(InputError, match="a.txt holds no report"):
        read(tmp_path, "a.txt", content)


def test_a_text_file_of_an_old_mac(tmp_path):
    """It has carriage returns alone; elsewhere one may stand inside of a line."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"No effusion.\rEdema.\r")
    assert read_prompts(path, []) == [Prompt("", "No effusion."), Prompt("", "Edema.")]


@pytest.mark.parametrize("report, what", [
    ("<b>FINDINGS:</b><br/>Clear.", "HTML"), ("Clear &amp; dry.&nbsp;", "HTML"),
    (r"{\rtf1\ansi Clear.}", "RTF")])
def test_reports_of_word_processors_and_browsers_are_left_out(tmp_path, report, what):
    """Their marks would be drawn, and learnt."""
    prompts, failures = read(tmp_path, "a.csv", f"id,report\n1,{report}\n2,Sats <90% & >2 L.\n")
    assert [prompt.id for prompt in prompts] == ["2"]
    path = tmp_path / "a.csv"
    assert failures == [f"1 of 2 reports in {path} are no text but {what}: left out."]


def test_a_column_that_is_there_twice(tmp_path):
    with pytest.raises(InputError, match="has the column 'report' twice; rename one of them"):
        read(tmp_path, "a.csv", "id,report,report\n1,Clear.,Edema.\n")
