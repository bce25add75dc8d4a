"""
The kl-f16 autoencoder of latent diffusion (Rombach et al., arXiv 2112.10752): pixels <-> latents, 16 times smaller.

UniX never trains it. An image becomes a Gaussian over latents, of which the generation branch learns to draw new ones.

- Modules carry the names of the CompVis checkpoint (encoder.down.0.block.0.norm1 ...), so loading it is the identity.
- Its list of "attention resolutions" is bookkeeping for one image size; what it comes to is fixed here instead:
  attention after every block of the lowest level and in the middle, whatever the size of the image.
- The latents handed out are normalised, z = scale * (z_raw - shift), so that the flow model sees about unit variance.

    python vae.py        # parameters, and the shape after every stage

B batch, C channels of a stage, H W pixels, h w latent grid, z latent channels"""
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class VAEConfig:
    ch: int = 128                       # channels at full resolution
    ch_mult: tuple = (1, 1, 2, 2, 4)    # channels of each level, times ch; every level but the last halves the image
    n_res: int = 2                      # residual blocks a level (the decoder has one more)
    z_channels: int = 16                # channels inside the encoder's end and the decoder's start
    embed_dim: int = 16                 # channels of the latents
    in_channels: int = 3                # and out
    norm_groups: int = 32               # of every GroupNorm; divides all widths
    scale: float = 0.238092             # z = scale * (z_raw - shift); these two belong to the kl-f16 of UniX
    shift: float = -0.201906

    def __post_init__(self):
        self.ch_mult = tuple(self.ch_mult)   # JSON has lists
        bad = [width for width in self.widths if width % self.norm_groups]
        assert not bad, f"norm_groups {self.norm_groups} does not divide the widths {bad}"

    @property
    def widths(self):
        return [self.ch * m for m in self.ch_mult]


conv3 = partial(nn.Conv2d, kernel_size=3, padding=1)


class ResBlock(nn.Module):
    def __init__(self, c_in, c_out, groups):
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(groups, c_in, eps=1e-6), conv3(c_in, c_out)
        self.norm2, self.conv2 = nn.GroupNorm(groups, c_out, eps=1e-6), conv3(c_out, c_out)
        self.changes_width = c_in != c_out
        if self.changes_width:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.nin_shortcut(x) if self.changes_width else x)


class AttnBlock(nn.Module):
    """One head as wide as the stage; every pixel attends to every pixel."""

    def __init__(self, c, groups):
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, eps=1e-6)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x):
        B, C, H, W = x.shape
        n = self.norm(x)
        q, k, v = (f(n).flatten(2).mT for f in (self.q, self.k, self.v))    # (B, H*W, C)
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj_out(y.mT.reshape(B, C, H, W))


class Resize(nn.Module):
    """Half the size, padded right and below only, as the checkpoint was trained; or twice the size."""

    def __init__(self, c, up):
        super().__init__()
        self.up = up
        self.conv = conv3(c, c) if up else nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.pad(x, (0, 1, 0, 1)))


class Middle(nn.Module):
    def __init__(self, c, groups):
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = ResBlock(c, c, groups), AttnBlock(c, groups), ResBlock(c, c, groups)

    def forward(self, x):
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """n residual blocks at one resolution, attention after each of them at the lowest one, then a change of size."""

    def __init__(self, c_in, c_out, n, groups, lowest, resize):
        super().__init__()
        self.block = nn.ModuleList(ResBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(n))
        self.attn = nn.ModuleList(AttnBlock(c_out, groups) for _ in range(n if lowest else 0))
        self.resize = resize                # "downsample", "upsample", or "" in the encoder's last and the decoder's last
        if resize:
            self.add_module(resize, Resize(c_out, up=resize == "upsample"))

    def forward(self, x):
        for i, block in enumerate(self.block):
            x = self.attn[i](block(x)) if self.attn else block(x)
        return self.get_submodule(self.resize)(x) if self.resize else x


class Encoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        widths, groups, last = cfg.widths, cfg.norm_groups, len(cfg.ch_mult) - 1
        self.conv_in = conv3(cfg.in_channels, cfg.ch)
        self.down = nn.ModuleList()
        for i, (c_in, c_out) in enumerate(zip([cfg.ch] + widths, widths)):
            self.down.append(Level(c_in, c_out, cfg.n_res, groups, lowest=i == last, resize="downsample" if i < last else ""))
        self.mid = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = conv3(widths[-1], 2 * cfg.z_channels)

    def forward(self, images):
        x = self.conv_in(images)                                    # (B, ch, H, W)
        for level in self.down:
            x = level(x)                                            # (B, C, h, w) at last
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))    # (B, 2z, h, w)


class Decoder(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        widths, groups, last = cfg.widths, cfg.norm_groups, len(cfg.ch_mult) - 1
        self.conv_in = conv3(cfg.z_channels, widths[-1])
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList()                                   # up[0] is full resolution, and runs last
        for i, (c_in, c_out) in enumerate(zip(widths[1:] + widths[-1:], widths)):
            self.up.append(Level(c_in, c_out, cfg.n_res + 1, groups, lowest=i == last, resize="upsample" if i > 0 else ""))
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = conv3(widths[0], cfg.in_channels)

    def forward(self, z):
        x = self.mid(self.conv_in(z))                               # (B, C, h, w)
        for level in reversed(self.up):
            x = level(x)                                            # (B, ch, H, W) at last
        return self.conv_out(F.silu(self.norm_out(x)))


class VAE(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.encoder, self.decoder = cfg, Encoder(cfg), Decoder(cfg)
        self.quant_conv = nn.Conv2d(2 * cfg.z_channels, 2 * cfg.embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(cfg.embed_dim, cfg.z_channels, 1)

    @property
    def factor(self):
        return 2 ** (len(self.cfg.ch_mult) - 1)

    def moments(self, images):
        """(B,3,H,W) in [-1,1] -> mean and log-variance of the raw latents, (B,z,h,w) each."""
        H, W = images.shape[-2:]
        assert H % self.factor == W % self.factor == 0, f"{H}x{W} image: both sides must be multiples of {self.factor}"
        mean, logvar = self.quant_conv(self.encoder(images)).float().chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)

    def normalise(self, mean, logvar, noise=None):
        """A draw from the posterior (its mean when there is no noise), scaled for the flow model."""
        z = mean if noise is None else mean + (0.5 * logvar).exp() * noise
        return self.cfg.scale * (z - self.cfg.shift)

    def encode(self, images, noise=None):
        return self.normalise(*self.moments(images), noise)

    def decode(self, latents):
        return self.decoder(self.post_quant_conv(latents / self.cfg.scale + self.cfg.shift))

    def pictures(self, latents):
        """Latents -> 8-bit grey pictures (B,H,W): channels averaged, [-1,1] to 0..255, rounded (the release truncates)."""
        pixels = self.decode(latents).float().mean(dim=1)
        return (pixels.clamp(-1, 1) * 127.5 + 127.5).round().byte()


if __name__ == "__main__":
    vae = VAE(VAEConfig())
    print(f"kl-f16: {sum(p.numel() for p in vae.parameters()) / 1e6:.1f} M parameters")
    for name, module in vae.named_modules():
        if isinstance(module, (Level, Middle)) or name.endswith(("conv_in", "conv_out", "quant_conv")):
            module.register_forward_hook(lambda m, x, y, name=name: print(f"{name:16} {tuple(x[0].shape)} -> {tuple(y.shape)}"))
    with torch.no_grad():
        vae.decode(vae.encode(torch.zeros(1, 3, 256, 256)))
