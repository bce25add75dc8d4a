"""The three commands of the real run, bare, as two processes, in a folder as they expect it.

Tiny networks under the real names and layouts (Janus-Pro, kl-f16, RAD-DINO), toy pictures at the
real sizes. Each command is asked to stop as soon as it trains.
"""
import json
import os
import signal
import time

import pytest

import weights
from helpers import TOWER, scramble, some_tokenizer
from phantom import prepare
from training import latents
from weights import checkpoint

pytestmark = pytest.mark.slow

def write_data(root):
    """datasets/mimic/{und-384,gen-256,gen-512}: phantoms with reports of one sentence."""
    data = root / "datasets" / "mimic"
    data.mkdir(parents=True)
    for size, tasks in ((384, ["und-384"]), (512, ["gen-256", "gen-512"])):
        line = f"--size {size} --train 5 --val 2 --test 1 --workers 1 --vocab-size 400"
        prepare.main(["--out", str(root / str(size)), *line.split()])
        for task in tasks:
            (root / str(size) / task).rename(data / task)
            path = data / task / "00000.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            for row in rows:
                row["report"] = row["report"].split(".")[0]
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_networks(pretrained):
    """pretrained/{Janus-Pro-1B,vae,rad-dino}, tiny, as transformers and diffusers write them."""
    transformers = pytest.importorskip("transformers")
    diffusers = pytest.importorskip("diffusers")
    text = dict(
        model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=8,
        num_attention_heads=2, num_key_value_heads=2, vocab_size=100_600, rms_norm_eps=1e-6,
        tie_word_embeddings=False)
    vision = dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=384, patch_size=16,
        projection_dim=32, mlp_ratio=4.0, num_image_tokens=576, depth=2)
    vq = dict(
        embed_dim=8, num_embeddings=32, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, projection_dim=32, latent_channels=8, image_token_embed_dim=32,
        num_patches=4)
    config = transformers.JanusConfig(
        text_config=text, vision_config=vision, vq_config=vq, tie_word_embeddings=False)
    janus = transformers.JanusForConditionalGeneration(config)
    scramble(janus).save_pretrained(pretrained / "Janus-Pro-1B")
    tokenizer = pretrained / "Janus-Pro-1B" / "tokenizer.json"
    tokenizer.write_text(some_tokenizer(100_581), encoding="utf-8")

    sizes = {**TOWER, "image_size": 70, "patch_size": 14, "mlp_ratio": 4}
    dino = transformers.Dinov2Model(transformers.Dinov2Config(**sizes))
    scramble(dino).save_pretrained(pretrained / "rad-dino")

    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
        block_out_channels=(32,) * 5, layers_per_block=1, latent_channels=16, norm_num_groups=32)
    scramble(vae).save_pretrained(pretrained / "vae")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("bare")
    write_data(root)
    write_networks(root / "pretrained")
    # full-size pictures through the encoder at every step would be all that this test does
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        line = "--vae pretrained/vae --data datasets/mimic --sizes 256 512 --device cpu"
        latents.main(line.split())
    return root


def train(torchrun, stage, script, *options):
    """`torchrun --nproc_per_node=2 script options`, told to stop as soon as it trains -> stdout."""
    run = torchrun(script, options)
    end = time.time() + 240
    while f"stage {stage}:" not in run.err.read_text() and time.time() < end:
        time.sleep(0.1)                 # the progress bar appears once signals are listened to
    for rank in run.ranks:
        os.kill(rank, signal.SIGTERM)
    status, out, err = run.finish(600)
    assert status == 0, err[-3000:]
    return out


def saved(out):
    return checkpoint.read_config(checkpoint.newest(out))


def test_three_stages_bare(folder, torchrun, monkeypatch):
    monkeypatch.chdir(folder)
    train(torchrun, 1, "train_und.py")
    first = saved("out/und")
    assert first["stage"] == 1 and 0 < first["step"] < 100
    assert first["settings"]["batch_size"] == 256

    printed = train(torchrun, 2, "train_gen.py")
    second = saved("out/gen256")
    assert second["stage"] == 2 and second["settings"]["repa"] == 0.5
    assert "latents are encoded" not in printed

    train(torchrun, 3, "train_gen.py", "--stage", "3")
    third = saved("out/gen512")
    assert third["stage"] == 3 and third["settings"]["size"] == 512
    model, vae, _ = weights.load("out/gen512")
    assert model.cfg.vision.image_size == 384 and model.cfg.max_latent_size == 32
    assert vae.factor == 16
