"""Store the VAE's posterior of every image beside its shard: train_gen.py then needs no encoder.

    python -m training.latents --preset phantom      # the laptop run: 64 and 128 px
    python -m training.latents                       # MIMIC-CXR: 256 and 512 px with kl-f16
    python -m training.latents --vae out/phantom/vae --data datasets/phantom --sizes 64 128

A posterior is a mean and a log-variance for each number of the latents; training draws from it
anew at every step. Each shard gets a file 00000.latents.safetensors, which holds hashes of its VAE
and its data set. A shard whose file fits is passed over, so a run that was interrupted goes on with
the same command. Processes of torchrun share the shards.
"""
from dataclasses import dataclass, field
from functools import partial

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tqdm import tqdm

import weights
from common import locks
from common.cli import cli, override
from common.files import replacing
from common.finite import ADVICE
from common.packed import Packed
from common.processes import on_first, print0, setup


@dataclass
class LatentsConfig:
    data: str = "datasets/mimic"        # root of the packed data sets gen-<size>
    vae: str = "pretrained/vae"         # a run of phantom.train_vae, or a kl-f16
    sizes: list[int] = field(default_factory=lambda: [256, 512])    # image sizes to encode
    batch: int = 16                     # images at once
    device: str = "auto"                # auto, cpu, cuda, mps
    threads: int = 0                    # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        assert self.batch > 0, f"--batch {self.batch} must be 1 or more."


PRESETS = {
    "phantom": dict(data="datasets/phantom", vae="out/phantom/vae", sizes=[64, 128]),
}


def as_seen(pictures, numbers, device):
    """Images of a packed data set as the network sees them -> (B, 3, H, W) in [-1, 1]."""
    grey = torch.stack([pictures.image(i) for i in numbers]).to(device)
    return (grey.float() / 127.5 - 1)[:, None].repeat(1, 3, 1, 1)


@torch.no_grad()
def posteriors(vae, pictures, numbers, device, batch=16, name=None):
    """Mean and log-variance of images -> (2, N, z, h, w), on the CPU. name: of a progress bar.

    FloatingPointError names the first image whose latents are no numbers.
    """
    moments = []
    for start in tqdm(range(0, len(numbers), batch), desc=name, disable=name is None):
        images = as_seen(pictures, numbers[start:start + batch], device)
        moments.append(torch.stack(vae.moments(images)).cpu())
    moments = torch.cat(moments, dim=1)
    finite = torch.isfinite(moments).transpose(0, 1).flatten(1).all(dim=1)              # (N,)
    if not finite.all():
        name = pictures.rows[numbers[int(finite.int().argmin())]]["id"]
        raise FloatingPointError(f"the latents of image {name} are not finite: {ADVICE}")
    return moments


def origin(path):
    """Hashes of the VAE and the data set of a file of latents; {} if it is missing or damaged."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata()
    except (FileNotFoundError, SafetensorError):
        return {}


def encode(cfg, size, vae, process):
    """Write the latents of those shards of a data set that do not have them yet."""
    pictures = Packed(cfg.data, "gen", size)
    source = {"vae": weights.vae_hash(vae), "data": pictures.info["hash"]}
    for shard in range(process.rank, len(pictures.shards), process.world):
        path = pictures.shards[shard].with_suffix(".latents.safetensors")
        name = f"{pictures.directory.name} {pictures.shards[shard].stem}"
        if origin(path) == source:
            print(f"{name}: encoded already")
            continue
        numbers = [i for i, place in enumerate(pictures.places) if place[0] == shard]
        mean, logvar = posteriors(vae, pictures, numbers, process.device, cfg.batch, name)
        with replacing(path) as temporary:
            save_file({"mean": mean, "logvar": logvar}, temporary, source)


def advise(cfg, stored):
    """Say, at the start of a run that has no stored latents, which command makes them."""
    if not stored:
        vae = cfg.vae if cfg.vae else cfg.init
        options = f"--vae {vae} --data {cfg.data} --sizes {cfg.size}"
        print0("the VAE encodes every image at every step; it does so once, and steps are shorter, "
               f"after: python -m training.latents {options}")


def main(argv):
    cfg = override(LatentsConfig(), argv, __doc__, PRESETS)
    process = setup(cfg.device, cfg.threads)
    vae = weights.find_vae(cfg.vae).to(process.device)
    # nobody prepares the data anew meanwhile, or stores latents of another VAE
    on_first(process, partial(locks.take, cfg.data))
    for size in cfg.sizes:
        encode(cfg, size, vae, process)


if __name__ == "__main__":
    cli(main)
