"""One pre-norm vision transformer with two presets, and the one image preprocessing.

SigLIP-L/16 at 384 px reads the image for the report. RAD-DINO (DINOv2 ViT-B/14 at 518 px) gives
the targets of REPA. They differ in a class token, LayerScale and sizes, so they are one class and
two lines of a table.

B batch, N patches, C width, H heads, D head width. Pixels lie in [0, 1] until `normalize`.
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
        self.mean = tuple(self.mean)            # JSON has lists
        self.std = tuple(self.std)
        assert self.image_size % self.patch_size == 0, \
            f"patches of {self.patch_size} do not tile {self.image_size} px"
        assert self.n_head > 0 and self.n_embd % self.n_head == 0, \
            f"{self.n_head} heads do not divide width {self.n_embd}"

    @property
    def grid(self):
        return self.image_size // self.patch_size


SIGLIP_L = ViTConfig()
RAD_DINO = ViTConfig(
    image_size=518, patch_size=14, n_layer=12, n_head=12, n_embd=768, n_inner=3072,
    class_token=True, layer_scale=True, mean=(0.5307,) * 3, std=(0.2583,) * 3, pad=0)


class ViTBlock(nn.Module):
    """Attention, then an MLP; each reads a normed x and is added to it."""

    def __init__(self, cfg):
        super().__init__()
        C = cfg.n_embd
        self.n_head = cfg.n_head
        self.gelu = cfg.gelu
        self.norm1 = nn.LayerNorm(C, cfg.norm_eps)
        self.norm2 = nn.LayerNorm(C, cfg.norm_eps)
        self.qkv = nn.Linear(C, 3 * C)
        self.proj = nn.Linear(C, C)
        self.fc1 = nn.Linear(C, cfg.n_inner)
        self.fc2 = nn.Linear(cfg.n_inner, C)
        self.scale1 = nn.Parameter(torch.ones(C)) if cfg.layer_scale else 1.0
        self.scale2 = nn.Parameter(torch.ones(C)) if cfg.layer_scale else 1.0

    def forward(self, x):
        B, N, C = x.shape
        qkv = self.qkv(self.norm1(x)).view(B, N, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                                    # (B, H, N, D) each
        y = attend(q, [k], [v], None).reshape(B, N, C)
        x = x + self.scale1 * self.proj(y)
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate=self.gelu))


class ViT(nn.Module):
    """Normalised pixels (B, 3, H, W) -> normed features of the patches (B, N, C), row by row.

    Made for squares of `image_size`; other sizes, multiples of the patch, are read with resampled
    positions.
    """

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        n_tokens = cfg.grid ** 2 + cfg.class_token
        self.patch = nn.Conv2d(3, cfg.n_embd, cfg.patch_size, cfg.patch_size)
        self.cls = nn.Parameter(torch.zeros(1, 1, cfg.n_embd)) if cfg.class_token else None
        self.positions = nn.Parameter(torch.empty(1, n_tokens, cfg.n_embd))
        nn.init.normal_(self.positions, std=0.02)
        self.blocks = nn.ModuleList(ViTBlock(cfg) for _ in range(cfg.n_layer))
        self.norm = nn.LayerNorm(cfg.n_embd, cfg.norm_eps)

    def forward(self, pixels):
        return self.tokens(pixels)[:, int(self.cfg.class_token):]

    def tokens(self, pixels):
        """The same with the class token in front, where there is one."""
        B, _, H, W = pixels.shape
        patch = self.cfg.patch_size
        assert H % patch == W % patch == 0, f"{H}x{W} pixels are no multiples of patches of {patch}"
        x = self.patch(pixels).flatten(2).transpose(1, 2)                       # (B, N, C)
        if self.cls is not None:
            x = torch.cat([self.cls.expand(B, -1, -1), x], dim=1)
        x = x + self.table(H // patch, W // patch)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def table(self, h, w):
        """Positions of h x w patches (1, N, C): as learned, or resampled, which is how DINOv2
        does it."""
        n = self.cfg.grid
        if (h, w) == (n, n):
            return self.positions
        first, rest = self.positions.float().split([int(self.cfg.class_token), n * n], dim=1)
        rest = rest.transpose(1, 2).unflatten(2, (n, n))                        # (1, C, n, n)
        rest = F.interpolate(rest, size=(h, w), mode="bicubic")                 # (1, C, h, w)
        table = torch.cat([first, rest.flatten(2).transpose(1, 2)], dim=1)
        return table.to(self.positions.dtype)


def preprocess(image, size, pad):
    """PIL image -> 8-bit grey (size, size): long side scaled to `size`, centred on grey `pad`.

    The one rule for training and sampling. It keeps the aspect ratio and scales bicubically, with
    antialiasing. A square image of the right size is untouched.
    """
    image = image.convert("L")
    scale = size / max(image.size)
    w, h = (max(1, round(side * scale)) for side in image.size)
    if (w, h) != image.size:
        image = image.resize((w, h), Image.Resampling.BICUBIC)
    canvas = np.full((size, size), pad, dtype=np.uint8)
    top, left = (size - h) // 2, (size - w) // 2
    canvas[top:top + h, left:left + w] = np.asarray(image)
    return torch.from_numpy(canvas)


def filled(numbers, device, dtype=None):
    """A vector of a few numbers. For a copy to a GPU, the host would wait until it has arrived."""
    return torch.cat([torch.full((1,), number, device=device, dtype=dtype) for number in numbers])


def normalize(images, cfg, size=0):
    """Grey images in [0, 1] (B, 1, H, W) -> what a tower reads (B, 3, S, S), mean 0 and deviation
    1.

    Resized to `size` if they have another; 0: the size that the tower was made for.
    """
    S = size if size > 0 else cfg.image_size
    if images.shape[-1] != S:
        # bicubic overshoots at edges, hence the clamp
        images = F.interpolate(images, size=(S, S), mode="bicubic", antialias=True).clamp(0, 1)
    mean, std = (filled(values, images.device, images.dtype)[:, None, None]
                 for values in (cfg.mean, cfg.std))
    return (images - mean) / std
