"""Pass weights on: averaged and halved, or in the release's layout.

    python -m weights.export out/phantom/gen128 demo         the averaged weights of a run in fp16, to pass on
    python -m weights.export out/gen512 UniX --release       the same weights as the authors' code reads them
"""
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from common.processes import InputError, cli
from model import position_table
from vae import VAEConfig
from vision import ViTConfig
from weights.checkpoint import flush, newest, read_config, write
from weights.layouts import UNIX
from weights.load import describe, load, model_tensors


def unused_from_nothing(cfg):
    """The tensors that UNIX drops, for a model that never met a release."""
    W, inner, pool = cfg.vision.n_embd, cfg.vision.n_inner, "vit_model.vision_tower.attn_pool."
    shapes = {"latent": (1, 1, W), "q.weight": (W, W), "q.bias": (W,), "kv.weight": (2 * W, W), "kv.bias": (2 * W,),
              "proj.weight": (W, W), "proj.bias": (W,), "norm.weight": (W,), "norm.bias": (W,),
              "mlp.fc1.weight": (inner, W), "mlp.fc1.bias": (inner,), "mlp.fc2.weight": (W, inner), "mlp.fc2.bias": (W,)}
    return {**{pool + k: torch.zeros(s) for k, s in shapes.items()},
            "latent_pos_embed.pos_embed": position_table(cfg.max_latent_size, cfg.n_embd),
            "vit_pos_embed.pos_embed": position_table(cfg.vision.grid, cfg.n_embd)}


def ldm_config(vae):
    """What latent-diffusion's code builds the autoencoder from; it wants a loss to build, too, and never calls it."""
    cfg = vae.cfg
    sizes = dict(double_z=True, z_channels=cfg.z_channels, resolution=256, in_channels=cfg.in_channels,
                 out_ch=cfg.in_channels, ch=cfg.ch, ch_mult=list(cfg.ch_mult), num_res_blocks=cfg.n_res,
                 attn_resolutions=[256 // vae.factor], dropout=0.0)
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {
        "embed_dim": cfg.embed_dim, "monitor": "val/rec_loss", "ddconfig": sizes, "lossconfig": {"target": "torch.nn.Identity"}}}


def export_release(model, vae, tokenizer, directory):
    """Write the release's layout, whole or not at all: model.safetensors, config.json, tokenizer.json and, of a kl-f16, vae/.

    What was dropped on loading is given back; what was never there is written from its formula (position tables) or as
    zeros (pooling head), and said; so is what the authors' code will do otherwise. Our own configuration lies in
    config.json too, so that `load` gets the same model back. A VAE that the layout cannot describe is refused.
    """
    directory, kl_f16, cfg = Path(directory).resolve(), VAEConfig(), model.cfg
    if not cfg.generation:
        raise InputError("this model has no generation branch, and the release's layout wants one (train_gen.py makes it).")
    if vae is not None and [getattr(vae.cfg, k) for k in ("norm_groups", "scale", "shift")] != \
            [getattr(kl_f16, k) for k in ("norm_groups", "scale", "shift")]:
        raise InputError("this VAE is no kl-f16 (norm groups, scale or shift differ); the release's layout cannot say so.")
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} is not empty; export to a new directory.")
    if not model.unused:
        print("unused tensors were never loaded: position tables are written from their formula, the pooling head as zeros")
    theirs = {**UNIX.model, "rope_theta": 10000.0, "bos": 100000, "eos": 100001, "soi": 100003, "eoi": 100580}
    pixels = {k: vars(ViTConfig())[k] for k in ("mean", "std")}
    other = [f"{k} {v}" for have, want in ((cfg, theirs), (cfg.vision, pixels)) for k, v in want.items() if vars(have)[k] != v]
    if other:
        print(f"the authors' code assumes what this model was not trained with: {', '.join(other)}")
    tensors = {UNIX.theirs(k)[0]: v for k, v in model.state_dict().items()} | unused_from_nothing(cfg) | model.unused
    text = dict(hidden_size=cfg.n_embd, intermediate_size=cfg.n_inner, num_hidden_layers=cfg.n_layer,
                num_attention_heads=cfg.n_head, num_key_value_heads=cfg.n_head, vocab_size=cfg.vocab_size,
                rms_norm_eps=cfg.norm_eps, rope_theta=cfg.rope_theta)
    temporary = directory.with_name(f".tmp-{directory.name}")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary / "model.safetensors")
        (temporary / "config.json").write_text(json.dumps({"language_config": text, "open_unix": asdict(cfg)}, indent=1))
        (temporary / "tokenizer.json").write_text(tokenizer.json, encoding="utf-8")
        if vae is not None:
            (temporary / "vae").mkdir()
            torch.save({"state_dict": vae.state_dict()}, temporary / "vae" / "kl-f16d16.ckpt")
            (temporary / "vae" / "config.yaml").write_text(json.dumps({"model": ldm_config(vae)}, indent=1))    # JSON is YAML
        for path in temporary.rglob("*"):
            flush(path)
        if directory.exists():
            directory.rmdir()
        temporary.rename(directory)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise InputError(f"{directory} could not be written ({error}).") from error


def shrink(source, target):
    """Write the averaged weights of a run in fp16, without what only training needs: a checkpoint to pass on."""
    if Path(target).exists() and any(Path(target).iterdir()):
        raise InputError(f"{target} is not empty; shrink to a new directory.")
    model, vae, tokenizer = load(source)
    half = lambda tensors: {k: v.half() for k, v in tensors.items()}
    tensors = {"model": half(model_tensors(model)), **({"vae": half(vae.state_dict())} if vae else {})}
    about = {k: v for k, v in read_config(newest(source)).items() if k in ("stage", "step", "settings")}
    write(target, config={**describe(model, vae), **about}, tensors=tensors, tokenizer=tokenizer.json)


def main(argv):
    if len(argv) < 2 or argv[0].startswith("-") or argv[2:] not in ([], ["--release"]):
        raise InputError("say what to pass on and where to: `python -m weights.export out/phantom/gen128 demo`, or with --release.")
    if argv[2:]:
        export_release(*load(argv[0]), argv[1])
    else:
        shrink(*argv)


if __name__ == "__main__":
    cli(main)
