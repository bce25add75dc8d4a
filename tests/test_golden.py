"""UniX against reference tensors of the released inference code at toy size: fp32, relative error 1e-5, gradients 2e-5."""
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import flow
import weights
from weights import layouts
from weights.export import export_release, unused_from_nothing
from helpers import GOLDEN, close, needs_golden
from model import UniXConfig
from repa import Projector, repa_loss
from vision import ViTConfig

pytestmark = needs_golden


def config(**changes):
    c = json.loads((GOLDEN / "unix_tiny_config.json").read_text())
    vision = ViTConfig(image_size=c["vit_image"], patch_size=c["vit_patch"], n_layer=c["vit_layers"],
                       n_head=c["vit_heads"], n_embd=c["vit_width"], n_inner=4 * c["vit_width"])
    ids = c["special_tokens"]
    base = dict(n_layer=c["layers"], n_head=c["heads"], n_embd=c["hidden"], n_inner=c["inter"], vocab_size=c["vocab"],
                bos=ids["bos_token_id"], eos=ids["eos_token_id"], soi=ids["start_of_image"], eoi=ids["end_of_image"],
                vision=vision, max_latent_size=c["max_latent"], connector_gelu="tanh", repa_layer=1)
    return UniXConfig(**{**base, **changes})


def load(**changes):
    return weights.load_unix(GOLDEN / "unix_tiny.safetensors", config(**changes))


@pytest.fixture(scope="module")
def model():
    return load()


def tokens(x):
    """(B, C, h, w) -> the reference's (h*w, C)."""
    return x[0].flatten(1).T


def grid(x, h, w):
    return x.T.reshape(1, -1, h, w)


def text(cfg, *parts):
    return torch.cat([torch.cat([torch.tensor([cfg.bos]), p, torch.tensor([cfg.eos])]) for p in parts])[None]


@pytest.mark.parametrize("gelu, prefix", [("tanh", "und"), ("none", "und_exact_gelu")])
def test_image_to_text(golden, gelu, prefix):
    """Vision tower, connector, hidden states of both blocks, 12 greedy steps."""
    model = load(connector_gelu=gelu)
    cfg, image = model.cfg, golden["und.image"][None]
    with torch.no_grad():
        close(model.vision(image)[0], golden["und.vit_out"])
        close(model.encode_image(image)[0], golden["und.connector_out" + ("" if gelu == "tanh" else "_exact_gelu")])
        hidden, cache = model.prefill_image(image)
        close(hidden[0], golden[prefix + ".hidden_image"])
        ids = text(cfg, golden["und.prompt_ids"])
        assert ids[0].tolist() == golden["und.text_ids"].tolist()
        hidden, cache = model.prefill_text(ids, cache=cache)
        close(hidden[0], golden[prefix + ".hidden_text"])
        assert cache.next_position.tolist() == golden["und.decode_start_position"].tolist()
        assert [cache.valid.size(1)] == golden["und.decode_start_kv_len"].tolist()
        token, logits = torch.tensor([[cfg.bos]]), []
        fed = []
        for _ in range(12):
            fed.append(token.item())
            hidden, cache = model.prefill_text(token, cache=cache)
            logits.append(model.logits(hidden)[0, -1])
            token = logits[-1].argmax()[None, None]
    close(torch.stack(logits), golden[prefix + ".logits"])
    assert torch.stack(logits).argmax(-1).tolist() == golden[prefix + ".greedy_ids"].tolist()
    assert fed == golden[prefix + ".returned_sequence"].tolist()


@torch.no_grad()
def report_cache(model, golden):
    ids = text(model.cfg, golden["gen.prompt_ids"])
    assert ids[0].tolist() == golden["gen.text_ids"].tolist()
    hidden, cache = model.prefill_text(ids)
    close(hidden[0], golden["gen.text_hidden"])
    return cache


@pytest.mark.parametrize("h, w", [(4, 4), (4, 6)])
@torch.no_grad()
def test_velocity_and_guidance(model, golden, h, w):
    ref = {k.removeprefix(f"gen_{h}x{w}."): v for k, v in golden.items() if k.startswith(f"gen_{h}x{w}.")}
    cache = report_cache(model, golden)
    x_t, t = grid(ref["x_t"], h, w), ref["t"][None]
    v_cond, v_uncond = model.velocity(x_t, t, cache), model.velocity(x_t, t)
    close(tokens(v_cond), ref["v_cond"])
    close(tokens(v_uncond), ref["v_uncond"])
    for renorm, name in (("global", "v_cfg2_global"), ("channel", "v_cfg2_channel"), ("channel", "v_cfg2_text_channel")):
        close(tokens(flow.guide(v_cond, v_uncond, 2.0, renorm)), ref[name])
    # the demo's setting: scale 3, then again 1.5 towards it with the text as "image" context = 1 + 1.5 (3 - 1)
    close(tokens(flow.guide(v_cond, v_uncond, 4.0)), ref["v_cfg3_img1.5_global"])

    # hidden states of the whole block, SOI and EOI included
    position = cache.next_position[:, None]
    assert set(ref["position_ids"].tolist()) == {position.item()}
    g = model.latent_in(ref["x_t"][None]) + model.time_embed(time(t)) + model.latent_positions[ref["latent_position_ids"]]
    u, g, _, _ = model.block(torch.cat(model.boundary(1), 1), g, cache, position, causal=False)
    close(torch.cat([u[:, :1], g, u[:, 1:]], 1)[0], ref["hidden_cond"])


def time(t):
    from model import time_features
    return time_features(t)


@pytest.mark.parametrize("h, w", [(4, 4), (4, 6)])
@torch.no_grad()
def test_trajectory(model, golden, h, w):
    """Nine Euler steps at shift 3, guidance 2 in (0.4, 1], both contexts in one batch, both rescalings."""
    ref = {k.removeprefix(f"gen_{h}x{w}."): v for k, v in golden.items() if k.startswith(f"gen_{h}x{w}.")}
    cache = report_cache(model, golden).rows(torch.tensor([0, 0])).drop(torch.tensor([False, True]))
    times = flow.schedule(9, 3.0)
    close(times[:-1], ref["traj.timesteps"])
    for renorm, name in (("global", "traj.final"), ("channel", "traj_channel.final")):
        steps, scales = [], []

        def velocity(x, t):
            v_cond, v_uncond = model.velocity(x.repeat(2, 1, 1, 1), t.repeat(2), cache).chunk(2)
            guided = 0.4 < t[0] <= 1
            steps.append(tokens(x)), scales.append(2.0 if guided else 1.0)
            return flow.guide(v_cond, v_uncond, 2.0, renorm) if guided else v_cond

        final = flow.euler(velocity, grid(ref["traj.noise"], h, w), times)
        close(tokens(final), ref[name])
        if renorm == "global":
            close(torch.stack(steps), ref["traj.x_steps"])
            assert scales == ref["traj.cfg_scale_used"].tolist()


def golden_gradients(model, golden, prefix):
    """Compare every stored gradient; names are the release's."""
    ours = {layouts.UNIX.theirs(name)[0]: p.grad for name, p in model.named_parameters()}
    names = [k for k in golden if k.startswith(prefix + ".")]
    assert names
    for name in names:
        close(ours[name.removeprefix(prefix + ".")], golden[name], 2e-5)


def generation_loss(model, golden, taps=()):
    ref = {k.removeprefix("train_gen."): v for k, v in golden.items() if k.startswith("train_gen.")}
    x_0, noise = ref["latent"][None], grid(ref["noise"], 4, 4)
    t = flow.sample_t(ref["t_raw"][None])
    close(t, ref["t"][:1])
    x_t, target = flow.interpolate(x_0, noise, t)
    close(tokens(x_t), ref["x_t"])
    with torch.set_grad_enabled(any(p.requires_grad for p in model.u_parameters())):
        _, cache = model.prefill_text(text(model.cfg, ref["prompt_ids"]))
    v, hiddens = model.denoise(x_t, t, cache, taps)
    close(tokens(v.detach()), ref["pred"])
    close(tokens((v.detach() - target).square()), ref["mse"])
    loss = flow.flow_loss(v, target).mean()
    close(loss.detach(), ref["loss"])
    return loss, hiddens, ref


@pytest.mark.parametrize("frozen, prefix", [(True, "train_gen.grad"), (False, "train_gen.grad_nofreeze")])
def test_generation_training(golden, frozen, prefix):
    model = load()
    if frozen:
        model.freeze("u")
    loss, hiddens, ref = generation_loss(model, golden, taps=(1, 2, 3))
    for k in range(3):      # the reference counts layers from 0, taps from 1
        close(hiddens[k + 1][0].detach(), ref[f"gen_hidden_after_layer{k}"])
    loss.backward()
    golden_gradients(model, golden, prefix)
    if frozen:
        assert all(p.grad is None for p in model.u_parameters())


@torch.no_grad()
def test_generation_shift_and_final_hidden(model, golden):
    ref = {k.removeprefix("train_gen."): v for k, v in golden.items() if k.startswith("train_gen.")}
    t = flow.sample_t(ref["t_raw"][None], 3.0)
    close(t, golden["train_gen_shift3.t"][:1])
    x_t, target = flow.interpolate(ref["latent"][None], grid(ref["noise"], 4, 4), t)
    hidden, cache = model.prefill_text(text(model.cfg, ref["prompt_ids"]))
    v = model.velocity(x_t, t, cache)
    close(tokens(v), golden["train_gen_shift3.pred"])
    close(tokens((v - target).square()), golden["train_gen_shift3.mse"])

    # all 27 normed hidden states of the packed sample: the text block, then SOI, latents, EOI
    x_t = grid(ref["x_t"], 4, 4)
    g = model.latent_in(tokens(x_t)[None]) + model.time_embed(time(ref["t"][:1])) \
        + model.latent_positions[ref["latent_position_ids"]]
    u, g, _, _ = model.block(torch.cat(model.boundary(1), 1), g, cache, cache.next_position[:, None], causal=False)
    close(torch.cat([hidden, u[:, :1], g, u[:, 1:]], 1)[0], ref["final_hidden"])


@torch.no_grad()
def test_two_packed_samples_are_two_rows(model, golden):
    """a: text and a 4x4 latent; b: dropped text and a 4x6 latent, so one size a batch means two calls on one cache."""
    ref = {k.removeprefix("train_pack2."): v for k, v in golden.items() if k.startswith("train_pack2.")}
    ids = text(model.cfg, ref["prompt_ids"]).repeat(2, 1)
    cache = model.prefill_text(ids)[1].drop(torch.tensor([False, True]))
    for row, latent, part, (h, w) in ((0, ref["latent_a"], slice(0, 16), (4, 4)), (1, ref["latent_b"], slice(16, 40), (4, 6))):
        t = torch.sigmoid(ref["t_raw"][part][:1])
        x_t, target = flow.interpolate(latent[None], grid(ref["noise"][part], h, w), t)
        v = model.velocity(x_t.repeat(2, 1, 1, 1), t.repeat(2), cache)[row:row + 1]
        close(tokens(v), ref["pred"][part])
        close(tokens((v - target).square()), ref["mse"][part])


@pytest.mark.parametrize("gelu, ending", [("tanh", ""), ("none", "_exact_gelu")])
def test_understanding_training(golden, gelu, ending):
    model = load(connector_gelu=gelu)
    ref = {k.removeprefix("train_und."): v for k, v in golden.items() if k.startswith("train_und.")}
    ids = text(model.cfg, ref["prompt_ids"], ref["report_ids"])
    image_hidden, cache = model.prefill_image(ref["image"][None])
    hidden, _ = model.prefill_text(ids, cache=cache)
    start = len(ref["prompt_ids"]) + 2
    rows = hidden[0, start:-1]
    ce = model.report_loss(rows, ref["label_ids"])
    close(ce.detach(), ref["ce" + ending])
    close(ce.mean().detach(), ref["ce_mean" + ending])
    if gelu == "tanh":
        close(model.logits(rows).detach(), ref["logits"])
        close(torch.cat([image_hidden, hidden], 1)[0].detach(), ref["final_hidden"])
    ce.mean().backward()
    golden_gradients(model, golden, "train_und.grad" + ending)


def test_repa():
    ref = load_file(GOLDEN / "repa_tiny_io.safetensors")
    projector = Projector(64, 96, 48)
    projector.load_state_dict({k.removeprefix("proj."): v for k, v in ref.items() if k.startswith("proj.")})
    for case in "abc":
        projected = projector(ref[case + ".model_features"]).detach()
        close(projected, ref[case + ".projected"])
        if case != "c":         # c is the release's 1-d resampling, which we do not repeat
            close(repa_loss(projected, ref[case + ".encoder_features"]).mean(), ref[case + ".neg_mean_cosine"])


def test_release_round_trip(model, tmp_path):
    """Release -> ours -> release gives back every tensor, bit for bit, the dropped ones included."""
    class Stub:
        json = "{}"
    export_release(model, None, Stub, tmp_path / "new")
    before, after = load_file(GOLDEN / "unix_tiny.safetensors"), load_file(tmp_path / "new" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    sizes = json.loads((tmp_path / "new" / "config.json").read_text())["language_config"]
    assert sizes["hidden_size"] == model.cfg.n_embd and sizes["num_hidden_layers"] == model.cfg.n_layer


def test_export_refuses(model, tmp_path):
    """A VAE that the layout cannot describe, a directory that holds something."""
    from common.cli import InputError
    from helpers import tiny_vae

    class Stub:
        json = "{}"
    with pytest.raises(InputError, match="no kl-f16"):
        export_release(model, tiny_vae(), Stub, tmp_path / "new")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export_release(model, None, Stub, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_export_of_a_model_that_never_met_a_release(model, tmp_path, capsys):
    class Stub:
        json = "{}"
    model = load()
    model.unused = {}
    export_release(model, None, Stub, tmp_path)
    assert "formula" in capsys.readouterr().out
    before, after = load_file(GOLDEN / "unix_tiny.safetensors"), load_file(tmp_path / "model.safetensors")
    assert {k: v.shape for k, v in before.items()} == {k: v.shape for k, v in after.items()}
    for table in ("latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"):
        close(after[table], before[table], 1e-6)


def test_strict(tmp_path):
    """A renamed, a missing and a misshapen tensor are refused, both sides named."""
    from safetensors.torch import save_file
    from common.cli import InputError
    tensors = load_file(GOLDEN / "unix_tiny.safetensors")
    name = "language_model.model.layers.1.mlp_moe_gen.up_proj.weight"
    for change, words in (({"llm2vae.extra": tensors[name].clone()}, ["unknown to us", "llm2vae.extra"]),
                          ({name: None}, ["missing there", "layers.1.g.mlp.up.weight"]),
                          ({name: tensors[name][:5].clone()}, ["shape", "layers.1.g.mlp.up.weight"])):
        changed = {k: v for k, v in {**tensors, **change}.items() if v is not None}
        save_file(changed, tmp_path / "m.safetensors")
        with pytest.raises(InputError) as error:
            weights.load_unix(tmp_path / "m.safetensors", config())
        assert all(word in str(error.value) for word in words)
    (tmp_path / "m.safetensors").write_bytes((GOLDEN / "unix_tiny.safetensors").read_bytes()[:5000])
    with pytest.raises(InputError, match="damaged"):
        weights.load_unix(tmp_path / "m.safetensors", config())


def test_every_full_size_name(tmp_path):
    """The table covers each of the 996 names and shapes of the released size, on the meta device."""
    from model import UniX
    shapes = json.loads((GOLDEN / "key_shapes_full.json").read_text())["unix"]
    with torch.device("meta"):
        ours = {layouts.UNIX.theirs(k)[0]: list(v.shape) for k, v in UniX(UniXConfig()).state_dict().items()}
    left = {k: v for k, v in shapes.items() if k not in ours}
    assert all(k.startswith(tuple(layouts.UNIX.dropped)) for k in left)
    assert ours == {k: v for k, v in shapes.items() if k in ours}
    full = UniXConfig()
    with torch.device("meta"):
        assert {k: list(v.shape) for k, v in unused_from_nothing(full).items()} == left
