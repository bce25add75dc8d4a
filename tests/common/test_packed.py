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

def edit(path, **values):
    """Other values of some fields of dataset.json."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut(path):
    """The last bytes of a file are missing."""
    path.write_bytes(path.read_bytes()[:-8])


def drop_row(path):
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


@pytest.mark.parametrize("name, harm, words", [
    ("00001.bin", cut, "00001.bin.*cut short"),
    ("00001.idx.npy", cut, "cut short"),
    ("00001.jsonl", cut, "cut short"),
    ("00001.jsonl", drop_row, "cut short"),
    ("00001.bin", lambda path: path.unlink(), "cut short"),
    ("00003.jsonl", lambda path: path.unlink(), "lacks a shard"),
    ("dataset.json", cut, "damaged"),
    ("dataset.json", lambda path: path.write_text("[]"), "no packed data set's"),
    ("dataset.json", lambda path: path.write_text('{"labels": {}}'), "no packed data set's"),
    ("dataset.json", lambda path: edit(path, schema=99), "schema 99"),
    ("dataset.json", lambda path: edit(path, size=32), "renamed"),
    ("dataset.json", lambda path: edit(path, task="gen"), "renamed")])
def test_damage_is_refused_with_a_sentence(tmp_path, name, harm, words):
    pack_noise(tmp_path)
    harm(tmp_path / "und-16" / name)
    with pytest.raises(InputError, match=words):
        Packed(tmp_path, "und", NOISE_SIZE)


def test_what_is_not_there_is_said_with_the_command_that_makes_it(tmp_path):
    pack_noise(tmp_path)
    with pytest.raises(InputError, match=r"no packed data set at .*und-99 \(und-16 is there\); "
                                         "`python prepare_mimic.py … --und-sizes 99 --out"):
        Packed(tmp_path, "und", 99)
    with pytest.raises(InputError, match=r"no image in split 'test' \(13 in train, 3 in val\): "
                                         "`python -m phantom.prepare --test 100 --overwrite`"):
        Packed(tmp_path, "und", NOISE_SIZE, "test")
    with pytest.raises(InputError, match="no image in split 'tset' .*: choose train, val or test"):
        Packed(tmp_path, "und", NOISE_SIZE, "tset")
    edit(tmp_path / "und-16" / "dataset.json", settings={"dataset": "table"})
    with pytest.raises(InputError, match="'test' .*a column split .*prepare_mimic.py … --overwr"):
        Packed(tmp_path, "und", NOISE_SIZE, "test")
    (tmp_path / "und-32").mkdir()
    (tmp_path / "und-32" / "settings.json").write_text("{}")
    with pytest.raises(InputError, match="und-32 was begun and not finished; run its"):
        Packed(tmp_path, "und", 32)


def test_an_image_that_does_not_fit_is_named(tmp_path):
    smaller = io.BytesIO()
    Image.new("L", (8, 8)).save(smaller, "PNG")
    with Writer(tmp_path / "und-16", "und", NOISE_SIZE, {}) as writer:
        writer.add(b"no image", noise_row(0))
        writer.add(smaller.getvalue(), noise_row(1))
    packed = Packed(tmp_path, "und", NOISE_SIZE)
    with pytest.raises(InputError, match="image é-0 of .* cannot be read"):
        packed.image(0)
    with pytest.raises(InputError, match="image é-1 of .* has 8x8 pixels, not 16x16"):
        packed.image(1)


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
    edit(packed.directory / "dataset.json", hash="of other pictures in the same files")
    with pytest.raises(InputError, match="another VAE or data set"):
        Packed(tmp_path, "gen", NOISE_SIZE, "val").open_latents("abc")
