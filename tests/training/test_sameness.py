"""However a run is cut into processes, micro-batches and pieces of time, it is the same run.

Twenty steps without warm-up, in float32, on reports of 5 to 162 tokens, in epochs that end in the middle of a
batch. Single processes run in this one with --threads 1, which is what those under torchrun have.
"""
import json
import shutil

import pytest
import torch

from weights import checkpoint
import train_gen
import train_und
import weights
from training.log import TIMED
from test_train import gen, identical, optimizer, stage1, tensors, und      # noqa: F401 (fixture)

SCRIPT = {1: "train_und.py", 2: "train_gen.py"}
MAIN = {1: train_und.main, 2: train_gen.main}
SAME = "--threads 1 --batch-size 8 --micro-batch 8 --lr 2e-3 --steps 20 --save-every 5 --keep 9".split()


@pytest.fixture(autouse=True, scope="module")
def threads():
    """--threads speaks to this process too: the other tests get theirs back."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def line(stage, out, place, *more):
    data, init, vae = place
    parts = und(data, out) if stage == 1 else gen(data, out, init, "--vae", vae)
    return [*parts, *SAME, *map(str, more)]


@pytest.fixture(scope="module")
def place(uneven, stage1, vae_run):
    return uneven, stage1, vae_run


def story(run):
    """The log but for what measures time."""
    rows = [json.loads(text) for text in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]


def losses(run):
    """{(step, name): value} of everything in the log that is a loss."""
    names = ("loss", "mse", "repa", "val_loss", "val_mse")
    return {(row["step"], k): v for row in story(run) for k, v in row.items() if k in names}


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory):
    """stage -> the twenty steps of one process without accumulation."""
    done = {stage: tmp_path_factory.mktemp("alone") for stage in MAIN}
    for stage, run in done.items():
        MAIN[stage](line(stage, run, place))
    return done


@pytest.fixture(scope="module", params=[1, 2])
def runs(request, place, alone, fork, tmp_path_factory):
    """-> stage, directory of more runs of the same twenty steps."""
    stage, root = request.param, tmp_path_factory.mktemp("same")
    for name in ("ranks-two", "ranks-two-four"):
        (root / name).mkdir()
    started = [fork(SCRIPT[stage], line(stage, root / name, place, "--micro-batch", micro), 2,
                    GRADIENTS=root / f"ranks-{name}") for name, micro in (("two", 4), ("two-four", 1))]
    MAIN[stage](line(stage, root / "one-eight", place, "--micro-batch", 1))
    for run in started:
        run.finish()
    return stage, root


def comparable(run):
    """The weights of a run by name, without those that only rounding moves.

    The keys' bias of the vision tower adds one number to all scores of a query, which the softmax takes away again, so its
    gradient is 0. What is computed is the rounding of that 0, and AdamW, whose eps of 1e-15 is below it, makes whole steps of
    it. Nothing depends on this bias, and `test_what_only_rounding_moves` holds it to that. UniX's own keys are normed, so
    their bias counts.
    """
    found = tensors(run)
    for name in [name for name in found if name.startswith("vision.") and name.endswith("qkv.bias")]:
        q, _, v = found.pop(name).chunk(3)
        found[f"{name}.q"], found[f"{name}.v"] = q, v
    return found


def same(run, reference):
    """The same losses to 1e-6, the same weights to 1e-5, both relative."""
    ours, theirs = losses(run), losses(reference)
    assert ours.keys() == theirs.keys() and len(ours) >= 21
    apart = {key: (ours[key], theirs[key]) for key in ours if abs(ours[key] - theirs[key]) > 1e-6 * max(1, abs(theirs[key]))}
    assert not apart
    ours, theirs = comparable(run), comparable(reference)
    assert ours.keys() == theirs.keys()
    error = {name: float((ours[name] - theirs[name]).norm() / theirs[name].norm().clamp(min=1e-12)) for name in ours}
    assert max(error.values()) <= 1e-5, sorted(error.items(), key=lambda item: -item[1])[:5]


@pytest.mark.parametrize("name", ["one-eight", "two", "two-four"])
def test_processes_and_accumulation_are_the_same_run(runs, alone, name):
    stage, root = runs
    same(root / name, alone[stage])


def test_what_only_rounding_moves(runs, alone):
    """The gradient of what `comparable` leaves out is a rounded 0: a millionth of that of the values beside it."""
    stage, root = runs
    if stage == 2:
        assert comparable(root / "two").keys() - tensors(root / "two").keys() == {f"vision.blocks.0.qkv.bias.{x}" for x in "qv"}
        return                              # frozen there
    names = [name for name, _ in weights.load(alone[1])[0].named_parameters()]
    for run in (alone[1], *(root / name for name in ("one-eight", "two", "two-four"))):
        squares = optimizer(run)[f"0.{names.index('vision.blocks.0.qkv.bias'):04d}.exp_avg_sq"].sqrt().chunk(3)
        assert squares[1].max() < 1e-5 * squares[2].max()


@pytest.mark.parametrize("name", ["two", "two-four"])
def test_gradients_and_weights_are_equal_on_all_ranks(runs, name):
    stage, root = runs
    first, second = ((root / f"ranks-{name}" / f"rank{rank}").read_text().splitlines() for rank in (0, 1))
    assert first == second and len(set(first)) == 20


def test_another_number_of_processes_goes_on(runs, alone, place, tmp_path):
    """Ten steps of two processes, ten of one."""
    stage, root = runs
    run = shutil.copytree(root / "two", tmp_path / "run")
    for old in ("00000015", "00000020"):
        shutil.rmtree(run / old)
    MAIN[stage](line(stage, run, place, "--micro-batch", 4))
    assert (run / "00000020").exists()
    same(run, alone[stage])


# ---- killed and resumed = uninterrupted, bit for bit ----

def equal(run, reference):
    assert story(run) == story(reference)
    for part in ("model", "ema"):
        assert identical(tensors(run, part), tensors(reference, part)), part
    assert identical(optimizer(run), optimizer(reference))
    last = [torch.load(checkpoint.newest(r) / "state.pt", weights_only=True) for r in (run, reference)]
    assert [{k: v for k, v in state.items() if k != "optimizers"} for state in last][0] == \
        {k: v for k, v in last[1].items() if k != "optimizers"}
    assert not list(run.glob(".tmp-*"))


KILLS = [                   # at these moments, one after another, each in the run that goes on from the one before
    ("step::3", 0),                         # there is no checkpoint yet, but a log
    ("os.rename:.tmp-00000005:1", 0),       # the first checkpoint is written and has no name yet
    ("open:.tmp-00000010/config.json:1", 5),
    ("shutil.rmtree:00000005:1", 15),       # 15 has its name, 5 is to go
    ("step::3", 15),                        # after two lines of the log since 15, which are cut
]


@pytest.mark.parametrize("stage", [1, 2])
def test_killed_at_chosen_moments(stage, place, alone, fork, tmp_path):
    run = tmp_path / "run"
    words = line(stage, run, place, "--keep", 2)
    for when, newest in KILLS:
        fork(SCRIPT[stage], words, KILL=when).finish(-9)
        if newest:
            assert checkpoint.newest(run).name == f"{newest:08d}"
        else:
            assert not checkpoint.checkpoints(run)
    MAIN[stage](words)
    equal(run, alone[stage])
