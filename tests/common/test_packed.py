"""common/packed.py: what is written is read, and damage is refused with a sentence."""
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from common.cli import InputError
from common.files import settings_hash
from common.packed import Packed, Writer
from helpers import NOISE_SIZE, noise_picture, noise_row, pack_noise

TRAIN, VAL = 13, 3


def test_what_is_written_is_read(tmp_path):
    """Four shards, the last of one picture; accents and lists in rows; one split or all."""
    pack_noise(tmp_path, train=TRAIN, val=VAL)
    packed = Packed(tmp_path, "und", NOISE_SIZE)
    assert len(packed) == TRAIN + VAL and len(packed.shards) == 4
    for i in range(TRAIN + VAL):
        assert packed.rows[i] == noise_row(i, "train" if i < TRAIN else "val")
        assert packed.image(i).dtype == torch.uint8
        assert np.array_equal(packed.image(i).numpy(), noise_picture(i))
    val = Packed(tmp_path, "und", NOISE_SIZE, "val")
    assert len(val) == VAL and np.array_equal(val.image(1).numpy(), noise_picture(TRAIN + 1))
    assert packed.info["counts"] == {"train": TRAIN, "val": VAL}
    assert packed.info["hash"] == settings_hash({"seed": 0})
    assert not list(packed.directory.glob(".tmp-*"))


def test_an_exception_while_writing_makes_no_data_set(tmp_path):
    with pytest.raises(ZeroDivisionError):
        with Writer(tmp_path / "und-16", "und", NOISE_SIZE, {}, shard_size=2) as writer:
            for i in range(3):
                writer.add(b"png", noise_row(i))
            1 / 0
    assert not (tmp_path / "und-16" / "dataset.json").exists()
    with pytest.raises(InputError, match="no packed data set"):
        Packed(tmp_path, "und", NOISE_SIZE)


def test_writing_again_leaves_nothing_of_the_old_data_set(tmp_path):
    """What is not of the format stays."""
    pack_noise(tmp_path)
    directory = tmp_path / "und-16"
    (directory / "00003.latents.safetensors").write_bytes(b"of the old pictures")
    (directory / "notes.txt").write_text("mine")
    pack_noise(tmp_path, train=4, val=1)
    assert sorted(path.name for path in directory.iterdir()) == [
        "00000.bin", "00000.idx.npy", "00000.jsonl", "dataset.json", "notes.txt"]
    assert len(Packed(tmp_path, "und", NOISE_SIZE)) == 5


# ---- damage ----

def edit(name, value):
    """Another value of one field of dataset.json."""
    def harm(directory):
        path = directory / "dataset.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    return harm


def cut(name, n=1):
    """The last n bytes of a file are missing."""
    def harm(directory):
        path = directory / name
        path.write_bytes(path.read_bytes()[:-n])
    return harm


def remove(pattern):
    def harm(directory):
        for path in directory.glob(pattern):
            path.unlink()
    return harm


def drop_row(directory):
    path = directory / "00001.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")


@pytest.mark.parametrize("harm, words", [
    (cut("00001.bin"), "00001.bin.*cut short"),
    (cut("00003.bin", 50), "cut short"),
    (cut("00001.idx.npy", 8), "cut short"),
    (cut("00001.jsonl", 9), "cut short"),
    (drop_row, "cut short"),
    (remove("00001.bin"), "cut short"),
    (remove("00001.idx.npy"), "cut short"),
    (remove("00003.*"), "lacks a shard"),
    (cut("dataset.json"), "damaged"),
    (edit("schema", 99), "schema 99"),
    (edit("size", 32), "renamed"),
    (edit("task", "gen"), "renamed"),
])
def test_damage_is_refused_with_a_sentence(tmp_path, harm, words):
    pack_noise(tmp_path)
    harm(tmp_path / "und-16")
    with pytest.raises(InputError, match=words):
        Packed(tmp_path, "und", NOISE_SIZE)


@pytest.mark.parametrize("task, size, split, words", [
    ("und", 99, None, "no packed data set.*prepare"),
    ("all", NOISE_SIZE, None, "no packed data set"),
    ("und", NOISE_SIZE, "test", "no image in split 'test'"),
])
def test_what_is_not_there(tmp_path, task, size, split, words):
    pack_noise(tmp_path)
    with pytest.raises(InputError, match=words):
        Packed(tmp_path, task, size, split)


def smaller_picture():
    png = io.BytesIO()
    Image.new("L", (8, 8)).save(png, "PNG")
    return png.getvalue()


@pytest.mark.parametrize("content, words", [
    (b"no image", "image é-0 of .* cannot be read"),
    (smaller_picture(), "has 8x8 pixels, not 16x16"),
])
def test_an_image_that_does_not_fit_is_named(tmp_path, content, words):
    with Writer(tmp_path / "und-16", "und", NOISE_SIZE, {}) as writer:
        writer.add(content, noise_row(0))
    with pytest.raises(InputError, match=words):
        Packed(tmp_path, "und", NOISE_SIZE).image(0)


# ---- latents ----

def test_stored_latents_are_those_of_the_image_and_of_this_vae_and_data(tmp_path):
    pack_noise(tmp_path, "gen")
    packed = Packed(tmp_path, "gen", NOISE_SIZE, "val")
    assert not packed.open_latents("abc") and packed.latents is None

    mean = torch.arange(TRAIN + VAL + 0.0)[:, None, None, None].expand(-1, 4, 2, 2)
    about = {"vae": "abc", "data": packed.info["hash"]}
    for shard, rows in enumerate(mean.split(5)):
        path = packed.directory / f"{shard:05d}.latents.safetensors"
        save_file({"mean": rows.contiguous(), "logvar": -rows.contiguous()}, path, about)
    assert packed.open_latents("abc")
    for i in range(VAL):
        mean, logvar = packed.moments(i)
        assert mean.shape == (4, 2, 2) and (mean == TRAIN + i).all() and (logvar == -mean).all()

    with pytest.raises(InputError, match="another VAE"):
        packed.open_latents("abd")
    edit("hash", settings_hash({"seed": 1}))(packed.directory)      # the same files, other pictures
    with pytest.raises(InputError, match="another VAE or data set"):
        Packed(tmp_path, "gen", NOISE_SIZE, "val").open_latents("abc")
