"""Checkpoints of others: written by transformers and diffusers at tiny sizes with random weights, loaded by ours, compared
in fp32 to 1e-5; the reference Janus; sharded and pickled files; and what is refused, each with one sentence."""
import json
import shutil
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from common import processes as common
from weights import layouts
import weights
from weights.export import export_release
from attention import Cache
from common.processes import InputError
from helpers import GOLDEN, ROOT, TOWER, close, needs_golden, scramble, some_tokenizer
from model import UniX, UniXConfig
from vae import VAE, VAEConfig
from vision import ViTConfig

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")

TEXT = dict(model_type="llama", hidden_size=64, intermediate_size=176, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=4, vocab_size=100_600, rms_norm_eps=1e-6, tie_word_embeddings=False)


@pytest.fixture(scope="module")
def janus_port(tmp_path_factory):
    config = transformers.JanusConfig(
        text_config=TEXT, vision_config=dict(**TOWER, projection_dim=64, mlp_ratio=4.0, num_image_tokens=16, depth=2),
        vq_config=dict(embed_dim=8, num_embeddings=32, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1,
                       projection_dim=64, latent_channels=8, image_token_embed_dim=64, num_patches=4),
        tie_word_embeddings=False)
    model = scramble(transformers.JanusForConditionalGeneration(config))
    directory = tmp_path_factory.mktemp("janus")
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(some_tokenizer(100_581), encoding="utf-8")
    return model, directory


def without_qk_norm(model):
    """Janus has no QK norm; with it (gain 1) a UniX differs from Janus until stage 1 heals that."""
    for layer in model.layers:
        layer.u.heads.q_norm = layer.u.heads.k_norm = torch.nn.Identity()
    return model


def text_logits(model, embeds):
    """Embeddings (B, T, C) as one causal block from position 0 -> hidden states, logits."""
    hidden, *_ = model.block(embeds, None, Cache.empty(len(embeds), embeds.device), torch.arange(embeds.size(1))[None], True)
    return hidden, model.logits(hidden)


@torch.no_grad()
def test_janus_port(janus_port):
    theirs, directory = janus_port
    ours = without_qk_norm(weights.load_janus(directory))
    pixels, ids = torch.randn(2, 3, 64, 64), torch.randint(0, 100_600, (2, 9))
    close(ours.vision(pixels), theirs.model.vision_model(pixels).last_hidden_state)
    close(ours.encode_image(pixels), theirs.model.aligner(theirs.model.vision_model(pixels).last_hidden_state))
    close(text_logits(ours, ours.embed(ids))[1], theirs(input_ids=ids).logits)


@torch.no_grad()
def test_llama_under_its_own_name(janus_port, tmp_path):
    """The language half as `LlamaForCausalLM`, in the layout that DeepSeek's Janus uses around it."""
    llama = scramble(transformers.LlamaForCausalLM(transformers.LlamaConfig(**TEXT)))
    janus = load_file(GOLDEN / "janus_tiny.safetensors") if GOLDEN.exists() else pytest.skip("no golden tensors")
    rest = {k: v.float() for k, v in janus.items() if not k.startswith("language_model.")}
    save_file({**rest, **{"language_model." + k: v.contiguous() for k, v in llama.state_dict().items()}},
              tmp_path / "model.safetensors")
    vision = ViTConfig(image_size=64, n_layer=2, n_head=4, n_embd=48, n_inner=192)
    cfg = UniXConfig(n_layer=2, n_head=4, n_embd=64, n_inner=176, vocab_size=100_600, vision=vision, generation=False, repa_layer=1)
    ours, ids = without_qk_norm(weights.load_janus(tmp_path, cfg)), torch.randint(0, 100_600, (2, 11))
    close(text_logits(ours, ours.embed(ids))[1], llama(ids).logits)


@needs_golden
@torch.no_grad()
def test_reference_janus():
    ref = load_file(GOLDEN / "janus_tiny_io.safetensors")
    vision = ViTConfig(image_size=64, n_layer=2, n_head=4, n_embd=48, n_inner=192)
    cfg = UniXConfig(n_layer=2, n_head=4, n_embd=64, n_inner=176, vocab_size=256, vision=vision, generation=False, repa_layer=1)
    model = weights.load_janus(GOLDEN / "janus_tiny.safetensors", cfg)
    assert all((layer.u.heads.q.bias == 0).all() and (layer.u.heads.k_norm.weight == 1).all() for layer in model.layers)
    model = without_qk_norm(model)
    close(model.vision(ref["image"][None])[0], ref["vision_out"])
    close(model.encode_image(ref["image"][None])[0], ref["aligner_out"])
    text = model.embed(ref["text_ids"])
    embeds = torch.cat([text[:3], model.encode_image(ref["image"][None])[0], text[3:]])
    close(embeds, ref["inputs_embeds"])
    hidden, logits = text_logits(model, embeds[None])
    close(hidden[0], ref["final_hidden"])
    close(logits[0], ref["logits"])


def test_janus_sizes_pixels_and_generation(janus_port):
    model, vae, tokenizer = weights.load(janus_port[1])
    assert vae is None and model.cfg.generation is False and tokenizer.double_bos is False
    assert (model.cfg.vision.mean[0], model.cfg.vision.pad, model.cfg.connector_gelu) == (0.5, 127, "none")
    assert (model.cfg.n_head, model.cfg.vision.n_head, model.cfg.vision.image_size, model.unused) == (4, 4, 64, {})
    copied = weights.load_janus(janus_port[1], generation=True)
    assert all(torch.equal(a, b) for layer in copied.layers for a, b in zip(layer.u.parameters(), layer.g.parameters()))


@torch.no_grad()
def test_rad_dino(tmp_path):
    config = transformers.Dinov2Config(**{**TOWER, "image_size": 70, "patch_size": 14}, mlp_ratio=4)
    theirs = scramble(transformers.Dinov2Model(config))
    theirs.save_pretrained(tmp_path)
    ours = weights.load_rad_dino(tmp_path)
    assert ours.cfg.grid == 5 and ours.cfg.mean == layouts.RAD_DINO.mean
    for h, w in ((70, 70), (98, 98), (42, 84), (518, 518)):         # as trained, larger, not square: positions are resampled
        pixels = torch.randn(2, 3, h, w)
        close(ours(pixels), theirs(pixels).last_hidden_state[:, 1:])


@torch.no_grad()
@pytest.mark.parametrize("levels", [2, 3])
def test_diffusers_vae(tmp_path, levels):
    plain = levels - 1
    theirs = scramble(diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * plain + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * plain,
        block_out_channels=(32,) * plain + (64,), layers_per_block=2, latent_channels=4, norm_num_groups=32))
    theirs.save_pretrained(tmp_path)
    ours = weights.load_vae(tmp_path)
    images, latents = torch.randn(2, 3, 32, 32), torch.randn(2, 4, 8, 8)
    mean, logvar = ours.moments(images)
    close(mean, theirs.encode(images).latent_dist.mean)
    close(logvar, theirs.encode(images).latent_dist.logvar)
    close(ours.decoder(ours.post_quant_conv(latents)), theirs.decode(latents).sample)


# ---- the release ----

@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A tiny UniX with the special ids of the real one, and a tiny kl-f16, exported: model, vae, directory."""
    torch.manual_seed(0)
    vision = ViTConfig(image_size=32, n_layer=2, n_head=1, n_embd=64, n_inner=256)
    model = UniX(UniXConfig(n_layer=2, n_head=4, n_embd=64, n_inner=176, vocab_size=100_600, vision=vision, repa_layer=2,
                            max_latent_size=4, double_bos=True, connector_gelu="tanh"))
    vae = VAE(VAEConfig(ch=32, ch_mult=(1, 1, 1, 1, 2), n_res=1))
    directory = tmp_path_factory.mktemp("release") / "UniX"

    class Text:
        json = some_tokenizer(100_600)
    export_release(scramble(model), scramble(vae), Text, directory)
    return model, vae, directory


def test_release_is_recognised(release):
    before, vae_before, directory = release
    assert sorted(str(p.relative_to(directory)) for p in directory.rglob("*")) == [
        "config.json", "model.safetensors", "tokenizer.json", "vae", "vae/config.yaml", "vae/kl-f16d16.ckpt"]
    model, vae, tokenizer = weights.load(directory)
    assert model.cfg == before.cfg and vae.cfg == vae_before.cfg and tokenizer.double_bos
    for a, b in ((before, model), (vae_before, vae)):
        assert all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_release_draws_and_reads_as_the_release_does(release, tmp_path):
    """Without a word about it: 49 Euler steps at shift 3, guidance 2, the largest size; an option still wins."""
    settings = {}
    for name, options in (("bare", []), ("asked", ["--steps", "2"])):
        run = subprocess.run([sys.executable, "sample.py", "--checkpoint", str(release[2]), "--report", "abc", *options,
                              "--out", str(tmp_path / f"{name}.png")], cwd=ROOT, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        text = Image.open(tmp_path / f"{name}.png").text
        settings[name] = [text[k] for k in ("steps", "solver", "shift", "cfg", "renorm", "size")]
    assert settings == {"bare": ["49", "euler", "3.0", "2.0", "global", "64"], "asked": ["2", "euler", "3.0", "2.0", "global", "64"]}
    run = subprocess.run([sys.executable, "sample.py", "--checkpoint", str(release[2]), "--image", str(tmp_path / "bare.png"),
                          "--max-tokens", "3"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.strip(), run.stderr


def test_a_vae_is_found_as_file_and_directory(release):
    for path in (release[2] / "vae", release[2] / "vae" / "kl-f16d16.ckpt"):
        found = weights.find_vae(path)
        assert all(torch.equal(v, found.state_dict()[k]) for k, v in release[1].state_dict().items())
    assert weights.find_vae(ROOT / "demo").cfg.norm_groups == 8             # a checkpoint of ours, its model beside
    with pytest.raises(InputError, match="no weights at"):
        weights.find_vae(ROOT / "nowhere")


def test_export_wants_a_generation_branch(janus_port, tmp_path):
    with pytest.raises(InputError, match="no generation branch"):
        export_release(*weights.load(janus_port[1]), tmp_path / "UniX")


@needs_golden
def test_every_full_size_name_of_kl_f16():
    shapes = json.loads((GOLDEN / "key_shapes_full.json").read_text())["vae_kl_f16"]
    with torch.device("meta"):
        ours = {layouts.LDM.theirs(k)[0]: list(v.shape) for k, v in VAE(VAEConfig()).state_dict().items()}
    assert ours == {k: v for k, v in shapes.items() if not k.startswith("loss.")}


def test_what_belongs_to_which_weights():
    """Pixels and activations, which no comparison of networks shows."""
    half, unix, dino = (0.5, 0.5, 127), (0.555895, 0.336385, 141), (0.5307, 0.2583, 0)
    for layout, pixels, gelu in ((layouts.UNIX, unix, "none"), (layouts.JANUS, half, "none"), (layouts.JANUS_HF, half, "none"),
                                 (layouts.DINO, dino, "none")):
        cfg = ViTConfig(image_size=64, patch_size=16, **layout.vision)
        assert (cfg.mean, cfg.std, cfg.pad, cfg.gelu) == ((pixels[0],) * 3, (pixels[1],) * 3, pixels[2], gelu), layout.title
    assert [layout.model.get("connector_gelu") for layout in (layouts.UNIX, layouts.JANUS, layouts.JANUS_HF)] == \
        ["tanh", "none", "none"]
    assert layouts.UNIX.model["double_bos"] and "double_bos" not in layouts.JANUS.model


def test_export_says_what_it_is(release):
    """Both files as the authors' code reads them, by the keys that it asks for."""
    config = json.loads((release[2] / "config.json").read_text())["language_config"]
    assert config == {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "num_key_value_heads": 4, "vocab_size": 100_600, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}
    params = json.loads((release[2] / "vae" / "config.yaml").read_text())["model"]["params"]
    assert params["embed_dim"] == 16 and params["monitor"] and params["lossconfig"]["target"] == "torch.nn.Identity"
    assert params["ddconfig"] == {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3, "ch": 32,
                                  "ch_mult": [1, 1, 1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [16], "dropout": 0.0}
    content = torch.load(release[2] / "vae" / "kl-f16d16.ckpt", weights_only=True)
    assert list(content) == ["state_dict"]


def test_export_keeps_what_was_chosen(release, tmp_path, capsys):
    """A model that began as Janus-Pro comes back as it was, and the difference to the release is said."""
    before = UniX(replace(release[0].cfg, connector_gelu="none", double_bos=False, max_text=99, vision=replace(
        release[0].cfg.vision, n_head=4, **layouts.JANUS_PIXELS)))
    export_release(before, release[1], type("Text", (), {"json": some_tokenizer(100_600)}), tmp_path / "UniX")
    assert weights.load(tmp_path / "UniX")[0].cfg == before.cfg
    assert "double_bos True, connector_gelu tanh, mean (0.555895" in capsys.readouterr().out


def test_export_is_whole_or_not_at_all(release, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "save", lambda *a: (_ for _ in ()).throw(RuntimeError("disk full")))
    text = type("Text", (), {"json": some_tokenizer(100_600)})
    with pytest.raises(InputError, match="could not be written .disk full"):
        export_release(release[0], release[1], text, tmp_path / "UniX")
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    (tmp_path / ".tmp-UniX" / "vae").mkdir(parents=True)           # what a kill leaves
    export_release(release[0], release[1], text, tmp_path / "UniX")
    assert [p.name for p in tmp_path.iterdir()] == ["UniX"]


def test_half_precision_lies_in_the_file(release, tmp_path):
    """bf16 from a bf16 file: nothing is copied, the parameters are the file's own pages."""
    directory = shutil.copytree(release[2], tmp_path / "half")
    edit(directory, **{k: v.bfloat16() for k, v in load_file(directory / "model.safetensors").items()})
    model = weights.load(directory, dtype=torch.bfloat16)[0]
    maps = [line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines() if str(directory) in line]
    for name, p in model.named_parameters():
        assert p.dtype == torch.bfloat16 and any(int(a, 16) <= p.data_ptr() < int(b, 16) for a, b in maps), name


@torch.no_grad()
def test_copied_generation_set_draws_in_half_precision(janus_port):
    model = weights.load_janus(janus_port[1], dtype=torch.bfloat16, generation=True)
    assert model.velocity(torch.zeros(1, 16, 2, 2).bfloat16(), torch.ones(1)).dtype == torch.bfloat16


SECOND_FORM = {"llm_config": {"hidden_size": 64, "num_attention_heads": 4}, "vit_config": {"image_size": 32, "patch_size": 16},
               "vae_config": {"downsample": 16, "z_channels": 16}, "latent_patch_size": 1, "max_latent_size": 4,
               "timestep_shift": 1.0, "connector_act": "gelu_pytorch_tanh"}


@pytest.mark.parametrize("part, key, value", [
    ("language_config", k, v) for k, v in (("hidden_size", 65), ("intermediate_size", 5), ("num_hidden_layers", 3), ("vocab_size", 9),
    ("num_attention_heads", 2), ("num_key_value_heads", 2), ("rope_theta", 5e5))] + [
    ("llm_config", "hidden_size", 65), ("vit_config", "image_size", 64), ("vit_config", "patch_size", 8),
    ("vae_config", "downsample", 8), ("vae_config", "z_channels", 4), ("", "latent_patch_size", 2), ("", "max_latent_size", 8),
    ("", "connector_act", "gelu")])
def test_config_that_contradicts(release, tmp_path, part, key, value):
    directory = shutil.copytree(release[2], tmp_path / "copy")
    text = json.loads((directory / "config.json").read_text())["language_config"]
    config = {"language_config": text} if part == "language_config" else json.loads(json.dumps(SECOND_FORM))
    (directory / "config.json").write_text(json.dumps(config))
    assert weights.load(directory)[0].cfg.vision.n_embd == 64
    (config[part] if part else config)[key] = value
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"says {key} {value}"):
        weights.load(directory)


# ---- files: shards, pickles ----

def shards(directory, suffix="safetensors"):
    """Break <directory>/model.safetensors into two files and an index."""
    tensors = load_file(directory / "model.safetensors")
    names, places = sorted(tensors), {}
    for i, part in enumerate((names[::2], names[1::2])):
        file = f"model-{i + 1:05d}-of-00002.{suffix}"
        content = {k: tensors[k].clone() for k in part}
        save_file(content, directory / file) if suffix == "safetensors" else torch.save(content, directory / file)
        places.update(dict.fromkeys(part, file))
    (directory / "model.safetensors").unlink()
    index = "model.safetensors.index.json" if suffix == "safetensors" else "pytorch_model.bin.index.json"
    (directory / index).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return directory / index


@pytest.mark.parametrize("form", ["safetensors", "bin", "one bin"])
def test_shards_and_pickles(janus_port, tmp_path, form):
    directory = shutil.copytree(janus_port[1], tmp_path / "copy")
    if form == "one bin":
        torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()
    else:
        shards(directory, form)
    before, after = weights.load_janus(janus_port[1]).state_dict(), weights.load_janus(directory).state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def edit(directory, **changes):
    """Change tensors of model.safetensors: a new value, or None to take it away."""
    tensors = {**load_file(directory / "model.safetensors"), **changes}
    save_file({k: v for k, v in tensors.items() if v is not None}, directory / "model.safetensors")


class Code:
    def __reduce__(self):
        return print, ("run",)


NORM = "model.language_model.norm.weight"
Q = "model.language_model.layers.0.self_attn.q_proj.weight"
LIGHTNING = "pytorch_lightning.callbacks.model_checkpoint"


def test_a_pickle_of_lightning_names_a_class_and_runs_nothing(tmp_path, monkeypatch):
    """kl-f16 is of the time when Lightning put its callback's class beside the weights."""
    vae = VAE(VAEConfig(ch=32, ch_mult=(1, 2), n_res=1))
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", LIGHTNING):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules[LIGHTNING].ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": LIGHTNING})
    callbacks = {sys.modules[LIGHTNING].ModelCheckpoint: {"best": 1}}
    torch.save({"callbacks": callbacks, "state_dict": vae.state_dict()}, tmp_path / "new.ckpt")
    torch.save({"callbacks": callbacks, "state_dict": vae.state_dict()}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    monkeypatch.undo()
    for name in ("new.ckpt", "old.ckpt"):
        assert all(torch.equal(v, vae.state_dict()[k]) for k, v in weights.load_vae(tmp_path / name).state_dict().items())


CORRUPTIONS = {
    "not tied, no head": (lambda d: edit(d, **{"lm_head.weight": None}), "missing there: lm_head.weight"),
    "our own name": (lambda d: edit(d, **{"norm_u.weight": torch.ones(64)}), "unknown to us: norm_u.weight"),
    "one of three in integers": (lambda d: edit(d, **{
        "model.vision_model.encoder.layers.0.self_attn.q_proj.bias": torch.ones(48, dtype=torch.int32)}), "belong together"),
    "index of numbers": (lambda d: shards(d).write_text('{"weight_map": {"a": 3}}'), "does not say which file"),
    "index leads elsewhere": (lambda d: shards(d).write_text('{"weight_map": {"a": "../x.safetensors"}}'), "does not say which"),
    "no table of settings": (lambda d: (d / "config.json").write_text('{"text_config": "x"}'), "no table of settings"),
    "heads that are no number": (lambda d: (d / "config.json").write_text(
        '{"text_config": {"num_attention_heads": "4"}}'), "not a positive number"),
    "a pickled list": (lambda d: (torch.save([1], d / "pytorch_model.bin"), (d / "model.safetensors").unlink()), "named tensors"),
    "tokens beyond the embedding": (lambda d: (d / "tokenizer.json").write_text(some_tokenizer(100_601)), "100600 rows"),
    "missing shard": (lambda d: (shards(d), (d / "model-00002-of-00002.safetensors").unlink()), "00002-of-00002.*not there"),
    "index names another file": (lambda d: (index := shards(d), index.write_text(index.read_text().replace("00002-of", "00003-of"))),
                                 "00003-of-00002.*not there"),
    "index lacks a tensor": (lambda d: (index := shards(d), index.write_text(json.dumps({"weight_map": {
        k: v for k, v in json.loads(index.read_text())["weight_map"].items() if k != NORM}}))), f"differ in {NORM}"),
    "index is no JSON": (lambda d: shards(d).write_text("{"), "damaged"),
    "truncated": (lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-100]), "damaged"),
    "renamed": (lambda d: edit(d, **{NORM: None, "model.language_model.norm.wait": torch.ones(64)}),
                "missing there: norm_u.weight; unknown to us: model.language_model.norm.wait"),
    "wrong shape": (lambda d: edit(d, **{NORM: torch.ones(63)}), r"norm_u.weight has shape \(63,\)"),
    "integers": (lambda d: edit(d, **{NORM: torch.ones(64, dtype=torch.int32)}), "norm_u.weight holds torch.int32"),
    "config.json contradicts": (lambda d: (d / "config.json").write_text((d / "config.json").read_text().replace(
        '"intermediate_size": 176', '"intermediate_size": 177')), "config.json says intermediate_size 177.* say 176"),
    "carries code": (lambda d: (torch.save({"x": Code()}, d / "pytorch_model.bin"), (d / "model.safetensors").unlink()),
                     "asks to run code"),
    "no special ids": (lambda d: (d / "tokenizer.json").write_text(some_tokenizer(200)), "no token of number 100000, 100001"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "lacks tokenizer.json"),
    "tokenizer damaged": (lambda d: (d / "tokenizer.json").write_text("{}"), "is no tokenizer"),
    "something else": (lambda d: save_file({"x": torch.ones(1)}, d / "model.safetensors"), "no checkpoint that we know"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "holds no weights"),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions(janus_port, tmp_path, name):
    directory = shutil.copytree(janus_port[1], tmp_path / "copy")
    change, sentence = CORRUPTIONS[name]
    change(directory)
    with pytest.raises(InputError, match=sentence):
        weights.load(directory)
    with pytest.raises(SystemExit) as ended:
        common.cli(lambda argv: weights.load(directory))
    assert ended.value.code == 2


def test_a_corruption_at_the_command_line(janus_port, tmp_path):
    directory = shutil.copytree(janus_port[1], tmp_path / "copy")
    edit(directory, **{NORM: None})
    run = subprocess.run([sys.executable, "sample.py", "--checkpoint", str(directory), "--report", "x", "--out",
                          str(tmp_path / "x.png")], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 2 and run.stderr.count("\n") == 1 and "norm_u.weight" in run.stderr
