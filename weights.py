"""Weights by hand: the project's own checkpoints and the released UniX. A rename table documents a checkpoint.

Loading is strict: every tensor of the file is used, or dropped on purpose by name, and every tensor of the model is
filled; otherwise an error lists both sides. Files are safetensors (or a `.ckpt` read without unpickling objects).

    load(directory) -> (model, vae, tokenizer)      a checkpoint or run of ours
    load_unix(path, config), load_vae(path, config), export_release(model, vae, tokenizer, directory)
    python weights.py out/phantom/gen128 demo       the averaged weights of a run in fp16, to pass on
"""
import hashlib
import json
import pickle
import re
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from checkpoint import newest, read_config, write
from common import InputError, cli
from model import UniX, UniXConfig, position_table
from tokenizer import Tokenizer
from vae import VAE, VAEConfig
from vision import ViTConfig

# Our module names -> the release's; {} is a layer number. The same five lines a branch, `_moe_gen` marks generation.
UNIX = {
    "embed": "language_model.model.embed_tokens",
    "lm_head": "language_model.lm_head",
    "norm_u": "language_model.model.norm",
    "norm_g": "language_model.model.norm_moe_gen",
    "connector.0": "connector.layers.0",
    "connector.2": "connector.layers.2",
    "time_embed.0": "time_embedder.mlp.0",
    "time_embed.2": "time_embedder.mlp.2",
    "latent_in": "vae2llm",
    "latent_out": "llm2vae",
    "vision.patch": "vit_model.vision_tower.patch_embed.proj",
    "vision.positions": "vit_model.vision_tower.pos_embed",
    "vision.norm": "vit_model.vision_tower.norm",
}
for ours in ("norm1", "norm2"):
    UNIX["vision.blocks.{}." + ours] = "vit_model.vision_tower.blocks.{}." + ours
for ours, theirs in (("qkv", "attn.qkv"), ("proj", "attn.proj"), ("fc1", "mlp.fc1"), ("fc2", "mlp.fc2")):
    UNIX["vision.blocks.{}." + ours] = "vit_model.vision_tower.blocks.{}." + theirs
for branch, suffix in (("u", ""), ("g", "_moe_gen")):
    ours, theirs = f"layers.{{}}.{branch}.", "language_model.model.layers.{}."
    UNIX.update({f"{ours}heads.{x}": f"{theirs}self_attn.{x}_proj{suffix}" for x in "qkvo"})
    UNIX.update({f"{ours}heads.{x}_norm": f"{theirs}self_attn.{x}_norm{suffix}" for x in "qk"})
    UNIX.update({f"{ours}mlp.{x}": f"{theirs}mlp{suffix}.{x}_proj" for x in ("gate", "up", "down")})
    UNIX[ours + "norm1"] = theirs + "input_layernorm" + suffix
    UNIX[ours + "norm2"] = theirs + "post_attention_layernorm" + suffix

# Dropped on purpose, kept as `unused.*` so that an export gives them back.
UNIX_UNUSED = (
    "vit_model.vision_tower.attn_pool.",    # SigLIP's pooling head: reports are written from the patches
    "latent_pos_embed.pos_embed",           # a formula: model.position_table
    "vit_pos_embed.pos_embed",              # present in the release, never read by its code
)


def read_tensors(path):
    """All tensors of one safetensors file (memory-mapped) or of a `.ckpt` / `.pt` state dict."""
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return content.get("state_dict", content)
    except FileNotFoundError:
        raise InputError(f"there is no weights file at {path}.") from None
    except pickle.UnpicklingError:
        raise InputError(f"{path} asks to run code when it is read, or is no torch file; refused.") from None
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}).") from None


def release_name(ours):
    """Our parameter name -> the release's, by the table; a name without an entry raises."""
    number = re.search(r"\.(\d+)\.", ours) if ours.startswith(("layers.", "vision.blocks.")) else None
    template = ours.replace(number[0], ".{}.", 1) if number else ours
    if template in UNIX:
        return UNIX[template]
    module, _, leaf = template.rpartition(".")
    theirs = UNIX[module]
    return (theirs.format(number[1]) if number else theirs) + "." + leaf


def fill(module, tensors, source, dtype=None):
    """Put tensors {our name: tensor} into the module, strictly: same names, same shapes, floating point."""
    want = module.state_dict()
    missing, unknown = sorted(want.keys() - tensors.keys()), sorted(tensors.keys() - want.keys())
    if missing or unknown:
        few = lambda names: ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise InputError(f"{source} does not fit: missing there: {few(missing) or 'nothing'}; "
                         f"unknown to us: {few(unknown) or 'nothing'}.")
    for name, tensor in tensors.items():
        if tensor.shape != want[name].shape:
            raise InputError(f"{source}: {name} has shape {tuple(tensor.shape)}, the configuration wants "
                             f"{tuple(want[name].shape)}.")
        if not tensor.is_floating_point():
            raise InputError(f"{source}: {name} holds {tensor.dtype}, not floating-point numbers.")
    module.load_state_dict({k: v.to(dtype or v.dtype) for k, v in tensors.items()}, assign=True)
    return module


def build(cfg, tensors, source, dtype):
    """A UniX made around given tensors (no second copy in memory), its `unused.*` set aside."""
    unused = {k.removeprefix("unused."): v for k, v in tensors.items() if k.startswith("unused.")}
    with torch.device("meta"):
        model = UniX(cfg)
    fill(model, {k: v for k, v in tensors.items() if not k.startswith("unused.")}, source, dtype)
    if cfg.generation:
        model.build_positions()
    model.unused = unused
    return model.eval()


def sizes_of(tensors):
    """UniXConfig of a release checkpoint, read off its tensors (heads = width / length of the q norm)."""
    shape = lambda name: tensors[name].shape
    count = lambda pattern: 1 + max(int(m[1]) for m in map(re.compile(pattern).match, tensors) if m)
    layer, tower = "language_model.model.layers.", "vit_model.vision_tower."
    vocab, width = shape("language_model.model.embed_tokens.weight")
    patch, vit_width = shape(tower + "patch_embed.proj.weight")[-1], shape(tower + "norm.weight")[0]
    vision = ViTConfig(image_size=int(shape(tower + "pos_embed")[1] ** 0.5) * patch, patch_size=patch, n_embd=vit_width,
                       n_layer=count(rf"{re.escape(tower)}blocks\.(\d+)\."), n_head=max(1, vit_width // 64),
                       n_inner=shape(tower + "blocks.0.mlp.fc1.weight")[0])
    return UniXConfig(n_layer=count(rf"{re.escape(layer)}(\d+)\."), n_embd=width, vocab_size=vocab, vision=vision,
                      n_head=width // shape(layer + "0.self_attn.q_norm.weight")[0],
                      n_inner=shape(layer + "0.mlp.gate_proj.weight")[0], latent_channels=shape("vae2llm.weight")[1],
                      max_latent_size=int(shape("latent_pos_embed.pos_embed")[0] ** 0.5),
                      double_bos=True, connector_gelu="tanh", repa_layer=min(8, count(rf"{re.escape(layer)}(\d+)\.")))


def load_unix(path, config=None, dtype=torch.float32):
    """The released UniX: a directory with model.safetensors, or one safetensors file. Without a config, sizes are
    read off the tensors and the release's choices are set (tanh connector, two BOS before a prompt)."""
    path = Path(path) / "model.safetensors" if Path(path).is_dir() else Path(path)
    source = read_tensors(path)
    if "language_model.model.layers.0.self_attn.q_norm_moe_gen.weight" not in source:
        raise InputError(f"{path} is not a released UniX: it has no generation branch (…_moe_gen).")
    try:
        cfg = config or sizes_of(source)
    except KeyError as error:
        raise InputError(f"{path} lacks the tensor {error}, so its sizes cannot be read.") from None
    with torch.device("meta"):
        theirs = {release_name(name): name for name in UniX(cfg).state_dict()}
    tensors = {theirs.get(k, "unused." + k if k.startswith(UNIX_UNUSED) else k): v for k, v in source.items()}
    table = source.get("latent_pos_embed.pos_embed")
    formula = position_table(cfg.max_latent_size, cfg.n_embd)
    if table is not None and (table.shape != formula.shape or (table.float() - formula).abs().max() > 0.01):
        raise InputError(f"{path}: latent_pos_embed.pos_embed is not the sine-cosine table of size {cfg.max_latent_size}.")
    return build(cfg, tensors, path, dtype)


def load_vae(path, config=None, dtype=torch.float32):
    """A kl-f16 autoencoder: a safetensors file or a `.ckpt`. Without a config, sizes are read off the tensors (32 groups
    a norm, kl-f16's scale and shift). `loss.*` (LPIPS and discriminator of its training) is dropped by name."""
    path = Path(path)
    tensors = {k: v for k, v in read_tensors(path).items() if not k.startswith("loss.")}
    try:
        cfg = config or vae_sizes(tensors)
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is no kl-f16 autoencoder: its sizes cannot be read ({error}).") from None
    return fill(VAE(cfg), tensors, path, dtype or torch.float32).eval()


def vae_sizes(tensors):
    """VAEConfig read off the tensors: widths of the levels, residual blocks, latent channels."""
    levels = 1 + max(int(k.split(".")[2]) for k in tensors if k.startswith("encoder.down."))
    blocks = 1 + max(int(k.split(".")[4]) for k in tensors if k.startswith("encoder.down.0.block."))
    ch = tensors["encoder.conv_in.weight"].shape[0]
    widths = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] for i in range(levels)]
    return VAEConfig(ch=ch, ch_mult=tuple(w // ch for w in widths), n_res=blocks,
                     z_channels=tensors["decoder.conv_in.weight"].shape[1],
                     embed_dim=tensors["post_quant_conv.weight"].shape[1],
                     in_channels=tensors["encoder.conv_in.weight"].shape[1])


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
    """-> (model, vae, tokenizer) of a checkpoint directory or run of ours, or of a release; vae None if not there.

    ema: use the averaged weights of a training run when they were kept.
    """
    directory = newest(directory)
    config = read_config(directory)
    if config.get("format") != "open-unix":
        raise InputError(f"{directory}/config.json is not of a checkpoint that we know; released weights: load_unix.")
    if "model" not in config:
        raise InputError(f"{directory} holds no model, only {', '.join(k for k in ('vae',) if k in config)}.")
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
    return model, vae, Tokenizer(directory / "tokenizer.json", cfg.bos, cfg.eos, cfg.soi, cfg.eoi, cfg.double_bos)


def load_vae_run(directory, dtype=torch.float32):
    """The VAE of any checkpoint of ours that holds one, e.g. a run of train_vae.py."""
    directory = newest(directory)
    config = read_config(directory)
    if "vae" not in config:
        raise InputError(f"{directory} holds no VAE; train_vae.py makes one.")
    return load_vae(directory / "vae.safetensors", VAEConfig(**config["vae"]), dtype)


def export_release(model, vae, tokenizer, directory):
    """Write the release's layout: model.safetensors, config.json, tokenizer.json and, when it is a kl-f16, the VAE.

    What was dropped on loading is given back; what was never there is written from its formula (position tables) or as
    zeros (pooling head), and said. The layout has no place for a VAE of other norm groups, scale or shift: refused.
    """
    directory = Path(directory)
    kl_f16 = VAEConfig()
    if vae is not None and [getattr(vae.cfg, k) for k in ("norm_groups", "scale", "shift")] != \
            [getattr(kl_f16, k) for k in ("norm_groups", "scale", "shift")]:
        raise InputError("this VAE is no kl-f16 (norm groups, scale or shift differ); the release's layout cannot say so.")
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} is not empty; export to a new directory.")
    tensors = {release_name(k): v for k, v in model.state_dict().items()}
    if not model.unused:
        print("unused tensors were never loaded: position tables are written from their formula, the pooling head as zeros")
    tensors.update(model.unused or unused_from_nothing(model.cfg))
    temporary, cfg = directory.with_name(f".tmp-{directory.name}"), model.cfg
    temporary.mkdir(parents=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / "model.safetensors")
    sizes = dict(hidden_size=cfg.n_embd, intermediate_size=cfg.n_inner, num_hidden_layers=cfg.n_layer,
                 num_attention_heads=cfg.n_head, num_key_value_heads=cfg.n_head, vocab_size=cfg.vocab_size)
    (temporary / "config.json").write_text(json.dumps({"language_config": sizes}, indent=1))
    (temporary / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
    if vae is not None:
        (temporary / "vae").mkdir()
        torch.save({"state_dict": vae.state_dict()}, temporary / "vae" / "kl-f16d16.ckpt")
    if directory.exists():
        directory.rmdir()
    temporary.rename(directory)


def shrink(source, target):
    """Write the averaged weights of a run in fp16, without what only training needs: a checkpoint to pass on."""
    if Path(target).exists() and any(Path(target).iterdir()):
        raise InputError(f"{target} is not empty; shrink to a new directory.")
    model, vae, tokenizer = load(source)
    half = lambda tensors: {k: v.half() for k, v in tensors.items()}
    tensors = {"model": half(model_tensors(model)), **({"vae": half(vae.state_dict())} if vae else {})}
    about = {k: v for k, v in read_config(newest(source)).items() if k in ("stage", "step", "settings")}
    write(target, config={**describe(model, vae), **about}, tensors=tensors, tokenizer=tokenizer.json)


def unused_from_nothing(cfg):
    """The tensors of UNIX_UNUSED for a model that never met a release."""
    W, inner, pool = cfg.vision.n_embd, cfg.vision.n_inner, "vit_model.vision_tower.attn_pool."
    shapes = {"latent": (1, 1, W), "q.weight": (W, W), "q.bias": (W,), "kv.weight": (2 * W, W), "kv.bias": (2 * W,),
              "proj.weight": (W, W), "proj.bias": (W,), "norm.weight": (W,), "norm.bias": (W,),
              "mlp.fc1.weight": (inner, W), "mlp.fc1.bias": (inner,), "mlp.fc2.weight": (W, inner), "mlp.fc2.bias": (W,)}
    return {**{pool + k: torch.zeros(s) for k, s in shapes.items()},
            "latent_pos_embed.pos_embed": position_table(cfg.max_latent_size, cfg.n_embd),
            "vit_pos_embed.pos_embed": position_table(cfg.vision.grid, cfg.n_embd)}


def main(argv):
    if len(argv) != 2 or argv[0].startswith("-"):
        raise InputError("say what to shrink and where to: `python weights.py out/phantom/gen128 demo`.")
    shrink(*argv)


if __name__ == "__main__":
    cli(main)
