"""Table 5: drawing and reading trained together, by train_gen.py's presets, on a tiny phantom."""
import json
import os
import shutil
import subprocess
import sys

import pytest

pytest.skip("Table 5 moves to bench/table5.py", allow_module_level=True)
import torch

from bench import replication as findings
import train_gen
from common.processes import InputError
from helpers import ROOT, close
from mimic.check import refuse_leak
from model import is_generation
from test_train import COMMON, column, log, optimizer, stage1, stage2, tensors        # noqa: F401 (fixtures)

ROWS = {"0:1-frozen": (False, 0), "1:1": (True, 4), "1:2": (True, 2), "1:4": (True, 1), "0:1": (True, 0)}   # trained, und samples


def row(name, data, out, init, *more):
    """A row's own preset, made small; lr and warm-up as the preset has them."""
    common = [word for word in COMMON if word not in ("--warmup", "0")]
    return [*common, "--preset", f"table5-{name}", "--data", str(data), "--out", str(out), "--init", str(init), "--size", "32",
            "--batch-size", "4", "--micro-batch", "4", "--steps", "3", *map(str, more)]


@pytest.fixture(scope="module", params=ROWS)
def run(request, phantom, stage2, tmp_path_factory):
    """One row, three steps, one process."""
    out = tmp_path_factory.mktemp("row")
    train_gen.main(row(request.param, phantom, out, stage2))
    return request.param, out


def test_the_presets_are_table_5():
    """Facts §7: from stage 2 without REPA, 256 px, 2e-4, 2,000 steps, 256 images and 256, 128, 64 or 0 reading samples."""
    for name, (trained, samples) in ROWS.items():
        cfg = train_gen.settings(["--preset", f"table5-{name}"])
        assert (cfg.train_u, cfg.und_share * cfg.batch_size) == (trained, samples * 64), name
        assert (cfg.init, cfg.vae, cfg.size, cfg.lr, cfg.steps, cfg.repa, cfg.batch_size) == ("out/gen256", "", 256, 2e-4, 2000, 0, 256)


def test_what_a_row_trains(run, stage2):
    name, out = run
    before, now = {**tensors(stage2), **tensors(stage2, "ema")}, tensors(out)
    changed = {key for key in now if not torch.equal(now[key], before[key])}
    understanding = {key for key in now if not is_generation(key)}
    assert now.keys() - understanding <= changed, "every row trains every generation tensor"
    assert tensors(out, "ema").keys() >= changed
    idle = {key for key in understanding if key.startswith(("vision.", "connector.", "lm_head.", "norm_u.", "layers.1.u.mlp",
                                                            "layers.1.u.norm2", "layers.1.u.heads.o"))}
    if name == "0:1-frozen":
        assert not changed & understanding
    elif name == "0:1":         # drawing reaches all of the first layer; the queries of the last one get a gradient of zero
        assert not changed & idle and {key for key in understanding if "layers.0.u" in key} <= changed | {"layers.0.u.heads.k.bias"}
        assert "embed.weight" in changed and idle & tensors(out, "ema").keys() == set()
    else:
        assert understanding <= changed | {key for key in understanding if key.endswith("heads.k.bias")}
    assert [("ce" in line) for line in log(out) if "mse" in line] == [name in ("1:1", "1:2", "1:4")] * 3


def test_a_row_on_two_processes(run, phantom, stage2, tmp_path):
    name, out = run
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port",
                           str(28000 + os.getpid() % 500), str(ROOT / "train_gen.py"),
                           *row(name, phantom, tmp_path, stage2, *(["--micro-batch", "2"] if name != "1:4" else
                                                                   ["--batch-size", "8", "--micro-batch", "4"]))],
                          capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in log(tmp_path) if "mse" in line]
    assert len(lines) == 3
    if name != "1:4":           # whose fourth of two images is no sample: a batch twice as large, so another run
        assert lines == [pytest.approx(line, rel=1e-5) for line in log(out) if "mse" in line]
    if name == "0:1":
        assert done.stdout.count("without a gradient, so not trained: vision.positions, ") == 1


def test_what_gets_no_gradient_is_named_exactly(phantom, stage2, tmp_path, monkeypatch):
    """After one backward pass of drawing alone, the parameters without a gradient are those that `freeze` names."""
    model = train_gen.weights.load(stage2)[0]
    x, t, ids = torch.randn(2, 4, 4, 4), torch.rand(2), torch.randint(4, 100, (2, 9))
    _, cache = model.prefill_text(ids)
    model.velocity(x, t, cache).square().sum().backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None}
    train_gen.freeze(train_gen.settings(["--preset", "table5-0:1"]), model)
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == silent


def test_the_joint_gradient_is_the_sum_of_both(phantom, stage2, tmp_path):
    """1:1 against drawing alone: what reading adds is the gradient of stage 1's loss on the same samples (weights 1)."""
    grads = {}
    for name in ("1:1", "0:1"):
        train_gen.main(row(name, phantom, tmp_path / name, stage2, "--steps", 1, "--clip", 1e9))
        state, names = optimizer(tmp_path / name), list(tensors(tmp_path / name, "ema"))
        order = [n for n, _ in train_gen.weights.load(stage2)[0].named_parameters() if n in names]
        grads[name] = {n: state[f"0.{i:04d}.exp_avg"] * 10 for i, n in enumerate(order)}
    import train_und
    from test_train import und
    train_und.main(und(phantom, tmp_path / "und", "--init", stage2, "--steps", 1, "--clip", 1e9))
    model = train_gen.weights.load(stage2)[0]
    order = [n for n, _ in model.named_parameters() if not is_generation(n)]
    read = {n: optimizer(tmp_path / "und")[f"0.{i:04d}.exp_avg"] * 10 for i, n in enumerate(order)}
    for name, both in grads["1:1"].items():
        close(both, grads["0:1"].get(name, 0) + read.get(name, torch.zeros_like(both)), 1e-4)


def test_patients_of_the_other_tasks_test_split_are_refused(phantom, stage2, tmp_path):
    data = shutil.copytree(phantom, tmp_path / "data")
    refuse_leak(data, 64, 32)
    path = data / "gen-32" / "00000.jsonl"
    held_out = next(json.loads(line) for line in (data / "und-64" / "00000.jsonl").read_text().splitlines() if '"test"' in line)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    next(line for line in lines if line["split"] == "train")["subject"] = held_out["subject"]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match="1 patients whom one task trains on.*gen-split official"):
        train_gen.main(row("1:4", data, tmp_path / "out", stage2))
    train_gen.main(row("0:1-frozen", data, tmp_path / "out", stage2, "--steps", 1))      # harmless while reading is frozen


@pytest.mark.parametrize("words, more", [
    ("needs --train-u", ("--no-train-u",)), ("no whole number", ("--und-share", 0.3)), ("no whole number", ("--und-share", -1)),
    ("--repa-encoder", ("--repa", 0.5, "--repa-encoder="))])
def test_rows_that_make_no_sense(words, more):
    with pytest.raises(InputError, match=words):
        train_gen.settings(["--preset", "table5-1:2", *map(str, more)])


def test_findings_say_what_they_need(tmp_path):
    with pytest.raises(InputError, match="gen64; demo.sh makes it"):
        findings.main(["--out", str(tmp_path)])


def test_findings_run_every_row_with_every_seed(tmp_path):
    runs = findings.runs_of(findings.FindingsConfig(seeds=2))
    assert len(runs) == 14 and len({place for place, _ in runs.values()}) == 14
    for place, line in runs.values():
        cfg = train_gen.settings(list(map(str, line[1:])))
        assert cfg.out == str(place) and cfg.size == 64 and cfg.data == "datasets/phantom"
