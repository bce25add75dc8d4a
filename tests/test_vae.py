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

def with_hash_weights(ch_mult):
    """The record's largest autoencoder has weights by a formula: hashes of (key, element)."""
    vae, mask = VAE(VAEConfig(ch=32, ch_mult=ch_mult)).eval(), 2**32 - 1
    values = {}
    for i, name in enumerate(sorted(vae.state_dict())):
        shape = vae.state_dict()[name].shape
        s = (torch.arange(shape.numel(), dtype=torch.int64) + i * 1000003) & mask
        s = (s * 747796405 + 2891336453) & mask
        word = (((s >> ((s >> 28) + 4)) ^ s) * 277803737) & mask
        u = (2 * ((word >> 22) ^ word).double() / 2**32 - 1).reshape(shape)
        if len(shape) == 4:
            u = u * (3 / shape[1:].numel()) ** 0.5
        elif "norm" in name and name.endswith("weight"):
            u = 1 + 0.2 * u
        else:
            u = 0.1 * u
        values[name] = u.float()
    vae.load_state_dict(values)
    return vae


@needs_golden
@torch.no_grad()
@pytest.mark.parametrize("file, record, ch_mult", [
    ("vae_tiny.safetensors", "vae_tiny_io.safetensors", (1, 1, 1, 1, 2)),
    ("vae_ckpt/vae_micro.ckpt", "vae_ckpt/vae_micro_io.safetensors", (1, 1)),
    (None, "vae_hash_io.safetensors", (1, 1, 2, 2, 4)),
])
def test_the_autoencoder_computes_what_was_recorded(file, record, ch_mult):
    golden = load_file(GOLDEN / record)
    vae = with_hash_weights(ch_mult) if file is None else weights.load_vae(GOLDEN / file)
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
