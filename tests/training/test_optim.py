"""training/optim.py: the learning rate, both optimizers, the average, and going on as if nothing had happened."""
import math
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from training import optim
from common.processes import InputError


def settings(optimizer="adamw", lr=0.01, weight_decay=0.0, shard=False):
    return SimpleNamespace(optimizer=optimizer, lr=lr, weight_decay=weight_decay)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 3), torch.nn.Linear(3, 3))


def test_learning_rate():
    assert [optim.lr_at(s, 1.0, 4, 100) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    assert optim.lr_at(0, 2e-4, 0, 10) == 2e-4
    cosine = [optim.lr_at(s, 1.0, 10, 110, "cosine") for s in (9, 10, 35, 60, 109, 110)]
    assert cosine == pytest.approx([1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 + math.cos(math.pi * 0.99)) / 2, 0], abs=1e-9)


def test_adamw_is_the_papers():
    module = network()
    module[0].requires_grad_(False)
    adamw, = optim.optimizers(module, settings(weight_decay=0.1, shard=False))
    group = adamw.param_groups[0]
    assert group["betas"] == (0.9, 0.95) and group["eps"] == 1e-15 and group["weight_decay"] == 0.1
    assert {id(p) for p in group["params"]} == {id(p) for layer in module[2:] for p in layer.parameters()}
    with pytest.raises(InputError, match="adamw, muon"):
        optim.optimizers(module, settings("sgd"))


def test_muon_takes_the_matrices_and_every_parameter_is_taken_once():
    module = network()
    module[3].requires_grad_(False)
    adamw, muon = optim.optimizers(module, settings("muon"), vectors=("2.weight",))
    taken = [p for o in (adamw, muon) for g in o.param_groups for p in g["params"]]
    assert [p is module[0].weight for p in muon.param_groups[0]["params"]] == [True]        # 2.weight stays with AdamW
    assert len(taken) == 4 and {id(p) for p in taken} == {id(p) for p in module.parameters() if p.requires_grad}


@pytest.mark.parametrize("shape", [(8, 8), (6, 20), (20, 6)])
def test_orthogonal(shape):
    """All singular values near 1, and the directions are those of U V^T."""
    m = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) * 1e-3
    got, (u, s, vt) = optim.orthogonal(m), torch.linalg.svd(m, full_matrices=False)
    strong = torch.linalg.svdvals(got)[: int((s > 0.1 * s[0]).sum())]
    assert got.shape == m.shape and strong.min() > 0.6 and strong.max() < 1.3
    assert (torch.cosine_similarity(got.flatten(), (u @ vt).flatten(), dim=0)) > 0.95


def test_the_rate_of_a_step_reaches_every_optimizer():
    module = network()
    both = optim.optimizers(module, settings("muon"))
    before = [p.detach().clone() for p in module.parameters()]
    module(torch.ones(2, 2, 3, 3)).square().sum().backward()
    optim.step_all(both, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters()))
    assert all(p.grad is None for p in module.parameters())
    module(torch.ones(2, 2, 3, 3)).square().sum().backward()
    optim.step_all(both, 0.5)
    assert not any(torch.equal(a, b) for a, b in zip(before, module.parameters()))


def test_average_in_closed_form():
    module = torch.nn.Linear(2, 1, bias=False)
    values = [torch.randn(1, 2, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    module.weight.data.copy_(values[0])
    ema, want = optim.EMA(module, 0.7), values[0]
    for n, value in enumerate(values[1:], 1):
        module.weight.data.copy_(value)
        ema.update()
        decay = min(0.7, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * value
    assert torch.allclose(ema.shadow["weight"], want, atol=1e-6)


def test_average_of_trained_parameters_and_swap():
    module = network().bfloat16()
    module[0].requires_grad_(False)
    ema = optim.EMA(module, 0.9)
    assert ema.shadow.keys() == {"2.weight", "2.bias", "3.weight", "3.bias"}
    assert all(x.dtype == torch.float32 for x in ema.shadow.values())
    module = network()
    ema = optim.EMA(module, 0.9)
    module[2].weight.data.add_(1)
    ema.update()
    live, average = module[2].weight.detach().clone(), ema.shadow["2.weight"].clone()
    ema.swap()
    assert torch.equal(module[2].weight, average) and torch.equal(ema.shadow["2.weight"], live)
    ema.swap()
    assert torch.equal(module[2].weight, live) and torch.equal(ema.shadow["2.weight"], average)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_resumed_is_uninterrupted(name, tmp_path):
    def run(module):
        return optim.optimizers(module, settings(name)), optim.EMA(module, 0.9)

    def step(module, optimizers, ema, x):
        module(x).square().sum().backward()
        optim.step_all(optimizers, 0.01), ema.update()

    one, x = network(), torch.randn(6, 2, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    parts = run(one)
    for i in range(3):
        step(one, *parts, x[i])
    torch.save(optim.state(*parts), tmp_path / "state.pt")
    save_file(parts[1].shadow, tmp_path / "ema.safetensors")
    (tmp_path / "config.json").write_text('{"step": 3}')
    two = network()
    two.load_state_dict(one.state_dict())
    others = run(two)
    assert optim.resume(tmp_path, *others) == (3, 0)
    for i in range(3, 6):
        step(one, *parts, x[i]), step(two, *others, x[i])
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert all(torch.equal(parts[1].shadow[k], others[1].shadow[k]) for k in parts[1].shadow)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU"))])
def test_a_sharded_state_comes_back_once_and_where_the_weights_are(device, tmp_path):
    """torch keeps what it loads twice, and `step` on the CPU, where CUDA's fused kernel refuses it."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        net = network().to(device)
        opts, ema = optim.optimizers(net, settings(), shard=True), optim.EMA(net, 0.9)
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optim.step_all(opts, 0.01)
        torch.save(optim.state(opts, ema), tmp_path / "state.pt")
        save_file({k: v.cpu() for k, v in ema.shadow.items()}, tmp_path / "ema.safetensors")
        (tmp_path / "config.json").write_text('{"step": 1}')
        again = optim.optimizers(net, settings(), shard=True)
        optim.resume(tmp_path, again, ema)
        assert not again[0].state
        held = again[0].optim.state
        assert len(held) == len(list(net.parameters()))
        assert all(t.device.type == device and torch.equal(t, opts[0].optim.state[p][k])
                   for p, one in held.items() for k, t in one.items())
        again[0].consolidate_state_dict()
        assert again[0].state_dict()["state"].keys() == set(range(len(held)))
    finally:
        torch.distributed.destroy_process_group()
