"""Train a small autoencoder of vae.py from nothing, for pictures that kl-f16 was not made for.

    python -m phantom.train_vae        # datasets/phantom/gen-* -> out/phantom/vae

It also draws reconstructions.png: originals over what the autoencoder makes of them. UniX takes
kl-f16 as it is; this is no part of the paper. What differs from how kl-f16 was trained:
- no LPIPS and no discriminator: the error of the pixels, and of their differences to the neighbours
  (a thin line is little else);
- Muon instead of Adam for the convolutions, and residual branches that start at zero: both save
  steps;
- the image sizes take turns, so that one autoencoder serves all of them.
"""
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors.torch import load_file

import weights
from common.cli import InputError, cli, override
from common.images import captioned, save_png
from common.packed import Packed
from common.processes import all_sum, generator, print0
from training import optim
from training.latents import as_seen, posteriors
from training.run import Run, RunConfig
from vae import VAE, VAEConfig
from weights.knowledge import content


@dataclass
class TrainConfig(RunConfig):
    # files
    preset: str = "phantom"             # its settings stand at the end of --help
    data: str = "datasets/phantom"      # root of the packed data sets; reads <data>/gen-<size>
    out: str = "out/phantom/vae"        # the run's directory; resumes when it holds a checkpoint
    sizes: list[int] = field(default_factory=list)      # image sizes that take turns
    log_every: int = 20                 # steps between lines of log.jsonl
    # network (VAEConfig)
    z_channels: int = 16                # channels of the latents
    ch: int = 16                        # channels at full resolution
    ch_mult: list[int] = field(default_factory=list)    # channels of each level, times ch
    n_res: int = 1                      # residual blocks a level
    norm_groups: int = 8                # groups of every GroupNorm
    # loss
    l1: float = 0.5                     # weight of the absolute error
    l2: float = 2.0                     # weight of the squared error: small, bright things
    scales: int = 2                     # sizes at which differences count: full, half, ...
    kl: float = 1e-4                    # weight of the KL divergence, a mean over latents
    # optimizer
    steps: int = 2800                   # optimizer steps in all
    batch_size: int = 8                 # images a step at the largest size, over all processes
    lr: float = 3e-3                    # highest learning rate, Muon's and AdamW's
    warmup: int = 50                    # steps of linear warm-up; then a cosine down to 0
    compile: bool = False               # torch.compile encoder and decoder: slow to start
    optimizer: Literal[*optim.OPTIMIZERS] = "muon"      # muon: for kernels, AdamW for the rest
    decay: Literal[*optim.DECAYS] = "cosine"            # learning rate after warm-up
    ema: float = 0.99                   # decay of the average, which is saved as the VAE

    def __post_init__(self):
        super().__post_init__()
        counts = [self.z_channels, self.ch, self.n_res, self.norm_groups, self.scales,
                  *self.ch_mult, *self.sizes]
        assert min(counts) >= 1, "sizes, channels, blocks, groups and --scales must be 1 or more."
        assert min(self.l1, self.l2, self.kl) >= 0, "--l1, --l2 and --kl must be 0 or more."
        factor = 2 ** max(0, len(self.ch_mult) - 1)
        for size in self.sizes:
            assert size % factor == 0, (
                f"--sizes {size} is no multiple of {factor}, by which {len(self.ch_mult)} levels "
                "shrink a picture.")
            assert size // 2 ** (self.scales - 1) >= 2, (
                f"--scales {self.scales} leaves nothing of a picture of {size} pixels.")


PRESETS = {
    "phantom": dict(sizes=[128, 64], ch=16, ch_mult=[1, 1, 2, 4, 8], n_res=1, norm_groups=8),
}

# kernels that AdamW keeps when Muon has the others: they touch pixels, not features
ADAMW_ONLY = ("encoder.conv_in", "decoder.conv_out")

SMALLER = 1 / 5         # how often a smaller size has its turn, for each turn of the largest


class VAEStep(nn.Module):
    """What one step computes; the one module that is wrapped in DDP."""

    def __init__(self, vae, cfg):
        super().__init__()
        self.vae = vae
        self.blocks = [vae.encoder, vae.decoder]        # what --compile compiles
        self.cfg = cfg

    def penalty(self, error):
        return self.cfg.l1 * error.abs().mean() + self.cfg.l2 * error.square().mean()

    def forward(self, images, noise):
        """images (B,3,H,W), noise (B,z,h,w) -> loss; absolute error and KL divergence, detached."""
        mean, logvar = self.vae.moments(images)
        z = mean + (0.5 * logvar).exp() * noise                             # (B, z, h, w)
        error = self.vae.decoder(self.vae.post_quant_conv(z)).float() - images      # (B, 3, H, W)
        kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
        loss = self.cfg.kl * kl + self.penalty(error)

        # differences to the neighbours, at full size, half size, ...
        scaled = error
        for k in range(self.cfg.scales):
            if k > 0:
                scaled = F.avg_pool2d(scaled, 2)
            differences = self.penalty(scaled.diff(dim=-1)) + self.penalty(scaled.diff(dim=-2))
            loss = loss + differences / 2 ** k
        return loss, torch.stack([error.abs().mean(), kl]).detach()


# ---- what the loop needs ----

def build(cfg):
    """A fresh VAE whose residual branches add nothing yet and whose posterior is narrow."""
    torch.manual_seed(cfg.seed)
    try:
        sizes = VAEConfig(
            ch=cfg.ch, ch_mult=cfg.ch_mult, n_res=cfg.n_res, z_channels=cfg.z_channels,
            embed_dim=cfg.z_channels, norm_groups=cfg.norm_groups,
            scale=1.0, shift=0.0)       # these two are measured when it is saved
    except AssertionError as error:     # sizes that do not fit each other
        raise InputError(f"{error}.") from None
    vae = VAE(sizes)
    for name, p in vae.named_parameters():
        if name.endswith(("conv2.weight", "proj_out.weight")):
            nn.init.zeros_(p)
    nn.init.constant_(vae.quant_conv.bias[cfg.z_channels:], -4.0)           # of the log-variance
    return vae


def sample_batch(sets, cfg, step, process):
    """This process's share of a step: (images (B,3,S,S), noise (B,z,s,s), ids of the images).

    Size and samples depend on (seed, step, index) alone. Images of half the side come twice as many
    a batch.
    """
    largest = max(cfg.sizes)
    shares = torch.tensor([1.0 if size == largest else SMALLER for size in cfg.sizes])
    turn = torch.multinomial(shares, 1, generator=generator(cfg.seed, step)).item()
    pictures = sets[turn]
    side = pictures.size // 2 ** (len(cfg.ch_mult) - 1)
    numbers, noise = [], []
    for index in range(process.rank, cfg.batch_size * largest // pictures.size, process.world):
        rng = generator(cfg.seed, step, index)
        numbers.append(torch.randint(len(pictures), (), generator=rng).item())
        noise.append(torch.randn(cfg.z_channels, side, side, generator=rng))
    images = as_seen(pictures, numbers, process.device)
    ids = [pictures.rows[i]["id"] for i in numbers]
    return images, torch.stack(noise).to(process.device), ids


def measure(vae, sets, device, at_most):
    """Scale and shift that bring latents to mean 0, variance 1, from the sets' first images."""
    moments = []                        # mean and log-variance of all latents, (2, n) a set
    for pictures in sets:
        numbers = range(min(at_most, len(pictures)))
        moments.append(posteriors(vae, pictures, numbers, device).flatten(1))
    mean, logvar = torch.cat(moments, dim=1)
    variance = mean.var().item() + logvar.exp().mean().item()
    return 1 / math.sqrt(variance), mean.mean().item()


@torch.no_grad()
def reconstructions(vae, sets, device, columns=6):
    """A sheet to look at: the first images of every size over what is left of them -> PIL image."""
    columns = min(columns, *map(len, sets))
    largest = max(pictures.size for pictures in sets)
    shown, captions = [], []
    for pictures in sets:
        originals = torch.stack([pictures.image(i) for i in range(columns)])
        latents = vae.encode(as_seen(pictures, range(columns), device))
        for name, images in (("given", originals), ("decoded", vae.pictures(latents).cpu())):
            times = largest // pictures.size                    # smaller ones enlarged to the same
            enlarged = images.repeat_interleave(times, 1).repeat_interleave(times, 2)
            shown += list(enlarged.numpy())
            captions += [f"{name}, {pictures.size} px"] * columns
    return captioned(shown, captions, columns, scale=3)


def save(run, vae, sets):
    """Write a checkpoint. Its VAE is the average, with the scale and shift that belong to it."""
    last = run.step == run.cfg.steps
    with run.average():
        if run.master:
            at_most = 1000 if last else 100
            scale, shift = measure(vae, sets, run.device, at_most)
            if last:
                sheet = reconstructions(vae, sets, run.device)
                save_png(sheet, Path(run.cfg.out) / "reconstructions.png")
                print(f"latents are normalised with scale {scale:.4f}, shift {shift:.4f}")
            vae.cfg = replace(vae.cfg, scale=scale, shift=shift)
    # every parameter is trained, so the average, where one is kept, is a whole VAE
    live = vae.state_dict()
    tensors = {"vae": {**live, **run.ema.whole()}, "live": live}
    run.save({**weights.describe(vae=vae), "knows": content(sets[0])}, tensors)


# ---- the run ----

def main(argv):
    cfg = override(TrainConfig(), argv, __doc__, PRESETS)
    run = Run(cfg, stage="VAE")                     # finds the checkpoint to go on from
    if cfg.batch_size % run.world:
        raise InputError(f"--batch-size {cfg.batch_size} does not divide into {run.world} "
                         "processes.")

    # data: one packed data set a size
    sets = [Packed(cfg.data, "gen", size, "train") for size in cfg.sizes]

    # model: from nothing, or the weights that train; what is saved as the VAE is their average
    vae = build(cfg).to(run.device)
    if run.resume:
        vae.load_state_dict(load_file(run.resume / "live.safetensors"))
    module = VAEStep(vae, cfg).train()

    # optimizers and average first, DDP last
    run.prepare(module, average_of=vae, adamw_only=ADAMW_ONLY)
    print0(f"{sum(p.numel() for p in vae.parameters()):,} parameters, {len(sets[0])} images")

    # one forward and backward pass a step; the size of its images changes
    while run.step < cfg.steps and not run.stopping:
        images, noise, ids = sample_batch(sets, cfg, run.step, run.process)
        with run.autocast():
            loss, parts = run.module(images, noise)
        loss.backward()                             # DDP averages over processes, as the loss does
        run.count(img=len(images))
        run.update([loss.detach()], [ids])

        # what happens between steps
        if run.logging:
            means = all_sum(torch.stack([loss.detach(), *parts])) / run.world
            mean_loss, l1, kl = means.tolist()      # CPU-GPU sync
            run.log(size=images.shape[-1], loss=mean_loss, l1=l1, kl=kl)
        if run.saving:
            save(run, vae, sets)
    run.close()


if __name__ == "__main__":
    cli(main)
