"""repa.py: targets resampled in two dimensions, and a loss that is one cosine a token."""
import pytest
import torch

from repa import Projector, repa_loss, targets
from vision import ViTConfig


class Ramp:
    """An encoder whose patch (row, column) of a 6 x 6 grid has the features (row, column, 1) whatever the image."""
    cfg = ViTConfig(image_size=12, patch_size=2, n_layer=1, n_head=1, n_embd=4, n_inner=4, mean=(0,) * 3, std=(1,) * 3)

    def __call__(self, pixels):
        self.pixels = pixels
        r, c = torch.meshgrid(torch.arange(6.0), torch.arange(6.0), indexing="ij")
        return torch.stack([r, c, torch.ones(6, 6)], -1).flatten(0, 1).expand(len(pixels), -1, -1)


@pytest.mark.parametrize("grid", [(3, 3), (2, 3), (3, 2)])
def test_a_ramp_stays_a_ramp_in_both_directions(grid):
    """Cell (i, j) of an h x w grid lies at ((i + 0.5) 6/h - 0.5, (j + 0.5) 6/w - 0.5); border cells may lean inwards."""
    h, w = grid
    got = targets(Ramp(), torch.rand(2, 1, 12, 12), grid).unflatten(1, grid)
    assert got.shape == (2, h, w, 3)
    assert torch.allclose(got[..., 2], torch.ones(2, h, w))
    rows, columns = ((torch.arange(n) + 0.5) * 6 / n - 0.5 for n in (h, w))
    assert torch.allclose(got[..., 0], rows[:, None].expand(2, h, w), atol=0.4)
    assert torch.allclose(got[..., 1], columns.expand(2, h, w), atol=0.4)
    # symmetric about the middle, exactly: a one-dimensional resampling of the flattened axis is neither
    assert torch.allclose(got[..., 0] + got[..., 0].flip(1), torch.tensor(5.0), atol=1e-4)
    assert torch.allclose(got[..., 1] + got[..., 1].flip(2), torch.tensor(5.0), atol=1e-4)
    assert (got[..., 0].std(dim=2) < 1e-4).all() and (got[..., 1].std(dim=1) < 1e-4).all()


def test_the_same_grid_is_untouched():
    encoder = Ramp()
    assert torch.equal(targets(encoder, torch.rand(2, 1, 12, 12), (6, 6)), encoder(torch.zeros(2, 3, 1, 1)))


def test_images_are_brought_to_the_encoders_size():
    encoder = Ramp()
    targets(encoder, torch.rand(2, 1, 24, 24), (6, 6))
    assert encoder.pixels.shape == (2, 3, 12, 12)


def test_loss():
    x = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(repa_loss(x, 3 * x), torch.tensor([-1.0, -1.0]))
    assert torch.allclose(repa_loss(x, -x), torch.tensor([1.0, 1.0]))
    y = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(1))
    by_hand = [-sum(float(a @ b / (a.norm() * b.norm())) for a, b in zip(x[i], y[i])) / 5 for i in range(2)]
    assert torch.allclose(repa_loss(x, y), torch.tensor(by_hand), atol=1e-6)      # per image: not divided by the batch
    assert repa_loss(x.bfloat16(), y.bfloat16()).dtype == torch.float32


def test_targets_carry_no_gradient_and_the_projector_does():
    from vision import ViT
    encoder, projector = ViT(Ramp.cfg), Projector(16, 8, 4)
    towards = targets(encoder, torch.rand(1, 1, 12, 12), (3, 3))
    assert not towards.requires_grad
    repa_loss(projector(torch.randn(1, 9, 16)), towards).sum().backward()
    assert all(p.grad is None for p in encoder.parameters())
    assert all(p.grad is not None for p in projector.parameters())
