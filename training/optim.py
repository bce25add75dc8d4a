"""How weights move: learning rate, AdamW (the paper's) and Muon (the laptop's), the average of the weights, resuming."""
import json
import math
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import load_file

from common.processes import InputError, print0


def lr_at(step, lr, warmup, steps, decay="constant"):
    """Learning rate of a step counted from 0: linear warm-up, then constant (Table 1), or a cosine down to 0."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if decay == "constant":
        return lr
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon). For the laptop runs.

    Every direction of a weight matrix learns at the same pace, so a small model trained from nothing needs about a
    third of AdamW's steps on the phantom (docs/results.md). Unlike torch.optim.Muon it takes convolutions: a kernel
    (out, in, 3, 3) counts as an out x 9 in matrix.
    """

    def __init__(self, params, lr, momentum=0.95):
        super().__init__(params, dict(lr=lr, momentum=momentum))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                average = self.state[p].setdefault("momentum", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonal(p.grad.lerp(average, group["momentum"]).flatten(1))      # Nesterov's look ahead
                # 0.2 sqrt(longer side): the size of Adam's usual update, so one learning rate fits both (2502.16982)
                p.add_(update.view_as(p), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)


def orthogonal(m):
    """U V^T of m = U S V^T, nearly: five Newton-Schulz steps bring all singular values to between 0.7 and 1.2."""
    x = m.bfloat16().mT if m.shape[0] > m.shape[1] else m.bfloat16()
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if m.shape[0] > m.shape[1] else x).to(m.dtype)


def optimizers(module, cfg, vectors=(), shard=False):
    """[AdamW] over what is not frozen; with cfg.optimizer "muon", [AdamW, Muon]: Muon for the matrices.

    vectors: parts of names of matrices that stay with AdamW, as embeddings do: their rows are no directions to mix.
    shard: AdamW's state is spread over the processes.
    """
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    count = lambda ps: sum(p.numel() for p in ps)
    frozen = [p for p in module.parameters() if not p.requires_grad]
    assert count(trained.values()) + count(frozen) == count(module.parameters())
    print0(f"trained {count(trained.values()):,} parameters in {len(trained)} tensors, frozen {count(frozen):,}")
    if cfg.optimizer not in ("adamw", "muon"):
        raise InputError(f"--optimizer {cfg.optimizer} is none of adamw, muon.")
    muon = [n for n, p in trained.items() if cfg.optimizer == "muon" and p.ndim > 1 and not any(v in n for v in vectors)]
    make = torch.optim.AdamW
    if shard and dist.is_initialized():
        from torch.distributed.optim import ZeroRedundancyOptimizer      # two seconds to import
        make = partial(ZeroRedundancyOptimizer, optimizer_class=make)
    adamw = make([p for n, p in trained.items() if n not in muon], lr=cfg.lr, betas=(0.9, 0.95), eps=1e-15,
                 weight_decay=cfg.weight_decay, fused=True)
    return [adamw] + ([Muon([trained[n] for n in muon], cfg.lr)] if muon else [])


def step_all(optimizers, lr):
    """One step of every optimizer at this learning rate; gradients are gone afterwards."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    forget(optimizers)


def forget(optimizers):
    """Drop the gradients."""
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)


class EMA:
    """Exponential moving average, in fp32, of the trained parameters of a module, by name.

    The decay ramps up as (1 + n) / (10 + n), so that the first steps do not remember the initial weights.
    """

    def __init__(self, module, decay):
        self.decay, self.steps = decay, 0
        self.live = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.shadow = {n: p.detach().float().clone() for n, p in self.live.items()}

    @torch.no_grad()
    def update(self):
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(list(self.shadow.values()), [p.float() for p in self.live.values()], 1 - decay)

    @contextmanager
    def swapped(self):
        """The average is live within this context."""
        self.swap()
        yield
        self.swap()

    @torch.no_grad()
    def swap(self):
        """Exchange average and live weights; call it again to change back."""
        for name, p in self.live.items():
            kept = p.detach().clone()
            p.copy_(self.shadow[name])
            self.shadow[name].copy_(kept)


def state(optimizers, ema, skips=0):
    """What a run needs, besides the weights and the average, to go on; skips: steps in a row that were skipped.

    All processes call it, since a sharded state is gathered on the first, which alone gets an answer.
    """
    for optimizer in optimizers:
        if not isinstance(optimizer, (torch.optim.AdamW, Muon)):
            optimizer.consolidate_state_dict(to=0)
    if dist.is_initialized() and dist.get_rank():
        return None
    return {"optimizers": [optimizer.state_dict() for optimizer in optimizers], "ema_steps": ema.steps, "skips": skips}


def resume(directory, optimizers, ema):
    """Put the optimizers and the average of a checkpoint back -> the step it was written at, steps skipped in a row."""
    cuda = next(iter(ema.live.values())).is_cuda        # then mapped: every process takes its part, none reads all of it
    saved = torch.load(Path(directory) / "state.pt", weights_only=True, map_location="cpu", mmap=cuda)
    for optimizer, kept in zip(optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(kept)
        if not isinstance(optimizer, (torch.optim.AdamW, Muon)):        # sharded: torch loads it twice, and "step" on the CPU
            optimizer.state.clear()
            for p, one in optimizer.optim.state.items():
                one["step"] = one["step"].to(p.device)                  # where the fused kernel wants it
    ema.steps = saved["ema_steps"]
    average = load_file(Path(directory) / "ema.safetensors")
    assert average.keys() == ema.shadow.keys(), "the average holds other parameters than the run trains"
    for name, tensor in average.items():
        ema.shadow[name].copy_(tensor)
    print0(f"resuming {directory}")
    return json.loads((Path(directory) / "config.json").read_text())["step"], saved["skips"]
