"""Weights by hand: ours, Janus-Pro-1B, the released UniX, kl-f16, RAD-DINO.

    checkpoint   our own checkpoints: written whole or not at all, the newest whole one found
    layouts      what is in the checkpoints of others, name by name: the rename tables
    files        read tensors, translate their names, fill a network strictly
    sizes        the configuration of a checkpoint of others, read off its tensors
    knowledge    what weights were trained on, and which words they have never met
    int8         matrices in 8-bit integers, for drawing and reading
    about        what a checkpoint of ours holds and says about itself
    adapters     checkpoints of LoRA: small matrices, and the name of their base
    empty        networks without storage, which take over the tensors of a file
    load         a directory -> (model, VAE, tokenizer)
    export       pass weights on: averaged and halved, or in the release's layout

This is the only room that offers its functions under its own name, so that scripts can say
`weights.load(directory)`. That name is the function; what else is in the module of the same name is
imported with `from weights.load import ...`.
"""
from weights.about import describe, model_tensors, vae_hash
from weights.load import (
    find_vae,
    load,
    load_janus,
    load_rad_dino,
    load_tokenizer,
    load_unix,
    load_vae,
)

__all__ = [
    "describe", "find_vae", "load", "load_janus", "load_rad_dino", "load_tokenizer", "load_unix",
    "load_vae", "model_tensors", "vae_hash",
]
