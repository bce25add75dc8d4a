"""How weights move: the learning rate, AdamW and Muon, the average of the weights.

The paper trains with AdamW at a constant learning rate (Table 1). Muon and the cosine are for the
laptop runs, which start from nothing and have minutes.
"""
import math
from contextlib import contextmanager
from functools import partial

import torch
import torch.distributed as dist

from common.cli import InputError
from common.processes import print0, torch_dtype

OPTIMIZERS = ("adamw", "muon")
DECAYS = ("constant", "cosine")


def lr_at(step, lr, warmup, steps, decay="constant"):
    """Learning rate of a step, counted from 0: linear warm-up, then one of DECAYS.

    It depends on the step alone, so resuming needs no state of a scheduler.
    """
    if step < warmup:
        return lr * (step + 1) / warmup
    if decay == "constant":
        return lr
    angle = math.pi * (step - warmup) / max(1, steps - warmup)
    return lr * 0.5 * (1 + math.cos(angle))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Every direction of a weight matrix learns at the same pace, so a small model that starts from
    nothing needs about a third of AdamW's steps on the phantom (docs/results.md). torch.optim.Muon
    refuses convolutions; here a kernel (out, in, 3, 3) counts as a matrix of out x 9 in.
    """

    def __init__(self, params, lr, momentum=0.95, dtype=torch.bfloat16):
        """dtype: of the products that make a direction orthogonal."""
        super().__init__(params, dict(lr=lr, momentum=momentum))
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.step_one(p, group["lr"], group["momentum"])

    def step_one(self, p, lr, momentum):
        average = self.state[p].setdefault("momentum", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - momentum)
        ahead = p.grad.lerp(average, momentum)              # Nesterov's look ahead
        update = orthogonal(ahead.flatten(1), self.dtype)
        # 0.2 sqrt(longer side) is the size of Adam's usual update, so that one learning rate fits
        # both (Liu et al. 2025, arXiv 2502.16982, section 2.2)
        p.add_(update.view_as(p), alpha=-lr * 0.2 * max(update.shape) ** 0.5)


def orthogonal(matrix, dtype=torch.bfloat16):
    """U V^T of matrix = U S V^T, nearly, computed in dtype: bf16 is enough.

    Five Newton-Schulz steps bring every singular value to between 0.7 and 1.2. The coefficients are
    Jordan's: they do not converge to 1, but they raise small singular values fastest.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.to(dtype)
    if tall:                            # x x^T is then the smaller product
        x = x.mT
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    if tall:
        x = x.mT
    return x.to(matrix.dtype)


def optimizers(module, cfg, adamw_only=(), shard=False):
    """Optimizers of all parameters that are not frozen: [AdamW], or [AdamW, Muon].

    cfg: optimizer (one of OPTIMIZERS; Muon takes the matrices only), lr, weight_decay, dtype.
    adamw_only: parts of names of matrices that stay with AdamW all the same, as embeddings do:
    their rows are not directions to mix.
    shard: AdamW's averages are spread over the processes (ZeRO 1).
    """
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    frozen = [p for p in module.parameters() if not p.requires_grad]
    n_trained, n_frozen = count(trained.values()), count(frozen)
    assert n_trained + n_frozen == count(module.parameters())
    print0(f"trained {n_trained:,} parameters in {len(trained)} tensors, frozen {n_frozen:,}")

    if cfg.optimizer not in OPTIMIZERS:
        raise InputError(f"--optimizer {cfg.optimizer} is none of {', '.join(OPTIMIZERS)}.")
    with_muon = []
    if cfg.optimizer == "muon":
        for name, p in trained.items():
            if p.ndim > 1 and not any(word in name for word in adamw_only):
                with_muon.append(name)

    AdamW = torch.optim.AdamW
    if shard and dist.is_initialized():
        from torch.distributed.optim import ZeroRedundancyOptimizer      # two seconds to import
        # the parameters of a process lie together, so that it sends a few buckets, not each of them
        AdamW = partial(ZeroRedundancyOptimizer, optimizer_class=AdamW,
                        parameters_as_bucket_view=True)
    rest = [p for name, p in trained.items() if name not in with_muon]
    adamw = AdamW(
        rest, lr=cfg.lr, betas=(0.9, 0.95), eps=1e-15, weight_decay=cfg.weight_decay, fused=True)
    if not with_muon:
        return [adamw]
    matrices = [trained[name] for name in with_muon]
    return [adamw, Muon(matrices, cfg.lr, dtype=torch_dtype(cfg.dtype))]


def count(parameters):
    """How many numbers they hold."""
    return sum(p.numel() for p in parameters)


def step_all(optimizers, lr):
    """One step of every optimizer at this learning rate; the gradients are gone afterwards."""
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

    The decay ramps up as (1 + n) / (10 + n), so that the first steps do not remember the initial
    weights. decay: 0 keeps no average, which saves its memory; the live weights stand for it.
    shard: every process keeps the average of a share of the parameters.
    """

    def __init__(self, module, decay, shard=False):
        self.decay = decay
        self.steps = 0
        trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self.live = trained if decay else {}
        self.owner = shares(self.live) if shard and dist.is_initialized() else {}
        self.shadow = {name: p.detach().float().clone() for name, p in self.live.items()
                       if not self.owner or self.owner[name] == dist.get_rank()}

    @torch.no_grad()
    def update(self):
        """Move the average towards the live weights; call it after every optimizer step."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        averages = list(self.shadow.values())
        weights = [self.live[name].float() for name in self.shadow]
        if averages:                    # all of them at once: fewer kernels
            torch._foreach_lerp_(averages, weights, 1 - decay)

    @contextmanager
    def swapped(self):
        """The average is live within this context."""
        self.swap()
        yield
        self.swap()

    @torch.no_grad()
    def swap(self):
        """Exchange average and live weights; call it again to change back. If shares are kept, all
        processes call it: the live weights are the same everywhere, so one of them keeps them.
        """
        for name, p in self.live.items():
            if name in self.shadow:
                weights = p.detach().clone()
                p.copy_(self.shadow[name])
                self.shadow[name].copy_(weights)
            if self.owner:
                dist.broadcast(p.detach(), self.owner[name])

    def whole(self):
        """{name: average} of all parameters, on the first process. All of them call it."""
        if not self.owner:
            return self.shadow
        gathered = {}
        for name, p in self.live.items():
            average = self.shadow.get(name)
            if average is None:
                average = torch.empty(p.shape, device=p.device)
            dist.broadcast(average, self.owner[name])
            if dist.get_rank() == 0:
                gathered[name] = average
        return gathered


def shares(parameters):
    """Who keeps what, in shares of about the same size: {name: parameter} -> {name: rank}."""
    sizes = [0] * dist.get_world_size()
    owner = {}
    for name, p in sorted(parameters.items(), key=lambda item: item[1].numel(), reverse=True):
        owner[name] = sizes.index(min(sizes))           # the largest first, to who has least
        sizes[owner[name]] += p.numel()
    return owner
