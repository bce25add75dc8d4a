"""common/processes.py: devices, random numbers by key, read-ahead, torch on a CPU."""
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from common.cli import InputError
from common.processes import ahead, autocast, decoding, generator, setup


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
    ({"RANK": "2"}, "RANK=2 .* not below WORLD_SIZE=2")])
def test_a_part_of_torchruns_variables_is_named(monkeypatch, changes, words):
    for name, value in {**WHOLE, **changes}.items():
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=words):
        setup("cpu")


def test_a_job_script_may_name_a_meeting_point_for_others(monkeypatch):
    for name in WHOLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "here")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    assert setup("cpu").world == 1


def test_what_is_no_device_or_number_format(monkeypatch):
    with pytest.raises(InputError, match="auto, cpu, cuda"):
        setup("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="no CUDA"):
        setup("cuda")
    with pytest.raises(InputError, match="float16"):
        autocast(torch.device("cpu"), "float16")


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
