"""phantom/train_vae.py on a data set of a few tiny noise images."""
import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import weights


def run(tmp_path, *words):
    from phantom import train_vae
    train_vae.main([*"--sizes 32 16 --ch 8 --ch-mult 1 2 --norm-groups 4 --z-channels 4 --batch-size 4 --steps 4 "
                     "--warmup 1 --save-every 2 --log-every 1 --dtype float32 --device cpu".split(),
                    "--data", str(tmp_path), *words])


@pytest.fixture
def packed(tmp_path):
    from common.packed import Writer
    rng = np.random.default_rng(0)
    for size in (32, 16):
        with Writer(tmp_path / f"gen-{size}", "gen", size, {}, shard_size=6) as writer:
            for i in range(10):
                Image.fromarray(rng.integers(0, 255, (size, size), dtype=np.uint8)).save(buffer := io.BytesIO(), "PNG")
                writer.add(buffer.getvalue(), dict(id=str(i), split="val" if i % 5 == 4 else "train", report=""))
    return tmp_path


def tensors(directory):
    return load_file(directory / "vae.safetensors")


def test_resumed_run_equals_uninterrupted(packed):
    run(packed, "--out", str(packed / "a"))
    whole = tensors(packed / "a" / "00000004")
    shutil.rmtree(packed / "a" / "00000004")                # as if it had been killed after step 2
    run(packed, "--out", str(packed / "a"))
    again = tensors(packed / "a" / "00000004")
    assert all(torch.equal(whole[k], again[k]) for k in whole)
    steps = [json.loads(line)["step"] for line in (packed / "a" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4] and (packed / "a" / "reconstructions.png").exists()


def test_latents_are_normalised(packed):
    from training import batches as data
    run(packed, "--out", str(packed / "a"))
    vae = weights.find_vae(packed / "a")
    sets, draws = [data.Packed(packed, "gen", size, "train") for size in (32, 16)], []
    for pictures in sets:
        for i in range(len(pictures)):
            x = (pictures.image(i).float() / 127.5 - 1).expand(1, 3, -1, -1)
            with torch.no_grad():
                mean, logvar = vae.moments(x)
                draws += [vae.normalise(mean, logvar, torch.randn_like(mean)).flatten() for _ in range(50)]
    draws = torch.cat(draws)
    assert abs(draws.mean()) < 0.05 and abs(draws.std() - 1) < 0.05


def test_every_checkpoint_knows_its_scale_and_shift(packed):
    """Not only the last one: a run that was stopped half-way is a VAE too."""
    run(packed, "--out", str(packed / "a"))
    for step in (2, 4):
        cfg = weights.find_vae(packed / "a" / f"{step:08d}").cfg
        assert cfg.scale != 1 and cfg.shift != 0
