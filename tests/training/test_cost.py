"""training/cost.py: operations as torch counts them; exactly what stays in memory; a near peak."""
import re
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common.cli import InputError
from common.processes import autocast
from helpers import tiny_config
from model import UniX, UniXConfig
from repa import Projector
from tiny_runs import gen, und
from train_gen import GenStep
from train_und import UndStep
from training import cost, optim
from training.batches import Batch
from training.cost import Step
from vae import VAE, VAEConfig
from vision import RAD_DINO, ViT, ViTConfig

CPU = torch.device("cpu")
SMALL_VAE = VAEConfig(
    ch=16, ch_mult=(1, 2, 2), n_res=2, z_channels=16, embed_dim=16, norm_groups=4)


def text(images, length):
    """Fields of a Batch: a text without padding for so many images."""
    valid = torch.ones(images, length, dtype=torch.bool)
    return dict(index=None, ids=torch.full((images, length), 7), valid=valid)


def to_read(step, vision):
    """A batch to read without content."""
    labels = torch.full((step.und, step.text), -100)
    labels[:, step.text - step.answer:] = 5
    images = torch.zeros(step.und, 1, vision.image_size, vision.image_size, dtype=torch.uint8)
    return Batch(images=images, labels=labels, **text(step.und, step.text))


def to_draw(step):
    """A batch to draw without content."""
    side = int(step.latents ** 0.5)
    latents = torch.zeros(step.gen, 16, side, side)
    return Batch(
        images=torch.zeros(step.gen, 1, step.size, step.size, dtype=torch.uint8),
        normal=torch.zeros(step.gen), noise=latents, posterior=latents,
        moments=torch.stack([latents, latents], dim=1) if step.stored else None,
        dropped=torch.zeros(step.gen, dtype=torch.bool), **text(step.gen, step.report))


def build(step, cfg):
    """The networks of a Step -> a module that holds all of them, and its loss as a function."""
    torch.manual_seed(0)
    model = UniX(cfg)
    model.recompute = step.recompute
    if step.trains == "g":
        model.freeze("u")
    encoder = projector = None
    if step.projector:
        encoder = ViT(step.encoder) if step.encoder else model.vision
        projector = Projector(cfg.n_embd, step.projector, encoder.cfg.n_embd)
    module = torch.nn.ModuleDict({"read": UndStep(model)})
    if step.gen:
        settings = SimpleNamespace(shift=1.0, repa_size=0)
        module["draw"] = GenStep(model, VAE(step.vae), encoder, projector, settings)

    def loss():
        total = 0.0
        with autocast(CPU, step.dtype):
            if step.und:
                total = total + module["read"](to_read(step, cfg.vision))
            if step.gen:
                total = total + sum(module["draw"](to_draw(step))).sum()
        return total
    return module, loss


# ---- operations ----

VISION = ViTConfig(image_size=96, n_layer=3, n_head=2, n_embd=64, n_inner=192)
SMALL = dict(
    max_latent_size=16, n_layer=4, n_head=4, n_embd=128, n_inner=320, vocab_size=640, vision=VISION,
)
ENCODER = ViTConfig(
    image_size=112, patch_size=14, n_layer=2, n_head=2, n_embd=48, n_inner=96, class_token=True,
    layer_scale=True,
)
READ = dict(und=2, text=64, answer=40)
DRAW = dict(gen=2, report=48, size=64, latents=256, vae=SMALL_VAE)
STEPS = {
    "stage 1": Step("u", **READ),
    "stage 1, recompute": Step("u", **READ, recompute=True),
    "stage 2": Step("g", **DRAW, projector=96, encoder=ENCODER),
    "stage 2, own tower": Step("g", **DRAW, projector=96, stored=True),
    "stage 2, recompute": Step("g", **DRAW, projector=96, encoder=ENCODER, recompute=True),
    "stage 3": Step("g", **DRAW, stored=True),
    "Table 5, 1:1": Step("ug", **READ, **DRAW, stored=True),
    "Table 5, 1:1, recompute": Step("ug", **READ, **DRAW, stored=True, recompute=True),
    "Table 5, 0:1": Step("ug", **DRAW, stored=True),
}


@pytest.mark.parametrize("name", STEPS)
def test_operations_are_those_that_torch_counts(name):
    """Within 1 % of its count of the real step. It, too, counts products and attention alone."""
    step = STEPS[name]
    cfg = tiny_config(**SMALL, generation=step.gen > 0)
    _, loss = build(step, cfg)
    with FlopCounterMode(display=False) as counter:
        loss().backward()
    ours = cost.flops(cfg, step)
    assert sum(ours.values()) == pytest.approx(counter.get_total_flops(), rel=0.01)

    # MFU leaves out what is computed again
    plain = replace(step, recompute=False)
    assert (ours["recomputed"] > 0) == step.recompute
    assert cost.model_flops(cfg, step) == sum(cost.flops(cfg, plain).values())


def test_a_batch_counts_with_its_own_texts():
    """Images, tokens that u and g saw, operations of the lengths that the batches have."""
    cfg = tiny_config(**SMALL)
    step = STEPS["Table 5, 1:1"]
    shorter = replace(step, text=32, answer=10, report=16)
    counts = cost.counted(cfg, step, to_draw(shorter), to_read(shorter, cfg.vision))
    assert counts["img"] == 2 and counts["g_tok"] == 2 * 256
    assert counts["u_tok"] == 2 * (36 + 2 + 32) + 2 * (16 + 2)
    assert counts["flops"] == cost.model_flops(cfg, shorter)


# ---- memory ----

@pytest.mark.parametrize("name, optimizer", [
    ("stage 1", "muon"), ("stage 2", "adamw"), ("Table 5, 1:1", "adamw")])
def test_what_stays_is_exact(name, optimizer):
    """Bytes of the tensors that a step leaves: weights, gradients, the optimizer's, the average."""
    step = replace(STEPS[name], optimizer=optimizer)
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
    parts = cost.memory(cfg, step)
    assert parts["weights, trained"] == size(p for p in module.parameters() if p.requires_grad)
    assert parts["weights, frozen"] == size(p for p in module.parameters() if not p.requires_grad)
    assert parts["gradients"] == size(gradients)
    assert parts["optimizer"] == size(state)
    assert parts["average (EMA)"] == size(average.shadow.values())


def test_sharding_divides_adamws_averages():
    cfg = tiny_config(generation=False)
    alone = cost.memory(cfg, Step("u", und=1, world=8))
    shared = cost.memory(cfg, Step("u", und=1, world=8, shard=True))
    assert shared["optimizer"] == alone["optimizer"] / 8
    assert alone["total"] - shared["total"] == pytest.approx(7 / 8 * alone["optimizer"])


FULL_SIZE = dict(vae=VAEConfig())
REPA = dict(projector=2048, encoder=RAD_DINO)


@pytest.mark.parametrize("step, gigabytes", [
    (Step("u", und=8, recompute=True), 51.6),
    (Step("g", gen=8, **REPA, **FULL_SIZE), 42.1),
    (Step("g", gen=32, **REPA, **FULL_SIZE), 60.3),
    (Step("g", gen=4, size=512, latents=1024, **FULL_SIZE), 46.4),
], ids=["stage 1", "stage 2, 8 images", "stage 2, 32 images", "stage 3"])
def test_the_peak_on_an_h100(step, gigabytes):
    """What `python -m bench.gpu` measured (docs/results.md): allocated, without CUDA's context."""
    parts = cost.memory(UniXConfig(generation=step.gen > 0), step)
    assert parts["total"] - parts["libraries"] == pytest.approx(gigabytes * 1e9, rel=0.05)


LARGE = (
    "--n-layer 3 --n-head 8 --n-embd 512 --n-inner 1408 --vit-layer 2 --vit-head 4 --vit-embd 256 "
    "--steps 2 --batch-size 24 --micro-batch 24 --threads 1 --dtype float32").split()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_estimate_that_a_run_prints_is_near_its_peak(phantom, vae_run, fork, tmp_path):
    """Within 20 % of the resident memory of its process, on a CPU."""
    one, two = tmp_path / "one", tmp_path / "two"
    to_draw = LARGE[LARGE.index("--steps"):]
    for script, words in (
            ("train_und.py", und(phantom, one, *LARGE)),
            ("train_gen.py", gen(phantom, two, one, "--vae", vae_run, "--size", 64, *to_draw))):
        out, _ = fork(script, words, PEAK=tmp_path / "peak").finish(seconds=300)
        estimate = float(re.search(r"total +([\d.]+) GB", out)[1]) * 1e9
        assert estimate == pytest.approx(int((tmp_path / "peak").read_text()), rel=0.2)


def test_a_run_prints_where_its_memory_goes():
    step = STEPS["stage 2"]
    lines = cost.describe_memory(tiny_config(**SMALL, generation=True), step).splitlines()
    assert "with texts of 48 tokens, estimated" in lines[0]
    assert [line[:24].strip() for line in lines[1:]] == [
        "weights, trained", "weights, frozen", "gradients", "average (EMA)", "optimizer",
        "activations", "libraries", "weights in bf16", "total"]


@pytest.mark.slow
def test_the_table_is_printed_and_fits(capsys):
    """A tenth of every GPU stays free with texts of usual length; the longest fit too."""
    cost.main([])
    printed = capsys.readouterr().out
    assert "stage 1, GPU 48: memory" in printed
    rows = [line.split() for line in printed.splitlines()[-len(cost.STAGES):]]
    for (stage, gpu), row in zip(cost.STAGES, rows, strict=True):
        assert row[:2] == [stage, str(gpu)]
        after_the_flags = [word for word in row[4:] if not word.startswith("--")]
        usual, longest = map(float, after_the_flags[:2])
        assert usual <= 0.9 * gpu and longest <= gpu


def test_the_cost_of_any_other_run(capsys, monkeypatch):
    """The command's own sizes would take seconds."""
    monkeypatch.setattr(cost, "sizes", lambda step: tiny_config(**SMALL, generation=True))
    cost.main("--stage 3 --micro-batch 2 --gpus 4 --recompute".split())
    *parts, _, row = capsys.readouterr().out.splitlines()
    assert "stage 3" in parts[0] and "total" in parts[-1]
    assert row.split()[:5] == ["3", "any", "--micro-batch", "2", "--recompute"]
    with pytest.raises(InputError, match="--micro-batch and --gpus: 1 or more"):
        cost.main(["--gpus", "0"])
    step = cost.CostConfig(stage="1:1", micro_batch=3, gpus=4, shard=True).step()
    assert (step.und, step.gen, step.world, step.shard, step.recompute) == (3, 3, 4, True, False)
    assert cost.CostConfig(micro_batch=3).step().gen == 0, "stage 1 draws nothing"
