"""bench/table5.py: the five rows of Table 5, what each of them trains, and that no split leaks."""
import json
import shutil

import pytest
import torch

import weights
from bench import table5
from common.cli import InputError, override
from common.packed import Packed
from helpers import close
from mimic.leaks import refuse_leak
from model import is_generation
from tiny_runs import COMMON, column, optimizer, tensors
from train_gen import GenStep
from train_und import UndStep
from training.batches import Samples

# understanding : generation -> whether the understanding set is trained, samples to read for four
ROWS = {"0:1-frozen": (False, 0), "1:1": (True, 4), "1:2": (True, 2), "1:4": (True, 1),
        "0:1": (True, 0)}


def line(name, data, out, init, *more):
    """A row's own preset, made small; the learning rate is the preset's."""
    words = f"--preset table5-{name} --size 32 --batch-size 4 --micro-batch 4 --steps 3".split()
    places = ["--data", str(data), "--out", str(out), "--init", str(init)]
    return [*COMMON, *words, *places, *map(str, more)]


# the fast suite runs one row of each kind: nothing, all, or some of understanding is trained
FAST = ("0:1-frozen", "1:2", "0:1")
RUNS = [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in ROWS]


@pytest.fixture(scope="module", params=RUNS)
def run(request, phantom, stage2, tmp_path_factory):
    """One row, three steps, one process."""
    out = tmp_path_factory.mktemp("row")
    table5.main(line(request.param, phantom, out, stage2))
    return request.param, out


# ---- the rows ----

@pytest.mark.parametrize("name", ROWS)
def test_a_preset_is_a_row_of_table_5(name):
    """From stage 2 without REPA: 256 px, 2e-4, 2,000 steps of 256 images. The phantom's alike."""
    cfg, laptop = (
        override(table5.Table5Config(), ["--preset", f"{prefix}table5-{name}"], "", table5.PRESETS)
        for prefix in ("", "phantom-"))
    trained, to_read = ROWS[name]
    assert (cfg.train_u, cfg.und_share * cfg.batch_size) == (trained, to_read * 64)
    assert (cfg.init, cfg.size, cfg.repa) == ("out/gen256", 256, 0)
    assert (cfg.lr, cfg.steps, cfg.batch_size) == (2e-4, 2000, 256)
    assert (laptop.train_u, laptop.und_share) == (cfg.train_u, cfg.und_share)
    assert (laptop.init, laptop.size) == ("out/phantom/gen64", 64)


def test_what_a_row_trains(run, stage2):
    """Every row every generation tensor; understanding as far as something reaches it."""
    name, out = run
    before, now = tensors(stage2), tensors(out)
    changed = {key for key in now if not torch.equal(now[key], before[key])}
    understanding = {key for key in now if not is_generation(key)}
    assert now.keys() - understanding <= changed
    assert tensors(out, "ema").keys() >= changed

    # the gradient of the bias of keys is zero by construction: a softmax ignores a constant
    bias = {key for key in understanding if key.endswith("heads.k.bias")}
    silent = ("vision.", "connector.", "lm_head.", "norm_u.", "layers.1.u.mlp", "layers.1.u.norm2",
              "layers.1.u.heads.o")
    idle = {key for key in understanding if key.startswith(silent)}
    if name == "0:1-frozen":
        assert not changed & understanding
    elif name == "0:1":
        first_layer = {key for key in understanding if key.startswith("layers.0.u")}
        assert not changed & idle and not idle & tensors(out, "ema").keys()
        assert first_layer | {"embed.weight"} <= changed | bias
    else:
        assert understanding <= changed | bias


def test_the_loss_of_reading_is_logged_where_something_is_read(run):
    name, out = run
    _, to_read = ROWS[name]
    assert len(column(out, "mse")) == 3
    assert len(column(out, "ce")) == (3 if to_read else 0)


@pytest.mark.slow
def test_a_row_on_two_processes(run, phantom, stage2, tmp_path, fork):
    """The same losses as on one; what gets no gradient is named once."""
    name, out = run
    if name == "1:4":
        pytest.skip("a quarter of two images is no sample")
    words = line(name, phantom, tmp_path, stage2, "--micro-batch", 2)
    printed, _ = fork("bench/table5.py", words, ranks=2).finish()
    for field in ("mse", "norm", "ce"):
        assert column(tmp_path, field) == pytest.approx(column(out, field), rel=1e-5)
    times = printed.count("without a gradient, so not trained: vision.positions, ")
    assert times == (1 if name == "0:1" else 0)


# ---- gradients ----

def test_what_gets_no_gradient_is_named_exactly(stage2):
    """After drawing alone, the parameters without a gradient are those that `freeze` names."""
    model, _, _ = weights.load(stage2)
    _, cache = model.prefill_text(torch.randint(4, 100, (2, 9)))
    model.velocity(torch.randn(2, 4, 4, 4), torch.rand(2), cache).square().sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    table5.freeze(table5.Table5Config(train_u=True, und_share=0.0), model)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == silent


def test_the_gradient_is_that_of_both_losses_with_weight_1(phantom, stage2, tmp_path):
    """Of one step of 1:1, against both losses on the same samples, written out here.

    A tenth of AdamW's first step is its first average: (1 - 0.9) times the gradient.
    """
    table5.main(line("1:1", phantom, tmp_path, stage2, "--steps", 1, "--clip", 1e9))
    state = optimizer(tmp_path)

    model, vae, tokenizer = weights.load(stage2)
    cfg = table5.Table5Config(text_dropout=0.1)
    keys = [(0, i) for i in range(4)]
    draw_from = Samples(Packed(phantom, "gen", 32, "train"), tokenizer, 256, 0, 4, (4, 4, 4), 0.1)
    read_from = Samples(Packed(phantom, "und", 64, "train"), tokenizer, 256, 0, 4)
    mse, _ = GenStep(model, vae, None, None, cfg)(Samples.collate([draw_from[k] for k in keys]))
    to_read = Samples.collate([read_from[key] for key in keys])
    ce = UndStep(model)(to_read)
    (mse.mean() + ce / len(to_read.answers)).backward()
    for n, p in enumerate(model.parameters()):
        close(state[f"0.{n:04d}.exp_avg"] * 10, p.grad, 1e-4)


# ---- what is refused ----

def test_patients_whom_the_other_task_holds_out_are_refused(phantom, stage2, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    refuse_leak(data, 64, 32)

    # a patient of the reading task's test split is put into what drawing trains on
    rows = (data / "und-64" / "00000.jsonl").read_text().splitlines()
    held_out = next(row for row in map(json.loads, rows) if row["split"] == "test")
    path = data / "gen-32" / "00000.jsonl"
    rows = [json.loads(row) for row in path.read_text().splitlines()]
    next(row for row in rows if row["split"] == "train")["subject"] = held_out["subject"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    words = "1 patients whom one task trains on.*gen-split official"
    with pytest.raises(InputError, match=words):
        table5.main(line("1:4", data, tmp_path / "out", stage2))
    # harmless where nothing is read
    assert table5.samples_to_read(table5.Table5Config(und_share=0.0), None, None) is None


@pytest.mark.parametrize("sentence, words", [
    ("choose a row", ""),
    ("needs --train-u", "--preset table5-1:2 --no-train-u"),
    ("no whole number", "--preset table5-1:2 --und-share 0.3"),
    ("0 or more", "--preset table5-1:2 --und-share -1"),
    ("without REPA", "--preset table5-1:2 --repa 0.5"),
    ("no preset 'table5-2:1'", "--preset table5-2:1"),
])
def test_rows_that_make_no_sense(sentence, words):
    with pytest.raises(InputError, match=sentence):
        table5.main(words.split())
