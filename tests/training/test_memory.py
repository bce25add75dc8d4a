"""training/memory.py: exactly what stays, and near the peaks that were measured."""
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from helpers import tiny_config
from model import UniXConfig
from tiny_runs import gen, und
from tiny_steps import SMALL, STEPS, build
from training import memory, optim
from training.cost import Step
from vae import VAEConfig
from vision import RAD_DINO


@pytest.mark.parametrize("name, optimizer", [
    ("stage 1", "muon"), ("stage 2", "adamw"), ("Table 5, 1:1", "adamw"),
    ("stage 1, LoRA", "adamw"), ("stage 2, LoRA", "muon")])
def test_what_stays_is_exact(name, optimizer):
    """Bytes of the tensors that a step leaves: weights, gradients, the optimizer's, the average."""
    step = replace(STEPS[name], optimizer=optimizer, device="cpu")
    cfg = tiny_config(**SMALL, generation=step.gen > 0)
    module, loss = build(step, cfg)
    settings = SimpleNamespace(
        optimizer=optimizer, lr=1e-5, weight_decay=0.0, dtype="float32")
    optimizers = optim.optimizers(module, settings, ("embed.weight", "lm_head"))
    average = optim.EMA(module["read"].unix, 0.99)
    loss().backward()
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    for optimizer in optimizers:
        optimizer.step()

    def size(tensors):
        return sum(tensor.nbytes for tensor in tensors if tensor.ndim)      # no counters of steps

    state = [tensor for o in optimizers for held in o.state.values() for tensor in held.values()]
    parts = memory.estimate(cfg, step)
    assert parts["weights, trained"] == size(p for p in module.parameters() if p.requires_grad)
    assert parts["weights, frozen"] == size(p for p in module.parameters() if not p.requires_grad)
    assert parts["gradients"] == size(gradients)
    assert parts["optimizer"] == size(state)
    assert parts["average (EMA)"] == size(average.shadow.values())


def test_frozen_matrices_lie_in_bf16_on_cuda():
    """Half of the frozen linear layers' bytes: those of u and of REPA's encoder, not the VAE's."""
    step = STEPS["stage 2"]
    cfg = tiny_config(**SMALL, generation=True)
    module, _ = build(step, cfg)
    networks = (module["draw"].unix, module["draw"].encoder)
    linear = [p for network in networks for layer in network.modules()
              if type(layer).__name__ == "Linear" for p in layer.parameters()
              if not p.requires_grad]
    saved = memory.estimate(cfg, replace(step, device="cpu"))["weights, frozen"]
    saved -= memory.estimate(cfg, step)["weights, frozen"]
    assert saved == sum(p.nbytes for p in linear) / 2 > 0
    in_fp32 = memory.estimate(cfg, replace(step, dtype="float32"))["weights, frozen"]
    assert in_fp32 == memory.estimate(cfg, replace(step, device="cpu"))["weights, frozen"]


def test_sharding_divides_the_averages():
    """AdamW's two and the average of the weights."""
    cfg = tiny_config(generation=False)
    alone = memory.estimate(cfg, Step("u", und=1, world=8))
    shared = memory.estimate(cfg, Step("u", und=1, world=8, shard=True))
    spread = 0
    for part in ("optimizer", "average (EMA)"):
        assert shared[part] == alone[part] / 8
        spread += alone[part]
    assert alone["total"] - shared["total"] == pytest.approx(7 / 8 * spread)


FULL_SIZE = dict(vae=VAEConfig())
REPA = dict(projector=2048, encoder=RAD_DINO)
IN_FP32 = 3.5       # GB more that frozen matrices took when the H100 was measured


@pytest.mark.parametrize("step, gigabytes", [
    (Step("u", und=8), 66.3),
    (Step("g", gen=8, **REPA, **FULL_SIZE), 37.5),
    (Step("g", gen=32, **REPA, **FULL_SIZE), 53.0),
    (Step("u", und=8, recompute=True, compiled=False), 51.6),
    (Step("g", gen=8, **REPA, **FULL_SIZE, compiled=False), 42.1 - IN_FP32),
    (Step("g", gen=32, **REPA, **FULL_SIZE, compiled=False), 60.3 - IN_FP32),
    (Step("g", gen=4, size=512, latents=1024, **FULL_SIZE, compiled=False), 46.4 - IN_FP32),
], ids=["H200, stage 1", "H200, stage 2, 8 images", "H200, stage 2, 32 images", "H100, stage 1",
        "H100, stage 2, 8 images", "H100, stage 2, 32 images", "H100, stage 3"])
def test_the_peak_on_a_gpu(step, gigabytes):
    """What `python -m bench.gpu` measured (docs/results.md): allocated, without CUDA's context."""
    parts = memory.estimate(UniXConfig(generation=step.gen > 0), step)
    assert parts["total"] - parts["libraries"] == pytest.approx(gigabytes * 1e9, rel=0.02)


LARGE = (
    "--n-layer 3 --n-head 8 --n-embd 512 --n-inner 1408 --vit-layer 2 --vit-head 4 --vit-embd 256 "
    "--steps 2 --batch-size 24 --micro-batch 24 --threads 1 --dtype float32").split()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_that_a_run_prints_is_near_its_peak(phantom, vae_run, fork, tmp_path):
    """Within 20 % of the resident memory of its process, on a CPU."""
    one, two = tmp_path / "one", tmp_path / "two"
    more = LARGE[LARGE.index("--steps"):]
    adapters = ("--lora", 8, "--ema", 0)
    for script, words in (
            ("train_und.py", und(phantom, one, *LARGE)),
            ("train_gen.py", gen(phantom, two, one, "--vae", vae_run, "--size", 64, *more)),
            ("train_und.py", und(phantom, tmp_path / "three", *more, "--init", one, *adapters)),
            ("train_gen.py", gen(phantom, tmp_path / "four", two, "--size", 64, "--repa", 0, *more,
                                 *adapters))):
        out, _ = fork(script, words, PEAK=tmp_path / "peak").finish(seconds=300)
        estimate = float(re.search(r"total +([\d.]+) GB", out)[1]) * 1e9
        assert estimate == pytest.approx(int((tmp_path / "peak").read_text()), rel=0.2)


def test_a_run_prints_where_its_memory_goes(capsys):
    memory.tell(tiny_config(**SMALL, generation=True), STEPS["stage 2"])
    lines = capsys.readouterr().out.splitlines()
    assert "with texts of 48 tokens, estimated" in lines[0]
    assert [line[:24].strip() for line in lines[1:]] == [
        "weights, trained", "weights, frozen", "gradients", "average (EMA)", "optimizer",
        "activations", "libraries", "weights in bf16", "total"]
