"""Train a small autoencoder of vae.py from nothing, for pictures that kl-f16 was not made for: the phantom.

    python -m phantom.train_vae                      # datasets/phantom/gen-* -> out/phantom/vae, with reconstructions.png

UniX takes kl-f16 as it is; this is no part of the paper. What differs from how kl-f16 was trained:
- no LPIPS, no discriminator: error of the pixels and of their differences to the neighbours (a thin line is little else);
- Muon instead of Adam for the convolutions, and residual branches that start at zero: far fewer steps;
- the image sizes take turns, so that one autoencoder serves all of them.
"""
import math
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

from weights import checkpoint
from common import processes as common
from training import batches as data
from training import optim
from training.latents import as_seen, posteriors
from training import run as runs
import weights
from common.processes import InputError, print0
from vae import VAE, VAEConfig


@dataclass
class TrainConfig:
    # I/O
    out: str = "out/phantom/vae"                    # run directory: checkpoints, log.jsonl, reconstructions.png
    data: str = "datasets/phantom"          # root of the packed data sets gen-<size>
    sizes: list[int] = field(default_factory=list)     # image sizes; the batch of a smaller one has as many more images
    preset: str = "phantom"                 # a row of PRESETS
    overwrite: bool = False                 # start anew where --out holds a run
    save_every: int = 500                   # steps from checkpoint to checkpoint
    log_every: int = 20                     # steps from log line to log line
    # network (VAEConfig)
    z_channels: int = 16                    # channels of the latents
    ch: int = 16                            # channels at full resolution
    ch_mult: list[int] = field(default_factory=list)   # channels of each level, times ch
    n_res: int = 1                          # residual blocks a level
    norm_groups: int = 8                    # of every GroupNorm
    # loss
    l1: float = 0.5                         # weight of the absolute error
    l2: float = 2.0                         # weight of the squared error: finds what is small and bright
    scales: int = 2                         # the differences are compared at full size, half size, ...
    kl: float = 1e-4                        # weight of the KL divergence, a mean over latents
    # optimizer
    steps: int = 2800                       # of training
    batch_size: int = 8                     # images a step at the largest size, over all processes
    lr: float = 3e-3                        # highest learning rate, Muon's and AdamW's
    warmup: int = 50                        # steps of linear warm-up; then a cosine down to 0
    optimizer: str = "muon"                 # Muon for the kernels, AdamW for the rest; or "adamw" for all
    weight_decay: float = 0.0               # of AdamW
    clip: float = 1.0                       # largest norm of the gradient
    ema: float = 0.99                       # decay of the average that is saved as the VAE
    # system
    seed: int = 0                           # of weights and samples
    device: str = "auto"                    # auto, cpu, cuda
    dtype: str = "bfloat16"                 # of the convolutions; parameters stay float32
    threads: int = 0                        # CPU threads, 0: torch's choice


PRESETS = {"phantom": dict(sizes=[128, 64], ch=16, ch_mult=[1, 1, 2, 4, 8], n_res=1, norm_groups=8)}


def build(cfg):
    """A fresh VAE whose residual branches add nothing yet and whose posterior is narrow."""
    torch.manual_seed(cfg.seed)
    vae = VAE(VAEConfig(cfg.ch, cfg.ch_mult, cfg.n_res, z_channels=cfg.z_channels, embed_dim=cfg.z_channels,
                        norm_groups=cfg.norm_groups, scale=1.0, shift=0.0))     # these two are measured at the end
    for name, p in vae.named_parameters():
        if name.endswith(("conv2.weight", "proj_out.weight")):
            nn.init.zeros_(p)
    nn.init.constant_(vae.quant_conv.bias[cfg.z_channels:], -4.0)
    return vae


class VAEStep(nn.Module):
    """What one step computes; the one module that is wrapped in DDP."""

    def __init__(self, vae, cfg):
        super().__init__()
        self.vae, self.cfg = vae, cfg

    def forward(self, images, noise):
        """images (B,3,H,W), noise (B,z,h,w) -> the loss, and its parts (absolute error, KL) without gradient."""
        mean, logvar = self.vae.moments(images)
        z = mean + (0.5 * logvar).exp() * noise
        error = self.vae.decoder(self.vae.post_quant_conv(z)).float() - images
        kl = 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar).mean()
        penalty = lambda e: self.cfg.l1 * e.abs().mean() + self.cfg.l2 * e.square().mean()
        loss, e = self.cfg.kl * kl + penalty(error), error
        for k in range(self.cfg.scales):
            e = F.avg_pool2d(e, 2) if k else e
            loss = loss + (penalty(e.diff(dim=-1)) + penalty(e.diff(dim=-2))) / 2 ** k
        return loss, torch.stack([error.abs().mean(), kl]).detach()


def batch(sets, cfg, step, process):
    """Images and noise of one step for this process: size and samples depend on (seed, step, index) alone."""
    largest, shares = max(cfg.sizes), [1.0 if size == max(cfg.sizes) else 1 / 5 for size in cfg.sizes]
    turn = torch.multinomial(torch.tensor(shares), 1, generator=common.generator(cfg.seed, step)).item()
    pictures, size, numbers, noise = sets[turn], cfg.sizes[turn], [], []
    side = size // 2 ** (len(cfg.ch_mult) - 1)
    for index in range(process.rank, cfg.batch_size * largest // size, process.world):
        rng = common.generator(cfg.seed, step, index)
        numbers.append(torch.randint(len(pictures), (), generator=rng).item())
        noise.append(torch.randn(cfg.z_channels, side, side, generator=rng))
    return as_seen(pictures, numbers, process.device), torch.stack(noise).to(process.device)


def measure(vae, sets, device, at_most=1000):
    """Scale and shift that bring the latents of the sets' first images to mean 0 and variance 1."""
    mean, logvar = torch.cat([posteriors(vae, p, range(min(at_most, len(p))), device).flatten(1) for p in sets], dim=1)
    return 1 / math.sqrt(mean.var().item() + logvar.exp().mean().item()), mean.mean().item()


@torch.no_grad()
def reconstructions(vae, sets, path, device, columns=6):
    """Originals over reconstructions, every size, three times enlarged."""
    columns = min(columns, *map(len, sets))
    rows, width = [], columns * max(pictures.size for pictures in sets)
    for pictures in sets:
        images = as_seen(pictures, range(columns), device)
        for part in (images, vae.decode(vae.encode(images))):
            row = torch.cat(list(((part.mean(1) + 1) * 127.5).round().clamp(0, 255).byte()), dim=1)
            rows.append(F.pad(row, (0, width - row.shape[1])).cpu())
    Image.fromarray(torch.cat(rows).repeat_interleave(3, 0).repeat_interleave(3, 1).numpy()).save(path)


def main(argv):
    cfg = common.override(TrainConfig(), argv, __doc__, PRESETS)
    process = common.setup(cfg.device, cfg.threads)
    runs.agree(process, cfg)
    if cfg.batch_size % process.world:
        raise InputError(f"--batch-size {cfg.batch_size} does not divide into {process.world} processes.")
    sets = [data.Packed(cfg.data, "gen", size, "train") for size in cfg.sizes]

    # model, optimizers and average; those of the newest checkpoint when the run goes on
    resumed = checkpoint.start(cfg.out, cfg, cfg.overwrite)
    vae = build(cfg).to(process.device)
    opts, ema, start = optim.optimizers(vae, cfg, ("encoder.conv_in", "decoder.conv_out")), optim.EMA(vae, cfg.ema), 0
    if resumed:
        state, start = torch.load(resumed / "state.pt", weights_only=True), checkpoint.read_config(resumed)["step"]
        vae.load_state_dict(state["live"])
        for opt, kept in zip(opts, state["optimizers"]):
            opt.load_state_dict(kept)
        ema.steps, ema.shadow = start, weights.find_vae(resumed).to(process.device).state_dict()
    net = VAEStep(vae, cfg)
    net = nn.parallel.DistributedDataParallel(net) if process.world > 1 else net
    if process.master:
        checkpoint.tidy(cfg.out, anew=resumed is None)
        log = runs.Log(Path(cfg.out) / "log.jsonl", start)
    print0(f"{sum(p.numel() for p in vae.parameters()):,} parameters, {len(sets[0])} images")

    def save(step):
        ema.swap()      # the averaged weights are the VAE; the average holds the live ones until they change back
        scale, shift = measure(vae, sets, process.device, at_most=1000 if step == cfg.steps else 100)
        vae.cfg = replace(vae.cfg, scale=scale, shift=shift)
        checkpoint.save(cfg.out, step, config={**weights.describe(vae=vae), "settings": asdict(cfg)},
                        tensors={"vae": vae.state_dict()},
                        state={"live": ema.shadow, "optimizers": [opt.state_dict() for opt in opts]})
        if step == cfg.steps:
            reconstructions(vae, sets, Path(cfg.out) / "reconstructions.png", process.device)
            print0(f"the VAE is in {cfg.out}; its latents are normalised with scale {scale:.4f}, shift {shift:.4f}")
        ema.swap()

    bar = tqdm(range(start, cfg.steps), initial=start, total=cfg.steps, desc="VAE", unit="step", disable=not process.master)
    seen, began, stop = 0, time.time(), runs.Stop()
    for step in bar:
        lr = optim.lr_at(step, cfg.lr, cfg.warmup, cfg.steps, "cosine")
        images, noise = batch(sets, cfg, step, process)
        with common.autocast(process.device, cfg.dtype):
            loss, parts = net(images, noise)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(vae.parameters(), cfg.clip)
        optim.step_all(opts, lr)
        ema.update()
        seen += len(images) * process.world
        if process.master and (step + 1) % cfg.log_every == 0:
            speed = seen / (time.time() - began)
            l1, kl = parts.tolist()                                         # CPU-GPU sync point
            bar.set_postfix(loss=f"{loss.item():.4f}", img_s=f"{speed:.0f}")
            log.write(step=step + 1, size=images.shape[-1], loss=loss.item(), l1=l1, kl=kl, lr=lr, norm=norm.item(),
                      img_s=speed)
        saving = stop.agree(process.device) or (step + 1) % cfg.save_every == 0 or step + 1 == cfg.steps
        if process.master and saving:
            save(step + 1)
        if stop.now:
            break
    stop.release()


if __name__ == "__main__":
    common.cli(main)
