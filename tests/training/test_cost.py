"""training/cost.py: operations against torch's own counter, bytes against what autograd keeps, the peak against a fresh process."""
import ctypes
import json
import resource
import subprocess
import sys
import timeit
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from common import processes as common
from training import cost
from common import processes as cpu
from training import optim
import repa
from attention import join
from helpers import ROOT, tiny_config
from training.cost import Step
from training.batches import Batch
from model import UniX, UniXConfig
from train_gen import GenStep
from train_und import UndStep
from vae import VAE, VAEConfig
from vision import RAD_DINO, ViT, ViTConfig

VISION = ViTConfig(image_size=96, n_layer=3, n_head=2, n_embd=64, n_inner=192)
CFG = dict(max_latent_size=16, n_layer=4, n_head=4, n_embd=128, n_inner=320, vocab_size=640, vision=VISION)
SMALL_VAE = VAEConfig(ch=16, ch_mult=(1, 2, 2), n_res=2, z_channels=16, embed_dim=16, norm_groups=4)
ENCODER = ViTConfig(image_size=112, patch_size=14, n_layer=2, n_head=2, n_embd=48, n_inner=96, class_token=True, layer_scale=True)


def build(step, cfg):
    """The modules and batches that a Step describes -> a function that runs its forward pass, and their parameters."""
    torch.manual_seed(0)
    model = UniX(cfg)
    model.recompute = step.recompute
    if step.trains == "g":
        model.freeze("u")
    encoder = projector = vae = None
    if step.projector:
        encoder = ViT(step.encoder) if step.encoder else model.vision
        projector = repa.Projector(cfg.n_embd, step.projector, encoder.cfg.n_embd)
    if step.vae:
        vae = VAE(step.vae)
    side = int(step.latents ** 0.5)
    labels = torch.full((step.und, step.text), -100)
    labels[:, step.text - step.answer:] = 5
    grey = lambda B, size: torch.zeros(B, 1, size, size, dtype=torch.uint8)
    read = Batch(None, grey(step.und, cfg.vision.image_size), torch.full((step.und, step.text), 7),
                 torch.ones(step.und, step.text, dtype=torch.bool), labels)
    noise = torch.randn(2, step.gen, 16, side, side)
    draw = Batch(None, grey(step.gen, step.size), torch.full((step.gen, step.report), 7),
                 torch.ones(step.gen, step.report, dtype=torch.bool), normal=torch.zeros(step.gen), noise=noise[0],
                 posterior=noise[1], dropped=torch.zeros(step.gen, dtype=torch.bool),
                 moments=torch.zeros(step.gen, 2, 16, side, side) if step.stored else None)
    und, gen = UndStep(model), GenStep(model, vae, encoder, projector, SimpleNamespace(shift=1.0, repa_size=0))

    def forward():
        with common.autocast(torch.device("cpu"), "bfloat16" if step.b == 2 else "float32"):
            loss = und(read)[0] if step.und else 0.0
            return loss + sum(gen(draw)) if step.gen else loss
    return forward, gen


def meta_count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("cfg", [UniXConfig(), UniXConfig(generation=False), tiny_config()])
def test_parameters(cfg):
    """Every part in closed form, against the modules."""
    with torch.device("meta"):
        model, encoder = UniX(cfg), ViT(RAD_DINO)
        projector = repa.Projector(cfg.n_embd, 2048, 768)
    parts = cost.parameters(cfg, 2048, RAD_DINO)
    assert cost.vit_parameters(RAD_DINO) == meta_count(encoder)
    assert parts.pop("projector") == meta_count(projector)
    assert parts["vision"] == meta_count(model.vision) and parts["connector"] == meta_count(model.connector)
    assert parts["u"] == sum(meta_count(layer.u) for layer in model.layers) + meta_count(model.norm_u)
    assert sum(parts.values()) == meta_count(model)
    assert sum(v for k, v in parts.items() if k in ("g", "ends")) == sum(p.numel() for p in model.g_parameters())


STEPS = {
    "stage 1": Step("u", und=2, text=64, answer=40),
    "stage 1, fp32": Step("u", und=2, text=64, answer=40, b=4),
    "stage 2": Step("g", gen=3, report=48, size=64, latents=256, projector=96, encoder=ENCODER, vae=SMALL_VAE),
    "stage 2, own tower": Step("g", gen=2, report=32, size=64, latents=64, projector=96, vae=SMALL_VAE, stored=True),
    "stage 3": Step("g", gen=2, report=16, size=64, latents=256, vae=SMALL_VAE, stored=True),
    "stage 3, fp32": Step("g", gen=2, report=48, size=32, latents=64, vae=SMALL_VAE, stored=True, b=4),
    "both": Step("ug", und=2, text=64, answer=40, gen=2, report=48, size=64, latents=256, vae=SMALL_VAE, stored=True),
    "both, 0:1": Step("ug", gen=2, report=48, size=64, latents=256, vae=SMALL_VAE, stored=True),
}
STEPS = {name: cost.replace(step, device="cpu") for name, step in STEPS.items()}


AGAIN = [(name, True) for name in ("stage 1", "stage 2", "both")]


@pytest.mark.parametrize("name, recompute", [(name, False) for name in STEPS] + AGAIN)
def test_flops(name, recompute):
    """Within 1 % of what torch counts in the real forward and backward pass; it too counts products and attention alone."""
    step, cfg = cost.replace(STEPS[name], recompute=recompute), tiny_config(**CFG, generation="g" in STEPS[name].trains)
    forward, _ = build(step, cfg)
    with FlopCounterMode(display=False) as counter:
        forward().sum().backward()
    ours = sum(cost.flops(cfg, step).values())
    assert abs(ours / counter.get_total_flops() - 1) < 0.01, (ours, counter.get_total_flops())


def saved(forward, module):
    """Bytes that autograd keeps: storages of saved tensors, each once, without the parameters."""
    own = {p.untyped_storage().data_ptr() for p in (*module.parameters(), *module.buffers())}
    seen = {}

    def pack(x):
        seen[x.untyped_storage().data_ptr()] = x        # kept alive: an address is used once
        return x
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        forward()
    return sum(x.untyped_storage().nbytes() for address, x in seen.items() if address not in own)


class FusedNorm(torch.autograd.Function):
    """What CUDA's kernel keeps: the input and 1 / rms; under autocast it computes and answers in fp32."""
    @staticmethod
    def forward(ctx, x, weight, eps):
        rstd = (x.square().mean(-1, keepdim=True) + eps).rsqrt()
        ctx.save_for_backward(x, weight, rstd)
        return x * rstd * weight


class FusedAttention(torch.autograd.Function):
    """What the memory-efficient kernel keeps: q, k, v, the mask, the output and a logarithm a query and head."""
    @staticmethod
    def forward(ctx, q, k, v, bias):
        B, H, T, D = q.shape
        y = q.new_zeros(B, T, H, D)
        ctx.save_for_backward(q, k, v, y, torch.zeros(B, H, T), *([] if bias is None else [bias]))
        return y


@pytest.fixture
def like_cuda(monkeypatch):
    """The CPU keeps what CUDA would: stand-ins for the two fused kernels, which are all that differs."""
    def attend(q, keys, values, bias):
        k, v = join(keys, 2), join(values, 2)
        return FusedAttention.apply(q.to(k.dtype), k, v, None if bias is None else bias.to(k.dtype)).to(q.dtype)
    monkeypatch.setattr("model.attend", attend)
    monkeypatch.setattr("vision.attend", attend)
    monkeypatch.setattr("torch.nn.functional.rms_norm", lambda x, _, w, eps: FusedNorm.apply(x.float(), w.float(), eps))


def compare(step, tolerance):
    """What autograd saves, less the bf16 copies of the trained weights, against the formula."""
    cfg = tiny_config(**CFG, generation="g" in step.trains)
    copies = 2 * sum(n for k, n in cost.trained(cfg, step).items() if k != "embed") * (step.b == 2)
    ours, theirs = sum(cost.kept(cfg, step).values()), saved(*build(step, cfg)) - copies
    assert abs(ours / theirs - 1) < tolerance, (ours, theirs)


@pytest.mark.parametrize("name", STEPS)
def test_kept_for_backward(name):
    compare(STEPS[name], 0.02)


@pytest.mark.parametrize("name", STEPS)
def test_kept_for_backward_on_cuda(name, like_cuda):
    compare(cost.replace(STEPS[name], device="cuda"), 0.04)


BIG = dict(n_layer=6, n_head=8, n_embd=512, n_inner=1408, vocab_size=4096, max_latent_size=16,
           vision=ViTConfig(image_size=128, n_layer=4, n_head=4, n_embd=256, n_inner=1024))
BIG_ENCODER = ViTConfig(image_size=224, patch_size=14, n_layer=4, n_head=4, n_embd=256, n_inner=1024, class_token=True)
RUNS = {
    "stage 1": Step("u", und=4, text=128, answer=96, accumulates=False),
    "stage 1, recompute, two micro-steps": Step("u", und=6, text=128, answer=96, recompute=True),
    "stage 2": Step("g", gen=4, report=96, size=64, latents=256, projector=512, encoder=BIG_ENCODER, vae=SMALL_VAE,
                    accumulates=False),
    "stage 2, recompute": Step("g", gen=4, report=96, size=64, latents=256, projector=512, vae=SMALL_VAE, recompute=True,
                               accumulates=False),
}
RUNS = {name: cost.replace(step, device="cpu") for name, step in RUNS.items()}


def train(step, cfg):
    """Two optimizer steps as the scripts make them."""
    forward, module = build(step, cfg)
    optimizers = optim.optimizers(module, SimpleNamespace(optimizer=step.optimizer, lr=1e-5, weight_decay=0.0))
    ema = optim.EMA(module.unix, 0.99)
    for _ in range(2):
        for _ in range(1 + step.accumulates):
            forward().sum().backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optim.step_all(optimizers, 1e-5)
        ema.update()


def measure(name):
    """In a process of its own: bytes that it had before, bytes that it came to have at most."""
    torch.set_num_threads(1)
    train(STEPS[name.split(",")[0]], tiny_config(**CFG, generation="g" in RUNS[name].trains))      # torch loads much on first use
    ctypes.CDLL(None).malloc_trim(0)
    cpu.keep_memory()                                                                              # as every script does
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    train(RUNS[name], tiny_config(**BIG, generation="g" in RUNS[name].trains))
    # not getrusage: its maximum counts what the process was before it became Python, a copy of the one that runs the tests
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    print(json.dumps([before, int(peak.split()[1]) * 1024]))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("name", RUNS)
def test_peak_of_a_run(name):
    """Within 15 % of what a small run takes, counted from what Python and torch take by themselves, which is a line too."""
    code = f"import sys; sys.path[:0] = ['.', 'tests', 'tests/training']; import test_cost; test_cost.measure({name!r})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    before, most = json.loads(out.splitlines()[-1])
    _, parts = cost.memory(tiny_config(**BIG, generation="g" in RUNS[name].trains), RUNS[name])
    libraries = parts.pop("Python and torch")
    ours = parts["total"] - libraries
    assert abs(ours / (most - before) - 1) < 0.15, (ours, most - before)
    assert abs(libraries / before - 1) < 0.25, (libraries, before)


@pytest.mark.parametrize("place", cost.STAGES)
def test_table_1_fits(place):
    """A tenth of the GPU stays free with texts of usual length; the longest fit too."""
    (_, gpu), step = place, cost.STAGES[place]
    cfg = UniXConfig(generation=step.gen > 0)
    assert cost.memory(cfg, step)[1]["total"] <= 0.9 * gpu * 1e9
    assert step.world * max(step.und, step.gen) <= 256 and 256 % (step.world * max(step.und, step.gen)) == 0


def test_sharding_and_muon():
    """AdamW keeps 8 bytes a trained parameter, Muon 4 but for embeddings and head."""
    cfg, step = UniXConfig(generation=False), Step("u", und=1, world=8)
    N, rows = sum(cost.parameters(cfg).values()), 2 * cfg.vocab_size * cfg.n_embd
    state = lambda **changes: cost.memory(cfg, cost.replace(step, **changes))[1]["optimizer"]
    assert (state(), state(shard=True), state(optimizer="muon")) == (8 * N, N, 8 * rows + 4 * (N - rows))


@pytest.mark.parametrize("name, peak", [("NVIDIA A100-SXM4-80GB", 312e12), ("NVIDIA H100 PCIe", 756e12),
                                        ("NVIDIA H100 80GB HBM3", 989e12), ("NVIDIA L40S", 362e12), ("NVIDIA RTX A4000", None)])
def test_peak_by_name(monkeypatch, name, peak):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    assert cost.peak_flops(torch.device("cuda")) == peak
    assert cost.peak_flops(torch.device("cuda"), "float32") is None


def test_peak_of_a_cpu_is_not_passed():
    """Another matrix product is not much faster than the peak. (Other work on the machine makes both vary.)"""
    peak, a = cost.peak_flops(torch.device("cpu"), "float32"), torch.ones(512, 512)
    assert 2 * 512 ** 3 / min(timeit.repeat(lambda: a @ a, number=1, repeat=5)) < 4 * peak


def test_the_table_is_printed(capsys):
    cost.main()
    out = capsys.readouterr().out
    assert all(word in out for word in ("stage 1, 48 GB: memory", "weights, trained", "average (EMA)", "--recompute", "1:1"))
