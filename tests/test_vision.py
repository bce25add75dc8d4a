"""vision.py: the one preprocessing on pictures of known content.

That the transformer computes what SigLIP and DINOv2 do is tested in tests/weights/test_load.py.
"""
import numpy as np
import pytest
import torch
from PIL import Image

from helpers import close, normal
from vision import RAD_DINO, SIGLIP_L, ViT, ViTConfig, normalize, preprocess

TINY = dict(image_size=12, patch_size=4, n_layer=2, n_head=2, n_embd=16, n_inner=32)


def test_presets_and_refusals():
    assert SIGLIP_L.grid ** 2 == 576 and RAD_DINO.grid == 37
    with pytest.raises(AssertionError, match="tile"):
        ViTConfig(image_size=100)
    with pytest.raises(AssertionError, match="heads"):
        ViTConfig(n_head=7)
    with pytest.raises(AssertionError, match="multiples"):
        ViT(ViTConfig(**TINY))(torch.zeros(1, 3, 12, 15))


@pytest.mark.parametrize("h, w, rows, columns", [
    (20, 40, slice(8, 24), slice(0, 32)),
    (40, 20, slice(0, 32), slice(8, 24)),
    (64, 48, slice(0, 32), slice(4, 28)),
    (8, 4, slice(0, 32), slice(8, 24)),                 # enlarged
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


def test_a_square_of_the_right_size_is_untouched_but_for_its_colours():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    assert np.array_equal(preprocess(Image.fromarray(pixels), 32, 141).numpy(), pixels)
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
