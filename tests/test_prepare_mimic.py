"""From a miniature MIMIC-CXR with every quirk to packed data sets: what is kept, what is skipped and why, restart, privacy."""
import csv
import fcntl
import gzip
import hashlib
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimic import annotations, rows
from mimic import check as audit
import mimic_tree
from mimic import shards as packing
import prepare_mimic
from mimic import pixels as radiographs
from mimic import sources
from common.processes import InputError
from helpers import ROOT
from training.batches import Packed

SIZES = "--und-sizes 48 --gen-sizes 32 48 --max-bad 1 --workers 2".split()


def run(tree, out, *more):
    return prepare_mimic.main(["--images", str(tree.top), "--reports", str(tree.zip), "--out", str(out), *SIZES, *map(str, more)])


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    """A tree of 200 studies, packed; what was printed is in `built.printed`."""
    import contextlib
    folder = tmp_path_factory.mktemp("mimic")
    tree, said = mimic_tree.make(folder, 200), io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        assert run(tree, folder / "out", "--shard", 64) == 0
    tree.out, tree.printed = folder / "out", said.getvalue()
    tree.und, tree.gen = Packed(tree.out, "und", 48), Packed(tree.out, "gen", 48)
    tree.rows = {row["id"]: row for row in tree.und.rows}
    with open(tree.out / "skipped.csv") as file:
        tree.skipped = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    return tree


# ---- the table of bad inputs: one test a row ----

@pytest.mark.parametrize("quirk, reason", [
    ("truncated", "truncated"), ("zero_byte", "empty file"), ("html", "not an image (47 bytes)"), ("gstmp", "unfinished download"),
    ("image_missing", "missing"), ("report_missing", "report missing"), ("report_empty", "report empty"), ("report_underscores", "report empty"),
    ("no_findings", "no findings"), ("last_paragraph", "no findings"), ("lower_case", "no findings"), ("hand_fixed", "no findings: hand-fixed"),
    ("view_empty", "not frontal: no view position"), ("view_odd", "not frontal: AP AXIAL"), ("tiny", "smaller than 64"),
    ("aspect", "longer than 3"), ("constant", "constant image"), ("huge", "more than 200 million")])
def test_skipped_with_the_reason(built, quirk, reason):
    first = built.at[quirk][1][0]
    assert built.skipped[first].startswith(reason) and first not in built.rows and first not in {row["id"] for row in built.gen.rows}


@pytest.mark.parametrize("quirk, flag", [("latin1", "not UTF-8"), ("bom", "BOM"), ("crlf", "CRLF"), ("wet_read", None), ("addendum", None),
                                         ("png16", None), ("dicom_monochrome1", None), ("rgba", None), ("cmyk", None), ("palette", None)])
def test_kept_and_counted(built, quirk, flag):
    row = built.rows[built.at[quirk][1][0]]
    assert "pleural effusion" in row["report"] and (flag in row["flags"] if flag else True)
    assert row["study"] == built.at[quirk][0] and "WET" not in row["report"] and "ADDENDUM" not in row["report"]


def picture(built, quirk):
    place = [row["id"] for row in built.und.rows].index(built.at[quirk][1][0])
    return built.und.image(place).numpy().astype(float)[:, 8:40]           # without the bars


@pytest.mark.parametrize("quirk", ["png16", "dicom_monochrome1"])
def test_deep_pixels_are_scaled_not_clipped_and_the_right_way_up(built, quirk):
    found = picture(built, quirk)                               # a ramp from dark (top left) to bright
    assert found[:10, :10].mean() < 70 and found[-10:, -10:].mean() > 185 and (found > 250).mean() < 0.05


def test_transparency_lies_on_black(built):
    found = picture(built, "rgba")
    assert found[:, 18:].max() < 20 and found[-5:, :10].mean() > 60


def test_repeated_rows_count_once(built):
    first = built.at["duplicate_row"][1][0]
    assert Counter(row["id"] for row in built.und.rows)[first] == 1
    assert (first, "duplicate row") in [(r[0], r[2]) for r in csv.reader(open(built.out / "skipped.csv"))]


def test_all_frontals_of_a_study_or_one_pa_first(built, tmp_path):
    study, ids = built.at["several_frontals"]
    assert [row["id"] for row in built.und.rows if row["study"] == study] == ids[:3]
    run(built, tmp_path / "one", "--one-per-study", "--task", "und")
    rows = Packed(tmp_path / "one", "und", 48).rows
    assert [row["id"] for row in rows if row["study"] == study] == [ids[1]] and max(Counter(row["study"] for row in rows).values()) == 1


def test_wrong_root_stops_early(built, tmp_path):
    shutil.copytree(built.jpg, tmp_path / "jpg", ignore=shutil.ignore_patterns("*.jpg", "*.png", "*.dcm"))
    with pytest.raises(InputError, match="images looked for are missing, as .*files/p1"):
        prepare_mimic.main(f"--images {tmp_path / 'jpg'} --reports {built.zip} --out {tmp_path / 'out'}".split())
    shutil.copytree(built.reports / "files" / "p10", tmp_path / "some" / "files" / "p10")
    with pytest.raises(InputError, match="reports looked for are missing"):
        prepare_mimic.main(f"--images {built.jpg} --reports {tmp_path / 'some'} --out {tmp_path / 'out'}".split())
    with pytest.raises(InputError, match="JPG release has none"):
        prepare_mimic.main(f"--images {built.jpg} --reports {built.jpg} --out {tmp_path / 'out'}".split())


def tables(built, folder):
    for path in built.jpg.glob("*.csv.gz"):
        shutil.copy(path, folder)


def rewrite(path, change):
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    path.write_bytes(gzip.compress("\n".join(map(change, lines)).encode()))


@pytest.mark.parametrize("name, change, message", [
    ("split", lambda line: line.replace(",split", ",labels"), "no column 'split'"),
    ("metadata", lambda line: line.replace("ViewPosition", "View"), "no column 'ViewPosition'"),
    ("metadata", lambda line: line.replace(",10000", ",10000", 1).replace(",1", ",1.0,", 1)[:-1] if "CHEST" in line else line, "line 2"),
    ("metadata", lambda line: ",".join(p + ".0" if n in (1, 2) and "CHEST" in line else p for n, p in enumerate(line.split(","))), "8 digits"),
    ("split", lambda line: line[1:] if "train" in line else line, "not in .*-split.csv"),
    ("split", lambda line: line.replace("validate", "val"), "wanted train, validate, test")])
def test_wrong_tables_are_named(built, tmp_path, name, change, message):
    tables(built, tmp_path)
    rewrite(tmp_path / f"mimic-cxr-2.0.0-{name}.csv.gz", change)
    with pytest.raises(InputError, match=message) as error:
        run(built, tmp_path / "out", "--tables", tmp_path)
    assert f"mimic-cxr-2.0.0-{name}.csv" in str(error.value)


def test_damaged_table_and_zip_end_in_one_sentence(built, tmp_path):
    tables(built, tmp_path)
    path = tmp_path / "mimic-cxr-2.0.0-metadata.csv.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match="damaged"):
        run(built, tmp_path / "out", "--tables", tmp_path)
    (tmp_path / "cut.zip").write_bytes(built.zip.read_bytes()[:-500])
    with pytest.raises(InputError, match="not a whole zip"):
        prepare_mimic.main(f"--images {built.jpg} --reports {tmp_path / 'cut.zip'} --out {tmp_path / 'out'}".split())


def test_too_many_bad_ones_are_an_exit_code(built, tmp_path):
    assert run(built, tmp_path, "--max-bad", 0.01) == 1
    assert run(built, tmp_path, "--strict") == 1 and run(built, tmp_path) == 0


# ---- what the rows say ----

def test_splits_texts_prompts_labels(built):
    names = {"train": "train", "validate": "val", "test": "test"}
    for row in built.und.rows:
        assert row["split"] == names[built.split[row["id"]]] and row["view"] == built.views[row["id"]] and row["view"] in ("AP", "PA")
        two = "\nIMPRESSION: " in row["report"]
        assert row["report"].startswith("FINDINGS: There is a ") and row["source"] == ("findings+impression" if two else "findings")
        assert row["prompt"].count("FINDINGS") == 1 and ("IMPRESSION" in row["prompt"]) == two
        assert ("raw" in row) == (row["split"] == "test")
    assert {row["prompt"].replace("FINDINGS and IMPRESSION", "{parts}").replace("FINDINGS", "{parts}") for row in built.und.rows} <= \
        set(rows.PROMPTS) and len({row["prompt"] for row in built.und.rows}) > 10
    plain = built.rows[built.at[1][1][0]]
    assert plain["report"] == ("FINDINGS: There is a moderate right pleural effusion. Study number 1 of this tree. No pneumothorax.\n"
                               "IMPRESSION: Moderate right effusion.")
    assert plain["labels"] == {"Pleural Effusion": 1.0, "Pneumothorax": 0.0, "Edema": -1.0}
    assert built.rows[built.at["no_label"][1][0]]["labels"] == {}
    same = next(row for row in built.gen.rows if row["id"] == plain["id"])
    assert same["report"] == "There is a moderate right pleural effusion. Study number 1 of this tree. No pneumothorax."


def test_every_image_is_packed_or_skipped(built):
    kept, skipped = {row["id"] for row in built.und.rows}, set(built.skipped)
    everything = {row[0] for row in built.metadata}
    assert kept | skipped == everything and kept & skipped == {built.at["duplicate_row"][1][0]}
    assert set(annotations.read_ids(built.out / "und-ids.csv", everything)) == kept


def test_pictures_are_those_of_the_files(built):
    study, (first, *_) = built.at[0]
    path = next(built.jpg.glob(f"files/*/*/{study}/{first}.jpg"))
    image, place = Image.open(path), [row["id"] for row in built.gen.rows].index(first)
    found = built.gen.image(place).numpy().astype(float)
    expected = np.asarray(image.resize((40, 48), Image.Resampling.BICUBIC), float)       # 120 x 144
    assert np.abs(found[:, 4:44] - expected).mean() < 3 and found[:, :3].max() < 12          # black bars for drawing
    assert abs(built.und.image([row["id"] for row in built.und.rows].index(first)).numpy()[:, :3].mean() - 141) < 6
    assert Packed(built.out, "gen", 32).image(0).shape == (32, 32)


def test_closing_table_shows_ours_beside_the_published(built):
    for number in ("162,969", "1,286", "2,461", "163,344", "2,365", "237,387", "4,352"):
        assert number in built.printed
    assert "download them again" in built.printed and "words a report" in built.printed and "images/s" in built.printed


@pytest.mark.parametrize("how", ["wget", "unzipped", "folder", "folder_files", "folder_p10", "mimic-cxr-reports"])
def test_layouts_give_the_same_bytes(tmp_path, how):
    plain = mimic_tree.make(tmp_path / "a", 12, quirks=())
    other = mimic_tree.make(tmp_path / "b", 12, quirks=(), zipped=how != "unzipped", wget=how == "wget")
    if "folder" in how:
        other.zip = {"folder": other.reports, "folder_files": other.reports / "files", "folder_p10": other.reports / "files"}[how]
    if how == "mimic-cxr-reports":
        (tmp_path / "c").mkdir()
        other.zip = shutil.copytree(other.reports, tmp_path / "c" / "mimic-cxr-reports").parent
    for tree, out in ((plain, "x"), (other, "y")):
        assert run(tree, tmp_path / out) == 0
    assert digest(tmp_path / "x", times=False) == digest(tmp_path / "y", times=False) and len(Packed(tmp_path / "x", "und", 48)) == 12


# ---- protocols ----

def test_pinned_test_ids(built, tmp_path):
    val, beside = ([row["id"]] for row in [row for row in built.und.rows if row["split"] == "val"][:2])     # of one patient
    test = [row["id"] for row in built.und.rows if row["split"] == "test"][:5]
    chat = [{"messages": [], "images": [f"files/p10/p1/s5/{name}.jpg"]} for name in val + test]
    (tmp_path / "test.json").write_text(json.dumps(chat))
    run(built, tmp_path / "out", "--test-ids", tmp_path / "test.json")
    und, gen = Packed(tmp_path / "out", "und", 48), Packed(tmp_path / "out", "gen", 48)
    assert {row["id"] for row in und.rows if row["split"] == "test"} == {*val, *test}
    assert built.rows[beside[0]]["subject"] == built.rows[val[0]]["subject"] and beside[0] not in {row["id"] for row in und.rows}
    assert prepare_mimic.main(["--check", str(tmp_path / "out")]) == 0                   # patients apart, no leak
    assert not {row["id"] for row in gen.rows if row["split"] != "test"} & {*val, *test}


def test_chexgenbench_split_never_trains_on_the_understanding_test(built, tmp_path, capsys):
    images = {row["id"]: row for row in built.und.rows}
    test = [name for name, row in images.items() if row["split"] == "test"]
    train = [name for name, row in images.items() if row["split"] != "test"]
    for split, names in (("TRAIN", train[0:60:2] + test[:4]), ("TEST", train[1:12:2] + test[4:6])):
        with open(tmp_path / f"LLAVARAD_ANNOTATIONS_{split}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "path", "generate_method", "annotated_prompt", "chexpert_labels"])
            for name in names:
                writer.writerow([images[name]["study"], images[name]["image"] + ".jpg", "gpt4", f"Small effusion, text {name[:8]}.", "{'A': nan}"])
    run(built, tmp_path / "out", "--gen-split", "chexgenbench", "--chexgenbench", tmp_path)
    gen = Packed(tmp_path / "out", "gen", 32)
    assert Counter(row["split"] for row in gen.rows)["test"] == 8 and len(gen.rows) == 38
    assert {row["id"] for row in gen.rows if row["split"] != "test"} == set(train[0:60:2])
    assert gen.rows[0]["report"] == f"Small effusion, text {gen.rows[0]['id'][:8]}." and gen.rows[0]["source"] == "chexgenbench"
    assert prepare_mimic.main(["--check", str(tmp_path / "out")]) == 0
    assert "as CheXGenBench has it" in capsys.readouterr().out


def test_llava_rad_annotations(built, tmp_path):
    rows = built.und.rows
    entry = lambda row, method, text: {"id": "x", "image": f"mimic/p10/p1/s5/{row['id']}.jpg", "generate_method": method, "reason": None,
                                       "impression": "Same." if method == "gpt4" else None, "view": float("nan"), "chexpert_labels": {"A": float("nan")},
                                       "conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]}
    for part, split in (("train", "train"), ("dev", "val"), ("test", "test")):
        own = [row for row in rows if row["split"] == split]
        entries = [entry(row, "rule-based", f"Rule effusion {row['id'][:8]}.") for row in own[1:]] + [entry(own[0], "rule-based", float("nan"))] + \
                  [entry(row, "gpt4", f"Model effusion {row['id'][:8]}.") for row in own]
        (tmp_path / f"chat_{part}_MIMIC_CXR_all_gpt4extract_rulebased_v1.json").write_text(json.dumps(entries))
    assert prepare_mimic.main(["--images", str(built.jpg), "--out", str(tmp_path / "out"), *SIZES, "--llava-rad", str(tmp_path)]) == 0
    und, gen = Packed(tmp_path / "out", "und", 48), Packed(tmp_path / "out", "gen", 48)
    assert len(und) == len(rows) - 3 and all(row["report"].startswith("FINDINGS: Rule effusion") for row in und.rows)
    assert all(row["report"].startswith("Rule" if row["split"] == "test" else "Model") for row in gen.rows) and len(gen) == len(rows) - 1
    (tmp_path / "chat_train_MIMIC_CXR_all.json").write_text('[{"image": "a"')
    with pytest.raises(InputError, match="cut short"):
        prepare_mimic.main(["--images", str(built.jpg), "--out", str(tmp_path / "o2"), *SIZES, "--llava-rad", str(tmp_path)])


def test_fallback_paragraph(built, tmp_path):
    run(built, tmp_path, "--fallback-paragraph", "--task", "und")
    rows = {row["id"]: row for row in Packed(tmp_path, "und", 48).rows}
    assert rows[built.at["last_paragraph"][1][0]]["report"] == "FINDINGS: Small left effusion, as a last paragraph."
    assert rows[built.at["last_paragraph"][1][0]]["source"] == "last_paragraph" and built.at["no_findings"][1][0] not in rows


def test_open_i_from_xml_and_from_the_kaggle_tables(tmp_path):
    xml, images, kaggle = tmp_path / "ecgen-radiology", tmp_path / "NLMCXR_png", tmp_path / "kaggle"
    for folder in (xml, images, kaggle / "images" / "images_normalized"):
        folder.mkdir(parents=True)
    reports, projections = [], []
    for n in range(1, 31):
        names = [f"CXR{n}_IM-{n:04d}-1001", f"CXR{n}_IM-{n:04d}-2001"]
        findings = "" if n == 30 else f"Small XXXX effusion. Clear left lung {n}."
        xml.joinpath(f"{n}.xml").write_text(
            f'<eCitation><uId id="CXR{n}"/><MeSH><major>normal</major></MeSH><AbstractText Label="COMPARISON">None</AbstractText>'
            f'<AbstractText Label="FINDINGS">{findings}</AbstractText><AbstractText Label="IMPRESSION">Fine.</AbstractText>'
            + "".join(f'<parentImage id="{name}"/>' for name in names) + "</eCitation>")
        for name, projection in zip(names, ("Frontal", "Lateral")):
            Image.fromarray(mimic_tree.film(n)).save(images / f"{name}.png")
            shutil.copy(images / f"{name}.png", kaggle / "images" / "images_normalized")
            projections.append((n, f"{name}.png", projection))
        reports.append((n, "normal", "x", "x", "None", findings, "Fine."))
    mimic_tree.write_table(kaggle / "indiana_reports.csv", "uid,MeSH,image,indication,comparison,findings,impression".split(","), reports, False)
    mimic_tree.write_table(kaggle / "indiana_projections.csv", ("uid", "filename", "projection"), projections, False)
    prepare_mimic.main(["--dataset", "openi", "--images", str(images), "--reports", str(xml), "--out", str(tmp_path / "x"), *SIZES])
    prepare_mimic.main(["--dataset", "openi", "--images", str(kaggle), "--out", str(tmp_path / "y"), *SIZES])
    from_xml, from_kaggle = Packed(tmp_path / "x", "und", 48), Packed(tmp_path / "y", "und", 48)
    assert from_xml.rows == from_kaggle.rows and len(from_xml) == 29
    assert from_xml.rows[0]["report"] == "FINDINGS: Clear left lung 1.\nIMPRESSION: Fine."      # the blank stood for a noun
    assert {row["split"] for row in from_xml.rows} == {"train", "val", "test"} and from_xml.rows[0]["labels"] == {"normal": 1.0}


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_table_of_ones_own(tmp_path, kind):
    rows = [{"image": f"{n}.png", "report": f"FINDINGS: Effusion {n}.\nIMPRESSION: Fine." if n % 2 else f"Clear lungs {n}.",
             "split": "test" if n == 9 else "train", "subject": f"a{n}", "effusion": str(n % 2)} for n in range(10)]
    for n in range(10):
        Image.fromarray(mimic_tree.film(n)).save(tmp_path / f"{n}.png")
    if kind == "csv":
        with open(tmp_path / "mine.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepare_mimic.main(["--dataset", "table", "--reports", str(tmp_path / f"mine.{kind}"), "--out", str(tmp_path / "out"), *SIZES])
    found = Packed(tmp_path / "out", "und", 48).rows
    assert [row["id"] for row in found] == [f"{n}.png" for n in range(10)] and found[9]["split"] == "test"
    assert found[1]["report"] == "FINDINGS: Effusion 1.\nIMPRESSION: Fine." and found[2]["report"] == "FINDINGS: Clear lungs 2."
    assert found[3]["labels"] == {"effusion": "1"} and found[3]["subject"] == "a3"
    (tmp_path / "bad.jsonl").write_text('{"image": "1.png", "report": "Secret words."}\n{"image": "Secret')
    with pytest.raises(InputError, match="line 2") as error:
        prepare_mimic.main(["--dataset", "table", "--reports", str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "o2"), *SIZES])
    assert "Secret" not in str(error.value)


def a_table(folder, content, name="mine.csv", **more):
    for n in range(4):
        Image.fromarray(mimic_tree.film(n)).save(folder / f"{n}.png")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return prepare_mimic.main(["--dataset", "table", "--reports", str(folder / name), "--out", str(folder / "out"), *SIZES])


def test_rows_that_name_one_image_or_one_id_are_counted(tmp_path):
    a_table(tmp_path, "image,id,report,split\n0.png,a,Left effusion.,train\n./0.png,b,Right pneumothorax.,train\n"
                      "1.png,c,Clear lungs.,test\n2.png,c,Clear left lung.,train\n")
    assert [row["id"] for row in Packed(tmp_path / "out", "und", 48).rows] == ["a", "c"]
    skipped = list(csv.reader(open(tmp_path / "out" / "skipped.csv")))
    assert ["b", "0.png", "another row has this image"] in skipped and ["c", "2.png", "duplicate row"] in skipped
    assert prepare_mimic.main(["--check", str(tmp_path / "out")]) == 0


def test_half_a_character_is_replaced_and_flagged(tmp_path):
    a_table(tmp_path, '{"image": "0.png", "report": "Left \\ud800 effusion.", "note": "\\udfff", "id": "a\\udc00"}\n'
                      '{"image": "1.png", "report": "Heart \\ud83d\\ude00 normal."}\n{"image": "\\ud801.png", "report": "Edema."}\n', "mine.jsonl")
    rows = Packed(tmp_path / "out", "und", 48).rows
    assert rows[0]["report"] == "FINDINGS: Left \ufffd effusion." and "broken characters" in rows[0]["flags"] and rows[0]["id"] == "a\ufffd"
    assert rows[1]["report"] == "FINDINGS: Heart \U0001f600 normal." and rows[1]["flags"] == [] and len(rows) == 2


@pytest.mark.parametrize("name, content, message", [
    ("mine.csv", "image,report\n0.png,Sj\u00f6gren\n".encode("latin-1"), "UTF-8"), ("mine.csv", "im\u00e4ge,report\n".encode("latin-1"), "UTF-8"),
    ("mine.jsonl", '{"image":"0.png","report":"Sj\u00f6gren"}\n'.encode("latin-1"), "UTF-8"), ("mine.jsonl", "[" * 100_000, "line 1"),
    ("mine.jsonl", '{"image": "0.png", "report": "x"}\n[]\n', "line 2"), ("mine.csv", b"\x1f\x8b\x08", "UTF-8"), ("mine.csv.gz", b"image,report", "damaged"),
    ("mine.csv", "image,report,split\n0.png,Clear lungs.,vali\n", "entry 1"), ("mine.csv", "image,report\n0.png\n", "1 values in 2"),
    ("mine.csv", "", "no column 'image'"), ("mine.csv", "image,report\n", "no image is left")])
def test_tables_that_cannot_be_read_end_in_one_sentence(tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as error:
        a_table(tmp_path, content, name)
    assert "gren" not in str(error.value)


def test_names_that_no_file_can_have_are_skipped(tmp_path):
    names = ["x" * 300, "a\0b", "[", "**", ".", "..", "0.png/x", "/", "sub/" + "y" * 5000]
    lines = [{"image": name, "report": "Clear lungs.", "id": f"n{n}"} for n, name in enumerate(names)] + [{"image": f"{n}.png", "report": "Edema."} for n in range(4)]
    a_table(tmp_path, "".join(json.dumps(line) + "\n" for line in lines), "mine.jsonl")
    assert len(Packed(tmp_path / "out", "und", 48)) == 4
    reasons = {row[0]: row[2] for row in csv.reader(open(tmp_path / "out" / "skipped.csv"))}
    assert all(reasons[f"n{n}"] == "missing" for n in range(len(names)))


@pytest.mark.parametrize("entry", [
    "1", "null", '"x"', "[]", "{}", '{"image": null, "generate_method": "gpt4", "conversations": [{"from": "gpt", "value": "x"}]}',
    '{"image": "a", "generate_method": ["gpt4"], "conversations": []}', '{"image": "a", "generate_method": "gpt4", "conversations": [{"value": "x"}]}',
    '{"image": "a", "generate_method": "gpt4", "conversations": [null]}', '{"image": "a", "generate_method": "gpt4", "conversations": 3}',
    '{"image": "a", "generate_method": "gpt4", "conversations": [{"from": "gpt"}]}', '{"image": "a", "generate_method": "other", "conversations": []}',
    "[" * 50_000, '{"a":' * 50_000, '{"image": ' + "1" * 5000 + "}", '{"image": "Sj\u00f6gren"}'.encode("latin-1")], ids=lambda e: str(e[:60]))
def test_llava_rad_entries_of_another_form_end_in_one_sentence(built, tmp_path, entry):
    content = entry if isinstance(entry, bytes) else entry.encode()
    (tmp_path / "chat_train_MIMIC_CXR_x.json").write_bytes(b"[" + content + b"]")
    with pytest.raises(InputError, match="entry 1|damaged") as error:
        prepare_mimic.main(["--images", str(built.jpg), "--out", str(tmp_path / "o"), *SIZES, "--llava-rad", str(tmp_path)])
    assert "gren" not in str(error.value)


def test_llava_rad_values_that_say_nothing(tmp_path):
    entry = {"image": "mimic/x.jpg", "generate_method": "gpt4", "impression": 3}
    rows = [{**entry, "conversations": [{"from": "gpt", "value": value}]} for value in (None, 5, " ", float("nan"))] + [{**entry, "conversations": []}]
    (tmp_path / "chat_a_MIMIC_CXR.json").write_text(json.dumps([*rows, {**entry, "conversations": [{"from": "gpt", "value": "Edema \ud800."}]}]))
    assert annotations.llava_rad(tmp_path) == {"rule-based": {}, "gpt4": {"x": ("Edema \ufffd.", None, "llava-rad:gpt4")}}


# ---- images ----

EXIF = {"junk": b"Exif\0\0" + b"\xff" * 20, "offsets": b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x02\0\0\0\x06zzzz\x01",
        "count": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\x7f\x01\0\0\0\0\0\0\0", "empty": b"Exif\0\0"}


@pytest.mark.parametrize("name", EXIF)
def test_junk_in_the_exif_is_no_traceback(tmp_path, name):
    good = mimic_tree.jpeg(mimic_tree.film(1))
    (tmp_path / "a.jpg").write_bytes(good[:2] + b"\xff\xe1" + struct.pack(">H", len(EXIF[name]) + 2) + EXIF[name] + good[2:])
    picture, reason = radiographs.read(tmp_path / "a.jpg", 32)
    assert (picture is None) == (reason == "truncated or damaged")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["dcm", "png", "jpg", "tiff", "gif", "bmp", "webp"])
def test_files_with_random_bytes_changed_are_read_or_skipped(tmp_path, kind):
    dice, whole = np.random.default_rng(0), io.BytesIO()
    if kind == "dcm":
        whole.write(mimic_tree.dicom_file(mimic_tree.film(3, 70, 80).astype(np.uint16) * 16))
    else:
        Image.fromarray(mimic_tree.film(3, 70, 80)).save(whole, "JPEG" if kind == "jpg" else kind)
    first, reasons = 132 if kind == "dcm" else 0, Counter()
    for _ in range(150):
        content = bytearray(whole.getvalue())
        for place in dice.integers(first, min(500, len(content)), 3):
            content[place] = dice.integers(256)
        (tmp_path / f"a.{kind}").write_bytes(content)
        reasons[radiographs.read(tmp_path / f"a.{kind}", 32)[1]] += 1
    assert len(reasons) > 1


def test_a_dicom_that_claims_to_be_huge_takes_no_memory(tmp_path):
    content = bytearray(mimic_tree.dicom_file(mimic_tree.film(3).astype(np.uint16)))
    for tag in (b"\x28\0\x10\0US\x02\0", b"\x28\0\x11\0US\x02\0"):
        content[content.index(tag) + 8:content.index(tag) + 10] = b"\xff\xff"
    (tmp_path / "a.dcm").write_bytes(content)
    assert radiographs.read(tmp_path / "a.dcm", 32)[1] == "more than 200 million pixels"


def test_fit_stretch_and_crop():
    image = Image.fromarray(np.repeat(np.array([[0] * 50 + [200] * 50], np.uint8), 300, 0))          # 100 x 300
    pad, stretch, crop = (np.asarray(radiographs.fit(image, 60, how, 141)) for how in ("pad", "stretch", "crop"))
    assert pad[:, :15].mean() == 141 and pad[30, 25] < 20 and pad[30, 35] > 180
    assert stretch[:, :25].max() < 30 and stretch[:, 35:].min() > 170 and crop.shape == (60, 60) and crop[0, 0] < 20


def test_draft_decoding_looks_like_full_decoding(tmp_path):
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (20, 16), np.uint8)).resize((1200, 1500), Image.Resampling.BICUBIC)
    coarse.save(tmp_path / "a.jpg", quality=95)
    found, _ = radiographs.read(tmp_path / "a", 128)
    assert found.size == (300, 375)                                                   # a quarter, not less than 2 x 128
    small, full = (np.asarray(radiographs.fit(image, 128, "pad", 0), float) for image in (found, coarse))
    assert np.abs(small - full).mean() < 1.5


def test_equalise_is_for_what_is_not_mimic_jpg(tmp_path):
    dark = Image.fromarray((mimic_tree.film(1) // 4).astype(np.uint8))
    dark.save(tmp_path / "a.png")
    dark.save(tmp_path / "b.jpg", quality=95)
    assert radiographs.read(tmp_path / "a", 512, equalize=True)[0].getextrema()[1] > 200
    assert radiographs.read(tmp_path / "b", 512, equalize=True)[0].getextrema()[1] < 100


def test_dicom_window(tmp_path):
    """A window of the values 1000 to 2000 makes what is beyond black or white."""
    import pydicom
    ramp = np.repeat(np.arange(0, 4000, 40, dtype=np.uint16)[None], 100, 0)
    whole = pydicom.dcmread(io.BytesIO(mimic_tree.dicom_file(ramp, "MONOCHROME2")))
    whole.WindowCenter, whole.WindowWidth = 1500, 1000
    whole.save_as(tmp_path / "a.dcm")
    row = np.asarray(radiographs.read(tmp_path / "a", 512)[0])[50]
    assert (row[:25] == 0).all() and (row[51:] == 255).all() and abs(int(row[37]) - 127) < 8


def test_dicom_the_right_way_up_and_missing_pydicom(tmp_path, monkeypatch):
    (tmp_path / "a.dcm").write_bytes(mimic_tree.dicom_file(mimic_tree.film(1).astype(np.uint16) * 16, "MONOCHROME2"))
    found = np.asarray(radiographs.read(tmp_path / "a", 512)[0], float)
    assert found[:20, :20].mean() < 60 < 190 < found[-20:, -20:].mean()
    (tmp_path / "b.dcm").write_bytes((tmp_path / "a.dcm").read_bytes()[:2000])
    assert radiographs.read(tmp_path / "b", 512)[1] == "damaged or unreadable DICOM"
    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert "pip install pydicom" in radiographs.read(tmp_path / "a", 512)[1]


# ---- restart ----

def digest(folder, times=True):
    """{file: SHA-256}; without `times` apart from what the shards know of their inputs' times, which are another copy's."""
    def content(path):
        if times or not path.name.endswith(".done.json"):
            return path.read_bytes()
        return json.dumps({key: value for key, value in json.loads(path.read_text()).items() if key != "inputs"}).encode()
    return {str(path.relative_to(folder)): hashlib.sha256(content(path)).hexdigest() for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name not in (".lock", "contact-sheet.png")}


def test_the_same_whatever_the_number_of_workers(built, tmp_path):
    run(built, tmp_path, "--shard", 64, "--workers", 1)
    assert digest(tmp_path) == {name: value for name, value in digest(built.out).items()}


@pytest.mark.parametrize("at", [0, 30, 70, 150])
def test_interrupted_anywhere_ends_with_the_same_bytes(built, tmp_path, monkeypatch, at):
    """A full disk after `at` images; then run again: finished shards are not touched."""
    count, add = Counter(), packing.Shard.add

    def failing(self, image, row):
        count["n"] += 1
        if count["n"] > 3 * at:
            raise OSError(28, "No space left on device")
        add(self, image, row)
    monkeypatch.setattr(packing.Shard, "add", failing)
    with pytest.raises(OSError):
        run(built, tmp_path, "--shard", 64)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*/dataset.json"))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/[0-9]*")}
    run(built, tmp_path, "--shard", 64)
    assert all(path.stat().st_mtime_ns == when for path, when in before.items()) and digest(tmp_path) == digest(built.out)
    assert not list(tmp_path.rglob(".tmp-*"))


def test_killed_and_run_again(built, tmp_path):
    command = [sys.executable, str(ROOT / "prepare_mimic.py"), "--images", str(built.jpg), "--reports", str(built.zip), "--out",
               str(tmp_path / "out"), *SIZES, "--shard", "64"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path)
    deadline = time.time() + 40
    while not list(tmp_path.glob("out/*/.tmp-*.bin")) and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert run(built, tmp_path / "out", "--shard", 64) == 0 and digest(tmp_path / "out") == digest(built.out)


def test_other_settings_are_refused(built, tmp_path):
    run(built, tmp_path, "--limit", 20)
    before = digest(tmp_path)
    for other in (["--limit", 21], ["--limit", 20, "--quality", 80], ["--limit", 20, "--clean", "none"]):
        with pytest.raises(InputError, match="overwrite"):
            run(built, tmp_path, *other)
    assert digest(tmp_path) == before
    run(built, tmp_path, "--limit", 20, "--workers", 1, "--strict")                # these say nothing about the content
    run(built, tmp_path, "--limit", 10, "--overwrite")
    assert len(Packed(tmp_path, "und", 48)) == 10


def test_other_questions_are_refused(built, tmp_path, monkeypatch):
    run(built, tmp_path, "--limit", 8)
    monkeypatch.setattr(packing, "PROMPTS", ["What is here? {parts}."])
    with pytest.raises(InputError, match="und-48 was begun with other settings"):
        run(built, tmp_path, "--limit", 8)
    run(built, tmp_path, "--limit", 8, "--task", "gen")                             # drawing has no question
    monkeypatch.undo()
    run(built, tmp_path, "--limit", 8)


@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_changed_reports_and_images_that_came_back_are_noticed(tmp_path, kind):
    tree = mimic_tree.make(tmp_path / "t", 20, quirks=())
    tree.zip = tree.reports if kind == "folder" else tree.zip
    lost = next(tree.jpg.glob(f"files/*/*/{tree.at[3][0]}/{tree.at[3][1][0]}.jpg"))
    held, about = lost.read_bytes(), lost.stat()
    lost.unlink()
    run(tree, tmp_path / "out", "--shard", 8)
    before = digest(tmp_path / "out")
    run(tree, tmp_path / "out", "--shard", 8)
    assert digest(tmp_path / "out") == before
    lost.write_bytes(held)
    with pytest.raises(InputError, match="1 images or reports of shard 0 have changed, come or gone.*--overwrite"):
        run(tree, tmp_path / "out", "--shard", 8)
    assert digest(tmp_path / "out") == before
    run(tree, tmp_path / "out", "--shard", 8, "--overwrite")
    assert len(Packed(tmp_path / "out", "und", 48)) == 20
    report = f"files/p{tree.metadata[0][1][:2]}/p{tree.metadata[0][1]}/s{tree.metadata[0][2]}.txt"
    if kind == "folder":
        (tree.zip / report).write_text((tree.zip / report).read_text().replace("effusion", "pneumonia"))
    else:
        with zipfile.ZipFile(tree.zip) as file:
            contents = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(tree.zip, "w") as file:
            for name, content in contents.items():
                file.writestr(name, content.replace(b"effusion", b"nodule--") if name == report else content)
    with pytest.raises(InputError, match="shard 0") as error:
        run(tree, tmp_path / "out", "--shard", 8)
    assert "pneumonia" not in str(error.value)
    shards = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "und-48").glob("0000*.bin")}
    run(tree, tmp_path / "out", "--shard", 8, "--overwrite")
    made = {path.name for path, when in shards.items() if path.stat().st_mtime_ns != when}
    assert made == {"00000.bin"} and "effusion" not in Packed(tmp_path / "out", "und", 48).rows[0]["report"]
    run(tree, tmp_path / "fresh", "--shard", 8)
    assert digest(tmp_path / "out") == digest(tmp_path / "fresh")


def test_one_task_after_both_is_found_done(built, tmp_path):
    run(built, tmp_path / "both", "--limit", 40, "--shard", 16)
    before, when = digest(tmp_path / "both"), {path: path.stat().st_mtime_ns for path in (tmp_path / "both").glob("*/*.bin")}
    for task in ("gen", "und"):
        run(built, tmp_path / "both", "--limit", 40, "--shard", 16, "--task", task)
        assert {path: path.stat().st_mtime_ns for path in when} == when
        run(built, tmp_path / "apart", "--limit", 40, "--shard", 16, "--task", task)
    run(built, tmp_path / "both", "--limit", 40, "--shard", 16)
    run(built, tmp_path / "apart", "--limit", 40, "--shard", 16)
    assert digest(tmp_path / "both") == before == digest(tmp_path / "apart")


@pytest.mark.parametrize("damage", [lambda d: (d / "00001.done.json").write_text("{"), lambda d: (d / "00001.done.json").write_text("[]"),
                                    lambda d: (d / "00001.bin").unlink(), lambda d: (d / "00001.done.json").unlink()])
def test_a_damaged_shard_is_made_anew(built, tmp_path, damage):
    run(built, tmp_path, "--limit", 40, "--shard", 16)
    before = digest(tmp_path)
    damage(tmp_path / "gen-32")
    run(built, tmp_path, "--limit", 40, "--shard", 16)
    assert digest(tmp_path) == before


def test_two_runs_into_one_directory(built, tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); "
                               "print('held', flush=True); time.sleep(60)", str(tmp_path / ".lock")], stdout=subprocess.PIPE)
    holder.stdout.readline()
    try:
        with pytest.raises(InputError, match="another run"):
            run(built, tmp_path)
    finally:
        holder.kill()
        holder.wait()
    assert run(built, tmp_path, "--limit", 5) == 0


# ---- care for credentialed data ----

def test_nothing_from_a_report_is_printed_or_logged(built):
    logged = built.printed + (built.out / "skipped.csv").read_text() + (built.out / "und-ids.csv").read_text() + \
        "".join(path.read_text() for path in built.out.glob("*/*.json"))
    for word in ("pleural", "There is a", "tree", "cough", "pneumothorax"):
        assert word not in logged


def test_files_are_for_the_owner_alone(built):
    for path in built.out.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    old = os.umask(0o022)
    os.umask(old)
    assert old != 0o077 or os.environ.get("PYTEST_UMASK")                           # and the caller's mask is as it was


def test_test_ids_in_another_encoding(built, tmp_path):
    (tmp_path / "ids.txt").write_bytes("Sj\u00f6gren".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        run(built, tmp_path / "out", "--test-ids", tmp_path / "ids.txt")


def test_no_output_in_a_git_work_tree(built, tmp_path):
    for kind in ("folder", "file"):
        place = tmp_path / kind
        (place / "deep").mkdir(parents=True)
        (place / ".git").mkdir() if kind == "folder" else (place / ".git").write_text("gitdir: elsewhere")
        with pytest.raises(InputError, match="git work tree"):
            run(built, place / "deep" / "out")
        assert not (place / "deep" / "out").exists()
        (place / "link").symlink_to(tmp_path)
        packing.refuse_git(place / "link" / "elsewhere")                              # a link that leads out is right
        (tmp_path / "in").unlink(missing_ok=True)
        (tmp_path / "in").symlink_to(place)
        with pytest.raises(InputError, match="git work tree"):                      # one that leads in is not
            packing.refuse_git(tmp_path / "in" / "x")


def test_reports_do_not_go_to_another_host(built, tmp_path):
    with pytest.raises(InputError, match="PhysioNet"):
        run(built, tmp_path / "out", "--clean", "llm", "--llm-url", "https://api.example.com/v1")
    assert not (tmp_path / "out").exists()


def test_cleaned_by_a_model_on_this_machine(built, tmp_path):
    from llm_server import Server, report_in

    def reply(n, body):
        if "Study number 2 " in report_in(body):
            return {"findings": "Cirrhosis of an invented kind.", "impression": None}
        findings, _, impression = report_in(body).removeprefix("FINDINGS:\n").partition("\nIMPRESSION:\n")
        return {"findings": findings.replace(" of this tree", ""), "impression": impression or None}
    server = Server(reply)
    more = ("--clean", "llm", "--llm-url", server.url, "--limit", 12)
    run(built, tmp_path, *more)
    rows = {row["id"]: row for row in Packed(tmp_path, "und", 48).rows}
    good, refused = (rows[built.at[n][1][0]] for n in (1, 2))
    assert good["clean"] == "llm" and "Study number 1.\n No" in good["report"]
    assert refused["clean"] == "rules" and refused["flags"][0].startswith("llm refused") and "pleural effusion" in refused["report"]
    asked, before = len(server.bodies), digest(tmp_path)
    shutil.rmtree(tmp_path / "und-48")
    run(built, tmp_path, *more)
    assert len(server.bodies) == asked and digest(tmp_path) == before              # nothing is asked twice
    server.http.shutdown()


# ---- --check and --show ----

def test_check_is_content_with_what_we_write(built, capsys):
    assert prepare_mimic.main(["--check", str(built.out)]) == 0
    assert prepare_mimic.main(["--check", str(built.out / "und-48")]) == 0
    said = capsys.readouterr().out
    assert said.count("are right") == 4 and "pleural" not in said


def flip(path, place=-3):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def reseal(folder, change):
    """Change the rows and make the hashes right again: only the meaning is wrong."""
    path = folder / "00000.jsonl"
    path.write_text("".join(json.dumps(change(n, json.loads(line))) + "\n" for n, line in enumerate(path.read_text().splitlines())))
    info = json.loads((folder / "dataset.json").read_text())
    info["sha256"]["00000.jsonl"] = hashlib.sha256(path.read_bytes()).hexdigest()
    info["counts"] = Counter(row["split"] for row in audit.rows_of(folder))
    (folder / "dataset.json").write_text(json.dumps(info))


@pytest.mark.parametrize("content", ["[]", "{}", "3", "null", '{"schema": 1}', "{", '{"schema": "1", "task": []}'])
def test_check_of_something_that_is_no_dataset_json(built, tmp_path, content):
    shutil.copytree(built.out, tmp_path / "out")
    (tmp_path / "out" / "und-48" / "dataset.json").write_text(content)
    for arguments in (["--check", str(tmp_path / "out")], ["--show", "2", "--out", str(tmp_path / "out")]):
        with pytest.raises(InputError, match="damaged"):
            prepare_mimic.main(arguments)


@pytest.mark.parametrize("row", ["[]", "{}", "3", '{"id": 1, "subject": "a", "split": "train", "report": "x"}'])
def test_check_of_rows_of_another_form(built, tmp_path, row):
    shutil.copytree(built.out, tmp_path / "out")
    path = tmp_path / "out" / "und-48" / "00000.jsonl"
    path.write_text("\n".join([row, *path.read_text().splitlines()[1:]]) + "\n")
    with pytest.raises(InputError, match="damaged"):
        prepare_mimic.main(["--check", str(tmp_path / "out")])


@pytest.mark.parametrize("damage, message", [
    (lambda d: flip(d / "gen-48/00001.bin"), "SHA-256"), (lambda d: flip(d / "und-48/00000.jsonl"), "SHA-256|damaged|cut short"),
    (lambda d: os.truncate(d / "und-48/00000.bin", 1000), "cut short"), (lambda d: (d / "und-48/00001.bin").unlink(), "cut short"),
    (lambda d: (d / "gen-32/dataset.json").unlink() or shutil.rmtree(d / "gen-48") or shutil.rmtree(d / "und-48"), "no finished data set"),
    (lambda d: reseal(d / "und-48", lambda n, row: {**row, "id": "same"} if n < 2 else row), "twice"),
    (lambda d: reseal(d / "und-48", lambda n, row: {**row, "split": "val"} if n == 0 else row), "more than one split"),
    (lambda d: reseal(d / "und-48", lambda n, row: {**row, "report": " "} if n == 0 else row), "empty report"),
    (lambda d: (d / "und-48/dataset.json").write_text((d / "und-48/dataset.json").read_text().replace('"quality": 95', '"quality": 90')), "edited"),
    (lambda d: shutil.copy(d / "und-48/00000.bin", d / "und-48/00009.bin"), "not those that dataset.json names"),
    (lambda d: (d / "und-test-ids.txt").write_text(next(audit.rows_of(d / "gen-32"))["id"]), "understanding test")])
def test_check_finds_what_is_wrong(built, tmp_path, damage, message):
    shutil.copytree(built.out, tmp_path / "out")
    damage(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        prepare_mimic.main(["--check", str(tmp_path / "out")])


def test_show(built, tmp_path, capsys):
    shutil.copytree(built.out, tmp_path / "out")
    prepare_mimic.main(["--show", "16", "--out", str(tmp_path / "out")])
    sheet = tmp_path / "out" / "und-48" / "contact-sheet.png"
    assert Image.open(sheet).size[0] > 4 * 48 and sheet.stat().st_mode & 0o077 == 0 and "effusion" not in capsys.readouterr().out


# ---- command line ----

def test_help_teaches(capsys):
    with pytest.raises(SystemExit):
        prepare_mimic.main(["--help"])
    said = capsys.readouterr().out
    for word in ("--images", "--test-ids", "PhysioNet", "--i-verified-zero-retention", "one pass"):
        assert word in said


@pytest.mark.parametrize("arguments, message", [
    ("", "--images"), ("--task foo", "und, gen or both"), ("--fit squash", "none of pad"), ("--gen-split chexgenbench", "needs --chexgenbench"),
    ("--images /nowhere", "no mimic-cxr-2.0.0-metadata.csv"), ("--clean llm --llm-extra [1]", "JSON object"), ("--clean llm --llm-url here", "no address"),
    ("--dataset table", "FILE.csv"), ("--quality 0", "quality"), ("--llm-workers 0", "--llm-workers wants 1"), ("--workers -1", "--workers wants 0"),
    ("--und-pad 999", "--und-pad wants 0 to 255"), ("--gen-pad -1", "--gen-pad wants"), ("--limit -1", "--limit wants"), ("--min-side 0", "min-side"),
    ("--gen-sizes 32 32", "each once"), ("--und-sizes 0", "sizes want"), ("--shard 0", "shard"), ("--max-bad 2", "max-bad"),
    ("--clean llm --llm-url http://[::1", "no address")])
def test_bad_arguments_are_one_sentence(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        prepare_mimic.main(arguments.split())


def test_splits_by_hash_do_not_change():
    assert Counter(sources.hashed_split(f"CXR{n}") for n in range(3955)) == {'train': 2735, 'test': 808, 'val': 412}
