"""repa.py: targets resampled in two dimensions, and a loss that is one cosine a token."""
from dataclasses import replace

import pytest
import torch

import repa
from helpers import normal
from repa import Projector, repa_loss, targets
from vision import RAD_DINO, ViT, ViTConfig


class Ramp:
    """An encoder whose patch (row, column) of 6 x 6 has the features (row, column, 1), always."""
    cfg = ViTConfig(image_size=12, patch_size=2, n_layer=1, n_head=1, n_embd=4, n_inner=4)

    def __call__(self, pixels):
        self.pixels = pixels
        row, column = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
        features = torch.stack([row, column, torch.ones(6, 6)], dim=-1).flatten(0, 1)
        return features.expand(len(pixels), -1, -1)


@pytest.mark.parametrize("h, w", [(3, 3), (2, 3), (3, 2)])
def test_a_ramp_stays_a_ramp_in_both_directions(h, w):
    """Cell i of n lies at (i + 0.5) 6/n - 0.5; border cells may lean inwards."""
    features = targets(Ramp(), torch.rand(2, 1, 12, 12), (h, w))
    row, column, one = features.unflatten(1, (h, w)).unbind(-1)
    assert torch.allclose(one, torch.ones(2, h, w))
    for ramp, n in ((row, h), (column.mT, w)):
        assert torch.allclose(ramp[0, :, 0], (torch.arange(n) + 0.5) * 6 / n - 0.5, atol=0.4)
        # exactly symmetric and even: a resampling of the flattened axis is neither
        assert torch.allclose(ramp + ramp.flip(1), torch.tensor(5.0), atol=1e-4)
        assert (ramp.std(dim=2) < 1e-4).all()


def test_the_encoder_gets_its_size_and_an_equal_grid_is_untouched():
    encoder = Ramp()
    features = targets(encoder, torch.rand(2, 1, 24, 24), (6, 6))
    assert encoder.pixels.shape == (2, 3, 12, 12)
    assert torch.equal(features, encoder(encoder.pixels))


def test_rad_dino_at_224_pixels_has_the_grid_of_256_pixel_latents(monkeypatch):
    """So no feature is resampled."""
    encoder = ViT(replace(RAD_DINO, n_layer=1, n_head=1, n_embd=4, n_inner=4)).to("meta")
    images = torch.zeros(1, 1, 256, 256, device="meta")
    assert targets(encoder, images, (16, 16)).shape == (1, 256, 4)      # from 37 x 37 patches
    monkeypatch.setattr(repa, "F", None)
    assert targets(encoder, images, (16, 16), size=224).shape == (1, 256, 4)
    with pytest.raises(AttributeError):
        targets(encoder, images, (16, 16))


def test_the_loss_is_the_negative_mean_cosine_of_each_image():
    x, y = normal(2, 5, 8), normal(2, 5, 8, seed=1)
    assert torch.allclose(repa_loss(x, 3 * x), torch.tensor([-1.0, -1.0]))
    assert torch.allclose(repa_loss(x, -x), torch.tensor([1.0, 1.0]))
    cosine = (x * y).sum(-1) / (x.norm(dim=-1) * y.norm(dim=-1))
    assert torch.allclose(repa_loss(x, y), -cosine.mean(dim=1), atol=1e-6)
    assert repa_loss(x.bfloat16(), y.bfloat16()).dtype == torch.float32


def test_only_the_projector_has_gradients():
    encoder, projector = ViT(Ramp.cfg), Projector(16, 8, 4)
    target = targets(encoder, torch.rand(1, 1, 12, 12), (3, 3))
    repa_loss(projector(normal(1, 9, 16)), target).sum().backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for p in projector.parameters())
