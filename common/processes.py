"""Processes, devices, randomness, read-ahead: what every script needs and no reader comes for.

Nothing here knows the model. The same script runs on a CPU, on one GPU, or on many under torchrun.
"""
import os
import platform
import sys
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist

from common.cli import InputError, sentence_of
from common.ending import rank_given
from common.platforms import end_with_parent, keep_memory, usable_cores


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

    device: see `device_name`. threads: CPU threads, 0 chooses (`fair_threads`). deterministic: the
    same bits in every run on CUDA too; on a CPU the same number of threads is enough.
    """
    if not 0 <= threads <= 1024:
        raise InputError(f"--threads {threads}: give 1 to 1024, or 0 to have it chosen.")
    torch.set_num_threads(threads if threads else fair_threads())
    keep_memory()
    if deterministic:
        os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
        torch.use_deterministic_algorithms(True)

    device = device_name(device)
    if device.startswith("cuda"):
        # texts differ in length, which left gaps of 5 GB in memory; read when CUDA starts
        os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
        torch.set_float32_matmul_precision("high")      # TF32, as convolutions have it anyway

    # torchrun sets RANK for each process that it starts; every rank gets a GPU of its own
    if not started_by_torchrun():
        return Process(0, 1, torch.device(device))
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    rank, world = join("nccl" if device.startswith("cuda") else "gloo")
    return Process(rank, world, torch.device(device))


def fair_threads():
    """CPU threads of this process, if nothing else computes: torch's own number, which follows
    OMP_NUM_THREADS, but never more than its part of the cores. More of them take turns, and each
    waits for all others after every operation.
    """
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))          # torchrun's, on this machine
    return max(1, min(torch.get_num_threads(), usable_cores() // ranks))


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
    if int(os.environ["MASTER_PORT"]) > 65535:
        raise InputError(f"MASTER_PORT={os.environ['MASTER_PORT']} in the environment is no port; "
                         "they end at 65535.")
    if int(os.environ["RANK"]) >= int(os.environ["WORLD_SIZE"]):
        raise InputError(f"RANK={os.environ['RANK']} in the environment is not below WORLD_SIZE="
                         f"{os.environ['WORLD_SIZE']}; start with torchrun, which sets both.")
    return True


def device_name(name):
    """What --device names, as torch calls it; InputError for what is not there.

    auto: CUDA if there is a GPU, else Apple's mps, else cpu. cuda:N is GPU number N.
    """
    kind, colon, number = name.partition(":")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        if gpus:
            return "cuda"
        # processes of torchrun have no way to talk to each other on mps
        if torch.backends.mps.is_available() and "RANK" not in os.environ:
            return "mps"
        return "cpu"

    if kind not in ("cpu", "cuda", "mps") or (colon and kind != "cuda"):
        raise InputError(f"--device {name} is none of auto, cpu, cuda, cuda:N, mps.")
    if kind == "cuda" and not gpus:
        raise InputError(f"--device {name}: no CUDA device here; use --device cpu.")
    if colon and not (number.isdigit() and int(number) < gpus):
        raise InputError(f"--device {name}: the GPUs here are cuda:0 to cuda:{gpus - 1}.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise InputError("--device mps: this is no Mac with an Apple GPU, or its torch cannot use "
                         "it; use --device cpu.")
    if kind == "mps" and "RANK" in os.environ:
        raise InputError("--device mps takes one process; under torchrun use --device cpu.")
    return name


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
    """work() on the first process alone. If it ends with bad input, all processes do: they would
    wait for the first in vain.
    """
    trouble = None
    if process.master:
        try:
            work()
        except InputError as error:
            trouble = str(error)
        except OSError as error:
            trouble = sentence_of(error)
    trouble = gather(trouble)[0]
    if trouble is not None:
        raise InputError(trouble)


def print0(*words, file=None):
    """Print on the first process only; file: where to, if not standard output."""
    if rank_given() == 0:
        print(*words, file=file, flush=True)


# ---- number formats ----

DTYPES = ("auto", "float32", "bfloat16")


def number_format(name, device, begun=None):
    """What --dtype means on a device -> "float32" or "bfloat16". What auto chose is printed.

    begun: the format in which the run that is continued was begun, if there is one. It goes on in
    that one, even where another would be faster.
    """
    if name != "auto":
        return name
    fastest, reason = fastest_format(device)
    chosen = fastest if begun is None else begun
    if chosen != fastest:
        reason = f"as it was begun, although {fastest} is faster here: {reason}"
    print0(f"--dtype auto: {chosen} ({reason})", file=sys.stderr)
    return chosen


def fastest_format(device):
    """The number format in which a device multiplies matrices fastest -> (its name, the reason)."""
    if device.type == "cuda":
        # some GPUs only emulate it, at a fraction of the speed
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bfloat16", "this GPU has bf16"
        return "float32", "this GPU has no bf16"
    # on mps bf16 and fp16 save memory and no time, bf16 wants macOS 14, and fp16 a scaled loss
    # (pytorch issue 139386; karpathy/nanochat issue 685: bf16 takes 17 % longer on an M4 Max)
    if device.type == "mps":
        return "float32", "bf16 saves no time on Apple's GPUs"
    if cpu_has_bf16():
        return "bfloat16", "this CPU has bf16"
    return "float32", "this CPU has no bf16"


def cpu_has_bf16():
    """Whether this CPU has instructions that multiply bf16: AVX512-BF16, AMX, or those of ARM.

    oneDNN, asked alone, says yes to every CPU with AVX512: there it can compute in bf16, at a
    fifth of the speed of fp32. It is asked all the same, since ONEDNN_MAX_CPU_ISA may forbid them.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if platform.machine().lower() in ("arm64", "aarch64"):
        return True                     # there oneDNN's answer is about the instructions
    return any((torch.cpu._is_avx512_bf16_supported(), torch.cpu._is_amx_tile_supported()))


def torch_dtype(name):
    """The number format of torch that "float32" or "bfloat16" names."""
    if name not in DTYPES[1:]:
        raise InputError(f"--dtype {name} is none of {', '.join(DTYPES)}.")
    return getattr(torch, name)


def widest_float(device):
    """float64, in which sums over a data set are kept; Apple's mps has none, and keeps float32."""
    return torch.float32 if device.type == "mps" else torch.float64


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


@contextmanager
def worker_pool(workers):
    """A ProcessPoolExecutor that ends with the block, and with this process if that is killed.

    InputError if a worker is killed. multiprocessing.Pool would wait for that one for ever, and now
    and then does not come back from its end.
    """
    pool = ProcessPoolExecutor(workers, initializer=end_with_parent)
    try:
        yield pool
    except BrokenProcessPool:
        raise InputError("a worker was killed, most likely for want of memory; run again with "
                         "fewer --workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


# ---- torch on a CPU ----

class Recorded:
    """A function of tensors that runs the same kernels on the same shapes at every call.

    On CUDA its second call records them as one graph, and from then on a call is one launch in
    place of hundreds, which take the CPU longer than the GPU where a batch is small. What else the
    function reads or writes must stay where it is in memory. Elsewhere it is just called.
    """

    def __init__(self, function, device):
        self.function = function
        self.records = device.type == "cuda"
        self.inputs = None              # where the recorded kernels read
        self.graph = None

    def __call__(self, *inputs):
        if not self.records:
            return self.function(*inputs)
        # libraries set themselves up in the first call, which cannot be recorded
        if self.inputs is None:
            self.inputs = [tensor.clone() for tensor in inputs]
            return self.function(*self.inputs)
        for mine, tensor in zip(self.inputs, inputs, strict=True):
            mine.copy_(tensor)
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):          # recorded, not run
                self.output = self.function(*self.inputs)
        self.graph.replay()
        return self.output.clone()      # the next replay writes there


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
