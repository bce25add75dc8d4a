"""REPA: align the generation branch's hidden states with a frozen image encoder (stage 2).

From Yu et al., arXiv 2410.06940. The latents' hidden states after the 8th layer go through a
small MLP and should point where the encoder's patch features of the clean image point: loss =
-mean cosine. The encoder is any `vision.ViT`: RAD-DINO for real training, the frozen vision tower
of stage 1 for the phantom. The MLP is only needed in training and is left behind afterwards.

Departs from the release in three points. The tap is the 8th layer, as in the paper; its code
reads the 9th. The *target* is resampled, and in two dimensions; its code stretches the flattened
projections in one. And the loss is not divided by the batch a second time.
"""
import torch
import torch.nn as nn
import torch.nn.functional as F

from vision import normalize


class Projector(nn.Module):
    """Hidden states (B, N, C) -> the encoder's width (B, N, E): three linear layers, SiLU
    between."""

    def __init__(self, n_embd, n_inner, n_out):
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(n_embd, n_inner), nn.SiLU(),
            nn.Linear(n_inner, n_inner), nn.SiLU(),
            nn.Linear(n_inner, n_out))

    def forward(self, x):
        return self.mlp(x)


@torch.no_grad()
def targets(encoder, images, grid, size=0):
    """Features of clean grey images in [0, 1] (B, 1, H, W) on the latent grid (h, w) -> (B, h*w,
    E).

    size: pixels that the encoder gets; 0 is what it was trained on.
    """
    pixels = normalize(images, encoder.cfg, size)                               # (B, 3, S, S)
    n = pixels.shape[-1] // encoder.cfg.patch_size
    features = encoder(pixels).float()                                          # (B, n*n, E)
    features = features.transpose(1, 2).unflatten(2, (n, n))                    # (B, E, n, n)
    if (n, n) != tuple(grid):
        features = F.interpolate(features, size=tuple(grid), mode="bilinear", antialias=True)
    return features.flatten(2).transpose(1, 2)


def repa_loss(projected, target):
    """Negative mean cosine per image (B,), in fp32, from two (B, N, E)."""
    return -F.cosine_similarity(projected.float(), target.float(), dim=-1).mean(dim=1)
