"""training/resume.py: the run that goes on is the run that was never interrupted, bit for bit."""
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import train_gen
import train_und
from common.cli import InputError
from tiny_runs import gen, identical, log, same_run, tensors, und
from training import optim
from training.resume import checkpoint_to_resume, optimizer_state, restore, tidy
from weights import checkpoint


@pytest.mark.parametrize("stage, how", [(1, "adamw"), (1, "muon"), (2, "muon"), (3, "adamw")])
def test_resumed_is_uninterrupted(stage, how, phantom, stage1, stage2, vae_run, tmp_path):
    every = ("--save-every", 3, "--eval-every", 3, "--optimizer", how)

    def train(out, steps):
        more = (*every, "--steps", steps)
        if stage == 1:
            train_und.main(und(phantom, out, *more))
        elif stage == 2:
            train_gen.main(gen(phantom, out, stage1, "--vae", vae_run, *more))
        else:
            more = ("--stage", 3, "--size", 64, "--repa", 0, *more)
            train_gen.main(gen(phantom, out, stage2, *more))

    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(whole, 6)
    train(resumed, 3)
    with open(resumed / "log.jsonl", "a") as file:          # steps that a kill cut off
        file.write('{"step": 4, "loss": 1, "mse": 1}\n{"step": 5, "lo')
    train(resumed, 6)
    same_run(resumed, whole)
    assert len(log(whole)) == 8
    if stage == 2:
        for part in ("vae", "projector"):
            assert identical(tensors(whole, part), tensors(resumed, part)), part
    assert [path.name for path in checkpoint.checkpoints(resumed)] == ["00000003", "00000006"]


@pytest.mark.parametrize("more, sentence", [
    (["--steps", 30, "--lr", 1], "other settings .*lr=0.003"),
    (["--steps", 29], "30 steps already")])
def test_what_is_another_run_is_refused(stage1, phantom, more, sentence):
    with pytest.raises(InputError, match=sentence):
        train_und.main(und(phantom, stage1, *more))


def test_settings_that_change_no_result_may_change(stage1, phantom):
    """Where a run is cut into micro-batches, saved and logged, and how much memory it takes."""
    more = ("--steps", 30, "--micro-batch", 2, "--save-every", 7, "--keep", 5, "--recompute")
    train_und.main(und(phantom, stage1, *more))


# ---- what is looked at before a run, and what is deleted ----

@dataclass
class Settings:
    """A training's settings, as far as resuming asks for them."""
    out: str
    steps: int = 10
    lr: float = 1e-3
    workers: int = 0
    overwrite: bool = False


def write_checkpoint(run, step):
    checkpoint.save(run, step, config={"settings": vars(Settings(str(run)))},
                    tensors={"model": {"a": torch.zeros(3)}})


def test_the_newest_checkpoint_of_the_same_settings_goes_on(tmp_path):
    run = tmp_path / "run"
    assert checkpoint_to_resume(Settings(str(run))) is None
    assert not run.exists()
    write_checkpoint(run, 5)
    for free in ({}, {"steps": 20}, {"steps": 5, "workers": 4}):
        assert checkpoint_to_resume(Settings(str(run), **free)) == run / "00000005"
    with pytest.raises(InputError, match="lr=0.001.*--overwrite"):
        checkpoint_to_resume(Settings(str(run), lr=2e-3))


def test_looking_deletes_nothing_and_tidying_only_what_a_run_wrote(tmp_path):
    """What is refused between the two costs nobody a checkpoint."""
    write_checkpoint(tmp_path, 5)
    (tmp_path / "log.jsonl").write_text("{}\n")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".tmp-00000010").mkdir()
    assert checkpoint_to_resume(Settings(str(tmp_path), lr=2e-3, overwrite=True)) is None

    tidy(tmp_path, anew=False)
    names = ["00000005", "log.jsonl", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    tidy(tmp_path, anew=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# ---- optimizers and the average ----

def settings(optimizer="adamw"):
    return SimpleNamespace(optimizer=optimizer, lr=0.01, weight_decay=0.1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten(), nn.Linear(4, 3))


def save(directory, optimizers, ema, step):
    torch.save(optimizer_state(optimizers, ema), directory / "state.pt")
    average = {name: tensor.cpu() for name, tensor in ema.shadow.items()}
    save_file(average, directory / "ema.safetensors")
    (directory / "config.json").write_text(f'{{"step": {step}}}')


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_a_sharded_state_comes_back_once_and_where_the_weights_are(device, tmp_path):
    """torch keeps what it loads twice, and `step` on the CPU, where CUDA's kernel refuses it."""
    meeting = f"file://{tmp_path / 'meet'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    try:
        net = network().to(device)
        before = optim.optimizers(net, settings(), shard=True)
        ema = optim.EMA(net, 0.9)
        for p in net.parameters():
            p.grad = torch.ones_like(p)
        optim.step_all(before, 0.01)
        save(tmp_path, before, ema, step=1)

        after = optim.optimizers(net, settings(), shard=True)
        assert restore(tmp_path, after, ema) == (1, 0)
        assert not after[0].state
        state = after[0].optim.state
        assert len(state) == len(list(net.parameters()))
        for p, values in state.items():
            for name, value in values.items():
                assert value.device.type == device
                assert torch.equal(value, before[0].optim.state[p][name])
        after[0].consolidate_state_dict()
        assert after[0].state_dict()["state"].keys() == set(range(len(state)))
    finally:
        torch.distributed.destroy_process_group()
