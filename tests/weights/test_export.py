"""shrink: a run becomes a small checkpoint that draws and reads the same. (Loading itself: test_golden.py.)"""
import pytest
import torch

from weights import checkpoint
import weights
from weights.export import shrink
from common.processes import InputError
from helpers import close, randomise, some_tokenizer, tiny_config, tiny_vae
from model import UniX


def run_of(tmp_path, tiny, vae, tokenizer):
    ema = {name: p.detach() + 0.25 for name, p in tiny.named_parameters() if name.startswith("lm_head")}
    checkpoint.save(tmp_path / "run", 7, config={**weights.describe(tiny, vae), "stage": 3, "settings": {"lr": 1.0}},
                    tensors={"model": weights.model_tensors(tiny), "ema": ema, "vae": vae.state_dict()}, tokenizer=tokenizer)
    return tmp_path / "run"


def test_shrink_keeps_the_average_in_half(tmp_path):
    before = tiny_vae()
    tiny = randomise(UniX(tiny_config(latent_channels=before.cfg.embed_dim)))
    run = run_of(tmp_path, tiny, before, some_tokenizer(64))
    shrink(run, tmp_path / "small")
    model, vae, _ = weights.load(tmp_path / "small")
    for name, p in tiny.named_parameters():
        close(dict(model.named_parameters())[name], p.detach() + (0.25 if name.startswith("lm_head") else 0), 1e-3)
    assert all(torch.equal(a.half().float(), b) for a, b in zip(before.state_dict().values(), vae.state_dict().values()))
    assert checkpoint.read_config(tmp_path / "small")["step"] == 7
    half = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert half < 0.52 * (run / "00000007" / "model.safetensors").stat().st_size
    with pytest.raises(InputError, match="not empty"):
        shrink(run, tmp_path / "small")
