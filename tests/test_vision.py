"""vision.py against a naive transformer, and the one image preprocessing on pictures of known content."""
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import close, randomise
from vision import RAD_DINO, SIGLIP_L, ViT, ViTConfig, normalize, preprocess

TINY = dict(image_size=12, patch_size=4, n_layer=2, n_head=2, n_embd=16, n_inner=32)


def layer_norm(x, norm):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def naive(vit, pixels):
    """One image (3, S, S), patch by patch and head by head."""
    cfg, P = vit.cfg, vit.cfg.patch_size
    rows = [(vit.patch.weight * pixels[:, r:r + P, c:c + P]).sum((1, 2, 3)) + vit.patch.bias
            for r in range(0, cfg.image_size, P) for c in range(0, cfg.image_size, P)]
    x = torch.stack(([vit.cls[0, 0]] if cfg.class_token else []) + rows) + vit.positions[0]
    D = cfg.n_embd // cfg.n_head
    for block in vit.blocks:
        q, k, v = block.qkv(layer_norm(x, block.norm1)).split(cfg.n_embd, -1)
        mixed = [(q[:, h] @ k[:, h].T / math.sqrt(D)).softmax(-1) @ v[:, h]
                 for h in (slice(n * D, n * D + D) for n in range(cfg.n_head))]
        x = x + block.scale1 * block.proj(torch.cat(mixed, -1))
        inner = block.fc1(layer_norm(x, block.norm2))
        x = x + block.scale2 * block.fc2(inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2))))      # exact GELU
    return layer_norm(x, vit.norm)[1 if cfg.class_token else 0:]


@torch.no_grad()
@pytest.mark.parametrize("dino", [False, True])
def test_vit(dino):
    vit = randomise(ViT(ViTConfig(**TINY, class_token=dino, layer_scale=dino)))
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    ours = vit(pixels)
    assert ours.shape == (2, 9, 16)
    for i in range(2):
        close(ours[i], naive(vit, pixels[i]))


def test_presets_and_refusals():
    assert SIGLIP_L.grid ** 2 == 576 and RAD_DINO.grid == 37
    assert ViTConfig(**json.loads(json.dumps(asdict(RAD_DINO)))) == RAD_DINO
    with pytest.raises(AssertionError, match="tile"):
        ViTConfig(image_size=100)
    with pytest.raises(AssertionError, match="heads"):
        ViTConfig(n_head=7)
    with pytest.raises(AssertionError, match="multiples"):
        ViT(ViTConfig(**TINY))(torch.zeros(1, 3, 12, 15))


def picture(h, w, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (h, w), dtype=np.uint8))


def test_a_square_of_the_right_size_is_untouched():
    image = picture(32, 32)
    got = preprocess(image, 32, 141)
    assert got.dtype == torch.uint8 and np.array_equal(got.numpy(), np.asarray(image))


@pytest.mark.parametrize("h, w, box", [(20, 40, (8, 24, 0, 32)), (40, 20, (0, 32, 8, 24)), (64, 48, (0, 32, 4, 28)),
                                       (8, 4, (0, 32, 8, 24))])
def test_aspect_is_kept_and_bars_are_grey(h, w, box):
    """A white picture: the box it fills, exactly; everything else is the pad value. Small ones are enlarged."""
    got = preprocess(Image.new("L", (w, h), 255), 32, 77)
    top, bottom, left, right = box
    want = torch.full((32, 32), 77, dtype=torch.uint8)
    want[top:bottom, left:right] = 255
    assert torch.equal(got, want)


def test_shrinking_averages():
    """Antialiased: a fine checkerboard becomes even grey, not stripes."""
    board = ((np.indices((96, 96)).sum(0) % 2) * 255).astype(np.uint8)
    got = preprocess(Image.fromarray(board), 24, 0).float()
    assert (got - 127.5).abs()[2:-2, 2:-2].max() < 4


def test_colour_becomes_grey():
    got = preprocess(Image.new("RGB", (16, 16), (255, 0, 0)), 16, 0)
    assert (got == 76).all()


def test_normalize():
    cfg = ViTConfig(**TINY, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    x = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    got = normalize(x, cfg)
    assert got.shape == (2, 3, 12, 12)
    for c in range(3):
        close(got[:, c], (x[:, 0] - cfg.mean[c]) / cfg.std[c], 1e-6)


@pytest.mark.parametrize("size", [6, 24])
def test_normalize_resizes_without_leaving_the_range(size):
    cfg = ViTConfig(**TINY, mean=(0.0,) * 3, std=(1.0,) * 3)
    x = (torch.rand(1, 1, size, size, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    got = normalize(x, cfg)
    assert got.shape == (1, 3, 12, 12) and got.min() >= 0 and got.max() <= 1
    assert torch.allclose(normalize(torch.full((1, 1, size, size), 0.4), cfg), torch.tensor(0.4))
