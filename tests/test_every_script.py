"""What holds for every file that runs: help that teaches, from wherever it is called."""
import importlib
import os
import runpy
import shutil
import subprocess
import sys

import pytest
from PIL import Image

import sample
from common.cli import cli
from helpers import ROOT, SCRIPTS

def test_the_list_of_scripts_is_whole():
    assert {"sample", "evaluate", "train_und", "phantom.prepare", "weights.export",
            "training.cost", "evaluation.chexbert", "bench.table5"} <= SCRIPTS.keys()
    assert "common.cli" not in SCRIPTS and "flow" not in SCRIPTS


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("name", SCRIPTS)
def test_help_teaches(name, monkeypatch, capsys):
    """Also under an encoding that lacks what stands in it."""
    monkeypatch.setattr(sys, "argv", [f"{name}.py", "--help"])
    with pytest.raises(SystemExit) as end:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    page, errors = capsys.readouterr()
    assert end.value.code in (0, None) and errors == ""
    first = importlib.import_module(name).__doc__.strip().splitlines()[0]
    assert page.startswith(first) and "Traceback" not in page


# ---- from wherever it is called ----

def test_a_link_to_a_script_finds_the_demo(tmp_path):
    """In a folder with a blank and other letters; Python itself finds the modules."""
    folder = tmp_path / "ünï cöde"
    folder.mkdir()
    (folder / "draw.py").symlink_to(ROOT / "sample.py")
    config = runpy.run_path(str(folder / "draw.py"))["SampleConfig"]
    assert config().checkpoint == str(ROOT / "demo")


@pytest.mark.slow
def test_a_copy_that_is_read_only_in_a_folder_with_blanks(tmp_path):
    """Through a link, from another directory, with a file name that is no UTF-8."""
    copy = tmp_path / "open UniX é"
    left_out = shutil.ignore_patterns(".git*", "__pycache__", "tests", "out")
    shutil.copytree(ROOT, copy, ignore=left_out)
    before = sorted(copy.rglob("*"))
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "link.py").symlink_to(copy / "sample.py")
    picture = os.fsdecode(b"film-\xff.png")
    words = ["link.py", "--report", "Größe 3 × 4 mm", "--steps", "1", "--size", "32", "--out",
             picture]
    environ = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run([sys.executable, *words], cwd=elsewhere, env=environ,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "film-\\udcff.png: Gr\\xf6\\xdfe 3 \\xd7 4 mm\n"
    assert Image.open(elsewhere / picture).text["reports"] == "Größe 3 × 4 mm"
    assert [path for path in sorted(copy.rglob("*")) if "__pycache__" not in path.parts] == before


def test_names_of_all_kinds_lose_no_report(tmp_path, monkeypatch, capsys):
    """The reports of the other images must not be lost when one name cannot be printed."""
    names = [b"a.png", b"b-\xff.png", "c-é.png".encode(), b"d.png"]
    for name in names:
        Image.new("L", (32, 32)).save(tmp_path / "new.png")
        os.rename(tmp_path / "new.png", os.path.join(os.fsencode(tmp_path), name))
    monkeypatch.setattr(sample, "generate_reports", lambda *_, **_named: ["Clear."] * 4)
    line = ["sample.py", "--image", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as end:
        cli(sample.main)
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and len(lines) == 4
    assert [row.split(": ")[0].rpartition("/")[2] for row in lines] == [
        "a.png", r"b-\udcff.png", "c-é.png", "d.png"]
