"""UniX: one decoder that reads a chest X-ray and writes its report, and draws one from a report (arXiv 2601.11522).

Two branches share 24 layers: `u` (understanding: text, vision and boundary tokens) starts from Janus-Pro-1B, `g`
(generation: noisy latent tokens) starts as its copy. Each has its own weights; attention is joint (Eq. 3-5).

    report generation   prefill_image -> prefill_text(prompt) -> prefill_text, one token at a time
    image generation    prefill_text(report) -> velocity(x_t, t) again and again on the same read-only cache
    training            the same calls

`python model.py` prints one sample of each kind, block by block, with positions and shapes.

Departs from the paper's §3.3 ("generative states feed back into the semantic space") as the release does: text never
sees the noise, only the two boundary tokens of the noisy block do.

B batch, T tokens, C width, h w latent grid; x_t noised latent, t in [0, 1] (1 = noise), v = noise - x_0.
"""
import copy
import math
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from attention import Cache, Heads, RMSNorm, attend, rope, visible
from vision import ViT, ViTConfig, normalize


@dataclass
class UniXConfig:
    n_layer: int = 24
    n_head: int = 16
    n_embd: int = 2048
    n_inner: int = 5632
    vocab_size: int = 102400
    norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    bos: int = 100000               # special tokens are addressed by number
    eos: int = 100001
    soi: int = 100003               # start and end of an image or latent block
    eoi: int = 100580
    max_text: int = 512             # tokens of one text block, BOS and EOS included
    double_bos: bool = False        # prompts with two BOS: the release's inference, not its training
    connector_gelu: str = "none"    # "tanh" in the released UniX, "none" (exact) in Janus-Pro
    vision: ViTConfig = field(default_factory=ViTConfig)
    generation: bool = True         # whether the generation set exists (stage 1 neither builds nor saves it)
    latent_channels: int = 16
    max_latent_size: int = 32       # rows and columns of the position table; a picture may use fewer
    repa_layer: int = 8             # REPA reads the latents' hidden states after this layer, counted from 1

    def __post_init__(self):
        self.vision = ViTConfig(**self.vision) if isinstance(self.vision, dict) else self.vision
        assert self.n_head > 0 and self.n_embd % self.n_head == 0, f"{self.n_head} heads do not divide width {self.n_embd}"
        assert 1 <= self.repa_layer <= self.n_layer, f"repa_layer {self.repa_layer} is not one of {self.n_layer} layers"


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, n_embd, n_inner):
        super().__init__()
        self.gate, self.up = (nn.Linear(n_embd, n_inner, bias=False) for _ in range(2))
        self.down = nn.Linear(n_inner, n_embd, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Branch(nn.Module):
    """One modality's whole set of parameters in one layer."""

    def __init__(self, cfg):
        super().__init__()
        self.norm1, self.norm2 = (RMSNorm(cfg.n_embd, cfg.norm_eps) for _ in range(2))
        self.heads = Heads(cfg.n_embd, cfg.n_head, cfg.norm_eps)
        self.mlp = MLP(cfg.n_embd, cfg.n_inner)

    def before(self, x, angles):
        return self.heads(self.norm1(x), angles)

    def after(self, x, y):
        x = x + self.heads.o(y.flatten(2))
        return x + self.mlp(self.norm2(x))


class Layer(nn.Module):
    """Two branches, one softmax."""

    def __init__(self, cfg):
        super().__init__()
        self.u = Branch(cfg)
        self.g = Branch(cfg) if cfg.generation else None

    def forward(self, u, g, angles, past, bias, grad_u=True):
        """u (B, Tu, C), g (B, Tg, C) or None -> the same, and the block's keys and values (B, H, Tu + Tg, D).

        past(k, v) puts the cache in front. grad_u=False: no gradient through the u stream (the u branch is frozen).
        """
        grad_u = grad_u and torch.is_grad_enabled()
        with torch.set_grad_enabled(grad_u):
            q, k, v = self.u.before(u, angles)
        if g is not None:
            q, k, v = (torch.cat(pair, dim=2) for pair in zip((q, k, v), self.g.before(g, angles)))
        y = attend(q, *past(k, v), bias)
        y_u, y_g = y.split([u.size(1), y.size(1) - u.size(1)], dim=1)
        with torch.set_grad_enabled(grad_u):
            u = self.u.after(u, y_u)
        return u, g if g is None else self.g.after(g, y_g), (k, v)


def position_table(size, n_embd):
    """Fixed 2-D sine-cosine table (size * size, C) in fp32: first half of C for the column, second for the row.

    Each half is [sin | cos] with frequencies 10000^(-i / (C/4)). A row r, column c of any picture reads r * size + c,
    so a larger picture simply uses more of the table (stage 3).
    """
    freqs = 10000.0 ** (-torch.arange(n_embd // 4, dtype=torch.float64) / (n_embd / 4))
    angles = torch.arange(size, dtype=torch.float64)[:, None] * freqs
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)                             # (size, C/2)
    return torch.cat([axis.repeat(size, 1), axis.repeat_interleave(size, 0)], dim=1).float()


def time_features(t, dim=256):
    """t (B,) in [0, 1], not times 1000 -> (B, dim) in fp32: [cos | sin], frequencies 10000^(-i / (dim/2))."""
    half = dim // 2
    freqs = 10000.0 ** (-torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t[:, None].float() * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class UniX(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        C = cfg.n_embd
        self.embed = nn.Embedding(cfg.vocab_size, C)
        self.vision = ViT(cfg.vision)
        self.connector = nn.Sequential(nn.Linear(cfg.vision.n_embd, C), nn.GELU(cfg.connector_gelu), nn.Linear(C, C))
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.n_layer))
        self.norm_u = RMSNorm(C, cfg.norm_eps)
        self.lm_head = nn.Linear(C, cfg.vocab_size, bias=False)
        self.unused = {}                # tensors of a foreign checkpoint that we keep only to give them back
        self.recompute = False          # training forgets what a layer computes and computes it again going backward
        self.apply(init_weights)
        self.scale_residuals([layer.u for layer in self.layers])
        if cfg.generation:
            self.build_latent_ends(RMSNorm(C, cfg.norm_eps))
            self.scale_residuals([layer.g for layer in self.layers])

    def build_latent_ends(self, norm_g):
        """What the g stream has besides its layers: final norm, latent in and out, time and position embeddings."""
        C = self.cfg.n_embd
        self.norm_g = norm_g
        self.time_embed = nn.Sequential(nn.Linear(256, C), nn.SiLU(), nn.Linear(C, C)).apply(init_weights)
        self.latent_in = nn.Linear(self.cfg.latent_channels, C).apply(init_weights)
        self.latent_out = nn.Linear(C, self.cfg.latent_channels)
        nn.init.zeros_(self.latent_out.weight), nn.init.zeros_(self.latent_out.bias)
        self.build_positions()

    def build_positions(self):
        """The position table is a formula, so it is never saved; a larger one extends a smaller one exactly."""
        table = position_table(self.cfg.max_latent_size, self.cfg.n_embd)
        self.register_buffer("latent_positions", table, persistent=False)

    def scale_residuals(self, branches):
        """The two projections that write into the residual stream start smaller with depth (GPT-2)."""
        for branch in branches:
            for linear in (branch.heads.o, branch.mlp.down):
                nn.init.normal_(linear.weight, std=linear.in_features ** -0.5 / math.sqrt(2 * self.cfg.n_layer))

    # ---- blocks: everything is one block on top of a cache ----

    def block(self, u, g, cache, positions, causal, taps=(), grad_u=True):
        """Run one block. u (B, Tu, C), g (B, Tg, C) or None, positions (B, T), or (B, 1) for a block that shares one.

        -> u, g after the final norms, the new keys and values per layer, and {l: g after layer l} for l in taps,
        counted from 1 and without the final norm.
        """
        angles = rope(positions, self.cfg.n_embd // self.cfg.n_head, self.cfg.rope_theta)
        bias = visible(cache.valid, u.size(1) + (0 if g is None else g.size(1)), causal)
        new, hiddens = [], {}
        for i, layer in enumerate(self.layers):
            run = partial(checkpoint, layer, use_reentrant=False) if self.recompute and torch.is_grad_enabled() else layer
            u, g, kv = run(u, g, angles, partial(cache.read, i), bias, grad_u)
            new.append(kv)
            if i + 1 in taps:
                hiddens[i + 1] = g
        with torch.set_grad_enabled(grad_u and torch.is_grad_enabled()):
            u = self.norm_u(u)
        return u, g if g is None else self.norm_g(g), new, hiddens

    def boundary(self, B):
        """The start- and end-of-image tokens around an image or latent block: two (B, 1, C)."""
        ids = torch.tensor([self.cfg.soi, self.cfg.eoi], device=self.embed.weight.device)
        return self.embed(ids).expand(B, 2, -1).split(1, dim=1)

    def encode_image(self, pixels):
        """Normalised pixels (B, 3, H, W) -> vision tower, connector -> (B, N, C)."""
        return self.connector(self.vision(pixels))

    def prefill_image(self, pixels, cache=None):
        """Image block: SOI, N vision tokens, EOI, full attention, ONE position -> hidden (B, N + 2, C), cache."""
        B = pixels.size(0)
        cache = Cache.empty(B, pixels.device) if cache is None else cache
        soi, eoi = self.boundary(B)
        u = torch.cat([soi, self.encode_image(pixels), eoi], dim=1)
        u, _, new, _ = self.block(u, None, cache, cache.next_position[:, None], causal=False)
        return u, cache.append(new, cache.valid.new_ones(B, u.size(1)), 1)

    def prefill_text(self, ids, valid=None, cache=None):
        """Text block: ids (B, T), causal, consecutive positions -> hidden (B, T, C), cache.

        valid (B, T) bool marks the tokens that are not padding; padding must lie on the right. None: no padding.
        """
        B, T = ids.shape
        cache = Cache.empty(B, ids.device) if cache is None else cache
        valid = torch.ones_like(ids, dtype=torch.bool) if valid is None else valid
        positions = cache.next_position[:, None] + torch.arange(T, device=ids.device)
        u, _, new, _ = self.block(self.embed(ids), None, cache, positions, causal=True)
        return u, cache.append(new, valid, valid.sum(dim=1))

    def logits(self, hidden):
        return self.lm_head(hidden)

    def report_loss(self, hidden, labels, chunk=1024):
        """Cross-entropy per report token (Eq. 1): hidden (M, C) at the tokens before labels (M,) -> (M,), in fp32.

        In chunks, whose logits are computed again going backward: M x 102,400 of them would be most of the memory.
        """
        loss = lambda h, l: F.cross_entropy(self.logits(h).float(), l, reduction="none")
        if len(labels) <= chunk:
            return loss(hidden, labels)
        return torch.cat([checkpoint(loss, h, l, use_reentrant=False) for h, l in zip(hidden.split(chunk), labels.split(chunk))])

    def reading_loss(self, images, ids, valid, labels):
        """What stage 1 trains: grey images (B, 1, S, S) uint8, text and labels (B, T) -> summed cross-entropy of the
        report tokens, whose labels are the next token; the others' are -100 and no logits are computed there."""
        _, cache = self.prefill_image(normalize(images.float() / 255, self.cfg.vision))
        hidden, _ = self.prefill_text(ids, valid, cache)
        rows = labels != -100
        return self.report_loss(hidden[rows], labels[rows]).sum()

    def denoise(self, x_t, t, cache=None, taps=()):
        """Noisy block: SOI and EOI in the u stream, h*w latents in the g stream, full attention, ONE position.

        x_t (B, 16, h, w), t (B,) -> velocity (B, 16, h, w), {layer: latents' hidden states (B, h*w, C)} for taps.
        No cache is the unconditional context. The block is never cached. While all of u is frozen no gradient passes
        through the u rows, as in the release; otherwise it does (a toy-size gradient differs by 7 %).
        """
        B, _, h, w = x_t.shape
        size = self.cfg.max_latent_size
        assert max(h, w) <= size, f"a latent of {h}x{w} exceeds the position table of {size}x{size}"
        cache = Cache.empty(B, x_t.device) if cache is None else cache
        table = self.latent_positions.view(size, size, -1)[:h, :w].flatten(0, 1)      # (h*w, C)
        time = self.time_embed(time_features(t).to(self.time_embed[0].weight.dtype))  # (B, C)
        g = self.latent_in(x_t.flatten(2).transpose(1, 2)) + time[:, None] + table.to(time.dtype)
        grad_u = any(p.requires_grad for p in self.u_parameters())
        with torch.set_grad_enabled(grad_u and torch.is_grad_enabled()):
            u = torch.cat(self.boundary(B), dim=1)
        _, g, _, hiddens = self.block(u, g, cache, cache.next_position[:, None], False, taps, grad_u)
        return self.latent_out(g).transpose(1, 2).unflatten(2, (h, w)), hiddens

    def velocity(self, x_t, t, cache=None):
        return self.denoise(x_t, t, cache)[0]

    # ---- surgery ----

    def g_parameters(self):
        return [p for name, p in self.named_parameters() if is_generation(name)]

    def u_parameters(self):
        return [p for name, p in self.named_parameters() if not is_generation(name)]

    def freeze(self, branch):
        """Freeze "u" (everything of understanding: vision, connector, embeddings, head, u set) or "g" (the rest)."""
        for p in {"u": self.u_parameters, "g": self.g_parameters}[branch]():
            p.requires_grad_(False)

    def copy_u_to_g(self):
        """Make (or make anew) the generation set: layers and final norm copied from u, latent ends fresh."""
        self.cfg.generation = True
        for layer in self.layers:
            layer.g = copy.deepcopy(layer.u).requires_grad_(True)
        self.build_latent_ends(copy.deepcopy(self.norm_u).requires_grad_(True))
        self.to(self.embed.weight.device, self.embed.weight.dtype)


def is_generation(name):
    """Whether a parameter of UniX belongs to the generation set; all others are the understanding set's."""
    return ".g." in name or name.split(".")[0] in ("norm_g", "time_embed", "latent_in", "latent_out")


def init_weights(module):
    """Matrices normal with std 1/sqrt(fan_in), embeddings 0.02, biases 0. Real runs load weights instead."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


def describe(cfg, prompt=4, report=6, latent=(2, 2)):
    """Print the three kinds of sample block by block: tokens, positions, attention, shapes and branch."""
    row = "    {:<14} {:<44} {:<12} {:<8} {:<8} {}"
    n, C = cfg.vision.grid ** 2, cfg.n_embd
    image = ("image", f"SOI, {n} vision tokens, EOI", "0", "full", "u", f"(B, {n + 2}, {C})")
    noisy = "SOI, EOI in u; {} latents in g".format(latent[0] * latent[1])
    text = lambda name, T, at: (name, f"BOS, {T} ids, EOS", f"{at}..{at + T + 1}", "causal", "u", f"(B, {T + 2}, {C})")
    block = lambda at: ("noisy latent", noisy, str(at), "full", "u and g",
                        f"(B, 2, {C}) and (B, {latent[0] * latent[1]}, {C})")
    head = ("block", "tokens", "positions", "inside", "branch", "hidden states")
    answer = text("report", report, prompt + 3)
    for title, blocks in (("image -> report (loss on the report and its EOS)", [image, text("prompt", prompt, 1), answer]),
                          ("report -> image (loss on the latents)", [text("report", report, 0), block(report + 2)]),
                          ("unconditional, for guidance", [block(0)])):
        print(title, row.format(*head), *(row.format(*b) for b in blocks), "", sep="\n")


if __name__ == "__main__":
    describe(UniXConfig())
    with torch.device("meta"):
        model = UniX(UniXConfig())
    for name, part in (("understanding set", model.u_parameters()), ("generation set", model.g_parameters())):
        print(f"{name}: {sum(p.numel() for p in part):,} parameters in {len(part)} tensors")
