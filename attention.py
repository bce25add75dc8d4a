"""Attention of UniX: where a token sits (RoPE), whom it sees (cache and mask), and two branches in one softmax.

A sequence is a list of blocks (image, text, noisy latent). One rule says who sees whom: **a token sees every valid
token of the earlier clean blocks and, inside its own block, all tokens (full) or those up to itself (causal).**
Earlier blocks live in a cache of keys and values, so "run one block on top of a cache" is the whole model.

What differs from the usual: each modality has its own projections and norms (paper Eq. 3), yet there is one softmax
over all tokens (Eq. 4-5). The understanding stream `u` and the generation stream `g` stay two tensors and are
concatenated for one attention call; no index gather or scatter.

B batch, T tokens of the block, S tokens in the cache, C width, H heads, D head width. Heads come before tokens,
(B, H, T, D), so that products per head read keys and values as they lie.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; statistics in fp32 whatever the dtype of x."""

    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rope(positions, dim, theta):
    """Rotation angles in fp32: positions (B, T) or (B, 1) for a block that shares one -> cos, sin (B, 1, T, D/2)."""
    freqs = theta ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions[:, None, :, None].float() * freqs
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotate (B, H, T, D) by its position, pairing the first half of D with the second ("rotate half"), in fp32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat([torch.addcmul(a * cos, b, sin, value=-1), torch.addcmul(b * cos, a, sin)], dim=-1)


def visible(valid, T, causal):
    """The mask rule as an additive bias (B, 1, 1 or T, S + T) of 0 and -inf; None where everything is visible.

    valid (B, S) marks the cache's slots that hold a token. Inside the block no padding needs a mask: it lies on the
    right, so causal queries never reach it, and a padded query still sees itself (a softmax over nothing is NaN).
    """
    B, S = valid.shape
    if S == 0 and not causal:
        return None
    rows = T if causal else 1
    inside = torch.ones(rows, T, dtype=torch.bool, device=valid.device)
    inside = inside.tril() if causal else inside
    allowed = torch.cat([valid[:, None].expand(B, rows, S), inside.expand(B, rows, T)], dim=-1)
    bias = torch.zeros(allowed.shape, device=valid.device)
    return bias.masked_fill_(~allowed, float("-inf"))[:, None]


def join(parts, dim):
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def attend(q, keys, values, bias):
    """softmax(q k^T / sqrt(D) + bias) v. q (B, H, T, D) -> (B, T, H, D). The only softmax.

    keys and values: parts (B, H, S_i, D) of one sequence, the cache's and the block's. On CUDA, and for a single query,
    torch's fused kernel; else on a CPU plain products, in bf16 two to three times as fast at our sizes and with no copy of
    the cache. A test holds the two equal. Computed in the dtype of the keys, returned in that of q.
    """
    dtype, q = q.dtype, q.to(keys[0].dtype)
    bias = None if bias is None else bias.to(q.dtype)
    if q.is_cuda or q.size(2) == 1:
        y = F.scaled_dot_product_attention(q, join(keys, 2), join(values, 2), attn_mask=bias)
        return y.transpose(1, 2).to(dtype)
    q = q * q.size(-1) ** -0.5
    scores = join([q @ k.transpose(-1, -2) for k in keys], -1)                        # (B, H, T, S)
    scores = scores if bias is None else scores.add_(bias)
    weights = scores.softmax(-1).split([k.size(2) for k in keys], dim=-1)
    first, *more = (w @ v for w, v in zip(weights, values))
    return sum(more, first).transpose(1, 2).to(dtype)


class Heads(nn.Module):
    """Query, key, value and output projections of ONE modality, with its q and k norms (paper Eq. 3)."""

    def __init__(self, n_embd, n_head, eps):
        super().__init__()
        self.n_head = n_head
        self.q, self.k, self.v = (nn.Linear(n_embd, n_embd) for _ in range(3))
        self.o = nn.Linear(n_embd, n_embd, bias=False)
        self.q_norm, self.k_norm = (RMSNorm(n_embd // n_head, eps) for _ in range(2))

    def forward(self, x, angles):
        """x (B, T, C), angles of `rope` -> q, k, v (B, H, T, D) in x's (autocast) dtype; q and k normed and rotated in fp32."""
        q, k, v = (f(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        q, k = (rotate(norm(a.float()), *angles).to(v.dtype) for norm, a in ((self.q_norm, q), (self.k_norm, k)))
        return q, k, v


class Cache:
    """Keys and values of the clean blocks so far. A value: `append` returns a new cache, layers never write to it.

    keys, values: per layer (B, H, S, D), keys after norm and RoPE. valid (B, S): which slots hold a token. Slot is
    not position: text is padded on the right, so every row fills the same slots, each with its own positions;
    next_position (B,) is where the next block starts. The empty context is S = 0, or a row without valid slots.
    """

    def __init__(self, keys, values, valid, next_position):
        self.keys, self.values, self.valid, self.next_position = keys, values, valid, next_position

    @classmethod
    def empty(cls, B, device):
        zero = torch.zeros(B, dtype=torch.long, device=device)
        return cls([], [], torch.zeros(B, 0, dtype=torch.bool, device=device), zero)

    def read(self, layer, k, v):
        """The block's keys and values (B, H, T, D) behind those of the cache: parts of the keys, parts of the values."""
        if not self.keys:
            return [k], [v]
        return [self.keys[layer].to(k.dtype), k], [self.values[layer].to(v.dtype), v]

    def append(self, new, valid, advance):
        """The cache after a block: new is a list of (k, v) per layer, valid (B, T), advance (B,) positions or int."""
        joined = [[join(parts, 2) for parts in self.read(i, k, v)] for i, (k, v) in enumerate(new)]
        return Cache([k for k, _ in joined], [v for _, v in joined],
                     torch.cat([self.valid, valid], dim=1), self.next_position + advance)

    def rows(self, index):
        """The cache of other rows: index (B',) may repeat (several images of a report, two contexts of guidance)."""
        return Cache([k[index] for k in self.keys], [v[index] for v in self.values],
                     self.valid[index], self.next_position[index])

    def drop(self, rows):
        """Empty the context of some rows: rows (B,) bool. For text dropout and the unconditional half of guidance."""
        return Cache(self.keys, self.values, self.valid & ~rows[:, None], self.next_position.masked_fill(rows, 0))


class DecodeCache(Cache):
    """The same cache in buffers allocated once, for decoding: a new token costs no copy of the old ones. No gradient.

    `read` lays the block into the free slots behind the cache, `append` counts them in and returns the cache itself.
    On a CPU the buffers are fp32 whatever the model is: products of one bf16 query would copy the keys and values.
    """

    def __init__(self, cache, room):
        B, S = cache.valid.shape
        self.length = S
        wide = lambda x: x if x.is_cuda else x.float()
        pad = lambda x: torch.cat([wide(x), wide(x).new_zeros(*x.shape[:2], room, x.size(3))], dim=2)
        super().__init__([pad(k) for k in cache.keys], [pad(v) for v in cache.values],
                         cache.valid, cache.next_position.clone())

    def read(self, layer, k, v):
        end = self.length + k.size(2)
        assert end <= self.keys[layer].size(2), f"the decode cache has {self.keys[layer].size(2)} slots, {end} wanted"
        self.keys[layer][:, :, self.length:end], self.values[layer][:, :, self.length:end] = k, v
        return [self.keys[layer][:, :, :end]], [self.values[layer][:, :, :end]]

    def append(self, new, valid, advance):
        self.length += valid.size(1)
        self.valid, self.next_position = torch.cat([self.valid, valid], dim=1), self.next_position + advance
        return self
