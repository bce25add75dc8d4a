"""UniX: one decoder that reads a chest X-ray and writes its report, and draws one from a report.

Two branches share 24 layers (arXiv 2601.11522): `u` (understanding: text, vision and boundary
tokens), which starts from Janus-Pro-1B, and `g` (generation: noisy latent tokens), which starts
as its copy. Each has its own weights; attention is joint (Eq. 3-5).

    report generation   prefill_image -> prefill_text(prompt) -> prefill_text, one token at a time
    image generation    prefill_text(report) -> velocity(x_t, t) again and again on that cache
    training            the same calls

`python model.py` prints one sample of each kind, block by block, and who sees whom.

Text never sees the noise: the report's keys and values are the same at every t, so they are
computed once and then only read, in sampling and in training. Of the u stream, only the two
boundary tokens of the noisy block see the noise. This is how the release does it, and a departure
from the paper's §3.3 ("generative states feed back into the semantic space").

B batch, T tokens, C width, h w latent grid; x_t noised, t in [0, 1] (1 = noise), v = noise - x_0.
"""
import copy
import math
from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from attention import Cache, Heads, RMSNorm, attend, behind, rope
from vision import ViT, ViTConfig, filled


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
    double_bos: bool = False        # two BOS before a prompt: the release's inference alone
    connector_gelu: str = "none"    # "tanh" in the released UniX, "none" (exact) in Janus-Pro
    vision: ViTConfig = field(default_factory=ViTConfig)
    generation: bool = True         # False: no g branch (stage 1 neither builds nor saves it)
    latent_channels: int = 16
    max_latent_size: int = 32       # side of the position table; a picture may use less of it
    repa_layer: int = 8             # REPA reads the latents' hidden states after it, counted from 1

    def __post_init__(self):
        if isinstance(self.vision, dict):       # out of a config.json
            self.vision = ViTConfig(**self.vision)
        assert self.n_head > 0 and self.n_embd % self.n_head == 0, \
            f"{self.n_head} heads do not divide width {self.n_embd}"
        assert 1 <= self.repa_layer <= self.n_layer, \
            f"repa_layer {self.repa_layer} is not one of {self.n_layer} layers"


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, n_embd, n_inner):
        super().__init__()
        self.gate = nn.Linear(n_embd, n_inner, bias=False)
        self.up = nn.Linear(n_embd, n_inner, bias=False)
        self.down = nn.Linear(n_inner, n_embd, bias=False)

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Branch(nn.Module):
    """One modality's parameters in one layer: a pre-norm block, before and after the softmax."""

    def __init__(self, cfg):
        super().__init__()
        self.norm1 = RMSNorm(cfg.n_embd, cfg.norm_eps)
        self.norm2 = RMSNorm(cfg.n_embd, cfg.norm_eps)
        self.heads = Heads(cfg.n_embd, cfg.n_head, cfg.norm_eps)
        self.mlp = MLP(cfg.n_embd, cfg.n_inner)

    def before(self, x, angles):
        """x (B, T, C) -> queries, keys, values (B, H, T, D)."""
        return self.heads(self.norm1(x), angles)

    def after(self, x, y):
        """x (B, T, C) and what attention gave its tokens, y (B, T, H, D) -> the next x."""
        x = x + self.heads.o(y.flatten(2))
        return x + self.mlp(self.norm2(x))


class Layer(nn.Module):
    """Two branches, one softmax."""

    def __init__(self, cfg):
        super().__init__()
        self.u = Branch(cfg)
        self.g = Branch(cfg) if cfg.generation else None

    def forward(self, u, g, angles, past, bias, causal, grad_u=True):
        """u (B, Tu, C), g (B, Tg, C) or None -> u, g, the block's k and v (B, H, Tu + Tg, D).

        past: of the cache, see `behind`; as tensors, so that torch.compile makes one graph for all
        layers. bias, causal: see `attend`. grad_u=False: no gradient passes through the u stream.
        """
        Tu = u.size(1)
        Tg = 0 if g is None else g.size(1)
        grad_u = grad_u and torch.is_grad_enabled()

        # queries, keys and values, each token's by the weights of its branch (Eq. 3)
        with torch.set_grad_enabled(grad_u):
            q, k, v = self.u.before(u, angles)
        if g is not None:
            q_g, k_g, v_g = self.g.before(g, angles)
            q = torch.cat([q, q_g], dim=2)
            k = torch.cat([k, k_g], dim=2)
            v = torch.cat([v, v_g], dim=2)

        # one softmax over the cache and both streams (Eq. 4-5)
        y_u, y_g = attend(q, *behind(past, k, v), bias, causal).split([Tu, Tg], dim=1)

        # output projection and MLP, by branch again
        with torch.set_grad_enabled(grad_u):
            u = self.u.after(u, y_u)
        if g is not None:
            g = self.g.after(g, y_g)
        return u, g, (k, v)


def position_table(size, n_embd):
    """Fixed 2-D sine-cosine table (size * size, C) in fp32.

    The first half of C encodes the column, the second the row.

    Each half is [sin | cos] with frequencies 10000^(-i / (C/4)). Row r, column c of any picture
    reads entry r * size + c, so a larger picture simply uses more of the table (stage 3).
    """
    freqs = 10000.0 ** (-torch.arange(n_embd // 4, dtype=torch.float64) / (n_embd / 4))
    angles = torch.arange(size, dtype=torch.float64)[:, None] * freqs
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)                       # (size, C/2)
    columns, rows = axis.repeat(size, 1), axis.repeat_interleave(size, dim=0)   # (size^2, C/2)
    return torch.cat([columns, rows], dim=1).float()


def time_features(t, dim=256):
    """t (B,) in [0, 1], not times 1000 -> (B, dim) in fp32: [cos | sin], 10000^(-i / (dim/2))."""
    half = dim // 2
    freqs = 10000.0 ** (-torch.arange(half, device=t.device, dtype=torch.float32) / half)
    angles = t[:, None].float() * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class UniX(nn.Module):
    """The decoder of two branches, the vision tower before it, and the latents' way in and out."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        C = cfg.n_embd
        self.embed = nn.Embedding(cfg.vocab_size, C)
        self.vision = ViT(cfg.vision)
        self.connector = nn.Sequential(
            nn.Linear(cfg.vision.n_embd, C), nn.GELU(cfg.connector_gelu), nn.Linear(C, C))
        self.layers = nn.ModuleList(Layer(cfg) for _ in range(cfg.n_layer))
        self.norm_u = RMSNorm(C, cfg.norm_eps)
        self.lm_head = nn.Linear(C, cfg.vocab_size, bias=False)
        self.unused, self.about = {}, {}    # to save again: foreign tensors, what it was trained on
        self.recompute = False          # training only: compute layers twice, to save memory
        self.frozen_u = False           # whether all of u is frozen, so that it passes no gradient

        # a fresh network; real runs load weights instead
        self.apply(init_weights)
        self.scale_residuals([layer.u for layer in self.layers])
        if cfg.generation:
            self.build_latent_ends(RMSNorm(C, cfg.norm_eps))
            self.scale_residuals([layer.g for layer in self.layers])

    def build_latent_ends(self, norm_g):
        """What g has besides its layers: final norm, latent in and out, time and positions."""
        C = self.cfg.n_embd
        self.norm_g = norm_g
        self.time_embed = nn.Sequential(nn.Linear(256, C), nn.SiLU(), nn.Linear(C, C))
        self.time_embed.apply(init_weights)
        self.latent_in = nn.Linear(self.cfg.latent_channels, C).apply(init_weights)
        self.latent_out = nn.Linear(C, self.cfg.latent_channels)
        nn.init.zeros_(self.latent_out.weight)          # the first velocity is zero
        nn.init.zeros_(self.latent_out.bias)
        self.build_positions()

    def build_positions(self):
        """The table is a formula, so it is not saved; a larger one agrees at each (row, column)."""
        table = position_table(self.cfg.max_latent_size, self.cfg.n_embd)
        self.register_buffer("latent_positions", table, persistent=False)

    def scale_residuals(self, branches):
        """What writes into the residual stream starts smaller in a deeper model (GPT-2)."""
        for branch in branches:
            for linear in (branch.heads.o, branch.mlp.down):
                std = linear.in_features ** -0.5 / math.sqrt(2 * self.cfg.n_layer)
                nn.init.normal_(linear.weight, std=std)

    def block(self, u, g, cache, positions, causal, taps=(), grad_u=True):
        """Run one block on top of a cache. That is the whole model; the rest prepares its inputs.

        u (B, Tu, C), g (B, Tg, C) or None, positions (B, T), or (B, 1) for all tokens -> u and g
        after the final norms, the new keys and values per layer, and {l: g after layer l} for l
        in taps, counted from 1 and without the final norm.
        """
        T = u.size(1) + (0 if g is None else g.size(1))
        angles = rope(positions, self.cfg.n_embd // self.cfg.n_head, self.cfg.rope_theta)
        bias = cache.bias(T, causal)
        new, hiddens = [], {}                   # keys and values by layer; what REPA taps
        for i, layer in enumerate(self.layers):
            # in training, a layer may forget what it computed and compute it again going backward
            run = layer
            if self.recompute and torch.is_grad_enabled():
                run = partial(checkpoint, layer, use_reentrant=False, preserve_rng_state=False)
            u, g, kv = run(u, g, angles, cache.past(i, T), bias, causal, grad_u)
            new.append(kv)
            if i + 1 in taps:
                hiddens[i + 1] = g
        with torch.set_grad_enabled(grad_u and torch.is_grad_enabled()):
            u = self.norm_u(u)
        if g is not None:
            g = self.norm_g(g)
        return u, g, new, hiddens

    def boundary(self, B):
        """The start- and end-of-image tokens around an image or latent block: two (B, 1, C)."""
        ids = filled([self.cfg.soi, self.cfg.eoi], self.embed.weight.device)
        return self.embed(ids).expand(B, 2, -1).split(1, dim=1)

    def encode_image(self, pixels):
        """Normalised pixels (B, 3, H, W) -> vision tower, connector -> (B, N, C)."""
        return self.connector(self.vision(pixels))

    def prefill_image(self, pixels, cache=None):
        """Image block: pixels (B, 3, H, W) -> hidden (B, N + 2, C), cache.

        SOI, N vision tokens, EOI; full attention; ONE position, since the vision tower
        already encodes where each patch lies.
        """
        B = pixels.size(0)
        if cache is None:
            cache = Cache.empty(B, pixels.device)
        soi, eoi = self.boundary(B)
        u = torch.cat([soi, self.encode_image(pixels), eoi], dim=1)                  # (B, N + 2, C)
        u, _, new, _ = self.block(u, None, cache, cache.next_position[:, None], causal=False)
        return u, cache.append(new, cache.valid.new_ones(B, u.size(1)), 1)

    def prefill_text(self, ids, valid=None, cache=None):
        """Text block: ids (B, T), causal, consecutive positions -> hidden (B, T, C), cache.

        valid (B, T) marks what is no padding, which must lie on the right; None: no padding.
        """
        B, T = ids.shape
        if cache is None:
            cache = Cache.empty(B, ids.device)
        if valid is None:
            valid = torch.ones_like(ids, dtype=torch.bool)
        positions = cache.next_position[:, None] + torch.arange(T, device=ids.device)
        u, _, new, _ = self.block(self.embed(ids), None, cache, positions, causal=True)
        return u, cache.append(new, valid, valid.sum(dim=1))

    def denoise(self, x_t, t, cache=None, taps=()):
        """Noisy block: x_t (B, 16, h, w), t (B,) -> velocity (B, 16, h, w), {layer: hidden}.

        SOI and EOI in the u stream, h*w latents in the g stream; full attention; ONE position,
        since a table says where each latent lies. The block is never cached. No cache is the
        unconditional context; taps asks for hidden states (B, h*w, C) of g.

        While all of u is frozen no gradient passes through the u rows, as in the release;
        otherwise it does (on a toy model the gradient differs by 7 %).
        """
        B, _, h, w = x_t.shape
        size = self.cfg.max_latent_size
        assert max(h, w) <= size, f"a latent of {h}x{w} exceeds the position table of {size}x{size}"
        if cache is None:
            cache = Cache.empty(B, x_t.device)

        # the g stream: a token per latent pixel, row by row, with its time and its place
        table = self.latent_positions.view(size, size, -1)[:h, :w].flatten(0, 1)        # (h*w, C)
        time = self.time_embed(time_features(t).to(self.time_embed[0].weight.dtype))    # (B, C)
        latents = self.latent_in(x_t.flatten(2).transpose(1, 2))                     # (B, h*w, C)
        g = latents + time[:, None] + table.to(time.dtype)

        # the u stream: the two boundary tokens
        with torch.set_grad_enabled(not self.frozen_u and torch.is_grad_enabled()):
            u = torch.cat(self.boundary(B), dim=1)                                      # (B, 2, C)

        _, g, _, hiddens = self.block(u, g, cache, cache.next_position[:, None], causal=False,
                                      taps=taps, grad_u=not self.frozen_u)
        v = self.latent_out(g).transpose(1, 2).unflatten(2, (h, w))                  # (B, 16, h, w)
        return v, hiddens

    def velocity(self, x_t, t, cache=None):
        return self.denoise(x_t, t, cache)[0]

    def logits(self, hidden):
        return self.lm_head(hidden)

    def report_loss(self, hidden, labels, chunk=1024):
        """Cross-entropy (Eq. 1): hidden (M, C), each at the token before its label (M,) -> (M,).

        In fp32, and in chunks whose logits are computed again going backward: M x 102,400 of them,
        in fp32 and with their gradient, would be most of the memory of a step.
        """
        def loss(hidden, labels):
            return F.cross_entropy(self.logits(hidden).float(), labels, reduction="none")

        if len(labels) <= chunk:
            return loss(hidden, labels)
        chunks = zip(hidden.split(chunk), labels.split(chunk))
        return torch.cat([checkpoint(loss, h, l, use_reentrant=False) for h, l in chunks])

    def g_parameters(self):
        return [p for name, p in self.named_parameters() if is_generation(name)]

    def u_parameters(self):
        return [p for name, p in self.named_parameters() if not is_generation(name)]

    def freeze(self, branch):
        """Freeze "u" (vision tower, connector, embeddings, head, u layers) or "g" (the rest)."""
        for p in {"u": self.u_parameters, "g": self.g_parameters}[branch]():
            p.requires_grad_(False)
        self.frozen_u |= branch == "u"

    def copy_u_to_g(self):
        """Make the generation set (anew): layers and final norm copied from u, the rest fresh."""
        # u may be frozen already, its copy must not be
        self.cfg.generation = True
        for layer in self.layers:
            layer.g = copy.deepcopy(layer.u).requires_grad_(True)
        self.build_latent_ends(copy.deepcopy(self.norm_u).requires_grad_(True))
        self.to(self.embed.weight.device, self.embed.weight.dtype)


def is_generation(name):
    """Whether a parameter of UniX is of the generation set; all others are of understanding."""
    ends = ("norm_g", "time_embed", "latent_in", "latent_out")
    return ".g." in name or name.split(".")[0] in ends


def init_weights(module):
    """Matrices normal with std 1/sqrt(fan_in), embeddings with 0.02, biases 0."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)


if __name__ == "__main__":
    from common.cli import cli          # here alone: the network itself needs no other room
    from training.blocks import describe
    cli(lambda argv: describe(UniXConfig()), __doc__)
