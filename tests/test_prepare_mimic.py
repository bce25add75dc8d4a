"""prepare_mimic.py from end to end: what is packed, what is skipped and why, what stays secret."""
import os
import re
from collections import Counter

import numpy as np
import pytest
from PIL import Image

import mimic_tree
import prepare_mimic
from common.cli import InputError
from common.files import write_jsonl
from common.packed import Packed
from llm_server import Server, report_in
from mimic_tree import hashes, prepare


def first_image(tree, quirk):
    study, ids = tree.at[quirk]
    return ids[0]


def picture(tree, quirk, packed):
    """(48, 48) of the study with the quirk."""
    number = [row["id"] for row in packed.rows].index(first_image(tree, quirk))
    return packed.image(number).numpy().astype(float)


# ---- what is packed ----

@pytest.mark.parametrize("quirk, reason", [
    ("truncated", "image: it is truncated"), ("zero_byte", "image: it is empty"),
    ("gstmp", "image: unfinished download"), ("image_missing", "image: missing"),
    ("tiny", "image: a side is shorter than 64"), ("constant", "image: all pixels are alike"),
    ("aspect", "image: one side is more than 3 times"), ("report_missing", "report missing"),
    ("no_findings", "no findings"), ("view_empty", "not frontal: no view position"),
    ("view_odd", "not frontal: AP AXIAL"),
])
def test_skipped_with_the_reason(packed_mimic, quirk, reason):
    name = first_image(packed_mimic, quirk)
    assert packed_mimic.skipped[name].startswith(reason)
    assert name not in packed_mimic.rows
    assert name not in {row["id"] for row in packed_mimic.gen.rows}


def test_every_image_is_packed_or_skipped(packed_mimic):
    every = {row[0] for row in packed_mimic.metadata}
    packed, skipped = set(packed_mimic.rows), set(packed_mimic.skipped)
    twice = first_image(packed_mimic, "duplicate_row")
    assert packed | skipped == every and packed & skipped == {twice}
    assert Counter(row["id"] for row in packed_mimic.und.rows)[twice] == 1
    listed = (packed_mimic.out / "und-ids.csv").read_text().split()[1:]
    assert listed == [f"{row['id']},{row['split']}" for row in packed_mimic.und.rows]


def test_rows_say_what_the_tables_and_the_report_say(packed_mimic):
    names = {"train": "train", "validate": "val", "test": "test"}
    for row in packed_mimic.und.rows:
        assert row["split"] == names[packed_mimic.split[row["id"]]]
        assert row["view"] == packed_mimic.views[row["id"]]
        assert ("IMPRESSION" in row["prompt"]) == ("\nIMPRESSION: " in row["report"])
    name = first_image(packed_mimic, 1)
    findings = ("There is a moderate right pleural effusion. Study number 1 of this tree. "
                "No pneumothorax.")
    row = packed_mimic.rows[name]
    assert row["report"] == f"FINDINGS: {findings}\nIMPRESSION: Moderate right effusion."
    assert row["labels"] == {"Pleural Effusion": 1.0, "Pneumothorax": 0.0, "Edema": -1.0}
    assert packed_mimic.rows[first_image(packed_mimic, "no_label")]["labels"] == {}
    drawn = next(row for row in packed_mimic.gen.rows if row["id"] == name)
    assert (drawn["report"], drawn["prompt"]) == (findings, "")
    odd = packed_mimic.rows[first_image(packed_mimic, "latin1")]
    assert odd["flags"] == ["not UTF-8"] and "Sj\xf6gren's" in odd["report"]


def test_pictures_are_those_of_the_files(packed_mimic):
    study, ids = packed_mimic.at[0]
    path = next(packed_mimic.jpg.glob(f"files/*/*/{study}/{ids[0]}.jpg"))
    expected = Image.open(path).resize((40, 48), Image.Resampling.BICUBIC)      # 120 x 144
    drawn = picture(packed_mimic, 0, packed_mimic.gen)
    read = picture(packed_mimic, 0, packed_mimic.und)
    assert np.abs(drawn[:, 4:44] - np.asarray(expected, float)).mean() < 3
    assert drawn[:, :3].max() < 12                                  # black bars for drawing
    assert abs(read[:, :3].mean() - 141) < 6                        # grey ones for reading
    assert Packed(packed_mimic.out, "gen", 32).image(0).shape == (32, 32)
    for quirk in ("png16", "dicom_monochrome1"):                    # dark at the top left
        film = picture(packed_mimic, quirk, packed_mimic.und)[:, 8:40]
        assert film[:10, :10].mean() < 70 and film[-10:, -10:].mean() > 150


def test_too_much_bad_data_is_an_exit_code(packed_mimic, tmp_path):
    assert prepare(packed_mimic, tmp_path, "--max-bad", 0.01) == 1
    assert prepare(packed_mimic, tmp_path, "--strict") == 1             # --max-bad 1 is no excuse


def test_rows_that_are_no_images_count_among_the_unusable(tmp_path, capsys):
    """2 of 4, and not of the two that are left."""
    films = [{"image": f"{n}.png", "patient": n, "report": "Clear."} for n in range(3)]
    rows = [*films[:2], {**films[2], "patient": None}, {**films[2], "image": None}]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    for n in range(2):
        Image.fromarray(mimic_tree.film(n)).save(tmp_path / f"{n}.png")
    line = f"--dataset table --reports {tmp_path}/mine.jsonl --out {tmp_path}/out --task und"
    assert prepare_mimic.main([*line.split(), "--und-sizes", "48", "--workers", "1"]) == 1
    assert "\n2 of 4 images or reports are unusable" in capsys.readouterr().out


def test_cleaned_by_a_language_model_which_is_asked_once(packed_mimic, tmp_path):
    def reply(n, body):
        text = report_in(body).removeprefix("FINDINGS:\n").partition("\nIMPRESSION:\n")[0]
        return {"findings": text.replace(" of this tree", "")}
    server = Server(reply)
    options = ("--clean", "llm", "--llm-url", server.url, "--limit", 8)
    prepare(packed_mimic, tmp_path, *options)
    rows = Packed(tmp_path, "und", 48).rows
    assert all(row["clean"] == "llm" and " of this tree" not in row["report"] for row in rows)

    before, requests = hashes(tmp_path), len(server.bodies)
    for path in (tmp_path / "und-48").glob("00000.*"):
        path.unlink()
    prepare(packed_mimic, tmp_path, *options)
    assert len(server.bodies) == requests and hashes(tmp_path) == before
    server.stop()


# ---- care for credentialed data ----

def test_counts_are_printed_and_nothing_from_a_report(packed_mimic):
    for words in ("162,969", "163,344", "237,387", "download them again", "words a report"):
        assert words in packed_mimic.printed
    logs = [*packed_mimic.out.glob("*.csv"), *packed_mimic.out.glob("*/*.json")]
    told = packed_mimic.printed + "".join(path.read_text() for path in logs)
    for word in ("pleural", "There is a", "tree", "cough", "pneumothorax"):
        assert word not in told


def test_files_are_for_the_owner_alone(packed_mimic):
    for path in packed_mimic.out.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    mask = os.umask(0o022)
    os.umask(mask)
    assert mask != 0o077 or os.environ.get("PYTEST_UMASK")          # the caller's is as it was


def test_reports_do_not_go_to_another_host(packed_mimic, tmp_path):
    with pytest.raises(InputError, match="PhysioNet"):
        prepare(packed_mimic, tmp_path / "out", "--clean", "llm", "--llm-url",
                "https://api.example.com/v1")
    assert not (tmp_path / "out").exists()


# ---- the command line ----

def test_help_names_every_setting_in_a_line(capsys):
    with pytest.raises(SystemExit):
        prepare_mimic.main(["--help"])
    printed = capsys.readouterr().out
    assert "PhysioNet" in printed and "--i-verified-zero-retention" in printed
    options = printed.split("options:")[1].strip().split("\n")
    assert len(options) == len(vars(prepare_mimic.Settings()))


@pytest.mark.parametrize("line, message", [
    ("", "--images"), ("--images /nowhere", "no mimic-cxr-2.0.0-metadata.csv"),
    ("--task foo", "--task foo is none of und, gen"), ("--fit squash", "none of pad"),
    ("--gen-split chexgenbench", "needs --chexgenbench"), ("--dataset table", "FILE.csv"),
    ("--images x --split-by image", "--dataset table"),
    ("--quality 0", "--quality wants 1 to 100"), ("--gen-sizes 32 32", "each once"),
    ("--und-sizes 0", "sizes want"),
])
def test_bad_settings_are_one_sentence(tmp_path, monkeypatch, line, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        prepare_mimic.main(line.split())


def test_a_table_of_ones_own_needs_no_account(tmp_path, capsys):
    for n in range(2):
        Image.fromarray(mimic_tree.film(n)).save(tmp_path / f"{n}.png")
    mimic_tree.write_table(tmp_path / "mine.csv", ("filename", "report", "patient", "Edema"), [
        ("0.png", "FINDINGS: Effusion.\nIMPRESSION: Fine.", "p", "1.0"), ("1.png", " ", "q", ""),
        ("./0.png", "Edema.", "p", ""), ("x" * 300, "Edema.", "q", "")])
    line = ["--dataset", "table", "--reports", tmp_path / "mine.csv", "--out", tmp_path / "out"]
    assert prepare_mimic.main([str(word) for word in (*line, *mimic_tree.SIZES)]) == 0
    printed = capsys.readouterr().out
    assert "no image in val, without" in printed and "no image in train" not in printed
    assert re.search(r"their patients +1 +0 +0", printed)
    row, = Packed(tmp_path / "out", "und", 48).rows
    assert row["report"] == "FINDINGS: Effusion.\nIMPRESSION: Fine."
    assert row["labels"] == {"Edema": 1.0} and row["subject"] == "p"
    assert mimic_tree.skipped(tmp_path / "out") == {
        "./0.png": "another row has this image", "x" * 300: "image: missing",
        "1.png": "no findings"}


def test_a_table_whose_images_are_elsewhere(tmp_path):
    mimic_tree.write_table(tmp_path / "mine.csv", ("image", "report", "patient"),
                           [("films/0.png", "Edema.", "p")])
    line = ["--dataset", "table", "--reports", tmp_path / "mine.csv", "--out", tmp_path / "out"]
    with pytest.raises(InputError, match="is --images the folder in which films/0.png lies"):
        prepare_mimic.main([str(word) for word in line])


def test_a_table_of_nothing_but_laterals_says_why_nothing_is_left(tmp_path):
    mimic_tree.write_table(tmp_path / "mine.csv", ("image", "report", "patient", "view"),
                           [("0.png", "Edema.", "p", "LL"), ("1.png", "Edema.", "q", "LATERAL")])
    line = ["--dataset", "table", "--reports", tmp_path / "mine.csv", "--out", tmp_path / "out"]
    with pytest.raises(InputError, match="no image is left for und and gen: 2 were left out, "
                                         "1 as 'not frontal: LL'"):
        prepare_mimic.main([str(word) for word in line])
