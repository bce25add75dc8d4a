"""attention.py: the softmax against its formula, the mask against its rule, and the two caches.

Norms, heads and rotation are held against an independent network in test_model.py.
"""
import itertools

import pytest
import torch

from attention import Cache, DecodeCache, attend, join, rope, rotate, visible
from helpers import close, normal


# ---- the softmax ----

def plain(q, k, v, bias):
    """The formula: q, k, v (B, H, T, D) -> (B, T, H, D)."""
    scores = q @ k.transpose(2, 3) / q.size(-1) ** 0.5
    if bias is not None:
        scores = scores + bias
    return (scores.softmax(-1) @ v).transpose(1, 2)


VALID = torch.tensor([[True, False, True, True], [False, True, True, False]])


@pytest.mark.parametrize("T", [1, 5])
@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_the_formula_on_all_parts(T, masked):
    """Keys and values of the cache and of the block, as two parts: results and gradients."""
    q, k, v = normal(2, 3, T, 8), normal(2, 3, 4 + T, 8, seed=1), normal(2, 3, 4 + T, 8, seed=2)
    for tensor in (q, k, v):
        tensor.requires_grad_()
    bias = visible(VALID, T, causal=True) if masked else None
    ours = attend(q, k.split([4, T], 2), v.split([4, T], 2), bias)
    reference = plain(q, k, v, bias)
    close(ours, reference, 1e-6)
    gradients = torch.autograd.grad(ours.square().sum(), (q, k, v))
    for ours, reference in zip(gradients, torch.autograd.grad(reference.square().sum(), (q, k, v))):
        close(ours, reference)


def test_attend_leaves_the_bias_alone():
    """The bias serves every layer: scores added to it in place would poison the second layer."""
    bias = visible(torch.ones(1, 2, dtype=torch.bool), 3, causal=True)
    before = bias.clone()
    attend(normal(1, 2, 3, 4), [normal(1, 2, 5, 4)], [normal(1, 2, 5, 4)], bias)
    assert torch.equal(bias, before)


@pytest.mark.parametrize("S", [0, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_visible_is_the_rule(S, causal):
    """Every valid token of earlier blocks; inside the block all tokens, or those up to itself."""
    valid, T = normal(3, S) > 0, 3
    bias = visible(valid, T, causal)
    if bias is None:
        bias = torch.zeros(())
    bias = bias.expand(3, 1, T, S + T)
    for row, query, key in itertools.product(range(3), range(T), range(S + T)):
        sees = valid[row, key] if key < S else not causal or key - S <= query
        assert bias[row, 0, query, key] == (0 if sees else float("-inf"))
    assert (bias == 0).any(-1).all(), "a softmax over nothing is NaN"


def test_rotation_is_in_fp32_for_bf16_input():
    x, angles = normal(1, 1, 2, 8).bfloat16(), rope(torch.tensor([[300, 301]]), 8, 1e4)
    assert rotate(x, *angles).dtype == torch.float32
    close(rotate(x, *angles), rotate(x.float(), *angles), 1e-7)


# ---- the cache ----

def block(T, seed):
    """Keys and values of a block for two layers, three rows and two heads."""
    seeds = (seed, seed + 2)
    return [(normal(3, 2, T, 4, seed=n), normal(3, 2, T, 4, seed=n + 1)) for n in seeds]


def filled():
    """A cache with one block of four slots, of which the rows fill four, two and one."""
    valid = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    return Cache.empty(3, "cpu").append(block(4, 10), valid, valid.sum(1))


def content(cache):
    return [x.clone() for x in (*cache.keys, *cache.values, cache.valid, cache.next_position)]


def equal(before, after):
    return all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


ONE = torch.ones(3, 1, dtype=torch.bool)


def test_append_makes_a_new_cache():
    first = filled()
    before = content(first)
    second = first.append(block(1, 20), ONE, 1)
    assert equal(content(first), before)
    assert second.next_position.tolist() == [5, 3, 2], "slot is not position"
    assert second.valid.shape == (3, 5)
    for layer, (k, v) in enumerate(block(1, 20)):
        assert torch.equal(second.keys[layer], torch.cat([first.keys[layer], k], 2))
        assert torch.equal(second.values[layer], torch.cat([first.values[layer], v], 2))


def test_the_cache_is_read_in_the_blocks_dtype():
    k, v = block(2, 20)[0]
    keys, values = filled().read(0, k.bfloat16(), v.bfloat16())
    assert {x.dtype for x in keys + values} == {torch.bfloat16}
    assert join(keys, 2).shape == (3, 2, 6, 4)


def test_rows_may_repeat():
    index = torch.tensor([2, 0, 0, 1])
    before = content(filled())
    assert equal(content(filled().rows(index)), [x[index] for x in before])


def test_a_dropped_row_sees_its_block_alone():
    cache = filled()
    before = content(cache)
    dropped = cache.drop(torch.tensor([True, False, True]))
    assert equal(content(cache), before)
    assert dropped.next_position.tolist() == [0, 2, 0]
    k, v = block(3, 30)[0]
    q = normal(3, 2, 3, 4, seed=40)
    y = attend(q, *dropped.read(0, k, v), visible(dropped.valid, 3, causal=False))
    alone = attend(q, [k], [v], None)
    close(y[[0, 2]], alone[[0, 2]], 1e-6)
    assert (y[1] - alone[1]).abs().max() > 1e-2


def test_the_decode_cache_is_the_cache_without_copies():
    """Token after token it reads the same, in buffers that stay where they are."""
    source, slow = filled(), filled()
    before = content(source)
    fast = DecodeCache(source, room=5)
    buffers = [x.data_ptr() for x in fast.keys + fast.values]
    for n in range(5):
        new = block(1, 50 + 30 * n)
        for layer, (k, v) in enumerate(new):
            for a, b in zip(slow.read(layer, k, v), fast.read(layer, k, v)):
                assert torch.equal(join(a, 2), join(b, 2))
        slow, fast = slow.append(new, ONE, 1), fast.append(new, ONE, 1)
        assert torch.equal(slow.valid, fast.valid)
        assert torch.equal(slow.next_position, fast.next_position)
    assert [x.data_ptr() for x in fast.keys + fast.values] == buffers
    assert equal(content(source), before)
    with pytest.raises(AssertionError, match="slots"):
        fast.read(0, *block(1, 99)[0])
