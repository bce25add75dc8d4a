"""training/run.py and the loops around it: the log, signals, steps without numbers, which checkpoints stay."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

from weights import checkpoint
import flow
from training import log as runs
import train_gen
import train_und
from common.processes import InputError, generator
from helpers import ROOT
from common.images import NOTICE
from test_train import column, gen, identical, log, optimizer, stage1, stage2, tensors, und        # noqa: F401 (fixtures)


def test_log_is_cut_on_resume(tmp_path):
    path = tmp_path / "log.jsonl"
    log = runs.Log(path, 0)
    for step in range(1, 6):
        log.write(step=step, loss=1 / step)
    log.write(step=5, val_loss=0.5)
    runs.Log(path, 3).write(step=4, loss=7)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[-1]["loss"] == 7


def test_log_with_a_torn_last_line(tmp_path):
    """A kill in the middle of a write leaves half a line; resuming must not fail over it."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    runs.Log(path, 1).write(step=2, loss=1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_no_nan_in_the_log(tmp_path):
    runs.Log(tmp_path / "log.jsonl", 0).write(step=1, loss=float("nan"), norm=float("inf"), lr=0.5)
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": None, "norm": None, "lr": 0.5}


def test_no_nan_in_a_list_of_the_log(tmp_path):
    runs.Log(tmp_path / "log.jsonl", 0).write(step=1, val_mse_bins=[0.5, float("nan")])
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "val_mse_bins": [0.5, None]}


def test_meter(monkeypatch):
    """By a clock of our own: 2 s of work and 0.5 s of waiting; what is paused does not count, nor what was before the last look."""
    now = [0.0]
    monkeypatch.setattr(runs.time, "perf_counter", lambda: now[0])
    def slow():
        while True:
            now[0] += 0.25
            yield "batch"
    meter = runs.Meter(peak=100)
    for _ in range(2):
        assert meter.take(slow(), 2) == ["batch", "batch"]
        now[0] += 1.5
        with meter.paused():
            now[0] += 9
        meter.counts.update(img=8, flops=50)
        assert meter.rates() == pytest.approx({"img_s": 4, "wait": 0.25, "mfu": 0.25})


def test_samples_to_look_at(phantom, stage2, tmp_path):
    """Pictures and reports at intervals; they change nothing of the run."""
    for step, more in ((0, ("--sample-every", 0)), (1, ("--sample-every", 2))):
        train_gen.main(gen(phantom, tmp_path / f"gen{step}", stage2, "--steps", 3, *more))
        train_und.main(und(phantom, tmp_path / f"und{step}", "--steps", 3, *more))
    for kind, ending in (("gen", "png"), ("und", "txt")):
        assert identical(tensors(tmp_path / f"{kind}0"), tensors(tmp_path / f"{kind}1"))
        assert not (tmp_path / f"{kind}0" / "samples").exists()
        assert [p.name for p in (tmp_path / f"{kind}1" / "samples").iterdir()] == [f"00000002.{ending}"]
    picture = Image.open(tmp_path / "gen1" / "samples" / "00000002.png")
    assert picture.text["notice"] == NOTICE and picture.width > 4 * 32
    text = (tmp_path / "und1" / "samples" / "00000002.txt").read_text()
    assert text.count("given  ") == text.count("written  ") == 4 and NOTICE in text


def test_validation_by_bins_of_t(phantom, stage2, tmp_path):
    """The bins' means, weighted by how many of the four fixed times lie in each, give the whole mean."""
    train_gen.main(gen(phantom, tmp_path, stage2, "--steps", 1))
    row = next(row for row in log(tmp_path) if "val_mse" in row)
    normal = [torch.randn((), generator=g) for g in (generator(0, -1, i) for i in range(4)) if torch.rand((), generator=g) >= 0]
    counts = torch.bincount((torch.sigmoid(torch.stack(normal)) * 5).long(), minlength=5).tolist()
    assert [error is None for error in row["val_mse_bins"]] == [n == 0 for n in counts] and sum(counts) == 4
    mean = sum(n * error for n, error in zip(counts, row["val_mse_bins"]) if n) / 4
    assert mean == pytest.approx(row["val_mse"], rel=1e-6)


def test_boards(phantom, tmp_path):
    with pytest.raises(InputError, match="--boards paper is none of tensorboard, wandb"):
        train_und.main(und(phantom, tmp_path / "a", "--steps", 1, "--boards", "paper"))
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train_und.main(und(phantom, tmp_path / "b", "--steps", 2, "--boards", "tensorboard"))
    events = EventAccumulator(str(tmp_path / "b" / "tensorboard")).Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx(column(tmp_path / "b", "loss"))


def poison(monkeypatch, *calls):
    """Make the loss of these calls (counted from 1, evaluations included) not a number."""
    count, real = [0], flow.flow_loss

    def flow_loss(v, target):
        count[0] += 1
        return real(v, target) * (float("nan") if count[0] in calls else 1)
    monkeypatch.setattr(flow, "flow_loss", flow_loss)


def test_a_step_without_numbers_is_skipped_and_repeated(phantom, stage2, tmp_path, monkeypatch):
    """Step 2 leaves everything as it was; a run resumed before it does the same again, bit for bit."""
    line = lambda out, *more: gen(phantom, out, stage2, "--repa", 0, "--save-every", 1, "--keep", 9, *more)
    poison(monkeypatch, 2)
    train_gen.main(line(tmp_path / "one", "--steps", 4))
    part = lambda step, name="model": tensors(tmp_path / "one" / f"{step:08d}", name)
    assert identical(part(1), part(2)) and identical(part(1, "ema"), part(2, "ema")) and not identical(part(2), part(3))
    rows = {row["step"]: row for row in log(tmp_path / "one") if "mse" in row}
    assert rows[2]["mse"] is None and len(rows[2]["skipped"]) == 4 and "skipped" not in rows[3]

    monkeypatch.undo()
    train_gen.main(line(tmp_path / "two", "--steps", 1))
    poison(monkeypatch, 1)
    train_gen.main(line(tmp_path / "two", "--steps", 4))
    assert identical(tensors(tmp_path / "one"), tensors(tmp_path / "two"))
    assert identical(optimizer(tmp_path / "one"), optimizer(tmp_path / "two"))


def test_too_many_in_a_row_end_the_run(phantom, stage2, tmp_path, monkeypatch):
    poison(monkeypatch, *range(2, 99))
    with pytest.raises(InputError, match="3 steps in a row; the samples of the last: train-"):
        train_gen.main(gen(phantom, tmp_path, stage2, "--repa", 0, "--steps", 9, "--save-every", 1, "--keep", 9, "--max-skipped", 3))
    assert identical(tensors(tmp_path / "00000001"), tensors(checkpoint.newest(tmp_path)))


def wait_for(path, seconds=60):
    end = time.time() + seconds
    while not path.exists():
        assert time.time() < end, f"no {path}"
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_with_0(phantom, tmp_path, number):
    line = und(phantom, tmp_path, "--steps", 3000)
    run = subprocess.Popen([sys.executable, str(ROOT / "train_und.py"), *line], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                           text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(tmp_path / "log.jsonl")
    run.send_signal(number)
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    step = checkpoint.read_config(checkpoint.newest(tmp_path))["step"]
    assert 0 < step < 3000 and f"{step} of 3000 steps" in out and log(tmp_path)[-1]["step"] == step


def test_two_processes_agree_to_stop(phantom, tmp_path):
    """A signal to one rank alone: both stop after the same step, and the checkpoint is whole."""
    line = und(phantom, tmp_path, "--steps", 3000, "--micro-batch", 2)
    run = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port",
                            str(29000 + os.getpid() % 500), str(ROOT / "train_und.py"), *line], stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    wait_for(tmp_path / "log.jsonl")
    ranks = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(ranks[1]), signal.SIGTERM)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 0, err[-2000:]
    assert 0 < checkpoint.read_config(checkpoint.newest(tmp_path))["step"] < 3000


def test_signals_mean_what_they_meant_afterwards(phantom, tmp_path):
    before = signal.getsignal(signal.SIGINT)
    train_und.main(und(phantom, tmp_path, "--steps", 1))
    assert signal.getsignal(signal.SIGINT) is before
