"""A look before hours of work, --check and --show afterwards, and the guard of joint training."""
import json
import os
import shutil
from collections import Counter

import pytest
from PIL import Image

import prepare_mimic
from common.cli import InputError
from common.files import digest, write_json, write_jsonl
from common.packed import Writer
from mimic import check
from mimic_tree import film, png


@pytest.fixture
def copy(packed_mimic, tmp_path):
    """A packed data set to be damaged."""
    return shutil.copytree(packed_mimic.out, tmp_path / "out")


# ---- before ----

def test_images_that_are_not_there_stop_the_run_early(packed_mimic, tmp_path):
    none = shutil.ignore_patterns("*.jpg", "*.png", "*.dcm")
    shutil.copytree(packed_mimic.jpg, tmp_path / "jpg", ignore=none)
    with pytest.raises(InputError, match="images looked for are missing, as .*files/p1"):
        prepare_mimic.main(["--images", str(tmp_path / "jpg"), "--reports", str(packed_mimic.zip),
                            "--out", str(tmp_path / "out")])


def test_reports_that_are_not_there_stop_the_run_early(packed_mimic, tmp_path):
    shutil.copytree(packed_mimic.reports / "files" / "p10", tmp_path / "some" / "p10")
    with pytest.raises(InputError, match="reports looked for are missing"):
        prepare_mimic.main(["--images", str(packed_mimic.jpg), "--reports", str(tmp_path / "some"),
                            "--out", str(tmp_path / "out")])


# ---- --check ----

def test_check_is_content_with_what_we_write(packed_mimic, capsys):
    assert prepare_mimic.main(["--check", str(packed_mimic.out)]) == 0
    assert prepare_mimic.main(["--check", str(packed_mimic.out / "und-48")]) == 0
    said = capsys.readouterr().out
    assert said.count("are right") == 4 and "pleural" not in said


def flip(path):
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def change_rows(folder, change):
    """Change rows and make the hashes right again: only the meaning is wrong."""
    path = folder / "00000.jsonl"
    rows = [change(n, row) for n, row in enumerate(check.read_shard(path)[0])]
    write_jsonl(path, rows)
    info = json.loads((folder / "dataset.json").read_text())
    info["sha256"][path.name] = digest(path)
    info["counts"] = Counter(row["split"] for row in check.rows_of(folder))
    write_json(folder / "dataset.json", info)


def change_settings(folder):
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"quality": 95', '"quality": 90'))


def list_a_training_image_as_test(out):
    row = next(row for row in check.rows_of(out / "gen-32") if row["split"] == "train")
    (out / "und-test-ids.txt").write_text(row["id"])


DAMAGE = {
    "a bit of an image": (lambda out: flip(out / "gen-48/00001.bin"), "SHA-256"),
    "a bit of a row": (lambda out: flip(out / "und-48/00000.jsonl"), "SHA-256|damaged|short"),
    "images cut short": (lambda out: os.truncate(out / "und-48/00000.bin", 1000), "cut short"),
    "images missing": (lambda out: (out / "und-48/00001.bin").unlink(), "cut short"),
    "settings edited": (lambda out: change_settings(out / "und-48"), "edited"),
    "a file too many": (lambda out: (out / "und-48/00009.bin").write_bytes(b""), "not those that"),
    "an id twice": (lambda out: change_rows(
        out / "und-48", lambda n, row: {**row, "id": "x"} if n < 2 else row), "twice"),
    "a patient in two splits": (lambda out: change_rows(
        out / "und-48", lambda n, row: {**row, "split": "val"} if n == 0 else row),
        "more than one split"),
    "an empty report": (lambda out: change_rows(
        out / "und-48", lambda n, row: {**row, "report": " "} if n == 0 else row), "empty report"),
    "a leak": (list_a_training_image_as_test, "images of the understanding test"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_check_says_what_is_wrong(copy, damage):
    do, message = DAMAGE[damage]
    do(copy)
    with pytest.raises(InputError, match=message):
        prepare_mimic.main(["--check", str(copy)])


def test_a_folder_without_data_sets(tmp_path):
    with pytest.raises(InputError, match="no finished data set"):
        check.check(tmp_path)


@pytest.mark.parametrize("content", ["[]", "null", '{"schema": 1}', "{", '{"schema": "1"}'])
def test_a_dataset_json_of_another_form(copy, content):
    (copy / "und-48" / "dataset.json").write_text(content)
    for line in (["--check", str(copy)], ["--show", "2", "--out", str(copy)]):
        with pytest.raises(InputError, match="damaged"):
            prepare_mimic.main(line)


@pytest.mark.parametrize("row", ["[]", "{}", "3", "[" * 50_000,
                                 '{"id": 1, "subject": "a", "split": "train", "report": "x"}'])
def test_rows_of_another_form(copy, row):
    path = copy / "und-48" / "00000.jsonl"
    rest = path.read_text().split("\n")[1:]
    path.write_text("\n".join([row, *rest]))
    with pytest.raises(InputError, match="damaged"):
        prepare_mimic.main(["--check", str(copy)])


# ---- --show ----

def test_a_contact_sheet(copy, capsys):
    prepare_mimic.main(["--show", "16", "--out", str(copy)])
    sheet = copy / "und-48" / "contact-sheet.png"
    assert Image.open(sheet).size[0] > 4 * 48 and sheet.stat().st_mode & 0o077 == 0
    assert "effusion" not in capsys.readouterr().out


# ---- joint training, and CheXGenBench's split ----

def pack(root, task, subjects, **settings):
    """A data set with one image a patient; subjects: {patient: split}."""
    with Writer(root / f"{task}-48", task, 48, settings) as writer:
        for subject, split in subjects.items():
            name, _, number = subject.partition(".")
            writer.add(png(Image.fromarray(film(1, 48, 48))), {
                "id": subject, "subject": name, "split": split, "report": f"Edema {number}."})
    info = json.loads((root / f"{task}-48" / "dataset.json").read_text())
    files = (root / f"{task}-48").glob("0*")
    write_json(root / f"{task}-48" / "dataset.json",
               {**info, "sha256": {path.name: digest(path) for path in files}})


@pytest.mark.parametrize("und, gen", [
    ({"a": "train", "b": "test"}, {"a": "train", "b": "train"}),
    ({"a": "train", "b": "train"}, {"a": "train", "b": "val"}),
])
def test_a_patient_whom_one_task_holds_out_may_not_train_the_other(tmp_path, und, gen):
    pack(tmp_path, "und", und)
    pack(tmp_path, "gen", gen)
    with pytest.raises(InputError, match="1 patients whom one task trains on"):
        check.refuse_leak(tmp_path, 48, 48)


def test_one_split_for_both_tasks_is_no_leak(tmp_path):
    pack(tmp_path, "und", {"a": "train", "b": "test", "c": "val"})
    pack(tmp_path, "gen", {"a": "train", "b": "val", "d": "train"})
    check.refuse_leak(tmp_path, 48, 48)


def test_chexgenbench_may_have_patients_in_two_splits(tmp_path, capsys):
    """To draw, not to read; the official split has none."""
    pack(tmp_path, "gen", {"a.1": "train", "a.2": "test"}, gen_split="chexgenbench")
    assert check.check(tmp_path) == 0
    assert "1 patients are in more than one split, as" in capsys.readouterr().out
    pack(tmp_path, "und", {"a.1": "train", "a.2": "test"}, gen_split="chexgenbench")
    with pytest.raises(InputError, match="1 patients are in more than one split"):
        check.check(tmp_path / "und-48")
