"""However a run is cut into processes, micro-batches and pieces of time, it is the same run."""
import shutil

import pytest
import torch

from helpers import close
from tiny_runs import MAIN, SCRIPT, column, gradients, identical, log, same_run, tensors
from weights import checkpoint

# The keys' bias of the vision tower adds one number to all scores of a query, which the softmax
# takes away again, so its gradient is 0. What is computed is the rounding of that 0, and AdamW,
# whose eps of 1e-15 is below it, makes whole steps of it. Nothing depends on this bias.
KEYS = "vision.blocks.0.qkv.bias"
LOSSES = {1: ("loss", "val_loss"), 2: ("mse", "repa", "val_mse")}


@pytest.mark.parametrize("stage", [1, 2])
def test_micro_batches_and_recomputing_are_the_same_step(stage, line, stage2, tmp_path):
    """Reports of different length in different micro-batches: every token weighs the same."""
    def train(name, *more):
        if stage == 2:
            more = ("--init", stage2, *more)
        MAIN[stage](line(stage, tmp_path / name, "--steps", 1, *more))
        return tmp_path / name

    whole, recomputed = train("whole"), train("recomputed", "--recompute")
    assert identical(tensors(whole), tensors(recomputed)) and log(whole) == log(recomputed)
    for micro in (1, 2):
        parts = train(f"parts of {micro}", "--micro-batch", micro)
        close(gradients(parts), gradients(whole))
        for name in LOSSES[stage]:
            assert column(parts, name) == pytest.approx(column(whole, name), rel=1e-5), name


# ---- two processes: twenty steps without warm-up, micro-batches of one sample ----

@pytest.fixture(scope="module", params=[1, 2])
def two_ranks(request, line, fork, tmp_path_factory):
    """-> stage, the run, the directory of the gradients that its ranks saw."""
    stage = request.param
    run, seen = tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("gradients")
    words = line(stage, run, "--micro-batch", 1)
    fork(SCRIPT[stage], words, 2, GRADIENTS=seen).finish()
    return stage, run, seen


def close_runs(stage, run, reference):
    """The same losses to 1e-6, the same weights to 1e-5, both relative."""
    for name in LOSSES[stage]:
        theirs = column(reference, name)
        assert len(theirs) in (1, 20)
        assert column(run, name) == pytest.approx(theirs, rel=1e-6, abs=1e-6), name
    ours, theirs = tensors(run), tensors(reference)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if name == KEYS:                # queries and values alone
            ours[name], value = (torch.cat(t.chunk(3)[::2]) for t in (ours[name], value))
        close(ours[name], value, 1e-5)


@pytest.mark.slow
def test_two_processes_and_accumulation_are_the_same_run(two_ranks, alone):
    stage, run, seen = two_ranks
    close_runs(stage, run, alone[stage])
    hashes = [(seen / f"rank{rank}").read_text() for rank in (0, 1)]    # gradients and weights
    assert hashes[0] == hashes[1] and len(set(hashes[0].splitlines())) == 20


@pytest.mark.slow
def test_another_number_of_processes_goes_on(two_ranks, alone, line, tmp_path):
    """Ten steps of two processes, ten of one."""
    stage, run, _ = two_ranks
    run = shutil.copytree(run, tmp_path / "run")
    for later in ("00000015", "00000020"):
        shutil.rmtree(run / later)
    MAIN[stage](line(stage, run, "--micro-batch", 4))
    assert (run / "00000020").exists()
    close_runs(stage, run, alone[stage])


@pytest.mark.slow
def test_sharding_makes_the_same_steps_and_the_same_bytes(line, fork, tmp_path):
    """Two processes that share AdamW's state and the average, or have a copy each. They validate,
    go on from their checkpoint, and then one alone goes on.
    """
    for name, more in (("whole", []), ("shared", ["--shard"])):
        words = line(1, tmp_path / name, "--micro-batch", 4, "--eval-every", 2, "--sample-every",
                     2, *more)
        for steps in (3, 5):
            fork(SCRIPT[1], [*words, "--steps", str(steps)], 2).finish()
        MAIN[1](line(1, tmp_path / name, "--steps", 6))
    same_run(tmp_path / "shared", tmp_path / "whole")
    for path in (tmp_path / "whole").rglob("*.safetensors"):
        other = tmp_path / "shared" / path.relative_to(tmp_path / "whole")
        assert path.read_bytes() == other.read_bytes(), path.name
    sheets = {path.name for path in (tmp_path / "shared" / "samples").iterdir()}
    assert {"00000002.png", "00000004.png"} <= sheets


# moments of a kill, one after another, each in the run that goes on from the one before, and the
# newest checkpoint that is there afterwards
KILLS = [
    ("step::3", None),                          # there is no checkpoint yet, but a log
    ("os.rename:.tmp-00000005:1", None),        # the first checkpoint is written, without its name
    ("open:.tmp-00000010/config.json:1", 5),
    ("shutil.rmtree:00000005:1", 15),           # 15 has its name, 5 is to go
    ("step::3", 15),                            # after two lines of the log since 15, which are cut
]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_killed_at_chosen_moments_the_run_is_the_same_bit_for_bit(
        stage, line, alone, fork, tmp_path):
    run = tmp_path / "run"
    words = line(stage, run, "--keep", 2)
    for moment, newest in KILLS:
        fork(SCRIPT[stage], words, KILL=moment).finish(-9)
        names = [path.name for path in checkpoint.checkpoints(run)]
        assert names[-1:] == ([] if newest is None else [f"{newest:08d}"])
    MAIN[stage](words)
    same_run(run, alone[stage])
