"""Tiny checkpoints with random values: a Janus-Pro, a released UniX, a run of ours."""
from types import SimpleNamespace

import pytest
import torch

import weights
from helpers import TOWER, randomise, scramble, some_tokenizer, tiny_config, tiny_vae
from model import UniX, UniXConfig
from vae import VAE, VAEConfig
from vision import ViTConfig
from weights import checkpoint
from weights.export import export_release


@pytest.fixture(scope="session")
def janus_port(tmp_path_factory):
    """Janus-Pro as transformers writes it -> (its model, the directory)."""
    transformers = pytest.importorskip("transformers")
    config = transformers.JanusConfig(
        text_config=dict(
            model_type="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=4, vocab_size=100_600, rms_norm_eps=1e-3,
            tie_word_embeddings=False),
        vision_config=dict(
            **TOWER, projection_dim=32, mlp_ratio=4.0, num_image_tokens=16, depth=2,
            layer_norm_eps=1e-3),
        vq_config=dict(
            embed_dim=8, num_embeddings=32, base_channels=32, channel_multiplier=[1, 1],
            num_res_blocks=1, projection_dim=32, latent_channels=8, image_token_embed_dim=32,
            num_patches=4),
        tie_word_embeddings=False)
    model = scramble(transformers.JanusForConditionalGeneration(config))
    directory = tmp_path_factory.mktemp("janus")
    model.save_pretrained(directory)
    (directory / "tokenizer.json").write_text(some_tokenizer(100_581), encoding="utf-8")
    return model, directory


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """A UniX with the special tokens of the real one, and a kl-f16, in the release's layout
    -> (model, vae, directory)."""
    torch.manual_seed(0)
    vision = ViTConfig(image_size=32, n_layer=2, n_head=1, n_embd=64, n_inner=128)
    cfg = UniXConfig(n_layer=2, n_head=4, n_embd=32, n_inner=48, vocab_size=100_600, vision=vision,
                     repa_layer=2, max_latent_size=4, double_bos=True, connector_gelu="tanh")
    model = scramble(UniX(cfg))
    vae = scramble(VAE(VAEConfig(ch=32, ch_mult=(1, 1, 1, 1, 2), n_res=1)))
    directory = tmp_path_factory.mktemp("release") / "UniX"
    numbers = SimpleNamespace(json=some_tokenizer(100_600))
    export_release(model, vae, numbers, directory)
    return model, vae, directory


@pytest.fixture
def run(tmp_path):
    """A run of ours with an average of its language head -> (model, average, vae, directory)."""
    vae = tiny_vae()
    model = randomise(UniX(tiny_config(latent_channels=vae.cfg.embed_dim)))
    average = {"lm_head.weight": model.lm_head.weight.detach() + 0.25}
    tensors = {"model": weights.model_tensors(model), "ema": average, "vae": vae.state_dict()}
    config = {**weights.describe(model, vae), "stage": 3, "settings": {"lr": 1.0}, "world": 2}
    checkpoint.save(tmp_path / "run", 7, config=config, tensors=tensors,
                    state={"n": torch.ones(9)}, tokenizer=some_tokenizer(64))
    return model, average, vae, tmp_path / "run"


@pytest.fixture
def altered(tmp_path):
    """altered(directory, {file name: text, or None to leave it out}) -> a copy with these changes.

    The other files are links, since copying them for every test would take longer than the test.
    """
    def copy(directory, changes):
        target = tmp_path / "altered"
        target.mkdir()
        for path in directory.iterdir():
            if path.name not in changes:
                (target / path.name).symlink_to(path)
        for name, text in changes.items():
            if text is not None:
                (target / name).write_text(text, encoding="utf-8")
        return target
    return copy
