"""weights.shrink: a run becomes a small checkpoint that draws and reads the same. (Loading itself: test_golden.py.)"""
import pytest
import torch

import checkpoint
import weights
from common import InputError
from conftest import close


def run_of(tmp_path, tiny, tiny_vae, tokenizer):
    ema = {name: p.detach() + 0.25 for name, p in tiny.named_parameters() if name.startswith("lm_head")}
    checkpoint.save(tmp_path / "run", 7, config={**weights.describe(tiny, tiny_vae), "stage": 3, "settings": {"lr": 1.0}},
                    tensors={"model": weights.model_tensors(tiny), "ema": ema, "vae": tiny_vae.state_dict()}, tokenizer=tokenizer)
    return tmp_path / "run"


def test_shrink_keeps_the_average_in_half(tmp_path, tiny, tiny_vae):
    import tokenizers
    run = run_of(tmp_path, tiny, tiny_vae, tokenizers.Tokenizer(tokenizers.models.BPE()).to_str())
    weights.shrink(run, tmp_path / "small")
    model, vae, _ = weights.load(tmp_path / "small")
    for name, p in tiny.named_parameters():
        close(dict(model.named_parameters())[name], p.detach() + (0.25 if name.startswith("lm_head") else 0), 1e-3)
    assert all(torch.equal(a.half().float(), b) for a, b in zip(tiny_vae.state_dict().values(), vae.state_dict().values()))
    assert checkpoint.read_config(tmp_path / "small")["step"] == 7
    half = (tmp_path / "small" / "model.safetensors").stat().st_size
    assert half < 0.52 * (run / "00000007" / "model.safetensors").stat().st_size
    with pytest.raises(InputError, match="not empty"):
        weights.shrink(run, tmp_path / "small")
