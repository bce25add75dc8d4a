"""weights/export.py: a run becomes a small checkpoint, or one in the release's layout.

That tensors of the release come back bit for bit is tested in test_golden.py.
"""
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import weights
from common.cli import InputError
from helpers import close, some_tokenizer, tiny_config, tiny_vae
from model import UniX
from vae import VAE, VAEConfig
from weights import checkpoint, layouts
from weights.export import export_release, made_up_unused, main


def a_unix(**changes):
    """A small model, and what stands for its tokenizer."""
    return UniX(tiny_config(**changes)), SimpleNamespace(json=some_tokenizer(64))


def names(directory):
    return sorted(path.name for path in directory.iterdir())


# ---- the release's layout ----

def test_the_directory_holds_what_the_authors_code_asks_for(release):
    directory = release[2]
    assert names(directory) == ["config.json", "model.safetensors", "tokenizer.json", "vae"]
    assert names(directory / "vae") == ["config.yaml", "kl-f16d16.ckpt"]
    config = json.loads((directory / "config.json").read_text())["language_config"]
    assert config == {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 100_600,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    }
    params = json.loads((directory / "vae" / "config.yaml").read_text())["model"]["params"]
    assert params["embed_dim"] == 16 and params["monitor"]
    assert params["lossconfig"]["target"] == "torch.nn.Identity"
    assert params["ddconfig"] == {
        "double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 1, 1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [16],
        "dropout": 0.0,
    }
    content = torch.load(directory / "vae" / "kl-f16d16.ckpt", weights_only=True)
    assert list(content) == ["state_dict"]


def test_a_model_that_began_as_janus_comes_back_and_what_will_differ_is_said(tmp_path, capsys):
    vision = replace(tiny_config().vision, **layouts.JANUS_PIXELS)
    before, tokenizer = a_unix(max_text=99, vision=vision)
    export_release(before, None, tokenizer, tmp_path / "UniX")
    after, vae, _ = weights.load(tmp_path / "UniX")
    assert after.cfg == before.cfg and vae is None
    printed = capsys.readouterr().out
    assert "the pooling head as zeros" in printed
    assert "not trained with: double_bos True, connector_gelu tanh, bos 100000" in printed
    assert "mean (0.555895" in printed


def test_what_came_with_a_release_survives_a_checkpoint_of_ours(tmp_path):
    """Release -> checkpoint of ours -> release: the same bytes, the dropped tensors included."""
    model, tokenizer = a_unix()
    for name, tensor in made_up_unused(model.cfg).items():
        if "attn_pool" in name:
            model.unused[name] = torch.randn(tensor.shape)
    export_release(model, None, tokenizer, tmp_path / "before")
    written = load_file(tmp_path / "before" / "model.safetensors")
    assert all(torch.equal(written[name], tensor) for name, tensor in model.unused.items())

    model, _, tokenizer = weights.load(tmp_path / "before")
    checkpoint.save(tmp_path / "run", 3, config=weights.describe(model), tokenizer=tokenizer.json,
                    tensors={"model": weights.model_tensors(model)})
    main([str(tmp_path / "run"), str(tmp_path / "after"), "--release"])
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        before, after = (tmp_path / side / name for side in ("before", "after"))
        assert before.read_bytes() == after.read_bytes()


def test_an_export_is_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(*_):
        raise RuntimeError("disk full")

    model, tokenizer = a_unix()
    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match="UniX could not be written .disk full"):
        vae = VAE(VAEConfig(ch=32, ch_mult=(1, 1), n_res=1))
        export_release(model, vae, tokenizer, tmp_path / "UniX")
    assert names(tmp_path) == []


def test_what_the_layout_cannot_say_is_refused_and_a_directory_with_files(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for generation, vae, directory, sentence in (
        (False, None, tmp_path / "UniX", "no generation branch"),
        (True, tiny_vae(), tmp_path / "UniX", "no kl-f16"),
        (True, None, tmp_path, "not empty"),
    ):
        model, tokenizer = a_unix(generation=generation)
        with pytest.raises(InputError, match=sentence):
            export_release(model, vae, tokenizer, directory)
        assert names(tmp_path) == ["notes.txt"]


# ---- the command ----

def test_a_small_checkpoint_is_the_average_in_half(run, tmp_path):
    before, average, vae_before, directory = run
    small = tmp_path / "small"
    main([str(directory), str(small)])
    after, vae, _ = weights.load(small)
    for name, expected in {**before.state_dict(), **average}.items():
        close(after.state_dict()[name], expected, 1e-3)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, vae_before.state_dict()[name].half().float())

    # the stage and its settings stay, what only training needs goes
    assert names(small) == [
        "config.json", "model.safetensors", "tokenizer.json", "vae.safetensors"]
    stored = load_file(small / "model.safetensors")
    assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    config = checkpoint.read_config(small)
    assert (config["stage"], config["step"], config["settings"]) == (3, 7, {"lr": 1.0})
    assert "world" not in config


def test_a_small_checkpoint_overwrites_nothing(run):
    directory = run[3]
    before = names(directory)
    with pytest.raises(InputError, match="not empty"):
        main([str(directory), str(directory)])
    assert names(directory) == before


@pytest.mark.parametrize("line", ["out/run", "--release out/run UniX", "out/run UniX --half"])
def test_a_wrong_command_line_shows_the_right_one(line):
    with pytest.raises(InputError, match="python -m weights.export out/phantom/gen128 demo"):
        main(line.split())
