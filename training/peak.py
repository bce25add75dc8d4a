"""How many operations a second a device can do at best, which the log's `mfu` is a share of."""
import re
import timeit

import torch

from common.processes import print0

# Dense bf16 products with fp32 sums (V100: fp16) in operations a second, without sparsity, from the
# vendors' data sheets. Longer names stand before the shorter ones that they contain.
PEAKS = {
    "B200": 2250e12, "GH200": 989e12, "H800 PCIe": 756e12, "H800": 989e12, "A800": 312e12,
    "H20": 148e12, "L20": 119.5e12,
    "H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12,
    "A100": 312e12, "A40": 150e12, "A30": 165e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12,
    "RTX 6000 Ada": 364e12, "RTX A6000": 155e12, "RTX 4090": 165e12, "RTX 3090": 71e12,
    "V100": 125e12,
}


def peak_flops(device, dtype="bfloat16"):
    """Operations a second at best: a GPU's from the table, a CPU's the best of some large products.

    None where it is not known: a GPU that is not in the table, float32 on a GPU, Apple's mps, and a
    CPU that is too slow or too busy to be measured within a second or two.
    """
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for key, peak in PEAKS.items():
            if dtype == "bfloat16" and re.search(rf"\b{key}\b", name):
                return peak
        return None
    if device.type != "cpu":
        return None
    # a smaller one says whether a large one takes a moment or half a minute; the very first product
    # of a process takes longer
    smaller = min(seconds_of_product(512, dtype) for _ in range(2))
    if smaller * (1536 / 512) ** 3 > 1:
        return None
    times = []
    while len(times) < 6 and sum(times) < 1:
        times.append(seconds_of_product(1536, dtype))
    return 2 * 1536 ** 3 / min(times)


def seconds_of_product(side, dtype):
    """How long a product of two square matrices takes on the CPU."""
    a = torch.ones(side, side, dtype=getattr(torch, dtype))
    return timeit.timeit(lambda: a @ a, number=1)


def peak_to_log(device, dtype):
    """The same for a run, which says what its log will lack."""
    peak = peak_flops(device, dtype)
    if peak is None:
        print0("mfu is not logged: how fast this device is at best is not known")
    return peak
