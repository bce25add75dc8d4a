"""vae.py against the recorded release (shared/golden), and its own promises."""
import json

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

def hash_weights(state):
    """The formula of golden/README.md: a small integer hash of (key number, element number)."""
    tensors, mask = {}, 2**32 - 1
    for i, name in enumerate(sorted(state)):
        shape = state[name].shape
        s = (torch.arange(shape.numel(), dtype=torch.int64) + i * 1000003) & mask
        s = (s * 747796405 + 2891336453) & mask
        w = (((s >> ((s >> 28) + 4)) ^ s) * 277803737) & mask
        r = (w >> 22) ^ w
        u = (2 * r.double() / 2**32 - 1).reshape(shape)
        if len(shape) == 4:
            u = u * (3 / shape[1:].numel()) ** 0.5
        elif "norm" in name and name.endswith("weight"):
            u = 1 + 0.2 * u
        else:
            u = 0.1 * u
        tensors[name] = u.float()
    return tensors


def vae_tiny():
    return weights.load_vae(GOLDEN / "vae_tiny.safetensors"), (1, 1, 1, 1, 2)


def vae_hash():
    """The widths of kl-f16, weights by formula; loading is strict: our names are the release's."""
    vae = VAE(VAEConfig(ch=32)).eval()
    vae.load_state_dict(hash_weights(vae.state_dict()))
    return vae, (1, 1, 2, 2, 4)


@needs_golden
@torch.no_grad()
@pytest.mark.parametrize("build", [vae_tiny, vae_hash])
def test_golden(build):
    vae, ch_mult = build()
    assert vae.cfg == VAEConfig(ch=32, ch_mult=ch_mult)
    golden = load_file(GOLDEN / f"{build.__name__}_io.safetensors")
    image = golden.pop("image")
    mean, logvar = vae.moments(image)
    random_latent = golden.pop("rand_scaled_latent")
    ours = {
        "encoder_out": vae.encoder(image),
        "moments": vae.quant_conv(vae.encoder(image)),
        "mean": mean,
        "logvar": logvar,
        "scaled_latent": vae.encode(image),
        "decode_mean": vae.decoder(vae.post_quant_conv(mean)),
        "decode_scaled_latent": vae.decode(golden["scaled_latent"]),
        "decode_rand_scaled_latent": vae.decode(random_latent),
    }
    if "nonsquare.image" in golden:
        image = golden.pop("nonsquare.image")
        ours["nonsquare.moments"] = vae.quant_conv(vae.encoder(image))
        ours["nonsquare.mean"], _ = vae.moments(image)
        latent = golden.pop("nonsquare.rand_scaled_latent")
        ours["nonsquare.decode_rand_scaled_latent"] = vae.decode(latent)
    probes = [name for name in golden if name.startswith("probe.")]
    ours |= {name: vae.state_dict()[name.removeprefix("probe.")] for name in probes}
    assert ours.keys() == golden.keys(), "every recorded tensor is compared"
    for name in golden:
        close(ours[name], golden[name])


@needs_golden
@torch.no_grad()
def test_golden_ckpt():
    """Another shape, out of a `.ckpt` as the release's VAE comes."""
    golden = load_file(GOLDEN / "vae_ckpt" / "vae_micro_io.safetensors")
    vae = weights.load_vae(GOLDEN / "vae_ckpt" / "vae_micro.ckpt")
    assert vae.cfg == VAEConfig(ch=32, ch_mult=(1, 1), n_res=1, z_channels=4, embed_dim=4)
    assert vae.factor == 2
    mean, logvar = vae.moments(golden["image"])
    close(torch.cat([mean, logvar], dim=1), golden["moments"])
    close(vae.encode(golden["image"]), golden["scaled_latent"])
    close(vae.decode(golden["scaled_latent"]), golden["decode_scaled_latent"])
    close(vae.decode(golden["rand_scaled_latent"]), golden["decode_rand_scaled_latent"])


@needs_golden
def test_names_and_shapes_of_kl_f16():
    recorded = json.loads((GOLDEN / "key_shapes_full.json").read_text())["vae_kl_f16"]
    with torch.device("meta"):
        vae = VAE(VAEConfig())
    assert {name: list(tensor.shape) for name, tensor in vae.state_dict().items()} == recorded
    assert vae.factor == 16


# ---- latents ----

@torch.no_grad()
def test_latents_are_drawn_from_the_posterior_then_scaled():
    vae, images = tiny(scale=0.5, shift=0.25), normal(2, 3, 16, 24)
    mean, logvar = vae.moments(images)
    assert mean.shape == logvar.shape == (2, 4, 4, 6)
    close(vae.encode(images), 0.5 * (mean - 0.25))
    noise = normal(*mean.shape, seed=1)
    close(vae.encode(images, noise), 0.5 * (mean + (logvar / 2).exp() * noise - 0.25))


@torch.no_grad()
def test_decode_undoes_scale_and_shift():
    z = normal(2, 4, 4, 4)
    close(tiny(scale=2.0, shift=-1.0).decode(2 * (z + 1)), tiny(scale=1.0, shift=0.0).decode(z))


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
