"""bench/paper.py: kernels of a graph in closed form, and bounds for a micro-step at full size."""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F

import model as network
import vision
from bench import paper


class Block(nn.Module):
    def __init__(self, bias=False):
        super().__init__()
        self.first = nn.Linear(32, 64, bias)
        self.second = nn.Linear(64, 32, bias)

    def forward(self, x):
        return x + self.second(F.silu(self.first(x * 2)))


def test_what_stands_between_two_products_is_one_kernel():
    """Doubling, SiLU and the sum; each reads its inputs and writes its result, in fp32."""
    block, compiler = Block(), paper.Compiler()
    compiler.take(block)
    with torch.no_grad():
        block(torch.zeros(8, 32))
    wide, narrow = 4 * 8 * 64, 4 * 8 * 32
    weight = 4 * 32 * 64
    found = [(kernel.kind, kernel.bytes, kernel.flops) for kernel in compiler.kernels]
    product = ("product", wide + narrow + weight, 2 * 8 * 32 * 64)
    assert sorted(found) == sorted([
        ("other", 2 * narrow, 0), product, ("other", 2 * wide, 0), product,
        ("other", 3 * narrow, 0)])


def test_a_gradient_of_a_bias_is_a_sum_of_its_own():
    block, compiler = Block(bias=True), paper.Compiler()
    compiler.take(block)
    block(torch.zeros(8, 32)).square().sum().backward()
    found = [(kernel.kind, kernel.bytes) for kernel in compiler.kernels]
    assert ("other", 4 * (8 * 64 + 64)) in found and ("other", 4 * (8 * 32 + 32)) in found


@pytest.mark.parametrize("kernel, seconds", [
    (paper.Kernel("other", 2.6e9), 1e-3),                           # as long as its bytes take
    (paper.Kernel("product", 2.6e9, 680e10), 1e-2),                 # or its operations
    (paper.Kernel("product", 0, 680e10, half=False), 1e-2 / 0.08),
    (paper.Kernel("other", 8), 2e-6)])                              # and at least a launch
def test_the_price_of_a_kernel(kernel, seconds):
    assert kernel.seconds("H100") == pytest.approx(seconds)


@pytest.mark.slow
@pytest.mark.parametrize("case, most", list(zip(paper.CASES, [
    (3060, 127, 80), (3060, 378, 277), (2920, 295, 211)])), ids=str)
def test_a_micro_step_asks_for_no_more(case, most, monkeypatch):
    """Kernels, GB and ms on an H100 of the code as it is: who adds a copy finds out here."""
    monkeypatch.setattr(network, "attend", paper.fused_attention)
    monkeypatch.setattr(vision, "attend", paper.fused_attention)
    found = paper.account(case)["all"]
    assert all(a <= b for a, b in zip(found, most)), found
    assert all(a >= 0.9 * b for a, b in zip(found, most)), "bounds should follow improvements"
