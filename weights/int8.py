"""Weights in 8-bit integers, for drawing and reading in half the memory of bf16.

    model, vae, tokenizer = weights.load("demo", matrices="int8")       # --weights int8

A weight matrix W (out, in) becomes whole numbers q from -127 to 127 and one scale s per row, which
is one output: W ≈ q s, and no weight is off by more than s / 2. Only the weights are rounded, not
what is computed from them. It concerns the linear layers of decoder, vision tower and head, which
hold 93 % of UniX; embeddings, norms, the connector, the latents' way in and out, and the VAE stay
as they are.

For a few rows in bf16, as in decoding, torch has a product that reads q itself, and reading the
weights is what a token waits for. Many rows are faster with q turned into floats first, a piece at
a time, so that the floats never leave the cache of the processor. In fp32 that is faster for one
row, too. docs/results.md has the measurement.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from common.cli import InputError
from common.platforms import leave_to_file

# up to so many rows in bf16 on a CPU, torch's product with q is faster than turning q into floats
FEW_ROWS = 8

# weights are turned into floats so many bytes at a time, which a core's own cache holds; many rows
# want larger products
SMALL_PIECE = 2 ** 21
LARGE_PIECE = 2 ** 22


# how the large matrices of a checkpoint are kept; the choices of --weights
MATRICES = ("float", "int8")


def in_int8(choice, device):
    """Whether --weights asks for 8-bit integers. InputError on Apple's GPUs."""
    assert choice in MATRICES, f"matrices are kept in float or int8, not in {choice}"
    if choice == "int8" and torch.device(device).type == "mps":
        raise InputError("--weights int8 is for CPUs and CUDA and was never tried on mps; use "
                         "--device cpu, or --weights float.")
    return choice == "int8"


# ---- float -> int8 ----

@torch.no_grad()
def quantise(weight, dtype):
    """W (out, in) -> q (out, in) int8 and s (out,) in `dtype`, so that W ≈ q s.

    s is the largest |w| of a row over 127, rounded up to the next number of bf16: one number that
    is exact in fp32 and bf16, with which no weight leaves the range.
    """
    q = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(len(weight))
    rows_at_once = max(1, LARGE_PIECE // (4 * weight.size(1)))          # fp32 has 4 bytes
    pieces = zip(weight.split(rows_at_once), q.split(rows_at_once), scale.split(rows_at_once))
    for w, whole, s in pieces:
        w = w.float()
        s.copy_(rounded_up(w.abs().amax(dim=1) / 127))
        whole.copy_((w / s[:, None]).round())
    return q, scale.to(dtype)


def rounded_up(x):
    """Positive numbers in fp32 -> the next larger ones that bf16 has; 0 -> 1, of a row of zeros."""
    nearest = x.bfloat16()
    larger = torch.nextafter(nearest, torch.full_like(nearest, float("inf")))
    up = torch.where(nearest.float() < x, larger, nearest).float()
    return torch.where(x == 0, 1.0, up)


# ---- the layer ----

class Int8Linear(nn.Module):
    """A linear layer whose weight matrix is in int8. For inference alone."""

    def __init__(self, linear):
        super().__init__()
        # `weight` has the name and shape of the float matrix; `files.fill` sees by its type that
        # the tensor of a file is to be quantised
        self.register_buffer("weight", torch.empty_like(linear.weight, dtype=torch.int8))
        self.register_buffer("scale", None, persistent=False)
        self.bias = linear.bias

    def take(self, weight, dtype):
        """Quantise a float matrix for products in `dtype` -> q; the scales are kept."""
        q, self.scale = quantise(weight, dtype)
        # the matrix was read from a file, whose pages would count as memory of this process
        leave_to_file(weight)
        return q

    def forward(self, x):
        """x (…, in) -> (…, out)."""
        rows = x.reshape(-1, x.size(-1)).contiguous()
        few = len(rows) <= FEW_ROWS and x.dtype == torch.bfloat16 and x.device.type == "cpu"
        # torch 2.13's kernel takes 32 columns at a time and does not see where a row ends
        if few and rows.size(1) % 32 == 0:
            y = torch._weight_int8pack_mm(rows, self.weight, self.scale)
        else:
            y = self.by_floats(rows)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)

    def by_floats(self, rows):
        """The product of rows (M, in) with the matrix, turned into floats piece by piece."""
        # a GPU has no cache of this kind, and one product is one launch
        outputs_at_once = len(self.weight)
        if rows.device.type == "cpu":
            piece = SMALL_PIECE if len(rows) <= FEW_ROWS else LARGE_PIECE
            outputs_at_once = max(1, piece // (rows.element_size() * self.weight.size(1)))
        y = rows.new_empty(len(rows), len(self.weight))
        parts = zip(self.weight.split(outputs_at_once), y.split(outputs_at_once, dim=1))
        for q, part in parts:
            part.copy_(F.linear(rows, q.to(rows.dtype)))
        return y.mul_(self.scale)

    def train(self, mode=True):
        if mode:
            raise InputError("weights in int8 are for drawing and reading; load the checkpoint "
                             "without int8 to train it.")
        return super().train(mode)


def with_int8_linears(model):
    """Make a UniX without storage one whose matrices will be in int8 -> the same model."""
    for part in (model.layers, model.vision):
        for module in list(part.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(module, name, Int8Linear(child))
    model.lm_head = Int8Linear(model.lm_head)
    return model
