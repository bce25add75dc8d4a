"""torch.compile, one block of a network at a time.

All layers of a kind run the code that is made for the first of them, so compiling takes as long for
24 layers as for two. A second length of text makes a graph for any length; after that nothing is
compiled anew (`python -m pytest tests/training/test_compiled.py` counts).
"""

import torch

from common.cli import InputError
from common.processes import print0


def compile_blocks(blocks, asked, device, deterministic=False):
    """Compile these modules in place -> whether they are.

    asked: whether --compile was given; None leaves it to us: on CUDA, if a compiler works, and not
    where every run must give the same bits, because kernels are chosen by how long they take.
    Raises InputError where it was asked for and no compiler works.
    """
    wanted = device.type == "cuda" and not deterministic if asked is None else asked
    if not wanted:
        return False
    reason = why_not(device)
    if reason and asked:
        raise InputError(f"--compile: torch can compile nothing here ({reason}); install a C++ "
                         "compiler, as g++, or leave the flag out.")
    if reason:
        print0(f"nothing is compiled, so steps take about twice as long: {reason}")
        return False

    # DDP would cut every block where one of its buckets ends. And the limit is for each function,
    # while a layer's serves text and latents, on a cache and without, and both tasks in Table 5
    torch._dynamo.config.optimize_ddp = False
    torch._dynamo.config.recompile_limit = 16
    for block in blocks:
        block.compile()
    return True


def plus_one(x):
    return x + 1


def why_not(device):
    """Why nothing can be compiled on a device, in one line; "" where it can."""
    try:
        torch.compile(plus_one)(torch.zeros(8, device=device))
    except RuntimeError as error:           # torch's word for all that may be missing or too old
        return str(error).splitlines()[0]
    return ""
