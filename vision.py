"""One pre-norm vision transformer with two presets, and the one image preprocessing.

SigLIP-L/16 at 384 px reads the image for the report; RAD-DINO (DINOv2 ViT-B/14 at 518 px) gives the targets of REPA.
They differ in a class token, LayerScale and sizes, so they are one class and two lines of a table.

B batch, N patches, C width, H heads. Pixels in [0, 1] until `normalize`.
"""
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image

from attention import attend


@dataclass
class ViTConfig:
    image_size: int = 384
    patch_size: int = 16
    n_layer: int = 24
    n_head: int = 16
    n_embd: int = 1024
    n_inner: int = 4096
    norm_eps: float = 1e-6
    class_token: bool = False       # DINOv2: one more token in front; we return the patches alone
    layer_scale: bool = False       # DINOv2: a learned gain on each residual branch
    gelu: str = "none"              # exact, or "tanh": SigLIP in transformers
    mean: tuple = (0.555895,) * 3   # of the released UniX; Janus-Pro uses 0.5, 0.5
    std: tuple = (0.336385,) * 3
    pad: int = 141                  # grey of the bars around an image that is not square: the mean

    def __post_init__(self):
        self.mean, self.std = tuple(self.mean), tuple(self.std)
        assert self.image_size % self.patch_size == 0, f"patches of {self.patch_size} do not tile {self.image_size} px"
        assert self.n_head > 0 and self.n_embd % self.n_head == 0, f"{self.n_head} heads do not divide width {self.n_embd}"

    @property
    def grid(self):
        return self.image_size // self.patch_size


SIGLIP_L = ViTConfig()
RAD_DINO = ViTConfig(image_size=518, patch_size=14, n_layer=12, n_head=12, n_embd=768, n_inner=3072,
                     class_token=True, layer_scale=True, mean=(0.5307,) * 3, std=(0.2583,) * 3, pad=0)


class ViTBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.n_head, self.gelu = cfg.n_head, cfg.gelu
        self.norm1, self.norm2 = (nn.LayerNorm(cfg.n_embd, cfg.norm_eps) for _ in range(2))
        self.qkv, self.proj = nn.Linear(cfg.n_embd, 3 * cfg.n_embd), nn.Linear(cfg.n_embd, cfg.n_embd)
        self.fc1, self.fc2 = nn.Linear(cfg.n_embd, cfg.n_inner), nn.Linear(cfg.n_inner, cfg.n_embd)
        gain = lambda: nn.Parameter(torch.ones(cfg.n_embd)) if cfg.layer_scale else 1.0
        self.scale1, self.scale2 = gain(), gain()

    def forward(self, x):
        B, N, C = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(B, N, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)   # (B, H, N, C/H)
        y = attend(q, [k], [v], None).reshape(B, N, C)
        x = x + self.scale1 * self.proj(y)
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate=self.gelu))


class ViT(nn.Module):
    """Normalised pixels (B, 3, H, W) -> patch features (B, N, C), row major, after the last LayerNorm.

    Made for squares of `image_size`; other multiples of the patch are read with resampled positions.
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        n_tokens = cfg.grid ** 2 + cfg.class_token
        self.patch = nn.Conv2d(3, cfg.n_embd, cfg.patch_size, cfg.patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, cfg.n_embd)) if cfg.class_token else None
        self.positions = nn.Parameter(torch.randn(1, n_tokens, cfg.n_embd) * 0.02)
        self.blocks = nn.ModuleList(ViTBlock(cfg) for _ in range(cfg.n_layer))
        self.norm = nn.LayerNorm(cfg.n_embd, cfg.norm_eps)

    def forward(self, pixels):
        return self.tokens(pixels)[:, int(self.cfg.class_token):]

    def tokens(self, pixels):
        """The same with the class token in front, where there is one."""
        (B, _, H, W), patch = pixels.shape, self.cfg.patch_size
        assert H % patch == W % patch == 0, f"{H}x{W} pixels are no multiples of the patch, {patch} px"
        x = self.patch(pixels).flatten(2).transpose(1, 2)                                         # (B, N, C)
        x = x if self.cls is None else torch.cat([self.cls.expand(B, -1, -1), x], dim=1)
        x = x + self.table(H // patch, W // patch)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def table(self, h, w):
        """Positions of a grid of h x w patches, (1, N, C): as learned, or resampled for another size (as DINOv2 does)."""
        n = self.cfg.grid
        if (h, w) == (n, n):
            return self.positions
        first, rest = self.positions.float().split([int(self.cfg.class_token), n * n], dim=1)
        rest = F.interpolate(rest.transpose(1, 2).unflatten(2, (n, n)), size=(h, w), mode="bicubic")      # (1, C, h, w)
        return torch.cat([first, rest.flatten(2).transpose(1, 2)], dim=1).to(self.positions.dtype)


def preprocess(image, size, pad):
    """PIL image -> 8-bit grey (size, size): long side scaled to `size` (bicubic, antialiased), centred on `pad`.

    The one rule for training and sampling; it keeps the aspect ratio. A square image of the right size is untouched.
    """
    image = image.convert("L")
    scale = size / max(image.size)
    w, h = (max(1, round(side * scale)) for side in image.size)
    image = image if (w, h) == image.size else image.resize((w, h), Image.Resampling.BICUBIC)
    canvas = np.full((size, size), pad, dtype=np.uint8)
    top, left = (size - h) // 2, (size - w) // 2
    canvas[top:top + h, left:left + w] = np.asarray(image)
    return torch.from_numpy(canvas)


def normalize(images, cfg, size=0):
    """Grey images in [0, 1] (B, 1, H, W), resized to `size`, by default the tower's, if they have another -> (B, 3, S, S)."""
    size = size or cfg.image_size
    if images.shape[-1] != size:
        images = F.interpolate(images, size=(size, size), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (torch.tensor(x, device=images.device, dtype=images.dtype).view(3, 1, 1) for x in (cfg.mean, cfg.std))
    return (images - mean) / std
