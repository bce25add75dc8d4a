"""What a training step costs, in floating-point operations and in bytes, by arithmetic alone: nothing is run or profiled.

    python -m training.cost      # Table 1's stages (and Table 5) on eight GPUs of 48 or 80 GB

A token uses the weights of ONE branch. N weights cost 2N operations a token forward; backward 2N for the gradient of the input
and 2N for their own: trained ones 6N, frozen ones 2N (no gradient passes through the frozen u stream), embeddings nothing, the
head only at tokens with loss. Attention adds 4 C T S a layer forward, masked pairs included: they are computed; backward twice
that, but once where the keys are those of frozen text (CUDA's kernel computes their gradient for nothing). Norms,
activation functions and the optimizer are not counted. Bytes are what autograd keeps under autocast (docs/training.md).

B images, C width, F width inside the MLP, L layers, H heads, T queries, S keys, V vocabulary; small letters: a vision tower's.
"""
import json
import re
import timeit
from dataclasses import asdict, dataclass, replace
from functools import cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from model import UniXConfig
from vae import VAE, VAEConfig
from vision import RAD_DINO, ViTConfig

CHUNK = 1024        # report tokens whose logits exist at once: model.UniX.report_loss


@dataclass
class Step:
    """One micro-step of one process, and the run that it is part of."""
    trains: str = "u"               # "u" stage 1, "g" stages 2 and 3, "ug" both (Table 5)
    und: int = 0                    # images read
    text: int = 288                 # their tokens of prompt and report, padding included
    answer: int = 256               # of these, tokens with loss
    gen: int = 0                    # images drawn
    report: int = 256               # tokens of the text before them, padding included
    size: int = 256                 # pixels a side of what is drawn
    latents: int = 256              # latent tokens
    vae: VAEConfig | None = None    # encodes the images
    stored: bool = False            # or their posteriors are stored, and the VAE only lies there
    projector: int = 0              # width inside REPA's projector; 0: no REPA
    encoder: ViTConfig | None = None    # REPA's encoder, image_size what it gets; None: the model's own vision tower
    accumulates: bool = True        # gradients of an earlier micro-step are there going forward
    world: int = 1                  # processes; with several, gradients lie in DDP's buckets, always
    shard: bool = False             # AdamW's state is spread over them
    recompute: bool = False         # decoder layers are computed again going backward
    optimizer: str = "adamw"        # or muon
    b: int = 2                      # bytes of a number in products: 2 in bf16 (weights stay fp32), 4 in fp32
    device: str = "cuda"            # or cpu


def vit_parameters(v):
    c, f = v.n_embd, v.n_inner
    layer = 4 * c * c + 2 * c * f + 9 * c + f + 2 * c * v.layer_scale       # qkv, proj, fc1, fc2, their biases, two norms
    return 3 * v.patch_size ** 2 * c + c + (v.grid ** 2 + 2 * v.class_token) * c + v.n_layer * layer + 2 * c


def parameters(cfg, projector=0, encoder=None):
    """{part: parameters} of a UniX; projector: width inside REPA's, with its encoder's ViTConfig."""
    C, F, z, c = cfg.n_embd, cfg.n_inner, cfg.latent_channels, cfg.vision.n_embd
    layers = cfg.n_layer * (4 * C * C + 3 * C * F + 5 * C + 2 * C // cfg.n_head) + C    # with the final norm
    parts = {"vision": vit_parameters(cfg.vision), "connector": (c + C + 2) * C, "embed": cfg.vocab_size * C, "u": layers,
             "head": cfg.vocab_size * C}
    if cfg.generation:
        parts.update(g=layers, ends=(256 + C + 2 + 2 * z + 1) * C + z)                  # time, latents in and out
    if projector:
        parts["projector"] = (C + projector + 2) * projector + (encoder or cfg.vision).n_embd * (projector + 1)
    return parts


def trained(cfg, step):
    """Of these, what the step trains."""
    frozen = {"u": ("g", "ends", "projector"), "g": ("vision", "connector", "embed", "u", "head"), "ug": ()}[step.trains]
    return {k: n for k, n in parameters(cfg, step.projector, step.encoder).items() if k not in frozen}


def vit_flops(v):
    """Forward, one image, as the products of the layers lie."""
    n, c, T = v.grid ** 2, v.n_embd, v.grid ** 2 + v.class_token
    return 6 * v.patch_size ** 2 * c * n + v.n_layer * (T * (8 * c * c + 4 * c * v.n_inner) + 4 * c * T * T)


@cache
def vae_flops(vae, size):
    """The encoder on one image, as torch counts its convolutions and attention on tensors without content; vae: its JSON."""
    vae = VAEConfig(**json.loads(vae))
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        VAE(vae).moments(torch.zeros(1, vae.in_channels, size, size))
    return counter.get_total_flops()


def flops(cfg, step):
    """Of a micro-step, forward and backward -> {"u", "g", "vision", "head", "other", "recomputed"}; MFU leaves the last out."""
    C, F, L, v, h, S, T = cfg.n_embd, cfg.n_inner, cfg.n_layer, cfg.vision, step.latents, step.report, step.text
    layers, attention = 2 * L * (4 * C * C + 3 * C * F), 4 * L * C          # a token's products; a pair's attention
    last = 2 * L * C * F                                                    # recomputing stops before a layer's last product
    idle = lambda T, S: 2 * (T * (layers / L - 4 * C * C) + T * S * 4 * C)  # an inner block's last layer: only k and v are used
    n, both, again = v.grid ** 2, "u" in step.trains, step.recompute
    image, out = n + 2, dict.fromkeys(("u", "g", "vision", "head", "other", "recomputed"), 0.0)
    if step.und:
        once = (image + T) * layers + attention * (image ** 2 + T * (image + T))
        out["u"] = step.und * (3 * once - idle(image, image))
        out["vision"] = step.und * (3 * vit_flops(v) - 6 * v.patch_size ** 2 * v.n_embd * n + 6 * n * (v.n_embd * C + C * C))
        out["head"] = step.und * step.answer * 6 * C * cfg.vocab_size
        out["recomputed"] += step.und * (once - (image + T) * last) * again
    if step.gen:
        prefix, ends = S * layers + attention * S * S, 2 * layers           # the text; SOI and EOI of the noisy block
        noisy = h * layers + attention * (h + 2) * (S + h + 2)
        out["u"] += step.gen * (3 * prefix - idle(S, S) + 3 * ends if both else prefix + ends)
        unused = 0 if both else attention * (h + 2) * S     # the gradient of frozen keys and values
        out["g"] = step.gen * (3 * noisy - unused + 10 * h * cfg.latent_channels * C + 2 * (2 * 256 * C + 3 * C * C))
        out["recomputed"] += step.gen * (noisy - h * last + ends + (prefix - S * last) * both) * again
        out["other"] += step.gen * vae_flops(json.dumps(asdict(step.vae)), step.size) if step.vae and not step.stored else 0
    encoder, I = step.encoder or v, step.projector
    out["other"] += step.gen * (vit_flops(encoder) + 6 * h * I * (C + I + encoder.n_embd)) * (I > 0)
    return out


def model_flops(cfg, step):
    """What MFU counts: all but what is computed again."""
    return sum(n for part, n in flops(cfg, step).items() if part != "recomputed")


def counted(cfg, step, gen=None, und=None):
    """What a micro-step on these batches (data.Batch) is: images, tokens that each set of weights saw, operations."""
    if gen is not None:
        step = replace(step, report=gen.ids.shape[1])
    if und is not None:
        step = replace(step, text=und.ids.shape[1], answer=int(und.tokens) / len(und.ids))
    u_tok = step.und * (cfg.vision.grid ** 2 + 2 + step.text) + step.gen * (step.report + 2)
    return {"img": step.gen or step.und, "u_tok": u_tok, "g_tok": step.gen * step.latents, "flops": model_flops(cfg, step)}


def of_run(cfg, process):
    """The fields of a Step that a run's settings and processes give."""
    return dict(world=process.world, device=process.device.type, accumulates=cfg.batch_size > cfg.micro_batch * process.world,
                shard=cfg.shard, recompute=cfg.recompute, optimizer=cfg.optimizer, b=2 if cfg.dtype == "bfloat16" else 4)


# dense bf16 (V100: fp16) products with fp32 sums, operations a second, from the vendors' data sheets, without sparsity
PEAKS = {"H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12,
         "L40S": 362e12, "L40": 181e12, "RTX 6000 Ada": 364e12, "RTX A6000": 155e12, "A40": 150e12, "A30": 165e12, "L4": 121e12,
         "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12}


def peak_flops(device, dtype="bfloat16"):
    """Operations a second at best: of a GPU by name (None: not in the table, or not bf16), of a CPU the best of six products."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device) if dtype == "bfloat16" else ""
        return next((peak for key, peak in PEAKS.items() if re.search(rf"\b{key}\b", name)), None)
    a = torch.ones(1536, 1536, dtype=getattr(torch, dtype))
    return 2 * len(a) ** 3 / min(timeit.repeat(lambda: a @ a, number=1, repeat=6))


def layer_bytes(cfg, step, T, S, branch="u", queries=0, causal=False):
    """What one decoder layer keeps for one sample: T tokens of a branch, S keys; queries: of the whole block (default T)."""
    C, F, H, b, cpu, Q = cfg.n_embd, cfg.n_inner, cfg.n_head, step.b, step.device == "cpu", queries or T
    once = branch == "g" and cpu or b == 4                    # a norm's output has the products' dtype: no cast for each
    norms = 2 * 8 * C * (1 + cpu)                             # fp32: inputs of two norms, of q's and k's; a CPU keeps both sides
    inputs = b * C * (3 if once else 6)                       # of q, k, v, o, gate, up
    tokens = T * (norms + inputs + 4 * b * F + 8 + 8 * H)     # gate, silu, up, their product; statistics of the norms
    joint = b * C * (Q + 2 * S)                               # q, k, v as they enter the products
    if cpu:
        return tokens + joint + b * H * Q * S                 # probabilities
    return tokens + joint + Q * (b * C * (Q > T) + 4 * H) + b * S * (Q if causal else 1)    # output, unless it is o's input; mask


def vit_bytes(v, step):
    """What a trained vision tower keeps for one image."""
    n, c, b, cpu = v.grid ** 2, v.n_embd, step.b, step.device == "cpu"
    attention = b * v.n_head * n if cpu else b * c + 4 * v.n_head
    return 3 * v.image_size ** 2 * b + n * (v.n_layer * (8 * c + 6 * b * c + 2 * b * v.n_inner + 16 + attention) + 4 * c)


def kept(cfg, step):
    """For backward, by autograd, at the end of a micro-step's forward pass -> {part: bytes}."""
    C, L, b, n, last = cfg.n_embd, cfg.n_layer, step.b, cfg.vision.grid ** 2, 4 + 4 * (step.device == "cpu")     # last: norm
    image, T, S, h, both, out = n + 2, step.text, step.report, step.latents, "u" in step.trains, {}
    if step.recompute:                                        # a layer's input (g is bf16, u fp32) and the cache that it reads
        und, gen = L * C * (4 * (image + T) + 2 * b * image), L * C * (b * h + 8 + 2 * b * S + 4 * S * both)
    else:
        shared = 2 * b * C * (step.device == "cpu")           # the cache's lie there once; CUDA's kernel gets a copy
        und = L * (layer_bytes(cfg, step, image, image) + layer_bytes(cfg, step, T, image + T, causal=True) - shared * image)
        gen = L * layer_bytes(cfg, step, h, S + h + 2, "g", h + 2)
        gen += L * (layer_bytes(cfg, step, S, S, causal=True) + layer_bytes(cfg, step, 2, 0) - shared * S) if both else 0
    if step.und:
        out["vision"] = step.und * (vit_bytes(cfg.vision, step) + n * b * (cfg.vision.n_embd + 2 * C))
        out["decoder, und"] = step.und * (und + last * C * T + 6 * C * step.answer)
        out["logits"] = 4 * cfg.vocab_size * step.und * step.answer * (step.und * step.answer <= CHUNK)
    if step.gen:
        out["decoder, gen"] = step.gen * (gen + (last + b) * C * h)
    if step.projector:
        out["REPA"] = step.gen * h * (b * (C + 4 * step.projector) + 12 * (step.encoder or cfg.vision).n_embd)
    return out


def moments(cfg, step):
    """What comes and goes in a micro-step, at the moments that can be its peak -> {moment: {part: bytes}}."""
    C, F, V, L, b, cpu = cfg.n_embd, cfg.n_inner, cfg.vocab_size, cfg.n_layer, step.b, step.device == "cpu"
    image, T, S, h, again = cfg.vision.grid ** 2 + 2, step.text, step.report, step.latents, step.recompute
    keep, out, gradients = kept(cfg, step), {}, 4 * sum(trained(cfg, step).values())
    before = gradients if step.accumulates or step.world > 1 else 0         # those that are there going forward
    copies = {k: 2 * n * (b == 2 and k != "embed") for k, n in trained(cfg, step).items()}    # autocast's, in bf16
    left = sum(n for k, n in copies.items() if not (again and k in "ug"))   # and those that autograd keeps

    def at(name, gradients, copies, cache, temporary):
        out[name] = {"gradients": gradients, "bf16 copies": copies, **keep, "keys and values": cache, "temporary": temporary}

    once = cpu and not again                                    # autograd keeps the cache's keys, but copies of its values
    cache = step.und * L * b * C * ((image + T if once else 2 * T) + 2 * (image + T))
    cache += step.gen * L * b * C * (S + h + 2 if once else 2 * S * (not again) + 2 * (h + 2))
    if step.und:
        chunk = min(CHUNK, step.und * step.answer)
        at("logits, forward", before, sum(copies.values()), cache, (b + 8) * V * chunk)
        at("logits, backward", max(before, 4 * V * C), left, 0, max(12 * V * chunk, (b + 4) * V * C))
    if step.gen:
        v = step.encoder or cfg.vision
        M = (v.grid ** 2 + v.class_token) * (step.projector > 0)
        encode = M * (8 * v.n_embd + max(2 * b * v.n_inner, b * (6 * v.n_embd + 2 * M * v.n_head * cpu)))
        at("end of the forward pass", before, sum(copies.values()), cache, step.gen * encode)
        out["VAE"] = {"gradients": before, **{k: n for k, n in keep.items() if k not in ("decoder, gen", "REPA")},
                      "keys and values": step.gen * L * 2 * b * C * S,
                      "temporary": step.gen * 12 * step.vae.ch * step.size ** 2 if step.vae and not step.stored else 0}
    # computed again, the last layer to go backward costs as much as the first, and finds all gradients
    temporary = 4 * b * F * max(step.und * image, step.und * T, step.gen * h) + 6 * C * F
    if again:
        temporary += b * (4 * C * C + 3 * C * F) + max(
            step.und * layer_bytes(cfg, step, image, image), step.und * layer_bytes(cfg, step, T, image + T, causal=True),
            step.gen * layer_bytes(cfg, step, h, S + h + 2, "g", h + 2))
    at("a layer, backward", gradients if again else before, left, 0, temporary)
    out["end of the backward pass"] = {"gradients": gradients}
    return out


def memory(cfg, step):
    """-> (the moment of the peak, {part: bytes} at it) of one process, with the sum under "total"."""
    parts, own = parameters(cfg, step.projector, step.encoder), trained(cfg, step)
    N, rows = sum(own.values()), own.get("embed", 0) + own.get("head", 0)      # rows: never Muon's
    with torch.device("meta"):
        frozen = sum(p.numel() for p in VAE(step.vae).parameters()) if step.vae else 0
    frozen += sum(parts.values()) - N + (vit_parameters(step.encoder) if step.encoder else 0)
    adamw, muon = (N, 0) if step.optimizer == "adamw" else (rows, N - rows)
    table = {"weights, trained": 4 * N, "weights, frozen": 4 * frozen, "average (EMA)": 4 * (N - own.get("projector", 0)),
             "optimizer": 8 * adamw / (step.world if step.shard else 1) + 4 * muon}
    found = moments(cfg, step)
    peak = max(found, key=lambda name: sum(found[name].values()))
    table.update(found[peak])
    if step.device == "cpu":                # measured: glibc's heap has gaps with cpu.keep_memory, and the libraries are there
        table.update({"gaps in the heap": 0.2 * sum(table.values()), "Python and torch": 0.38e9})
    else:                                   # allowances, not measured
        table.update({"CUDA context": 1e9, "NCCL": 1e9 * (step.world > 1)})
    return peak, {**{k: n for k, n in table.items() if n}, "total": sum(table.values())}


def describe_memory(cfg, step):
    """The estimate as a small table, for printing before a run."""
    peak, parts = memory(cfg, step)
    head = f"memory of one process at its peak ({peak}), texts of {step.text if step.und else step.report} tokens, estimated:"
    return "\n".join([head, *(f"    {name:<26}{size / 1e9:8.2f} GB" for name, size in parts.items())])


EIGHT = dict(world=8, shard=True)
DRAWS = dict(vae=VAEConfig(), **EIGHT)
STAGES = {      # (Table 1's stage, or Table 5's row 1:1; GB of each of eight GPUs) -> settings that fit
    ("1", 48): Step("u", und=8, recompute=True, **EIGHT), ("1", 80): Step("u", und=8, **EIGHT),
    ("2", 48): Step("g", gen=8, projector=2048, encoder=RAD_DINO, **DRAWS),
    ("2", 80): Step("g", gen=32, projector=2048, encoder=RAD_DINO, **DRAWS),
    ("3", 48): Step("g", gen=4, size=512, latents=1024, **DRAWS), ("3", 80): Step("g", gen=8, size=512, latents=1024, **DRAWS),
    ("1:1", 80): Step("ug", und=4, gen=4, **DRAWS),             # nothing fits 48 GB: 51 GB with one sample, recomputed
}


def main():
    """Each row part by part; then in a line: GB with usual and with the longest texts, 1e15 operations a step of 256."""
    lines = ["stage  GPU  flags                                   GB  longest    ops  again"]
    for (stage, gpu), step in STAGES.items():
        cfg = UniXConfig(generation=step.gen > 0)
        longest = replace(step, text=2 * cfg.max_text, answer=cfg.max_text, report=cfg.max_text)
        usual, most = (memory(cfg, s)[1]["total"] / 1e9 for s in (step, longest))
        micro, flags = max(step.und, step.gen), " --shard" + " --recompute" * step.recompute
        work = {k: n * 256 / micro / 1e15 for k, n in flops(cfg, step).items()}
        again, parts = work.pop("recomputed"), ", ".join(f"{k} {n:.2f}" for k, n in work.items() if n)
        lines.append(f"{stage:>5}{gpu:>5}  --micro-batch {micro:<3}{flags:<20}{usual:7.1f}{most:9.1f}"
                     f"{sum(work.values()):7.2f}{again:7.2f}  {parts}")
        print(f"stage {stage}, {gpu} GB:", describe_memory(cfg, step))
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
