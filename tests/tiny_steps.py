"""Micro-steps of tiny networks for the tests: what a cost.Step describes, made real."""
from types import SimpleNamespace

import torch

from common.processes import autocast
from model import UniX
from repa import Projector
from train_gen import GenStep
from train_und import UndStep
from training import lora
from training.batches import Batch
from training.cost import Step
from vae import VAE, VAEConfig
from vision import ViT, ViTConfig

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
    if step.lora:
        lora.insert(model, step.trains, step.lora, 16.0, step.lora_vision)
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


# ---- small steps of every kind ----

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
    "stage 1, LoRA": Step("u", **READ, lora=4),
    "stage 1, LoRA, tower too": Step("u", **READ, lora=4, lora_vision=True),
    "stage 2, LoRA": Step("g", **DRAW, lora=4),
    "stage 2": Step("g", **DRAW, projector=96, encoder=ENCODER),
    "stage 2, own tower": Step("g", **DRAW, projector=96, stored=True),
    "stage 2, recompute": Step("g", **DRAW, projector=96, encoder=ENCODER, recompute=True),
    "stage 3": Step("g", **DRAW, stored=True),
    "Table 5, 1:1": Step("ug", **READ, **DRAW, stored=True),
    "Table 5, 1:1, recompute": Step("ug", **READ, **DRAW, stored=True, recompute=True),
    "Table 5, 0:1": Step("ug", **DRAW, stored=True),
}
