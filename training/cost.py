"""What a training step costs, by arithmetic: floating-point operations. No step is run.

    python -m training.cost      # Table 1's stages (and Table 5) on eight GPUs of 48 or 80 GB
    python -m training.cost --stage 2 --micro-batch 4 --gpus 2 --shard      # any other run

The bytes of that table are from training/memory.py. The rules of the operations, with a
multiplication and an addition as two:

- A token passes through the weights of ONE branch. Going forward, a matrix of N weights costs it
  2N operations. Going backward, the gradient of its input costs 2N and its own gradient 2N. So a
  trained matrix costs 6N a token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
- A frozen matrix that no gradient passes through costs 2N: all of `u` in stages 2 and 3.
- An embedding is looked up and costs nothing. The head is applied at tokens with loss alone.
- Attention costs 2C to compare a query with a key and 2C to add the value up, so 4C a pair and
  layer (Chowdhery et al. 2022, arXiv 2204.02311, appendix B). Pairs that the mask hides are
  computed as well. Backward costs twice that, but once for the keys and values of frozen text.
- Norms, activation functions and the optimizer are not counted, as usual.

C width, F width inside the MLP, L layers, h latents, n patches of the vision tower.
"""
import json
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Literal

import torch
from torch.utils.flop_counter import FlopCounterMode

from common.cli import cli, override
from model import UniXConfig
from training import memory
from vae import VAE, VAEConfig
from vision import RAD_DINO, ViTConfig


@dataclass
class Step:
    """One micro-step of one process, and what of its run changes the cost."""
    trains: str = "u"               # "u" stage 1, "g" stages 2 and 3, "ug" both (Table 5)
    und: int = 0                    # images to read
    text: int = 288                 # tokens of prompt and report of each, padding included
    answer: int = 256               # of these, tokens with loss
    gen: int = 0                    # images to draw
    report: int = 256               # tokens of the text before each, padding included
    size: int = 256                 # pixels a side of what is drawn
    latents: int = 256              # latent tokens of each
    vae: VAEConfig | None = None    # the VAE in memory
    stored: bool = False            # posteriors are stored, so the VAE encodes nothing
    projector: int = 0              # width inside REPA's projector; 0: no REPA
    encoder: ViTConfig | None = None    # REPA's encoder; None: the model's own vision tower
    world: int = 1                  # processes
    shard: bool = False             # averages, AdamW's and of the weights, are spread over them
    recompute: bool = False         # decoder layers are computed again going backward
    optimizer: str = "adamw"        # or muon
    dtype: str = "bfloat16"         # of matrix products; weights stay float32
    device: str = "cuda"            # or cpu
    compiled: bool = True           # layers are compiled, which counts on CUDA
    ema: bool = True                # an average of the weights is kept
    lora: int = 0                   # rank of the adapters that are trained instead of weights
    lora_vision: bool = False       # the vision tower has some, too

    def target(self, cfg):
        """ViTConfig of the encoder that REPA aligns with."""
        return cfg.vision if self.encoder is None else self.encoder


def of_run(cfg, process):
    """The fields of a Step that follow from a run's settings and its processes."""
    device = "cuda" if process.device.type == "cuda" else "cpu"     # for want of other figures
    compiled = not cfg.deterministic if cfg.compile is None else cfg.compile
    return dict(world=process.world, device=device, shard=cfg.shard, recompute=cfg.recompute,
                optimizer=cfg.optimizer, dtype=cfg.dtype, compiled=compiled, ema=cfg.ema > 0,
                lora=cfg.lora, lora_vision=cfg.lora_vision)


# ---- operations ----

def layer_flops(cfg):
    """One decoder layer, one token, forward: q, k, v, o are C x C; gate, up and down are C x F."""
    C, F = cfg.n_embd, cfg.n_inner
    return 2 * (4 * C * C + 3 * C * F)


def attention_flops(cfg, queries, keys):
    """One layer, forward, all heads together: q k^T and its product with the values."""
    return 4 * cfg.n_embd * queries * keys


def block_flops(cfg, tokens, keys):
    """All decoder layers, forward: a block that attends to `keys` tokens, its own included."""
    return cfg.n_layer * (tokens * layer_flops(cfg) + attention_flops(cfg, tokens, keys))


def unused_backward_flops(cfg, tokens):
    """What going backward saves in the first block of a sequence, which no loss looks at.

    Later blocks read its keys and values. So in the last layer no gradient reaches what follows
    these: the attention itself, its output and the MLP.
    """
    keys_and_values = 4 * cfg.n_embd ** 2
    unused = tokens * (layer_flops(cfg) - keys_and_values) + attention_flops(cfg, tokens, tokens)
    return 2 * unused


def with_adapters(cfg, rank, backward, tokens, unread=0):
    """Forward and backward through all layers if they are frozen and have adapters (LoRA).

    backward: operations with trained weights. Going backward the products that give gradients of
    the weights are left out, one of three; the thin matrices are on top. unread: the tokens of
    `unused_backward_flops`.
    """
    C, F = cfg.n_embd, cfg.n_inner
    keys_and_values = 4 * C * C
    frozen = cfg.n_layer * tokens * layer_flops(cfg)
    frozen -= unread * (layer_flops(cfg) - keys_and_values)
    # seven matrices of C x C or C x F, each with r x inputs and outputs x r
    thin = 2 * rank * (4 * 2 * C + 3 * (C + F))
    thin_unread = 2 * unread * (thin - 2 * 2 * rank * 2 * C)
    return backward - frozen + 3 * cfg.n_layer * tokens * thin - thin_unread


def again_flops(cfg, forward, tokens):
    """What recomputing adds: the forward pass, but for the last product of each layer, `down`."""
    return forward - cfg.n_layer * tokens * 2 * cfg.n_embd * cfg.n_inner


def vit_flops(vit):
    """A vision tower on one image, forward."""
    n, c = vit.grid ** 2, vit.n_embd
    T = n + vit.class_token
    patches = 2 * 3 * vit.patch_size ** 2 * c * n
    products = 2 * (4 * c * c + 2 * c * vit.n_inner) * T        # qkv and proj, fc1 and fc2
    return patches + vit.n_layer * (products + 4 * c * T * T)


@cache
def vae_flops(vae, size):
    """The VAE's encoder on one image, as torch counts it on tensors without content.

    vae: the settings as JSON, which the cache can compare.
    """
    vae = VAEConfig(**json.loads(vae))
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        VAE(vae).moments(torch.zeros(1, vae.in_channels, size, size))
    return counter.get_total_flops()


def reading_flops(cfg, step):
    """One image to read, forward and backward -> {part: operations}."""
    C, vit, T = cfg.n_embd, cfg.vision, step.text
    n = vit.grid ** 2
    image = n + 2                                               # with SOI and EOI
    forward = block_flops(cfg, image, image) + block_flops(cfg, T, image + T)
    connector = 2 * n * (vit.n_embd * C + C * C)
    no_gradient_of_pixels = 2 * 3 * vit.patch_size ** 2 * vit.n_embd * n
    u = 3 * forward - unused_backward_flops(cfg, image)
    vision = 3 * vit_flops(vit) - no_gradient_of_pixels + 3 * connector
    head = 3 * 2 * step.answer * C * cfg.vocab_size
    if step.lora:
        # adapters of connector and tower, a hundredth of these, are not counted; the embedding of
        # text is frozen, so that the first layer's q, k and v go back no further
        u = with_adapters(cfg, step.lora, u, image + T, unread=image) - T * 3 * 2 * C * C
        vision = (2 if step.lora_vision else 1) * vit_flops(vit) + 2 * n * C * (vit.n_embd + 2 * C)
        head = 2 * 2 * step.answer * C * cfg.vocab_size
    return {
        "u": u,
        "vision": vision,
        "head": head,
        "recomputed": again_flops(cfg, forward, image + T) if step.recompute else 0,
    }


def drawing_flops(cfg, step):
    """One image to draw, forward and backward -> {part: operations}."""
    C, L, S, h = cfg.n_embd, cfg.n_layer, step.report, step.latents
    text = block_flops(cfg, S, S)
    boundary = L * 2 * layer_flops(cfg)                         # SOI and EOI go through u
    noisy = L * (h * layer_flops(cfg) + attention_flops(cfg, h + 2, S + h + 2))
    again = again_flops(cfg, noisy, h) + boundary

    # the u set: trained in Table 5 alone
    if "u" in step.trains:
        u = 3 * (text + boundary) - unused_backward_flops(cfg, S)
        frozen_keys = 0
        again += again_flops(cfg, text, S)
    else:
        u = text + boundary
        frozen_keys = L * attention_flops(cfg, h + 2, S)
    g = 3 * noisy
    if step.lora:
        g = with_adapters(cfg, step.lora, g, h)

    # around the layers of g; noisy latents and the features of the time get no gradient
    latent_in = 2 * 2 * h * cfg.latent_channels * C
    latent_out = 3 * 2 * h * cfg.latent_channels * C
    time = 2 * 2 * 256 * C + 3 * 2 * C * C

    # frozen networks go forward only; REPA's projector has three matrices
    other = 0
    if step.vae and not step.stored:
        other += vae_flops(json.dumps(asdict(step.vae)), step.size)
    if step.projector:
        encoder, inner = step.target(cfg), step.projector
        other += vit_flops(encoder) + 3 * 2 * h * inner * (C + inner + encoder.n_embd)
    return {
        "u": u,
        "g": g - frozen_keys + latent_in + latent_out + time,
        "other": other,
        "recomputed": again if step.recompute else 0,
    }


def velocity_flops(cfg, text, latents):
    """One velocity of one image, forward, after a text whose keys and values are in the cache."""
    C = cfg.n_embd
    block = latents + 2                                         # with SOI and EOI
    latent_in_and_out = 2 * 2 * latents * cfg.latent_channels * C
    time = 2 * (256 * C + C * C)
    return block_flops(cfg, block, text + block) + latent_in_and_out + time


def flops(cfg, step):
    """A micro-step, forward and backward -> {part: operations}, for every part below."""
    total = dict.fromkeys(("u", "g", "vision", "head", "other", "recomputed"), 0.0)
    for images, parts in ((step.und, reading_flops), (step.gen, drawing_flops)):
        if images:
            for part, operations in parts(cfg, step).items():
                total[part] += images * operations
    return total


def model_flops(cfg, step):
    """What model FLOP utilisation (MFU) counts: all but what is computed again."""
    parts = flops(cfg, step)
    return sum(operations for part, operations in parts.items() if part != "recomputed")


def counted(cfg, step, gen=None, und=None):
    """What a micro-step on these batches does: images, tokens of each set of weights, operations.

    gen, und: a batches.Batch each; the length of their texts counts, `step` says the rest.
    """
    if gen is not None:
        step = replace(step, report=gen.ids.shape[1])
    if und is not None:
        step = replace(step, text=und.ids.shape[1], answer=len(und.answers) / len(und.ids))
    reading = step.und * (cfg.vision.grid ** 2 + 2 + step.text)
    return {
        "img": step.gen if step.gen else step.und,
        "u_tok": reading + step.gen * (step.report + 2),
        "g_tok": step.gen * step.latents,
        "flops": model_flops(cfg, step),
    }


# ---- the table ----

EIGHT = dict(world=8, shard=True)
DRAWS = dict(vae=VAEConfig(), **EIGHT)
ADAPTED = dict(lora=16, ema=False)
# (Table 1's stage, or Table 5's row 1:1; GB of each of eight GPUs, or of one with adapters) ->
# settings that fit
STAGES = {
    ("1", 48): Step("u", und=4, **EIGHT),
    ("1", 80): Step("u", und=8, **EIGHT),
    ("2", 48): Step("g", gen=32, projector=2048, encoder=RAD_DINO, **DRAWS),
    ("2", 80): Step("g", gen=32, projector=2048, encoder=RAD_DINO, **DRAWS),    # 256 / 8 at most
    ("3", 48): Step("g", gen=8, size=512, latents=1024, **DRAWS),
    ("3", 80): Step("g", gen=16, size=512, latents=1024, **DRAWS),
    # one GPU and adapters: the preset one-gpu, and less
    ("1", 24): Step("u", und=4, **ADAPTED),
    ("1", 12): Step("u", und=4, recompute=True, **ADAPTED),
    ("2", 24): Step("g", gen=8, vae=VAEConfig(), **ADAPTED),
    ("2", 12): Step("g", gen=2, vae=VAEConfig(), **ADAPTED),
    ("3", 24): Step("g", gen=4, size=512, latents=1024, vae=VAEConfig(), **ADAPTED),
    ("3", 12): Step("g", gen=2, size=512, latents=1024, vae=VAEConfig(), recompute=True, **ADAPTED),
    ("1:1", 48): Step("ug", und=2, gen=2, recompute=True, **DRAWS),
    ("1:1", 80): Step("ug", und=4, gen=4, **DRAWS),
}


@dataclass
class CostConfig:
    stage: Literal["1", "2", "3", "1:1"] = "1"      # of training; 1:1 is a row of Table 5
    micro_batch: int = 1        # samples of a forward pass
    gpus: int = 1               # processes, each with a GPU of its own
    shard: bool = False         # spread AdamW's averages and that of the weights (ZeRO 1)
    recompute: bool = False     # compute layers again going backward
    lora: int = 0               # train adapters of this rank, without REPA; 0: the weights
    ema: bool = True            # keep an average of the weights

    def __post_init__(self):
        assert self.lora == 0 or self.stage != "1:1", "--lora is for stages 1, 2 and 3."
        assert self.lora >= 0, "--lora is a rank of 1 or more, or 0 for none."
        assert min(self.micro_batch, self.gpus) > 0, "--micro-batch and --gpus: 1 or more."

    def step(self):
        """A micro-step with these settings."""
        step = STAGES[self.stage, 24 if self.lora else 80]
        return replace(step, lora=self.lora, ema=self.ema, und=self.micro_batch if step.und else 0,
                       gen=self.micro_batch if step.gen else 0,
                       world=self.gpus, shard=self.shard, recompute=self.recompute)


def row(stage, gpu, step):
    """A line of the table: GB with usual and longest texts, 1e15 operations of 256 samples."""
    cfg = sizes(step)
    usual = memory.estimate(cfg, step)["total"]
    T = cfg.max_text
    longest = replace(step, text=2 * T, answer=T, report=T)
    most = usual + memory.activations(cfg, longest) - memory.activations(cfg, step)

    micro_batch = max(step.und, step.gen)
    operations = {part: n * 256 / micro_batch / 1e15 for part, n in flops(cfg, step).items()}
    again = operations.pop("recomputed")
    parts = ", ".join(f"{part} {n:.2f}" for part, n in operations.items() if n)
    flags = f"--micro-batch {micro_batch:<3}" + " --shard" * step.shard
    flags += " --recompute" * step.recompute
    if step.lora:
        flags += f" --lora {step.lora}"
    return (f"{stage:>5}{gpu:>5}  {flags:<41}{usual / 1e9:7.1f}{most / 1e9:9.1f}"
            f"{sum(operations.values()):7.2f}{again:7.2f}  {parts}")


def sizes(step):
    """The released network, as far as a step needs it."""
    return UniXConfig(generation=step.gen > 0)


def main(argv):
    cfg = override(CostConfig(), argv, __doc__)
    rows = {(cfg.stage, "any"): cfg.step()} if argv else STAGES
    # part by part; then a line each
    for (stage, gpu), step in rows.items():
        print(f"stage {stage}, GPU {gpu}:", memory.describe(sizes(step), step))
    print("stage  GPU  flags                                       GB  longest    ops  again")
    for (stage, gpu), step in rows.items():
        print(row(stage, gpu, step))


if __name__ == "__main__":
    cli(main)
