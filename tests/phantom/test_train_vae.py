"""The phantom's autoencoder, trained for four steps on noise: exact resuming, a known scale."""
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import weights
from common.cli import InputError
from common.packed import Packed, Writer
from common.processes import Process
from phantom import train_vae
from phantom.prepare import png
from training.latents import as_seen

SETTINGS = """--sizes 32 16 --ch 8 --ch-mult 1 2 --norm-groups 4 --z-channels 4
              --steps 4 --batch-size 4 --warmup 1 --save-every 2 --log-every 1
              --dtype float32 --device cpu""".split()
CPU = torch.device("cpu")


def run(data, out, *more):
    train_vae.main([*SETTINGS, "--data", str(data), "--out", str(out), *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The root of gen-32 and gen-16, with eight pictures of noise to train on."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for size in (32, 16):
        with Writer(root / f"gen-{size}", "gen", size, {}) as writer:
            for i in range(10):
                picture = rng.integers(0, 255, (size, size), dtype=np.uint8)
                split = "train" if i < 8 else "val"
                writer.add(png(picture), dict(id=str(i), split=split, report=""))
    return root


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    """The directory of a run that was never interrupted."""
    directory = tmp_path_factory.mktemp("run")
    run(data, directory)
    return directory


@pytest.fixture
def sets(data):
    return [Packed(data, "gen", size, "train") for size in (32, 16)]


def tensors(directory, name):
    return load_file(directory / f"{name}.safetensors")


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def steps(directory):
    lines = (directory / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


# ---- resuming ----

def test_a_killed_run_goes_on_as_if_nothing_had_happened(data, out, tmp_path):
    killed = shutil.copytree(out, tmp_path / "killed")
    shutil.rmtree(killed / "00000004")
    run(data, killed)
    for name in ("vae", "live"):
        assert equal(tensors(killed / "00000004", name), tensors(out / "00000004", name))
    assert steps(killed) == steps(out) == [1, 2, 3, 4]


def test_a_signal_asks_for_a_checkpoint_and_an_end(data, out, tmp_path, monkeypatch):
    sample_batch = train_vae.sample_batch

    def interrupted(sets, cfg, step, process):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample_batch(sets, cfg, step, process)
    monkeypatch.setattr(train_vae, "sample_batch", interrupted)
    run(data, tmp_path)
    assert steps(tmp_path) == [1, 2, 3]
    monkeypatch.undo()
    run(data, tmp_path)
    assert equal(tensors(tmp_path / "00000004", "vae"), tensors(out / "00000004", "vae"))


def test_a_run_of_other_settings_is_refused(data, out):
    with pytest.raises(InputError, match="other settings .kl=0.0001"):
        run(data, out, "--kl", "1e-3")


# ---- what it learns from ----

def test_processes_share_the_images_of_a_step(sets):
    """Whoever computes it, image `index` of a step is the same, with the same noise."""
    cfg = train_vae.TrainConfig(sizes=[32, 16], ch_mult=[1, 2], z_channels=4, batch_size=4)
    sizes = []
    for step in range(12):
        images, noise, ids = train_vae.sample_batch(sets, cfg, step, Process(0, 1, CPU))
        sizes.append(images.shape[-1])
        assert len(images) == len(noise) == len(ids) == {32: 4, 16: 8}[sizes[-1]]
        assert noise.shape[1:] == (4, sizes[-1] // 2, sizes[-1] // 2)
        for rank in (0, 1):
            share = train_vae.sample_batch(sets, cfg, step, Process(rank, 2, CPU))
            assert torch.equal(share[0], images[rank::2])
            assert torch.equal(share[1], noise[rank::2])
            assert share[2] == ids[rank::2]
    assert set(sizes) == {32, 16}, "the sizes take turns"


def test_a_fresh_autoencoder_is_narrow_and_its_branches_are_silent():
    cfg = train_vae.TrainConfig(ch=8, ch_mult=[1, 2], norm_groups=4, z_channels=4)
    vae = train_vae.build(cfg)
    x = torch.randn(1, 8, 6, 6)
    added = vae.encoder.down[0].block[0](x) - x             # no more than a constant
    assert added.std(dim=(2, 3)).max() < 1e-6
    _, logvar = vae.moments(torch.zeros(1, 3, 16, 16))
    assert -5 < logvar.mean() < -3


# ---- what it leaves behind ----

def test_the_vae_is_the_average(out):
    assert not equal(tensors(out / "00000004", "vae"), tensors(out / "00000004", "live"))
    assert (out / "reconstructions.png").exists()


def test_every_checkpoint_knows_its_scale_and_shift(out):
    """Not only the last one: a run that was stopped half-way is a VAE too."""
    for step in (2, 4):
        cfg = weights.find_vae(out / f"{step:08d}").cfg
        assert cfg.scale != 1
        assert cfg.shift != 0


@torch.no_grad()
def test_latents_are_normalised(out, sets):
    vae = weights.find_vae(out)
    latents = []
    for pictures in sets:
        mean, logvar = vae.moments(as_seen(pictures, range(len(pictures)), CPU))
        for _ in range(50):
            latents.append(vae.normalise(mean, logvar, torch.randn_like(mean)).flatten())
    latents = torch.cat(latents)
    assert abs(latents.mean()) < 0.05
    assert abs(latents.std() - 1) < 0.05


# ---- what is refused ----

@pytest.mark.parametrize("words, sentence", [
    ("--data nowhere", "no packed data set at nowhere/gen-32"),
    ("--norm-groups 3", "divide"),
    ("--batch-size 0", "--batch-size 0 must be 1 or more"),
    ("--optimizer sgd", "--optimizer sgd is none of adamw, muon"),
])
def test_bad_settings_end_in_one_sentence(data, tmp_path, words, sentence):
    with pytest.raises(InputError, match=sentence):
        run(data, tmp_path, *words.split())


def test_a_batch_that_does_not_divide_into_the_processes_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(train_vae.Run, "world", 3, raising=False)
    monkeypatch.setattr("training.run.processes.setup", lambda *_: Process(0, 3, CPU))
    monkeypatch.setattr("training.run.check_ranks_agree", lambda cfg: None)
    with pytest.raises(InputError, match="--batch-size 4 does not divide into 3 processes"):
        run(data, tmp_path)
