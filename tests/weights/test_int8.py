"""weights/int8.py: the error of a rounded matrix, its products, and what a user does with it."""
import copy

import numpy as np
import pytest
import torch
import torch.nn as nn

import evaluate
import sample
import weights
from common.cli import InputError
from helpers import ROOT, close
from weights import int8

DTYPES = [torch.float32, torch.bfloat16]


def layers(dtype, rows=48, columns=64):
    """A linear layer of random weights, in floats and in int8."""
    torch.manual_seed(0)
    linear = nn.Linear(columns, rows).to(dtype)
    whole = int8.Int8Linear(linear)
    whole.weight = whole.take(linear.weight.detach(), dtype)
    return linear, whole


@pytest.mark.parametrize("dtype", DTYPES)
def test_no_weight_is_off_by_more_than_half_a_step(dtype):
    """|W - q s| <= s / 2 and |q| <= 127 in every row, whatever its size; a row of zeros stays."""
    W = torch.randn(50, 33) * torch.logspace(-6, 6, 50)[:, None]
    W[7] = 0
    q, s = int8.quantise(W.to(dtype), dtype)
    W, s = W.to(dtype).double(), s.double()
    assert q.abs().max() <= 127 and not q[7].any()
    assert ((W - q * s[:, None]).abs() <= s[:, None] / 2 * (1 + 1e-6)).all()
    # nor is a step wider than needed, but for its rounding to bf16
    assert (s <= (W.abs().amax(1) / 127 * 1.01).where(W.any(1), torch.ones(()))).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [40, 64])
@pytest.mark.parametrize("rows", [1, int8.FEW_ROWS, int8.FEW_ROWS + 1, 70])
def test_its_product_is_that_of_the_rounded_matrix(dtype, rows, columns):
    """On both ways, for few rows and for many; torch's own product ends in a crash at 40 columns.
    """
    linear, whole = layers(dtype, columns=columns)
    rounded = copy.deepcopy(linear)
    rounded.weight.data = (whole.weight.double() * whole.scale.double()[:, None]).to(torch.float32)
    x = torch.randn(2, rows, columns).to(dtype)[:1]
    expected = nn.functional.linear(x.float(), rounded.weight, linear.bias.float())
    tolerance = 2e-6 if dtype == torch.float32 else 2e-2
    assert torch.allclose(whole(x).float(), expected, rtol=tolerance, atol=tolerance)
    assert whole(x).dtype == dtype and whole(x).shape == (1, rows, 48)


def test_pieces_make_the_same_product(monkeypatch):
    linear, whole = layers(torch.float32)
    x = torch.randn(5, 64)
    at_once = whole(x)
    monkeypatch.setattr(int8, "SMALL_PIECE", 4 * 7 * 64)
    assert torch.allclose(whole(x), at_once, atol=1e-6)


def test_what_is_rounded_and_what_is_not():
    model, vae, _ = weights.load(ROOT / "demo", matrices="int8")
    rounded = {name for name, module in model.named_modules()
               if isinstance(module, int8.Int8Linear)}
    left = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert all(name.startswith(("connector", "latent", "time")) for name in left), left
    counts = [sum(name.startswith(part) for name in rounded) for part in ("layers", "vision")]
    assert counts == [2 * 7 * model.cfg.n_layer, 4 * model.cfg.vision.n_layer]
    assert "lm_head" in rounded and len(rounded) == sum(counts) + 1
    assert all(p.dtype != torch.int8 for p in vae.state_dict().values())


def test_others_are_read_in_int8_too(release):
    """A file of the release, tensor by tensor; the sum over all matrices is as it was."""
    before, _, directory = release
    model, _, _ = weights.load(directory, matrices="int8")
    for name, module in model.named_modules():
        if isinstance(module, int8.Int8Linear):
            close(module.weight * module.scale[:, None], before.get_submodule(name).weight, 0.01)


def test_it_cannot_be_trained():
    model, _, _ = weights.load(ROOT / "demo", matrices="int8")
    with pytest.raises(InputError, match="without int8 to train"):
        model.train()


def test_apples_gpus_are_refused():
    with pytest.raises(InputError, match="--device cpu"):
        weights.load(ROOT / "demo", device="mps", matrices="int8")
    assert not int8.in_int8("float", torch.device("mps"))


def test_numbers_that_are_none_are_named(tmp_path):
    linear, whole = layers(torch.float32)
    with torch.no_grad():
        linear.weight[3, 3] = torch.nan
    model = nn.Sequential(whole)
    with pytest.raises(InputError, match="0.weight"):
        weights.files.fill(model, {"0.weight": linear.weight, "0.bias": linear.bias}, "file")


def test_a_picture_and_a_report_from_a_command_line(tmp_path, capsys):
    """The picture is that of float weights to 35 dB; the facts of the report are the same."""
    pictures = []
    for choice in ("float", "int8"):
        out = tmp_path / f"{choice}.png"
        assert not sample.main(["--report", "Large left pleural effusion.", "--steps", "4",
                                "--dtype", "float32", "--weights", choice, "--out", str(out)])
        pictures.append(np.asarray(sample.read_image(out), dtype=float))
    error = ((pictures[0] - pictures[1]) ** 2).mean()
    assert 0 < error < 255 ** 2 / 10 ** 3.5
    capsys.readouterr()
    assert not sample.main(["--image", str(out), "--weights", "int8", "--dtype", "float32"])
    assert "effusion" in capsys.readouterr().out


def test_evaluation_takes_it_too(tmp_path):
    code = evaluate.main(["phantom", "--weights", "int8", "--num", "2", "--steps", "2", "--show",
                          "1", "--bootstrap", "0", "--out", str(tmp_path / "score")])
    assert not code and (tmp_path / "score.json").exists()
