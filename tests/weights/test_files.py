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
    names={
        "positions": "pos_embed",
        "blocks.{}.qkv": ["h.{}.q", "h.{}.k", "h.{}.v"],
        "conv": "linear",
    },
    dropped={"head.": "not needed"},
    new={".gain": 1.0, "conv.bias": 0.5},
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.gain = nn.Parameter(torch.zeros(4))


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions = nn.Parameter(torch.zeros(3, 4))
        self.blocks = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv2d(4, 4, 1)


def toy_file():
    """What another's file of a Toy holds."""
    tensors = {
        "pos_embed": torch.randn(1, 3, 4),
        "linear.weight": torch.randn(4, 4),
        "head.weight": torch.randn(2),
    }
    for i in range(2):
        for name in "qkv":
            tensors[f"h.{i}.{name}.weight"] = torch.randn(4, 4)
            tensors[f"h.{i}.{name}.bias"] = torch.randn(4)
    return tensors


# ---- names ----

def test_tensors_are_renamed_joined_reshaped_and_started():
    source = toy_file()
    toy = fill_translated(Toy(), source, LAYOUT, "file")
    parts = [source[f"h.1.{name}.weight"] for name in "qkv"]
    assert torch.equal(toy.blocks[1].qkv.weight, torch.cat(parts))
    assert torch.equal(toy.positions, source["pos_embed"][0])
    assert torch.equal(toy.conv.weight, source["linear.weight"][:, :, None, None])
    assert torch.equal(toy.blocks[0].gain, torch.ones(4))
    assert torch.equal(toy.conv.bias, torch.full((4,), 0.5))
    assert not toy.training


def test_dtype_is_that_of_the_file_or_the_one_asked_for():
    source = {name: tensor.half() for name, tensor in toy_file().items()}
    assert fill_translated(Toy(), source, LAYOUT, "file").positions.dtype == torch.float16
    wide = fill_translated(Toy(), source, LAYOUT, "file", torch.float32)
    assert all(p.dtype == torch.float32 for p in wide.parameters())


@pytest.mark.parametrize("changes, sentence", [
    ({"linear.weight": None}, "missing there: conv.weight; unknown to us: nothing"),
    ({"h.0.k.bias": None}, "missing there: blocks.0.qkv.bias; unknown to us: h.0.q.bias, h.0.v.b"),
    ({"extra": torch.ones(1)}, "missing there: nothing; unknown to us: extra"),
    ({"pos_embed": None, "pos_embd": torch.ones(3, 4)},
     "missing there: positions; unknown to us: pos_embd"),
    ({"positions": torch.ones(3, 4)}, r"unknown to us: positions \(our name, not theirs\)"),
    ({"pos_embed": torch.ones(4, 3)}, r"positions has shape \(4, 3\), .* wants \(3, 4\)"),
    ({"pos_embed": torch.ones(3, 4, dtype=torch.int32)}, "positions holds torch.int32, not float"),
    ({"h.0.q.bias": torch.ones(4, dtype=torch.int32)}, "h.0.v.bias belong together and differ"),
    ({"h.0.q.bias": torch.ones(3)}, "h.0.v.bias belong together and differ"),
], ids=["missing", "one of three missing", "unknown", "renamed", "our own name", "shape",
        "integers", "one of three in integers", "one of three too short"])
def test_what_does_not_fit_is_refused_and_both_sides_are_named(changes, sentence):
    source = {**toy_file(), **changes}
    source = {name: tensor for name, tensor in source.items() if tensor is not None}
    with pytest.raises(InputError, match=sentence) as error:
        fill_translated(Toy(), source, LAYOUT, "the/file")
    assert "\n" not in str(error.value)


def test_few_names_eight_and_counts_the_rest():
    assert few([]) == "nothing"
    assert few("ba") == "a, b"
    assert few("abcdefghij") == "a, b, c, d, e, f, g, h and 2 more"


# ---- forms of files ----

def write_shards(directory, suffix="safetensors"):
    """A toy's tensors in two files beside an index -> the tensors, the path of the index."""
    tensors = toy_file()
    names = sorted(tensors)
    weight_map = {}
    for number, half in enumerate((names[::2], names[1::2]), 1):
        file = f"model-{number:05d}-of-00002.{suffix}"
        content = {name: tensors[name] for name in half}
        if suffix == "safetensors":
            save_file(content, directory / file)
        else:
            torch.save(content, directory / file)
        weight_map |= {name: file for name in half}
    name = "model.safetensors" if suffix == "safetensors" else "pytorch_model.bin"
    index = directory / f"{name}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tensors, index


def write_form(form, directory):
    """A toy's tensors in one of the forms that weights come in -> the tensors."""
    if form.startswith("shards"):
        return write_shards(directory, form.removeprefix("shards of "))[0]
    tensors = toy_file()
    if form == "safetensors":
        save_file(tensors, directory / "model.safetensors")
    elif form == "torch":
        torch.save(tensors, directory / "pytorch_model.bin")
    elif form == "torch before 1.6":
        torch.save(tensors, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    else:
        torch.save({"epoch": 3, form: tensors}, directory / "kl-f16d16.ckpt")
    return tensors


@pytest.mark.parametrize("form", [
    "safetensors", "torch", "torch before 1.6", "state_dict", "model_state_dict",
    "shards of safetensors", "shards of bin"])
def test_every_form_of_a_directory_gives_the_same_tensors(tmp_path, form):
    written = write_form(form, tmp_path)
    read = read_tensors(tmp_path)
    assert read.keys() == written.keys()
    assert all(torch.equal(read[name], written[name]) for name in written)


def test_a_pickle_of_lightning_names_a_class_and_none_of_its_code_is_needed(tmp_path, monkeypatch):
    """kl-f16 is of the time when Lightning put its callback's class beside the weights."""
    module = "pytorch_lightning.callbacks.model_checkpoint"
    callback = type("ModelCheckpoint", (), {"__module__": module})
    tensors = toy_file()
    with monkeypatch.context() as patch:
        for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        sys.modules[module].ModelCheckpoint = callback
        content = {"callbacks": {callback: {"best": 1}}, "state_dict": tensors}
        torch.save(content, tmp_path / "new.ckpt")
        torch.save(content, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    for name in ("new.ckpt", "old.ckpt"):
        read = read_tensors(tmp_path / name)
        assert all(torch.equal(read[key], tensors[key]) for key in tensors)


# ---- files that are refused ----

@pytest.mark.parametrize("place, sentence", [
    (None, "and its shards differ in pos_embed"),
    ("model-00002-of-00002.safetensors", "and its shards differ in pos_embed"),
    ("model-00003-of-00002.safetensors", "00003-of-00002.safetensors, not there; download again"),
    (3, "does not say which file"),
    ("../model-00001-of-00002.safetensors", "does not say which file"),
])
def test_an_index_that_its_shards_contradict_is_refused(tmp_path, place, sentence):
    _, index = write_shards(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["pos_embed"] = place
    if place is None:
        del content["weight_map"]["pos_embed"]
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
], ids=["code", "list", "number for a name", "number for a tensor"])
def test_a_pickle_of_anything_but_named_tensors_is_refused(tmp_path, capsys, content, sentence):
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match=sentence) as error:
        read_tensors(tmp_path)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("form", ["safetensors", "torch", "torch before 1.6", "shards of bin"])
def test_a_file_that_is_cut_short_is_refused(tmp_path, form):
    write_form(form, tmp_path)
    path = max(tmp_path.iterdir())          # of the shards, the index
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match=f"{path.name} (is damaged|is cut short|asks to run code)"):
        read_tensors(tmp_path)


def test_where_there_are_no_weights(tmp_path):
    with pytest.raises(InputError, match="no weights at .*docs/weights.md says where"):
        read_tensors(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="holds no weights, none of model.safetensors"):
        read_tensors(tmp_path)
