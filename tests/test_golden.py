"""UniX against tensors recorded from the released inference code, at toy size and in fp32.

Relative error 1e-5, of gradients 2e-5. What each recorded tensor is: golden/README.md beside them.
Where the record is absent, test_model.py holds the same network against a slow one.
"""
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import flow
import weights
from helpers import GOLDEN, close, needs_golden
from model import UniX, UniXConfig, time_features
from repa import Projector, repa_loss
from vision import ViTConfig
from weights import layouts
from weights.export import export_release, made_up_unused

pytestmark = needs_golden


def load(**changes):
    """The recorded network, with the release's connector unless changed."""
    c = json.loads((GOLDEN / "unix_tiny_config.json").read_text())
    ids = c["special_tokens"]
    vision = ViTConfig(
        image_size=c["vit_image"], patch_size=c["vit_patch"], n_layer=c["vit_layers"],
        n_head=c["vit_heads"], n_embd=c["vit_width"], n_inner=4 * c["vit_width"])
    sizes = dict(
        n_layer=c["layers"], n_head=c["heads"], n_embd=c["hidden"], n_inner=c["inter"],
        vocab_size=c["vocab"], bos=ids["bos_token_id"], eos=ids["eos_token_id"],
        soi=ids["start_of_image"], eoi=ids["end_of_image"], vision=vision,
        max_latent_size=c["max_latent"], connector_gelu="tanh", repa_layer=1)
    return weights.load_unix(GOLDEN / "unix_tiny.safetensors", UniXConfig(**{**sizes, **changes}))


@pytest.fixture(scope="module")
def model():
    return load()


def part(golden, prefix):
    """The recorded tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): x for name, x in golden.items() if name.startswith(prefix)}


def tokens(x):
    """(1, C, h, w) -> the record's (h*w, C)."""
    return x[0].flatten(1).T


def grid(x, h, w):
    return x.T.reshape(1, -1, h, w)


def text(cfg, *id_lists):
    """[BOS] ids [EOS], one after the other -> (1, T)."""
    bos, eos = torch.tensor([cfg.bos]), torch.tensor([cfg.eos])
    return torch.cat([torch.cat([bos, ids, eos]) for ids in id_lists])[None]


# ---- sampling ----

@torch.no_grad()
@pytest.mark.parametrize("gelu, prefix, ending", [
    ("tanh", "und.", ""),
    ("none", "und_exact_gelu.", "_exact_gelu"),
])
def test_image_to_text(golden, gelu, prefix, ending):
    """Vision tower, connector, hidden states of both blocks, 12 greedy steps."""
    model = load(connector_gelu=gelu)
    inputs, recorded = part(golden, "und."), part(golden, prefix)
    image = inputs["image"][None]
    close(model.vision(image)[0], inputs["vit_out"])
    close(model.encode_image(image)[0], inputs["connector_out" + ending])

    hidden, cache = model.prefill_image(image)
    close(hidden[0], recorded["hidden_image"])
    ids = text(model.cfg, inputs["prompt_ids"])
    assert ids[0].tolist() == inputs["text_ids"].tolist()
    hidden, cache = model.prefill_text(ids, cache=cache)
    close(hidden[0], recorded["hidden_text"])
    assert cache.next_position.tolist() == inputs["decode_start_position"].tolist()
    assert [cache.valid.size(1)] == inputs["decode_start_kv_len"].tolist()

    token, logits = torch.tensor([[model.cfg.bos]]), []
    for _ in range(12):
        hidden, cache = model.prefill_text(token, cache=cache)
        logits.append(model.logits(hidden)[0, -1])
        token = logits[-1].argmax()[None, None]
    close(torch.stack(logits), recorded["logits"])
    assert torch.stack(logits).argmax(-1).tolist() == recorded["greedy_ids"].tolist()


@pytest.mark.parametrize("h, w", [(4, 4), (4, 6)])
@pytest.mark.parametrize("renorm, name", [("global", "traj"), ("channel", "traj_channel")])
@torch.no_grad()
def test_text_to_image(model, golden, h, w, renorm, name):
    """Nine Euler steps at shift 3, guidance 2 in (0.4, 1], both contexts in one batch."""
    prompt, recorded = part(golden, "gen."), part(golden, f"gen_{h}x{w}.")
    ids = text(model.cfg, prompt["prompt_ids"])
    assert ids[0].tolist() == prompt["text_ids"].tolist()
    hidden, report = model.prefill_text(ids)
    close(hidden[0], prompt["text_hidden"])
    assert set(recorded["position_ids"].tolist()) == {report.next_position.item()}
    cache = report.rows(torch.tensor([0, 0])).drop(torch.tensor([False, True]))
    times = flow.schedule(9, 3.0)
    close(times[:-1], recorded["traj.timesteps"])
    points, scales = [], []

    def velocity(x, t):
        points.append(tokens(x))
        scales.append(2.0 if 0.4 < t[0] <= 1 else 1.0)
        v_cond, v_uncond = model.velocity(x.repeat(2, 1, 1, 1), t.repeat(2), cache).chunk(2)
        return v_cond if scales[-1] == 1 else flow.guide(v_cond, v_uncond, 2.0, renorm)

    final = flow.euler(velocity, grid(recorded["traj.noise"], h, w), times)
    close(tokens(final), recorded[f"{name}.final"])
    assert scales == recorded["traj.cfg_scale_used"].tolist()
    if renorm == "global":
        close(torch.stack(points), recorded["traj.x_steps"])


def block_input(model, x_t, t, position_ids):
    """The g stream of a noisy block: latents, time and positions, each embedded."""
    time = model.time_embed(time_features(t))[:, None]
    return model.latent_in(x_t[None]) + time + model.latent_positions[position_ids]


@pytest.mark.parametrize("h, w", [(4, 4), (4, 6)])
@torch.no_grad()
def test_velocity_and_guidance(model, golden, h, w):
    """One velocity with and without the report, every rescaling, hidden states of the block."""
    recorded = part(golden, f"gen_{h}x{w}.")
    _, cache = model.prefill_text(text(model.cfg, golden["gen.prompt_ids"]))
    x_t, t = grid(recorded["x_t"], h, w), recorded["t"][None]
    v_cond, v_uncond = model.velocity(x_t, t, cache), model.velocity(x_t, t)
    close(tokens(v_cond), recorded["v_cond"])
    close(tokens(v_uncond), recorded["v_uncond"])
    for renorm in ("global", "channel"):
        close(tokens(flow.guide(v_cond, v_uncond, 2.0, renorm)), recorded[f"v_cfg2_{renorm}"])
    close(tokens(flow.guide(v_cond, v_uncond, 2.0, "channel")), recorded["v_cfg2_text_channel"])
    # the demo's: scale 3, then again 1.5 towards it with the text as "image": 1 + 1.5 (3 - 1)
    close(tokens(flow.guide(v_cond, v_uncond, 4.0)), recorded["v_cfg3_img1.5_global"])

    g = block_input(model, recorded["x_t"], t, recorded["latent_position_ids"])
    u = torch.cat(model.boundary(1), dim=1)
    u, g, _, _ = model.block(u, g, cache, cache.next_position[:, None], causal=False)
    close(torch.cat([u[:, :1], g, u[:, 1:]], dim=1)[0], recorded["hidden_cond"])


# ---- training ----

@torch.no_grad()
def test_a_training_sample_at_shift_3_and_its_hidden_states(model, golden):
    recorded, shifted = part(golden, "train_gen."), part(golden, "train_gen_shift3.")
    t = flow.sample_t(recorded["t_raw"][None], 3.0)
    close(t, shifted["t"][:1])
    x_t, target = flow.interpolate(recorded["latent"][None], grid(recorded["noise"], 4, 4), t)
    hidden, cache = model.prefill_text(text(model.cfg, recorded["prompt_ids"]))
    v = model.velocity(x_t, t, cache)
    close(tokens(v), shifted["pred"])
    close(tokens((v - target).square()), shifted["mse"])

    # at shift 1: all normed hidden states, of the text, then of SOI, latents and EOI
    x_t, t = tokens(grid(recorded["x_t"], 4, 4)), recorded["t"][:1]
    g = block_input(model, x_t, t, recorded["latent_position_ids"])
    u = torch.cat(model.boundary(1), dim=1)
    u, g, _, _ = model.block(u, g, cache, cache.next_position[:, None], causal=False)
    close(torch.cat([hidden, u[:, :1], g, u[:, 1:]], dim=1)[0], recorded["final_hidden"])


@torch.no_grad()
def test_two_packed_samples_are_two_rows(model, golden):
    """A report with a 4 x 4 latent, and no report with 4 x 6: two calls on one cache."""
    recorded = part(golden, "train_pack2.")
    ids = text(model.cfg, recorded["prompt_ids"]).repeat(2, 1)
    cache = model.prefill_text(ids)[1].drop(torch.tensor([False, True]))
    samples = (("latent_a", slice(0, 16), 4, 4), ("latent_b", slice(16, 40), 4, 6))
    for row, (name, packed, h, w) in enumerate(samples):
        t = torch.sigmoid(recorded["t_raw"][packed][:1])
        noise = grid(recorded["noise"][packed], h, w)
        x_t, target = flow.interpolate(recorded[name][None], noise, t)
        v = model.velocity(x_t.repeat(2, 1, 1, 1), t.repeat(2), cache)[row:row + 1]
        close(tokens(v), recorded["pred"][packed])
        close(tokens((v - target).square()), recorded["mse"][packed])


def check_gradients(model, golden, prefix):
    """Every recorded gradient; the names are the release's."""
    ours = {layouts.UNIX.theirs(name)[0]: p.grad for name, p in model.named_parameters()}
    recorded = part(golden, prefix + ".")
    assert recorded
    for name, gradient in recorded.items():
        close(ours[name], gradient, 2e-5)


@pytest.mark.parametrize("frozen, gradients", [(True, "grad"), (False, "grad_nofreeze")])
def test_generation_training(golden, frozen, gradients):
    model, recorded = load(), part(golden, "train_gen.")
    if frozen:
        model.freeze("u")
    t = flow.sample_t(recorded["t_raw"][None])
    close(t, recorded["t"][:1])
    x_t, target = flow.interpolate(recorded["latent"][None], grid(recorded["noise"], 4, 4), t)
    with torch.set_grad_enabled(not frozen):
        _, cache = model.prefill_text(text(model.cfg, recorded["prompt_ids"]))
    v, hiddens = model.denoise(x_t, t, cache, taps=(1, 2, 3))
    close(tokens(v), recorded["pred"])
    close(tokens((v - target).square()), recorded["mse"])
    for layer, hidden in hiddens.items():           # the record counts layers from 0, taps from 1
        close(hidden[0], recorded[f"gen_hidden_after_layer{layer - 1}"])
    loss = flow.flow_loss(v, target).mean()
    close(loss, recorded["loss"])
    loss.backward()
    check_gradients(model, golden, "train_gen." + gradients)


@pytest.mark.parametrize("gelu, ending", [("tanh", ""), ("none", "_exact_gelu")])
def test_understanding_training(golden, gelu, ending):
    model, recorded = load(connector_gelu=gelu), part(golden, "train_und.")
    ids = text(model.cfg, recorded["prompt_ids"], recorded["report_ids"])
    image_hidden, cache = model.prefill_image(recorded["image"][None])
    hidden, _ = model.prefill_text(ids, cache=cache)
    rows = hidden[0, len(recorded["prompt_ids"]) + 2:-1]            # from the report's BOS on
    ce = model.report_loss(rows, recorded["label_ids"])
    close(ce, recorded["ce" + ending])
    close(ce.mean(), recorded["ce_mean" + ending])
    if gelu == "tanh":
        close(torch.cat([image_hidden, hidden], dim=1)[0], recorded["final_hidden"])
    ce.mean().backward()
    check_gradients(model, golden, "train_und.grad" + ending)


def test_repa():
    recorded = load_file(GOLDEN / "repa_tiny_io.safetensors")
    projector = Projector(64, 96, 48)
    projector.load_state_dict(part(recorded, "proj."))
    for case in "abc":
        projected = projector(recorded[case + ".model_features"])
        close(projected, recorded[case + ".projected"])
        if case != "c":         # c is the release's 1-D resampling, which we do not repeat
            loss = repa_loss(projected, recorded[case + ".encoder_features"]).mean()
            close(loss, recorded[case + ".neg_mean_cosine"])


# ---- the release's file ----

def test_release_round_trip(tmp_path):
    """Release -> ours -> release gives back every tensor, bit for bit, the unused ones included."""
    before = load_file(GOLDEN / "unix_tiny.safetensors")
    export_release(load(), None, SimpleNamespace(json="{}"), tmp_path / "UniX")
    after = load_file(tmp_path / "UniX" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_full_size_name():
    """The table covers each of the 996 names and shapes of the released size."""
    recorded = json.loads((GOLDEN / "key_shapes_full.json").read_text())["unix"]
    with torch.device("meta"):
        used = UniX(UniXConfig()).state_dict()
        unused = made_up_unused(UniXConfig())
    used = {layouts.UNIX.theirs(name)[0]: x for name, x in used.items()}
    assert {name: list(x.shape) for name, x in {**used, **unused}.items()} == recorded
    assert all(name.startswith(tuple(layouts.UNIX.dropped)) for name in unused)
