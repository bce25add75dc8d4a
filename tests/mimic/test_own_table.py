"""A table of one's own: columns, splits, values; and tables that cannot be read."""
import json

import pytest

from common.cli import InputError
from mimic.items import Item, LeftOut
from mimic.own_table import table
from mimic_tree import write_table
from prepare_mimic import Settings


def items_of(path, left_out=None, **settings):
    """(image root, items) of a table."""
    left_out = LeftOut() if left_out is None else left_out
    return table(Settings(dataset="table", reports=str(path), **settings), left_out)


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_of_ones_own(tmp_path, kind):
    """JSON can spell half a character, which no file can hold: it is replaced."""
    odd = "Left \ud800 lung." if kind == "jsonl" else "Left \ufffd lung."
    rows = [{"image": "./1.png", "report": "FINDINGS: Effusion.\nIMPRESSION: Fine.", "grade": "2",
             "split": "validate", "subject": "p1", "study": "s1", "id": "a", "view": "PA"},
            {"image": "2.png", "report": odd, "grade": ""}]
    path = tmp_path / f"mine.{kind}"
    if kind == "csv":
        write_table(path, rows[0], [[row.get(key, "") for key in rows[0]] for row in rows])
    else:
        path.write_text("\n".join(json.dumps(row) for row in rows))
    root, (first, second) = items_of(path)
    assert root == tmp_path and first == Item(
        "a", "p1", "s1", "val", "PA", "1.png", ("Effusion.", "Fine.", "table:sections"),
        {"grade": "2"})
    assert (second.id, second.subject, second.labels) == ("2.png", "2.png", {})
    assert second.text == ("Left \ufffd lung.", None, "table:whole report")


@pytest.mark.parametrize("name, content, message", [
    ("mine.csv", "image,report\n0.png,Sj\u00f6gren\n", "UTF-8"),
    ("mine.jsonl", '{"image":"0.png","report":"Sj\u00f6gren"}\n', "UTF-8"),
    ("mine.jsonl", '{"image": "1.png", "report": "gren"}\n{"image": "gren', "line 2"),
    ("mine.jsonl", '{"image": "0.png", "report": "x"}\n[]\n', "entry 2"),
    ("mine.jsonl", "[" * 100_000, "nested too deeply"),
    ("mine.csv.gz", "image,report", "damaged"),
    ("mine.csv", "image,report,split\n0.png,Clear lungs.,vali\n", "entry 1"),
    ("mine.csv", "", "no column 'image'"),
])
def test_tables_that_cannot_be_read_end_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=message) as error:
        items_of(tmp_path / name)
    assert "gren" not in str(error.value)
