"""What one GPU does: seconds, share of its peak and memory of each stage's micro-step.

    python -m bench.gpu         # wants a GPU of 80 GB and some minutes

Real sizes, random weights, texts of 256 tokens (stage 1: 32 + 256). The VAE and RAD-DINO at 518
pixels are within the step. One process, nothing sharded. docs/results.md has what an H100 gave.
"""
import time
from dataclasses import dataclass

import torch

from common.cli import InputError, cli, override
from common.processes import autocast
from model import UniX, UniXConfig
from repa import Projector
from train_gen import GenStep, TrainConfig
from train_und import UndStep
from training import cost, optim
from training.batches import Batch
from training.peak import peak_flops
from vae import VAE, VAEConfig
from vision import RAD_DINO, ViT

PROMPT, REPORT = 32, 256        # tokens
INNER = 2048                    # of REPA's projector


@dataclass
class GPUConfig:
    repeats: int = 8            # micro-steps that are timed together
    compile: bool = False       # measure stage 2 compiled as well, which takes minutes to begin


@dataclass
class Case:
    """One micro-step."""
    stage: int
    images: int
    grid: int = 0               # rows of the latents, of 16 pixels each; 0 in stage 1
    recompute: bool = False
    compile: bool = False

    def __str__(self):
        words = [f"stage {self.stage}", f"{self.images} images"]
        if self.recompute:
            words.append("recompute")
        if self.compile:
            words.append("compiled")
        return ", ".join(words)


CASES = [Case(1, 8, recompute=True), Case(2, 8, 16), Case(2, 32, 16), Case(3, 4, 32)]


def module_of(case):
    """The step module of a stage with random weights, its UniX."""
    unix = UniX(UniXConfig(generation=case.stage > 1))
    unix.recompute = case.recompute
    if case.stage == 1:
        return UndStep(unix).train(), unix
    unix.freeze("u")
    vae = VAE(VAEConfig()).to(memory_format=torch.channels_last)
    encoder = projector = None
    if case.stage == 2:
        encoder = ViT(RAD_DINO)
        projector = Projector(unix.cfg.n_embd, INNER, RAD_DINO.n_embd)
    return GenStep(unix, vae, encoder, projector, TrainConfig()).train(), unix


def batch_of(case):
    """Black images, random texts."""
    B = case.images
    T, size = (PROMPT + REPORT, 384) if case.stage == 1 else (REPORT, 16 * case.grid)
    ids = torch.randint(4, 100_000, (B, T))
    labels = None
    if case.stage == 1:
        labels = ids.roll(-1, 1)
        labels[:, :PROMPT] = -100
    batch = Batch(
        index=torch.arange(B),
        images=torch.zeros(B, 1, size, size, dtype=torch.uint8),
        ids=ids,
        valid=torch.ones(B, T, dtype=torch.bool),
        labels=labels,
    )
    if case.stage > 1:
        batch.normal = torch.randn(B)
        batch.noise, batch.posterior = torch.randn(2, B, 16, case.grid, case.grid)
        batch.dropped = torch.zeros(B, dtype=torch.bool)
    return batch


def cost_of(case):
    """What training/cost.py is asked about it."""
    if case.stage == 1:
        return cost.Step("u", und=case.images, text=PROMPT + REPORT, answer=REPORT,
                         recompute=case.recompute)
    step = cost.Step("g", gen=case.images, report=REPORT, size=16 * case.grid,
                     latents=case.grid ** 2, vae=VAEConfig(), recompute=case.recompute)
    if case.stage == 2:
        step.projector, step.encoder = INNER, RAD_DINO
    return step


def measure(case, repeats):
    """Print what a micro-step takes: timed going forward and backward, its memory with updates."""
    device = torch.device("cuda")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with device:
        module, unix = module_of(case)
        batch = batch_of(case)
    cfg = TrainConfig(batch_size=case.images, micro_batch=case.images)
    optimizers = optim.optimizers(module, cfg)
    average = optim.EMA(unix, 0.999)
    if case.compile:
        module.compile()

    def micro_step():
        with autocast(device, "bfloat16"):
            output = module(batch)
        if case.stage == 1:
            loss = output / case.images / REPORT
        else:
            mse, align = output
            loss = (mse + 0.5 * align).mean()
        loss.backward()

    def update():
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optim.step_all(optimizers, 1e-5)
        average.update()

    # warm up; after an update the optimizer's averages are there, too
    for _ in range(3):
        micro_step()
    update()
    micro_step()
    torch.cuda.synchronize()

    # time micro-steps together, since a synchronisation after each would cost time itself
    began = time.perf_counter()
    for _ in range(repeats):
        micro_step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / repeats

    # the peak of memory: another micro-step between two updates
    update()
    micro_step()
    update()
    torch.cuda.synchronize()

    step = cost_of(case)
    share = "of a GPU without a known peak"
    peak = peak_flops(device)
    if peak:
        share = f"{cost.model_flops(unix.cfg, step) / seconds / peak:.2f} of the peak"
    allocated = torch.cuda.max_memory_allocated() / 1e9
    parts = cost.memory(unix.cfg, step)
    estimate = (parts["total"] - parts["libraries"]) / 1e9
    print(f"{case}: {1e3 * seconds:.0f} ms, {case.images / seconds:.1f} images/s, {share}, "
          f"{allocated:.1f} GB allocated, {estimate:.1f} estimated", flush=True)


def main(argv):
    cfg = override(GPUConfig(), argv, __doc__)
    if not torch.cuda.is_available():
        raise InputError("there is no CUDA device here.")
    print(torch.__version__, torch.cuda.get_device_name())
    cases = list(CASES)
    if cfg.compile:
        cases.append(Case(2, 8, 16, compile=True))
    for case in cases:
        measure(case, cfg.repeats)


if __name__ == "__main__":
    cli(main)
