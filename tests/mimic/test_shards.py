"""Packing by many processes: the same bytes whatever happens, and no other data set by mistake."""
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

import prepare_mimic
from common.cli import InputError
from common.packed import Packed, Writer
from helpers import ROOT, lock_of_another
from mimic import shards
from mimic_tree import hashes, make, prepare
from scripts import alive


def times(folder):
    """When the shards were written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("*/[0-9]*")}


# ---- the same bytes ----

@pytest.mark.parametrize("images", [0, 60])
def test_interrupted_anywhere_ends_with_the_same_bytes(packed_mimic, tmp_path, monkeypatch, images):
    """A full disk after so many images, then run again: finished shards are not touched.

    The number of workers does not matter either.
    """
    count = Counter()
    add = shards.Shard.add

    def failing(self, image, row):
        count["pictures"] += 1
        if count["pictures"] > 3 * images:
            raise OSError(28, "No space left on device")
        add(self, image, row)
    monkeypatch.setattr(shards.Shard, "add", failing)
    with pytest.raises(OSError):
        prepare(packed_mimic, tmp_path, "--shard", 32)
    monkeypatch.undo()
    assert not list(tmp_path.glob("*/dataset.json"))
    finished = times(tmp_path)
    (tmp_path / "gen-32" / ".tmp-00099.bin").write_bytes(b"left by a kill")

    prepare(packed_mimic, tmp_path, "--shard", 32, "--workers", 1)
    assert times(tmp_path).items() >= finished.items()
    assert hashes(tmp_path) == hashes(packed_mimic.out)
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.slow
def test_killed_and_run_again(packed_mimic, tmp_path):
    """The same bytes in the end, and no worker lives on without its parent."""
    line = [sys.executable, ROOT / "prepare_mimic.py", "--images", packed_mimic.jpg, "--reports",
            packed_mimic.zip, "--out", tmp_path / "out", "--und-sizes", 48, "--gen-sizes", 32, 48,
            "--max-bad", 1, "--shard", 32, "--workers", 2]
    process = subprocess.Popen([str(word) for word in line], stdout=subprocess.DEVNULL,
                               stderr=subprocess.DEVNULL, cwd=tmp_path)
    children = []
    deadline = time.time() + 60
    while len(children) < 2 and time.time() < deadline:         # packing has begun
        time.sleep(0.005)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    deadline = time.time() + 10
    while any(alive(child) for child in children) and time.time() < deadline:
        time.sleep(0.1)
    assert len(children) == 2 and not any(alive(child) for child in children)
    assert prepare(packed_mimic, tmp_path / "out", "--shard", 32) == 0
    assert hashes(tmp_path / "out") == hashes(packed_mimic.out)


def test_one_task_after_the_other_gives_the_same_as_both(packed_mimic, tmp_path):
    """And what is packed already is found done."""
    options = ("--limit", 24, "--shard", 16)
    prepare(packed_mimic, tmp_path / "both", *options)
    before = times(tmp_path / "both")
    for task in ("gen", "und"):
        prepare(packed_mimic, tmp_path / "both", *options, "--task", task)
        prepare(packed_mimic, tmp_path / "apart", *options, "--task", task)
    assert times(tmp_path / "both") == before
    for name in ("both", "apart"):                      # the list of what was skipped is for all
        prepare(packed_mimic, tmp_path / name, *options)
    assert hashes(tmp_path / "both") == hashes(tmp_path / "apart")


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / "00001.done.json").write_text("{"),
    lambda folder: (folder / "00001.done.json").write_text("[]"),
    lambda folder: (folder / "00001.bin").unlink(),
], ids=["torn", "of another form", "without images"])
def test_a_damaged_shard_is_made_anew(packed_mimic, tmp_path, damage):
    prepare(packed_mimic, tmp_path, "--limit", 12, "--shard", 8)
    before = hashes(tmp_path)
    damage(tmp_path / "gen-32")
    prepare(packed_mimic, tmp_path, "--limit", 12, "--shard", 8)
    assert hashes(tmp_path) == before


# ---- the same data set ----

@pytest.mark.parametrize("options, change", [
    (["--limit", 9], "items="), (["--quality", 80], "quality=95"), (["--und-sizes", 40], "sizes="),
    (["--no-labels"], "items="),
])
def test_other_settings_or_inputs_are_refused(packed_mimic, tmp_path, options, change):
    prepare(packed_mimic, tmp_path, "--limit", 8)
    before = hashes(tmp_path)
    with pytest.raises(InputError, match=f"begun with other settings or inputs .*{change}"):
        prepare(packed_mimic, tmp_path, "--limit", 8, *options)
    assert hashes(tmp_path) == before
    prepare(packed_mimic, tmp_path, "--limit", 8, *options, "--overwrite")
    assert len(Packed(tmp_path, "und", 48)) == (9 if "--limit" in options else 8)


def test_other_questions_or_damaged_settings_are_refused(packed_mimic, tmp_path, monkeypatch):
    """Questions make another data set to read, but not to draw."""
    prepare(packed_mimic, tmp_path, "--limit", 8)
    monkeypatch.setattr(shards, "PROMPTS", ["What is here? {parts}."])
    with pytest.raises(InputError, match="und-48 was begun with other settings.*questions="):
        prepare(packed_mimic, tmp_path, "--limit", 8)
    prepare(packed_mimic, tmp_path, "--limit", 8, "--task", "gen", "--workers", 1, "--strict")
    (tmp_path / "gen-32" / "settings.json").write_text('{"schema": 1}')
    with pytest.raises(InputError, match="settings.json is damaged"):
        prepare(packed_mimic, tmp_path, "--limit", 8, "--task", "gen")


# ---- the same inputs ----

def test_changed_reports_and_images_that_came_back_are_noticed(tmp_path):
    """With --overwrite their shard, and no other, is made anew."""
    tree = make(tmp_path / "tree", 20, quirks=())
    tree.zip = tree.reports
    study, ids = tree.at[3]
    image = next(tree.jpg.glob(f"files/*/*/{study}/{ids[0]}.jpg"))
    image.rename(tmp_path / "away")
    prepare(tree, tmp_path / "out", "--shard", 8)
    assert len(Packed(tmp_path / "out", "und", 48)) == 19

    report = next(tree.reports.glob(f"files/*/*/{tree.at[0][0]}.txt"))
    report.write_text(report.read_text().replace("effusion", "pneumonia"))
    (tmp_path / "away").rename(image)
    with pytest.raises(InputError, match="2 images or reports of shard 0 have changed") as error:
        prepare(tree, tmp_path / "out", "--shard", 8)
    assert "pneumonia" not in str(error.value)

    before = times(tmp_path / "out")
    prepare(tree, tmp_path / "out", "--shard", 8, "--overwrite")
    written = {path.name for path, when in times(tmp_path / "out").items() if before[path] != when}
    assert {name[:5] for name in written} == {"00000"}
    rows = Packed(tmp_path / "out", "und", 48).rows
    assert len(rows) == 20 and "pneumonia" in rows[0]["report"]


# ---- alone and private ----

def test_two_runs_into_one_directory(packed_mimic, tmp_path):
    lock_of_another(tmp_path)
    with pytest.raises(InputError, match="process .* on elsewhere"):
        prepare(packed_mimic, tmp_path)
    assert not list(tmp_path.glob("[!.]*"))


def test_what_is_replaced_goes_last_and_nothing_foreign_goes(packed_mimic, tmp_path, monkeypatch):
    """With --overwrite, a server that is not there costs nothing; a note among the shards stays.
    """
    prepare(packed_mimic, tmp_path, "--limit", 8)
    note = tmp_path / "und-48" / "2024 notes.txt"
    note.write_text("mine")
    before = hashes(tmp_path)

    def no_server(*_):
        raise InputError("no server.")
    with monkeypatch.context() as patch, pytest.raises(InputError, match="no server"):
        patch.setattr(prepare_mimic.llm, "clean_all", no_server)
        prepare(packed_mimic, tmp_path, "--limit", 9, "--clean", "llm", "--overwrite")
    assert hashes(tmp_path) == before
    prepare(packed_mimic, tmp_path, "--limit", 9, "--overwrite")
    assert note.read_text() == "mine"


def test_a_folder_of_other_files_is_refused(packed_mimic, tmp_path):
    mine = tmp_path / "gen-32" / "film.png"
    mine.parent.mkdir()
    mine.write_bytes(b"film")
    with pytest.raises(InputError, match="gen-32 holds files and no data set of ours .film.png."):
        prepare(packed_mimic, tmp_path, "--limit", 8, "--overwrite")
    assert list(tmp_path.rglob("*")) == [mine.parent, mine]


def test_phantoms_are_never_replaced_by_radiographs(packed_mimic, tmp_path):
    with Writer(tmp_path / "gen-32", "gen", 32, {"vocab_size": 512}) as writer:
        writer.add(b"phantom", {"id": "a", "split": "train", "report": ""})
    before = hashes(tmp_path)
    with pytest.raises(InputError, match="gen-32 was made by phantom.prepare"):
        prepare(packed_mimic, tmp_path, "--limit", 8, "--overwrite")
    assert hashes(tmp_path) == before


def test_a_size_of_an_earlier_run_is_named(packed_mimic, tmp_path, capsys):
    prepare(packed_mimic, tmp_path, "--limit", 8)
    (tmp_path / "und-48").rename(tmp_path / "und-56")
    capsys.readouterr()
    prepare(packed_mimic, tmp_path, "--limit", 8, "--overwrite")
    earlier = [line for line in capsys.readouterr().out.splitlines() if "earlier run" in line]
    assert len(earlier) == 1 and earlier[0].startswith(f"{tmp_path / 'und-56'} is of an earlier")


def test_no_output_in_a_git_work_tree(packed_mimic, tmp_path):
    """.git is a file in a second work tree. A link may lead out of one, but not in."""
    repository = tmp_path / "repository"
    (repository / "deep").mkdir(parents=True)
    (repository / ".git").write_text("gitdir: elsewhere")
    with pytest.raises(InputError, match="git work tree"):
        prepare(packed_mimic, repository / "deep" / "out")
    assert not (repository / "deep" / "out").exists()
    (repository / "link").symlink_to(tmp_path)
    shards.refuse_git(repository / "link" / "elsewhere")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "und-48").symlink_to(repository)
    with pytest.raises(InputError, match="git work tree"):
        prepare(packed_mimic, tmp_path / "out", "--limit", 5)


def test_output_that_git_ignores(tmp_path, monkeypatch):
    """The default, datasets/mimic, lies in the repository, whose .gitignore names datasets/."""
    if not shutil.which("git"):
        pytest.skip("no git")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="have git ignore it"):
        shards.refuse_git(Path("datasets/mimic"))
    (tmp_path / ".gitignore").write_text("/datasets/\n")
    shards.refuse_git(Path("datasets/mimic"))
    shards.refuse_git(Path("datasets"))
    with pytest.raises(InputError, match="git work tree"):
        shards.refuse_git(Path("data"))
    # without git nobody can tell
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match="git work tree"):
        shards.refuse_git(Path("datasets/mimic"))
