"""Attention of UniX: where a token sits, whom it sees, and two branches in one softmax.

A sequence is a list of blocks (image, text, noisy latent). One rule says who sees whom: **a token
sees every valid token of the earlier clean blocks and, inside its own block, all tokens (full) or
those up to itself (causal).** Earlier blocks live in a cache of keys and values, so "run one
block on top of a cache" is the whole model.

What differs from the usual: each modality has its own projections and norms (paper Eq. 3), yet
there is one softmax over all tokens (Eq. 4-5). The understanding stream `u` and the generation
stream `g` stay two tensors, concatenated for one attention call, so that no token is gathered or
scattered by an index.

B batch, T tokens of the block, S tokens in the cache, C width, H heads, D head width. Heads come
before tokens, (B, H, T, D), so that products per head read keys and values as they lie in memory.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis; statistics in fp32 whatever the dtype of x."""

    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        # a gain in fp32 is not rounded to a bf16 x; and such an x does not come out in fp32
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        gain = self.weight.to(dtype)
        return F.rms_norm(x.to(dtype), gain.shape, gain, self.eps).to(x.dtype)


def rope(positions, dim, theta):
    """Rotation angles in fp32: positions (B, T), or (B, 1) -> cos, sin (B, 1, T, D/2).

    Element i turns by position * theta^(-2i / D): the first ones fast, the last ones slowly.
    """
    freqs = theta ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions[:, None, :, None].float() * freqs                    # (B, 1, T, D/2)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotate x (B, H, T, D) by its position, in fp32.

    Element i of the first half of D and element i of the second half are the coordinates of one
    point ("rotate half"). Weights of code that pairs the neighbours 2i and 2i + 1 do not fit.
    """
    a, b = x.float().chunk(2, dim=-1)
    rotated_a = torch.addcmul(a * cos, b, sin, value=-1)        # a cos - b sin
    rotated_b = torch.addcmul(b * cos, a, sin)                  # b cos + a sin
    return torch.cat([rotated_a, rotated_b], dim=-1)


def visible(valid, T, causal):
    """The mask rule as a bias added to the scores: 0 where a query sees a key, else -inf.

    valid (B, S) marks the slots of the cache that hold a token -> (B, 1, T, S + T), or (B, 1, 1,
    S + T) for a full block, whose queries all see the same. None on an empty cache, where a query
    sees the whole block, or of a causal one what stands up to itself: kernels know that by a word.

    Padding inside the block needs no mask: it lies on the right, so no causal query of a real
    token reaches it. A padded query sees itself, which keeps NaN away (a softmax over nothing),
    and nobody reads its result.
    """
    B, S = valid.shape
    if S == 0:
        return None
    queries = T if causal else 1            # one row of the mask serves all queries of a full block

    # inside the block: all tokens, or those up to the query's own
    inside = torch.ones(queries, T, dtype=torch.bool, device=valid.device)
    if causal:
        inside = inside.tril()

    # of the earlier blocks: every slot that holds a token, for every query alike
    earlier = valid[:, None].expand(B, queries, S)
    allowed = torch.cat([earlier, inside.expand(B, queries, T)], dim=-1)    # (B, T or 1, S + T)
    bias = torch.zeros(allowed.shape, device=valid.device)
    bias = bias.masked_fill_(~allowed, float("-inf"))[:, None]

    # kernels want rows that begin at multiples of 8 numbers. Tokens must not be padded for that:
    # S + T = 64 modulo 128 with a mask is what cuDNN's backward pass fails at (pytorch#196678)
    return F.pad(bias, (0, -(S + T) % 8))[..., :S + T]


def join(parts, dim):
    """Concatenate, without a copy where there is only one part."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def attend(q, keys, values, bias, causal=False):
    """softmax(q k^T / sqrt(D) + bias) v, the only softmax over tokens -> (B, T, H, D).

    q (B, H, T, D); keys, values: lists of parts (B, H, S_i, D) of one sequence, namely the cache's
    and the block's own; bias of `visible`: where it is None, causal says what it leaves unsaid.
    Computed in the dtype of the keys, returned in that of q.

    There are two ways to the same result. On CUDA, and for a single query, torch's fused kernel
    is the fastest. For several queries on a CPU plain products are two to three times as fast in
    bf16, at our sizes, and they need no copy that joins the parts.
    """
    B, H, T, D = q.shape
    dtype = q.dtype
    q = q.to(keys[0].dtype)
    if bias is not None:
        bias = bias.to(q.dtype)

    # one fused kernel
    if q.is_cuda or T == 1:
        y = F.scaled_dot_product_attention(q, join(keys, 2), join(values, 2), attn_mask=bias,
                                           is_causal=causal and bias is None)
        return y.transpose(1, 2).to(dtype)

    # plain products: scores of all parts side by side for one softmax, then each part's share
    q = q * D ** -0.5
    scores = join([q @ k.transpose(-1, -2) for k in keys], dim=-1)                # (B, H, T, S)
    if bias is not None:
        scores = scores.add_(bias)
    elif causal:
        later = torch.ones(T, T, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill_(later, float("-inf"))
    weights = scores.softmax(dim=-1).split([k.size(2) for k in keys], dim=-1)
    if torch.compiler.is_compiling():
        # torch 2.13 compiles the gradient of a product with a part wrongly, on a CPU
        weights = [weight.contiguous() for weight in weights]
    y = weights[0] @ values[0]                                                    # (B, H, T, D)
    for weight, v in zip(weights[1:], values[1:]):
        y = y + weight @ v
    return y.transpose(1, 2).to(dtype)


class Heads(nn.Module):
    """Query, key, value and output projections of ONE modality, with its q and k norms (Eq. 3)."""

    def __init__(self, n_embd, n_head, eps):
        super().__init__()
        self.n_head = n_head
        self.q = nn.Linear(n_embd, n_embd)
        self.k = nn.Linear(n_embd, n_embd)
        self.v = nn.Linear(n_embd, n_embd)
        self.o = nn.Linear(n_embd, n_embd, bias=False)
        self.q_norm = RMSNorm(n_embd // n_head, eps)
        self.k_norm = RMSNorm(n_embd // n_head, eps)

    def forward(self, x, angles):
        """x (B, T, C), angles of `rope` -> q, k, v (B, H, T, D), in the projections' dtype."""
        B, T, C = x.shape
        q = self.q(x).view(B, T, self.n_head, -1).transpose(1, 2)           # (B, H, T, D)
        k = self.k(x).view(B, T, self.n_head, -1).transpose(1, 2)
        v = self.v(x).view(B, T, self.n_head, -1).transpose(1, 2)

        # queries and keys are normed per head, then rotated, both in fp32
        q = rotate(self.q_norm(q.float()), *angles).to(v.dtype)
        k = rotate(self.k_norm(k.float()), *angles).to(v.dtype)
        return q, k, v


def behind(past, k, v):
    """A block's k, v (B, H, T, D) behind those of the cache -> parts of keys, parts of values.

    past: None for an empty cache; keys and values (B, H, S, D); or these and the slots (T,) that
    the block fills in them, in place.
    """
    if past is None:
        return [k], [v]
    keys, values, *slots = past
    if slots:
        keys.index_copy_(2, slots[0], k.to(keys.dtype))
        values.index_copy_(2, slots[0], v.to(values.dtype))
        return [keys], [values]
    # each keeps the dtype of the block that wrote it, so they may differ: the newest decides
    return [keys.to(k.dtype), k], [values.to(v.dtype), v]


@dataclass(eq=False)
class Cache:
    """Keys and values of the clean blocks so far. Immutable: `append` returns a new cache.

    Slot is not position: text is padded on the right, so every row fills the same slots, each row
    with positions of its own. The empty context is S = 0, or a row without valid slots.
    """
    keys: list                      # per layer (B, H, S, D), after norm and RoPE
    values: list                    # per layer (B, H, S, D)
    valid: torch.Tensor             # (B, S) bool: which slots hold a token
    next_position: torch.Tensor     # (B,): where the next block starts

    @classmethod
    def empty(cls, B, device):
        valid = torch.zeros(B, 0, dtype=torch.bool, device=device)
        return cls([], [], valid, torch.zeros(B, dtype=torch.long, device=device))

    def past(self, layer, T):
        """What a layer gets of the cache for a block of T tokens, as tensors: see `behind`."""
        return (self.keys[layer], self.values[layer]) if self.keys else None

    def bias(self, T, causal):
        """The mask of a block of T tokens behind the cache, as a bias: see `visible`."""
        return visible(self.valid, T, causal)

    def append(self, new, valid, advance):
        """The cache after a block: new holds (k, v) per layer, valid is (B, T); the block takes
        `advance` positions, one number or (B,)."""
        # whoever kept the earlier cache keeps it unchanged, so several contexts may share a prefix
        parts = [behind(self.past(i, k.size(2)), k, v) for i, (k, v) in enumerate(new)]
        keys = [join(key_parts, 2) for key_parts, _ in parts]
        values = [join(value_parts, 2) for _, value_parts in parts]
        valid = torch.cat([self.valid, valid], dim=1)
        return Cache(keys, values, valid, self.next_position + advance)

    def rows(self, index):
        """The cache of other rows: index (B',) may repeat (images of a report, guidance)."""
        keys = [k[index] for k in self.keys]
        values = [v[index] for v in self.values]
        return Cache(keys, values, self.valid[index], self.next_position[index])

    def drop(self, rows):
        """Empty the context of some rows (B,) bool: text dropout, the second half of guidance."""
        # the slots stay, marked as empty: all rows of a batch keep the same shape
        valid = self.valid & ~rows[:, None]
        return Cache(self.keys, self.values, valid, self.next_position.masked_fill(rows, 0))


def with_room(x, room):
    """x (B, H, S, D) with `room` free slots behind it. On a CPU in fp32 whatever the model is: a
    product with one bf16 query would convert all keys and values anew for every token."""
    B, H, S, D = x.shape
    x = x if x.is_cuda else x.float()
    return torch.cat([x, x.new_zeros(B, H, room, D)], dim=2)


class DecodeCache(Cache):
    """The same cache in buffers of one size, for decoding: a token at a time.

    A layer writes the token's keys and values into the next free slot; the mask hides those behind
    it. All that changes is written in place, so every token runs the same operations on the same
    memory, and CUDA can record them once (common.processes.Recorded). There is no gradient.
    """

    def __init__(self, cache, room):
        B, S = cache.valid.shape
        room += -(S + room) % 8         # kernels like rows of the mask that are multiples of 8
        keys = [with_room(k, room) for k in cache.keys]
        values = [with_room(v, room) for v in cache.values]
        valid = torch.cat([cache.valid, cache.valid.new_zeros(B, room)], dim=1)
        super().__init__(keys, values, valid, cache.next_position.clone())
        self.slot = torch.full((1,), S, device=valid.device)            # the next free one
        self.mask = keys[0].new_zeros(B, 1, 1, S + room)
        self.mask.masked_fill_(~valid[:, None, None], float("-inf"))

    def past(self, layer, T):
        return self.keys[layer], self.values[layer], self.slot

    def bias(self, T, causal):
        """What the token sees: the slots that are valid, and its own."""
        assert T == 1, f"a decode cache takes one token at a time, not {T}"
        return self.mask.index_fill_(3, self.slot, 0)

    def append(self, new, valid, advance):
        self.valid.index_copy_(1, self.slot, valid)
        self.slot += 1
        self.next_position += advance
        return self
