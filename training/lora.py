"""LoRA: fine-tune large weights by small differences (Hu et al. 2021, arXiv 2106.09685).

    python train_und.py --init pretrained/UniX --lora 16 --data datasets/mine --out out/mine
    python train_gen.py --init pretrained/UniX --lora 16 --data datasets/mine --out out/mine-gen

A linear layer W x of C_out x C_in weights is frozen and gets two thin matrices, A of r x C_in and
B of C_out x r, which are trained instead:

    h = W x + (alpha / r) B A x                                               (their Eq. 3)

Their product is as large as W and of rank r at most: what a new hospital, camera or wording changes
about a layer is supposed to be that simple. B starts at zero, so that the first step is the base
exactly. A 1,024 x 1,024 matrix of a million weights has 33 thousand trained ones at r = 16: so much
less memory for gradients, optimizer and average, which are 16 of the 22 bytes that a trained weight
takes, and checkpoints of megabytes. Afterwards W + (alpha / r) B A is one matrix again, and nothing
is slower (`weights/adapters.py`).

What is adapted: all linear layers of one branch of the decoder. The paper adapts queries and values
alone; Dettmers et al. 2023 (QLoRA, arXiv 2305.14314, section 4) needed all layers to come up to
full fine-tuning. To read also the connector and the head, whose adapter makes words likely that the
base has never written, and, if asked for, the vision tower. To draw the latent ends are small and
trained whole: norm, latents in and out, time.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from common.cli import InputError
from common.processes import print0
from training.frozen import in_bfloat16
from weights import adapters
from weights.checkpoint import read_config

# what is trained whole with branch g
LATENT_ENDS = ("norm_g", "time_embed", "latent_in", "latent_out")


class AdaptedLinear(nn.Module):
    """x (..., C_in) -> W x + (alpha / r) B A x (..., C_out)."""

    def __init__(self, linear, rank, alpha):
        super().__init__()
        self.base = linear                                  # W, frozen, and a bias if it has one
        like = dict(device=linear.weight.device, dtype=torch.float32)
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, **like))
        self.lora_b = nn.Parameter(torch.zeros(linear.out_features, rank, **like))
        self.scale = alpha / rank
        nn.init.normal_(self.lora_a, std=linear.in_features ** -0.5)

    def forward(self, x):
        thin = F.linear(x, self.lora_a)                                         # (..., r)
        return self.base(x) + self.scale * F.linear(thin, self.lora_b)


def is_adapted(name, branch, vision):
    """Whether the linear layer of a UniX with this name gets an adapter.

    branch: "u" or "g"; vision: whether those of the vision tower do.
    """
    beginnings = []
    if branch == "u":
        beginnings += ["connector.", "lm_head"]
    if vision:
        beginnings.append("vision.")
    return f".{branch}." in name or name.startswith(tuple(beginnings))


def insert(model, branch, rank, alpha, vision=False):
    """Freeze a UniX, put adapters into a branch of it, and let what is trained whole be trained."""
    model.requires_grad_(False)
    for name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and is_adapted(name, branch, vision):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, AdaptedLinear(layer, rank, alpha))
    if branch == "g":
        for name in LATENT_ENDS:
            model.get_submodule(name).requires_grad_(True)


def trained(model):
    """{name: parameter} of all that a LoRA run trains and saves."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# ---- in a run ----

def adapt(model, run, branch, vae=None):
    """Begin or go on with LoRA -> what config.json says about it (weights/adapters.py).

    model: of `weights.load`, without adapters; run: whose cfg has lora and lora_alpha. vae: that of
    --vae. On CUDA in bf16 the frozen matrices are turned to bf16 here. InputError where there is no
    base to adapt, or a checkpoint of the run does not fit.
    """
    cfg = run.cfg
    if not cfg.init:
        raise InputError("--lora adapts weights that are there: name them with --init.")
    if branch == "g" and cfg.lora_vision:
        raise InputError("--lora-vision is for reading (train_und.py): nothing that is drawn goes "
                         "through the vision tower.")
    torch.manual_seed(cfg.seed)
    insert(model, branch, cfg.lora, cfg.lora_alpha, cfg.lora_vision)
    in_bfloat16(model, run.device, cfg.dtype)
    if run.resume:
        adapters.take_over(trained(model), run.resume)
        config = read_config(run.resume)
        return {name: config[name] for name in ("lora", "base", "vae_base") if name in config}

    about = {"lora": {"rank": cfg.lora, "alpha": cfg.lora_alpha},
             "base": adapters.model_base(cfg.init)}
    if vae is not None and cfg.vae:
        about["vae_base"] = adapters.vae_base(cfg.vae, vae)
    print0(f"adapters of rank {cfg.lora} on {about['base']['path']}")
    return about
