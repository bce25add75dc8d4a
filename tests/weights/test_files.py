"""weights/files.py: every tensor is used or dropped by name; a damaged file is one sentence."""
import json
import sys
import types

import pytest
import torch
import torch.nn as nn
from safetensors.torch import save_file

from common.cli import InputError
from weights.files import few, fill_translated, read_tensors
from weights.layouts import Layout

LAYOUT = Layout(
    "a toy",
    names={"positions": "pos_embed", "qkv": ["q", "k", "v"], "conv": "linear"},
    dropped={"head.": "not needed"},
    new={"gain": 1.0, "conv.bias": 0.5},
)


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(3, 4))
        self.qkv = nn.Linear(4, 12)
        self.conv = nn.Conv2d(4, 4, 1)
        self.gain = nn.Parameter(torch.zeros(4))


def toy_file():
    """What another's file of a Toy holds."""
    tensors = {
        "pos_embed": torch.randn(1, 3, 4),
        "linear.weight": torch.randn(4, 4),
        "head.weight": torch.randn(2),
    }
    for name in "qkv":
        tensors[f"{name}.weight"] = torch.randn(4, 4)
        tensors[f"{name}.bias"] = torch.randn(4)
    return tensors


def equal(ours, theirs):
    """Whether two tables hold the same tensors under the same names."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# ---- numbers that are none ----

@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e39])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused_by_name(value, dtype):
    """Also those that are too large for the format that is wanted."""
    source = {name: tensor.double() for name, tensor in toy_file().items()}
    source["k.bias"][2] = value
    with pytest.raises(InputError, match="some.file: qkv.bias holds numbers that are not finite"):
        fill_translated(Toy(), source, LAYOUT, "some.file", dtype)


# ---- names ----

def test_tensors_are_renamed_joined_reshaped_and_started():
    source = {name: tensor.half() for name, tensor in toy_file().items()}
    toy = fill_translated(Toy(), source, LAYOUT, "file", torch.float32)
    expected = {
        "positions": source["pos_embed"][0],
        "qkv.weight": torch.cat([source[f"{name}.weight"] for name in "qkv"]),
        "qkv.bias": torch.cat([source[f"{name}.bias"] for name in "qkv"]),
        "conv.weight": source["linear.weight"][:, :, None, None],
        "conv.bias": torch.full((4,), 0.5),
        "gain": torch.ones(4),
    }
    assert equal(toy.state_dict(), {name: tensor.float() for name, tensor in expected.items()})
    assert not toy.training
    assert fill_translated(Toy(), source, LAYOUT, "file").positions.dtype == torch.float16


@pytest.mark.parametrize("changes, sentence", [
    ({"linear.weight": None}, "missing there: conv.weight; unknown to us: nothing"),
    ({"k.bias": None}, "missing there: qkv.bias; unknown to us: q.bias, v.bias"),
    ({"extra": torch.ones(1)}, "missing there: nothing; unknown to us: extra"),
    ({"positions": torch.ones(3, 4)}, r"unknown to us: positions \(our name, not theirs\)"),
    ({"pos_embed": torch.ones(4, 3)}, r"positions has shape \(4, 3\), .* wants \(3, 4\)"),
    ({"pos_embed": torch.ones(3, 4, dtype=torch.int32)}, "positions holds torch.int32, not float"),
    ({"q.bias": torch.ones(4, dtype=torch.int32)}, "v.bias belong together and differ"),
    ({"q.bias": torch.ones(3)}, "v.bias belong together and differ"),
])
def test_what_does_not_fit_is_refused_and_both_sides_are_named(changes, sentence):
    source = {**toy_file(), **changes}
    source = {name: tensor for name, tensor in source.items() if tensor is not None}
    with pytest.raises(InputError, match=sentence) as error:
        fill_translated(Toy(), source, LAYOUT, "the/file")
    assert "\n" not in str(error.value)


def test_few_names_eight_and_counts_the_rest():
    assert few("abcdefgh") == "a, b, c, d, e, f, g, h"
    assert few("jihgfedcba") == "a, b, c, d, e, f, g, h and 2 more"


# ---- forms of files ----

def save_old(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)     # as torch did before 1.6


def save_shards(tensors, index, save=save_file, suffix="safetensors"):
    """Two files and an index that says which tensor lies in which."""
    weight_map = {}
    for number in (1, 2):
        shard = f"model-{number:05d}-of-00002.{suffix}"
        names = sorted(tensors)[number - 1::2]
        save({name: tensors[name] for name in names}, index.with_name(shard))
        weight_map |= dict.fromkeys(names, shard)
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


FORMS = [
    ("model.safetensors", save_file),
    ("model.safetensors.index.json", save_shards),
    ("pytorch_model.bin", torch.save),
    ("pytorch_model.bin", save_old),
    ("pytorch_model.bin.index.json", lambda x, path: save_shards(x, path, torch.save, "bin")),
    ("kl-f16d16.ckpt", lambda x, path: torch.save({"state_dict": x}, path)),
    ("kl-f16d16.ckpt", lambda x, path: torch.save({"epoch": 3, "model_state_dict": x}, path)),
]


@pytest.mark.parametrize("name, save", FORMS)
def test_every_form_of_a_directory_gives_the_same_tensors_or_is_refused_if_cut_short(
        tmp_path, name, save):
    tensors = toy_file()
    path = tmp_path / name
    save(tensors, path)
    assert equal(read_tensors(tmp_path), tensors)
    whole = path.read_bytes()
    path.unlink()                           # what was read is still mapped
    path.write_bytes(whole[:-30])
    with pytest.raises(InputError, match=f"{name} (is damaged|is cut short|asks to run code)"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("save", [torch.save, save_old])
def test_a_pickle_of_lightning_names_a_class_and_none_of_its_code_is_needed(
        tmp_path, monkeypatch, save):
    """kl-f16 is of the time when Lightning put its callback's class beside the weights."""
    module = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": module})
    tensors = toy_file()
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[module].ModelCheckpoint = callback
        content = {"callbacks": {callback: {"best": 1}}, "state_dict": tensors}
        save(content, tmp_path / "x.ckpt")
    assert equal(read_tensors(tmp_path / "x.ckpt"), tensors)


# ---- files that are refused ----

@pytest.mark.parametrize("shard, sentence", [
    (None, "and its shards differ in pos_embed"),
    ("model-00002-of-00002.safetensors", "and its shards differ in pos_embed"),
    ("model-00003-of-00002.safetensors", "00003-of-00002.safetensors, not there; download again"),
    ("../model-00001-of-00002.safetensors", "does not say which file"),
])
def test_an_index_that_its_shards_contradict_is_refused(tmp_path, shard, sentence):
    index = tmp_path / "model.safetensors.index.json"
    save_shards(toy_file(), index)
    content = json.loads(index.read_text())
    del content["weight_map"]["pos_embed"]
    if shard is not None:
        content["weight_map"]["pos_embed"] = shard
    index.write_text(json.dumps(content))
    with pytest.raises(InputError, match=sentence):
        read_tensors(tmp_path)


class Code:
    def __reduce__(self):
        return print, ("this must never be printed",)


@pytest.mark.parametrize("content, sentence", [
    ({"x": Code()}, "asks to run code when it is read"),
    ([torch.ones(1)], "something else than named tensors"),
    ({3: torch.ones(1)}, "something else than named tensors"),
    ({"x": 3}, "something else than named tensors"),
])
def test_a_pickle_of_anything_but_named_tensors_is_refused(tmp_path, capsys, content, sentence):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=sentence):
        read_tensors(tmp_path)
    assert capsys.readouterr().out == ""


def test_where_there_are_no_weights(tmp_path):
    with pytest.raises(InputError, match="no weights at .*docs/weights.md says where"):
        read_tensors(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="holds no weights, none of model.safetensors"):
        read_tensors(tmp_path)
