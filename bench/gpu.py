"""What one GPU does: each stage's micro-step, reports read, pictures drawn.

    python -m bench.gpu                         # wants a GPU of 80 GB and some minutes
    python -m bench.gpu --only "stage 2, 8"     # the micro-steps whose name has these words

Real sizes, random weights, texts of 256 tokens (stage 1: 32 + 256), one of them dropped. The VAE
and RAD-DINO at 518 pixels are within the step; "stored" has the latents on the disk and RAD-DINO at
224 pixels; "LoRA" trains adapters, without RAD-DINO. One process, nothing sharded. docs/results.md
has what an H100 and an H200 gave.
"""
import gc
import time
from dataclasses import dataclass, replace

import torch

from common.cli import InputError, cli, override
from common.processes import autocast
from model import UniX, UniXConfig
from repa import Projector
from sample import Sampling, generate_images, generate_reports
from train_gen import GenStep, TrainConfig
from train_und import UndStep
from training import cost, frozen, lora, memory, optim
from training.batches import Batch
from training.compiled import compile_blocks
from training.peak import peak_flops
from vae import VAE, VAEConfig
from vision import RAD_DINO, ViT

PROMPT, REPORT = 32, 256        # tokens
INNER = 2048                    # of REPA's projector


@dataclass
class GPUConfig:
    repeats: int = 8            # micro-steps that are timed together
    only: str = ""              # words in the names of the micro-steps to time; "": all, and use


@dataclass
class Case:
    """One micro-step."""
    stage: int
    images: int
    grid: int = 0               # rows of the latents, of 16 pixels each; 0 in stage 1
    recompute: bool = False
    compile: bool = False
    stored: bool = False        # latents come with the batch, and RAD-DINO sees 224 pixels
    lora: int = 0               # rank of adapters, which are trained instead of weights

    def __str__(self):
        words = [f"stage {self.stage}", f"{self.images} images"]
        if self.recompute:
            words.append("recompute")
        if self.compile:
            words.append("compiled")
        if self.stored:
            words.append("stored")
        if self.lora:
            words.append(f"LoRA of rank {self.lora}")
        return ", ".join(words)


CASES = [
    Case(1, 8, recompute=True), Case(1, 8, compile=True),
    Case(2, 8, 16), Case(2, 8, 16, compile=True), Case(2, 8, 16, compile=True, stored=True),
    Case(2, 32, 16), Case(2, 32, 16, compile=True), Case(2, 32, 16, compile=True, stored=True),
    Case(3, 4, 32, compile=True),
    # what the preset one-gpu does, which is meant for 24 GB
    Case(1, 4, compile=True, lora=16), Case(2, 8, 16, compile=True, lora=16),
]


def module_of(case, device):
    """The step module of a stage with random weights, its UniX."""
    unix = UniX(UniXConfig(generation=case.stage > 1))
    unix.recompute = case.recompute
    if case.lora:
        lora.insert(unix, "u" if case.stage == 1 else "g", case.lora, 16.0)
        frozen.in_bfloat16(unix, device, "bfloat16")
    if case.stage == 1:
        return UndStep(unix).train(), unix
    unix.freeze("u")
    vae = VAE(VAEConfig()).to(memory_format=torch.channels_last)
    encoder = projector = None
    if case.stage == 2 and not case.lora:
        encoder = ViT(RAD_DINO)
        projector = Projector(unix.cfg.n_embd, INNER, RAD_DINO.n_embd)
    cfg = TrainConfig(repa_size=224) if case.stored else TrainConfig()
    module = GenStep(unix, vae, encoder, projector, cfg).train()
    # as a run does: frozen matrices in bf16
    for network in (unix, encoder):
        if network is not None:
            frozen.in_bfloat16(network, device, "bfloat16")
    return module, unix


def batch_of(case, text=REPORT):
    """Black images, random texts of so many tokens."""
    B = case.images
    T, size = (PROMPT + text, 384) if case.stage == 1 else (text, 16 * case.grid)
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
        batch.dropped = torch.arange(B) == 0
    if case.stored:
        batch.moments = torch.zeros(B, 2, 16, case.grid, case.grid)
    return batch


def cost_of(case):
    """What training/cost.py is asked about it."""
    usual = dict(compiled=case.compile, lora=case.lora, ema=not case.lora)
    if case.stage == 1:
        return cost.Step("u", und=case.images, text=PROMPT + REPORT, answer=REPORT,
                         recompute=case.recompute, **usual)
    step = cost.Step("g", gen=case.images, report=REPORT, size=16 * case.grid,
                     latents=case.grid ** 2, vae=VAEConfig(), recompute=case.recompute,
                     stored=case.stored, **usual)
    if case.stage == 2 and not case.lora:
        step.projector = INNER
        step.encoder = replace(RAD_DINO, image_size=224) if case.stored else RAD_DINO
    return step


def measure(case, repeats):
    """Print what a micro-step takes: timed going forward and backward, its memory with updates."""
    device = torch.device("cuda")
    gc.collect()                # the last case's blocks: compiled ones refer to themselves
    torch.cuda.empty_cache()
    with device:
        module, unix = module_of(case, device)
        # two shorter texts come first: the graph that the second one makes serves every length
        batches = [batch_of(case, text) for text in (REPORT - 112, REPORT - 64, REPORT)]
    cfg = TrainConfig(batch_size=case.images, micro_batch=case.images)
    optimizers = optim.optimizers(module, cfg)
    average = None if case.lora else optim.EMA(unix, 0.999)
    compile_blocks(module.blocks, case.compile, device)

    def micro_step(batch=batches[-1]):
        with autocast(device, "bfloat16"):
            output = module(batch)
        if case.stage == 1:
            loss = output / case.images / REPORT
        else:
            mse, align = output
            loss = (mse + 0.5 * align).mean()
        loss.backward()

    def update():
        norm = torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        assert norm.isfinite(), f"{case}: a gradient is not finite"
        optim.step_all(optimizers, 1e-5)
        if average:
            average.update()

    # warm up; after an update the optimizer's averages are there, too
    began = time.perf_counter()
    for batch in batches:
        micro_step(batch)
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    update()
    micro_step()
    torch.cuda.synchronize()

    # time micro-steps together, since a synchronisation after each would cost time itself
    began = time.perf_counter()
    for _ in range(repeats):
        micro_step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / repeats

    # the peak of memory: another micro-step between two updates. Making the network took more, in
    # which nothing was in bf16 yet; a run makes it on the CPU
    torch.cuda.reset_peak_memory_stats()
    update()
    micro_step()
    update()
    torch.cuda.synchronize()

    tell(case, unix.cfg, seconds, first)


def tell(case, cfg, seconds, first):
    """Print what a micro-step took. first: seconds of the first three, in which kernels are made.
    """
    step = cost_of(case)
    share = "of a GPU without a known peak"
    peak = peak_flops(torch.device("cuda"))
    if peak:
        share = f"{cost.model_flops(cfg, step) / seconds / peak:.2f} of the peak"
    allocated = torch.cuda.max_memory_allocated() / 1e9
    parts = memory.estimate(cfg, step)
    estimate = (parts["total"] - parts["libraries"]) / 1e9
    print(f"{case}: {1e3 * seconds:.0f} ms, {case.images / seconds:.1f} images/s, {share}, "
          f"{allocated:.1f} GB allocated, {estimate:.1f} estimated, the first three took "
          f"{first:.0f} s", flush=True)


# ---- reading and drawing ----

class Ids:
    """A tokenizer whose texts all have 40 tokens, and whose reports never end."""
    bos, eos = UniXConfig.bos, -1

    def prompt(self, text):
        return [self.bos, *[7] * 40, UniXConfig.eos]

    def decode(self, ids):
        return ids


def seconds_of(call):
    """The second call: the first one makes plans."""
    for _ in range(2):
        torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure_use(device, tokens=130):
    """Print how fast reports of so many tokens are read and pictures drawn, with bf16 weights."""
    torch.set_default_dtype(torch.bfloat16)
    with device:
        model, vae = UniX(UniXConfig()).eval(), VAE(VAEConfig()).eval()
        torch.nn.init.normal_(model.latent_out.weight, std=0.02)
    torch.set_default_dtype(torch.float32)
    for batch in (1, 16, 64):
        films = torch.randint(0, 256, (batch, 384, 384), dtype=torch.uint8)
        seconds = seconds_of(lambda: generate_reports(
            model, Ids(), films, max_tokens=tokens, batch=batch, progress=False))
        print(f"reading {batch} films, {tokens} tokens each: {seconds:.2f} s, "
              f"{batch / seconds:.1f} a second", flush=True)
    for batch, size in ((1, 256), (16, 256), (1, 512)):
        sampling = Sampling(size=size, batch=batch)
        seconds = seconds_of(lambda: generate_images(
            model, vae, Ids(), ["x"] * batch, sampling, progress=False))
        print(f"drawing {batch} of {size} px, {sampling.steps} steps: {seconds:.2f} s, "
              f"{batch / seconds:.1f} a second", flush=True)


def main(argv):
    cfg = override(GPUConfig(), argv, __doc__)
    if not torch.cuda.is_available():
        raise InputError("there is no CUDA device here.")
    print(torch.__version__, torch.cuda.get_device_name())
    torch.set_float32_matmul_precision("high")      # as a run sets it: TF32 where fp32 is left
    chosen = [case for case in CASES if cfg.only in str(case)]
    if not chosen:
        raise InputError(f"--only {cfg.only!r} is in none of these names: "
                         f"{'; '.join(map(str, CASES))}.")
    for case in chosen:
        measure(case, cfg.repeats)
    if not cfg.only:
        measure_use(torch.device("cuda"))


if __name__ == "__main__":
    cli(main)
