"""What tests share and is no fixture: where reference data lie (absent -> skip), tiny networks, a measure of closeness."""
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"

needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="reference tensors are not here")
needs_films = pytest.mark.skipif(not (SHARED / "real_cxr").exists(), reason="real radiographs are not here")


def close(ours, ref, tolerance=1e-5):
    """Relative error |ours - ref| / |ref| as one number over the whole tensor."""
    assert ours.shape == ref.shape, f"{tuple(ours.shape)} against {tuple(ref.shape)}"
    error = (ours.double() - ref.double()).norm() / ref.double().norm().clamp(min=1e-12)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance}"


def tiny_config(**changes):
    from model import UniXConfig
    from vision import ViTConfig
    vision = ViTConfig(image_size=32, patch_size=16, n_layer=2, n_head=2, n_embd=32, n_inner=64)
    base = dict(n_layer=3, n_head=4, n_embd=64, n_inner=96, vocab_size=64, bos=60, eos=61, soi=62, eoi=63, max_text=64,
                vision=vision, max_latent_size=8, repa_layer=2)
    return UniXConfig(**{**base, **changes})


def randomise(model, seed=0):
    """Give every parameter a random value: an output that starts at zero would hide most mistakes."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=g)
            p.copy_(1 + 0.2 * noise if "norm" in name and name.endswith("weight") else noise * 0.3 * p.shape[-1] ** -0.5)
    return model


def tiny_vae():
    """A random autoencoder, 8 times smaller latents of 4 channels."""
    from vae import VAE, VAEConfig
    torch.manual_seed(0)
    return VAE(VAEConfig(ch=8, ch_mult=(1, 1, 1, 2), n_res=1, z_channels=4, embed_dim=4, norm_groups=4,
                         scale=1.0, shift=0.0)).eval()
