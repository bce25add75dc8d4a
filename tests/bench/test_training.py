"""bench/training.py: what goes into the figures, on networks of no size. Speed is not tested."""
import pytest
import torch

import model
from attention import behind
from bench import training as bench

TINY = bench.Size(n_embd=64, n_layer=2, n_head=2, n_inner=96, grid=4, B=2, text=16)


def test_peak_bytes_are_those_of_tensors_that_exist_at_once():
    """Two tensors of 1 MB at once, a third after they are gone."""
    def call():
        a = torch.empty(2**20, dtype=torch.uint8)
        b = torch.empty(2**20, dtype=torch.uint8)
        del a, b
        torch.empty(2**20, dtype=torch.uint8)
    assert bench.peak_bytes(call) == 2 * 2**20


def test_frozen_text_costs_no_copy(monkeypatch):
    """More text costs its keys and values once, and attention's probabilities.

    If attention joined them with the block's, they would cost as much again.
    """
    size = bench.Size(n_embd=256, n_layer=4, n_head=1, n_inner=256, grid=8, B=2, text=16)
    ratio = bench.prefix(size, 64, 1, "float32")["memory_ratio"]
    assert 1.0 < ratio < 1.7

    def joined(*args):
        return [[torch.cat(parts, 2)] for parts in behind(*args)]

    monkeypatch.setattr(model, "behind", joined)
    assert bench.prefix(size, 64, 1, "float32")["memory_ratio"] > ratio + 0.6


@pytest.mark.slow
def test_the_shares_of_a_step_add_up():
    figures = bench.utilisation(TINY, 1, "float32")
    assert sum(figures["where"].values()) == pytest.approx(1)
    assert figures["share"] > figures["share_with_update"] > 0


@pytest.mark.slow       # it draws 64 phantoms
def test_data_of_both_forms_is_read_and_waited_for():
    figures = bench.pipeline(64, 1, 1, TINY, "float32")
    for form in ("JPEG", "PNG"):
        assert figures[form]["images_s"] > 0 and 0 <= figures[form]["waits"] < 1


def test_ddp_with_one_process_leaves_nothing_behind():
    assert bench.processes(TINY, 1, "float32")["ratio"] > 0
    assert not torch.distributed.is_initialized()
