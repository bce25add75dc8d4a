"""training/resume.py: the run that goes on is the run that was never interrupted, bit for bit."""
import os
import shutil
import signal
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import weights
from common.cli import InputError
from tiny_runs import MAIN, identical, log, same_run, tensors
from train_und import TrainConfig
from training import optim
from training.resume import checkpoint_to_resume, optimizer_state, restore, tidy
from weights import adapters, checkpoint


@pytest.fixture(scope="module", params=[(1, "muon"), (2, "adamw")], ids=["stage 1", "stage 2"])
def whole(request, line, tmp_path_factory):
    """Six steps that nothing interrupts -> train(out), the directory of the run."""
    stage, optimizer = request.param

    def train(out, *more):
        MAIN[stage](line(stage, out, "--optimizer", optimizer, "--steps", 6, "--save-every", 3,
                         "--eval-every", 3, *more))
    run = tmp_path_factory.mktemp("whole")
    train(run)
    assert len(log(run)) == 8
    return train, run


def test_a_run_goes_on_from_the_newest_whole_checkpoint(whole, tmp_path, capsys):
    """Past a damaged one, and without the lines of the log that a kill cut off."""
    train, reference = whole
    run = shutil.copytree(reference, tmp_path / "run")
    damaged = run / "00000006" / "ema.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 0x10              # one bit: the same length
    damaged.write_bytes(content)
    with open(run / "log.jsonl", "a") as file:
        file.write('{"step": 7, "lo')
    train(run)
    assert "passing over" in capsys.readouterr().err
    same_run(run, reference)
    for part in ("vae", "projector"):
        if (reference / "00000006" / f"{part}.safetensors").exists():
            assert identical(tensors(run, part), tensors(reference, part))

    train(run)                          # a finished run is left alone
    same_run(run, reference)


def test_a_run_without_an_average_goes_on_too(whole, tmp_path):
    """`--ema 0` trains the same weights, and its checkpoints hold no others."""
    train, reference = whole
    runs = [tmp_path / "at once", tmp_path / "in parts"]
    for run in runs:
        train(run, "--ema", 0)
    shutil.rmtree(runs[1] / "00000006")
    train(runs[1], "--ema", 0)
    same_run(*runs)
    assert not list(runs[0].glob("*/ema*"))
    assert identical(tensors(runs[0]), tensors(reference))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_ends_and_later_the_run_goes_on(whole, tmp_path, capsys, number):
    train, reference = whole
    before = signal.getsignal(number)
    steps = []

    def ask(*_):
        steps.append(number)
        if len(steps) == 2:
            os.kill(os.getpid(), number)

    hook = register_optimizer_step_post_hook(ask)
    try:
        train(tmp_path / "run")
    finally:
        hook.remove()
    step = int(checkpoint.newest(tmp_path / "run").name)
    # Muon and AdamW step one after the other; a signal during an update is seen in the next step
    assert step in (2, 3)
    assert f"{step} of 6 steps" in capsys.readouterr().out
    assert signal.getsignal(number) is before
    train(tmp_path / "run")
    same_run(tmp_path / "run", reference)


# ---- what is looked at before a run, and what is deleted ----

def write_checkpoint(cfg, step, settings=None):
    settings = asdict(cfg) if settings is None else settings
    checkpoint.save(cfg.out, step, config={"settings": settings},
                    tensors={"model": {"a": torch.zeros(3)}})


def test_the_newest_checkpoint_of_the_same_settings_goes_on(tmp_path):
    """What changes no result may change: where a run is cut, saved and logged, and its memory."""
    cfg = TrainConfig(out=str(tmp_path / "run"), lr=1e-3)
    assert checkpoint_to_resume(cfg) is None and not (tmp_path / "run").exists()
    write_checkpoint(cfg, 5)
    free = dict(micro_batch=2, save_every=7, keep=5, recompute=False, shard=False, workers=4)
    for changes in ({}, {"steps": 5}, free):
        assert checkpoint_to_resume(replace(cfg, **changes)) == tmp_path / "run" / "00000005"
    with pytest.raises(InputError, match=r"other settings \(lr=0.001\).*--overwrite"):
        checkpoint_to_resume(replace(cfg, lr=2e-3))
    with pytest.raises(InputError, match="5 steps already"):
        checkpoint_to_resume(replace(cfg, steps=4))
    # with a cosine the number of steps decides every learning rate
    write_checkpoint(replace(cfg, decay="cosine"), 6)
    with pytest.raises(InputError, match=r"other settings \(steps="):
        checkpoint_to_resume(replace(cfg, decay="cosine", steps=7))


def test_a_run_of_an_earlier_version_goes_on(tmp_path):
    """Its settings that are gone are passed over where they changed nothing."""
    cfg = TrainConfig(out=str(tmp_path / "run"))
    earlier = {**asdict(cfg), "keep_every": 0, "train_u": False, "und_share": 0.0}
    write_checkpoint(cfg, 5, earlier)
    assert checkpoint_to_resume(cfg) == tmp_path / "run" / "00000005"
    write_checkpoint(cfg, 6, {**earlier, "train_u": True})
    with pytest.raises(InputError, match=r"other settings \(train_u=True\)"):
        checkpoint_to_resume(cfg)


def test_auto_goes_on_in_the_format_of_the_run(tmp_path):
    """Another format that is asked for by name is another run."""
    cfg = TrainConfig(out=str(tmp_path / "run"), dtype="bfloat16")
    write_checkpoint(cfg, 5)
    assert checkpoint_to_resume(replace(cfg, dtype="auto")) == tmp_path / "run" / "00000005"
    with pytest.raises(InputError, match=r"other settings \(dtype=bfloat16\)"):
        checkpoint_to_resume(replace(cfg, dtype="float32"))


def test_looking_deletes_nothing_and_tidying_only_what_a_run_wrote(tmp_path):
    """What is refused between the two costs nobody a checkpoint."""
    write_checkpoint(TrainConfig(out=str(tmp_path)), 5)
    (tmp_path / "log.jsonl").write_text('{"step": 5}\n')
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".tmp-00000010").mkdir()
    assert checkpoint_to_resume(TrainConfig(out=str(tmp_path), lr=1, overwrite=True)) is None

    tidy(tmp_path, anew=False)
    names = ["00000005", "log.jsonl", "notes.txt"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    tidy(tmp_path, anew=True)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("name, words", [
    ("20240131/film.png", "20240131 is no checkpoint of ours"),
    ("log.jsonl", "log.jsonl is no log of ours"),
    ("thesis.tex", "no run that --overwrite could replace, but other files .thesis.tex.")])
def test_what_no_run_has_written_is_never_deleted(tmp_path, name, words):
    """Not even a folder whose name, a date, looks like that of a checkpoint."""
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text('{"mine": 1}\n')
    with pytest.raises(InputError, match=words):
        checkpoint_to_resume(TrainConfig(out=str(tmp_path), overwrite=True))
    assert path.read_text() == '{"mine": 1}\n'


@pytest.mark.parametrize("settings, stage, words", [
    ({"init": "run"}, 1, "run, which --init .*run needs, lies in it"),
    ({"init": "run/00000005"}, 1, "run/00000005, which --init .* needs, lies in it"),
    ({"init": "adapted"}, 1, "run/00000005, which --init .*adapted needs, lies in it"),
    ({}, 2, "holds a run of stage 1, and this is stage 2")])
def test_a_run_never_replaces_one_of_another_stage_or_its_own_beginning(
        tmp_path, settings, stage, words):
    cfg = TrainConfig(out=str(tmp_path / "run"), overwrite=True)
    checkpoint.save(cfg.out, 5, config={"settings": asdict(cfg), "stage": 1},
                    tensors={"model": {"a": torch.zeros(3)}})
    base = adapters.model_base(cfg.out)
    checkpoint.save(tmp_path / "adapted", 3, tensors={},
                    config={**weights.describe(), "base": base, "stage": 1})
    assert checkpoint_to_resume(cfg, stage=1) is None
    settings = {name: str(tmp_path / value) for name, value in settings.items()}
    with pytest.raises(InputError, match=words):
        checkpoint_to_resume(replace(cfg, **settings), stage)


def test_a_checkpoint_is_deleted_whole_or_is_none(tmp_path, monkeypatch):
    """What a kill in the middle of deleting leaves is no checkpoint, and goes the next time."""
    write_checkpoint(TrainConfig(out=str(tmp_path)), 5)

    def killed(path, **_):
        (path / "config.json").unlink()
        raise KeyboardInterrupt
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint.shutil, "rmtree", killed)
        checkpoint.remove(tmp_path / "00000005")
    assert not checkpoint.checkpoints(tmp_path)
    tidy(tmp_path, anew=False)
    assert list(tmp_path.iterdir()) == []


# ---- a sharded optimizer ----

@pytest.fixture
def group_of_one(tmp_path):
    meeting = f"file://{tmp_path / 'meet'}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("device", DEVICES)
def test_a_sharded_state_comes_back_once_and_where_the_weights_are(device, group_of_one, tmp_path):
    """torch keeps what it loads twice, and `step` on the CPU, where CUDA's kernel refuses it."""
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(4, 3)).to(device)
    cfg = SimpleNamespace(optimizer="adamw", lr=0.01, weight_decay=0.1)
    before = optim.optimizers(net, cfg, shard=True)
    ema = optim.EMA(net, 0.9)
    for p in net.parameters():
        p.grad = torch.ones_like(p)
    optim.step_all(before, 0.01)
    torch.save(optimizer_state(before, ema), tmp_path / "state.pt")
    save_file({name: tensor.cpu() for name, tensor in ema.shadow.items()},
              tmp_path / "ema.safetensors")
    (tmp_path / "config.json").write_text('{"step": 1}')

    after = optim.optimizers(net, cfg, shard=True)
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
