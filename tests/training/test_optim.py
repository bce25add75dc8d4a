"""training/optim.py: the learning rate, who trains which parameter, Muon's update, the average."""
import math
from types import SimpleNamespace

import pytest
import torch

from common.cli import InputError
from training import optim


def settings(optimizer="adamw", weight_decay=0.0, dtype="bfloat16"):
    return SimpleNamespace(
        optimizer=optimizer, lr=0.01, weight_decay=weight_decay, dtype=dtype)


def network():
    """A convolution and two matrices; parameters are called 0, 2 and 3."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Linear(3, 3))


def backward(module):
    module(torch.ones(2, 2, 3, 3)).square().sum().backward()


def test_the_learning_rate_warms_up_and_stays_or_follows_a_cosine():
    assert [optim.lr_at(s, 1.0, 4, 100) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    assert optim.lr_at(0, 2e-4, 0, 10) == 2e-4
    # in the order of operations that all runs so far have had: the last digit counts
    assert optim.lr_at(405, 2e-3, 100, 2600, "cosine") == 2e-3 * 0.5 * (
        1 + math.cos(math.pi * 305 / 2500))
    cosine = [optim.lr_at(s, 1.0, 10, 110, "cosine") for s in (9, 10, 35, 60, 110)]
    assert cosine == pytest.approx([1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, 0], abs=1e-9)


def test_adamw_is_the_papers_and_leaves_out_what_is_frozen():
    module = network()
    module[0].requires_grad_(False)
    adamw, = optim.optimizers(module, settings(weight_decay=0.1))
    group = adamw.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.95), 1e-15, 0.1)
    assert {id(p) for p in group["params"]} == {id(p) for p in module[2:].parameters()}


def test_muon_takes_the_matrices_and_every_parameter_is_taken_once():
    module = network()
    module[3].requires_grad_(False)
    adamw, muon = optim.optimizers(module, settings("muon"), adamw_only=("2.weight",))
    by_muon = muon.param_groups[0]["params"]
    assert [id(p) for p in by_muon] == [id(module[0].weight)]
    taken = by_muon + adamw.param_groups[0]["params"]
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert len(taken) == len(trained) and {id(p) for p in taken} == trained
    with pytest.raises(InputError, match="adamw, muon"):
        optim.optimizers(module, settings("sgd"))


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_an_orthogonal_update_has_singular_values_near_1(shape):
    """And the directions of U V^T."""
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    update = optim.orthogonal(matrix)
    u, s, vt = torch.linalg.svd(matrix, full_matrices=False)
    strong = torch.linalg.svdvals(update)[:int((s > 0.1 * s[0]).sum())]
    assert update.shape == matrix.shape and strong.min() > 0.6 and strong.max() < 1.3
    assert torch.cosine_similarity(update.flatten(), (u @ vt).flatten(), dim=0) > 0.95


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_muon_multiplies_in_the_format_of_the_run(dtype, monkeypatch):
    """A CPU without bf16 would spend most of a step on these products."""
    asked = []

    def orthogonal(matrix, dtype):
        asked.append(dtype)
        return matrix
    monkeypatch.setattr(optim, "orthogonal", orthogonal)
    module = network()
    _, muon = optim.optimizers(module, settings("muon", dtype=dtype))
    backward(module)
    muon.step()
    assert set(asked) == {getattr(torch, dtype)}


def test_the_rate_of_a_step_reaches_every_optimizer_and_gradients_go():
    module = network()
    optimizers = optim.optimizers(module, settings("muon"))
    before = [p.detach().clone() for p in module.parameters()]

    backward(module)
    optim.step_all(optimizers, 0.0)
    assert all(torch.equal(old, p) for old, p in zip(before, module.parameters()))
    assert all(p.grad is None for p in module.parameters())

    backward(module)
    optim.step_all(optimizers, 0.5)
    assert not any(torch.equal(old, p) for old, p in zip(before, module.parameters()))


# ---- the average ----

def test_the_average_in_closed_form():
    """The decay ramps up to what was asked for."""
    module = torch.nn.Linear(2, 1, bias=False)
    values = torch.randn(40, 1, 2, generator=torch.Generator().manual_seed(0))
    module.weight.data.copy_(values[0])
    ema = optim.EMA(module, 0.7)
    expected = values[0]
    for n, value in enumerate(values[1:], 1):
        module.weight.data.copy_(value)
        ema.update()
        decay = min(0.7, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    assert torch.allclose(ema.shadow["weight"], expected, atol=1e-6)


def test_the_average_holds_what_is_trained_in_fp32_and_is_live_within_a_context():
    module = network().bfloat16()
    module[0].requires_grad_(False)
    ema = optim.EMA(module, 0.9)
    assert ema.shadow.keys() == {"2.weight", "2.bias", "3.weight", "3.bias"}
    assert all(tensor.dtype == torch.float32 for tensor in ema.shadow.values())

    weights = module[2].weight.detach().clone()
    ema.shadow["2.weight"] += 1
    average = ema.shadow["2.weight"].clone()
    with ema.swapped():
        assert torch.equal(module[2].weight, average.bfloat16())
        assert torch.equal(ema.shadow["2.weight"], weights.float())
    assert torch.equal(module[2].weight, weights)
