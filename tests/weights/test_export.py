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
from weights.export import export_release, main, shrink, made_up_unused


# ---- the release's layout ----

def test_the_directory_holds_what_the_authors_code_asks_for(release):
    directory = release[2]
    files = sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
    assert files == ["config.json", "model.safetensors", "tokenizer.json",
                     "vae", "vae/config.yaml", "vae/kl-f16d16.ckpt"]

    config = json.loads((directory / "config.json").read_text())["language_config"]
    assert config == {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 100_600,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
    }
    params = json.loads((directory / "vae" / "config.yaml").read_text())["model"]["params"]
    assert params["embed_dim"] == 16
    assert params["monitor"]
    assert params["lossconfig"]["target"] == "torch.nn.Identity"
    assert params["ddconfig"] == {
        "double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3,
        "ch": 32, "ch_mult": [1, 1, 1, 1, 2], "num_res_blocks": 1, "attn_resolutions": [16],
        "dropout": 0.0,
    }
    content = torch.load(directory / "vae" / "kl-f16d16.ckpt", weights_only=True)
    assert list(content) == ["state_dict"]


def a_unix(**changes):
    """A small model, and what stands for its tokenizer."""
    return UniX(tiny_config(**changes)), SimpleNamespace(json=some_tokenizer(64))


def test_a_model_that_began_as_janus_comes_back_as_it_was(tmp_path, capsys):
    """What the authors' code will do otherwise is said."""
    vision = replace(tiny_config().vision, **layouts.JANUS_PIXELS)
    before, tokenizer = a_unix(max_text=99, vision=vision)
    export_release(before, None, tokenizer, tmp_path / "UniX")
    after, vae, _ = weights.load(tmp_path / "UniX")
    assert after.cfg == before.cfg
    assert vae is None
    printed = capsys.readouterr().out
    assert "the pooling head as zeros" in printed
    assert "not trained with: double_bos True, connector_gelu tanh, bos 100000" in printed
    assert "mean (0.555895" in printed


def test_what_came_with_a_release_survives_a_checkpoint_of_ours(tmp_path, capsys):
    """Release -> checkpoint of ours -> release: the same bytes, the dropped tensors included."""
    model, tokenizer = a_unix()
    pooling_head = {name: torch.randn(tensor.shape)
                    for name, tensor in made_up_unused(model.cfg).items()
                    if "attn_pool" in name}
    model.unused = pooling_head
    export_release(model, None, tokenizer, tmp_path / "before")
    written = load_file(tmp_path / "before" / "model.safetensors")
    assert all(torch.equal(written[name], pooling_head[name]) for name in pooling_head)

    model, _, tokenizer = weights.load(tmp_path / "before")
    checkpoint.save(tmp_path / "run", 3, config=weights.describe(model), tokenizer=tokenizer.json,
                    tensors={"model": weights.model_tensors(model)})
    main([str(tmp_path / "run"), str(tmp_path / "after"), "--release"])
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        before, after = (tmp_path / side / name for side in ("before", "after"))
        assert before.read_bytes() == after.read_bytes()


def test_an_export_is_whole_or_not_at_all(tmp_path, monkeypatch):
    model, tokenizer = a_unix()
    vae = VAE(VAEConfig(ch=32, ch_mult=(1, 1), n_res=1))

    def full(*_):
        raise RuntimeError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(InputError, match="UniX could not be written .disk full"):
            export_release(model, vae, tokenizer, tmp_path / "UniX")
    assert not list(tmp_path.iterdir())

    (tmp_path / ".tmp-UniX" / "vae").mkdir(parents=True)           # what a kill leaves
    export_release(model, vae, tokenizer, tmp_path / "UniX")
    assert [path.name for path in tmp_path.iterdir()] == ["UniX"]


def test_an_export_wants_a_generation_branch(tmp_path):
    model, tokenizer = a_unix(generation=False)
    with pytest.raises(InputError, match="no generation branch"):
        export_release(model, None, tokenizer, tmp_path / "UniX")

def test_an_export_refuses_another_vae_and_a_directory_with_files(tmp_path):
    """The layout cannot say which VAE it is; nothing is overwritten."""
    model, tokenizer = a_unix()
    with pytest.raises(InputError, match="no kl-f16"):
        export_release(model, tiny_vae(), tokenizer, tmp_path / "UniX")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        export_release(model, None, tokenizer, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


# ---- a small checkpoint of ours ----

def test_shrink_keeps_the_average_in_half(run, tmp_path):
    before, average, vae_before, directory = run
    main([str(directory), str(tmp_path / "small")])
    after, vae, _ = weights.load(tmp_path / "small")
    expected = {**before.state_dict(), **average}
    for name, p in after.named_parameters():
        close(p.detach(), expected[name], 1e-3)
    for name, tensor in vae.state_dict().items():
        assert torch.equal(tensor, vae_before.state_dict()[name].half().float())

    files = {path.name: path for path in (tmp_path / "small").iterdir()}
    assert sorted(files) == [
        "config.json", "model.safetensors", "tokenizer.json", "vae.safetensors"]
    stored = load_file(files["model.safetensors"])
    assert all(tensor.dtype == torch.float16 for tensor in stored.values())
    config = checkpoint.read_config(tmp_path / "small")
    assert (config["stage"], config["step"], config["settings"]) == (3, 7, {"lr": 1.0})
    assert "world" not in config


def test_shrink_refuses_a_directory_with_files(run, tmp_path):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        shrink(run[3], tmp_path / "small")
    assert [path.name for path in (tmp_path / "small").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("line", ["", "out/run", "--release out/run UniX", "out/run UniX --half",
                                  "out/run UniX --release more"])
def test_a_wrong_command_line_shows_the_right_one(line):
    with pytest.raises(InputError, match="python -m weights.export out/phantom/gen128 demo"):
        main(line.split())
