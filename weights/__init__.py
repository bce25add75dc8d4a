"""Weights by hand: ours, Janus-Pro-1B, the released UniX, kl-f16, RAD-DINO.

    checkpoint   our own checkpoints: written whole or not at all, the newest whole one found
    layouts      what is in the checkpoints of others, name by name: the rename tables
    files        read tensors, translate their names, fill a network strictly
    sizes        the configuration of a checkpoint of others, read off its tensors
    load         a directory -> (model, VAE, tokenizer)
    export       pass weights on: averaged and halved, or in the release's layout

This room alone offers its functions here, so that one reads `weights.load(directory)`: that is the
function. The module of the same name is reached as `from weights.load import ...`.
"""
from weights.load import (
    describe,
    find_vae,
    load,
    load_janus,
    load_rad_dino,
    load_tokenizer,
    load_unix,
    load_vae,
    model_tensors,
    vae_hash,
)

__all__ = [
    "describe", "find_vae", "load", "load_janus", "load_rad_dino", "load_tokenizer", "load_unix",
    "load_vae", "model_tensors", "vae_hash",
]
