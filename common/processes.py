"""The boring parts of a run: processes, devices, randomness.

Nothing here knows the model. Every script ends with `common.cli(main)`: bad input ends in one sentence.
"""
import os
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from common import cpu
from common import cli as settings
from common.cli import InputError, cli, override      # noqa: F401 (scripts know them as common's)


@dataclass
class Process:
    rank: int
    world: int
    device: torch.device

    @property
    def master(self):
        return self.rank == 0


def setup(device="auto", threads=0, deterministic=False):
    """Join the other processes if torchrun started us (RANK is set), choose the device -> Process."""
    if threads:
        torch.set_num_threads(threads)
    cpu.keep_memory()
    if deterministic:                   # on a CPU the same number of threads is enough
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {device}: no CUDA device here; use --device cpu.")
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise InputError(f"--device {device} is none of auto, cpu, cuda.")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if "RANK" not in os.environ:
        return Process(0, 1, torch.device(device))
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    try:
        store, rank, world = next(dist.rendezvous("env://"))
        settings.store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)     # it outlives a restart
        backend = "nccl" if device.startswith("cuda") else "gloo"
        hour = timedelta(hours=1)       # others wait while rank 0 draws samples or hashes a checkpoint
        dist.init_process_group(backend, store=settings.store, rank=rank, world_size=world, timeout=hour)
    except dist.DistNetworkError as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(f"the processes cannot meet at {place} ({str(error).splitlines()[0]}); if the port is in use, "
                         "give torchrun another --master_port.") from None
    return Process(rank, world, torch.device(device))


def wrap(step_module, process, compiled):
    """The step module as the loop calls it: compiled if asked, in DDP if there are others."""
    if compiled:
        step_module.compile()
    return step_module if process.world == 1 else DistributedDataParallel(
        step_module, gradient_as_bucket_view=True, forward_sync_buffers=False)


def all_sum(tensor):
    """Sum over all processes, in place; nothing to do without torchrun."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def torch_dtype(name):
    if name not in ("float32", "bfloat16"):
        raise InputError(f"--dtype {name} is none of float32, bfloat16.")
    return getattr(torch, name)


def autocast(device, dtype):
    """Context for matrix products in bf16 (parameters and norms stay fp32); nothing for float32."""
    dtype = torch_dtype(dtype)
    return torch.autocast(device.type, torch.bfloat16) if dtype == torch.bfloat16 else nullcontext()


def generator(*key):
    """A CPU generator that depends on the whole numbers in `key`, e.g. (seed, step, index), and on nothing else."""
    seed = np.random.SeedSequence([len(key), *(k % 2**64 for k in key)]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


def print0(*words):
    """Print on the first process only."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*words, flush=True)
