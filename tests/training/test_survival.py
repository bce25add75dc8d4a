"""What a run of several processes survives, and how it ends when it cannot.

From outside: what is left on the disk, what was printed, the exit status. How one process ends has
its tests in test_resume.py and test_run.py.
"""
import os
import re
import signal
import socket
import time

import pytest

from helpers import lock_of_another
from tiny_runs import MAIN, SCRIPT, identical, log, same_run, tensors
from weights import checkpoint

pytestmark = pytest.mark.slow


def sentences(err):
    """What scripts say about bad input. It may stand behind a progress bar, which ends no line."""
    return re.findall(r"error: [^\r\n]*", err)


def one_sentence(err, *words):
    assert len(sentences(err)) == 1, err[-2000:]
    for word in words:
        assert word in sentences(err)[0]


def skipped(run):
    """{step: the samples to blame} of the steps that were skipped."""
    return {row["step"]: row["skipped"] for row in log(run) if "skipped" in row}


# ---- signals and kills under torchrun ----

@pytest.mark.parametrize("to", ["one rank", "all"])
def test_after_a_signal_all_ranks_stop_after_the_same_step(line, torchrun, to, tmp_path):
    """As Ctrl-C, `kill` or a cluster sends it; the run goes on later.

    torchrun hands a signal on to its ranks, so with "all" each gets it twice within the step.
    """
    out = tmp_path / "run"
    words = line(1, out, "--micro-batch", 4, "--steps", 3000, "--save-every", 3000)
    run = torchrun(SCRIPT[1], words, SLOW=1 if to == "all" else 0)
    end = time.time() + 120
    while not (out / "log.jsonl").exists():
        assert time.time() < end, "no step was made"
        time.sleep(0.02)
    targets = run.ranks[1:] if to == "one rank" else [*run.ranks, run.agent.pid]
    for pid in targets:
        os.kill(pid, signal.SIGTERM)
    run.finish()
    newest, = checkpoint.checkpoints(out)
    step = checkpoint.read_config(newest)["step"]
    assert step == int(newest.name) == log(out)[-1]["step"]
    assert 0 < step < 3000 and not list(out.glob(".tmp-*"))
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
    plain.finish()
    same_run(tmp_path / "run", tmp_path / "plain")


# ---- what goes wrong on one rank alone ----

@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_without_numbers_on_one_rank_is_skipped_by_all(what, line, fork, tmp_path):
    """The log names the samples of the micro-batch, the second of step 3; no weights move."""
    words = line(1, tmp_path, "--steps", 4, "--save-every", 1, "--micro-batch", 2)
    fork(SCRIPT[1], words, 2, SPOIL=f"{what}:6:6").finish()
    (step, names), = skipped(tmp_path).items()
    assert step == 3
    if what == "loss":
        assert len(names) == 2 and all(name.startswith("train-") for name in names)
    else:
        assert names == ["none: the losses are numbers, the gradient is not"]
    for part in ("model", "ema"):
        at = {step: tensors(tmp_path / f"{step:08d}", part) for step in (1, 2, 3, 4)}
        assert identical(at[2], at[3])
        assert not identical(at[1], at[2]) and not identical(at[3], at[4])


def test_too_many_in_a_row_end_all_ranks(line, fork, tmp_path):
    """In one sentence; skipped steps before a resuming count."""
    more = ["--max-skipped", 5, "--micro-batch", 4]
    fork(SCRIPT[1], line(1, tmp_path, *more, "--steps", 3), 2, SPOIL="loss:1:99").finish()
    assert skipped(tmp_path).keys() == {1, 2, 3}
    words = line(1, tmp_path, *more, "--steps", 9)
    _, err = fork(SCRIPT[1], words, 2, SPOIL="loss:1:99").finish(None)
    one_sentence(err, "5 steps in a row", "train-")
    assert checkpoint.newest(tmp_path).name == "00000003"


def test_runs_that_give_up_end_every_time(line, fork, tmp_path):
    """Twelve in a row.

    A rank hung in one of five: the destructor of gloo's group held Python's lock and waited for a
    thread that wanted it.
    """
    for number in range(12):
        words = line(1, tmp_path / str(number), "--max-skipped", 1, "--micro-batch", 4)
        run = fork(SCRIPT[1], words, 2, SPOIL="loss:1:99")
        run.finish(2, 60)


def test_a_rank_that_is_killed_ends_the_other_with_a_sentence(line, fork, tmp_path):
    words = line(1, tmp_path, "--micro-batch", 4)
    run = fork(SCRIPT[1], words, 2, KILL="step::3", KILL_RANK=1)
    _, err = run.finish(None, 60)
    assert [process.exitcode for process in run.processes] == [1, -signal.SIGKILL]
    one_sentence(err, "another process of this run has ended")
    assert "Traceback" not in err


@pytest.mark.parametrize("runner", ["fork", "torchrun"])
def test_a_bug_on_one_rank_shows_its_traceback_and_ends_the_other(
        line, fork, torchrun, runner, tmp_path):
    words = line(1, tmp_path, "--micro-batch", 4)
    if runner == "fork":
        _, err = fork(SCRIPT[1], words, 2, SPOIL="bug:3:3").finish(None, 60)
        assert err.count("Traceback") == 1
        one_sentence(err, "another process of this run has ended")
    else:
        status, _, err = torchrun(SCRIPT[1], words, SPOIL="bug:3:3").finish()
        assert status != 0
    assert err.count("ZeroDivisionError: a mistake of ours") == 1


def test_too_little_memory_on_one_rank_is_a_sentence_with_the_options_that_help(
        line, fork, tmp_path):
    words = line(1, tmp_path, "--micro-batch", 4)
    run = fork(SCRIPT[1], words, 2, SPOIL="memory:3:3")
    _, err = run.finish(None, 60)
    assert run.processes[1].exitcode == 2
    one_sentence(err, "out of memory: 4000000000000000 bytes", "the estimate was",
                 "--micro-batch below 4, or --recompute, or --shard.")
    assert "Traceback" not in err


def test_a_full_disk_ends_all_ranks_and_with_room_the_run_goes_on(line, fork, tmp_path):
    run = tmp_path / "run"
    MAIN[1](line(1, run, "--steps", 2, "--save-every", 2))
    words = line(1, run, "--steps", 9, "--save-every", 2, "--micro-batch", 4)
    # model.safetensors is smaller than the limit, state.pt larger
    _, err = fork(SCRIPT[1], words, 2, FILE_LIMIT=500_000).finish(None, 60)
    one_sentence(err, "could not be", "00000004")
    assert [path.name for path in sorted(run.iterdir())] == ["00000002", "log.jsonl"]
    MAIN[1](words)
    assert checkpoint.newest(run).name == "00000009"


def test_what_one_rank_alone_refuses_ends_torchrun(line, torchrun, tmp_path):
    """Its sentence, and a failure within 20 s although rank 0 waits for its gradients."""
    words = line(1, tmp_path / "run", "--micro-batch", 4)
    status, _, err = torchrun(SCRIPT[1], words, SPOIL="error:3:3").finish()
    assert status != 0
    # and once more below torchrun's own lines, where it is seen
    last = "\n".join(err.splitlines()[-12:])
    assert "a picture of rank 1 is damaged" in last
    one_sentence(err, "a picture of rank 1 is damaged")


# ---- bad input that all ranks see ----

@pytest.mark.parametrize("more, of_rank_1, sentence", [
    (["--data", "nowhere"], "", "nowhere"),
    (["--max-text", 8], "", "max_text 8"),
    ([], "--lr 1e-4", "ranks disagree about their settings (lr:")])
def test_bad_input_is_said_once(more, of_rank_1, sentence, line, fork, tmp_path):
    words = line(1, tmp_path / "run", "--micro-batch", 4, *more)
    _, err = fork(SCRIPT[1], words, 2, RANK_1=of_rank_1).finish(None, 60)
    one_sentence(err, sentence)
    assert "Traceback" not in err and not list(tmp_path.glob("run/*"))


def test_all_ranks_end_where_another_process_writes(line, fork, tmp_path):
    lock_of_another(tmp_path)
    before = sorted(tmp_path.iterdir())
    words = line(1, tmp_path, "--micro-batch", 4, "--overwrite")
    _, err = fork(SCRIPT[1], words, 2).finish(2, 60)
    one_sentence(err, "on elsewhere")
    assert "Traceback" not in err and sorted(tmp_path.iterdir()) == before


def test_a_port_in_use_is_named(line, fork, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        rank_0_of_2 = dict(RANK=0, LOCAL_RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1",
                           MASTER_PORT=port)
        _, err = fork(SCRIPT[1], line(1, tmp_path / "run"), **rank_0_of_2).finish(2)
    one_sentence(err, str(port))
