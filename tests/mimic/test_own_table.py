"""A table of one's own: its columns, patients, splits, values; and tables that cannot be read."""
import gzip
import json
import re
import shlex
import subprocess
import sys
import textwrap

import pytest

from common.cli import InputError
from helpers import ROOT
from mimic import pixels
from mimic.items import Item, LeftOut, hashed_split
from mimic.own_table import table
from mimic_tree import write_table
from prepare_mimic import Settings


def items_of(path, left_out=None, **settings):
    """(image root, items) of a table."""
    left_out = LeftOut() if left_out is None else left_out
    return table(Settings(dataset="table", reports=str(path), **settings), left_out)


def written(folder, *rows, name="mine.csv"):
    """A table of rows that are dictionaries, CSV or JSON lines -> its path."""
    path = folder / name
    if path.suffix == ".csv":
        columns = list(dict.fromkeys(key for row in rows for key in row))
        write_table(path, columns, [[row.get(key, "") for key in columns] for row in rows])
    else:
        path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl"])
def test_a_table_of_ones_own(tmp_path, name):
    """JSON can spell half a character, which no file can hold: it is replaced."""
    odd = "Left \ud800 lung." if name == "mine.jsonl" else "Left \ufffd lung."
    path = written(tmp_path, {
        "image": "./1.png", "report": "FINDINGS: Effusion.\nIMPRESSION: Fine.", "Edema": "1",
        "split": "validate", "subject": "p1", "study": "s1", "id": "a", "view": "PA"},
        {"image": "2.png", "report": odd, "Edema": "", "subject": "p2"}, name=name)
    root, (first, second) = items_of(path)
    assert root == tmp_path and first == Item(
        "a", "p1", "s1", "val", "PA", "1.png", ("Effusion.", "Fine.", "table:sections"),
        {"Edema": 1.0})
    assert (second.id, second.study, second.labels) == ("2.png", "2.png", {})
    assert second.text == ("Left \ufffd lung.", None, "table:whole report")


# ---- columns ----

def test_columns_are_known_by_their_usual_names(tmp_path, capsys):
    """Other columns are labels if they hold 1, 0, -1 and blanks; all others are said to be passed
    over."""
    path = written(tmp_path, {
        "": 0, "File Name": "1.png", "Findings": "Effusion.", "conclusion": "Fine.", "age": 61,
        "PatientID": "p1", "Accession Number": "s1", "SOPInstanceUID": "a", "Subset": "Training",
        "ViewPosition": "Postero-Anterior", "Edema": -1.0, "Effusion": 0})
    _, (item,) = items_of(path)
    assert item == Item("a", "p1", "s1", "train", "PA", "1.png",
                        ("Effusion.", "Fine.", "table:columns"), {"Edema": -1.0, "Effusion": 0.0})
    printed = capsys.readouterr().out
    assert "subject from 'PatientID'" in printed and "2 labels (Edema, Effusion)" in printed
    assert "1 more passed over (age)" in printed and "Fine" not in printed


@pytest.mark.parametrize("row, columns, message", [
    ({"film": "", "report": ""}, [], r"has the columns film, report\. None is known as the image "
     r"\(image, filename, .*--columns image=COLUMN"),
    ({"image": "", "bericht": ""}, [], "the report .* or the findings .*--columns report=COLUMN"),
    ({"file": "", "path": "", "report": ""}, [], "2 columns that may be the image: file, path"),
    ({"image": "", "report": ""}, ["subject=pat"], "has the columns image, report"),
    ({"image": "", "report": ""}, ["patient=pat"], "WHAT is one of image, report"),
])
def test_a_column_that_is_not_known_is_asked_for(tmp_path, row, columns, message):
    with pytest.raises(InputError, match=message):
        items_of(written(tmp_path, dict.fromkeys(row, "a")), columns=columns)


def test_columns_may_be_named(tmp_path):
    path = written(tmp_path, {"image": "small.png", "film": "1.png", "report": "Clear.",
                              "case_no": "7"})
    _, (item,) = items_of(path, columns=["image=film", "subject=case_no"])
    assert (item.image, item.subject) == ("1.png", "7")


# ---- patients ----

@pytest.mark.parametrize("name", ["patient", "case_no", "CaseID", "Person", "pat_id", "mrn_hash",
                                  "Subject No"])
def test_a_column_that_may_be_the_patient_is_no_label(tmp_path, name):
    rows = [{"image": f"{n}.png", "report": "Clear.", name: n % 2, "split": "train"}
            for n in range(4)]
    path = written(tmp_path, *rows)
    if name == "patient":
        assert [item.subject for item in items_of(path)[1]] == ["0", "1", "0", "1"]
    else:
        # the words that are offered can be typed as they are
        with pytest.raises(InputError, match=f"is '{name}' the patient") as refusal:
            items_of(path)
        offered = shlex.split(re.search("say --columns (.*); if no", str(refusal.value))[1])
        assert offered == [f"subject={name}"]
        assert not any(item.labels for item in items_of(path, split_by="image")[1])
    _, items = items_of(path, columns=[f"subject={name}"])
    assert [item.subject for item in items] == ["0", "1", "0", "1"]
    assert all(not item.labels for item in items)


def test_patients_that_differ_in_capitals_are_one_or_two(tmp_path):
    """Which, nobody can tell; as two, one patient would train and test."""
    rows = [{"image": f"{name}.png", "report": "Clear.", "patient": name} for name in ("p7", "P7 ")]
    with pytest.raises(InputError, match="the patients p7 and P7 differ in capitals alone"):
        items_of(written(tmp_path, *rows))
    images = [{"image": name, "report": "Clear."} for name in ("a.png", "A.png")]
    assert len(items_of(written(tmp_path, *images), split_by="image")[1]) == 2


def test_a_split_by_image_is_asked_for(tmp_path):
    rows = [{"image": f"{n}.png", "report": "Clear.", "patient_age": 60, "study": f"s{n // 2}"}
            for n in range(60)]
    path = written(tmp_path, *rows)
    with pytest.raises(InputError, match="no column that names the patients .*subject_id.*"
                                         "--split-by image.*--split-by study"):
        items_of(path)
    by_study = items_of(path, split_by="study")[1]
    assert [item.split for item in by_study] == [hashed_split(f"s{n // 2}") for n in range(60)]
    without = written(tmp_path, *[{"image": row["image"], "report": "Clear."} for row in rows])
    by_image = items_of(without, split_by="image")[1]
    assert [item.split for item in by_image] == [hashed_split(f"{n}.png") for n in range(60)]
    with_patients = written(tmp_path, {**rows[0], "patient_id": 1})
    with pytest.raises(InputError, match="names its patients in 'patient_id'"):
        items_of(with_patients, split_by="image")


def test_an_id_that_several_rows_have_may_be_the_patient(tmp_path):
    rows = [{"image": f"{n}.png", "report": "Clear.", "id": n // 2} for n in range(4)]
    with pytest.raises(InputError, match="is 'id' the patient"):
        items_of(written(tmp_path, *rows))


def test_a_patient_has_one_split(tmp_path):
    rows = [{"image": f"{n}.png", "report": "Clear.", "pid": f"p{n // 2}", "split": split}
            for n, split in enumerate(("test", "", "train", "train", "", ""))]
    _, items = items_of(written(tmp_path, *rows))
    assert [item.split for item in items] == ["test"] * 2 + ["train"] * 2 + [hashed_split("p2")] * 2
    rows[3]["split"] = "val"
    with pytest.raises(InputError, match=r"1 patients .* 'split', the first is p1 \(train, val\)"):
        items_of(written(tmp_path, *rows))


# ---- values ----

NO_TEXT = {"true": True, "false": False, "12.5": 12.5, "['Clear.']": ["Clear."], "{}": {}}


@pytest.mark.parametrize("name", ["mine.csv", "mine.jsonl"])
def test_values_that_are_no_text_are_left_out_and_counted(tmp_path, name):
    values = [value if name == "mine.jsonl" else text for text, value in NO_TEXT.items()]
    rows = [{"image": f"{n}.png", "report": value, "subject": n, "split": "train"}
            for n, value in enumerate([*values, float("nan"), "None", "Clear."])]
    left_out = LeftOut()
    _, items = items_of(written(tmp_path, *rows, name=name), left_out)
    assert [item.text[0] for item in items] == [None, None, "Clear."]       # as a blank report
    assert left_out == [(f"{n}.png", f"{n}.png", f"report is no text but {what}")
                        for n, what in enumerate(("true or false", "true or false", "a number",
                                                  "a list", "a list"))]


def test_rows_that_name_no_image_or_no_patient_are_left_out_and_counted(tmp_path):
    rows = [{"image": "1.png", "report": "Clear.", "subject": float("nan")},
            {"image": None, "report": "Clear.", "subject": 1, "id": "a"},
            {"image": ["1.png"], "report": "Clear.", "subject": 1},
            {"image": 7, "report": "Clear.", "subject": True}]
    left_out = LeftOut()
    assert items_of(written(tmp_path, *rows, name="mine.jsonl"), left_out)[1] == []
    assert left_out == [("1.png", "1.png", "no patient named"), ("a", "", "no image named"),
                        ("row 3", "", "no image named"), ("7", "7", "no patient named")]


@pytest.mark.parametrize("view, known", [
    ("PA", "PA"), ("ap", "AP"), ("AP portable", "AP"), ("Frontal", "frontal"), ("", ""),
    ("LATERAL", None), ("lateral", None), ("LL", None), ("L", None), ("AP AXIAL", None), (1, None),
])
def test_only_frontal_views_are_packed(tmp_path, view, known):
    left_out = LeftOut()
    _, items = items_of(written(tmp_path, {"image": "1.png", "report": "Clear.", "subject": "p",
                                           "view": view}), left_out)
    assert [item.view for item in items] == ([] if known is None else [known])
    assert len(items) == 1 or left_out[0][2] == f"not frontal: {view}"


def test_ids_that_a_spreadsheet_changed(tmp_path):
    """17.0 is 17, of whichever row; what was rounded is refused."""
    rows = [{"image": "1.png", "report": "Clear.", "subject": "17.0"},
            {"image": "2.png", "report": "Clear.", "subject": "17"}]
    assert {item.subject for item in items_of(written(tmp_path, *rows))[1]} == {"17"}
    rows[1]["subject"] = "1.23457E+11"
    with pytest.raises(InputError, match="row 2: an id like 1.23E.11 was rounded"):
        items_of(written(tmp_path, *rows))


# ---- files ----

REPORT = 'Clear; lungs, and\n"normal" heart.'


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start, packed", [("", False), ("\ufeff", False), ("", True)])
def test_every_kind_of_csv_file(tmp_path, separator, start, packed):
    quoted = '"' + REPORT.replace('"', '""') + '"'
    lines = (("image", "report", " subject "), (r"films\1", quoted, "p"), ("", "", ""))
    content = (start + "\r\n".join(separator.join(line) for line in lines)).encode()
    path = tmp_path / ("mine.csv.gz" if packed else "mine.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    _, (item,) = items_of(path)
    assert (item.image, item.text[0], item.subject) == ("films/1", REPORT, "p")


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz", "mine.json"])
def test_every_kind_of_json_file(tmp_path, name):
    row = {"image": "1.png", "report": REPORT, "subject": 3}
    content = json.dumps([row], indent=1) if name == "mine.json" else f"\ufeff{json.dumps(row)}\n\n"
    content = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    _, (item,) = items_of(tmp_path / name)
    assert (item.image, item.text[0], item.subject) == ("1.png", REPORT, "3")


@pytest.mark.parametrize("name, content, message", [
    ("mine.csv", "image,report\n0.png,Sj\u00f6gren\n", "UTF-8"),
    ("mine.jsonl", '{"image":"0.png","report":"Sj\u00f6gren"}\n', "UTF-8"),
    ("mine.jsonl", '{"image": "1.png", "report": "gren"}\n{"image": "gren', "line 2"),
    ("mine.jsonl", '{"image": "0.png", "report": "x"}\n[]\n', "entry 2"),
    ("mine.json", "[1]", "entry 1"),
    ("mine.json", "[{]", "is not JSON"),
    ("mine.jsonl", "[" * 100_000, "nested too deeply"),
    ("mine.json", "[" * 100_000, "nested too deeply"),
    ("mine.csv.gz", "image,report", "damaged"),
    ("mine.csv", "image,report,pid,split\n0.png,Clear lungs.,1,vali\n", "row 1"),
    ("mine.csv", "", "has no rows"),
    ("mine.csv", "image,report\n", "no rows below its header"),
    ("mine.csv", "image,report\n0.png,gren,x\n", "line 2: 3 values in 2 columns"),
    ("mine.csv", 'image,report\n0.png,"gren\n1.png,gren\n', "line 3: .*is a quote missing"),
    ("mine.csv", "image,report\n0.png,gr\0en\n", "bytes of zero"),
])
def test_tables_that_cannot_be_read_end_in_one_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="latin-1")
    with pytest.raises(InputError, match=message) as error:
        items_of(tmp_path / name)
    assert "gren" not in str(error.value)


# ---- the recipes of docs/data.md, on made-up files of that layout ----

def test_chexpert_plus(tmp_path):
    """Its columns by name; images that are PNG where the table says .jpg; lateral ones left out."""
    common = {"deid_patient_id": "patient1", "report": "NARRATIVE: ...", "age": 61, "sex": "Male",
              "section_narrative": "", "section_findings": "Effusion.", "ap_pa": "AP",
              "section_impression": "Fluid.", "path_to_dcm": "train/1.dcm", "race": "White",
              "patient_report_date_order": 1, "split": "valid"}
    path = written(
        tmp_path,
        {**common, "path_to_image": "train/patient1/study1/view1_frontal.jpg",
         "frontal_lateral": "Frontal"},
        {**common, "path_to_image": "train/patient1/study1/view2_lateral.jpg",
         "frontal_lateral": "Lateral"}, name="df_chexpert_plus_240401.csv")
    left_out = LeftOut()
    root, (item,) = items_of(path, left_out, images=str(tmp_path / "PNG"), columns=[
        "image=path_to_image", "subject=deid_patient_id", "view=frontal_lateral",
        "findings=section_findings", "impression=section_impression"])
    assert (item.subject, item.split, item.view) == ("patient1", "val", "frontal")
    assert item.text == ("Effusion.", "Fluid.", "table:columns")
    assert len(left_out) == 1
    png = tmp_path / "PNG" / "train/patient1/study1/view1_frontal.png"
    png.parent.mkdir(parents=True)
    png.touch()
    assert pixels.locate(root / item.image) == png


def test_rexgradient(tmp_path):
    """The program of docs/data.md makes a line an image of its metadata."""
    about = {"ImagePath": ["../deid_png/p1/s1/1.png", "../deid_png/p1/s1/2.png"],
             "ImageViewPosition": ["POSTERO_ANTERIOR", "LATERAL"], "Findings": "Effusion.",
             "Impression": "Fluid.", "PatientSex": "F"}
    (tmp_path / "metadata").mkdir()
    for split in ("train", "valid", "test"):
        (tmp_path / "metadata" / f"{split}_metadata_view_position.json").write_text(
            json.dumps({f"{split}1": about}))
    recipe = (ROOT / "docs/data.md").read_text()
    program = re.search(r"rexgradient.jsonl <<'END'\n(.*?)\n    END", recipe, re.DOTALL)[1]
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], cwd=tmp_path,
                         capture_output=True, text=True, check=True)
    path = tmp_path / "rexgradient.jsonl"
    path.write_text(run.stdout)
    left_out = LeftOut()
    _, items = items_of(path, left_out, images=str(tmp_path), split_by="study")
    assert [item.split for item in items] == ["train", "val", "test"] and len(left_out) == 3
    assert items[0].image == "deid_png/p1/s1/1.png" and items[0].view == "PA"
    assert items[0].text == ("Effusion.", "Fluid.", "table:columns")
