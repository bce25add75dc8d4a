"""vae.py against the recorded release (shared/golden), and its own promises.

Without the record: tests/weights/test_load.py compares it with the autoencoder of diffusers.
"""
import pytest
import torch
from safetensors.torch import load_file

import weights
from helpers import GOLDEN, close, needs_golden, normal
from vae import VAE, VAEConfig

TINY = dict(ch=8, ch_mult=(1, 2, 2), n_res=1, z_channels=4, embed_dim=4, norm_groups=4)


def tiny(**changes):
    torch.manual_seed(0)
    return VAE(VAEConfig(**TINY, **changes)).eval()


# ---- the release, recorded ----

@needs_golden
@torch.no_grad()
@pytest.mark.parametrize("file, record, ch_mult", [
    ("vae_tiny.safetensors", "vae_tiny_io.safetensors", (1, 1, 1, 1, 2)),
    ("vae_ckpt/vae_micro.ckpt", "vae_ckpt/vae_micro_io.safetensors", (1, 1)),
])
def test_the_autoencoder_computes_what_was_recorded(file, record, ch_mult):
    golden, vae = load_file(GOLDEN / record), weights.load_vae(GOLDEN / file)
    assert vae.cfg.ch_mult == ch_mult and vae.factor == 2 ** (len(ch_mult) - 1)
    ours = {f"probe.{name}": tensor for name, tensor in vae.state_dict().items()}
    for shape in ("", "nonsquare."):
        if shape + "image" not in golden:
            continue
        image, latent = golden.pop(shape + "image"), golden.pop(shape + "rand_scaled_latent")
        mean, logvar = vae.moments(image)
        ours |= {
            f"{shape}encoder_out": vae.encoder(image),
            f"{shape}moments": vae.quant_conv(vae.encoder(image)),
            f"{shape}mean": mean,
            f"{shape}logvar": logvar,
            f"{shape}scaled_latent": vae.encode(image),
            f"{shape}decode_mean": vae.decoder(vae.post_quant_conv(mean)),
            f"{shape}decode_rand_scaled_latent": vae.decode(latent),
        }
    ours["decode_scaled_latent"] = vae.decode(golden["scaled_latent"])
    assert golden.keys() <= ours.keys(), "every recorded tensor is compared"
    for name in golden:
        close(ours[name], golden[name])


# ---- latents ----

@torch.no_grad()
def test_latents_are_drawn_from_the_posterior_then_scaled():
    vae, images = tiny(scale=0.5, shift=0.25), normal(2, 3, 16, 24)
    mean, logvar = vae.moments(images)
    assert mean.shape == logvar.shape == (2, 4, 4, 6)
    close(vae.encode(images), 0.5 * (mean - 0.25))
    noise = normal(*mean.shape, seed=1)
    close(vae.encode(images, noise), 0.5 * (mean + (logvar / 2).exp() * noise - 0.25))
    close(vae.decode(0.5 * (mean - 0.25)), tiny(scale=1.0, shift=0.0).decode(mean))


@torch.no_grad()
def test_pictures_are_the_rounded_mean_of_the_channels():
    vae, latents = tiny(), normal(2, 4, 4, 4)
    vae.decoder.conv_out.weight *= 20                   # beyond white and black too
    grey = (vae.decode(latents).mean(dim=1) * 127.5 + 127.5).clamp(0, 255)
    pictures = vae.pictures(latents)
    assert pictures.dtype == torch.uint8
    assert {0, 255} <= set(pictures.unique().tolist())
    assert (pictures - grey).abs().max() <= 0.5 + 1e-3


@torch.no_grad()
def test_logvar_is_clamped():
    vae = tiny()
    vae.quant_conv.weight.zero_()
    vae.quant_conv.bias.copy_(torch.tensor([0.0] * 4 + [-99.0, 99.0, -99.0, 99.0]))
    _, logvar = vae.moments(torch.zeros(1, 3, 16, 16))
    assert logvar[0, :, 0, 0].tolist() == [-30, 20, -30, 20]


def test_wrong_sizes_are_refused():
    with pytest.raises(AssertionError, match="multiples of 4"):
        tiny().encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(AssertionError, match="does not divide"):
        VAEConfig(ch=24)
