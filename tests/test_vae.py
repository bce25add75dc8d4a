"""vae.py against the recorded release (shared/golden) and its own promises."""
import json

import pytest
import torch
from safetensors.torch import load_file

import weights
from helpers import GOLDEN, close, needs_golden
from vae import VAE, VAEConfig

CH_MULT = {"vae_tiny": (1, 1, 1, 1, 2), "vae_hash": (1, 1, 2, 2, 4)}


def tiny(**kw):
    torch.manual_seed(0)
    return VAE(VAEConfig(**{**dict(ch=8, ch_mult=(1, 2, 2), n_res=1, z_channels=4, embed_dim=4, norm_groups=4), **kw})).eval()


def hash_weights(state):
    """The formula of golden/README.md: a small integer hash of (key number, element number)."""
    out, mask = {}, 2**32 - 1
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
        out[name] = u.float()
    return out


@needs_golden
@torch.no_grad()
@pytest.mark.parametrize("name", ["vae_tiny", "vae_hash"])
def test_golden(name):
    ref = load_file(GOLDEN / f"{name}_io.safetensors")
    if name == "vae_tiny":
        vae = weights.load_vae(GOLDEN / "vae_tiny.safetensors")
    else:
        vae = VAE(VAEConfig(ch=32, ch_mult=CH_MULT[name])).eval()
        vae.load_state_dict(hash_weights(vae.state_dict()))     # strict: our names are the checkpoint's
    assert vae.cfg == VAEConfig(ch=32, ch_mult=CH_MULT[name])
    checked = {"image", "nonsquare.image", "nonsquare.rand_scaled_latent"}

    def check(key, got):
        checked.add(key)
        close(got, ref[key])

    for key in ref:
        if key.startswith("probe."):
            check(key, vae.state_dict()[key.removeprefix("probe.")])
    image = ref["image"]
    check("encoder_out", vae.encoder(image))
    check("moments", vae.quant_conv(vae.encoder(image)))
    mean, logvar = vae.moments(image)
    check("mean", mean)
    check("logvar", logvar)
    check("scaled_latent", vae.encode(image))
    check("decode_mean", vae.decoder(vae.post_quant_conv(mean)))
    check("decode_scaled_latent", vae.decode(ref["scaled_latent"]))
    checked.add("rand_scaled_latent")                   # an input
    check("decode_rand_scaled_latent", vae.decode(ref["rand_scaled_latent"]))
    if name == "vae_tiny":
        check("nonsquare.moments", vae.quant_conv(vae.encoder(ref["nonsquare.image"])))
        check("nonsquare.mean", vae.moments(ref["nonsquare.image"])[0])
        check("nonsquare.decode_rand_scaled_latent", vae.decode(ref["nonsquare.rand_scaled_latent"]))
    assert checked >= set(ref)


@needs_golden
@torch.no_grad()
def test_golden_ckpt():
    ref = load_file(GOLDEN / "vae_ckpt" / "vae_micro_io.safetensors")
    vae = weights.load_vae(GOLDEN / "vae_ckpt" / "vae_micro.ckpt")
    assert vae.factor == 2 and vae.cfg == VAEConfig(ch=32, ch_mult=(1, 1), n_res=1, z_channels=4, embed_dim=4)
    mean, logvar = vae.moments(ref["image"])
    close(torch.cat([mean, logvar], 1), ref["moments"])
    close(mean, ref["mean"])
    close(vae.encode(ref["image"]), ref["scaled_latent"])
    close(vae.decode(ref["scaled_latent"]), ref["decode_scaled_latent"])
    close(vae.decode(ref["rand_scaled_latent"]), ref["decode_rand_scaled_latent"])


@needs_golden
def test_names_and_shapes_of_kl_f16():
    want = json.loads((GOLDEN / "key_shapes_full.json").read_text())["vae_kl_f16"]
    with torch.device("meta"):
        vae = VAE(VAEConfig())
    assert {k: list(v.shape) for k, v in vae.state_dict().items()} == want
    assert vae.factor == 16


@torch.no_grad()
def test_encode_draws_from_the_posterior():
    vae, images = tiny(scale=0.5, shift=0.25), torch.rand(2, 3, 16, 24) * 2 - 1
    mean, logvar = vae.moments(images)
    assert mean.shape == logvar.shape == (2, 4, 4, 6)
    close(vae.encode(images), 0.5 * (mean - 0.25))
    noise = torch.randn_like(mean)
    close(vae.encode(images, noise), 0.5 * (mean + (logvar / 2).exp() * noise - 0.25))


@torch.no_grad()
def test_decode_undoes_scale_and_shift():
    a, b, z = tiny(scale=1.0, shift=0.0), tiny(scale=2.0, shift=-1.0), torch.randn(2, 4, 4, 4)
    close(b.decode(2 * (z + 1)), a.decode(z))


@torch.no_grad()
def test_logvar_is_clamped():
    vae = tiny()
    vae.quant_conv.bias.copy_(torch.tensor([0.0] * 4 + [-99.0, 99.0, -99.0, 99.0]))
    vae.quant_conv.weight.zero_()
    _, logvar = vae.moments(torch.zeros(1, 3, 16, 16))
    assert logvar[0, :, 0, 0].tolist() == [-30, 20, -30, 20]


def test_wrong_sizes_are_refused():
    with pytest.raises(AssertionError, match="multiples of 4"):
        tiny().encode(torch.zeros(1, 3, 18, 16))
    with pytest.raises(AssertionError, match="does not divide"):
        VAEConfig(ch=24)
