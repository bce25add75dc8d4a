"""common/processes.py: devices, random numbers by key, read-ahead, torch on a CPU."""
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from common import processes
from common.cli import InputError, override
from common.processes import (
    Recorded,
    ahead,
    autocast,
    decoding,
    device_name,
    generator,
    number_format,
    setup,
)
from training.run import RunConfig


def test_a_process_without_torchrun(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    process = setup("cpu")
    assert process.master and process.world == 1 and process.device.type == "cpu"


WHOLE = dict(RANK="0", LOCAL_RANK="0", WORLD_SIZE="2", MASTER_ADDR="here", MASTER_PORT="29500")


@pytest.mark.parametrize("changes, words", [
    ({"MASTER_ADDR": None, "MASTER_PORT": None}, "has RANK, LOCAL_RANK, WORLD_SIZE, but not "
                                                 "MASTER_ADDR, MASTER_PORT: start with torchrun"),
    ({name: None for name in WHOLE if name != "WORLD_SIZE"}, "has WORLD_SIZE, but not RANK"),
    ({"RANK": ""}, "but not RANK"), ({"RANK": "one"}, "RANK=one .* no number"),
    ({"MASTER_PORT": "99999"}, "MASTER_PORT=99999 .* no port"),
    ({"RANK": "2"}, "RANK=2 .* not below WORLD_SIZE=2")])
def test_a_part_of_torchruns_variables_is_named(monkeypatch, changes, words):
    for name, value in {**WHOLE, **changes}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        setup("cpu")


@pytest.mark.parametrize("threads", [-1, 100_000])
def test_a_number_of_threads_that_no_machine_has(threads):
    """torch would raise at the one, and crash at the other."""
    with pytest.raises(InputError, match=f"--threads {threads}"):
        setup("cpu", threads)


@pytest.mark.parametrize("of_torch, cores, ranks, fair", [
    (64, 2, 1, 2),      # a container of two cores on a large machine
    (16, 16, 8, 2),     # eight ranks of one machine
    (1, 16, 2, 1),      # OMP_NUM_THREADS=1, which torchrun sets by itself
    (4, 2, 4, 1),       # more ranks than cores
])
def test_threads_that_do_not_wait_for_each_other(monkeypatch, of_torch, cores, ranks, fair):
    monkeypatch.setattr(processes.torch, "get_num_threads", lambda: of_torch)
    monkeypatch.setattr(processes, "usable_cores", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert processes.fair_threads() == fair


def test_a_job_script_may_name_a_meeting_point_for_others(monkeypatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert setup("cpu").world == 1


def machine(monkeypatch, gpus=0, mps=False, bf16=True, rank=None):
    """Stand in for what torch says of a machine."""
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.setattr(processes, "cpu_has_bf16", lambda: bf16)


@pytest.mark.parametrize("here, name, device", [
    ({}, "auto", "cpu"), (dict(gpus=2), "auto", "cuda"), (dict(mps=True), "auto", "mps"),
    (dict(mps=True), "mps", "mps"), (dict(mps=True), "cpu", "cpu"),
    (dict(mps=True, rank="0"), "auto", "cpu"), (dict(gpus=2), "cuda:1", "cuda:1")])
def test_the_device_that_is_meant(monkeypatch, here, name, device):
    machine(monkeypatch, **here)
    assert device_name(name) == device


@pytest.mark.parametrize("here, name, sentence", [
    ({}, "gpu", "none of auto, cpu, cuda, cuda:N, mps"), ({}, "cpu:0", "none of auto"),
    ({}, "cudax", "none of auto"), ({}, "", "none of auto"),
    ({}, "cuda", "no CUDA device"), ({}, "cuda:0", "no CUDA device"), ({}, "mps", "no Mac"),
    (dict(gpus=2), "cuda:2", "cuda:0 to cuda:1"), (dict(gpus=2), "cuda:", "cuda:0 to cuda:1"),
    (dict(gpus=2), "cuda:-1", "cuda:0 to"), (dict(mps=True, rank="0"), "mps", "one process")])
def test_what_is_no_device_here(monkeypatch, here, name, sentence):
    machine(monkeypatch, **here)
    with pytest.raises(InputError, match=sentence):
        setup(name)


# ---- number formats ----

@pytest.mark.parametrize("device, bf16, chosen", [
    ("cuda", True, "bfloat16"), ("cuda", False, "float32"), ("mps", True, "float32"),
    ("cpu", True, "bfloat16"), ("cpu", False, "float32")])
def test_auto_is_the_fastest_format_and_says_so(monkeypatch, capsys, device, bf16, chosen):
    machine(monkeypatch, bf16=bf16)
    device = torch.device(device)
    assert number_format("auto", device) == chosen
    said = capsys.readouterr()
    assert f"auto: {chosen} (" in said.err and not said.out     # results alone on standard output
    for given in ("float32", "bfloat16"):
        assert number_format(given, device) == given
    # what is continued keeps its format, even where another is faster
    assert number_format("auto", device, begun="bfloat16") == "bfloat16"
    slower = "although float32 is faster" in capsys.readouterr().err
    assert slower == (chosen == "float32")


@pytest.mark.parametrize("onednn, avx512_bf16, amx, machine_name, fast", [
    (True, True, False, "x86_64", True), (True, False, True, "AMD64", True),
    (True, False, False, "x86_64", False),      # AVX512 alone: oneDNN can, at a fifth of fp32
    (False, True, True, "x86_64", False),       # ONEDNN_MAX_CPU_ISA=AVX2
    (True, False, False, "aarch64", True), (False, False, False, "arm64", False)])
def test_the_cpus_that_have_bf16(monkeypatch, onednn, avx512_bf16, amx, machine_name, fast):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(processes.platform, "machine", lambda: machine_name)
    assert processes.cpu_has_bf16() is fast
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert processes.cpu_has_bf16() is False    # a build of torch without oneDNN


def test_what_is_no_number_format():
    """Half precision above all, which is not tried in the place of bf16."""
    with pytest.raises(InputError, match="float16"):
        autocast(torch.device("cpu"), "float16")
    for words in (["--dtype", "fp16"], ["--fp16"]):
        with pytest.raises(InputError, match="float16 is none of auto, float32, bfloat16"):
            override(RunConfig(), words)


def test_deterministic_asks_torch_and_cublas_for_the_same_bits(monkeypatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    setup("cpu")
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        setup("cpu", deterministic=True)
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)


# ---- randomness ----

def test_random_numbers_depend_on_their_key_alone():
    """And on all of it: the order, the sign and how many numbers it has."""
    def draw(*key):
        return torch.randn(4, generator=generator(*key))

    first = draw(0, 5, 7)
    torch.manual_seed(99)
    assert torch.equal(draw(0, 5, 7), first)
    keys = [(0, 5, 7), (0, 5, 8), (0, 7, 5), (1, 5, 7), (0, 5), (0, 5, 0), (0, -1, 7), (5, 0, 7)]
    assert len(torch.stack([draw(*key) for key in keys]).unique(dim=0)) == len(keys)


def test_neighbouring_keys_are_independent():
    """One number of each of 4,000 keys: standard normal, without correlation to the next."""
    draws = [torch.randn((), generator=generator(0, s, i)) for s in range(40) for i in range(100)]
    x = torch.stack(draws)
    assert abs(x.mean()) < 0.06 and abs(x.std() - 1) < 0.05
    assert abs((x[1:] * x[:-1]).mean()) < 0.06 and abs((x[100:] * x[:-100]).mean()) < 0.06


# ---- read-ahead ----

def test_ahead_keeps_the_order_and_computes_before_it_is_asked():
    asked = threading.Event()

    def make(key):
        if key == 3:
            asked.set()
        return key * 10

    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, make, range(6), depth=4)
        assert next(results) == 0
        assert asked.wait(5)                # the fourth was computed although nobody asked for it
        assert list(results) == [10, 20, 30, 40, 50]
    assert list(ahead(None, make, range(3), depth=0)) == [0, 10, 20]


def test_ahead_raises_where_the_result_is_asked_for():
    with ThreadPoolExecutor(2) as pool:
        results = ahead(pool, lambda key: 1 / key, [1, 0], depth=4)
        assert next(results) == 1
        with pytest.raises(ZeroDivisionError):
            next(results)


# ---- torch on a CPU ----

@pytest.mark.parametrize("rows, without_onednn", [(1, True), (2, False)])
def test_decoding_turns_onednn_off_for_a_single_sequence(rows, without_onednn):
    before = torch.backends.mkldnn.enabled
    with pytest.raises(KeyError), decoding(rows, torch.device("cpu")):
        assert torch.backends.mkldnn.enabled == (before and not without_onednn)
        raise KeyError
    assert torch.backends.mkldnn.enabled == before


# ---- recorded functions ----

@pytest.mark.parametrize("kind, runs", [("cpu", 4), ("cuda", 2)])
def test_a_recorded_function_does_its_work_once_a_call(kind, runs, monkeypatch):
    """The first call runs it, the second records and plays it, later ones play it alone.

    The recording is stood in for: it puts back what recording has computed, since nothing runs
    then, and a replay computes from the recorded inputs into the recorded output.
    """
    total, calls = torch.zeros(1), []

    def add(number):
        total.add_(number)
        return total * 2

    def function(number):
        calls.append(number)
        return add(number)

    recorded = Recorded(function, torch.device(kind))

    class Graph:
        def replay(self):
            recorded.output.copy_(add(*recorded.inputs))

    @contextmanager
    def recording(graph):
        before = total.clone()
        yield
        total.copy_(before)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    results = [recorded(torch.tensor([number])) for number in (1, 2, 3, 4)]
    assert torch.cat(results).tolist() == [2, 6, 12, 20] and len(calls) == runs
