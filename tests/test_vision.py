"""vision.py against a naive transformer; the one preprocessing on pictures of known content."""
import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import close, normal, randomise
from vision import RAD_DINO, SIGLIP_L, ViT, ViTConfig, normalize, preprocess

TINY = dict(image_size=12, patch_size=4, n_layer=2, n_head=2, n_embd=16, n_inner=32)


# ---- the transformer ----

def layer_norm(x, norm):
    x = x - x.mean(-1, keepdim=True)
    return x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def naive(vit, pixels):
    """One image (3, S, S), patch by patch and head by head."""
    cfg, P, D = vit.cfg, vit.cfg.patch_size, vit.cfg.n_embd // vit.cfg.n_head
    rows = [vit.cls[0, 0]] if cfg.class_token else []
    for r in range(0, cfg.image_size, P):
        for c in range(0, cfg.image_size, P):
            patch = pixels[:, r:r + P, c:c + P]
            rows.append((vit.patch.weight * patch).sum((1, 2, 3)) + vit.patch.bias)
    x = torch.stack(rows) + vit.positions[0]
    for block in vit.blocks:
        q, k, v = block.qkv(layer_norm(x, block.norm1)).split(cfg.n_embd, -1)
        heads = [slice(n * D, n * D + D) for n in range(cfg.n_head)]
        y = [(q[:, h] @ k[:, h].T / math.sqrt(D)).softmax(-1) @ v[:, h] for h in heads]
        x = x + block.scale1 * block.proj(torch.cat(y, -1))
        inner = block.fc1(layer_norm(x, block.norm2))
        gelu = inner * 0.5 * (1 + torch.erf(inner / math.sqrt(2)))              # the exact one
        x = x + block.scale2 * block.fc2(gelu)
    return layer_norm(x, vit.norm)[int(cfg.class_token):]


@torch.no_grad()
@pytest.mark.parametrize("dino", [False, True])
def test_vit_is_the_naive_transformer(dino):
    """With and without what DINOv2 adds: a class token, LayerScale."""
    vit = randomise(ViT(ViTConfig(**TINY, class_token=dino, layer_scale=dino)))
    pixels = normal(2, 3, 12, 12)
    features = vit(pixels)
    assert features.shape == (2, 9, 16)
    for i in range(2):
        close(features[i], naive(vit, pixels[i]))


def test_presets_and_refusals():
    assert SIGLIP_L.grid ** 2 == 576
    assert RAD_DINO.grid == 37
    assert ViTConfig(**json.loads(json.dumps(asdict(RAD_DINO)))) == RAD_DINO
    with pytest.raises(AssertionError, match="tile"):
        ViTConfig(image_size=100)
    with pytest.raises(AssertionError, match="heads"):
        ViTConfig(n_head=7)
    with pytest.raises(AssertionError, match="multiples"):
        ViT(ViTConfig(**TINY))(torch.zeros(1, 3, 12, 15))


# ---- the preprocessing ----

def test_a_square_of_the_right_size_is_untouched():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    preprocessed = preprocess(Image.fromarray(pixels), 32, 141)
    assert preprocessed.dtype == torch.uint8
    assert np.array_equal(preprocessed.numpy(), pixels)


@pytest.mark.parametrize("h, w, rows, columns", [
    (20, 40, slice(8, 24), slice(0, 32)),
    (40, 20, slice(0, 32), slice(8, 24)),
    (64, 48, slice(0, 32), slice(4, 28)),
    (8, 4, slice(0, 32), slice(8, 24)),                                         # enlarged
])
def test_aspect_is_kept_and_bars_are_grey(h, w, rows, columns):
    """A white picture: the box that it fills, exactly, and everything else is the pad value."""
    box = torch.full((32, 32), 77, dtype=torch.uint8)
    box[rows, columns] = 255
    assert torch.equal(preprocess(Image.new("L", (w, h), 255), 32, 77), box)


def test_shrinking_averages():
    """Antialiased: a fine checkerboard becomes even grey, not stripes."""
    board = np.indices((96, 96)).sum(0) % 2 * 255
    small = preprocess(Image.fromarray(board.astype(np.uint8)), 24, 0).float()
    assert (small - 127.5).abs()[2:-2, 2:-2].max() < 4


def test_colour_becomes_grey():
    assert (preprocess(Image.new("RGB", (16, 16), (255, 0, 0)), 16, 0) == 76).all()


def test_normalize_gives_each_channel_its_mean_and_deviation():
    cfg = ViTConfig(**TINY, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
    x = torch.rand(2, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    channels = [(x[:, 0] - mean) / std for mean, std in zip(cfg.mean, cfg.std)]
    close(normalize(x, cfg), torch.stack(channels, dim=1), 1e-6)


@pytest.mark.parametrize("size", [6, 24])
def test_normalize_resizes_without_leaving_the_range(size):
    cfg = ViTConfig(**TINY, mean=(0.0,) * 3, std=(1.0,) * 3)
    resized = normalize((normal(1, 1, size, size) > 0).float(), cfg)
    assert resized.shape == (1, 3, 12, 12)
    assert 0 <= resized.min() and resized.max() <= 1
    even = torch.full((1, 1, size, size), 0.4)
    assert torch.allclose(normalize(even, cfg), torch.tensor(0.4))
