"""However a run is cut into processes, micro-batches and pieces of time, it is the same run.

Twenty steps without warm-up. Single processes run in this one with --threads 1, which is what those
under torchrun have.
"""
import shutil

import pytest

import weights
from tiny_runs import MAIN, SCRIPT, log, optimizer, same_run, tensors
from weights import checkpoint

pytestmark = pytest.mark.slow

# name -> (processes, samples of a micro-batch); all have batches of 8
CUTS = {"eight micro-batches": (1, 1), "two ranks": (2, 4), "two ranks, four each": (2, 1)}
RANKS = [name for name, (processes, _) in CUTS.items() if processes == 2]
KEYS = "vision.blocks.0.qkv.bias"


@pytest.fixture(scope="module", params=[1, 2])
def runs(request, line, fork, tmp_path_factory):
    """-> stage, directory that holds one run of the same twenty steps for each of CUTS."""
    stage = request.param
    root = tmp_path_factory.mktemp("same")
    started = []
    for name, (processes, micro) in CUTS.items():
        words = line(stage, root / name, "--micro-batch", micro)
        if processes == 1:
            MAIN[stage](words)
        else:
            (root / f"gradients of {name}").mkdir()
            gradients = root / f"gradients of {name}"
            started.append(fork(SCRIPT[stage], words, processes, GRADIENTS=gradients))
    for run in started:
        run.finish()
    return stage, root


def losses(run):
    """{(step, name): value} of everything in the log that is a loss."""
    names = ("loss", "mse", "repa", "val_loss", "val_mse")
    return {(line["step"], name): line[name] for line in log(run) for name in names if name in line}


def comparable(run):
    """The weights of a run by name, without those that only rounding moves.

    The keys' bias of the vision tower adds one number to all scores of a query, which the softmax
    takes away again, so its gradient is 0. What is computed is the rounding of that 0, and AdamW,
    whose eps of 1e-15 is below it, makes whole steps of it. Nothing depends on this bias, and
    `test_what_only_rounding_moves` holds it to that. UniX's own keys are normed, so theirs counts.
    """
    weights = tensors(run)
    q, _, v = weights.pop(KEYS).chunk(3)
    return {**weights, f"{KEYS}.q": q, f"{KEYS}.v": v}


def close_runs(run, reference):
    """The same losses to 1e-6, the same weights to 1e-5, both relative."""
    ours, theirs = losses(run), losses(reference)
    assert ours.keys() == theirs.keys()
    assert len(ours) >= 21
    for key, value in theirs.items():
        assert abs(ours[key] - value) <= 1e-6 * max(1, abs(value)), key
    ours, theirs = comparable(run), comparable(reference)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        error = (ours[name] - value).norm() / value.norm().clamp(min=1e-12)
        assert error <= 1e-5, name


@pytest.mark.parametrize("name", CUTS)
def test_processes_and_accumulation_are_the_same_run(runs, alone, name):
    stage, root = runs
    close_runs(root / name, alone[stage])


@pytest.mark.parametrize("name", CUTS)
def test_what_only_rounding_moves(runs, alone, name):
    """The gradient of what `comparable` leaves out is a rounded 0, a millionth of its neighbour."""
    stage, root = runs
    if stage == 2:
        return                              # frozen there
    names = [name for name, _ in weights.load(alone[1])[0].named_parameters()]
    squares = optimizer(root / name)[f"0.{names.index(KEYS):04d}.exp_avg_sq"]
    _, keys, values = squares.sqrt().chunk(3)
    assert keys.max() < 1e-5 * values.max()


@pytest.mark.parametrize("name", RANKS)
def test_gradients_and_weights_are_equal_on_all_ranks(runs, name):
    stage, root = runs
    hashes = [(root / f"gradients of {name}" / f"rank{rank}").read_text() for rank in (0, 1)]
    assert hashes[0] == hashes[1]
    assert len(set(hashes[0].splitlines())) == 20


def test_another_number_of_processes_goes_on(runs, alone, line, tmp_path):
    """Ten steps of two processes, ten of one."""
    stage, root = runs
    run = shutil.copytree(root / "two ranks", tmp_path / "run")
    for later in ("00000015", "00000020"):
        shutil.rmtree(run / later)
    MAIN[stage](line(stage, run, "--micro-batch", 4))
    assert (run / "00000020").exists()
    close_runs(run, alone[stage])


def test_a_sharded_optimizer_makes_the_same_steps(line, fork, tmp_path):
    """Two processes that share AdamW's state, or have a copy each; then one alone goes on."""
    for name, more in (("whole", []), ("shared", ["--shard"])):
        words = line(1, tmp_path / name, "--steps", 3, "--micro-batch", 4, *more)
        fork(SCRIPT[1], words, 2).finish(0)
        MAIN[1](line(1, tmp_path / name, "--steps", 4))
    same_run(tmp_path / "shared", tmp_path / "whole")


# ---- killed and resumed = uninterrupted, bit for bit ----

# moments of a kill, one after another, each in the run that goes on from the one before, and the
# newest checkpoint that is there afterwards
KILLS = [
    ("step::3", None),                          # there is no checkpoint yet, but a log
    ("os.rename:.tmp-00000005:1", None),        # the first checkpoint is written, without its name
    ("open:.tmp-00000010/config.json:1", 5),
    ("shutil.rmtree:00000005:1", 15),           # 15 has its name, 5 is to go
    ("step::3", 15),                            # after two lines of the log since 15, which are cut
]


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_at_chosen_moments(stage, line, alone, fork, tmp_path):
    run = tmp_path / "run"
    words = line(stage, run, "--keep", 2)
    for moment, newest in KILLS:
        fork(SCRIPT[stage], words, KILL=moment).finish(-9)
        if newest is None:
            assert not checkpoint.checkpoints(run)
        else:
            assert checkpoint.newest(run).name == f"{newest:08d}"
    MAIN[stage](words)
    same_run(run, alone[stage])
