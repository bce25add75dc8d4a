"""Packing phantoms: the same bytes from the same settings, rows that fit pictures, a tokenizer."""
import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from common.cli import InputError
from common.files import digest
from common.packed import Packed, describe
from helpers import ROOT, lock_of_another
from phantom import prepare
from phantom.facts import PROMPTS, facts_to_report, report_to_facts, sample_facts
from phantom.prepare import SPLITS, Settings, held_out, make, make_tokenizer, with_facts

COUNTS = {"train": 20, "val": 6, "test": 6}


def rng(*key):
    return np.random.default_rng(key)


def run(out, *options):
    prepare.main([*f"--out {out} --train 20 --val 6 --test 6 --size 64".split(), *options])


def contents(folder):
    """{file: hash} of all files of a folder."""
    return {str(path.relative_to(folder)): digest(path) for path in folder.rglob("*.*")}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    out = tmp_path_factory.mktemp("data")
    run(out, "--workers", "1")
    return out


# ---- what is in it ----

def test_the_number_of_workers_changes_nothing(root, tmp_path):
    run(tmp_path, "--workers", "3")
    assert contents(tmp_path) == contents(root)


def test_splits_hold_different_phantoms(root):
    sets = [Packed(root, "und", 64, split) for split in SPLITS]
    assert {split: len(packed) for split, packed in zip(SPLITS, sets)} == COUNTS
    pictures = {packed.image(i).numpy().tobytes() for packed in sets for i in range(len(packed))}
    assert len(pictures) == 32
    assert len({row["id"] for packed in sets for row in packed.rows}) == 32


def test_rows_say_what_is_in_the_picture(root):
    full, half = Packed(root, "und", 64, "train"), Packed(root, "gen", 32, "train")
    for i, row in enumerate(full.rows):
        assert report_to_facts(row["report"]) == frozenset(map(tuple, row["labels"]))
        assert row["prompt"] in PROMPTS
        assert half.rows[i] == row
        means = full.image(i).numpy().reshape(32, 2, 32, 2).mean((1, 3))
        assert np.abs(means - half.image(i).numpy()).max() <= 0.5


def test_a_phantom_depends_on_seed_split_and_number_alone(root):
    row, picture = make(Settings(size=64, train=999), "train", 3)
    packed = Packed(root, "gen", 64, "train")
    assert row == packed.rows[3] and (picture == packed.image(3).numpy()).all()
    assert (picture != make(Settings(size=64, seed=1), "train", 3)[1]).any()

    row, picture = held_out(Settings(size=64), 2)
    packed = Packed(root, "gen", 64, "test")
    assert row == packed.rows[2] and (picture == packed.image(2).numpy()).all()


def test_a_phantom_with_other_facts_is_the_same_phantom():
    settings = Settings()
    row, picture = held_out(settings, 1)
    facts = frozenset(map(tuple, row["labels"]))
    assert np.array_equal(with_facts(settings, "test", 1, facts), picture)
    moderate, large = (("effusion", "left", degree) for degree in ("moderate", "large"))
    assert moderate in facts
    other = with_facts(settings, "test", 1, facts - {moderate} | {large})
    rows, columns = np.nonzero(other != picture)
    assert len(rows) > 500 and columns.min() > 60, "the patient's left, on the right"
    assert rows.min() > 30, "not the top of the lung"


def test_a_shifted_phantom_shows_the_same_facts_otherwise(root, tmp_path):
    """Another exposure, other sentences, and its settings say so; nothing else differs."""
    run(tmp_path, "--exposure", "2", "--wording", "headings", "--workers", "1")
    plain, shifted = Packed(root, "und", 64, "test"), Packed(tmp_path, "und", 64, "test")
    for i, row in enumerate(shifted.rows):
        assert {**row, "report": ""} == {**plain.rows[i], "report": ""}
        assert row["report"] != plain.rows[i]["report"]
        assert report_to_facts(row["report"]) == frozenset(map(tuple, row["labels"]))
        grey = plain.image(i).numpy() / 255
        assert np.abs(shifted.image(i).numpy() / 255 - grey ** 2).max() <= 0.5001 / 255
    assert shifted.info["settings"] == {
        **plain.info["settings"], "exposure": 2.0, "wording": "headings"}
    for options in ([], ["--exposure", "2"]):
        with pytest.raises(InputError, match="other settings .*wording=headings.*--overwrite"):
            run(tmp_path, *options)
    copy = shutil.copytree(root, tmp_path / "copy")
    with pytest.raises(InputError, match="other settings .exposure=1.0, wording=plain"):
        run(copy, "--exposure", "2", "--wording", "headings")


def test_the_tokenizer_writes_any_text_and_reports_in_few_tokens(root):
    reports = [facts_to_report(sample_facts(rng(i)), rng(i)) for i in range(1000)]
    tokenizer = make_tokenizer(reports, 512)
    special = [tokenizer.token_to_id(token) for token in ("<bos>", "<eos>", "<soi>", "<eoi>")]
    assert special == [0, 1, 2, 3]
    lengths = [len(tokenizer.encode(report).ids) for report in reports]
    assert np.mean(lengths) < 45 and max(lengths) <= 64
    assert tokenizer.get_vocab_size() <= 512
    for text in [*reports[:50], "Ärger 42 µm, \n 肺?"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.to_str() == make_tokenizer(reports, 512).to_str()
    packed = json.loads((root / "tokenizer.json").read_text())
    assert packed["added_tokens"][0]["content"] == "<bos>"


# ---- started again ----

def test_the_same_command_does_nothing_twice(root, capsys):
    before = contents(root)
    run(root)
    assert "already" in capsys.readouterr().out
    assert contents(root) == before


def test_another_data_set_is_replaced_only_if_told_to(root, tmp_path):
    run(tmp_path, "--seed", "1")
    with pytest.raises(InputError, match="other settings .seed=1.*--overwrite"):
        run(tmp_path)
    run(tmp_path, "--overwrite")
    assert contents(tmp_path) == contents(root)


@pytest.mark.parametrize("name, words", [
    ("gen-64/film.png", "gen-64 holds files and no data set of ours .film.png."),
    ("gen-64/settings.json", "gen-64 holds files and no data set of ours .settings.json."),
    ("gen-64/dataset.json", "gen-64 holds files and no data set of ours .dataset.json."),
    ("phantom.json", "phantom.json that is no phantom's"),
    ("tokenizer.json", "tokenizer.json that is no phantom's")])
def test_what_is_not_its_own_is_never_deleted(tmp_path, name, words):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"mine": 1}')
    for more in ([], ["--overwrite"]):
        with pytest.raises(InputError, match=words):
            run(tmp_path, *more)
    assert path.read_text() == '{"mine": 1}' and not (tmp_path / "und-64").exists()


def test_radiographs_are_never_replaced_by_phantoms(tmp_path):
    """Nor those whose preparation is not finished, and is the work of a day."""
    folder = tmp_path / "gen-32"
    folder.mkdir()
    (folder / "00000.bin").write_bytes(b"films")
    about = describe("gen", 32, {"dataset": "mimic"})
    for name in ("settings.json", "dataset.json"):
        (folder / name).write_text(json.dumps(about))
        for more in ([], ["--overwrite"]):
            with pytest.raises(InputError, match="gen-32 .* prepare_mimic.py|other settings"):
                run(tmp_path, *more)
    assert (folder / "00000.bin").read_bytes() == b"films"


def test_a_folder_beside_it_that_has_a_dataset_json_of_another_kind(root, tmp_path):
    (tmp_path / "nnunet").mkdir()
    (tmp_path / "nnunet" / "dataset.json").write_text('{"labels": {}}')
    run(tmp_path)
    assert (tmp_path / "phantom.json").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(tmp_path):
    """It names the file; what was written is no data set, and the next try begins anew."""
    line = f"--out {tmp_path} --size 64 --train 40 --val 6 --test 6 --workers 1".split()
    words = [sys.executable, ROOT / "tests" / "harness.py", ROOT / "phantom" / "prepare.py", *line]
    done = subprocess.run(words, env={**os.environ, "FILE_LIMIT": "50000"}, capture_output=True,
                          text=True)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {tmp_path / 'und-64'}/.tmp-00000.bin ")
    assert not list(tmp_path.rglob("dataset.json")) and not list(tmp_path.rglob(".lock-*"))
    prepare.main(line)


def killed(job):
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_is_killed_ends_it_with_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "pack", killed)
    with pytest.raises(InputError, match="a worker was killed.*fewer --workers"):
        run(tmp_path, "--workers", "1")
    assert not list(tmp_path.rglob("dataset.json"))


def test_two_processes_in_one_place(tmp_path):
    lock_of_another(tmp_path)
    with pytest.raises(InputError, match="process .* on elsewhere"):
        run(tmp_path)
    assert not list(tmp_path.glob("[!.]*"))


def test_a_size_of_an_earlier_run_is_named(root, tmp_path, capsys):
    shutil.copytree(root / "gen-64", tmp_path / "gen-48")
    run(tmp_path, "--overwrite")
    assert f"{tmp_path / 'gen-48'} is of an earlier run and stays" in capsys.readouterr().out
    assert (tmp_path / "gen-48" / "dataset.json").exists()


def test_a_run_that_was_killed_goes_on_with_the_same_command(root, tmp_path, monkeypatch):
    def killed(cfg):
        (tmp_path / "gen-64" / "dataset.json").unlink()
        raise KeyboardInterrupt
    run(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(prepare, "write_data_set", killed)
        run(tmp_path, "--overwrite")
    run(tmp_path)
    assert contents(tmp_path) == contents(root)


@pytest.mark.parametrize(
    "option", ["--size 63", "--size 0", "--train 0", "--seed -1", "--workers -1", "--exposure 0",
               "--wording terse"])
def test_bad_settings_are_refused(option):
    with pytest.raises(InputError, match=option):
        prepare.main(option.split())


def test_a_contact_sheet_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare.main(["--show", "3"])
    assert os.listdir(tmp_path) == ["phantom.png"]
