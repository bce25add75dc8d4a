"""The kl-f16 autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752).

An image becomes a Gaussian over latents, 16 times smaller on a side, of which the generation branch
learns to draw new ones; latents become an image again. UniX never trains it.

- Modules carry the names of the CompVis checkpoint (encoder.down.0.block.0.norm1 …), so loading
  it renames nothing.
- Its list of "attention resolutions" is bookkeeping for one image size. What it comes to is fixed
  here: attention in the middle and after every block of the lowest level, whatever the size.
- The latents handed out are normalised, z = scale * (z_raw - shift), so that the flow model sees
  about unit variance.

    python vae.py        # parameters, and the shape after every stage

B batch, C channels of a stage, H W pixels, h w latent grid, z latent channels.
"""
import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class VAEConfig:
    ch: int = 128                       # channels at full resolution
    ch_mult: tuple = (1, 1, 2, 2, 4)    # channels of each level, times ch
    n_res: int = 2                      # residual blocks a level (the decoder has one more)
    z_channels: int = 16                # channels inside the encoder's end and the decoder's start
    embed_dim: int = 16                 # channels of the latents
    in_channels: int = 3                # and out
    norm_groups: int = 32               # of every GroupNorm; divides all widths
    scale: float = 0.238092             # z = scale * (z_raw - shift); both belong to UniX's kl-f16
    shift: float = -0.201906

    def __post_init__(self):
        self.ch_mult = tuple(self.ch_mult)      # JSON has lists
        uneven = [width for width in self.widths if width % self.norm_groups]
        assert math.isfinite(self.scale) and math.isfinite(self.shift), \
            f"scale {self.scale} or shift {self.shift} is not finite"
        assert not uneven, f"norm_groups {self.norm_groups} does not divide the widths {uneven}"

    @property
    def widths(self):
        return [self.ch * multiple for multiple in self.ch_mult]


def conv3(c_in, c_out):
    return nn.Conv2d(c_in, c_out, kernel_size=3, padding=1)


def group_norm(groups, c):
    return nn.GroupNorm(groups, c, eps=1e-6)


class ResBlock(nn.Module):
    """Norm, SiLU, convolution, twice, added to x."""

    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1 = group_norm(groups, c_in)
        self.conv1 = conv3(c_in, c_out)
        self.norm2 = group_norm(groups, c_out)
        self.conv2 = conv3(c_out, c_out)
        self.changes_width = c_in != c_out
        if self.changes_width:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        if self.changes_width:
            x = self.nin_shortcut(x)
        return h + x


class AttnBlock(nn.Module):
    """One head as wide as the stage; every pixel attends to every pixel."""

    def __init__(self, c, groups):
        super().__init__()
        self.norm = group_norm(groups, c)
        self.q = nn.Conv2d(c, c, 1)
        self.k = nn.Conv2d(c, c, 1)
        self.v = nn.Conv2d(c, c, 1)
        self.proj_out = nn.Conv2d(c, c, 1)

    def forward(self, x):
        B, C, H, W = x.shape
        normed = self.norm(x)
        q = self.q(normed).flatten(2)[:, None].mT                   # (B, 1 head, H*W, C)
        k = self.k(normed).flatten(2)[:, None].mT
        v = self.v(normed).flatten(2)[:, None].mT
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(y.mT.reshape(B, C, H, W))


class Resize(nn.Module):
    """Twice the size; or half of it, padded right and below only, as the checkpoint was trained."""

    def __init__(self, c, up):
        super().__init__()
        self.up = up
        self.conv = conv3(c, c) if up else nn.Conv2d(c, c, kernel_size=3, stride=2)

    def forward(self, x):
        if self.up:
            return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.block_1 = ResBlock(c, c, groups)
        self.attn_1 = AttnBlock(c, groups)
        self.block_2 = ResBlock(c, c, groups)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """n residual blocks, each followed by attention at the lowest level, then a change of size."""

    def __init__(self, c_in, c_out, n, groups, lowest, resize):
        super().__init__()
        widths = [c_in] + [c_out] * (n - 1)
        self.block = nn.ModuleList(ResBlock(width, c_out, groups) for width in widths)
        self.attn = nn.ModuleList()
        if lowest:
            self.attn.extend(AttnBlock(c_out, groups) for _ in range(n))
        # the checkpoint has a name for each direction: "downsample", "upsample", or none at the end
        self.resize = resize
        if resize:
            self.add_module(resize, Resize(c_out, up=resize == "upsample"))

    def forward(self, x):
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        if self.resize:
            x = self.get_submodule(self.resize)(x)
        return x


class Encoder(nn.Module):
    """Levels from full resolution down, then the middle -> mean and log-variance, unscaled."""

    def __init__(self, cfg):
        super().__init__()
        widths, groups, last = cfg.widths, cfg.norm_groups, len(cfg.ch_mult) - 1
        self.conv_in = conv3(cfg.in_channels, cfg.ch)
        self.down = nn.ModuleList()                                 # down[0] is full resolution
        for i, (c_in, c_out) in enumerate(zip([cfg.ch] + widths, widths)):
            resize = "downsample" if i < last else ""
            self.down.append(Level(c_in, c_out, cfg.n_res, groups, i == last, resize))
        self.mid = Middle(widths[-1], groups)
        self.norm_out = group_norm(groups, widths[-1])
        self.conv_out = conv3(widths[-1], 2 * cfg.z_channels)

    def forward(self, images):
        x = self.conv_in(images)                                    # (B, ch, H, W)
        for level in self.down:
            x = level(x)                                            # at last (B, C, h, w)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))    # (B, 2z, h, w)


class Decoder(nn.Module):
    """The middle, then levels from the lowest resolution up."""

    def __init__(self, cfg):
        super().__init__()
        widths, groups, last = cfg.widths, cfg.norm_groups, len(cfg.ch_mult) - 1
        self.conv_in = conv3(cfg.z_channels, widths[-1])
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList()                                   # up[0] runs last
        for i, (c_in, c_out) in enumerate(zip(widths[1:] + widths[-1:], widths)):
            resize = "upsample" if i > 0 else ""
            self.up.append(Level(c_in, c_out, cfg.n_res + 1, groups, i == last, resize))
        self.norm_out = group_norm(groups, widths[0])
        self.conv_out = conv3(widths[0], cfg.in_channels)

    def forward(self, z):
        x = self.mid(self.conv_in(z))                               # (B, C, h, w)
        for level in reversed(self.up):
            x = level(x)                                            # at last (B, ch, H, W)
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.z_channels, 2 * cfg.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(cfg.embed_dim, cfg.z_channels, 1)

    @property
    def factor(self):
        """How much smaller a latent is on a side: every level but the last halves the image."""
        return 2 ** (len(self.cfg.ch_mult) - 1)

    def moments(self, images):
        """(B, 3, H, W) in [-1, 1] -> mean and log-variance of the raw latents, (B, z, h, w)
        each."""
        H, W = images.shape[-2:]
        assert H % self.factor == 0 and W % self.factor == 0, \
            f"{H}x{W} image: both sides must be multiples of {self.factor}"
        mean, logvar = self.quant_conv(self.encoder(images)).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)              # as in training: exp stays finite

    def normalise(self, mean, logvar, noise=None):
        """A draw from the posterior, or its mean without noise, scaled for the flow model."""
        z = mean
        if noise is not None:
            z = mean + (0.5 * logvar).exp() * noise
        return self.cfg.scale * (z - self.cfg.shift)

    def encode(self, images, noise=None):
        """(B, 3, H, W) in [-1, 1] -> normalised latents (B, z, h, w)."""
        return self.normalise(*self.moments(images), noise)

    def decode(self, latents):
        """Normalised latents (B, z, h, w) -> (B, 3, H, W), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents / self.cfg.scale + self.cfg.shift))

    def pictures(self, latents):
        """Latents -> 8-bit grey pictures (B, H, W): mean of the channels, [-1, 1] to 0..255.

        Rounded; the release truncates. FloatingPointError if a pixel is no number.
        """
        pixels = self.decode(latents).float().mean(dim=1)
        if not torch.isfinite(pixels).all():            # they would become black
            raise FloatingPointError("what the autoencoder decoded is not finite.")
        return (pixels.clamp(-1, 1) * 127.5 + 127.5).round().byte()


def main(argv):
    """Print which shapes go in and out of each level of kl-f16."""
    vae = VAE(VAEConfig())
    names = {module: name for name, module in vae.named_modules()}

    def announce(module, inputs, output):
        print(f"{names[module]:16} {tuple(inputs[0].shape)} -> {tuple(output.shape)}")

    print(f"kl-f16: {sum(p.numel() for p in vae.parameters()) / 1e6:.1f} M parameters")
    ends = ("conv_in", "conv_out", "quant_conv")
    for module, name in names.items():
        if isinstance(module, (Level, Middle)) or name.endswith(ends):
            module.register_forward_hook(announce)
    with torch.no_grad():
        vae.decode(vae.encode(torch.zeros(1, 3, 256, 256)))


if __name__ == "__main__":
    from common.cli import cli          # here alone: the network itself needs no other room
    cli(main, __doc__)
