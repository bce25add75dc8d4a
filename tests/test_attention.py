"""attention.py against plain definitions: softmax attention, a per-token mask rule, complex rotation, and its two caches."""
import pytest
import torch
import torch.nn.functional as F

from attention import Cache, DecodeCache, Heads, RMSNorm, attend, join, rope, rotate, visible
from helpers import close


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("masked", [False, True])
def test_attend_is_the_fused_kernel(masked):
    q, k, v = draw(2, 3, 5, 8, seed=1), draw(2, 3, 9, 8, seed=2), draw(2, 3, 9, 8, seed=3)
    bias = None
    if masked:
        valid = torch.tensor([[True, False, True, True], [False, True, True, False]])
        bias = visible(valid, 5, causal=True)
    ref = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
    close(attend(q, [k], [v], bias), ref, 1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_one_query_is_the_fused_kernel(masked):
    """Decoding takes the products in another order."""
    q, k, v = draw(2, 3, 1, 8, seed=1), draw(2, 3, 9, 8, seed=2), draw(2, 3, 9, 8, seed=3)
    bias = visible(torch.tensor([[True, False] * 4, [True] * 8]), 1, causal=True) if masked else None
    ref = F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
    close(attend(q, [k], [v], bias), ref, 1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_attend_in_parts_is_attend_on_the_whole(masked):
    """The cache's keys and values in front of the block's: values and gradients, and none for a frozen cache."""
    q, k, v = (draw(2, 3, T, 8, seed=T).requires_grad_() for T in (5, 9, 10))
    v = v[:, :, 1:]
    bias = visible(torch.tensor([[True, False, True, True], [False, True, True, False]]), 5, causal=True) if masked else None
    pieces = [part.detach().requires_grad_(n > 1) for n, part in enumerate((k[:, :, :4], v[:, :, :4], k[:, :, 4:], v[:, :, 4:]))]
    whole, parts = attend(q, [k], [v], bias), attend(q, pieces[::2], pieces[1::2], bias)
    close(parts, whole, 1e-6)
    ref = torch.autograd.grad(whole.square().sum(), (q, k, v))
    parts.square().sum().backward()
    for ours, reference in zip((q.grad, pieces[2].grad, pieces[3].grad), (ref[0], ref[1][:, :, 4:], ref[2][:, :, 4:])):
        close(ours, reference, 1e-6)
    assert pieces[0].grad is None and pieces[1].grad is None


def test_attend_leaves_the_bias_alone():
    """The bias serves every layer: adding scores to it in place would poison the second layer."""
    bias = visible(torch.ones(1, 2, dtype=torch.bool), 3, causal=True)
    before = bias.clone()
    attend(draw(1, 2, 3, 4), [draw(1, 2, 5, 4)], [draw(1, 2, 5, 4)], bias)
    assert torch.equal(bias, before)


def test_attend_gradients():
    inputs = q, k, v = [draw(2, 2, 4, 8, seed=i).requires_grad_() for i in range(3)]
    bias = visible(torch.zeros(2, 0, dtype=torch.bool), 4, causal=True)
    ours = torch.autograd.grad(attend(q, [k], [v], bias).square().sum(), inputs)
    ref = F.scaled_dot_product_attention(*inputs, is_causal=True).square().sum()
    for a, b in zip(ours, torch.autograd.grad(ref, inputs)):
        close(a, b)


@pytest.mark.parametrize("S", [0, 4])
@pytest.mark.parametrize("causal", [False, True])
def test_visible_is_the_rule(S, causal):
    """Token by token: every valid token of earlier blocks; inside the block all, or those up to itself."""
    valid, T = draw(3, S) > 0, 3
    bias = visible(valid, T, causal)
    for b in range(3):
        for query in range(T):
            for slot in range(S + T):
                sees = bool(valid[b, slot]) if slot < S else not causal or slot - S <= query
                got = bias is None or bias.expand(3, 1, T, S + T)[b, 0, query, slot] == 0
                assert got == sees
    if bias is not None:
        assert set(bias.unique().tolist()) <= {0.0, float("-inf")}
        assert (bias == 0).any(-1).all()        # a softmax over nothing is NaN


def test_rope_rotates_complex_numbers():
    """Element i of the first half and element i of the second are one complex number, turned by position * theta^(-2i/D)."""
    D, theta = 8, 100.0
    x, positions = draw(2, 5, 3, D), torch.tensor([[0, 1, 2, 3, 4], [7, 7, 9, 500, 0]])
    for b in range(2):
        for t in range(5):
            for i in range(D // 2):
                turn = torch.exp(1j * positions[b, t].double() * theta ** (-2 * i / D))
                want = torch.complex(x[b, t, :, i].double(), x[b, t, :, i + D // 2].double()) * turn
                got = rotate(x.transpose(1, 2), *rope(positions, D, theta))[b, :, t]
                assert torch.allclose(got[:, i].double(), want.real, atol=1e-4)
                assert torch.allclose(got[:, i + D // 2].double(), want.imag, atol=1e-4)


def test_rope_is_fp32_for_bf16_input():
    x, angles = draw(1, 1, 2, 8), rope(torch.tensor([[300, 301]]), 8, 1e4)
    assert rotate(x.bfloat16(), *angles).dtype == torch.float32
    close(rotate(x.bfloat16(), *angles), rotate(x.bfloat16().float(), *angles), 1e-7)


def test_rms_norm():
    norm = RMSNorm(8, 1e-6)
    norm.weight.data = draw(8, seed=4)
    x = 100 * draw(3, 8)
    close(norm(x), x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight, 1e-6)


def test_heads_norm_and_rotate_q_and_k_but_not_v():
    torch.manual_seed(0)
    heads = Heads(32, 4, 1e-6)
    heads.q_norm.weight.data, heads.k_norm.weight.data = draw(8, seed=5), draw(8, seed=6)
    x, angles = draw(2, 3, 32), rope(torch.tensor([[0, 1, 2], [4, 5, 6]]), 8, 1e4)
    q, k, v = heads(x, angles)
    for got, linear, norm in ((q, heads.q, heads.q_norm), (k, heads.k, heads.k_norm)):
        plain = linear(x).view(2, 3, 4, 8).transpose(1, 2)
        normed = plain / plain.square().mean(-1, keepdim=True).add(1e-6).sqrt() * norm.weight
        close(got.detach(), rotate(normed, *angles).detach())
    assert torch.equal(v, heads.v(x).view(2, 3, 4, 8).transpose(1, 2))


# ---- the cache ----

def block(T, seed, B=3, layers=2):
    return [(draw(B, 2, T, 4, seed=seed + 2 * i), draw(B, 2, T, 4, seed=seed + 2 * i + 1)) for i in range(layers)]


def filled(B=3):
    valid = torch.tensor([[True] * 4, [True, True, False, False], [True, False, False, False]])
    return Cache.empty(B, "cpu").append(block(4, 10), valid, valid.sum(1))


def test_cache_is_a_value():
    first = filled()
    before = [x.clone() for x in first.keys + first.values], first.valid.clone(), first.next_position.clone()
    second = first.append(block(2, 20), torch.ones(3, 2, dtype=torch.bool), 2)
    assert all(torch.equal(a, b) for a, b in zip(first.keys + first.values, before[0]))
    assert torch.equal(first.valid, before[1]) and torch.equal(first.next_position, before[2])
    assert second.next_position.tolist() == [6, 4, 3] and second.valid.shape == (3, 6)
    assert torch.equal(second.keys[1], torch.cat([block(4, 10)[1][0], block(2, 20)[1][0]], 2))
    assert torch.equal(second.values[0], torch.cat([block(4, 10)[0][1], block(2, 20)[0][1]], 2))


def test_cache_is_read_in_the_blocks_dtype():
    keys, values = filled().read(0, *(x.bfloat16() for x in block(2, 20)[0]))
    assert {x.dtype for x in keys + values} == {torch.bfloat16} and join(keys, 2).shape == (3, 2, 6, 4)


def test_rows_may_repeat():
    cache, index = filled(), torch.tensor([2, 0, 0, 1])
    picked = cache.rows(index)
    for n, i in enumerate(index):
        assert torch.equal(picked.keys[1][n], cache.keys[1][i]) and torch.equal(picked.values[0][n], cache.values[0][i])
        assert torch.equal(picked.valid[n], cache.valid[i]) and picked.next_position[n] == cache.next_position[i]


def test_drop_empties_rows():
    cache = filled()
    dropped = cache.drop(torch.tensor([False, True, False]))
    assert dropped.valid.sum(1).tolist() == [4, 0, 1] and dropped.next_position.tolist() == [4, 0, 1]
    assert cache.valid.sum(1).tolist() == [4, 2, 1] and cache.next_position.tolist() == [4, 2, 1]     # a value


def test_a_dropped_row_sees_its_block_alone():
    k, v = block(3, 30)[0]
    q, cache = draw(3, 2, 3, 4, seed=40), filled().drop(torch.tensor([True, False, True]))
    y = attend(q, *cache.read(0, k, v), visible(cache.valid, 3, False))
    alone = attend(q, [k], [v], None)
    close(y[[0, 2]], alone[[0, 2]], 1e-6)
    assert (y[1] - alone[1]).abs().max() > 1e-2


def test_decode_cache_is_the_cache_without_copies():
    slow, fast = filled(), DecodeCache(filled(), room=5)
    places = [x.data_ptr() for x in fast.keys + fast.values]
    for n in range(5):
        new, one = block(1, 50 + 10 * n), torch.ones(3, 1, dtype=torch.bool)
        for layer, (k, v) in enumerate(new):
            for a, b in zip(slow.read(layer, k, v), fast.read(layer, k, v)):
                assert torch.equal(join(a, 2), join(b, 2))
        slow, fast = slow.append(new, one, 1), fast.append(new, one, 1)
        assert torch.equal(slow.valid, fast.valid) and torch.equal(slow.next_position, fast.next_position)
        assert [x.data_ptr() for x in fast.keys + fast.values] == places
    k, v = block(1, 99)[0]
    with pytest.raises(AssertionError, match="slots"):
        fast.read(0, k, v)


def test_decode_cache_leaves_its_source_alone():
    source = filled()
    before = [x.clone() for x in source.keys] + [source.valid.clone(), source.next_position.clone()]
    fast = DecodeCache(source, room=2)
    for layer, (k, v) in enumerate(block(1, 50)):
        fast.read(layer, k, v)
    fast.append(block(1, 50), torch.ones(3, 1, dtype=torch.bool), 1)
    after = source.keys + [source.valid, source.next_position]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
