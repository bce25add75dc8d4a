"""A look before hours of work, --check and --show afterwards."""
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

def test_images_or_reports_that_are_not_there_stop_the_run_early(packed_mimic, tmp_path):
    none = shutil.ignore_patterns("*.jpg", "*.png", "*.dcm")
    shutil.copytree(packed_mimic.jpg, tmp_path / "jpg", ignore=none)
    shutil.copytree(packed_mimic.reports / "files" / "p10", tmp_path / "some" / "p10")
    for images, reports, message in (
            (tmp_path / "jpg", packed_mimic.zip, "images looked for are missing, as .*files/p1"),
            (packed_mimic.jpg, tmp_path / "some", "reports looked for are missing")):
        line = ["--images", images, "--reports", reports, "--out", tmp_path / "out"]
        with pytest.raises(InputError, match=message):
            prepare_mimic.main([str(word) for word in line])


# ---- --check and --show ----

def test_check_and_show_are_content_with_what_we_write_and_quote_nothing(copy, capsys):
    assert prepare_mimic.main(["--check", str(copy)]) == 0
    assert prepare_mimic.main(["--check", str(copy / "und-48")]) == 0
    prepare_mimic.main(["--show", "16", "--out", str(copy)])
    printed = capsys.readouterr().out
    assert printed.count("are right") == 4 and "effusion" not in printed
    sheet = copy / "und-48" / "contact-sheet.png"
    assert Image.open(sheet).size[0] > 4 * 48 and sheet.stat().st_mode & 0o077 == 0


def test_phantoms_are_not_called_damaged(phantom):
    with pytest.raises(InputError, match="has no hashes to verify: phantoms have none"):
        check.check(phantom)


def flip(path):
    """Change one bit."""
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def change_rows(folder, number=1, **changes):
    """Change the first rows and make the hashes right again: only the meaning is wrong."""
    path = folder / "00000.jsonl"
    rows, _ = check.read_shard(path)
    for row in rows[:number]:
        row.update(changes)
    write_jsonl(path, rows)
    info = json.loads((folder / "dataset.json").read_text())
    info["sha256"][path.name] = digest(path)
    info["counts"] = Counter(row["split"] for row in check.rows_of(folder))
    write_json(folder / "dataset.json", info)


def replace_first_line(path, text):
    _, *rest = path.read_text().split("\n")
    path.write_text("\n".join([text, *rest]))


def change_settings(folder):
    path = folder / "dataset.json"
    path.write_text(path.read_text().replace('"quality": 95', '"quality": 90'))


def list_a_training_image_as_test(out):
    row = next(row for row in check.rows_of(out / "gen-32") if row["split"] == "train")
    (out / "und-test-ids.txt").write_text(row["id"])


DAMAGE = {
    "a bit of an image": (lambda out: flip(out / "gen-48/00001.bin"), "SHA-256"),
    "images cut short": (lambda out: os.truncate(out / "und-48/00000.bin", 1000), "cut short"),
    "settings edited": (lambda out: change_settings(out / "und-48"), "edited"),
    "a file too many": (lambda out: (out / "und-48/00009.bin").write_bytes(b""), "not those that"),
    "an id twice": (lambda out: change_rows(out / "und-48", 2, id="x"), "twice"),
    "a patient in two splits": (lambda out: change_rows(out / "und-48", split="val"),
                                "more than one split"),
    "an empty report": (lambda out: change_rows(out / "und-48", report=" "), "empty report"),
    "a leak": (list_a_training_image_as_test, "images of the understanding test"),
    "a row without text": (
        lambda out: replace_first_line(out / "und-48/00000.jsonl", '{"id": "a"}'), "damaged"),
    "a row without end": (lambda out: replace_first_line(out / "und-48/00000.jsonl", "[" * 50_000),
                          "damaged"),
    "dataset.json of another form": (
        lambda out: (out / "und-48/dataset.json").write_text('{"schema": 1}'), "damaged"),
    "no data set": (lambda out: shutil.rmtree(out), "no finished data set"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_check_says_what_is_wrong(copy, damage):
    do, message = DAMAGE[damage]
    do(copy)
    with pytest.raises(InputError, match=message):
        prepare_mimic.main(["--check", str(copy)])
