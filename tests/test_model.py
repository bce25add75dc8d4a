"""model.py against an independent slow model: one packed sequence, one dense mask, each token's branch picked by hand."""
import math

import pytest
import torch
import torch.nn.functional as F

from attention import DecodeCache
from helpers import close, randomise, tiny_config
from model import UniX, UniXConfig, position_table, time_features
from tokenizer import pad


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- the slow model: a list of tokens (embedding, branch, position, block, place in the block) ----

def rms(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def turn(x, position, theta):
    """Rotate (H, D) by a position, as complex numbers."""
    half = x.shape[-1] // 2
    angle = position * theta ** (-torch.arange(half).double() / half)
    z = torch.complex(x[:, :half].double(), x[:, half:].double()) * torch.exp(1j * angle)
    return torch.cat([z.real, z.imag], -1).float()


def sees(a, b, causal):
    """Whether token a sees token b: earlier clean blocks, and its own block up to itself where it is causal."""
    if a["block"] == b["block"]:
        return not causal[a["block"]] or b["place"] <= a["place"]
    return b["block"] < a["block"] and not b["noisy"]


def slow(model, blocks):
    """blocks: list of (kind, content) with kind image | text | noisy -> per block the final hidden states (T, C)."""
    cfg, tokens, causal, position = model.cfg, [], [], 0
    embed = lambda i: model.embed.weight[i]
    for n, (kind, content) in enumerate(blocks):
        if kind == "text":
            rows = [(embed(i), "u", position + p) for p, i in enumerate(content)]
        elif kind == "image":
            inside = [(x, "u", position) for x in model.encode_image(content[None])[0]]
            rows = [(embed(cfg.soi), "u", position), *inside, (embed(cfg.eoi), "u", position)]
        else:
            x_t, t = content
            _, h, w = x_t.shape
            time = model.time_embed(time_features(t[None]))[0]
            inside = [(model.latent_in(x_t[:, r, c]) + time + model.latent_positions[r * cfg.max_latent_size + c], "g", position)
                      for r in range(h) for c in range(w)]
            rows = [(embed(cfg.soi), "u", position), *inside, (embed(cfg.eoi), "u", position)]
        tokens += [dict(x=x, branch=b, position=p, block=n, place=i, noisy=kind == "noisy") for i, (x, b, p) in enumerate(rows)]
        causal.append(kind == "text")
        position += {"text": len(content), "image": 1, "noisy": 0}[kind]
    mask = torch.tensor([[sees(a, b, causal) for b in tokens] for a in tokens])
    x, D = torch.stack([token["x"] for token in tokens]), cfg.n_embd // cfg.n_head
    for layer in model.layers:
        q, k, v = [], [], []
        for token, row in zip(tokens, x):
            part = getattr(layer, token["branch"])
            row = rms(row, part.norm1)
            heads = lambda linear: linear(row).view(cfg.n_head, D)
            q.append(turn(rms(heads(part.heads.q), part.heads.q_norm), token["position"], cfg.rope_theta))
            k.append(turn(rms(heads(part.heads.k), part.heads.k_norm), token["position"], cfg.rope_theta))
            v.append(heads(part.heads.v))
        q, k, v = torch.stack(q), torch.stack(k), torch.stack(v)                         # (T, H, D)
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(D)
        y = torch.einsum("hts,shd->thd", scores.masked_fill(~mask, -math.inf).softmax(-1), v).flatten(1)
        rows = []
        for token, row, mixed in zip(tokens, x, y):
            part = getattr(layer, token["branch"])
            row = row + part.heads.o(mixed)
            inner = rms(row, part.norm2)
            rows.append(row + part.mlp.down(F.silu(part.mlp.gate(inner)) * part.mlp.up(inner)))
        x = torch.stack(rows)
    x = torch.stack([rms(row, getattr(model, "norm_" + token["branch"])) for token, row in zip(tokens, x)])
    return [x[[i for i, token in enumerate(tokens) if token["block"] == n]] for n in range(len(blocks))]


@torch.no_grad()
def test_report_generation(tiny):
    image, prompt, report = draw(3, 32, 32), [60, 5, 6, 7, 61], [60, 9, 8, 61]
    hidden_image, hidden_prompt, hidden_report = slow(tiny, [("image", image), ("text", prompt), ("text", report)])
    ours, cache = tiny.prefill_image(image[None])
    close(ours[0], hidden_image)
    ours, cache = tiny.prefill_text(torch.tensor([prompt]), cache=cache)
    close(ours[0], hidden_prompt)
    ours, cache = tiny.prefill_text(torch.tensor([report]), cache=cache)
    close(ours[0], hidden_report)
    assert cache.next_position.tolist() == [1 + 5 + 4]


@torch.no_grad()
@pytest.mark.parametrize("text", [[60, 3, 4, 5, 61], []], ids=["report", "unconditional"])
@pytest.mark.parametrize("h, w", [(2, 2), (2, 3)])
def test_image_generation(tiny, text, h, w):
    x_t, t = draw(16, h, w), torch.tensor(0.7)
    blocks = ([("text", text)] if text else []) + [("noisy", (x_t, t))]
    hidden = slow(tiny, blocks)[-1][1:-1]                       # without SOI and EOI
    want = tiny.latent_out(hidden).T.view(16, h, w)
    cache = tiny.prefill_text(torch.tensor([text]))[1] if text else None
    close(tiny.velocity(x_t[None], t[None], cache)[0], want)


# ---- two paths, one result ----

@torch.no_grad()
def test_cache_or_none(tiny):
    """Text in one block, or token by token on either cache."""
    ids = torch.tensor([[60, 5, 6, 7, 8, 61], [60, 9, 9, 1, 2, 61]])
    _, start = tiny.prefill_image(draw(2, 3, 32, 32))
    whole, _ = tiny.prefill_text(ids, cache=start)
    for cache in (start, DecodeCache(start, 6)):
        rows = []
        for i in range(6):
            hidden, cache = tiny.prefill_text(ids[:, i:i + 1], cache=cache)
            rows.append(hidden)
        close(torch.cat(rows, 1), whole)
        assert cache.next_position.tolist() == [7, 7]


TEXTS = [[60, 5, 61], [60, 1, 2, 3, 4, 5, 6, 61], [60, 61]]


@torch.no_grad()
def test_batch_is_its_rows(tiny):
    """Texts of different length behind an image, a second text behind the padding, then a noisy block."""
    images, x_t, t = draw(3, 3, 32, 32), draw(3, 16, 2, 2, seed=1), torch.tensor([0.1, 0.5, 0.9])
    ids, valid = pad(TEXTS, multiple=16)
    again, again_valid = pad(TEXTS[::-1], multiple=4)
    _, cache = tiny.prefill_image(images)
    hidden, cache = tiny.prefill_text(ids, valid, cache)
    second, cache = tiny.prefill_text(again, again_valid, cache)
    v = tiny.velocity(x_t, t, cache)
    for i in range(3):
        _, alone = tiny.prefill_image(images[i:i + 1])
        one, alone = tiny.prefill_text(torch.tensor([TEXTS[i]]), cache=alone)
        close(hidden[i, :len(TEXTS[i])], one[0])
        two, alone = tiny.prefill_text(torch.tensor([TEXTS[2 - i]]), cache=alone)
        close(second[i, :len(TEXTS[2 - i])], two[0])
        close(v[i], tiny.velocity(x_t[i:i + 1], t[i:i + 1], alone)[0])
        assert cache.next_position[i] == alone.next_position[0]


@torch.no_grad()
def test_dropped_rows_are_unconditional(tiny):
    x_t, t = draw(3, 16, 2, 2), torch.tensor([0.1, 0.5, 0.9])
    _, cache = tiny.prefill_text(*pad(TEXTS, multiple=16))
    v = tiny.velocity(x_t, t, cache.drop(torch.tensor([False, True, False])))
    close(v[1], tiny.velocity(x_t[1:2], t[1:2])[0])
    close(v[[0, 2]], tiny.velocity(x_t, t, cache)[[0, 2]])
    assert (v[1] - tiny.velocity(x_t, t, cache)[1]).norm() > 1e-2 * v[1].norm()


@torch.no_grad()
def test_padding_may_hold_anything(tiny):
    ids, valid = pad(TEXTS, multiple=16)
    other = torch.where(valid, ids, 33)
    x_t, t = draw(3, 16, 2, 2), torch.full((3,), 0.5)
    a, b = (tiny.velocity(x_t, t, tiny.prefill_text(i, valid)[1]) for i in (ids, other))
    assert torch.equal(a, b) and a.isfinite().all()


@torch.no_grad()
def test_text_never_sees_the_noise(tiny):
    """The text block is run before any noise exists, and denoising leaves its cache as it was, bit for bit."""
    hidden, cache = tiny.prefill_text(torch.tensor([TEXTS[1]]))
    before = [x.clone() for x in cache.keys + cache.values]
    a = tiny.velocity(draw(1, 16, 2, 2, seed=1), torch.tensor([0.9]), cache)
    b = tiny.velocity(draw(1, 16, 2, 2, seed=2), torch.tensor([0.9]), cache)
    assert not torch.allclose(a, b)
    assert all(torch.equal(x, y) for x, y in zip(before, cache.keys + cache.values))
    assert cache.valid.shape == (1, 8) and cache.next_position.tolist() == [8]
    assert torch.equal(hidden, tiny.prefill_text(torch.tensor([TEXTS[1]]))[0])


# ---- gradients ----

def generation_loss(model):
    ids, valid = pad(TEXTS)
    grad = any(p.requires_grad for p in model.u_parameters())
    with torch.set_grad_enabled(grad):
        _, cache = model.prefill_text(ids, valid)
    return model.velocity(draw(3, 16, 2, 2), torch.tensor([0.2, 0.5, 0.8]), cache).square().mean()


def test_frozen_weights_stay(tiny):
    tiny.train().freeze("u")
    before = {name: p.detach().clone() for name, p in tiny.named_parameters()}
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=0.1, weight_decay=0.1)
    generation_loss(tiny).backward()
    assert all(p.grad is None for p in tiny.u_parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny.g_parameters())
    optimizer.step()
    frozen = {id(p) for p in tiny.u_parameters()}
    for name, p in tiny.named_parameters():
        assert torch.equal(p, before[name]) == (id(p) in frozen), name


def test_gradients_reach_u_when_it_is_not_frozen(tiny):
    generation_loss(tiny).backward()
    with_gradient = {name for name, p in tiny.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {"embed.weight", "layers.0.u.heads.q.weight", "layers.2.u.heads.k.weight", "layers.0.u.mlp.up.weight"} <= with_gradient
    # what has none by construction: nothing of the text block's last layer but its keys and values is read
    assert not {"lm_head.weight", "norm_u.weight", "layers.2.u.mlp.up.weight", "layers.2.u.heads.o.weight"} & with_gradient
    assert not any(name.startswith(("vision", "connector")) for name in with_gradient)


def test_freezing_g_leaves_understanding_to_train(tiny):
    tiny.freeze("g")
    hidden, _ = tiny.prefill_text(torch.tensor([TEXTS[1]]), cache=tiny.prefill_image(draw(1, 3, 32, 32))[1])
    tiny.report_loss(hidden[0, :-1], torch.tensor(TEXTS[1][1:])).sum().backward()
    assert all(p.grad is None for p in tiny.g_parameters())
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny.u_parameters())


def test_every_parameter_is_of_one_branch(tiny):
    u, g = tiny.u_parameters(), tiny.g_parameters()
    assert len(u) + len(g) == len(list(tiny.parameters())) and not {id(p) for p in u} & {id(p) for p in g}
    without = UniX(tiny_config(generation=False))
    assert not without.g_parameters() and len(without.u_parameters()) == len(u)


# ---- surgery and details ----

@torch.no_grad()
def test_copy_u_to_g():
    """The set made by copying has its own memory, the names and shapes of a built one, and zero output."""
    torch.manual_seed(0)
    model = randomise(UniX(tiny_config(generation=False)))
    model.copy_u_to_g()
    want = {name: p.shape for name, p in UniX(tiny_config()).named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == want
    for layer in model.layers:
        for (name, a), b in zip(layer.u.named_parameters(), layer.g.parameters()):
            assert torch.equal(a, b) and a.data_ptr() != b.data_ptr(), name
    assert torch.equal(model.norm_u.weight, model.norm_g.weight) and model.norm_u.weight is not model.norm_g.weight
    assert model.velocity(draw(1, 16, 2, 2), torch.tensor([0.5])).abs().max() == 0
    assert model.cfg.generation and model.latent_positions.shape == (64, 64)


def test_copy_of_a_frozen_set_is_trainable():
    model = UniX(tiny_config(generation=False))
    model.freeze("u")
    model.copy_u_to_g()
    assert all(p.requires_grad for p in model.g_parameters()) and not any(p.requires_grad for p in model.u_parameters())


def test_position_table():
    """Row r, column c by hand: width axis first, each half [sin | cos]; a larger table extends a smaller one."""
    C, small, large = 16, position_table(8, 16).view(8, 8, 16), position_table(16, 16).view(16, 16, 16)
    assert torch.equal(small, large[:8, :8])
    for r, c in ((0, 0), (2, 5), (7, 1)):
        for n, place in enumerate((c, r)):
            for i in range(C // 4):
                angle = place * 10000 ** (-i / (C / 4))
                assert small[r, c, n * C // 2 + i] == pytest.approx(math.sin(angle), abs=1e-6)
                assert small[r, c, n * C // 2 + C // 4 + i] == pytest.approx(math.cos(angle), abs=1e-6)


@torch.no_grad()
def test_a_larger_table_changes_no_velocity(tiny):
    x_t, t = draw(1, 16, 4, 6), torch.tensor([0.3])
    before = tiny.velocity(x_t, t)
    tiny.cfg.max_latent_size = 16
    tiny.build_positions()
    assert torch.equal(tiny.velocity(x_t, t), before)


def test_time_features():
    ours = time_features(torch.tensor([0.3]), 256)[0]
    for i in (0, 1, 127):
        assert ours[i] == pytest.approx(math.cos(0.3 * 10000 ** (-i / 128)), abs=1e-6)
        assert ours[128 + i] == pytest.approx(math.sin(0.3 * 10000 ** (-i / 128)), abs=1e-6)


@torch.no_grad()
def test_taps_count_from_one(tiny):
    x_t, t, seen = draw(2, 16, 2, 2), torch.tensor([0.2, 0.8]), []
    hooks = [layer.register_forward_hook(lambda m, i, out: seen.append(out[1])) for layer in tiny.layers]
    v, hiddens = tiny.denoise(x_t, t, taps=(1, 3))
    assert hiddens.keys() == {1, 3}
    assert torch.equal(hiddens[1], seen[0]) and torch.equal(hiddens[3], seen[2])
    close(tiny.latent_out(tiny.norm_g(hiddens[3])).transpose(1, 2).unflatten(2, (2, 2)), v, 1e-6)
    for hook in hooks:
        hook.remove()
    assert torch.equal(tiny.velocity(x_t, t), v)                # looking changes nothing


def test_refusals(tiny):
    with pytest.raises(AssertionError, match="repa_layer"):
        tiny_config(repa_layer=4)
    with pytest.raises(AssertionError, match="heads"):
        tiny_config(n_head=5)
    with pytest.raises(AssertionError, match="position table"):
        tiny.velocity(draw(1, 16, 9, 2), torch.tensor([0.5]))
    with pytest.raises(AssertionError, match="multiples"):
        tiny.prefill_image(draw(1, 3, 40, 40))


def test_configuration_survives_json():
    import json
    from dataclasses import asdict
    cfg = tiny_config(double_bos=True)
    assert UniXConfig(**json.loads(json.dumps(asdict(cfg)))) == cfg


def test_report_loss_in_chunks(tiny):
    hidden, labels = draw(50, 64).requires_grad_(), torch.randint(0, 64, (50,))
    grads = []
    for chunk in (1024, 7):
        loss = tiny.report_loss(hidden, labels, chunk)
        grads.append((loss.detach(), *torch.autograd.grad(loss.square().sum(), [hidden, tiny.lm_head.weight])))
    for whole, parts in zip(*grads):
        close(parts, whole, 1e-6)
