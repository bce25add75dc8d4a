"""attention.py: the mask against its rule, and the two caches.

The softmax, norms, heads and rotation are held against an independent network in test_model.py.
"""
import itertools

import pytest
import torch

from attention import Cache, DecodeCache, attend, behind, rope, rotate, visible
from helpers import close, normal


@pytest.mark.parametrize("causal", [False, True])
def test_visible_is_the_rule(causal):
    """Every valid token of earlier blocks; inside the block all tokens, or those up to itself."""
    S, T = 4, 3
    valid = normal(3, S) > 0
    bias = visible(valid, T, causal)
    assert all(stride % 8 == 0 for stride in bias.stride()[:-1]), "rows begin as kernels want it"
    bias = bias.expand(3, 1, T, S + T)
    for row, query, key in itertools.product(range(3), range(T), range(S + T)):
        sees = valid[row, key] if key < S else not causal or key - S <= query
        assert bias[row, 0, query, key] == (0 if sees else float("-inf"))


@pytest.mark.parametrize("causal", [False, True])
def test_on_an_empty_cache_no_mask_is_needed(causal):
    """A query sees its whole block, or what stands up to itself."""
    q, k, v = (normal(2, 2, 3, 8, seed=seed) for seed in range(3))
    bias = visible(torch.zeros(2, 0, dtype=torch.bool), 3, causal)
    assert bias is None
    y = attend(q, [k], [v], bias, causal)
    for query in range(3):
        end = query + 1 if causal else 3
        close(y[:, query:query + 1],
              attend(q[:, :, query:query + 1], [k[:, :, :end]], [v[:, :, :end]], None), 1e-6)


def test_rotation_is_in_fp32_for_bf16_input():
    x, angles = normal(1, 1, 2, 8).bfloat16(), rope(torch.tensor([[300, 301]]), 8, 1e4)
    assert torch.equal(rotate(x, *angles), rotate(x.float(), *angles))


# ---- the cache ----

ONE = torch.ones(3, 1, dtype=torch.bool)


def block(T, seed):
    """Keys and values of a block for two layers, three rows and two heads."""
    seeds = (seed, seed + 2)
    return [(normal(3, 2, T, 4, seed=n), normal(3, 2, T, 4, seed=n + 1)) for n in seeds]


@pytest.fixture
def cache():
    """One block of four slots, of which the rows fill four, two and one; it must not change."""
    valid = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    cache = Cache.empty(3, "cpu").append(block(4, 10), valid, valid.sum(1))
    before = [x.clone() for x in content(cache)]
    yield cache
    assert all(torch.equal(a, b) for a, b in zip(before, content(cache), strict=True))


def content(cache):
    return [*cache.keys, *cache.values, cache.valid, cache.next_position]


def test_it_is_read_in_the_dtype_of_the_newest_block(cache):
    """Under autocast blocks differ."""
    k, v = block(1, 20)[0]
    keys, values = behind(cache.past(0, 1), k.bfloat16(), v.bfloat16())
    assert {x.dtype for x in keys + values} == {torch.bfloat16}


def test_a_dropped_row_sees_its_block_alone(cache):
    dropped = cache.drop(torch.tensor([True, False, True]))
    assert dropped.next_position.tolist() == [0, 2, 0]
    k, v = block(3, 30)[0]
    q = normal(3, 2, 3, 4, seed=40)
    y = attend(q, *behind(dropped.past(0, 3), k, v), visible(dropped.valid, 3, causal=False))
    alone = attend(q, [k], [v], None)
    close(y[[0, 2]], alone[[0, 2]], 1e-6)
    assert (y[1] - alone[1]).abs().max() > 1e-2


def test_the_decode_cache_is_the_cache_in_place(cache):
    """Token after token attention gives the same, from tensors that stay where they are."""
    slow, fast = cache, DecodeCache(cache, room=5)
    addresses = [x.data_ptr() for x in (*content(fast), fast.slot, fast.mask)]
    for n in range(5):
        new = block(1, 50 + 30 * n)
        fast_bias = fast.bias(1, causal=True)
        for layer, (k, v) in enumerate(new):
            q = normal(3, 2, 1, 4, seed=60 + n)
            expected = attend(q, *behind(slow.past(layer, 1), k, v), slow.bias(1, causal=True))
            close(attend(q, *behind(fast.past(layer, 1), k, v), fast_bias), expected, 1e-6)
        slow, fast = slow.append(new, ONE, 1), fast.append(new, ONE, 1)
        assert torch.equal(slow.valid, fast.valid[:, :4 + n + 1])
        assert torch.equal(slow.next_position, fast.next_position)
    assert [x.data_ptr() for x in (*content(fast), fast.slot, fast.mask)] == addresses
    assert fast.mask.size(-1) % 8 == 0
    with pytest.raises(AssertionError, match="one token at a time"):
        fast.bias(2, causal=True)
