"""evaluation/features.py: RAD-DINO's class token and both ways into it against transformers, files, folders and what they refuse."""
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from evaluation import features
import weights
from common.processes import InputError, Process
from vision import ViT

ONE = Process(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    """A small Dinov2Model as Hugging Face saves it -> (theirs, its directory)."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.Dinov2Model(transformers.Dinov2Config(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=1, mlp_ratio=2, image_size=70, patch_size=14)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.05)
    path = tmp_path_factory.mktemp("dino")
    model.save_pretrained(path)
    return model, path


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Five pictures of different shapes, two in a folder below."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "deep").mkdir()
    for i, size in enumerate([(90, 120), (120, 90), (100, 100), (64, 200), (333, 299)]):
        noise = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / ("deep" if i > 2 else "") / f"film{i}.png")
    return folder


def processor(size):
    """RAD-DINO's processor, the slow one, that works on PIL images."""
    from transformers.models.bit import image_processing_pil_bit as bit
    return bit.BitImageProcessorPil(do_resize=True, size={"shortest_edge": size}, resample=3, do_center_crop=True,
                                    crop_size={"height": size, "width": size}, do_rescale=True, rescale_factor=1 / 255, do_normalize=True,
                                    image_mean=[0.5307] * 3, image_std=[0.2583] * 3, do_convert_rgb=True)


@pytest.mark.parametrize("route", features.ROUTES)
def test_rad_dino_is_that_of_transformers(dino, films, route):
    """The same features from pixels to pooler_output, for every shape, by both ways."""
    theirs, path = dino
    encoder, images = features.rad_dino(path, route, "cpu"), features.Folder(films)
    got = features.extract(encoder, images, ONE, batch=2)
    assert got.ids == [f"film{i}" for i in (3, 4, 0, 1, 2)] and got.x.dtype == np.float32
    for name, row in zip(got.ids, got.x):
        picture = Image.open(images.files[name]).convert("RGB")
        if route == "benchmark":        # the tensor goes through floats and back to bytes there; no value changes
            picture = picture.resize((299, 299), Image.Resampling.BILINEAR)
        pixels = processor(70)(picture, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            want = theirs(pixels).pooler_output[0].numpy()
        assert np.abs(row - want).max() < 1e-4 * np.abs(want).max()
    assert route in got.encoder and got.encoder != features.rad_dino(path, "benchmark" if route == "straight" else "straight", "cpu").name


def test_the_two_ways_differ_and_the_weights_are_told_apart(dino, films, tmp_path):
    images = features.Folder(films)
    one, other = (features.extract(features.rad_dino(dino[1], route, "cpu"), images, ONE).x for route in features.ROUTES)
    assert np.abs(one - other).max() > 0.01
    path = dino[1]
    changed = {k: v + 1e-3 for k, v in load_file(path / "model.safetensors").items()}
    save_file(changed, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((path / "config.json").read_text())
    assert features.rad_dino(tmp_path, "benchmark", "cpu").name != features.rad_dino(path, "benchmark", "cpu").name


def test_tokens_are_the_patches_and_one_more(dino):
    vit = weights.load_rad_dino(dino[1])
    pixels = torch.randn(2, 3, 70, 70)
    assert torch.equal(vit.tokens(pixels)[:, 1:], vit(pixels)) and vit.tokens(pixels).shape[1] == 26
    assert isinstance(vit, ViT)


def test_a_batch_is_its_images(dino, films):
    encoder, images = features.rad_dino(dino[1], "straight", "cpu"), features.Folder(films)
    one, five = (features.extract(encoder, images, ONE, batch=n) for n in (1, 5))
    assert one.ids == five.ids and np.abs(one.x - five.x).max() < 1e-5
    some = features.extract(encoder, images, ONE, ids=["film2", "film0"])
    assert some.ids == ["film2", "film0"] and np.abs(some.x - one.pick(some.ids)).max() < 1e-5


def test_files(dino, films, tmp_path):
    encoder, images = features.rad_dino(dino[1], "straight", "cpu"), features.Folder(films)
    made = features.extract(encoder, images, ONE)
    made.failures["lost"] = "why"
    features.save(tmp_path / "new" / "a.safetensors", made)
    got = features.load(tmp_path / "new" / "a.safetensors")
    assert (got.ids, got.encoder, got.source, got.failures) == (made.ids, encoder.name, str(films.resolve()), {"lost": "why"})
    assert np.array_equal(got.x, made.x) and [p.name for p in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_folders(films, tmp_path, phantom):
    with pytest.raises(InputError, match="two images named film0"):
        for ending in ("png", "bmp"):
            Image.new("L", (40, 40)).save(tmp_path / f"film0.{ending}")
        features.open_images(tmp_path)
    packed = features.open_images(phantom / "gen-32", "train")
    again = features.open_images(packed.source)
    assert again.ids == packed.ids and len(packed.ids) == 24 and packed.read(packed.ids[3]).size == (32, 32)
    path = shutil.copytree(phantom / "gen-32", tmp_path / "gen-32") / "00000.jsonl"
    rows = path.read_text().splitlines()
    path.write_text("\n".join([rows[0], *rows[:1], *rows[2:]]) + "\n")
    with pytest.raises(InputError, match="two images of the same id"):
        features.open_images(path.parent)
    with pytest.raises(InputError, match="no folder of images at"):
        features.open_images(tmp_path / "no")
    with pytest.raises(InputError, match="none of the 1 images of"):
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "x.png").write_bytes(b"")
        features.extract(features.Encoder("x", None, lambda image: image, "mean"), features.open_images(tmp_path / "bad"), ONE)
