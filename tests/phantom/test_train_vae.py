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

CPU = torch.device("cpu")


def run(data, out, *more):
    line = f"""--data {data} --out {out} --sizes 32 16 --ch 8 --ch-mult 1 2 --norm-groups 4
               --z-channels 4 --steps 4 --batch-size 4 --warmup 1 --save-every 2 --log-every 1
               --dtype float32 --device cpu"""
    train_vae.main([*line.split(), *more])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The root of gen-32 and gen-16, each with eight pictures of noise to train on."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    for size in (32, 16):
        with Writer(root / f"gen-{size}", "gen", size, {}) as writer:
            for i in range(8):
                picture = rng.integers(0, 255, (size, size), dtype=np.uint8)
                writer.add(png(picture), dict(id=str(i), split="train", report=""))
    return root


@pytest.fixture(scope="module")
def out(data, tmp_path_factory):
    """The directory of a run that was never interrupted."""
    directory = tmp_path_factory.mktemp("run")
    run(data, directory)
    return directory


def same(a, b, name):
    """Whether two checkpoints hold the same bits in a file."""
    ours, theirs = (load_file(directory / f"{name}.safetensors") for directory in (a, b))
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


def steps(directory):
    lines = (directory / "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(data, out, tmp_path):
    killed = shutil.copytree(out, tmp_path / "killed")
    shutil.rmtree(killed / "00000004")
    run(data, killed)
    assert same(killed / "00000004", out / "00000004", "vae")
    assert same(killed / "00000004", out / "00000004", "live")
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
    assert same(tmp_path / "00000004", out / "00000004", "vae")


def test_processes_share_the_images_of_a_step(data):
    """Whoever computes it, image `index` of a step is the same, with the same noise."""
    sets = [Packed(data, "gen", size, "train") for size in (32, 16)]
    cfg = train_vae.TrainConfig(sizes=[32, 16], ch_mult=[1, 2], z_channels=4, batch_size=4)
    sizes = set()
    for step in range(12):
        images, noise, ids = train_vae.sample_batch(sets, cfg, step, Process(0, 1, CPU))
        size = images.shape[-1]
        sizes.add(size)
        assert len(images) == len(ids) == {32: 4, 16: 8}[size]
        for rank in (0, 1):
            share = train_vae.sample_batch(sets, cfg, step, Process(rank, 2, CPU))
            assert torch.equal(share[0], images[rank::2])
            assert torch.equal(share[1], noise[rank::2])
            assert share[2] == ids[rank::2]
    assert sizes == {32, 16}, "the sizes take turns"


@torch.no_grad()
def test_the_vae_is_the_average_and_every_checkpoint_knows_its_scale(data, out):
    """Not only the last one: a run that was stopped half-way is a VAE too."""
    assert (out / "reconstructions.png").exists()
    for step in (2, 4):
        vae = weights.find_vae(out / f"{step:08d}")
        live = load_file(out / f"{step:08d}" / "live.safetensors")
        assert not torch.equal(live["quant_conv.weight"], vae.quant_conv.weight)

        # draws from the posteriors have mean 0 and variance 1
        latents = []
        for size in (32, 16):
            images = as_seen(Packed(data, "gen", size), range(8), CPU)
            mean, logvar = vae.moments(images)
            for _ in range(50):
                latents.append(vae.normalise(mean, logvar, torch.randn_like(mean)).flatten())
        latents = torch.cat(latents)
        assert abs(latents.mean()) < 0.05
        assert abs(latents.std() - 1) < 0.05


@pytest.mark.parametrize("words, sentence", [
    ("--data nowhere --overwrite", "no packed data set at nowhere/gen-32"),
    ("--norm-groups 3 --overwrite", "divide"),
    ("--scales 9 --overwrite", "leaves nothing of a picture"),
    ("--z-channels 0 --overwrite", "must be 1 or more"),
    ("--kl 1e-3", "other settings .kl=0.0001"),
])
def test_what_cannot_run_is_refused_in_one_sentence(data, out, words, sentence):
    with pytest.raises(InputError, match=sentence):
        run(data, out, *words.split())


def test_a_batch_must_divide_into_the_processes(data, tmp_path, monkeypatch):
    monkeypatch.setattr("training.run.processes.setup", lambda *_: Process(0, 3, CPU))
    with pytest.raises(InputError, match="--batch-size 4 does not divide into 3 processes"):
        run(data, tmp_path)


def test_a_fresh_autoencoder_has_silent_branches_and_a_narrow_posterior():
    vae = train_vae.build(train_vae.TrainConfig(ch=8, ch_mult=[1, 2], norm_groups=4))
    x = torch.randn(1, 8, 6, 6)
    added = vae.encoder.down[0].block[0](x) - x             # no more than a constant
    assert added.std(dim=(2, 3)).max() < 1e-6
    _, logvar = vae.moments(torch.zeros(1, 3, 16, 16))
    assert -5 < logvar.mean() < -3
