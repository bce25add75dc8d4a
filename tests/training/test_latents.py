"""Stored posteriors: the encoder's own; only what is missing or does not fit is encoded again."""
import pytest
import torch

import weights
from common.cli import InputError
from common.packed import Packed, Writer
from common.processes import Process
from helpers import close, tiny_vae
from training import latents
from vae import VAE
from weights import checkpoint


@pytest.fixture
def data(phantom, tmp_path):
    """The root of a packed data set gen-32 whose 30 images lie in three shards."""
    packed = Packed(phantom, "gen", 32)
    with Writer(tmp_path / "gen-32", "gen", 32, {}, shard_size=10) as writer:
        for i, row in enumerate(packed.rows):
            writer.add(packed.encoded(i), row)
    return tmp_path


def files(data):
    """{number of a shard: the file of its latents}"""
    return {int(path.name[:5]): path for path in data.glob("gen-32/*.latents.safetensors")}


def encode(data, vae):
    """Run the command -> the numbers of the shards that it encoded now."""
    before = {number: path.stat().st_ino for number, path in files(data).items()}
    latents.main(f"--vae {vae} --data {data} --sizes 32 --device cpu".split())
    after = {number: path.stat().st_ino for number, path in files(data).items()}
    return [number for number in sorted(after) if after[number] != before.get(number)]


def test_what_is_stored_is_what_the_encoder_says(data, vae_run):
    vae = weights.find_vae(vae_run)
    packed = Packed(data, "gen", 32, "val")                 # images of the last shard
    encode(data, vae_run)
    assert packed.open_latents(weights.vae_hash(vae))
    for i in range(len(packed)):
        image = (packed.image(i).float() / 127.5 - 1).expand(1, 3, -1, -1)
        with torch.no_grad():
            moments = vae.moments(image)
        for stored, moment in zip(packed.moments(i), moments):
            assert stored.dtype == torch.float32
            close(stored, moment[0], 1e-5)


def test_latents_without_numbers_are_not_stored(data, vae_run, monkeypatch):
    """The image is named; it lies in the second shard."""
    packed = Packed(data, "gen", 32)
    real = VAE.moments
    seen = []

    def moments(self, images):
        mean, logvar = real(self, images)
        for i in range(len(images)):
            seen.append(i)
            if len(seen) == 14:
                logvar[i, 0, 0, 0] = torch.inf
        return mean, logvar
    monkeypatch.setattr(VAE, "moments", moments)
    with pytest.raises(FloatingPointError, match=f"image {packed.rows[13]['id']} are not finite"):
        encode(data, vae_run)
    assert list(files(data)) == [0]


def test_only_what_is_missing_damaged_or_of_another_vae_is_encoded(data, vae_run, tmp_path):
    assert encode(data, vae_run) == [0, 1, 2]
    assert encode(data, vae_run) == []
    files(data)[1].unlink()                                 # as if the run had been killed
    files(data)[2].write_bytes(files(data)[2].read_bytes()[:-1])
    assert encode(data, vae_run) == [1, 2]

    vae = tiny_vae()
    vae.quant_conv.bias.data += 1
    checkpoint.save(tmp_path / "vae", 1, config=weights.describe(vae=vae),
                    tensors={"vae": vae.state_dict()})
    assert encode(data, tmp_path / "vae") == [0, 1, 2]
    assert Packed(data, "gen", 32).open_latents(weights.vae_hash(vae))


def test_processes_share_the_shards(data, vae_run, monkeypatch):
    for rank, shards in ((0, [0, 2]), (1, [1])):
        process = Process(rank, 2, torch.device("cpu"))
        monkeypatch.setattr(latents, "setup", lambda *_: process)
        assert encode(data, vae_run) == shards


def test_a_full_disk_leaves_no_half_of_a_file(data, vae_run, monkeypatch):
    def full_disk(tensors, path, metadata):
        path.write_bytes(b"half")
        raise OSError("no space left")
    monkeypatch.setattr(latents, "save_file", full_disk)
    with pytest.raises(OSError):
        encode(data, vae_run)
    assert not files(data) and not list(data.glob("gen-32/.tmp*"))


@pytest.mark.parametrize("words, sentence", [
    ("--vae nowhere", "nowhere"), ("--data nowhere", "no packed data set at nowhere/gen-32"),
    ("--batch 0", "--batch 0 must be 1 or more")])
def test_what_is_missing_is_said(data, vae_run, words, sentence):
    line = f"--vae {vae_run} --data {data} --sizes 32 --device cpu {words}"
    with pytest.raises(InputError, match=sentence):
        latents.main(line.split())
