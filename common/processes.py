"""Processes, devices, randomness, read-ahead: what every script needs and no reader comes for.

Nothing here knows the model. The same script runs on a CPU, on one GPU, or on many under torchrun.
"""
import os
from collections import deque
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from common.cli import InputError, sentence_of
from common.ending import rank_given
from common.platforms import keep_memory


# ---- processes and devices ----

@dataclass
class Process:
    """One of the processes that torchrun started, or the only one."""
    rank: int                           # 0 to world - 1
    world: int                          # how many there are
    device: torch.device                # where this one computes

    @property
    def master(self):
        """Whether this is the first process, which writes files and shows progress."""
        return self.rank == 0


def setup(device="auto", threads=0, deterministic=False):
    """Choose the device and join the other processes, if torchrun started us -> Process.

    device: auto (CUDA if there is one), cpu, cuda or cuda:N. threads: CPU threads, 0 leaves it to
    torch. deterministic: the same bits in every run on CUDA too; on a CPU the same number of
    threads is enough.
    """
    if threads:
        torch.set_num_threads(threads)
    keep_memory()
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)

    # which device; "auto" takes a GPU if there is one
    if device not in ("auto", "cpu") and not device.startswith("cuda"):
        raise InputError(f"--device {device} is none of auto, cpu, cuda.")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {device}: no CUDA device here; use --device cpu.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"

    # torchrun sets RANK for each process that it starts; every rank gets a GPU of its own
    if not started_by_torchrun():
        return Process(0, 1, torch.device(device))
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    rank, world = join("nccl" if device.startswith("cuda") else "gloo")
    return Process(rank, world, torch.device(device))


TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def started_by_torchrun():
    """Whether the environment has what torchrun sets. InputError for a part of it."""
    # MASTER_ADDR and MASTER_PORT alone are a habit of job scripts, and do no harm
    if "RANK" not in os.environ and "WORLD_SIZE" not in os.environ:
        return False
    missing = [name for name in TORCHRUN if not os.environ.get(name)]
    if missing:
        there = [name for name in TORCHRUN if name not in missing]
        raise InputError(f"the environment has {', '.join(there)}, but not {', '.join(missing)}: "
                         "start with torchrun, which sets them all, or unset them for a single "
                         "process.")
    for name in TORCHRUN:
        if name != "MASTER_ADDR" and not os.environ[name].isdigit():
            raise InputError(f"{name}={os.environ[name]} in the environment is no number; start "
                             "with torchrun, which sets it.")
    if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
        raise InputError(f"RANK={os.environ['RANK']} in the environment is not below WORLD_SIZE="
                         f"{os.environ['WORLD_SIZE']}; start with torchrun, which sets both.")
    return True


def join(backend):
    """Meet the other processes at the place that torchrun names -> (rank, world)."""
    # others wait up to an hour while rank 0 draws samples or hashes a checkpoint
    patience = timedelta(hours=1)
    try:
        store, rank, world = next(dist.rendezvous("env://"))
        # the store outlives a restart by torchrun, so each start has names of its own in it
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = dist.PrefixStore(attempt, store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=patience)
    except dist.DistNetworkError as error:
        address = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        reason = str(error).splitlines()[0]
        raise InputError(f"the processes cannot meet at {address} ({reason}); if the port is in "
                         "use, give torchrun another --master_port.") from None
    return rank, world


def all_sum(tensor):
    """Sum of a tensor over all processes, in place; nothing to do without torchrun."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def gather(value):
    """One value of every process, in the order of ranks -> list, on all processes."""
    if not dist.is_initialized():
        return [value]
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def on_first(process, work):
    """What work() returns on the first process, for all of them.

    If it ends with bad input, all processes do: the others would wait for the first in vain.
    """
    result, trouble = None, None
    if process.master:
        try:
            result = work()
        except InputError as error:
            trouble = str(error)
        except OSError as error:
            trouble = sentence_of(error)
    result, trouble = gather((result, trouble))[0]
    if trouble is not None:
        raise InputError(trouble)
    return result


def print0(*words, file=None):
    """Print on the first process only; file: where to, if not standard output."""
    if rank_given() == 0:
        print(*words, file=file, flush=True)


# ---- number formats ----

def torch_dtype(name):
    """The number format that --dtype names."""
    if name not in ("float32", "bfloat16"):
        raise InputError(f"--dtype {name} is none of float32, bfloat16.")
    return getattr(torch, name)


def autocast(device, dtype):
    """Context in which matrix products take bf16, while parameters and norms stay fp32.

    With dtype float32 it does nothing.
    """
    if torch_dtype(dtype) == torch.float32:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


# ---- randomness ----

def generator(*key):
    """A CPU generator that depends on the whole numbers in `key` and on nothing else.

    A key is e.g. (seed, step, index). Its length counts too: (seed, epoch) and (seed, epoch, 0) are
    different streams. SeedSequence mixes the numbers, so that neighbouring keys are independent.
    """
    numbers = [len(key), *(number % 2**64 for number in key)]
    seed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(seed))


# ---- read-ahead ----

def ahead(pool, make, keys, depth):
    """make(key) of every key, in order, computed by the workers of a pool ahead of time.

    pool: a ThreadPoolExecutor or ProcessPoolExecutor, or None to compute when asked. depth: how
    many results may wait, which bounds the memory.
    """
    if pool is None:
        yield from map(make, keys)
        return
    # `depth` results are computed or waiting while the caller works on the one before them
    waiting = deque()
    for key in keys:
        waiting.append(pool.submit(make, key))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


# ---- torch on a CPU ----

@contextmanager
def decoding(rows, device):
    """Wrap the decoding of `rows` sequences at once. It turns oneDNN off for a single one on a CPU.

    A product of one bf16 row with a matrix reads the matrix two to eight times as fast without
    oneDNN (`python -m bench.sampling`), and reading the weights is most of what decoding waits for.
    """
    enabled = torch.backends.mkldnn.enabled
    without_onednn = enabled and device.type == "cpu" and rows == 1
    if without_onednn:
        torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        if without_onednn:
            torch.backends.mkldnn.set_flags(True)
