"""common/worklist.py: long work is done once, in fixed batches, by any number of processes."""
import json
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import sample
from common import worklist
from common.cli import InputError
from common.files import append_jsonl
from common.processes import Process
from evaluation import features, gen, und
from helpers import lock_of_another

CPU = torch.device("cpu")
ALONE = Process(0, 1, CPU)
BLOCKS = [["c", "a"], ["b", "d"], ["e"]]


def doubled(block):
    """The work of these tests: a row a letter, in another order; b fails."""
    return [{"id": name, "error": "bad"} if name == "b" else {"id": name, "report": name * 2}
            for name in reversed(block)]


def test_what_is_done_is_not_done_again(tmp_path):
    """Three processes were killed: they left a part each, one with a line torn within a letter.

    What Unicode calls an end of line may stand in a report.
    """
    path = tmp_path / "x.jsonl"
    append_jsonl(tmp_path / "x.part2.jsonl", [{"id": "c", "report": "\u2028 \x85 é"}])
    append_jsonl(tmp_path / "x.part2.jsonl", doubled(["a"]))
    torn = '{"id": "d", "report": "dd"}\n{"id": "b", "report": "é'.encode()[:-1]
    (tmp_path / "x.part1.jsonl").write_bytes(torn)
    blocks_done = []

    def work(block):
        blocks_done.append(block)
        return doubled(block)

    rows = worklist.run(path, BLOCKS, work, ALONE)
    assert blocks_done == [["b", "d"], ["e"]], "a block is done whole or not at all"
    results = {"c": "\u2028 \x85 é", "a": "aa", "d": "dd", "e": "ee"}
    assert list(rows) == list("cabde"), "in the order of the list"
    assert worklist.split(rows, "report") == (results, {"b": "bad"})
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]
    assert worklist.run(path, BLOCKS, None, ALONE) == rows

    # killed when everything was done but not yet joined
    path.rename(tmp_path / "x.part0.jsonl")
    assert worklist.run(path, BLOCKS, None, ALONE) == rows
    assert [file.name for file in tmp_path.iterdir()] == ["x.jsonl"]


def test_two_processes_write_what_one_writes(tmp_path, monkeypatch):
    """Here they are two threads; `meet` is their barrier."""
    alone = worklist.run(tmp_path / "alone.jsonl", BLOCKS, doubled, ALONE)
    monkeypatch.setattr(worklist, "meet", threading.Barrier(2, timeout=20).wait)
    path = tmp_path / "x.jsonl"
    rows, workers = {}, {}

    def process(rank):
        def work(block):
            workers[block[0]] = rank
            return doubled(block)
        rows[rank] = worklist.run(path, BLOCKS, work, Process(rank, 2, CPU))

    other = threading.Thread(target=process, args=(1,))
    other.start()
    process(0)
    other.join()
    assert rows[0] == rows[1] == alone and workers == {"c": 0, "b": 1, "e": 0}
    assert path.read_bytes() == (tmp_path / "alone.jsonl").read_bytes()


@pytest.mark.parametrize("line", ["{", '{"report": "x"}', "5"])
def test_a_damaged_file_is_one_sentence(tmp_path, line):
    (tmp_path / "x.jsonl").write_text(line + "\n")
    with pytest.raises(InputError, match="x.jsonl is damaged: .* delete it to start anew"):
        worklist.read_rows(tmp_path / "x.jsonl")


def test_rows_are_continued_in_the_number_format_of_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr("common.processes.cpu_has_bf16", lambda: False)

    def chosen(dtype="auto", overwrite=False):
        cfg = SimpleNamespace(dtype=dtype, overwrite=overwrite)
        return worklist.number_format(tmp_path, cfg, ALONE)
    assert chosen() == "float32"
    (tmp_path / "settings.json").write_text('{"dtype": "bfloat16"}')
    assert chosen() == "bfloat16"
    assert chosen(overwrite=True) == chosen("float32") == "float32"


def claim(out, overwrite=False, **settings):
    worklist.claim({out: {"checkpoint": "demo", **settings}}, overwrite, ALONE)


def test_an_output_directory_belongs_to_one_choice_of_settings(tmp_path):
    out = tmp_path / "out"
    claim(out, steps=2, interval=(0.4, 1.0))
    (out / "images.jsonl").write_text("{}\n")
    claim(out, steps=2, interval=(0.4, 1.0))
    with pytest.raises(InputError, match=r"begun with other settings \(steps\).* --overwrite"):
        claim(out, steps=3, interval=(0.4, 1.0))
    assert (out / "images.jsonl").exists()
    claim(out, True, steps=3, interval=(0.4, 1.0))
    assert not (out / "images.jsonl").exists(), "begun anew"


def test_scores_of_reading_are_not_replaced_by_those_of_drawing(tmp_path):
    for theirs, ours in (({}, {"solver": "ab2"}), ({"solver": "ab2"}, {})):
        out = tmp_path / f"out{len(theirs)}"
        claim(out, **theirs)
        with pytest.raises(InputError, match="results of another command"):
            claim(out, True, **ours)


def test_overwriting_deletes_what_these_commands_write_and_nothing_else(tmp_path):
    claim(tmp_path, steps=2)
    ours = ("reports.jsonl", "again.part3.jsonl", "real.safetensors", "result.json")
    mine = ("notes.jsonl", "model.safetensors", "reports.csv")
    for name in ours + mine:
        (tmp_path / name).write_text("x")
    claim(tmp_path, True, steps=3)
    left = {path.name for path in tmp_path.iterdir() if not path.name.startswith(".")}
    assert left == {*mine, "settings.json"}


@pytest.mark.parametrize("name, content", [
    ("model.safetensors", "x"), ("reports.jsonl", "{}"), ("settings.json", '{"schema": 1}')])
def test_a_directory_of_others_is_refused_and_left_as_it_is(tmp_path, name, content):
    """Beside a checkpoint, say. And a refused place costs the other one nothing."""
    claim(tmp_path / "mine", steps=1)
    (tmp_path / "mine" / "reports.jsonl").write_text("{}")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / name).write_text(content)
    settings = {"checkpoint": "demo", "steps": 2}
    for overwrite in (False, True):
        with pytest.raises(InputError, match="theirs holds files and no results of ours"):
            worklist.claim({theirs: settings, tmp_path / "mine": settings}, overwrite, ALONE)
        with pytest.raises(InputError):
            worklist.claim({tmp_path / "mine": settings, theirs: settings}, overwrite, ALONE)
    assert (theirs / name).read_text() == content and len(list(theirs.iterdir())) == 1
    assert (tmp_path / "mine" / "reports.jsonl").exists()


# ---- the commands that use it ----

COMMANDS = {"und": und.main, "gen": gen.main}
SWEEP = "--sweep steps=1,2 cfg=1 --sweep-num 8".split()


def content(out):
    """All that a run leaves, apart from where it lies."""
    page = json.loads((out / "result.json").read_text())
    page["settings"].pop("out")
    rows = {path.relative_to(out): path.read_text() for path in out.rglob("*.jsonl")}
    images = {path.relative_to(out): np.array(Image.open(path)).tobytes()
              for path in out.rglob("images/*.png")}
    vectors = {}
    for path in out.rglob("*.safetensors"):
        loaded = features.load(path)
        vectors[path.name] = (loaded.ids, loaded.x.tobytes(), loaded.encoder, loaded.failures)
    return page, rows, images, vectors


def test_an_interrupted_command_goes_on_where_it_was(words, gen_run, tmp_path, monkeypatch):
    """It fails at the third of three blocks, first while it draws and then while it reads."""
    calls = {"generate_images": 0, "generate_reports": 0}

    def failing_once(function):
        generate = getattr(sample, function)

        def generate_or_fail(*args, **options):
            calls[function] += 1
            if calls[function] == 3:
                raise ZeroDivisionError
            return generate(*args, **options)
        monkeypatch.setattr(sample, function, generate_or_fail)

    out = tmp_path / "cut"
    for function in calls:
        failing_once(function)
    for _ in calls:
        with pytest.raises(ZeroDivisionError):
            gen.main(words("gen", out))
    assert not (out / "result.json").exists()
    for _ in range(2):                  # the second time, a finished run is only scored
        assert gen.main(words("gen", out)) == 0
        assert set(calls.values()) == {4}, "the third block alone was done again"
    assert content(out) == content(gen_run)


@pytest.mark.parametrize("command, task, field, named", [
    ("und", "und-64", "prompt", "questions"), ("gen", "gen-32", "report", "captions")])
def test_a_run_is_not_continued_with_other_texts(
        words, und_run, gen_run, altered, phantom, tmp_path, command, task, field, named):
    """The data set was prepared anew, in the same place."""
    out = shutil.copytree({"und": und_run, "gen": gen_run}[command], tmp_path / "out")

    def change(n, row):
        if n == 0:
            row[field] += " Once more."
    root = altered(task, change)
    settings = (out / "settings.json").read_text()
    (out / "settings.json").write_text(settings.replace(str(phantom), str(root)))
    with pytest.raises(InputError, match=rf"begun with other settings \({named}\)"):
        COMMANDS[command](words(command, out, data=root))


@pytest.mark.parametrize("command", COMMANDS)
def test_two_processes_in_one_place(words, tmp_path, command):
    """The second ends before it loads anything."""
    lock_of_another(tmp_path)
    with pytest.raises(InputError, match="process .* on elsewhere"):
        COMMANDS[command](words(command, tmp_path, "--checkpoint", "nowhere"))


@pytest.mark.slow
@pytest.mark.parametrize("command, options", [("und", []), ("gen", SWEEP)])
def test_two_real_processes_leave_what_one_leaves(words, fork, tmp_path, command, options):
    for name, processes in (("one", 1), ("two", 2)):
        line = words(command, tmp_path / name, *options)
        fork("evaluate.py", [command, *line], processes).finish()
    assert content(tmp_path / "two") == content(tmp_path / "one")
