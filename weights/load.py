"""Load a directory: our own checkpoints, Janus-Pro-1B, the released UniX, kl-f16, RAD-DINO.

    load(directory) -> (model, vae, tokenizer)      ours, the release or Janus-Pro: told apart
    load_unix, load_janus, load_rad_dino            the weights of others, one kind each
    load_vae, find_vae, load_tokenizer              the parts beside the model

Sizes are read off the tensors (`weights/sizes.py`), names are translated by a table
(`weights/layouts.py`), and loading is strict (`weights/files.py`). A network is built without
storage and takes over the tensors of the file, so there is never a second copy in memory.
docs/weights.md says where each checkpoint comes from.
"""
import re
import sys
from pathlib import Path

import torch

from common.cli import InputError
from model import UniX, UniXConfig, position_table
from tokenizer import Tokenizer
from vae import VAE, VAEConfig
from vision import ViT
from weights import adapters, knowledge
from weights.about import vae_hash
from weights.checkpoint import checkpoints, newest, read_config
from weights.empty import without_storage
from weights.files import dropped, fill, fill_translated, read_tensors, refuse_non_finite
from weights.int8 import in_int8, with_int8_linears
from weights.layouts import DIFFUSERS, DINO, JANUS, JANUS_HF, LDM, UNIX
from weights.sizes import (
    Sizes,
    config_section,
    reading_sizes,
    refuse_contradictions,
    tower_config,
    unix_config,
    vae_config,
)

# a tensor that one kind of checkpoint has and no other kind
RELEASE_MARK = UNIX.theirs("norm_g.weight")[0]
JANUS_MARK = JANUS.theirs("connector.0.weight")[0]
PORT_MARK = JANUS_HF.theirs("connector.0.weight")[0]


def network(cfg, int8):
    """A UniX without storage; int8: one whose large matrices will be in 8-bit integers."""
    model = without_storage(UniX, cfg)
    return with_int8_linears(model) if int8 else model


# ---- models of others ----

def load_unix(path, config=None, dtype=torch.float32, int8=False):
    """The released UniX, a directory or one safetensors file -> UniX.

    Without a config, sizes are read off the tensors, and the choices are those of the release: a
    tanh GELU in the connector, two BOS before a prompt. What we do not use is kept in
    `model.unused`, so that an export writes it again. dtype: of all weights; int8: whether the
    matrices are rounded to 8-bit integers. InputError where a file is no UniX, is damaged, or is
    contradicted by the config.json beside it.
    """
    source = read_tensors(path)
    if RELEASE_MARK not in source:
        raise InputError(
            f"{path} is not a released UniX: it has no generation branch (..._moe_gen).")
    model = load_translated(path, source, UNIX, config, dtype, int8)
    model.unused = dropped(source, UNIX)

    # we compute the position table by a formula and drop the file's, so see that they are the same
    table = source.get("latent_pos_embed.pos_embed")
    if table is not None and not is_position_table(table, model.cfg):
        raise InputError(f"{path}: latent_pos_embed.pos_embed is not the sine-cosine table "
                         f"of size {model.cfg.max_latent_size}.")
    return model


def is_position_table(table, cfg):
    """Whether a table holds the values of the formula, but for rounding (it may be in bf16)."""
    formula = position_table(cfg.max_latent_size, cfg.n_embd)
    if table.shape != formula.shape:
        return False
    largest_error = (table.float() - formula).abs().max()
    return bool(largest_error <= 0.01)              # false where the table holds NaN, too


def load_janus(path, config=None, dtype=torch.float32, generation=False, int8=False):
    """Janus-Pro, as its authors or as Hugging Face keep it -> UniX.

    It gives a UniX its understanding set, vision tower and connector. The biases of q, k, v start
    at 0 and the gains of the QK norm at 1, since Janus has none. generation=True adds a generation
    set copied from the understanding set.
    """
    source = read_tensors(path)
    layout = JANUS if JANUS_MARK in source else JANUS_HF
    if layout is JANUS_HF:
        source = untied(source, path)
    model = load_translated(path, source, layout, config, dtype, int8)
    if generation:
        model.copy_u_to_g()
    return model


def untied(source, path):
    """The tensors of a port of Janus, with a language head also where it is tied to the embedding.

    A tied head is not in the file, and config.json says so.
    """
    embedding = JANUS_HF.theirs("embed.weight")[0]
    if "lm_head.weight" in source or embedding not in source:
        return source
    sections = [config_section(path, key) for key in ("", "text_config")]
    if not any(section.get("tie_word_embeddings") is True for section in sections):
        return source
    print("the language head is tied to the embedding there; from here on they are two",
          file=sys.stderr)
    return {**source, "lm_head.weight": source[embedding].clone()}


def load_translated(path, source, layout, config, dtype, int8):
    """A UniX from the tensors of others; without a config, it is read off them."""
    if config is None:
        with reading_sizes(path, layout.title):
            config = unix_config(source, layout, path)
    return fill_translated(network(config, int8), source, layout, path, dtype)


def load_rad_dino(path, dtype=torch.float32):
    """RAD-DINO, or another Dinov2Model of Hugging Face, file or directory -> vision.ViT."""
    source = read_tensors(path)
    settings = config_section(path, "")
    with reading_sizes(path, DINO.title):
        cfg = tower_config(Sizes(source, DINO), settings)
    refuse_contradictions(cfg, settings, path)

    # DINOv2 has the exact GELU; a relative of it may have the tanh one
    activation = settings.get("hidden_act", "gelu")
    gelus = {"gelu": "none", "gelu_pytorch_tanh": "tanh", "gelu_new": "tanh"}
    if activation not in gelus:
        raise InputError(f"{path}: config.json says hidden_act {activation}, which is none of "
                         f"{', '.join(gelus)}.")
    cfg.gelu = gelus[activation]
    return fill_translated(without_storage(ViT, cfg), source, DINO, path, dtype)


# ---- autoencoders ----

def load_vae(path, config=None, dtype=torch.float32):
    """A KL autoencoder, file or directory: kl-f16's `.ckpt`, a safetensors file of ours, or
    diffusers' AutoencoderKL.

    Without a config (VAEConfig), sizes are read off the tensors; the scale and shift of latents are
    in no file, so they are those that UniX has for kl-f16.
    """
    source = read_tensors(path)
    layout = LDM
    with reading_sizes(path, "a kl-f16 autoencoder"):
        # latent-diffusion's levels are called encoder.down.0, those of diffusers down_blocks.0
        if any("_blocks." in name for name in source):
            layout = DIFFUSERS
            source = mirrored(source)
        if config is None:
            config = vae_config(Sizes(source, layout))
            # no tensor tells how many groups its channels are normalised in
            settings = config_section(path, "")
            config.norm_groups = settings.get("norm_num_groups", config.norm_groups)
    return fill_translated(without_storage(VAE, config), source, layout, path, dtype)


def mirrored(source):
    """Tensors of a diffusers autoencoder, with the decoder's levels counted from the other end.

    There decoder.up_blocks.0 is the lowest resolution; in latent-diffusion decoder.up.0 is the
    highest one.
    """
    # the decoder has as many levels as the encoder: "encoder.down_blocks.3.resnets.…" says 3
    encoder_levels = [int(name.split(".")[2]) for name in source
                      if name.startswith("encoder.down_blocks.")]
    last = max(encoder_levels)

    def other_end(match):
        return f"decoder.up_blocks.{last - int(match[1])}."

    return {re.sub(r"^decoder\.up_blocks\.(\d+)\.", other_end, name): tensor
            for name, tensor in source.items()}


def find_vae(path, dtype=torch.float32):
    """The VAE at a path: that of a run or checkpoint of ours, or a kl-f16, file or directory."""
    # a kl-f16 is read at once; ours is looked for in the newest checkpoint of a run
    is_run = bool(checkpoints(path))
    if not is_run and config_section(path, "").get("format") != "open-unix":
        return load_vae(path, dtype=dtype)
    directory = newest(path)
    config = read_config(directory)
    if "base" in config:                # a LoRA run's, which holds none of its own
        return vae_of_adapters(directory, config, dtype)
    if "vae" not in config:
        raise InputError(f"{directory} holds no VAE; `python -m phantom.train_vae` makes one.")
    return load_our_vae(directory, config, dtype)


# ---- a directory: model, VAE, tokenizer ----

def load(directory, ema=True, dtype=torch.float32, device="cpu", matrices="float", merge=True):
    """-> (model, vae, tokenizer) of a run or checkpoint of ours, of the released UniX or of
    Janus-Pro. vae is None where there is none.

    ema: take the averaged weights of a training run where they were kept. dtype: None keeps that of
    the file. matrices: "int8" rounds them to 8-bit integers while they are read, to draw and read
    only (`weights/int8.py`). merge=False leaves the adapters of LoRA out (`weights/adapters.py`).
    """
    int8 = in_int8(matrices, device)
    directory = newest(directory)
    config = read_config(directory)
    ours = config.get("format") == "open-unix"
    if ours and "base" in config:
        model, vae = load_adapted(directory, config, ema, dtype, int8, merge)
    elif ours:
        model, vae = load_ours(directory, config, ema, dtype, int8)
    else:
        model, vae = load_theirs(directory, dtype, int8)
        if "open_unix" in config:       # an export of ours, which says itself what it knows
            model.about = knowledge.recorded(config)
    tokenizer = load_tokenizer(directory, model.cfg)
    refuse_mismatch(model, vae, tokenizer, directory)
    return model.to(device), vae if vae is None else vae.to(device), tokenizer


def load_ours(directory, config, ema, dtype, int8):
    """-> (model, vae) of a checkpoint of ours, vae None where there is none."""
    if "model" not in config:
        only = ", only a VAE" if "vae" in config else ""
        raise InputError(f"{directory} holds no model{only}.")
    # the average holds only the weights that were trained; the others are as they were
    path = directory / "model.safetensors"
    saved = read_tensors(path)
    # what a run never trains lies in a file of its own: see `checkpoint`
    frozen = directory / "model-frozen.safetensors"
    if frozen.exists():
        saved.update(read_tensors(frozen))
    averaged = directory / "ema.safetensors"
    if ema and averaged.exists():
        average = read_tensors(averaged)
        refuse_non_finite(average, averaged)
        saved.update(average)

    # what came with a released UniX and we do not use is saved under "unused.": see `model_tensors`
    tensors = {}
    unused = {}
    for name, tensor in saved.items():
        if name.startswith("unused."):
            unused[name.removeprefix("unused.")] = tensor
        else:
            tensors[name] = tensor

    cfg = our_config(UniXConfig, config["model"], directory)
    model = fill(network(cfg, int8), tensors, path, dtype)
    model.unused = unused
    model.about = knowledge.recorded(config)
    vae = load_our_vae(directory, config, dtype) if "vae" in config else None
    return model, vae


def load_adapted(directory, config, ema, dtype, int8, merge):
    """-> (model, vae) of a checkpoint of LoRA: its base, with what the run has trained put in.

    The base is read in the format of its file, and then one matrix after another turned to dtype.
    """
    base, vae, _ = load(adapters.base_of(directory, config), dtype=None)
    cfg = our_config(UniXConfig, config["model"], directory)
    if cfg.generation and not base.cfg.generation:      # the run has made one, as train_gen.py does
        base.cfg.max_latent_size = cfg.max_latent_size
        base.cfg.latent_channels = cfg.latent_channels
        base.copy_u_to_g()
    trained = adapters.read(directory, ema)
    tensors = adapters.merged(base.state_dict(), trained, config, directory, dtype, merge)
    model = fill(network(cfg, int8), tensors, directory, dtype)
    model.unused = base.unused
    model.about = knowledge.recorded(config)

    if "vae_base" in config:
        vae = vae_of_adapters(directory, config, dtype)
    elif vae is not None:
        vae.to(dtype)
    return model, vae


def vae_of_adapters(directory, config, dtype):
    """The VAE that a checkpoint of LoRA draws with: one from elsewhere, or that of its base."""
    if "vae_base" not in config:
        return find_vae(adapters.base_of(directory, config), dtype)
    entry = config["vae_base"]
    place = adapters.place_of(entry, directory)
    vae = find_vae(place)
    adapters.refuse_other(entry, place, vae_hash(vae), directory)
    return vae.to(dtype)


def load_our_vae(directory, config, dtype):
    """The VAE of a checkpoint of ours."""
    cfg = our_config(VAEConfig, config["vae"], directory)
    return load_vae(directory / "vae.safetensors", cfg, dtype)


def our_config(kind, settings, directory):
    """UniXConfig or VAEConfig from its section of our config.json."""
    try:
        return kind(**settings)
    except (TypeError, AssertionError) as error:    # an unknown field, or sizes that do not fit
        raise InputError(
            f"{directory}/config.json describes no model of ours: {error}.") from None


def load_theirs(directory, dtype, int8):
    """-> (model, vae) of a directory of the released UniX or of Janus-Pro, told apart by names."""
    # this costs little: the file is memory-mapped, so that tensors are not read for their names
    names = read_tensors(directory).keys()
    if RELEASE_MARK in names:
        model = load_unix(directory, dtype=dtype, int8=int8)
        model.about = {"knows": knowledge.TRAINED_ON["release"]}
    elif JANUS_MARK in names or PORT_MARK in names:
        model = load_janus(directory, dtype=dtype, int8=int8)
        model.about = {"knows": knowledge.TRAINED_ON["janus"]}
    else:
        raise InputError(f"{directory} is no checkpoint that we know: "
                         "not ours, not the released UniX, not Janus-Pro.")
    has_vae = any((directory / "vae").glob("*"))
    vae = load_vae(directory / "vae", dtype=dtype) if has_vae else None
    return model, vae


def refuse_mismatch(model, vae, tokenizer, directory):
    """InputError if tokenizer or VAE do not belong to the model."""
    # a number without a row in the embedding would end in an unreadable error of the GPU
    cfg = model.cfg
    largest = max(tokenizer.bpe.get_vocab().values())
    if max(cfg.bos, cfg.eos, cfg.soi, cfg.eoi, largest) >= cfg.vocab_size:
        raise InputError(f"{directory}: the tokenizer has numbers up to {largest}, "
                         f"the embedding {cfg.vocab_size} rows.")
    if vae is not None and cfg.generation and vae.cfg.embed_dim != cfg.latent_channels:
        raise InputError(f"{directory}: the VAE has {vae.cfg.embed_dim} latent channels, "
                         f"the model {cfg.latent_channels}.")


def load_tokenizer(directory, cfg=None):
    """The tokenizer of a checkpoint or data set. InputError if it lacks a special token.

    cfg: UniXConfig, which addresses the special tokens by number. cfg=None: a tokenizer made by
    phantom.prepare, whose special tokens are named <bos>, <eos>, <soi>, <eoi>.
    """
    path = Path(directory) / "tokenizer.json"
    if not path.exists():
        remedy = ("copy one there (demo/tokenizer.json can write any text, though its tokens are "
                  "made for phantoms); `python -m phantom.prepare` writes its own.")
        if cfg is not None:
            remedy = "copy it from where the weights came from."
        raise InputError(f"{directory} lacks tokenizer.json; {remedy}")
    # ours names its special tokens; that of Janus-Pro has other names, and cfg the numbers
    try:
        if cfg is None:
            tokenizer = Tokenizer.with_named_ids(path)
        else:
            tokenizer = Tokenizer(path, cfg.bos, cfg.eos, cfg.soi, cfg.eoi, cfg.double_bos)
    except Exception as error:          # `tokenizers` raises nothing finer for a damaged file
        raise InputError(f"{path} is no tokenizer: {error}.") from None

    # the tokenizer of another model may have fewer tokens, or lack a special one by name
    special = (tokenizer.bos, tokenizer.eos, tokenizer.soi, tokenizer.eoi)
    absent = [number for number in special
              if number is None or tokenizer.bpe.id_to_token(number) is None]
    if absent:
        raise InputError(f"{path} has no token of number {', '.join(map(str, absent))}, "
                         "which the model needs; it belongs to other weights.")
    return tokenizer
