"""train_und.py and train_gen.py on a tiny phantom: they learn, resume exactly, and see no processes or micro-batches.

One chain of runs, as a user would make it: stage 1 -> stage 2 with REPA -> stage 3. Everything in float32 on the CPU.
"""
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from weights import checkpoint
from training import log as runs
import train_gen
import train_und
from training import latents
import weights
from common.processes import InputError
from helpers import ROOT, close
from model import is_generation
from vae import VAE, VAEConfig

COMMON = "--device cpu --dtype float32 --warmup 0 --log-every 1 --eval-every 1000 --save-every 1000 --ema 0.9 --no-shard --no-recompute".split()
UND = ("--init= --n-layer 2 --n-head 2 --n-embd 32 --n-inner 64 --vit-layer 1 --vit-head 2 --vit-embd 32 --image-size 64 "
       "--repa-layer 1 --max-text 256 --batch-size 4 --micro-batch 4 --lr 3e-3").split()
GEN = "--size 32 --max-latent-size 8 --repa-inner 32 --repa-encoder= --vae= --batch-size 4 --micro-batch 4 --lr 3e-3".split()


def und(data, out, *more):
    return [*UND, *COMMON, "--data", str(data), "--out", str(out), *map(str, more)]


def gen(data, out, init, *more):
    return [*GEN, *COMMON, "--data", str(data), "--out", str(out), "--init", str(init), *map(str, more)]


def log(run):
    """The lines of a run without the fields that may differ."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in runs.TIMED} for row in rows]


def column(run, name):
    return [row[name] for row in log(run) if name in row]


def tensors(run, part="model"):
    return load_file(checkpoint.newest(run) / f"{part}.safetensors")


def identical(a, b):
    assert a.keys() == b.keys()
    return all(torch.equal(a[k], b[k]) for k in a)


def optimizer(run):
    state = torch.load(checkpoint.newest(run) / "state.pt", weights_only=True)
    return {f"{n}.{i:04d}.{k}": v for n, one in enumerate(state["optimizers"]) for i, part in one["state"].items()
            for k, v in part.items()}


def gradients(run):
    """One vector of the first moments: after one step a tenth of the (clipped) gradient."""
    return torch.cat([v.flatten() for k, v in sorted(optimizer(run).items()) if k.endswith("exp_avg")])


@pytest.fixture(scope="module")
def stage1(phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("und")
    train_und.main(und(phantom, out, "--steps", 30))
    return out


@pytest.fixture(scope="module")
def stage2(phantom, stage1, vae_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("gen32")
    train_gen.main(gen(phantom, out, stage1, "--vae", vae_run, "--steps", 30, "--batch-size", 8, "--micro-batch", 8,
                       "--eval-every", 1))
    return out


@pytest.fixture(scope="module")
def stage3(phantom, stage2, tmp_path_factory):
    out = tmp_path_factory.mktemp("gen64")
    train_gen.main(gen(phantom, out, stage2, "--stage", 3, "--size", 64, "--repa", 0, "--steps", 4))
    return out


# ---- the chain ----

def test_rad_dino_is_the_target_of_repa(phantom, stage1, vae_run, tmp_path):
    """An encoder of its own, from a Hugging Face directory, at its own size and at --repa-size."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    transformers.Dinov2Model(transformers.Dinov2Config(hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=70,
                                                       patch_size=14, mlp_ratio=2)).save_pretrained(tmp_path / "dino")
    losses = []
    for more in ([], ["--repa-size", 28]):
        out = tmp_path / f"gen{len(more)}"
        train_gen.main(gen(phantom, out, stage1, "--vae", vae_run, "--steps", 2, "--repa-encoder", tmp_path / "dino", *more))
        losses.append(column(out, "repa"))
        assert tensors(out, "projector")["mlp.4.weight"].shape[0] == 48
        assert not any("encoder.layer" in name for name in tensors(out))
    assert losses[0] != losses[1] and all(-1 <= loss <= 1 and loss != 0 for run in losses for loss in run)



def test_stage_1_learns(stage1):
    losses = column(stage1, "loss")
    assert len(losses) == 30 and sum(losses[-5:]) < 0.75 * sum(losses[:5])
    config = checkpoint.read_config(checkpoint.newest(stage1))
    assert config["stage"] == 1 and config["step"] == 30 and not config["model"]["generation"]
    assert not any(".g." in name or name.startswith(("norm_g", "latent", "time")) for name in tensors(stage1))
    assert len(column(stage1, "val_loss")) == 1


def test_stage_2_learns(stage2):
    """Measured on the validation images, whose times and noise are fixed: a step's own error varies by a tenth."""
    error, align = column(stage2, "val_mse"), column(stage2, "repa")
    assert len(column(stage2, "mse")) == len(error) == 30 and error[-1] < 0.96 * error[0]
    assert sum(align[-5:]) < sum(align[:5]) - 0.5 and min(align) >= -1
    assert (checkpoint.newest(stage2) / "projector.safetensors").exists()


def test_stage_3_needs_no_more_than_stage_2(stage3, stage2):
    assert [row["repa"] for row in log(stage3) if "repa" in row] == [0.0] * 4
    assert not (checkpoint.newest(stage3) / "projector.safetensors").exists()
    model, vae, tokenizer = weights.load(stage3)
    assert model.cfg.generation and vae is not None and model.cfg.max_latent_size == 8
    assert checkpoint.read_config(checkpoint.newest(stage3))["stage"] == 3
    assert tensors(stage3).keys() == tensors(stage2).keys()


def test_understanding_and_vae_stay_bit_for_bit(stage1, stage2, stage3, vae_run):
    """Stage 2 starts from the averaged weights of stage 1; understanding never changes after that."""
    start = {**tensors(stage1), **tensors(stage1, "ema")}
    for run in (stage2, stage3):
        now = tensors(run)
        assert all(torch.equal(now[name], start[name]) for name in start)
        assert set(tensors(run, "ema")) == now.keys() - start.keys()         # all of generation, and nothing else
        assert identical(tensors(run, "vae"), tensors(vae_run, "vae"))
    before, after = tensors(stage2, "ema"), tensors(stage3)
    assert all(not torch.equal(before[name], after[name]) for name in before), "stage 3 trains every generation tensor"


def test_generation_starts_as_the_copy(phantom, stage1, vae_run, tmp_path):
    """With a learning rate of nothing, stage 2 is stage 1 with a copied set and a zero output."""
    train_gen.main(gen(phantom, tmp_path, stage1, "--vae", vae_run, "--steps", 1, "--lr", 0))
    now = tensors(tmp_path)
    for name in [name for name in now if ".g." in name]:
        assert torch.equal(now[name], now[name.replace(".g.", ".u.")]), name
    assert torch.equal(now["norm_g.weight"], now["norm_u.weight"]) and not now["latent_out.weight"].any()
    # v = 0: the error is that of noise - x_0 against nothing
    assert column(tmp_path, "mse")[0] > 1


# ---- resumed = uninterrupted ----

@pytest.mark.parametrize("stage, how", [(1, "adamw"), (1, "muon"), (2, "muon"), (3, "adamw")])
def test_resumed_is_uninterrupted(stage, how, phantom, stage1, stage2, vae_run, tmp_path):
    main = train_und.main if stage == 1 else train_gen.main
    line = {1: lambda out: und(phantom, out),
            2: lambda out: gen(phantom, out, stage1, "--vae", vae_run),
            3: lambda out: gen(phantom, out, stage2, "--stage", 3, "--size", 64, "--repa", 0)}[stage]
    every = ["--save-every", "3", "--eval-every", "3", "--optimizer", how]
    one, two = tmp_path / "one", tmp_path / "two"
    main([*line(one), *every, "--steps", "6"])
    main([*line(two), *every, "--steps", "3"])
    with open(two / "log.jsonl", "a") as file:
        file.write('{"step": 4, "loss": 1, "mse": 1}\n{"step": 5, "lo')         # steps that a kill cut off
    main([*line(two), *every, "--steps", "6"])
    assert log(one) == log(two) and len(log(one)) == 8
    for part in ("model", "ema") + (("vae", "projector") if stage == 2 else ()):
        assert identical(tensors(one, part), tensors(two, part)), part
    assert identical(optimizer(one), optimizer(two))
    assert [p.name for p in checkpoint.checkpoints(two)] == ["00000003", "00000006"]


def test_a_finished_run_is_left_alone(stage1, phantom):
    before = log(stage1), tensors(stage1)
    train_und.main(und(phantom, stage1, "--steps", 30))
    assert log(stage1) == before[0] and identical(tensors(stage1), before[1])


def test_other_settings_are_refused(stage1, phantom):
    with pytest.raises(InputError, match="other settings.*lr"):
        train_und.main(und(phantom, stage1, "--steps", 30, "--lr", 1))


def test_what_is_refused_costs_no_checkpoint(stage1, phantom, tmp_path):
    """--overwrite with a wrong --data, the wrong sizes or a wrong --init leaves the old run as it was."""
    run = shutil.copytree(stage1, tmp_path / "run")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for line in (und(tmp_path / "none", run), und(phantom, run, "--image-size", 32), und(phantom, run, "--n-head", 3),
                 und(phantom, run, "--init", tmp_path / "none")):
        with pytest.raises(InputError):
            train_und.main([*line, "--steps", "30", "--overwrite"])
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    train_und.main(und(phantom, run, "--steps", 1, "--overwrite"))
    assert [p.name for p in checkpoint.checkpoints(run)] == ["00000001"] and len(column(run, "loss")) == 1


def test_fewer_steps_than_were_made_are_refused(stage1, phantom):
    with pytest.raises(InputError, match="30 steps already"):
        train_und.main(und(phantom, stage1, "--steps", 29))


# ---- accumulation and processes: the same samples, the same gradient ----

def lines(stage, phantom, stage2):
    """One step of stage 1 from nothing, or of stage 2 from weights whose output is not zero any more."""
    if stage == 1:
        return "train_und", lambda out, *more: und(phantom, out, "--steps", 1, *more)
    return "train_gen", lambda out, *more: gen(phantom, out, stage2, "--steps", 1, *more)


@pytest.fixture(scope="module", params=[1, 2])
def reference(request, phantom, stage2, tmp_path_factory):
    script, line = lines(request.param, phantom, stage2)
    out = tmp_path_factory.mktemp("reference")
    {"train_und": train_und, "train_gen": train_gen}[script].main(line(out))
    return script, line, out


def same_step(a, b):
    close(gradients(a), gradients(b))
    for x, y in zip(log(a), log(b), strict=True):
        flat = lambda row: {(k, i): n for k, v in row.items() for i, n in enumerate(v if isinstance(v, list) else [v]) if n is not None}
        assert x.keys() == y.keys() and flat(x) == pytest.approx(flat(y), rel=1e-5, abs=1e-5), (x, y)


@pytest.mark.parametrize("micro", [1, 2])
def test_accumulation(reference, tmp_path, micro):
    """Reports of different length in different micro-batches: every token weighs the same."""
    script, line, out = reference
    {"train_und": train_und, "train_gen": train_gen}[script].main(line(tmp_path, "--micro-batch", micro))
    same_step(tmp_path, out)


def test_two_processes(reference, tmp_path):
    script, line, out = reference
    done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port",
                           str(29500 + os.getpid() % 500), str(ROOT / f"{script}.py"), *line(tmp_path, "--micro-batch", 1)],
                          capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-2000:]
    same_step(tmp_path, out)
    assert done.stdout.count("is in ") == 1         # one process speaks


def test_stored_latents(phantom, stage2, vae_run, tmp_path):
    """Posteriors stored instead of encoded as we go: the same draw of them, the same loss to 1e-6."""
    data = tmp_path / "data"
    shutil.copytree(phantom, data)
    train_gen.main(gen(data, tmp_path / "online", stage2, "--steps", 3))
    latents.main(f"--vae {vae_run} --data {data} --sizes 32 --device cpu".split())
    train_gen.main(gen(data, tmp_path / "stored", stage2, "--steps", 3))
    online = column(tmp_path / "online", "mse")
    assert column(tmp_path / "stored", "mse") == pytest.approx(online, rel=1e-6)


# ---- what is missing is said ----

def test_what_is_missing_is_said(phantom, stage1, stage2, vae_run, tmp_path):
    vae, wide = VAE(VAEConfig(ch=8, ch_mult=(1, 1, 1, 2), n_res=1, z_channels=6, embed_dim=6, norm_groups=4)), tmp_path / "wide"
    checkpoint.save(wide, 1, config=weights.describe(vae=vae), tensors={"vae": vae.state_dict()})
    for main, line, words in (
            (train_und.main, und(tmp_path / "none", tmp_path / "a"), "tokenizer.*phantom.prepare"),
            (train_und.main, und(phantom, tmp_path / "b", "--image-size", 32), "und-32.*prepare"),
            (train_und.main, und(phantom, tmp_path / "c", "--init", tmp_path / "none"), "no checkpoint at"),
            (train_und.main, und(phantom, tmp_path / "d", "--micro-batch", 3), "multiple of 3"),
            (train_und.main, und(phantom, tmp_path / "e", "--max-text", 8), "max_text 8"),
            (train_und.main, und(phantom, tmp_path / "f", "--dtype", "float16"), "float16"),
            (train_gen.main, gen(phantom, tmp_path / "g", stage1), "no VAE.*--vae"),
            (train_gen.main, gen(phantom, tmp_path / "h", stage1, "--vae", vae_run, "--stage", 3), "stage 3 starts from stage 2"),
            (train_gen.main, gen(phantom, tmp_path / "i", stage1, "--vae", vae_run, "--size", 128), "128"),
            (train_gen.main, gen(phantom, tmp_path / "j", vae_run), "holds no model"),
            (train_gen.main, ["--stage", "4"], "stages 2 and 3"),
            (train_gen.main, ["--encoder", "x"], "unknown option --encoder"),
            (train_gen.main, gen(phantom, tmp_path / "k", stage2, "--size", 128), "--size 128.*up to 64"),
            (train_gen.main, gen(phantom, tmp_path / "l", stage2, "--vae", wide), "6 latent channels, the model 4")):
        with pytest.raises(InputError, match=words) as error:
            main([*line, "--steps", "1"] if "--steps" not in line else line)
        assert "\n" not in str(error.value)


def test_stage_1_goes_on_from_a_later_stage(phantom, stage2, tmp_path):
    """The generation set is carried along untouched; the understanding set learns."""
    train_und.main(und(phantom, tmp_path / "und", "--init", stage2, "--steps", 2))
    before, after = (dict(weights.load(run)[0].named_parameters()) for run in (stage2, tmp_path / "und"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert {name for name in before if is_generation(name)} <= same and "lm_head.weight" not in same


def test_sizes_that_do_not_fit_are_said(phantom, tmp_path):
    for option, value in (("--n-head", 3), ("--vit-head", 3), ("--repa-layer", 9), ("--n-head", 0), ("--vit-head", 0)):
        with pytest.raises(InputError):
            train_und.main(und(phantom, tmp_path, "--steps", 1, option, value))


def test_text_dropout_makes_the_loss_differ_and_validation_ignores_it(phantom, stage2, tmp_path):
    runs = [tmp_path / name for name in ("never", "always")]
    for run, share in zip(runs, (0, 1)):
        train_gen.main(gen(phantom, run, stage2, "--steps", 1, "--text-dropout", share, "--lr", 0))
    assert column(runs[0], "mse") != column(runs[1], "mse") and column(runs[0], "val_mse") == column(runs[1], "val_mse")


# ---- memory: what is computed again, in chunks, or kept by others gives the same numbers ----

@pytest.mark.parametrize("stage", [1, 2])
def test_recomputing_changes_nothing(phantom, stage1, stage2, tmp_path, stage):
    main, line = {1: (train_und.main, lambda out: und(phantom, out)),
                  2: (train_gen.main, lambda out: gen(phantom, out, stage2))}[stage]
    for name, more in (("plain", []), ("again", ["--recompute"])):
        main([*line(tmp_path / name), "--steps", "3", *more])
    assert identical(tensors(tmp_path / "plain"), tensors(tmp_path / "again")) and log(tmp_path / "plain") == log(tmp_path / "again")


def test_recomputing_saves_memory(tiny):
    """What autograd keeps for backward, in bytes, with every layer recomputed: the layers' inputs, not their insides."""
    def kept(recompute):
        model, sizes = tiny, []
        model.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel() * t.element_size()) or t, lambda t: t):
            hidden, _ = model.prefill_text(torch.zeros(2, 40, dtype=torch.long))
        hidden.sum().backward()
        model.recompute = False
        return sum(sizes)
    assert kept(True) < 0.3 * kept(False)


def test_sharded_optimizer(phantom, tmp_path):
    """Two processes that share the optimizer's state make the steps that two with a copy each make; one alone goes on."""
    for name, more in (("whole", []), ("shared", ["--shard"])):
        line = und(phantom, tmp_path / name, "--steps", 3, "--micro-batch", 2, *more)
        done = subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port",
                               str(28500 + os.getpid() % 500), str(ROOT / "train_und.py"), *line],
                              capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0, done.stderr[-2000:]
    assert identical(tensors(tmp_path / "whole"), tensors(tmp_path / "shared"))
    assert identical(optimizer(tmp_path / "whole"), optimizer(tmp_path / "shared"))
    for name in ("whole", "shared"):
        train_und.main(und(phantom, tmp_path / name, "--steps", 4, "--micro-batch", 2))
    assert identical(tensors(tmp_path / "whole"), tensors(tmp_path / "shared"))


@pytest.mark.skipif("SLOW" not in os.environ or shutil.which("g++") is None, reason="minutes: SLOW=1, and a compiler")
def test_compiled(reference, tmp_path):
    script, line, out = reference
    {"train_und": train_und, "train_gen": train_gen}[script].main(line(tmp_path, "--compile"))
    same_step(tmp_path, out)
