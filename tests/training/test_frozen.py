"""training/frozen.py: the same bits as autocast's casts, and checkpoints that do not know of it."""
import copy

import pytest
import torch

import train_gen
from bench import table5
from helpers import randomise, tiny_config, tiny_vae
from model import UniX
from tiny_runs import gen, identical, tensors
from train_gen import GenStep, TrainConfig
from training import frozen
from training.batches import Batch

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def module():
    unix = randomise(UniX(tiny_config(latent_channels=4)))
    unix.freeze("u")
    return GenStep(unix, tiny_vae(), None, None, TrainConfig(repa=0.0)).train()


def test_the_bits_are_those_of_autocast(module):
    """The loss and every gradient; and what was is given back."""
    noise, posterior, *moments = torch.randn(4, 2, 4, 4, 4)
    batch = Batch(
        index=None, images=torch.zeros(2, 1, 32, 32), ids=torch.randint(4, 60, (2, 16)),
        valid=torch.ones(2, 16).bool(), normal=torch.randn(2), noise=noise, posterior=posterior,
        dropped=torch.tensor([True, False]), moments=torch.stack(moments, dim=1))

    def step(module):
        with torch.autocast("cpu", torch.bfloat16):
            mse, _ = module(batch)
        mse.sum().backward()
        gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
        return {"loss": mse.detach(), **gradients}

    plain, before = copy.deepcopy(module), copy.deepcopy(module.unix.state_dict())
    originals = frozen.in_bfloat16(module.unix, CUDA, "bfloat16", keep=True)
    assert identical(step(module), step(plain))
    assert identical({**module.unix.state_dict(), **originals}, before)
    halves = {name for name, p in module.unix.named_parameters() if p.dtype == torch.bfloat16}
    assert halves == originals.keys()
    assert {"layers.0.u.mlp.up.weight", "layers.2.u.heads.q.bias", "lm_head.weight"} <= halves
    assert not any(name.startswith("vae") or ".g." in name for name in halves)


@pytest.mark.parametrize("device, dtype", [(CPU, "bfloat16"), (CUDA, "float32")])
def test_nothing_changes_elsewhere(module, device, dtype):
    assert not frozen.in_bfloat16(module.unix, device, dtype)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("script, more", [
    (train_gen, []), (table5, ["--preset", "table5-0:1-frozen"]),
    (table5, ["--preset", "table5-0:1"])])
def test_a_checkpoint_holds_what_was_frozen_as_it_was(
        script, more, phantom, stage2, tmp_path, monkeypatch):
    """Where all of u is frozen, and in the row that trains it but for its last layers."""
    real = frozen.in_bfloat16
    turned = {}

    def as_on_cuda(module, *_, **keep):
        turned.update(real(module, CUDA, "bfloat16", **keep))
        return turned
    monkeypatch.setattr(frozen, "in_bfloat16", as_on_cuda)
    script.main(gen(phantom, tmp_path, stage2, "--dtype", "bfloat16", "--steps", 1, *more))
    assert "lm_head.weight" in turned
    assert tensors(tmp_path).keys() == tensors(stage2).keys()
    kept = {name: value for name, value in tensors(stage2).items()
            if name not in tensors(tmp_path, "ema")}
    assert identical({name: tensors(tmp_path)[name] for name in kept}, kept)
