"""What a run survives, and how it ends when it cannot: damage, signals, kills, full disks, losses that are no number, bad input.

As in test_sameness.py, from outside: what is left on disk, what was said, the exit status. test_checkpoint.py and test_runs.py
have the same promises from inside.
"""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from weights import checkpoint
import train_gen
import train_und
import weights
from common.processes import InputError
from helpers import ROOT
from test_sameness import MAIN, SCRIPT, equal, line, place, story, threads      # noqa: F401 (fixtures)
from test_train import stage1, tensors                                          # noqa: F401


def sentences(err):
    """What scripts say about bad input. It may stand behind a progress bar, which ends no line."""
    return re.findall(r"error: [^\r\n]*", err)


def one_sentence(err, *words):
    said = sentences(err)
    assert len(said) == 1 and all(word in said[0] for word in words), (said, err[-2000:])
    assert "Traceback" not in err, err[-2000:]


def wait_for_lines(path, n, seconds=120):
    end = time.time() + seconds
    while not path.exists() or path.read_text().count("\n") < n:
        assert time.time() < end, f"no {n} lines in {path}"
        time.sleep(0.02)


# ---- damage ----

@pytest.fixture(scope="module")
def eight(place, tmp_path_factory):
    """Eight steps of stage 2, with all checkpoints."""
    run = tmp_path_factory.mktemp("eight")
    MAIN[2](line(2, run, place, "--steps", 8, "--save-every", 2))
    return run


def back(run, step, copy):
    """A copy of a run as it was after that step, but for the log, which a kill leaves longer."""
    shutil.copytree(run, copy)
    for later in checkpoint.checkpoints(copy):
        if int(later.name) > step:
            shutil.rmtree(later)
    return copy


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    """One bit in the middle: the same length, other content."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("name, harm", [
    ("model.safetensors", cut), ("state.pt", os.remove), ("projector.safetensors", os.remove), ("config.json", os.remove),
    ("config.json", lambda path: path.write_text("")), ("config.json", cut), ("tokenizer.json", cut),
    ("model.safetensors", flip), ("ema.safetensors", flip), ("vae.safetensors", flip), ("state.pt", flip)],
    ids=lambda value: value if isinstance(value, str) else value.__name__)
def test_a_damaged_checkpoint_is_passed_over(eight, place, name, harm, tmp_path, capfd):
    """... with a sentence; the one before it goes on to the same end."""
    run = back(eight, 6, tmp_path / "run")
    harm(run / "00000006" / name)
    MAIN[2](line(2, run, place, "--steps", 8, "--save-every", 2))
    said = [text for text in capfd.readouterr().err.replace("\r", "\n").splitlines() if "00000006" in text]
    assert len(said) == 1 and "passing over" in said[0]
    equal(run, eight)


# ---- signals ----

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process(place, fork, number, tmp_path):
    """It saves, ends with 0, and goes on later. (Stage 1: test_runs.py.)"""
    run = fork(SCRIPT[2], line(2, tmp_path / "run", place, "--steps", 3000, "--save-every", 3000))
    wait_for_lines(tmp_path / "run" / "log.jsonl", 3)
    os.kill(run.pids[0], number)
    out, err = run.finish(0)
    newest, = checkpoint.checkpoints(tmp_path / "run")
    step = checkpoint.read_config(newest)["step"]
    assert story(tmp_path / "run")[-1]["step"] == step and "Traceback" not in err
    MAIN[2](line(2, tmp_path / "run", place, "--steps", step + 1))
    MAIN[2](line(2, tmp_path / "plain", place, "--steps", step + 1))
    equal(tmp_path / "run", tmp_path / "plain")


@pytest.mark.parametrize("to, number", [("torchrun", signal.SIGINT), ("all", signal.SIGTERM)])
def test_a_signal_under_torchrun(place, torchrun, to, number, tmp_path):
    """As Ctrl-C, `kill` or a cluster sends it, to torchrun, which hands it on, or to every process: the ranks stop after the
    same step, and that step's checkpoint is whole."""
    words = line(1, tmp_path / "run", place, "--micro-batch", 4, "--steps", 3000, "--save-every", 3000)
    run = torchrun(SCRIPT[1], words, SLOW=1 if to == "all" else 0)      # handed on, so each gets it twice within the step
    wait_for_lines(tmp_path / "run" / "log.jsonl", 1 if to == "all" else 3)
    for pid in [*(run.ranks if to == "all" else []), run.agent.pid]:
        os.kill(pid, number)
    _, out, err = run.finish()
    newest, = checkpoint.checkpoints(tmp_path / "run")
    step = checkpoint.read_config(newest)["step"]
    assert step == int(newest.name) == story(tmp_path / "run")[-1]["step"]
    assert not list((tmp_path / "run").glob(".tmp-*"))
    MAIN[1](line(1, tmp_path / "run", place, "--steps", step + 1))


def test_torchrun_goes_on_by_itself(place, fork, torchrun, tmp_path):
    """A rank that is killed in its eighth step: --max-restarts starts both again, from step 5, to the end that two
    processes come to that nobody kills."""
    words = ["--micro-batch", 4, "--keep", 2]
    plain = fork(SCRIPT[1], line(1, tmp_path / "plain", place, *words), 2)
    run = torchrun(SCRIPT[1], line(1, tmp_path / "run", place, *words), "--max-restarts=1", KILL="step::8", KILL_RANK=1)
    status, out, err = run.finish()
    assert status == 0 and out.count(f"resuming {tmp_path / 'run' / '00000005'}") == 1, err[-3000:]
    plain.finish(0)
    equal(tmp_path / "run", tmp_path / "plain")


# ---- losses that are no number ----

def poisoned(stage1, directory, token):
    """A copy of a run of stage 1 in which the embedding of one token is no number."""
    model, _, tokenizer = weights.load(stage1)
    with torch.no_grad():
        model.embed.weight[token] = float("nan")
    checkpoint.save(directory, 1, config={**weights.describe(model), "stage": 1}, tokenizer=tokenizer.json,
                    tensors={"model": weights.model_tensors(model)})
    return directory


@pytest.fixture(scope="module")
def rare(place, tmp_path_factory):
    """Weights that fail at one report of the data set -> directory, id of its row."""
    data, init, _ = place
    tokenizer = weights.load_tokenizer(data)
    rows = [json.loads(text) for path in sorted((data / "und-64").glob("*.jsonl")) for text in path.read_text().splitlines()]
    holds = {row["id"]: {*tokenizer.encode(row["report"]), *tokenizer.encode(row["prompt"])} for row in rows}
    token, name = next((token, name) for name in holds if name.startswith("train") for token in sorted(holds[name])
                       if not any(token in held for other, held in holds.items() if other != name))
    return poisoned(init, tmp_path_factory.mktemp("rare"), token), name


def bits(run, part="model"):
    return {name: tensor.view(torch.int32) for name, tensor in tensors(run, part).items()}


def same_bits(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stage", [1, 2])
def test_a_sample_without_a_loss_on_one_rank(stage, rare, place, fork, tmp_path):
    """Every step that it comes to is skipped by all: the log names it, weights and average do not move. One process skips
    the same steps; resumed in between, it skips them again, bit for bit."""
    init, name = rare
    more = ["--init", init, "--steps", 11, "--save-every", 1, "--keep", 99, "--text-dropout", 0][:8 if stage == 1 else None]
    two = fork(SCRIPT[stage], line(stage, tmp_path / "two", place, *more, "--micro-batch", 4), 2)
    MAIN[stage](line(stage, tmp_path / "one", place, *more))
    skipped = {row["step"]: row["skipped"] for row in story(tmp_path / "one") if "skipped" in row}
    assert 3 <= len(skipped) <= 5 and all(name in ids and len(ids) == 8 for ids in skipped.values())

    middle = sorted(skipped)[1]
    run = back(tmp_path / "one", middle - 1, tmp_path / "again")
    MAIN[stage](line(stage, run, place, *more))
    assert story(run) == story(tmp_path / "one")
    for part in ("model", "ema"):
        assert same_bits(bits(run, part), bits(tmp_path / "one", part))

    two.finish(0)
    rows = {row["step"]: row for row in story(tmp_path / "two") if "loss" in row or "mse" in row}
    assert {step for step, row in rows.items() if "skipped" in row} == set(skipped) and len(rows) == 11
    for step, ids in skipped.items():
        assert name in rows[step]["skipped"] and len(rows[step]["skipped"]) == 4 and set(rows[step]["skipped"]) < set(ids)
    for step in range(2, 12):
        for part in ("model", "ema"):
            now, before = (bits(tmp_path / "two" / f"{n:08d}", part) for n in (step, step - 1))
            assert same_bits(now, before) == (step in skipped), (step, part)


def test_a_gradient_without_numbers_on_one_rank(place, fork, tmp_path):
    """The losses are numbers, one gradient of rank 1 is not: nobody makes this step."""
    words = line(1, tmp_path, place, "--steps", 4, "--save-every", 1, "--keep", 9, "--micro-batch", 2)
    fork(SCRIPT[1], words, 2, SPOIL=5).finish(0)
    rows = {row["step"]: row for row in story(tmp_path) if "loss" in row}
    assert [step for step in rows if "skipped" in rows[step]] == [3] and rows[3]["loss"] > 0
    at = {step: bits(tmp_path / f"{step:08d}") for step in (1, 2, 3, 4)}
    assert not same_bits(at[1], at[2]) and same_bits(at[2], at[3]) and not same_bits(at[3], at[4])


@pytest.fixture(scope="module")
def every(place, tmp_path_factory):
    """Weights that fail at every report."""
    return poisoned(place[1], tmp_path_factory.mktemp("every"), weights.load_tokenizer(place[0]).bos)


def test_the_same_samples_for_any_number_of_processes(place, fork, every, tmp_path):
    """With weights that fail at every report, the log names the samples of each step. Two processes, accumulation, and a run that
    goes on with one after three steps of two: the same samples in the same steps."""
    more = ["--init", every, "--steps", 6, "--save-every", 3, "--max-skipped", 7]
    fork(SCRIPT[1], line(1, tmp_path / "two", place, *more, "--micro-batch", 2), 2).finish(0)
    fork(SCRIPT[1], line(1, tmp_path / "one", place, *more)).finish(0)
    order = lambda run: {row["step"]: sorted(row["skipped"]) for row in story(run) if "skipped" in row}
    assert order(tmp_path / "two") == order(tmp_path / "one") and len(order(tmp_path / "one")) == 6
    assert len({name for ids in order(tmp_path / "one").values() for name in ids}) == 22
    run = back(tmp_path / "two", 3, tmp_path / "again")
    MAIN[1](line(1, run, place, *more, "--micro-batch", 4))
    assert order(run) == order(tmp_path / "one")


def test_too_many_in_a_row_end_all_ranks(place, fork, every, tmp_path):
    """... in one sentence with the samples of both; those before a resuming count."""
    more = ["--init", every, "--steps", 3, "--max-skipped", 5, "--micro-batch", 4]
    fork(SCRIPT[1], line(1, tmp_path / "run", place, *more), 2).finish(0)
    _, err = fork(SCRIPT[1], line(1, tmp_path / "run", place, *more, "--steps", 9), 2).finish(None)
    fork(SCRIPT[1], line(1, tmp_path / "one", place, *more, "--max-skipped", 9, "--steps", 5, "--micro-batch", 8)).finish(0)
    last, = (row["skipped"] for row in story(tmp_path / "one") if row["step"] == 5 and "skipped" in row)
    one_sentence(err, "5 steps in a row", *last)
    assert checkpoint.newest(tmp_path / "run").name == "00000003"


# ---- a full disk ----

@pytest.fixture(scope="module")
def four(place, tmp_path_factory):
    run = tmp_path_factory.mktemp("four")
    MAIN[1](line(1, run, place, "--steps", 4, "--save-every", 2))
    return run


@pytest.mark.parametrize("full", ["checkpoint", "log"])
def test_a_disk_that_is_full(place, fork, four, full, tmp_path):
    """One sentence, exit status 2, the old checkpoint stays; with room again the run comes to the same end."""
    run, limit = back(four, 2, tmp_path / "run"), 500_000          # model.safetensors has less, state.pt more
    if full == "log":
        rows = (run / "log.jsonl").read_text().splitlines()[:2]
        (run / "log.jsonl").write_text("\n".join([*rows, json.dumps({"step": 2, "note": "x" * 2_000_000})]) + "\n")
        limit = (run / "log.jsonl").stat().st_size
    words = line(1, run, place, "--steps", 4, "--save-every", 2)
    _, err = fork(SCRIPT[1], words, FILE_LIMIT=limit).finish(2)
    one_sentence(err, "could not be", "00000004" if full == "checkpoint" else "log.jsonl")
    assert [path.name for path in sorted(run.iterdir())] == ["00000002", "log.jsonl"]
    if full == "log":
        (run / "log.jsonl").write_text("".join(row + "\n" for row in rows))
    MAIN[1](words)
    equal(run, four)


def test_a_disk_that_is_full_ends_all_ranks(place, fork, four, tmp_path):
    run = back(four, 2, tmp_path / "run")
    words = line(1, run, place, "--steps", 9, "--save-every", 2, "--micro-batch", 4)
    _, err = fork(SCRIPT[1], words, 2, FILE_LIMIT=500_000).finish(None, 60)
    assert len(sentences(err)) == 1 and "00000004" in sentences(err)[0]
    assert [path.name for path in sorted(run.iterdir())] == ["00000002", "log.jsonl"]


# ---- bad input ----

def edit(path, **fields):
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def other_images(und):
    """The data set says 64 pixels, its images have 32."""
    for path in (und.parent / "gen-32").glob("[0-9]*"):
        shutil.copy(path, und)


def fewer_rows(und):
    rows = (und / "00001.jsonl").read_text().splitlines()
    (und / "00001.jsonl").write_text("".join(row + "\n" for row in rows[:-1]))


HARMS = {           # what is done to und-64, and words of the sentence
    "schema": (lambda und: edit(und / "dataset.json", schema=99), "schema 99"),
    "renamed": (lambda und: edit(und / "dataset.json", size=32), "und-32"),
    "other images": (other_images, "32"),
    "cut": (lambda und: cut(und / "00001.bin"), "00001.bin"),
    "missing": (lambda und: os.remove(und / "00001.bin"), "00001.bin"),
    "no index": (lambda und: os.remove(und / "00001.idx.npy"), "00001"),
    "fewer rows": (fewer_rows, "00001"),
    "whole shard": (lambda und: [path.unlink() for path in und.glob("00001.*")], "shard"),
    "damaged json": (lambda und: cut(und / "dataset.json"), "dataset.json"),
}


@pytest.mark.parametrize("name", HARMS)
def test_a_damaged_data_set(name, place, fork, tmp_path):
    harm, word = HARMS[name]
    data = shutil.copytree(place[0], tmp_path / "data")
    harm(data / "und-64")
    _, err = fork(SCRIPT[1], line(1, tmp_path / "run", (data, *place[1:]))).finish(2)
    one_sentence(err, word)
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize("stage, more, word", [
    (1, ["--max-text", 48], "48"), (1, ["--micro-batch", 3], "multiple"), (1, ["--image-size", 96], "und-96"),
    (1, ["--init", "{vae}"], "model"), (2, ["--init", "{vae}"], "model"), (2, ["--stage", 3], "stage 3"),
    (2, ["--init", "nowhere"], "nowhere"), (2, ["--size", 64], "gen-64")])
def test_bad_input(stage, more, word, place, fork, tmp_path):
    more = [str(part).format(vae=place[2]) for part in more]
    _, err = fork(SCRIPT[stage], line(stage, tmp_path / "run", place, *more)).finish(2)
    one_sentence(err, word)


@pytest.mark.parametrize("name, value", [
    ("log_every", 0), ("eval_every", 0), ("save_every", 0), ("keep", 0), ("max_skipped", 0), ("steps", 0), ("sample_every", -1),
    ("warmup", -5), ("lr", -1), ("weight_decay", -1), ("ema", 2), ("ema", -0.1), ("clip", 0), ("threads", -1),
    ("optimizer", "adam"), ("decay", "linear"), ("dtype", "float16")])
@pytest.mark.parametrize("script", [train_und, train_gen])
def test_absurd_settings(script, name, value, tmp_path):
    """... are refused before anything is loaded, by name."""
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')} {value}"):
        script.main([f"--{name}", str(value), "--data", "nowhere", "--out", str(tmp_path / "run")])


def test_an_image_that_a_reader_cannot_read(place, tmp_path):
    """It is said by another process (--workers, the default with a GPU), and is one sentence all the same."""
    data = shutil.copytree(place[0], tmp_path / "data")
    for path in (data / "und-64").glob("*.bin"):
        path.write_bytes(bytes(path.stat().st_size))
    words = line(1, tmp_path / "run", (data, *place[1:]), "--workers", 1)
    done = subprocess.run([sys.executable, str(ROOT / SCRIPT[1]), *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    one_sentence(done.stderr, "error: image train-", "prepare it anew")


@pytest.mark.parametrize("more, word", [(["--data", "nowhere"], "nowhere"), (["--micro-batch", 8], "multiple of 16"),
                                        (["--max-text", 8], "max_text 8")])
def test_bad_input_that_all_ranks_see(more, word, place, fork, tmp_path):
    """One of them says so, all end."""
    _, err = fork(SCRIPT[1], line(1, tmp_path / "run", place, "--micro-batch", 4, *more), 2).finish(None, 60)
    one_sentence(err, word)


def test_ranks_that_disagree(place, fork, tmp_path):
    """One rank of two is started with other settings: both stop before the first step, and one says which."""
    words = line(1, tmp_path / "run", place, "--micro-batch", 4)
    _, err = fork(SCRIPT[1], words, 2, RANK_1="--lr 1e-4").finish(None, 60)
    one_sentence(err, "ranks disagree about their settings (lr:")
    assert not list(tmp_path.glob("run/*"))


def test_a_port_in_use(place, fork, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0)), s.listen()
        port = s.getsockname()[1]
        words = line(1, tmp_path / "run", place, "--micro-batch", 4)
        _, err = fork(SCRIPT[1], words, RANK=0, LOCAL_RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=port).finish(2)
    one_sentence(err, str(port))


def test_what_one_rank_alone_sees_ends_torchrun(place, torchrun, tmp_path):
    """The first report that is too long comes to rank 1: its sentence, and a failure within 20 s."""
    data = shutil.copytree(place[0], tmp_path / "data")
    from common.processes import Process
    from training.batches import Packed, Samples, micro_batches
    samples = Samples(Packed(data, "und", 64, "train"), weights.load_tokenizer(data), 256, 0, 8)
    step, index = list(micro_batches(8, Process(1, 2, torch.device("cpu")), 4, 0, 3))[2][1]
    name = samples.data.rows[samples.number(step, index)]["id"]
    for path in (data / "und-64").glob("*.jsonl"):
        rows = [json.loads(text) for text in path.read_text().splitlines()]
        rows = [{**row, "report": row["report"] * (40 if row["id"] == name else 1)} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = torchrun(SCRIPT[1], line(1, tmp_path / "run", (data, *place[1:]), "--micro-batch", 4))
    status, out, err = run.finish()
    assert status and len(sentences(err)) == 1 and name in sentences(err)[0], err[-3000:]
