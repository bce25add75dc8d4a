"""Shared by the tests: where the reference tensors lie (outside the repository; absent -> skip), and tiny models."""
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
GOLDEN = SHARED / "golden"
sys.path.insert(0, str(ROOT))

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


@pytest.fixture(scope="session")
def golden():
    return load_file(GOLDEN / "unix_tiny_io.safetensors")


@pytest.fixture
def tiny():
    from model import UniX
    torch.manual_seed(0)
    return randomise(UniX(tiny_config())).eval()


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """The root of a packed phantom: und-64, gen-32, gen-64 with 24 pictures to train on, and its tokenizer."""
    import prepare_phantom
    root = tmp_path_factory.mktemp("phantom")
    prepare_phantom.main(f"--out {root} --size 64 --train 24 --val 4 --test 2 --workers 1 --vocab-size 400".split())
    return root


def tiny_vae():
    """A random autoencoder, 8 times smaller latents of 4 channels."""
    from vae import VAE, VAEConfig
    torch.manual_seed(0)
    return VAE(VAEConfig(ch=8, ch_mult=(1, 1, 1, 2), n_res=1, z_channels=4, embed_dim=4, norm_groups=4,
                         scale=1.0, shift=0.0)).eval()


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory):
    """A run directory like that of train_vae.py."""
    import checkpoint
    import weights
    vae, run = tiny_vae(), tmp_path_factory.mktemp("vae")
    checkpoint.save(run, 1, config=weights.describe(vae=vae), tensors={"vae": vae.state_dict()})
    return run
