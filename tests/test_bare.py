"""The three commands of the README, bare, as two processes, in a folder laid out as they expect it: tiny networks under the real
names and layouts (Janus-Pro, kl-f16, RAD-DINO), toy pictures at the real sizes. Each is asked to stop after its first step."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import tokenizers

from weights import checkpoint
from phantom import prepare as prepare_phantom
from training import latents
import weights
from helpers import ROOT, TOWER, scramble

transformers = pytest.importorskip("transformers")
diffusers = pytest.importorskip("diffusers")


def word_tokenizer(size):
    """A word a token, few of them, and as many others as Janus-Pro has."""
    words = "the heart is normal in size no moderate small large mild severe cardiomegaly pleural effusion lungs are clear".split()
    names = words + [f"<{i}>" for i in range(len(words), size)]
    bpe = tokenizers.Tokenizer(tokenizers.models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=names[-1]))
    bpe.normalizer, bpe.pre_tokenizer = tokenizers.normalizers.Lowercase(), tokenizers.pre_tokenizers.Whitespace()
    return bpe.to_str()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """datasets/mimic/{und-384,gen-256,gen-512} with short reports, pretrained/{Janus-Pro-1B,vae,rad-dino}."""
    root = tmp_path_factory.mktemp("bare")
    data, pretrained = root / "datasets" / "mimic", root / "pretrained"
    data.mkdir(parents=True)
    for size, kept in ((384, ("und-384",)), (512, ("gen-256", "gen-512"))):
        prepare_phantom.main(f"--out {root / str(size)} --size {size} --train 5 --val 2 --test 1 --workers 1 --vocab-size 400".split())
        for name in kept:
            (root / str(size) / name).rename(data / name)
            path = data / name / "00000.jsonl"
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            path.write_text("".join(json.dumps({**row, "report": row["report"].split(".")[0]}) + "\n" for row in rows))

    config = transformers.JanusConfig(
        text_config=dict(model_type="llama", hidden_size=32, intermediate_size=64, num_hidden_layers=8, num_attention_heads=2,
                         num_key_value_heads=2, vocab_size=100_600, rms_norm_eps=1e-6, tie_word_embeddings=False),
        vision_config=dict(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=384, patch_size=16,
                           projection_dim=32, mlp_ratio=4.0, num_image_tokens=576, depth=2),
        vq_config=dict(embed_dim=8, num_embeddings=32, base_channels=32, channel_multiplier=[1, 1], num_res_blocks=1,
                       projection_dim=32, latent_channels=8, image_token_embed_dim=32, num_patches=4), tie_word_embeddings=False)
    scramble(transformers.JanusForConditionalGeneration(config)).save_pretrained(pretrained / "Janus-Pro-1B")
    (pretrained / "Janus-Pro-1B" / "tokenizer.json").write_text(word_tokenizer(100_581), encoding="utf-8")
    scramble(transformers.Dinov2Model(transformers.Dinov2Config(**{**TOWER, "image_size": 70, "patch_size": 14}, mlp_ratio=4))
             ).save_pretrained(pretrained / "rad-dino")
    scramble(diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",), latent_channels=16, norm_num_groups=32,
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4, block_out_channels=(32,) * 5, layers_per_block=1)
    ).save_pretrained(pretrained / "vae")
    before = os.getcwd()
    os.chdir(root)
    try:        # full-size pictures through the encoder at every step would be all that this test does
        latents.main(["--device", "cpu"])
    finally:
        os.chdir(before)
    return root


def run_until_saved(folder, out, script, *options):
    """`torchrun --nproc_per_node=2 script.py options`, told to stop as soon as it trains."""
    with open(folder / "printed.txt", "w") as printed:
        run = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port",
                                str(27000 + os.getpid() % 500), str(ROOT / script), *options], cwd=folder, stdout=printed,
                               stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"})
        end = time.time() + 240
        while not (folder / out).exists() and run.poll() is None and time.time() < end:
            time.sleep(0.1)
        ranks = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
        for rank in ranks:
            os.kill(int(rank), signal.SIGTERM)
        assert run.wait(timeout=240) == 0, (folder / "printed.txt").read_text()[-3000:]
    return checkpoint.read_config(checkpoint.newest(folder / out))


def test_three_stages_bare(folder):
    first = run_until_saved(folder, "out/und", "train_und.py")
    assert first["stage"] == 1 and 0 < first["step"] < 100 and first["settings"]["batch_size"] == 256
    second = run_until_saved(folder, "out/gen256", "train_gen.py")
    assert second["stage"] == 2 and second["settings"]["repa"] == 0.5 and "latents: stored" in (folder / "printed.txt").read_text()
    third = run_until_saved(folder, "out/gen512", "train_gen.py", "--stage", "3")
    assert third["stage"] == 3 and third["settings"]["size"] == 512
    model, vae, _ = weights.load(folder / "out/gen512")
    assert model.cfg.vision.image_size == 384 and model.cfg.max_latent_size == 32 and vae.factor == 16
    row = run_until_saved(folder, "out/table5-1:1", "train_gen.py", "--preset", "table5-1:1")
    assert row["settings"]["und_share"] == 1
