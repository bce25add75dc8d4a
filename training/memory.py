"""What a training step keeps in memory, by arithmetic and one measured number. No step is run.

    python -m training.cost     # a table of what fits where

`step` is a cost.Step, `cfg` the UniXConfig. Weights, gradients and averages are exact. What comes
and goes with the samples is a number of bytes a token, layer and unit of width, which was measured.
"""
import torch

from common import shortage
from common.processes import print0
from model import UniX
from repa import Projector
from training import lora
from training.frozen import in_bfloat16
from vae import VAE
from vision import ViT

# Activations at the peak, in bytes a token, layer and unit of width, measured. The first number is
# for layers of g and of vision towers; the second for u where it is trained, whose hidden states
# are fp32; the third for layers that keep little more than keys and values: frozen text, and all
# layers with recompute.
#   cuda   compiled layers in bf16, an H200: stage 2 with 8 and 32 images, stage 1 with 8, which
#          alone gives the second number (`python -m bench.gpu`, docs/results.md)
#   eager  in bf16, an H100: stage 2 with 8 and 32 images, stage 3 with 4, stage 1 with recompute
#   cpu    resident memory of 14 small runs in fresh processes, with the gaps of glibc's heap (as in
#          tests/training/test_memory.py); attention keeps its probabilities here
ACTIVATIONS = {"cuda": (43, 54, 8), "eager": (52, 63, 8), "cpu": (110, 110, 16)}
FLOAT32 = 1.5               # times as much without autocast, in the same runs on the CPU
LIBRARIES = {"cuda": 1e9, "cpu": 0.38e9}    # allowed for; Python and torch, measured
NCCL = 1e9                  # its buffers, allowed for


def parameters(cfg, step):
    """Of one process, from modules without content -> {name: parameter} trained, the same frozen.
    """
    modules = {}
    with torch.device("meta"):
        unix = modules["unix"] = UniX(cfg)
        if step.projector:
            width = step.target(cfg).n_embd
            modules["projector"] = Projector(cfg.n_embd, step.projector, width)
        if step.vae:
            modules["vae"] = VAE(step.vae).requires_grad_(False)
        if step.encoder:
            modules["encoder"] = ViT(step.encoder).requires_grad_(False)

    # frozen matrices as training/frozen.py has them in a run
    device = torch.device(step.device)
    if step.trains != "ug":
        unix.freeze("u" if step.trains == "g" else "g")
    if step.lora:
        with torch.device("meta"):
            lora.insert(unix, step.trains, step.lora, 1.0, step.lora_vision)
    if step.lora or step.trains == "g":
        in_bfloat16(unix, device, step.dtype)
    if step.encoder:
        in_bfloat16(modules["encoder"], device, step.dtype)

    trained, frozen = {}, {}
    for part, module in modules.items():
        for name, p in module.named_parameters():
            group = trained if p.requires_grad else frozen
            group[f"{part}.{name}"] = p
    return trained, frozen


def activations(cfg, step):
    """Bytes that come and go with the samples, at their peak."""
    kind = "eager" if step.device == "cuda" and not step.compiled else step.device
    of_g, of_u, little = ACTIVATIONS[kind]

    # blocks whose layers have a backward pass -> tokens, bytes of each; and tokens of frozen text
    image, text = step.und * (cfg.vision.grid ** 2 + 2), step.und * step.text
    noisy, report = step.gen * (step.latents + 2), step.gen * step.report
    blocks = [(image, of_u), (text, of_u), (noisy, of_g)]
    frozen = report
    if "u" in step.trains:
        blocks.append((report, of_u))
        frozen = 0

    kept = [tokens * bytes_each for tokens, bytes_each in blocks]
    if step.recompute:                  # computed again: one layer at a time, here the largest
        tokens = sum(tokens for tokens, _ in blocks) + frozen
        token_layers = cfg.n_layer * little * tokens + max(kept)
    else:
        token_layers = cfg.n_layer * (sum(kept) + little * frozen)
    tower = of_g * step.und * cfg.vision.grid ** 2 * cfg.vision.n_layer * cfg.vision.n_embd
    if step.lora and not step.lora_vision:      # its output is a constant
        tower = 0
    size = token_layers * cfg.n_embd + tower
    return size if step.dtype == "bfloat16" else FLOAT32 * size


def estimate(cfg, step):
    """Memory of one process at its peak -> {part: bytes}, with their sum as "total".

    Parameters and what goes with them are exact; the sum is within 20 % of what runs took.
    """
    trained, frozen = parameters(cfg, step)
    sizes = {name: p.numel() for name, p in trained.items()}
    matrices = [name for name, p in trained.items() if p.ndim > 1]
    projector = sum(size for name, size in sizes.items() if name.startswith("projector."))
    N = sum(sizes.values())

    # Muon keeps one average of a matrix; AdamW two of all else, embeddings and head among them
    muon = 0
    if step.optimizer == "muon":
        rows = ("unix.embed.", "unix.lm_head.")
        muon = sum(sizes[name] for name in matrices if not name.startswith(rows))
    share = step.world if step.shard else 1     # processes among which averages are spread

    parts = {
        "weights, trained": 4 * N,
        "weights, frozen": sum(p.nbytes for p in frozen.values()),
        "gradients": 4 * N,             # once: with several processes they lie in DDP's buckets
        "average (EMA)": 4 * (N - projector) / share if step.ema else 0,
        "optimizer": 8 * (N - muon) / share + 4 * muon,
        "activations": activations(cfg, step),
        "libraries": LIBRARIES[step.device],
    }
    if step.dtype == "bfloat16":        # autocast keeps what it has cast of trained matrices
        cast = [sizes[name] for name in matrices if name != "unix.embed.weight"]
        parts["weights in bf16"] = 2 * sum(cast)
    if step.device == "cuda" and step.world > 1:
        parts["libraries"] += NCCL
    return {**parts, "total": sum(parts.values())}


def texts(step):
    """What the estimate supposes of the texts."""
    return f"with texts of {step.text if step.und else step.report} tokens"


def describe(cfg, step):
    """The estimate as a small table."""
    lines = [f"memory of one process at its peak, {texts(step)}, estimated:"]
    for part, size in estimate(cfg, step).items():
        if size:
            lines.append(f"    {part:<20}{size / 1e9:8.2f} GB")
    return "\n".join(lines)


def tell(cfg, step):
    """Print the estimate, as a run does before it begins; it is repeated if memory runs out."""
    print0(describe(cfg, step))
    total = estimate(cfg, step)["total"] / 1e9
    shortage.know_estimate(f"{total:.2f} GB {texts(step)}")
