"""Weights by hand: our own checkpoints, Janus-Pro-1B, the released UniX, kl-f16, RAD-DINO and SigLIP.

`weights/layouts.py` holds one rename table a kind of checkpoint; read it to learn what is in them. Loading is strict: every tensor
of the file is used, or dropped on purpose by name, and every tensor of the model is filled; otherwise an error lists both
sides. Files are memory-mapped; only what is cast or joined is copied.

    load(directory) -> (model, vae, tokenizer)      ours, the release or Janus-Pro, told apart by their contents
    load_unix, load_janus, load_vae, load_vit       one kind each

docs/weights.md says where each checkpoint comes from.
"""
import hashlib
import re
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from common.processes import InputError
from model import UniX, UniXConfig, position_table
from tokenizer import Tokenizer
from vae import VAE, VAEConfig
from vision import ViT, ViTConfig
from weights.checkpoint import checkpoints, newest, read_config
from weights.files import few, fill, read_tensors, translate
from weights.layouts import DIFFUSERS, DINO, JANUS, JANUS_HF, LDM, SIGLIP, UNIX


def build(cfg, source, path, dtype, layout=None):
    """A UniX made around the tensors of a file (no second copy in memory), what it does not use set aside."""
    with torch.device("meta"):
        model = UniX(cfg)
    if layout:
        source = translate({k: v.shape for k, v in model.state_dict().items()}, source, layout, keep=layout is UNIX)
    unused = {k.removeprefix("unused."): v for k, v in source.items() if k.startswith("unused.")}
    fill(model, {k: v for k, v in source.items() if not k.startswith("unused.")}, path, dtype)
    if cfg.generation:
        model.build_positions()
    model.unused = unused
    return model


# ---- sizes: read off the tensors, held against config.json ----

def stated(directory, *keys):
    """The part of a directory's config.json under the first of these keys that is there ("" is the whole), or {}."""
    path = Path(directory) / "config.json"
    config = read_config(directory) if path.exists() else {}
    part = next((part for key in keys if (part := config if key == "" else config.get(key))), {})
    if not isinstance(part, dict):
        raise InputError(f"{path}: {' or '.join(keys)} is no table of settings.")
    for key in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta"):
        if key in part and (type(part[key]) not in (int, float) or not part[key] > 0):
            raise InputError(f"{path}: {key} is {part[key]!r}, not a positive number.")
    return part


def agree(cfg, settings, path):
    """A config.json that contradicts the tensors is an error."""
    ours = {"hidden_size": "n_embd", "intermediate_size": "n_inner", "num_hidden_layers": "n_layer", "rope_theta": "rope_theta",
            "num_attention_heads": "n_head", "num_key_value_heads": "n_head", "vocab_size": "vocab_size",
            "image_size": "image_size", "patch_size": "patch_size", "max_latent_size": "max_latent_size",
            "z_channels": "latent_channels", "connector_act": "connector_gelu"}
    have = vars(cfg) | {"connector_gelu": {"tanh": "gelu_pytorch_tanh", "none": "gelu"}.get(vars(cfg).get("connector_gelu"))}
    for theirs, said in settings.items():
        want = {"latent_patch_size": 1, "downsample": 16}.get(theirs, have.get(ours.get(theirs), said))
        if said != want:
            raise InputError(f"{path}: config.json says {theirs} {said}, the tensors and their use say {want}.")
    return cfg


def sizes(source, layout, path, vision=""):
    """ViTConfig of the vision tower in a checkpoint, and functions that ask for a shape and count layers."""
    shape = lambda ours: source[layout.theirs(ours)[0]].shape
    count = lambda ours: next(i for i in range(10**4) if layout.theirs(ours.format(i))[0] not in source)
    config = stated(path, "vision_config", "vit_config", *([] if vision else [""]))
    n_embd, _, patch, _ = shape(vision + "patch.weight")
    grid = int((shape(vision + "positions")[-2] - layout.vision.get("class_token", 0)) ** 0.5)
    act = "" if vision else config.get("hidden_act", "")        # of a tower alone: Janus-Pro's and the release's are exact
    more = {"gelu": {"gelu": "none"}.get(act, "tanh")} if act else {}
    cfg = ViTConfig(image_size=grid * patch, patch_size=patch, n_layer=count(vision + "blocks.{}.norm1.weight"), n_embd=n_embd,
                    n_head=config.get("num_attention_heads", max(1, n_embd // 64)),     # SigLIP's and DINOv2's heads have 64
                    norm_eps=config.get("layer_norm_eps", 1e-6), n_inner=shape(vision + "blocks.0.fc1.weight")[0],
                    **layout.vision | more)
    return agree(cfg, config, path), shape, count


def load_foreign(path, layout, config, dtype, source):
    """A UniX from the tensors of others; without our configuration it is read off them, or from what our export wrote."""
    tied = [part.get("tie_word_embeddings") for part in (stated(path, ""), stated(path, "text_config"))]
    embed, = layout.theirs("embed.weight")
    if layout is JANUS_HF and "lm_head.weight" not in source and embed in source and True in tied:
        print("the language head is tied to the embedding there; from here on they are two", file=sys.stderr)
        source = {**source, "lm_head.weight": source[embed].clone()}
    try:
        if config is None and "open_unix" in stated(path, ""):
            config = UniXConfig(**stated(path, "open_unix"))
        if config is None:
            vision, shape, count = sizes(source, layout, path, "vision.")
            text, (vocab, width) = stated(path, "language_config", "llm_config", "text_config"), shape("embed.weight")
            more, n_layer = {}, count("layers.{}.u.norm1.weight")
            if layout is UNIX:
                more = dict(n_head=width // shape("layers.0.u.heads.q_norm.weight")[0],
                            latent_channels=shape("latent_in.weight")[1],
                            max_latent_size=int(source["latent_pos_embed.pos_embed"].shape[0] ** 0.5))
            heads = text.get("num_attention_heads", max(1, width // 128))       # LLaMA's heads have 128
            config = UniXConfig(**{"n_head": heads, **layout.model, **more}, n_layer=n_layer,
                                n_embd=width, n_inner=shape("layers.0.u.mlp.gate.weight")[0], vocab_size=vocab, vision=vision,
                                norm_eps=text.get("rms_norm_eps", 1e-6), repa_layer=min(8, n_layer), generation=layout is UNIX)
            agree(agree(agree(config, text, path), stated(path, ""), path), stated(path, "vae_config"), path)
    except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError, AssertionError) as error:
        raise InputError(f"{path} is not {layout.title}: its sizes cannot be read ({error}).") from None
    return build(config, source, path, dtype, layout)


def load_unix(path, config=None, dtype=torch.float32):
    """The released UniX, a directory or one safetensors file. Without a config, sizes are read off the tensors and the
    release's choices are set (tanh connector, two BOS before a prompt)."""
    source = read_tensors(path)
    if UNIX.theirs("norm_g.weight")[0] not in source:
        raise InputError(f"{path} is not a released UniX: it has no generation branch (..._moe_gen).")
    model = load_foreign(path, UNIX, config, dtype, source)
    table, formula = source.get("latent_pos_embed.pos_embed"), position_table(model.cfg.max_latent_size, model.cfg.n_embd)
    if table is not None and (table.shape != formula.shape or not (table.float() - formula).abs().max() <= 0.01):
        raise InputError(f"{path}: latent_pos_embed.pos_embed is not the sine-cosine table of size {model.cfg.max_latent_size}.")
    return model


def load_janus(path, config=None, dtype=torch.float32, generation=False):
    """Janus-Pro, as its authors or as Hugging Face keep it: the understanding set, vision tower and connector of a UniX,
    QKV biases at 0 and QK-norm gains at 1; on request a generation set copied from it."""
    source = read_tensors(path)
    layout = JANUS if JANUS.theirs("connector.0.weight")[0] in source else JANUS_HF
    model = load_foreign(path, layout, config, dtype, source)
    if generation:
        model.copy_u_to_g()
    return model


def load_rad_dino(path, dtype=torch.float32):
    """RAD-DINO, or another Dinov2Model of Hugging Face -> vision.ViT."""
    return load_vit(path, DINO, dtype)


def load_siglip(path, dtype=torch.float32):
    """The vision half of a SigLIP of Hugging Face, as SiglipVisionModel or SiglipModel -> vision.ViT."""
    return load_vit(path, SIGLIP, dtype)


def load_vit(path, layout, dtype):
    source = {k.removeprefix("vision_model."): v for k, v in read_tensors(path).items()}
    try:
        cfg = sizes(source, layout, path)[0]
    except (KeyError, IndexError, ValueError, ZeroDivisionError, AssertionError) as error:
        raise InputError(f"{path} is not {layout.title}: its sizes cannot be read ({error}).") from None
    with torch.device("meta"):
        vit = ViT(cfg)
    return fill(vit, translate({k: v.shape for k, v in vit.state_dict().items()}, source, layout), path, dtype)


def load_vae(path, config=None, dtype=torch.float32):
    """A KL autoencoder: kl-f16's `.ckpt`, a safetensors file of ours, or diffusers' AutoencoderKL; file or directory.
    Without a config, sizes are read off the tensors (32 groups a norm, kl-f16's scale and shift)."""
    source = read_tensors(path)
    layout = DIFFUSERS if any("_blocks." in name for name in source) else LDM
    try:
        if layout is DIFFUSERS:
            last = max(int(name.split(".")[2]) for name in source if name.startswith("encoder.down_blocks."))
            turn = lambda m: f"decoder.up_blocks.{last - int(m[1])}."
            source = {re.sub(r"^decoder\.up_blocks\.(\d+)\.", turn, name): v for name, v in source.items()}
        cfg = config or vae_sizes(source, layout)
        cfg.norm_groups = stated(path, "").get("norm_num_groups", cfg.norm_groups)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, AssertionError) as error:
        raise InputError(f"{path} is no kl-f16 autoencoder: its sizes cannot be read ({error}).") from None
    with torch.device("meta"):
        vae = VAE(cfg)
    return fill(vae, translate({k: v.shape for k, v in vae.state_dict().items()}, source, layout), path, dtype)


def vae_sizes(source, layout):
    """VAEConfig read off the tensors: widths of the levels, residual blocks, latent channels."""
    name = lambda ours: layout.theirs(ours)[0]
    shape = lambda ours: source[name(ours)].shape
    levels = next(i for i in range(99) if name(f"encoder.down.{i}.block.0.conv1.weight") not in source)
    blocks = next(i for i in range(99) if name(f"encoder.down.0.block.{i}.conv1.weight") not in source)
    ch, channels = shape("encoder.conv_in.weight")[:2]
    widths = [shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(levels)]
    return VAEConfig(ch=ch, ch_mult=tuple(w // ch for w in widths), n_res=blocks, in_channels=channels,
                     z_channels=shape("decoder.conv_in.weight")[1], embed_dim=shape("post_quant_conv.weight")[1])


def vae_hash(vae):
    """Which VAE stored latents come from: a hash of its weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        digest.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def model_tensors(model):
    """Everything of a UniX that is saved, `unused.*` included."""
    return {**model.state_dict(), **{"unused." + k: v for k, v in model.unused.items()}}


def describe(model=None, vae=None):
    """The part of config.json that says what the tensors are."""
    parts = {"model": model and asdict(model.cfg), "vae": vae and asdict(vae.cfg)}
    return {"format": "open-unix", **{k: v for k, v in parts.items() if v}}


def load(directory, ema=True, dtype=torch.float32):
    """-> (model, vae, tokenizer) of a checkpoint or run of ours, of the released UniX or of Janus-Pro; vae None if not there.

    ema: use the averaged weights of a training run when they were kept.
    """
    directory = newest(directory)
    config = read_config(directory)
    if config.get("format") != "open-unix":
        names = read_tensors(directory).keys()
        loaders = [(UNIX.theirs("norm_g.weight")[0], load_unix), (JANUS.theirs("connector.0.weight")[0], load_janus),
                   (JANUS_HF.theirs("connector.0.weight")[0], load_janus)]
        loader = next((loader for name, loader in loaders if name in names), None)
        if loader is None:
            raise InputError(f"{directory} is no checkpoint that we know: not ours, not the released UniX, not Janus-Pro.")
        model = loader(directory, dtype=dtype)
        vae = load_vae(directory / "vae", dtype=dtype) if any((directory / "vae").glob("*")) else None
        return fitting(model, vae, load_tokenizer(directory, model.cfg), directory)
    if "model" not in config:
        raise InputError(f"{directory} holds no model" + (", only a VAE." if "vae" in config else "."))
    tensors = read_tensors(directory / "model.safetensors")
    if ema and (directory / "ema.safetensors").exists():
        tensors.update(read_tensors(directory / "ema.safetensors"))
    try:
        cfg = UniXConfig(**config["model"])
        vae_cfg = VAEConfig(**config["vae"]) if "vae" in config else None
    except (TypeError, AssertionError) as error:    # a field that we do not have, or sizes that do not fit each other
        raise InputError(f"{directory}/config.json describes no model of ours: {error}.") from None
    model = build(cfg, tensors, directory / "model.safetensors", dtype)
    vae = vae_cfg and load_vae(directory / "vae.safetensors", vae_cfg, dtype)
    return fitting(model, vae, load_tokenizer(directory, cfg), directory)


def fitting(model, vae, tokenizer, directory):
    """The three, if they belong together."""
    cfg, largest = model.cfg, max(tokenizer.bpe.get_vocab().values())
    if max(cfg.bos, cfg.eos, cfg.soi, cfg.eoi, largest) >= cfg.vocab_size:
        raise InputError(f"{directory}: the tokenizer has numbers up to {largest}, the embedding {cfg.vocab_size} rows.")
    if vae and cfg.generation and vae.cfg.embed_dim != cfg.latent_channels:
        raise InputError(f"{directory}: the VAE has {vae.cfg.embed_dim} latent channels, the model {cfg.latent_channels}.")
    return model, vae, tokenizer


def load_tokenizer(directory, cfg=None):
    """The tokenizer of a checkpoint; it must know the special tokens that the model's configuration addresses by number.
    Without one it is that of a data set of our own, where they have names."""
    path = Path(directory) / "tokenizer.json"
    if not path.exists():
        raise InputError(f"{directory} lacks tokenizer.json; " + ("copy it from where the weights came from." if cfg else
                                                                  "phantom/prepare.py writes it."))
    try:
        tokenizer = Tokenizer.with_named_ids(path) if cfg is None else \
            Tokenizer(path, cfg.bos, cfg.eos, cfg.soi, cfg.eoi, cfg.double_bos)
    except Exception as error:          # what the library raises for a damaged file is a plain Exception
        raise InputError(f"{path} is no tokenizer: {error}.") from None
    ids = tokenizer.bos, tokenizer.eos, tokenizer.soi, tokenizer.eoi
    absent = [i for i in ids if i is None or tokenizer.bpe.id_to_token(i) is None]
    if absent:
        raise InputError(f"{path} has no token of number {', '.join(map(str, absent))}, which the model needs; "
                         "it belongs to other weights.")
    return tokenizer


def find_vae(path, dtype=torch.float32):
    """The VAE at a path: that of a run or checkpoint of ours which holds one, or a kl-f16, file or directory."""
    if not checkpoints(path) and stated(path, "").get("format") != "open-unix":
        return load_vae(path, dtype=dtype)
    directory = newest(path)
    config = read_config(directory)
    if "vae" not in config:
        raise InputError(f"{directory} holds no VAE; phantom/train_vae.py makes one.")
    return load_vae(directory / "vae.safetensors", VAEConfig(**config["vae"]), dtype)
