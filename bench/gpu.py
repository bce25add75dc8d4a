"""What one GPU does, for docs/results.md: not a test, it wants a GPU of 80 GB and some minutes.

    python -m bench.gpu         # seconds, share of the peak and memory of each stage's micro-step at real sizes

Random weights and texts of 256 tokens (stage 1: 32 + 256), the VAE and RAD-DINO within the step, one process, nothing sharded.
"""
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import processes as common  # noqa: E402
from training import cost  # noqa: E402
from training import optim  # noqa: E402
from training.batches import Batch  # noqa: E402
from model import UniX, UniXConfig  # noqa: E402
from repa import Projector  # noqa: E402
from train_gen import GenStep, TrainConfig  # noqa: E402
from train_und import UndStep  # noqa: E402
from vae import VAE, VAEConfig  # noqa: E402
from vision import RAD_DINO, ViT  # noqa: E402

TEXT = 256
CASES = [(1, 8, 0, True, False), (2, 8, 16, False, False), (2, 32, 16, False, False), (3, 4, 32, False, False),
         (2, 8, 16, False, True)]       # stage, images, rows of latents, recompute, compile


def module_of(stage, recompute):
    model = UniX(UniXConfig(generation=stage > 1))
    model.recompute = recompute
    if stage == 1:
        return model, UndStep(model).train()
    model.freeze("u")
    vae = VAE(VAEConfig()).to(memory_format=torch.channels_last)
    parts = (ViT(RAD_DINO), Projector(model.cfg.n_embd, 2048, RAD_DINO.n_embd)) if stage == 2 else (None, None)
    return model, GenStep(model, vae, *parts, TrainConfig()).train()


def batch_of(stage, B, grid):
    T, size = (32 + TEXT, 384) if stage == 1 else (TEXT, 16 * grid)
    ids = torch.randint(4, 100_000, (B, T))
    same = dict(index=torch.arange(B), images=torch.zeros(B, 1, size, size, dtype=torch.uint8), ids=ids,
                valid=torch.ones(B, T, dtype=torch.bool))
    if stage == 1:
        labels = ids.roll(-1, 1)
        labels[:, :32] = -100
        return Batch(**same, labels=labels)
    noise, posterior = torch.randn(2, B, 16, grid, grid)
    return Batch(**same, normal=torch.randn(B), noise=noise, posterior=posterior, dropped=torch.zeros(B, dtype=torch.bool))


def measure(stage, B, grid, recompute, compiled):
    torch.cuda.empty_cache(), torch.cuda.reset_peak_memory_stats()
    with torch.device("cuda"):
        (model, module), batch = module_of(stage, recompute), batch_of(stage, B, grid)
    optimizers, ema = optim.optimizers(module, TrainConfig(batch_size=B, micro_batch=B)), optim.EMA(model, 0.999)
    step = cost.Step("u", und=B, text=32 + TEXT, answer=TEXT) if stage == 1 else cost.Step(
        "g", gen=B, report=TEXT, size=16 * grid, latents=grid ** 2, vae=VAEConfig(),
        projector=2048 if stage == 2 else 0, encoder=RAD_DINO if stage == 2 else None)
    step.recompute = recompute
    if compiled:
        module.compile()

    def micro_step():
        with common.autocast(torch.device("cuda"), "bfloat16"):
            out = module(batch)
        (out[0] / B / TEXT if stage == 1 else (out[0] + 0.5 * out[1]).mean()).backward()

    def update():
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optim.step_all(optimizers, 1e-5)
        ema.update()

    for _ in range(3):
        micro_step()
    update(), micro_step(), torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(8):
        micro_step()
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / 8
    update(), micro_step(), update(), torch.cuda.synchronize()
    peak = cost.peak_flops(torch.device("cuda"))
    share = f"{cost.model_flops(model.cfg, step) / seconds / peak:.2f} of the peak" if peak else "of a GPU without a known peak"
    print(f"stage {stage}, {B} images, recompute {recompute}, compiled {compiled}: {1e3 * seconds:.0f} ms, {B / seconds:.1f} images/s, "
          f"{share}, {torch.cuda.max_memory_allocated() / 1e9:.1f} GB, estimated {cost.memory(model.cfg, step)['total'] / 1e9:.1f}",
          flush=True)


if __name__ == "__main__":
    if not torch.cuda.is_available():
        sys.exit("error: no CUDA device here.")
    print(torch.__version__, torch.cuda.get_device_name())
    for case in CASES:
        measure(*case)
