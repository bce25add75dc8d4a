"""Weights by hand: ours, Janus-Pro-1B, the released UniX, kl-f16, RAD-DINO.

    checkpoint   our own checkpoints: written whole or not at all, the newest whole one found
    layouts      what is in the checkpoints of others, name by name: the rename tables
    files        read tensors, translate their names, fill a network strictly
    load         a directory -> (model, VAE, tokenizer)
    export       pass weights on: averaged and halved, or in the release's layout
"""
from weights.load import (describe, find_vae, load, load_janus, load_rad_dino, load_siglip, load_tokenizer, load_unix, load_vae,
                          model_tensors, vae_hash)

__all__ = ["describe", "find_vae", "load", "load_janus", "load_rad_dino", "load_siglip", "load_tokenizer", "load_unix", "load_vae",
           "model_tensors", "vae_hash"]
