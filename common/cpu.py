"""What makes torch fast on a CPU: memory that is kept, and decoding without oneDNN. On CUDA nothing here does anything."""
import ctypes
import platform
from contextlib import contextmanager

import torch


def keep_memory():
    """Have glibc keep the memory of freed tensors for the next ones. By default it returns much of it to the system and
    fetches it again page by page, which takes a sixth of the time of a velocity (docs/results.md)."""
    if platform.libc_ver()[0] == "glibc":
        for option, value in ((-3, 2**25), (-1, 2**31 - 1)):     # M_MMAP_THRESHOLD: its maximum; M_TRIM_THRESHOLD: never
            ctypes.CDLL(None).mallopt(option, value)


@contextmanager
def decoding(rows, device):
    """Wrap the decoding of `rows` sequences: a product of one bf16 row with a matrix reads the matrix two to eight times
    as fast without oneDNN (bench/sampling.py sample), and reading the weights is most of what decoding waits for."""
    lean = rows == 1 and device.type == "cpu" and torch.backends.mkldnn.enabled
    if lean:
        torch.backends.mkldnn.set_flags(False)
    try:
        yield
    finally:
        if lean:
            torch.backends.mkldnn.set_flags(True)
