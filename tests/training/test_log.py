"""training/log.py: lines survive kills and stay JSON; boards; the throughput of a run."""
import json
import sys
from types import SimpleNamespace

import pytest

import train_und
from common.cli import InputError
from tiny_runs import column, und
from training import log
from training.log import Log, Meter


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_on_resuming_later_lines_and_a_torn_one_are_cut(tmp_path):
    path = tmp_path / "log.jsonl"
    first = Log(path, 0)
    for step in range(1, 6):
        first.write(step=step, loss=1 / step)
    with open(path, "a") as file:                   # a kill in the middle of a write
        file.write('{"step": 6, "lo')
    Log(path, 3).write(step=4, loss=7)
    assert [line["step"] for line in lines(path)] == [1, 2, 3, 4]
    assert lines(path)[-1]["loss"] == 7


def test_what_is_not_finite_is_null(tmp_path):
    """JSON has no NaN."""
    path = tmp_path / "log.jsonl"
    nan = float("nan")
    Log(path, 0).write(step=1, loss=nan, norm=float("inf"), lr=0.5, bins=[0.5, nan])
    assert lines(path) == [{"step": 1, "loss": None, "norm": None, "lr": 0.5, "bins": [0.5, None]}]


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    """The system's error of a full disk does not say which file it was."""
    run_log = Log(tmp_path / "log.jsonl", 0)
    run_log.path.mkdir()
    with pytest.raises(InputError, match="log.jsonl could not be written .*same command"):
        run_log.write(step=1)


def test_throughput_leaves_out_what_is_paused_and_what_was_before(monkeypatch):
    """By a clock of our own: every round waits for 0.5 s, works for 1.5 s and is paused for 9 s."""
    now = [0.0]
    monkeypatch.setattr(log.time, "perf_counter", lambda: now[0])

    def slow_batches():
        while True:
            now[0] += 0.25
            yield "batch"

    meter = Meter(peak=100)
    for _ in range(2):
        assert meter.take(slow_batches(), 2) == ["batch", "batch"]
        now[0] += 1.5
        with meter.paused():
            now[0] += 9
        meter.counts.update(img=8, flops=50)
        assert meter.rates() == pytest.approx({"img_s": 4, "wait": 0.25, "mfu": 0.25})


def test_what_a_board_refuses_is_one_sentence(tmp_path, monkeypatch):
    """Nobody has logged in to Weights & Biases, say."""
    class Refused(Exception):
        pass

    def init(**_):
        raise Refused("no API key")
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(Error=Refused, init=init))
    with pytest.raises(InputError, match="--boards wandb: no API key"):
        log.open_boards("wandb", tmp_path, {})


def test_tensorboard_gets_the_numbers_of_the_log(phantom, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train_und.main(und(phantom, tmp_path, "--steps", 2, "--boards", "tensorboard"))
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = [event.value for event in events.Scalars("loss")]
    assert losses == pytest.approx(column(tmp_path, "loss"))
