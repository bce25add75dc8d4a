"""weights/load.py: the networks of others, loaded by ours, compute what theirs do.

Checkpoints are written by transformers and diffusers at tiny sizes with random values, and the
outputs compared in fp32 to 1e-5. The released UniX itself is compared in test_golden.py.
"""
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import sample
import weights
from attention import Cache
from common.cli import InputError
from helpers import (
    GOLDEN, TOWER, close, needs_golden, scramble, some_tokenizer, tiny_config, tiny_vae,
)
from model import UniX, UniXConfig
from vision import RAD_DINO, ViTConfig
from weights import checkpoint
from weights.empty import without_storage


def same(ours, theirs):
    """Whether two networks have the same tensors, bit for bit."""
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def change_tensors(directory, changes):
    """Write model.safetensors of an altered directory anew: {name: tensor, or None to drop it}."""
    path = directory / "model.safetensors"
    tensors = {**load_file(path), **changes}
    path.unlink()                           # it may be a link to the original
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_a_network_without_storage_has_its_formulas_and_draws_no_random_numbers(monkeypatch):
    expected = UniX(tiny_config()).latent_positions
    for name in ("normal_", "uniform_"):        # on the meta device they import torch's compiler
        monkeypatch.setattr(torch.Tensor, name, None, raising=False)
    model = without_storage(UniX, tiny_config())
    assert model.embed.weight.is_meta and model.vision.positions.is_meta
    assert torch.equal(model.latent_positions, expected)


# ---- Janus-Pro ----

def without_qk_norm(model):
    """Janus has no QK norm; with it, even at gain 1, a UniX differs until stage 1 heals that."""
    for layer in model.layers:
        layer.u.heads.q_norm = torch.nn.Identity()
        layer.u.heads.k_norm = torch.nn.Identity()
    return model


def text_logits(model, embeds):
    """Embeddings (B, T, C) as one causal block from position 0 -> hidden states, logits."""
    cache = Cache.empty(len(embeds), embeds.device)
    positions = torch.arange(embeds.size(1))[None]
    hidden, *_ = model.block(embeds, None, cache, positions, True)
    return hidden, model.logits(hidden)


@torch.no_grad()
def test_the_port_of_janus_computes_what_transformers_does(janus_port):
    theirs, directory = janus_port
    model, vae, tokenizer = weights.load(directory)
    cfg = model.cfg
    assert vae is None and not cfg.generation and not tokenizer.double_bos and not model.unused
    assert (cfg.n_head, cfg.vision.n_head, cfg.vision.image_size) == (4, 4, 64)
    assert (cfg.connector_gelu, cfg.vision.mean[0], cfg.vision.pad) == ("none", 0.5, 127)

    ours = without_qk_norm(model)
    pixels = torch.randn(2, 3, 64, 64)
    ids = torch.randint(0, 100_600, (2, 9))
    features = theirs.model.vision_model(pixels).last_hidden_state
    close(ours.vision(pixels), features)
    close(ours.encode_image(pixels), theirs.model.aligner(features))
    _, logits = text_logits(ours, ours.embed(ids))
    close(logits, theirs(input_ids=ids).logits)


@needs_golden
@torch.no_grad()
def test_janus_computes_what_its_authors_code_did():
    reference = load_file(GOLDEN / "janus_tiny_io.safetensors")
    vision = ViTConfig(image_size=64, n_layer=2, n_head=4, n_embd=48, n_inner=192)
    cfg = UniXConfig(n_layer=2, n_head=4, n_embd=64, n_inner=176, vocab_size=256, vision=vision,
                     generation=False, repa_layer=1)
    model = weights.load_janus(GOLDEN / "janus_tiny.safetensors", cfg)
    assert (model.layers[1].u.heads.q.bias == 0).all()
    assert (model.layers[1].u.heads.k_norm.weight == 1).all()

    model = without_qk_norm(model)
    image = reference["image"][None]
    close(model.vision(image)[0], reference["vision_out"])
    close(model.encode_image(image)[0], reference["aligner_out"])
    text = model.embed(reference["text_ids"])
    embeds = torch.cat([text[:3], model.encode_image(image)[0], text[3:]])
    close(embeds, reference["inputs_embeds"])
    hidden, logits = text_logits(model, embeds[None])
    close(hidden[0], reference["final_hidden"])
    close(logits[0], reference["logits"])


@torch.no_grad()
def test_the_generation_set_is_copied_on_request(janus_port):
    """In half precision, too: the model draws in it."""
    model = weights.load_janus(janus_port[1], dtype=torch.bfloat16, generation=True)
    assert all(same(layer.u, layer.g) for layer in model.layers)
    noise = torch.zeros(1, 16, 2, 2).bfloat16()
    assert model.velocity(noise, torch.ones(1)).dtype == torch.bfloat16


@pytest.mark.parametrize("config", [
    {"tie_word_embeddings": True}, {"text_config": {"tie_word_embeddings": True}}])
def test_a_tied_language_head_becomes_one_of_its_own(janus_port, altered, capsys, config):
    directory = altered(janus_port[1], {"config.json": json.dumps(config)})
    change_tensors(directory, {"lm_head.weight": None})
    model = weights.load_janus(directory)
    assert torch.equal(model.lm_head.weight, model.embed.weight)
    assert model.lm_head.weight.data_ptr() != model.embed.weight.data_ptr()
    assert "tied" in capsys.readouterr().err


# ---- encoders and autoencoders ----

@torch.no_grad()
def test_rad_dino_computes_what_transformers_does(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {**TOWER, "image_size": 70, "patch_size": 14}
    theirs = scramble(transformers.Dinov2Model(transformers.Dinov2Config(**sizes, mlp_ratio=4)))
    theirs.save_pretrained(tmp_path)
    ours = weights.load_rad_dino(tmp_path)
    assert (ours.cfg.grid, ours.cfg.mean) == (5, RAD_DINO.mean)
    # as in training, and with positions resampled for larger and oblong images
    for height, width in ((70, 70), (42, 84), (518, 518)):
        pixels = torch.randn(2, 3, height, width)
        close(ours(pixels), theirs(pixels).last_hidden_state[:, 1:])

    (tmp_path / "config.json").write_text('{"hidden_act": "relu"}')
    with pytest.raises(InputError, match="says hidden_act relu"):
        weights.load_rad_dino(tmp_path)


@torch.no_grad()
def test_an_autoencoder_of_diffusers_computes_what_diffusers_does(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    theirs = scramble(diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2 + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * 2,
        block_out_channels=[32, 32, 64], layers_per_block=2, latent_channels=4,
        norm_num_groups=16))
    theirs.save_pretrained(tmp_path)
    ours = weights.load_vae(tmp_path)
    assert ours.cfg.norm_groups == 16
    images, latents = torch.randn(2, 3, 32, 32), torch.randn(2, 4, 8, 8)
    close(torch.cat(ours.moments(images), dim=1), theirs.encode(images).latent_dist.parameters)
    close(ours.decoder(ours.post_quant_conv(latents)), theirs.decode(latents).sample)


# ---- the release ----

def test_the_release_is_recognised_by_its_names(release):
    *before, directory = release
    *networks, tokenizer = weights.load(directory)
    for network, original in zip(networks, before, strict=True):
        assert network.cfg == original.cfg and same(network, original)
    assert tokenizer.double_bos


def test_its_position_table_must_be_the_formula(release, altered):
    directory = altered(release[2], {})
    name = "latent_pos_embed.pos_embed"
    table = load_file(directory / "model.safetensors")[name]
    for other in (table.flip(0), table[:9], torch.full_like(table, float("nan"))):
        change_tensors(directory, {name: other})
        with pytest.raises(InputError, match="not the sine-cosine table of size 4"):
            weights.load_unix(directory)


def test_half_precision_lies_in_the_file(release, altered):
    """bf16 from a bf16 file: nothing is copied, the parameters are the file's own pages."""
    directory = altered(release[2], {})
    tensors = load_file(directory / "model.safetensors")
    change_tensors(directory, {name: tensor.bfloat16() for name, tensor in tensors.items()})
    model, _, _ = weights.load(directory, dtype=torch.bfloat16)

    pages = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if str(directory) in line:
            first, last = line.split()[0].split("-")
            pages.append(range(int(first, 16), int(last, 16)))
    for name, p in model.named_parameters():
        assert p.dtype == torch.bfloat16
        assert any(p.data_ptr() in part for part in pages), name


def test_the_release_draws_and_reads_as_its_authors_do(release, tmp_path, capsys):
    """Without a word about it; an option on the command line still wins."""
    out = tmp_path / "drawn.png"
    line = ["--checkpoint", str(release[2]), "--device", "cpu"]
    sample.main([*line, "--report", "abc", "--out", str(out), "--steps", "2"])
    text = Image.open(out).text
    settings = [text[key] for key in ("steps", "solver", "shift", "cfg", "renorm", "size")]
    assert settings == ["2", "euler", "3.0", "2.0", "global", "64"]
    capsys.readouterr()
    sample.main([*line, "--image", str(out), "--max-tokens", "3"])
    assert capsys.readouterr().out.strip()


# ---- checkpoints of ours ----

def test_a_run_gives_its_averaged_weights_unless_asked_otherwise(run):
    before, average, vae_before, directory = run
    plain, vae, tokenizer = weights.load(directory / "00000007", ema=False)
    assert same(plain, before) and same(vae, vae_before)
    assert (tokenizer.bos, tokenizer.eoi) == (60, 63)
    averaged, _, _ = weights.load(directory)
    plain.load_state_dict(average, strict=False)
    assert same(averaged, plain)


@pytest.mark.parametrize("change, sentence", [
    ({"model": {"n_layer": 2, "width": 3}}, "describes no model of ours: .*width"),
    ({"model": {"n_layer": 3, "n_head": 7}}, "describes no model of ours: 7 heads"),
    ({"vae": {"chapters": 3}}, "describes no model of ours: .*chapters"),
    ({"model": None}, "holds no model, only a VAE"),
    ({"model": None, "vae": None}, r"holds no model\."),
])
def test_a_config_of_ours_that_describes_nothing_is_refused(run, change, sentence):
    path = run[3] / "00000007" / "config.json"
    config = {**json.loads(path.read_text()), **change}
    config = {key: value for key, value in config.items() if value is not None}
    path.write_text(json.dumps(config))
    with pytest.raises(InputError, match=sentence):
        weights.load(path.parent)


def test_a_vae_is_found_in_a_file_a_directory_and_a_checkpoint_of_ours(release, run):
    for path in (release[2] / "vae", release[2] / "vae" / "kl-f16d16.ckpt"):
        assert same(weights.find_vae(path), release[1])
    for path in (run[3], run[3] / "00000007"):
        assert same(weights.find_vae(path), run[2])

    with pytest.raises(InputError, match="no weights at"):
        weights.find_vae(run[3] / "nowhere")
    (run[3] / "00000007" / "config.json").write_text('{"format": "open-unix"}')
    with pytest.raises(InputError, match="holds no VAE; `python -m phantom.train_vae` makes one"):
        weights.find_vae(run[3] / "00000007")


# ---- directories that are refused ----

def test_a_vae_with_other_latents_does_not_belong_to_the_model(tmp_path):
    model, vae = UniX(tiny_config(latent_channels=16)), tiny_vae()
    tensors = {"model": model.state_dict(), "vae": vae.state_dict()}
    checkpoint.save(tmp_path, 1, config=weights.describe(model, vae), tensors=tensors,
                    tokenizer=some_tokenizer(64))
    with pytest.raises(InputError, match="the VAE has 4 latent channels, the model 16"):
        weights.load(tmp_path)


@pytest.mark.parametrize("text, sentence", [
    (None, "lacks tokenizer.json; copy it from where the weights came from"),
    ("{}", "is no tokenizer"),
    (some_tokenizer(200), "has no token of number 100000, 100001"),
    (some_tokenizer(100_601), "numbers up to 100600, the embedding 100600 rows"),
], ids=["missing", "damaged", "too small", "too large"])
def test_a_tokenizer_of_other_weights_is_refused(janus_port, altered, text, sentence):
    with pytest.raises(InputError, match=sentence):
        weights.load(altered(janus_port[1], {"tokenizer.json": text}))


def test_what_is_nothing_that_is_asked_for_is_refused(janus_port, tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    for loader, directory, sentence in (
        (weights.load_rad_dino, janus_port[1], "is not RAD-DINO: its sizes cannot be read"),
        (weights.load_vae, janus_port[1], "is not a kl-f16 autoencoder: its sizes cannot be read"),
        (weights.load_unix, janus_port[1], "is not a released UniX: it has no generation branch"),
        (weights.load, tmp_path, "no checkpoint that we know"),
        (weights.load_tokenizer, tmp_path, "`python -m phantom.prepare` writes its own"),
    ):
        with pytest.raises(InputError, match=sentence):
            loader(directory)
