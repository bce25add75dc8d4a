"""What a run survives, and how it ends when it cannot: damage, signals, full disks, bad losses.

From outside: what is left on the disk, what was printed, the exit status.
"""
import json
import os
import re
import shutil
import signal
import socket
import time

import pytest
import torch

import weights
from common.packed import Packed
from common.processes import Process
from tiny_runs import MAIN, SCRIPT, identical, log, same_run, tensors
from training.batches import Samples, micro_batches
from weights import checkpoint

pytestmark = pytest.mark.slow


def sentences(err):
    """What scripts say about bad input. It may stand behind a progress bar, which ends no line."""
    return re.findall(r"error: [^\r\n]*", err)


def one_sentence(err, *words):
    assert len(sentences(err)) == 1, err[-2000:]
    for word in words:
        assert word in sentences(err)[0]
    assert "Traceback" not in err, err[-2000:]


def wait_for_lines(path, n, seconds=120):
    """Until a log has n lines."""
    end = time.time() + seconds
    while not path.exists() or path.read_text().count("\n") < n:
        assert time.time() < end, f"no {n} lines in {path}"
        time.sleep(0.02)


def back(run, step, copy):
    """A copy of a run as it was after that step, but for the log, which a kill leaves longer."""
    shutil.copytree(run, copy)
    for later in checkpoint.checkpoints(copy):
        if int(later.name) > step:
            shutil.rmtree(later)
    return copy


# ---- damage ----

def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    """One bit in the middle: the same length, other content."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


@pytest.fixture(scope="module")
def eight(line, tmp_path_factory):
    """Eight steps of stage 2, with all checkpoints."""
    run = tmp_path_factory.mktemp("eight")
    MAIN[2](line(2, run, "--steps", 8, "--save-every", 2))
    return run


@pytest.mark.parametrize("name, harm", [
    ("model.safetensors", cut), ("model.safetensors", flip), ("ema.safetensors", flip),
    ("vae.safetensors", flip), ("projector.safetensors", os.remove), ("state.pt", os.remove),
    ("state.pt", flip), ("config.json", os.remove), ("config.json", cut), ("tokenizer.json", cut)])
def test_a_damaged_checkpoint_is_passed_over(eight, line, name, harm, tmp_path, capfd):
    """With a sentence; the one before it goes on to the same end."""
    run = back(eight, 6, tmp_path / "run")
    harm(run / "00000006" / name)
    MAIN[2](line(2, run, "--steps", 8, "--save-every", 2))
    printed = capfd.readouterr().err.replace("\r", "\n").splitlines()
    about = [text for text in printed if "00000006" in text]
    assert len(about) == 1
    assert "passing over" in about[0]
    same_run(run, eight)


# ---- signals ----

@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("stage", [1, 2])
def test_a_signal_saves_and_ends_with_0(line, fork, stage, number, tmp_path):
    """And the run goes on later as if nothing had happened."""
    run, plain = tmp_path / "run", tmp_path / "plain"
    process = fork(SCRIPT[stage], line(stage, run, "--steps", 3000, "--save-every", 3000))
    wait_for_lines(run / "log.jsonl", 3)
    os.kill(process.pids[0], number)
    out, err = process.finish(0)
    assert "Traceback" not in err
    newest, = checkpoint.checkpoints(run)
    step = checkpoint.read_config(newest)["step"]
    assert log(run)[-1]["step"] == step
    assert f"{step} of 3000 steps" in out
    for out in (run, plain):
        MAIN[stage](line(stage, out, "--steps", step + 1))
    same_run(run, plain)


@pytest.mark.parametrize("to", ["torchrun", "one rank", "all"])
def test_a_signal_under_torchrun(line, torchrun, to, tmp_path):
    """As Ctrl-C, `kill` or a cluster sends it: the ranks stop after the same step, and save it.

    torchrun hands a signal on to its ranks, so with "all" each gets it twice within the step.
    """
    out = tmp_path / "run"
    words = line(1, out, "--micro-batch", 4, "--steps", 3000, "--save-every", 3000)
    run = torchrun(SCRIPT[1], words, SLOW=1 if to == "all" else 0)
    wait_for_lines(out / "log.jsonl", 1 if to == "all" else 3)
    targets = {"torchrun": [run.agent.pid], "one rank": run.ranks[1:],
               "all": [*run.ranks, run.agent.pid]}
    for pid in targets[to]:
        os.kill(pid, signal.SIGTERM)
    run.finish()
    newest, = checkpoint.checkpoints(out)
    step = checkpoint.read_config(newest)["step"]
    assert step == int(newest.name) == log(out)[-1]["step"]
    assert 0 < step < 3000
    assert not list(out.glob(".tmp-*"))
    MAIN[1](line(1, out, "--steps", step + 1))


def test_torchrun_goes_on_by_itself(line, fork, torchrun, tmp_path):
    """A rank is killed in its eighth step: --max-restarts starts both again, from step 5.

    They come to the end that two processes come to that nobody kills.
    """
    words = ("--micro-batch", 4, "--keep", 2)
    plain = fork(SCRIPT[1], line(1, tmp_path / "plain", *words), 2)
    run = torchrun(SCRIPT[1], line(1, tmp_path / "run", *words), "--max-restarts=1",
                   KILL="step::8", KILL_RANK=1)
    status, out, err = run.finish()
    assert status == 0, err[-3000:]
    assert out.count(f"resuming {tmp_path / 'run' / '00000005'}") == 1
    plain.finish(0)
    same_run(tmp_path / "run", tmp_path / "plain")


# ---- losses that are no number ----

def poisoned(run, directory, token):
    """A copy of a run of stage 1 in which the embedding of one token is no number."""
    model, _, tokenizer = weights.load(run)
    with torch.no_grad():
        model.embed.weight[token] = float("nan")
    checkpoint.save(
        directory, 1, config={**weights.describe(model), "stage": 1}, tokenizer=tokenizer.json,
        tensors={"model": weights.model_tensors(model)})
    return directory


@pytest.fixture(scope="module")
def rare(uneven, stage1, tmp_path_factory):
    """Weights that fail at one report of the data set -> directory, id of its row."""
    tokenizer = weights.load_tokenizer(uneven)
    tokens = {}
    for row in Packed(uneven, "und", 64).rows:
        tokens[row["id"]] = {*tokenizer.encode(row["report"]), *tokenizer.encode(row["prompt"])}
    for name in tokens:
        others = set().union(*(tokens[other] for other in tokens if other != name))
        own = sorted(tokens[name] - others)
        if name.startswith("train") and own:
            return poisoned(stage1, tmp_path_factory.mktemp("rare"), own[0]), name
    raise AssertionError("every token stands in two reports")


@pytest.fixture(scope="module")
def every(uneven, stage1, tmp_path_factory):
    """Weights that fail at every report."""
    bos = weights.load_tokenizer(uneven).bos
    return poisoned(stage1, tmp_path_factory.mktemp("every"), bos)


def skipped(run):
    """{step: the samples to blame} of the steps that were skipped."""
    return {row["step"]: sorted(row["skipped"]) for row in log(run) if "skipped" in row}


@pytest.mark.parametrize("stage", [1, 2])
def test_a_sample_without_a_loss_on_one_rank(stage, rare, line, fork, tmp_path):
    """All ranks skip every step that it comes to; the log names it, the weights do not move.

    One process skips the same steps; resumed in between, it skips them again, bit for bit.
    """
    init, name = rare
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--init", init, "--steps", 11, "--save-every", 1, "--keep", 99]
    if stage == 2:
        more += ["--text-dropout", 0]
    ranks = fork(SCRIPT[stage], line(stage, two, *more, "--micro-batch", 4), 2)
    MAIN[stage](line(stage, one, *more))
    steps = skipped(one)
    assert 3 <= len(steps) <= 5
    assert all(name in ids and len(ids) == 8 for ids in steps.values())

    middle = sorted(steps)[1]
    resumed = back(one, middle - 1, tmp_path / "resumed")
    MAIN[stage](line(stage, resumed, *more))
    assert log(resumed) == log(one)
    for part in ("model", "ema"):
        assert identical(tensors(resumed, part), tensors(one, part))

    ranks.finish(0)
    assert skipped(two).keys() == steps.keys()
    for step, ids in skipped(two).items():
        assert name in ids
        assert len(ids) == 4                # of the micro-batch that holds it
        assert set(ids) < set(steps[step])
    for step in range(2, 12):
        for part in ("model", "ema"):
            before, after = (tensors(two / f"{n:08d}", part) for n in (step - 1, step))
            assert identical(before, after) == (step in steps), (step, part)


def test_a_gradient_without_numbers_on_one_rank(line, fork, tmp_path):
    """The losses are numbers, one gradient of rank 1 is not: nobody makes this step."""
    words = line(1, tmp_path, "--steps", 4, "--save-every", 1, "--keep", 9, "--micro-batch", 2)
    fork(SCRIPT[1], words, 2, SPOIL=5).finish(0)
    assert list(skipped(tmp_path)) == [3]
    losses = {row["step"]: row["loss"] for row in log(tmp_path) if "loss" in row}
    assert losses[3] > 0
    at = {step: tensors(tmp_path / f"{step:08d}") for step in (1, 2, 3, 4)}
    assert not identical(at[1], at[2])
    assert identical(at[2], at[3])
    assert not identical(at[3], at[4])


def test_the_same_samples_for_any_number_of_processes(line, fork, every, tmp_path):
    """With weights that fail at every report, the log names the samples of each step."""
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--init", every, "--steps", 6, "--save-every", 3, "--max-skipped", 7]
    fork(SCRIPT[1], line(1, two, *more, "--micro-batch", 2), 2).finish(0)
    fork(SCRIPT[1], line(1, one, *more)).finish(0)
    assert skipped(two) == skipped(one)
    assert len(skipped(one)) == 6
    assert len({name for ids in skipped(one).values() for name in ids}) == 22       # an epoch

    resumed = back(two, 3, tmp_path / "resumed")
    MAIN[1](line(1, resumed, *more, "--micro-batch", 4))
    assert skipped(resumed) == skipped(one)


def test_too_many_in_a_row_end_all_ranks(line, fork, every, tmp_path):
    """In one sentence with the samples of both; skipped steps before a resuming count."""
    run, one = tmp_path / "run", tmp_path / "one"
    more = ["--init", every, "--steps", 3, "--max-skipped", 5, "--micro-batch", 4]
    fork(SCRIPT[1], line(1, run, *more), 2).finish(0)
    _, err = fork(SCRIPT[1], line(1, run, *more, "--steps", 9), 2).finish(None)
    more = ["--init", every, "--steps", 5, "--max-skipped", 9]
    fork(SCRIPT[1], line(1, one, *more)).finish(0)
    one_sentence(err, "5 steps in a row", *skipped(one)[5])
    assert checkpoint.newest(run).name == "00000003"


# ---- a full disk ----

@pytest.fixture(scope="module")
def four(line, tmp_path_factory):
    run = tmp_path_factory.mktemp("four")
    MAIN[1](line(1, run, "--steps", 4, "--save-every", 2))
    return run


def test_a_disk_without_room_for_a_checkpoint(line, fork, four, tmp_path):
    """One sentence, exit status 2, the old checkpoint stays; with room again the run goes on."""
    run = back(four, 2, tmp_path / "run")
    words = line(1, run, "--steps", 4, "--save-every", 2)
    # model.safetensors is smaller than the limit, state.pt larger
    _, err = fork(SCRIPT[1], words, FILE_LIMIT=500_000).finish(2)
    one_sentence(err, "could not be", "00000004")
    assert [path.name for path in sorted(run.iterdir())] == ["00000002", "log.jsonl"]
    MAIN[1](words)
    same_run(run, four)


def test_a_disk_without_room_for_the_log(line, fork, four, tmp_path):
    run = back(four, 2, tmp_path / "run")
    lines = (run / "log.jsonl").read_text().splitlines()[:2]
    large = json.dumps({"step": 2, "note": "x" * 2_000_000})
    (run / "log.jsonl").write_text("\n".join([*lines, large]) + "\n")
    words = line(1, run, "--steps", 4, "--save-every", 2)
    limit = (run / "log.jsonl").stat().st_size
    _, err = fork(SCRIPT[1], words, FILE_LIMIT=limit).finish(2)
    one_sentence(err, "could not be", "log.jsonl")
    assert [path.name for path in sorted(run.iterdir())] == ["00000002", "log.jsonl"]


def test_a_disk_that_is_full_ends_all_ranks(line, fork, four, tmp_path):
    run = back(four, 2, tmp_path / "run")
    words = line(1, run, "--steps", 9, "--save-every", 2, "--micro-batch", 4)
    _, err = fork(SCRIPT[1], words, 2, FILE_LIMIT=500_000).finish(None, 60)
    assert len(sentences(err)) == 1
    assert "00000004" in sentences(err)[0]
    assert [path.name for path in sorted(run.iterdir())] == ["00000002", "log.jsonl"]


# ---- bad input: one process, all ranks, one rank ----

def test_bad_input_of_one_process(uneven, line, fork, tmp_path):
    """A shard that is cut, and an image that a reading thread cannot read: exit status 2."""
    data = shutil.copytree(uneven, tmp_path / "data")
    cut(data / "und-64" / "00001.bin")
    _, err = fork(SCRIPT[1], line(1, tmp_path / "run", data=data)).finish(2)
    one_sentence(err, "00001.bin")
    assert not list(tmp_path.glob("run/*"))

    data = shutil.copytree(uneven, tmp_path / "zeros")
    for path in (data / "und-64").glob("*.bin"):
        path.write_bytes(bytes(path.stat().st_size))
    _, err = fork(SCRIPT[1], line(1, tmp_path / "run", "--workers", 1, data=data)).finish(2)
    one_sentence(err, "image train-", "prepare it anew")


@pytest.mark.parametrize("more, word", [
    (["--data", "nowhere"], "nowhere"), (["--micro-batch", 8], "multiple of 16"),
    (["--max-text", 8], "max_text 8")])
def test_bad_input_that_all_ranks_see_is_said_once(more, word, line, fork, tmp_path):
    words = line(1, tmp_path / "run", "--micro-batch", 4, *more)
    _, err = fork(SCRIPT[1], words, 2).finish(None, 60)
    one_sentence(err, word)


def test_ranks_that_disagree(line, fork, tmp_path):
    """One rank is started with other settings: both stop before the first step, one says which."""
    words = line(1, tmp_path / "run", "--micro-batch", 4)
    _, err = fork(SCRIPT[1], words, 2, RANK_1="--lr 1e-4").finish(None, 60)
    one_sentence(err, "ranks disagree about their settings (lr:")
    assert not list(tmp_path.glob("run/*"))


def test_a_port_in_use(line, fork, tmp_path):
    words = line(1, tmp_path / "run", "--micro-batch", 4)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        rank_0_of_2 = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1",
                           MASTER_PORT=port)
        _, err = fork(SCRIPT[1], words, **rank_0_of_2).finish(2)
    one_sentence(err, str(port))


def test_what_one_rank_alone_sees_ends_torchrun(uneven, line, torchrun, tmp_path):
    """An image that only rank 1 reads is damaged: its sentence, and a failure within 20 s."""
    data = shutil.copytree(uneven, tmp_path / "data")
    samples = Samples(Packed(data, "und", 64, "train"), weights.load_tokenizer(data), 256, 0, 8)
    rank_1 = Process(1, 2, torch.device("cpu"))
    step, index = list(micro_batches(8, rank_1, 4, 0, 3))[2][1]
    n = samples.number(step, index)
    shard, _, offset, length = samples.data.places[n]
    with open(samples.data.shards[shard].with_suffix(".bin"), "r+b") as file:
        file.seek(offset)
        file.write(bytes(length))
    run = torchrun(SCRIPT[1], line(1, tmp_path / "run", "--micro-batch", 4, data=data))
    status, _, err = run.finish()
    assert status != 0
    assert len(sentences(err)) == 1, err[-3000:]
    assert samples.data.rows[n]["id"] in sentences(err)[0]
