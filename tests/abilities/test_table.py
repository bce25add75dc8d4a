"""abilities/table.py: what is drawn of a table, that it is the same however it is drawn, and what
is refused.
"""
import csv
import json
import os

import numpy as np
import pytest

import prepare_mimic
import sample
from abilities import table
from common.cli import InputError
from common.images import read_image

DEMO = ("--steps 1 --batch 2 --dtype float32 --threads 1 --device cpu --size 64").split()
PROMPTS = """id,report,sex,patient
a,Large left pleural effusion. No nodule.,F,p1
b,Nodule in the right upper zone.,M,p2
c,Pulmonary edema. No nodule.,,p3
"""


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(PROMPTS)
    return path


def draw(path, out, *more):
    return sample.main(["--table", str(path), "--out", str(out), *DEMO, *map(str, more)])


def manifest(out):
    with open(out / "manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def content(out):
    """{name: bytes} of what a run leaves."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*"))
            if path.is_file()}


def test_a_table_becomes_pictures_and_a_manifest(prompts, tmp_path, capsys):
    out = tmp_path / "synth"
    assert not draw(prompts, out, "--num", 2)
    assert "prepare_mimic.py --dataset table" in capsys.readouterr().out
    rows = manifest(out)
    assert [row["id"] for row in rows] == ["a-0", "a-1", "b-0", "b-1", "c-0", "c-1"]
    assert rows[2]["report"] == "Nodule in the right upper zone." and rows[2]["sex"] == "M"
    assert rows[0]["patient"] == rows[1]["patient"] == "p1"
    pictures = [np.array(read_image(out / row["image"])) for row in rows]
    assert all(picture.shape == (64, 64) for picture in pictures)
    assert (pictures[0] != pictures[1]).any()
    settings = json.loads((out / "settings.json").read_text())
    assert len(settings["checkpoint_sha256"]) == 64 and "not for clinical use" in settings["notice"]


def test_noise_depends_on_the_id_and_not_on_the_table(prompts, tmp_path):
    """Row b alone, in another batch, is the same picture."""
    draw(prompts, tmp_path / "all")
    prompts.write_text(PROMPTS.split("\n")[0] + "\nb,Nodule in the right upper zone.,M,p2\n")
    draw(prompts, tmp_path / "one")
    both = [np.array(read_image(tmp_path / out / "images/b.png"), dtype=int)
            for out in ("all", "one")]
    assert abs(both[0] - both[1]).max() <= 1


@pytest.mark.slow
def test_killed_and_shared_out_it_leaves_the_same_bytes(prompts, fork, tmp_path):
    def line(out):
        return ["--table", str(prompts), "--out", str(tmp_path / out), *DEMO, "--num", "4",
                "--best-of", "2"]
    fork("sample.py", line("one")).finish()
    fork("sample.py", line("two"), 2).finish()
    assert content(tmp_path / "two") == content(tmp_path / "one")

    # killed as soon as there is a first picture, then given again
    images = tmp_path / "killed" / "images"
    run = fork("sample.py", line("killed"))
    while not any(images.glob("*.png")):
        assert run.processes[0].is_alive()
    run.processes[0].kill()
    run.finish(None)
    assert len(list(images.glob("*.png"))) < 12
    fork("sample.py", line("killed")).finish()
    assert content(tmp_path / "killed") == content(tmp_path / "one")


def test_labels_are_drawn_too(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("id,Edema,Pneumothorax,view\n1,1,0,PA\n2,,1,AP\n")
    out = tmp_path / "synth"
    draw(path, out)
    rows = manifest(out)
    assert rows[0]["report"] == "There is pulmonary edema. No pneumothorax."
    assert rows[1]["report"] == "There is a pneumothorax." and rows[1]["view"] == "AP"
    assert rows[0]["Edema"] == "1" and rows[1]["Edema"] == ""


def test_the_manifest_is_read_as_a_data_set(tmp_path, capsys):
    """By prepare_mimic.py as it is: images, patients and labels; --check has no complaint."""
    path = tmp_path / "labels.csv"
    path.write_text("id,Edema,split\n" + "".join(
        f"{n},{n % 2},{split}\n" for n, split in enumerate(["train"] * 4 + ["val", "test"])))
    draw(path, tmp_path / "synth", "--num", 2)
    data = tmp_path / "data"
    assert not prepare_mimic.main([
        "--dataset", "table", "--reports", str(tmp_path / "synth/manifest.csv"), "--out", str(data),
        "--und-sizes", "64", "--gen-sizes", "64", "--workers", "1"])
    capsys.readouterr()
    assert not prepare_mimic.main(["--check", str(data)])
    assert "are right" in capsys.readouterr().out
    rows = [json.loads(line) for line in (data / "gen-64/00000.jsonl").read_text().splitlines()]
    assert len(rows) == 12 and rows[0]["labels"] == {"Edema": 0.0}
    assert len({row["subject"] for row in rows}) == 6


def test_balance_has_exact_counts(tmp_path):
    """Rows with exactly one of the findings take turns; drawn again, they have other noise."""
    path = tmp_path / "p.csv"
    path.write_text("id,report\na,Pulmonary edema.\nb,Right pneumothorax. Pulmonary edema.\n"
                    "c,Left pneumothorax.\nd,Pulmonary edema. No pneumothorax.\ne,No edema.\n")
    cfg = table.TableConfig(table=str(path), balance=["edema", "pneumothorax"], total=6)
    pictures = table.pictures_of(cfg, table.read_rows(cfg))
    assert list(pictures) == ["a-0", "d-0", "a-1", "c-0", "c-1", "c-2"]
    assert len({picture.noise(0) for picture in pictures.values()}) == 6


def test_the_likeliest_of_several_is_kept(prompts, tmp_path):
    """--best-of 3 keeps one of the three drawings, and none has a lower likelihood than the first.
    """
    for n in (1, 3):
        draw(prompts, tmp_path / f"{n}", "--best-of", n, "--keep-above", -1000, "--steps", 2)
    likelihoods = [[float(row["log_likelihood"]) for row in manifest(tmp_path / f"{n}")]
                   for n in (1, 3)]
    assert all(best >= first for first, best in zip(*likelihoods))
    assert likelihoods[0] != likelihoods[1]


def test_what_its_reader_does_not_confirm_is_left_out(prompts, tmp_path, capsys):
    out = tmp_path / "synth"
    draw(prompts, out, "--keep-above", -1000)
    least = sorted(float(row["least_word"]) for row in manifest(out))
    capsys.readouterr()
    between = (least[0] + least[1]) / 2
    assert not draw(prompts, out, f"--keep-above={between}", "--overwrite")
    assert "1 are left out" in capsys.readouterr().out
    assert len(manifest(out)) == 2
    with pytest.raises(InputError, match="all 3 pictures are below"):
        draw(prompts, out, "--keep-above", 100, "--overwrite")


@pytest.mark.parametrize("text, message", [
    ("id,words\na,b\n", r"known as the report .* or as a label \(.*--columns report=COLUMN"),
    ("id,report\na,No edema.\nA,Edema.\n", "row 2: the id A is there twice"),
    ("id,report\na,\n", "row 1 has neither a report nor a label"),
    ("id,Edema\na,2\n", "row 1: Edema is 2; a label is 1"),
    ("id,report\na," + "No edema. " * 200 + "\n", "the report of a has .* tokens"),
    ("id,report\n" + "x" * 151 + ",No edema.\n", "row 1: its id is too long"),
    ("id,report\na,17\n", "row 1: the report is no text but a number"),
])
def test_bad_tables(text, message, tmp_path):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        draw(path, tmp_path / "synth")
    assert not os.path.exists(tmp_path / "synth")


def test_the_pictures_of_another_run_are_not_replaced(prompts, tmp_path):
    out = tmp_path / "synth"
    draw(prompts, out)
    before = content(out)
    with pytest.raises(InputError, match=r"begun with other settings \(seed\)"):
        draw(prompts, out, "--seed", 1)
    prompts.write_text(PROMPTS.replace("right", "left"))
    with pytest.raises(InputError, match=r"begun with other settings \(table\)"):
        draw(prompts, out)
    assert content(out) == before


@pytest.mark.parametrize("options, message", [
    (["--balance", "edema"], "give both"),
    (["--balance", "edema", "nodule", "--total", "3"], "no multiple of the 2"),
    (["--balance", "edmea", "--total", "3"], "--balance edmea is none of the labels"),
    (["--balance", "catheter", "--total", "3"], "no row with catheter"),
    (["--best-of", "0"], "at least 1"),
])
def test_bad_options(options, message, prompts, tmp_path):
    with pytest.raises(InputError, match=message):
        draw(prompts, tmp_path / "synth", *options)
