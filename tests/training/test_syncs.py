"""The host waits for the device once a step, and in no micro-step, velocity or decoded token.

The device `meta` plays the GPU: it has no content, so whatever wants to know some fails or is seen.
"""
from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import train_gen
from attention import DecodeCache
from helpers import normal, randomise, tiny_config, tiny_vae
from model import UniX
from repa import Projector
from sample import Sampling, choose, guided
from tiny_runs import gen
from train_gen import GenStep
from train_und import UndStep
from training.batches import Batch
from training.run import Run
from vision import ViT

META = torch.device("meta")
WAITING = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "lift_fresh")


class NoWaiting(TorchDispatchMode):
    """Raises at operations for which a GPU's host would wait: values, sizes that depend on values,
    copies from the host that are no background copies."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = {} if kwargs is None else kwargs
        name = function.overloadpacket.__name__
        of_device = torch.is_tensor(args[0]) and args[0].device == META if args else False
        assert not (of_device and name in WAITING), f"the host waits in {name}"
        if name.startswith("index") and isinstance(args[1], (list, tuple)):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
            assert not masks, f"the host waits for the number of rows in {name}"
        out = function(*args, **kwargs)
        if name in ("_to_copy", "copy_"):
            source = args[0] if name == "_to_copy" else args[1]
            here = torch.is_tensor(source) and source.device.type == "cpu"
            waits = here and out.device == META and not kwargs.get("non_blocking", False)
            assert not waits, f"the host waits until {tuple(source.shape)} is copied"
        return out


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Numbers of the host come to a GPU by a copy; and autocast knows no meta device."""
    plain = torch.tensor

    def tensor(data, *, device=None, **kwargs):
        assert device is None or torch.device(device) != META, f"the host waits for {data}"
        return plain(data, device=device, **kwargs)
    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())


def step_and_batch(stage, T=16, B=2):
    """The step module of a stage on the device, a batch on the CPU."""
    unix = UniX(tiny_config(latent_channels=4, generation=stage == 2))
    ids = torch.randint(4, 60, (B, T))
    batch = Batch(index=torch.arange(B), images=torch.zeros(B, 1, 32, 32, dtype=torch.uint8),
                  ids=ids, valid=torch.ones_like(ids).bool(), labels=ids if stage == 1 else None)
    if stage == 1:
        return UndStep(unix).train().to(META), batch
    batch.normal, batch.dropped = torch.randn(B), torch.arange(B) == 0
    batch.noise, batch.posterior = torch.randn(2, B, 4, 4, 4)
    unix.freeze("u")
    encoder, projector = ViT(unix.cfg.vision), Projector(64, 32, 32)
    return GenStep(unix, tiny_vae(), encoder, projector, train_gen.TrainConfig()).to(META), batch


@pytest.mark.parametrize("stage", [1, 2])
def test_a_micro_step_waits_for_nothing(stage):
    module, batch = step_and_batch(stage)
    with NoWaiting():
        outputs = module(batch.to(META))
        (outputs if stage == 1 else sum(outputs).mean()).backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


def test_a_micro_step_walks_over_no_names(monkeypatch):
    module, batch = step_and_batch(2)
    monkeypatch.setattr(torch.nn.Module, "named_parameters", None)
    module(batch.to(META))


def test_a_velocity_waits_for_nothing():
    model = UniX(tiny_config()).to(META)
    velocity = guided(model, [[60, 5, 61], [60, 61]], Sampling(cfg=2.0))
    x = normal(2, 16, 4, 4).to(META)
    with NoWaiting(), torch.no_grad():
        for t in (torch.tensor(0.3), torch.tensor(0.7)):        # without guidance, and with it
            velocity(x, t.expand(2))


def test_a_token_waits_for_nothing():
    model = UniX(tiny_config()).to(META)
    with torch.no_grad():
        _, cache = model.prefill_image(torch.zeros(2, 3, 32, 32, device=META))
        cache, token = DecodeCache(cache, 4), torch.zeros(2, 1, dtype=torch.long, device=META)
        with NoWaiting():
            hidden, cache = model.prefill_text(token, cache=cache)
            choose(model.logits(hidden[:, -1]).float(), 0, 1.0, [])


def test_a_step_waits_once(phantom, stage2, tmp_path, monkeypatch):
    """For the norm of the gradient and whether to stop, together."""
    update, waits = Run.update, []

    def counted(self, *args):
        with monkeypatch.context() as patch:
            for name in ("item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__"):
                plain = vars(torch.Tensor).get(name, vars(torch._C.TensorBase).get(name))

                def counting(tensor, *args, plain=plain, name=name, **kwargs):
                    waits[-1].append(name)
                    return plain(tensor, *args, **kwargs)
                patch.setattr(torch.Tensor, name, counting)
            waits.append([])
            update(self, *args)
    monkeypatch.setattr(Run, "update", counted)
    train_gen.main(gen(phantom, tmp_path, stage2, "--steps", 2, "--log-every", 99))
    assert waits == [["tolist"]] * 2
