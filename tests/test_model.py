"""model.py against an independent slow model: one packed sequence, one dense mask, no batches."""
import json
import math
from dataclasses import asdict

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
import torch.nn.functional as F

from attention import DecodeCache
from helpers import close, normal, randomise, tiny_config
from model import UniX, UniXConfig, is_generation, position_table, time_features
from tokenizer import pad
from training.blocks import describe

BOS, EOS = 60, 61
TEXTS = [[BOS, 5, EOS], [BOS, 1, 2, 3, 4, 5, 6, EOS], [BOS, EOS]]


# ---- the slow model: a list of tokens, each with its embedding, branch, position and block ----

def rms(x, norm):
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight


def turn(x, position, theta):
    """Rotate (H, D) by a position, as complex numbers."""
    first, second = x.double().chunk(2, dim=-1)
    half = first.shape[-1]
    angle = position * theta ** (-torch.arange(half).double() / half)
    z = torch.complex(first, second) * torch.exp(1j * angle)
    return torch.cat([z.real, z.imag], -1).float()


def sees(query, key):
    """Earlier clean blocks, and of its own block all, or those up to itself where it is text."""
    if query["block"] == key["block"]:
        return query["kind"] != "text" or key["place"] <= query["place"]
    return key["block"] < query["block"] and key["kind"] != "noisy"


def tokens_of(model, blocks):
    """[(kind, content)] with kind image, text or noisy -> the tokens of all blocks in a row."""
    cfg, table, tokens, position = model.cfg, model.latent_positions, [], 0
    soi, eoi = model.embed.weight[cfg.soi], model.embed.weight[cfg.eoi]
    for n, (kind, content) in enumerate(blocks):
        if kind == "text":
            rows = [(model.embed.weight[i], "u", position + p) for p, i in enumerate(content)]
        else:
            inside = []
            if kind == "image":
                inside = [(x, "u") for x in model.encode_image(content[None])[0]]
            else:
                x_t, t = content
                _, h, w = x_t.shape
                time = model.time_embed(time_features(t[None]))[0]
                for r in range(h):
                    for c in range(w):
                        place = table[r * cfg.max_latent_size + c]
                        inside.append((model.latent_in(x_t[:, r, c]) + time + place, "g"))
            rows = [(x, branch, position) for x, branch in [(soi, "u"), *inside, (eoi, "u")]]
        tokens += [dict(x=x, branch=branch, position=p, kind=kind, block=n, place=place)
                   for place, (x, branch, p) in enumerate(rows)]
        position += len(content) if kind == "text" else 1
    return tokens


def slow(model, blocks, detach_u=False):
    """The final hidden states (T, C) of every block; detach_u: no gradient passes the u stream."""
    cfg, tokens = model.cfg, tokens_of(model, blocks)
    D = cfg.n_embd // cfg.n_head
    mask = torch.tensor([[sees(query, key) for key in tokens] for query in tokens])
    x = torch.stack([token["x"] for token in tokens])
    for layer in model.layers:
        parts = [layer.u if token["branch"] == "u" else layer.g for token in tokens]
        q, k, v = [], [], []
        for token, row, part in zip(tokens, x, parts):
            heads, normed = part.heads, rms(row, part.norm1)
            query = rms(heads.q(normed).view(-1, D), heads.q_norm)
            key = rms(heads.k(normed).view(-1, D), heads.k_norm)
            q.append(turn(query, token["position"], cfg.rope_theta))
            k.append(turn(key, token["position"], cfg.rope_theta))
            v.append(heads.v(normed).view(-1, D))
        q, k, v = torch.stack(q), torch.stack(k), torch.stack(v)                        # (T, H, D)
        scores = torch.einsum("thd,shd->hts", q, k) / math.sqrt(D)
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
        y = torch.einsum("hts,shd->thd", weights, v).flatten(1)
        rows = []
        for row, mixed, part in zip(x, y, parts):
            row = row + part.heads.o(mixed)
            inner = rms(row, part.norm2)
            row = row + part.mlp.down(F.silu(part.mlp.gate(inner)) * part.mlp.up(inner))
            rows.append(row.detach() if detach_u and part is layer.u else row)
        x = torch.stack(rows)
    norms = [model.norm_u if token["branch"] == "u" else model.norm_g for token in tokens]
    x = torch.stack([rms(row, norm) for row, norm in zip(x, norms)])
    return [x[[token["block"] == n for token in tokens]] for n in range(len(blocks))]


def check_gradients(loss, reference, parameters):
    """Of every parameter, as far as it is not frozen; zero where the loss does not reach it."""
    trained = {name: p for name, p in parameters.items() if p.requires_grad}
    ours = torch.autograd.grad(loss, trained.values(), materialize_grads=True)
    theirs = torch.autograd.grad(reference, trained.values(), materialize_grads=True)
    for gradient, other in zip(ours, theirs, strict=True):
        close(gradient, other, 2e-5)
    return {name for name, gradient in zip(trained, ours) if gradient.abs().sum() > 0}


def test_report_generation(tiny):
    """The hidden states of every block, the cross-entropy of the report and its gradients."""
    image, prompt, report = normal(3, 32, 32), TEXTS[1], TEXTS[0]
    blocks = [("image", image), ("text", prompt), ("text", report)]
    tiny.freeze("g")
    references = slow(tiny, blocks)
    hidden, cache = tiny.prefill_image(image[None])
    close(hidden[0], references[0])
    for text, reference in zip((prompt, report), references[1:]):
        hidden, cache = tiny.prefill_text(torch.tensor([text]), cache=cache)
        close(hidden[0], reference)
    assert cache.next_position.tolist() == [1 + 8 + 3], "an image block takes one position"

    labels = torch.tensor(report[1:])
    loss = tiny.report_loss(hidden[0, :-1], labels)
    reference = -tiny.lm_head(references[-1][:-1]).log_softmax(-1)[range(len(labels)), labels]
    close(loss, reference)
    reached = check_gradients(loss.sum(), reference.sum(), dict(tiny.named_parameters()))
    assert len(reached) == len(tiny.u_parameters()), "all of u, nothing of g"


@pytest.mark.parametrize("frozen", [False, True], ids=["all trained", "u frozen"])
@pytest.mark.parametrize("text, h, w", [(TEXTS[1], 2, 2), (TEXTS[1], 2, 3), (None, 2, 3)])
def test_image_generation(tiny, text, h, w, frozen):
    """The velocity and its gradients, with a report and without."""
    x_t, t, cache, blocks = normal(16, h, w), torch.tensor(0.7), None, []
    if frozen:
        tiny.freeze("u")
    if text:
        _, cache = tiny.prefill_text(torch.tensor([text]))
        blocks = [("text", text)]
    hidden = slow(tiny, [*blocks, ("noisy", (x_t, t))], detach_u=frozen)[-1]
    reference = tiny.latent_out(hidden[1:-1]).T.view(16, h, w)          # without SOI and EOI
    tiny.velocity(normal(1, 16, h, w, seed=1), t[None], cache)          # the cache is only read
    v = tiny.velocity(x_t[None], t[None], cache)[0]
    close(v, reference)

    parameters = dict(tiny.named_parameters())
    reached = check_gradients(v.square().sum(), reference.square().sum(), parameters)
    assert len(reached & {name for name in parameters if is_generation(name)}) \
        == len(tiny.g_parameters())
    if frozen:
        assert len(reached) == len(tiny.g_parameters())


# ---- two ways, one result ----

@torch.no_grad()
def test_token_by_token_is_the_block_at_once(tiny):
    """On either cache, behind an image and texts of different length."""
    ids = torch.tensor([[BOS, 5, 6, 7, 8, EOS], [BOS, 9, 9, 1, 2, EOS]])
    _, prefix = tiny.prefill_image(normal(2, 3, 32, 32))
    _, prefix = tiny.prefill_text(*pad(TEXTS[:2]), prefix)
    at_once, _ = tiny.prefill_text(ids, cache=prefix)
    for cache in (prefix, DecodeCache(prefix, room=6)):
        hiddens = []
        for i in range(6):
            hidden, cache = tiny.prefill_text(ids[:, i:i + 1], cache=cache)
            hiddens.append(hidden)
        close(torch.cat(hiddens, dim=1), at_once)
        assert cache.next_position.tolist() == [1 + 3 + 6, 1 + 8 + 6]


class Operations(TorchDispatchMode):
    """Every operation with the shapes of its tensors, and the addresses of those that stay."""

    def __init__(self, staying):
        super().__init__()
        self.addresses = {tensor.data_ptr() for tensor in staying}
        self.log = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = {} if kwargs is None else kwargs
        seen = []
        for value in torch.utils._pytree.tree_leaves((args, kwargs)):
            if torch.is_tensor(value):
                address = value.data_ptr()
                seen.append((value.shape, address if address in self.addresses else None))
            else:
                seen.append(value)
        self.log.append((str(function), seen))
        return function(*args, **kwargs)


@torch.no_grad()
def test_every_decoded_token_runs_the_same_operations_on_the_same_memory(tiny):
    """So they can be recorded once; and none of them waits for a number from the GPU."""
    _, prefix = tiny.prefill_text(*pad(TEXTS[:2]))
    cache, token = DecodeCache(prefix, room=6), torch.tensor([[BOS], [BOS]])
    staying = [*tiny.parameters(), *tiny.buffers(), *cache.keys, *cache.values, cache.valid,
               cache.slot, cache.mask, cache.next_position, token]
    logs = []
    for _ in range(3):
        with Operations(staying) as operations:
            hidden, cache = tiny.prefill_text(token, cache=cache)
            tiny.logits(hidden)
        logs.append(operations.log)
    assert logs[0] == logs[1] == logs[2]
    names = {name for name, _ in logs[0]}
    assert names and not any("local_scalar" in name or "nonzero" in name for name in names)


@torch.no_grad()
def test_a_batch_is_its_rows(tiny):
    """Texts of different length behind an image, a second text behind the padding, then noise."""
    images, x_t, t = normal(3, 3, 32, 32), normal(3, 16, 2, 2), torch.tensor([0.1, 0.5, 0.9])
    texts = TEXTS, TEXTS[::-1]

    def run(rows, multiples):
        _, cache = tiny.prefill_image(images[rows])
        hiddens = []
        for text, multiple in zip(texts, multiples):
            hidden, cache = tiny.prefill_text(*pad(text[rows], multiple), cache)
            hiddens.append(hidden)
        return [*hiddens, tiny.velocity(x_t[rows], t[rows], cache)], cache.next_position

    batch, positions = run(slice(0, 3), (16, 4))
    for i in range(3):
        alone, position = run(slice(i, i + 1), (1, 1))
        assert positions[i] == position[0]
        for n in range(2):
            close(batch[n][i, :len(texts[n][i])], alone[n][0])
        close(batch[2][i], alone[2][0])


@torch.no_grad()
def test_taps_count_from_one_and_change_nothing(tiny):
    x_t, t, outputs = normal(2, 16, 2, 2), torch.tensor([0.2, 0.8]), []
    for layer in tiny.layers:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output[1]))
    v, hiddens = tiny.denoise(x_t, t, taps=(1, 3))
    assert hiddens.keys() == {1, 3}
    assert torch.equal(hiddens[1], outputs[0]) and torch.equal(hiddens[3], outputs[2])
    assert torch.equal(tiny.velocity(x_t, t), v)


# ---- training ----

def test_every_parameter_is_of_one_branch(tiny):
    u, g = ({id(p) for p in part} for part in (tiny.u_parameters(), tiny.g_parameters()))
    assert u | g == {id(p) for p in tiny.parameters()} and not u & g
    reader = UniX(tiny_config(generation=False))
    assert len(reader.u_parameters()) == len(u) and not reader.g_parameters()


def test_report_loss_is_the_same_in_chunks(tiny):
    hidden, labels = normal(50, 64).requires_grad_(), torch.randint(0, 64, (50,))
    results = []
    for chunk in (1024, 7):
        loss = tiny.report_loss(hidden, labels, chunk)
        gradients = torch.autograd.grad(loss.square().sum(), [hidden, tiny.lm_head.weight])
        results.append((loss.detach(), *gradients))
    for whole, parts in zip(*results):
        close(parts, whole, 1e-6)


@torch.no_grad()
def test_the_generation_set_is_a_trainable_copy():
    """Its own memory, the names and shapes of a built one, nothing frozen, a velocity of zero."""
    model = randomise(UniX(tiny_config(generation=False)))
    model.freeze("u")
    model.copy_u_to_g()
    built = {name: p.shape for name, p in UniX(tiny_config()).named_parameters()}
    assert {name: p.shape for name, p in model.named_parameters()} == built
    assert all(is_generation(name) == p.requires_grad for name, p in model.named_parameters())
    pairs = [(layer.u, layer.g) for layer in model.layers]
    for original, copy in [*pairs, (model.norm_u, model.norm_g)]:
        for a, b in zip(original.parameters(), copy.parameters(), strict=True):
            assert torch.equal(a, b) and a.data_ptr() != b.data_ptr()
    assert model.cfg.generation
    assert model.velocity(normal(1, 16, 2, 2), torch.tensor([0.5])).abs().max() == 0


# ---- tables, sizes, the drawing ----

@torch.no_grad()
def test_place_and_time_are_waves(tiny):
    """Places: the column first, each half [sin | cos]; time: [cos | sin] of t, not of 1000 t."""
    table, large = position_table(8, 16).view(8, 8, 16), position_table(16, 16).view(16, 16, 16)
    frequencies = 10000 ** (-torch.arange(4) / 4)
    for row, column in ((0, 0), (2, 5), (7, 1)):
        waves = [f(place * frequencies) for place in (column, row) for f in (torch.sin, torch.cos)]
        assert torch.allclose(table[row, column], torch.cat(waves), atol=1e-6)
    angles = 0.3 * 10000 ** (-torch.arange(128) / 128)
    waves = torch.cat([angles.cos(), angles.sin()])
    assert torch.allclose(time_features(torch.tensor([0.3]), 256)[0], waves, atol=1e-6)

    # a larger table extends a smaller one: stage 3 goes on where stage 2 ended
    assert torch.equal(table, large[:8, :8])
    x_t, t = normal(1, 16, 4, 6), torch.tensor([0.3])
    before = tiny.velocity(x_t, t)
    tiny.cfg.max_latent_size = 16
    tiny.build_positions()
    assert torch.equal(tiny.velocity(x_t, t), before)


def test_a_configuration_survives_json_and_an_impossible_one_is_refused(tiny):
    cfg = tiny_config(double_bos=True)
    assert UniXConfig(**json.loads(json.dumps(asdict(cfg)))) == cfg
    with pytest.raises(AssertionError, match="repa_layer"):
        tiny_config(repa_layer=4)
    with pytest.raises(AssertionError, match="heads"):
        tiny_config(n_head=5)
    with pytest.raises(AssertionError, match="position table"):
        tiny.velocity(normal(1, 16, 9, 2), torch.tensor([0.5]))


@torch.no_grad()
def test_the_drawing_shows_the_positions_of_the_model(tiny, capsys):
    """`python model.py`, which the README quotes: 78 columns, and where a block really starts."""
    describe(tiny.cfg)
    drawing = capsys.readouterr().out
    assert max(len(line) for line in drawing.splitlines()) <= 78
    for sample in drawing.split("\n\n")[1:]:
        cache = None
        for line in sample.splitlines()[2:]:
            name, position = line.split()[0], line[39:49].split("..")
            start = 0 if cache is None else cache.next_position.item()
            assert int(position[0]) == start
            if name == "image":
                _, cache = tiny.prefill_image(normal(1, 3, 32, 32), cache)
            elif name != "noisy":
                length = int(position[1]) - start + 1
                assert f"BOS, {length - 2} ids, EOS" in line
                _, cache = tiny.prefill_text(torch.full((1, length), 5), cache=cache)
