"""Pass weights on: averaged and halved, or in the layout of the released UniX.

    python -m weights.export out/phantom/gen128 demo        the averaged weights of a run in fp16
    python -m weights.export out/gen512 UniX --release      as the authors' code reads them

The first form is a checkpoint of ours, for sampling: half as large, without what only training
needs. The second is for the code of the paper's authors, and for nothing else that we do.
"""
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from common import locks
from common.cli import InputError, cli
from common.files import write_json, write_text
from model import position_table
from vae import VAEConfig
from vision import ViTConfig
from weights.about import describe, model_tensors
from weights.checkpoint import newest, read_config, replacing_directory, write
from weights.layouts import UNIX
from weights.load import load

# what the authors' code takes for granted, whatever a model was trained with
ASSUMED = {
    **UNIX.model,
    "rope_theta": 10000.0,
    "bos": 100000,
    "eos": 100001,
    "soi": 100003,
    "eoi": 100580,
}
ASSUMED_PIXELS = {"mean": ViTConfig().mean, "std": ViTConfig().std}


# ---- the release's layout ----

def export_release(model, vae, tokenizer, directory):
    """Write a model in the release's layout, whole or not at all.

    The directory gets model.safetensors, config.json, tokenizer.json and, unless vae is None, vae/.
    Tensors that we do not use and dropped when the release was loaded are written again. For a
    model that never had them they are made up: position tables by their formula, the pooling head
    as zeros. A line on stdout says so, and another one names the settings of this model that the
    authors' code will not follow. config.json also holds our own configuration, so that `load` gets
    the same model back.

    InputError if the layout cannot describe the model or its VAE, or if the directory holds files.
    """
    directory = Path(directory).resolve()
    refuse_what_the_layout_cannot_say(model, vae)
    refuse_files_in(directory)

    # say what will differ from the model as it is here
    if not model.unused:
        print("unused tensors were never loaded: position tables are written from their formula, "
              "the pooling head as zeros")
    differences = other_assumptions(model.cfg)
    if differences:
        print("the authors' code assumes what this model was not trained with: "
              + ", ".join(differences))

    # ours under their names, then what their code wants and ours does not use: the tensors that
    # came with the release, where there are any, go over the made-up ones
    tensors = {UNIX.theirs(name)[0]: tensor for name, tensor in model.state_dict().items()}
    tensors |= made_up_unused(model.cfg)
    tensors |= model.unused
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    about = {"language_config": llama_config(model.cfg), "open_unix": asdict(model.cfg),
             **model.about}

    with replacing_directory(directory) as temporary:
        save_file(contiguous, temporary / "model.safetensors")
        write_json(temporary / "config.json", about)
        write_text(temporary / "tokenizer.json", tokenizer.json)
        if vae is not None:
            (temporary / "vae").mkdir()
            torch.save({"state_dict": vae.state_dict()}, temporary / "vae" / "kl-f16d16.ckpt")
            # every JSON text is YAML, too, so that no YAML library is needed
            write_json(temporary / "vae" / "config.yaml", {"model": ldm_config(vae)})


def refuse_what_the_layout_cannot_say(model, vae):
    """InputError for a model without a generation branch and for a VAE that is no kl-f16."""
    if not model.cfg.generation:
        raise InputError("this model has no generation branch, and the release's layout wants one "
                         "(train_gen.py makes it).")
    if vae is None:
        return
    # widths and levels go into vae/config.yaml, but no file of the layout has a place for these
    kl_f16 = VAEConfig()
    for field in ("norm_groups", "scale", "shift"):
        if vars(vae.cfg)[field] != vars(kl_f16)[field]:
            raise InputError("this VAE is no kl-f16 (norm groups, scale or shift differ); "
                             "the release's layout cannot say so.")


def refuse_files_in(directory):
    """InputError if a directory exists and is not empty."""
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory} is not empty; export to a new directory.")


def other_assumptions(cfg):
    """What the authors' code assumes and cfg, a UniXConfig, has otherwise: ["field value"]."""
    differences = []
    for config, assumed in ((cfg, ASSUMED), (cfg.vision, ASSUMED_PIXELS)):
        for field, value in assumed.items():
            if vars(config)[field] != value:
                differences.append(f"{field} {value}")
    return differences


def llama_config(cfg):
    """The sizes of the language model under the keys that the authors' code asks for."""
    return {
        "hidden_size": cfg.n_embd,
        "intermediate_size": cfg.n_inner,
        "num_hidden_layers": cfg.n_layer,
        "num_attention_heads": cfg.n_head,
        "num_key_value_heads": cfg.n_head,
        "vocab_size": cfg.vocab_size,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
    }


def made_up_unused(cfg):
    """{their name: tensor} in place of what `layouts.UNIX` drops, for a model that never had it."""
    # timm's attention pooling, in which one learned query looks at all patches; reports are written
    # from the patches themselves, so zeros do no harm
    W, inner = cfg.vision.n_embd, cfg.vision.n_inner
    pooling_head = {
        "latent": (1, 1, W),
        "q.weight": (W, W), "q.bias": (W,),
        "kv.weight": (2 * W, W), "kv.bias": (2 * W,),
        "proj.weight": (W, W), "proj.bias": (W,),
        "norm.weight": (W,), "norm.bias": (W,),
        "mlp.fc1.weight": (inner, W), "mlp.fc1.bias": (inner,),
        "mlp.fc2.weight": (W, inner), "mlp.fc2.bias": (W,),
    }
    tensors = {
        f"vit_model.vision_tower.attn_pool.{name}": torch.zeros(shape)
        for name, shape in pooling_head.items()
    }
    tensors["latent_pos_embed.pos_embed"] = position_table(cfg.max_latent_size, cfg.n_embd)
    tensors["vit_pos_embed.pos_embed"] = position_table(cfg.vision.grid, cfg.n_embd)
    return tensors


def ldm_config(vae):
    """What latent-diffusion's code builds the autoencoder from."""
    # after configs/autoencoder/autoencoder_kl_16x16x16.yaml of CompVis/latent-diffusion; the
    # resolution only decides at which level there is attention: at the lowest, here
    cfg = vae.cfg
    sizes = {
        "double_z": True,
        "z_channels": cfg.z_channels,
        "resolution": 256,
        "in_channels": cfg.in_channels,
        "out_ch": cfg.in_channels,
        "ch": cfg.ch,
        "ch_mult": list(cfg.ch_mult),
        "num_res_blocks": cfg.n_res,
        "attn_resolutions": [256 // vae.factor],
        "dropout": 0.0,
    }
    params = {
        "embed_dim": cfg.embed_dim,
        "monitor": "val/rec_loss",
        "ddconfig": sizes,
        "lossconfig": {"target": "torch.nn.Identity"},      # built, and never called
    }
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": params}


# ---- a small checkpoint of ours ----

def shrink(source, target):
    """Write the averaged weights of a run in fp16, without what only training needs.

    source: a run or checkpoint of ours. InputError if target holds files.
    """
    refuse_files_in(target)
    model, vae, tokenizer = load(source)
    tensors = {"model": halved(model_tensors(model))}
    if vae is not None:
        tensors["vae"] = halved(vae.state_dict())

    # where the weights come from stays in the configuration
    config = describe(model, vae)
    for key, value in read_config(newest(source)).items():
        if key in ("stage", "step", "settings"):
            config[key] = value
    write(target, config=config, tensors=tensors, tokenizer=tokenizer.json)


def halved(tensors):
    return {name: tensor.half() for name, tensor in tensors.items()}


def main(argv):
    source_and_target, options = argv[:2], argv[2:]
    is_usage = len(source_and_target) == 2 and not argv[0].startswith("-")
    if not is_usage or options not in ([], ["--release"]):
        raise InputError("say what to pass on and where to: "
                         "`python -m weights.export out/phantom/gen128 demo`, or with --release.")
    source, target = source_and_target
    with locks.take_files(target):
        if options:
            model, vae, tokenizer = load(source)
            export_release(model, vae, tokenizer, target)
        else:
            shrink(source, target)


if __name__ == "__main__":
    cli(main, __doc__)
