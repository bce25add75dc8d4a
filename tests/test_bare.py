"""The three commands of the real run, bare, as two processes, in a folder laid out as they expect it.

Tiny networks under the real names and layouts (Janus-Pro, kl-f16, RAD-DINO), toy pictures at the
real sizes. Each command is asked to stop as soon as it trains.
"""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tokenizers

import weights
from helpers import ROOT, TOWER, scramble
from phantom import prepare
from scripts import free_port
from training import latents
from weights import checkpoint

pytestmark = pytest.mark.slow

WORDS = (
    "the heart is normal in size no moderate small large mild severe cardiomegaly pleural effusion "
    "lungs are clear").split()


def word_tokenizer(size):
    """A word a token, few of them, and as many others as Janus-Pro has."""
    names = WORDS + [f"<{i}>" for i in range(len(WORDS), size)]
    vocabulary = {name: i for i, name in enumerate(names)}
    words = tokenizers.models.WordLevel(vocabulary, unk_token=names[-1])
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.normalizer = tokenizers.normalizers.Lowercase()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer.to_str()


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
    tokenizer.write_text(word_tokenizer(100_581), encoding="utf-8")

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


def run_until_saved(folder, out, script, *options):
    """`torchrun --nproc_per_node=2 script options`, told to stop as soon as it trains."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
             f"--master_port={free_port()}", str(ROOT / script), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(folder / "printed.txt", "w") as printed:
        run = subprocess.Popen(
            words, cwd=folder, stdout=printed, stderr=subprocess.STDOUT, env=environment)
        end = time.time() + 240
        while not (folder / out).exists() and run.poll() is None and time.time() < end:
            time.sleep(0.1)
        line = ["pgrep", "-P", str(run.pid)]
        ranks = subprocess.run(line, capture_output=True, text=True).stdout.split()
        for rank in ranks:
            os.kill(int(rank), signal.SIGTERM)
        status = run.wait(timeout=600)
    assert status == 0, (folder / "printed.txt").read_text()[-3000:]
    return checkpoint.read_config(checkpoint.newest(folder / out))


def test_three_stages_bare(folder):
    first = run_until_saved(folder, "out/und", "train_und.py")
    assert first["stage"] == 1
    assert 0 < first["step"] < 100
    assert first["settings"]["batch_size"] == 256

    second = run_until_saved(folder, "out/gen256", "train_gen.py")
    assert second["stage"] == 2
    assert second["settings"]["repa"] == 0.5
    assert "latents are encoded" not in (folder / "printed.txt").read_text()

    third = run_until_saved(folder, "out/gen512", "train_gen.py", "--stage", "3")
    assert third["stage"] == 3
    assert third["settings"]["size"] == 512
    model, vae, _ = weights.load(folder / "out/gen512")
    assert model.cfg.vision.image_size == 384
    assert model.cfg.max_latent_size == 32
    assert vae.factor == 16
