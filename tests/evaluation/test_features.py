"""evaluation/features.py: both routes into RAD-DINO; images and feature files.

tests/weights/test_load.py holds RAD-DINO itself against transformers.
"""
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

import weights
from common.cli import InputError
from common.processes import Process
from evaluation import features
from helpers import dicom_file, scramble
from vision import ViT, ViTConfig

ONE = Process(0, 1, torch.device("cpu"))

# (width, height) of a film -> the corners and the middle of what transformers' processor makes of
# it at 70 pixels, by each route
FILMS = {
    (90, 120): {"straight": (45, 137, 96, 169, 93), "benchmark": (100, 192, 52, 187, 90)},
    (120, 90): {"straight": (255, 37, 136, 154, 147), "benchmark": (255, 132, 241, 80, 151)},
    (100, 100): {"straight": (219, 41, 178, 7, 86), "benchmark": (219, 41, 178, 7, 86)},
    (64, 200): {"straight": (19, 230, 0, 78, 102), "benchmark": (255, 0, 8, 5, 100)},
    (333, 299): {"straight": (67, 255, 0, 22, 193), "benchmark": (69, 255, 0, 6, 194)},
}


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """A folder with film0 to film2, and film3 and film4 in a folder below."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "deep").mkdir()
    for number, size in enumerate(FILMS):
        noise = np.random.default_rng(number).integers(0, 256, (8, 8), dtype=np.uint8)
        name = f"deep/film{number}.png" if number > 2 else f"film{number}.png"
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(folder / name)
    return folder


# ---- encoders ----

@pytest.mark.parametrize("route", features.ROUTES)
def test_the_routes_are_those_of_transformers(films, route):
    images = features.Folder(films)
    for number, pixels in enumerate(FILMS.values()):
        x = features.ROUTES[route](images.read(f"film{number}"), 70).numpy()
        assert x.shape == (70, 70)
        ours = [int(x[at]) for at in ((0, 0), (0, 69), (69, 0), (69, 69), (35, 35))]
        assert np.abs(np.array(ours) - pixels[route]).max() <= 1


def test_features_without_numbers_are_none(films):
    vit = scramble(ViT(ViTConfig(image_size=28, patch_size=14, n_layer=1, n_head=1, n_embd=16,
                                 n_inner=16, class_token=True)))
    encoder = features.Encoder("broken", vit, features.straight, "class")
    pictures = torch.zeros(2, 28, 28, dtype=torch.uint8)
    assert encoder(pictures).shape == (2, 16)
    vit.norm.bias.data[3] = torch.nan
    with pytest.raises(FloatingPointError, match="a feature of an image is not finite"):
        encoder(pictures)


def test_an_encoder_pools_and_its_name_tells_routes_and_weights_apart(films, monkeypatch):
    vit = scramble(ViT(ViTConfig(image_size=28, patch_size=14, n_layer=1, n_head=1, n_embd=16,
                                 n_inner=16, class_token=True)))
    monkeypatch.setattr(weights, "load_rad_dino", lambda path: vit)
    monkeypatch.setattr(features, "normalize", lambda pixels, cfg: pixels.expand(-1, 3, -1, -1))
    picture = torch.arange(28 * 28).view(1, 28, 28) % 256
    dino = features.rad_dino("x", "straight", "cpu")
    with torch.no_grad():
        tokens = vit.tokens(picture[:, None].expand(-1, 3, -1, -1) / 255)
        assert np.allclose(dino(picture), tokens[:, 0])
        dino.pool = "mean"
        assert np.allclose(dino(picture), tokens.mean(1), atol=1e-6)

        names = {features.rad_dino("x", route, "cpu").name for route in features.ROUTES}
        vit.norm.weight += 1e-3
        names |= {features.rad_dino("x", route, "cpu").name for route in features.ROUTES}
    assert len(names) == 4


# ---- images ----

class Size:
    """Stands in for an encoder: the features of an image are its width and height."""
    name = "size"

    @staticmethod
    def prepare(image):
        return torch.tensor(image.size)

    def __call__(self, pictures):
        return pictures.numpy().astype(np.float32)


def test_an_image_that_cannot_be_read_is_named(films, tmp_path):
    """It has no features, and its neighbours keep theirs; all failing is an error."""
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the 1 images of"):
        features.extract(Size(), features.Folder(tmp_path), ONE)
    for number in (0, 1):
        shutil.copy(films / f"film{number}.png", tmp_path)
    result = features.extract(Size(), features.Folder(tmp_path), ONE, batch=2)
    assert result.ids == ["film0", "film1"] and result.x.tolist() == [[90, 120], [120, 90]]
    assert result.pick(["film1"]).tolist() == [[120, 90]]
    assert list(result.failures) == ["a"] and "a.png cannot be read" in result.failures["a"]


def test_folders_and_packed_data_sets(films, tmp_path, phantom, capsys):
    """Ids are file names without endings, or those of the rows; an id stands once."""
    folder = features.open_images(films)
    assert folder.ids == ["film3", "film4", "film0", "film1", "film2"]
    assert folder.read("film3").size == (64, 200)
    packed = features.open_images(phantom / "gen-32", "train")
    assert len(packed.ids) == 24 and packed.read(packed.ids[3]).size == (32, 32)
    assert features.open_images(packed.source).ids == packed.ids, "path#split names the split too"
    with pytest.raises(InputError, match="no folder of images at"):
        features.open_images(tmp_path / "no")

    # DICOM needs no ending; what else there is, is counted
    for name in ("1.2.840.1", "1.2.840.2"):
        (tmp_path / name).write_bytes(dicom_file(np.arange(1600).reshape(40, 40)))
    (tmp_path / "x.csv").write_bytes(b"")
    dicom = features.open_images(tmp_path)
    assert dicom.ids == ["1.2.840.1", "1.2.840.2"] and dicom.read("1.2.840.2").size == (40, 40)
    assert "2 images; passed over 1 other file (.csv 1)." in capsys.readouterr().err

    for ending in ("png", "bmp"):
        Image.new("L", (40, 40)).save(tmp_path / f"film0.{ending}")
    with pytest.raises(InputError, match="two images named film0"):
        features.open_images(tmp_path)


def test_a_folder_and_a_file_of_no_utf_8(tmp_path):
    folder = os.fsdecode(os.fsencode(tmp_path) + b"/films\xff")
    try:
        os.mkdir(folder)
    except OSError:
        pytest.skip("this file system wants UTF-8")
    Image.new("L", (40, 40)).save(os.path.join(folder, os.fsdecode(b"a\xe9.png")))
    with open(os.path.join(folder, os.fsdecode(b"b\xe9.png")), "wb") as file:
        file.write(b"damaged")
    result = features.extract(Size(), features.Folder(folder), ONE)
    features.save(tmp_path / "a.safetensors", result)
    loaded = features.load(tmp_path / "a.safetensors")
    assert loaded.ids == ["a\udce9"] and list(loaded.failures) == ["b\udce9"]


# ---- feature files ----

def test_a_feature_file_holds_all_there_is_to_know(tmp_path):
    x = np.eye(2, 3, dtype=np.float32)
    saved = features.Features(["a", "b"], x, "size", "/films", {"c": "why"})
    features.save(tmp_path / "new" / "a.safetensors", saved)
    loaded = features.load(tmp_path / "new" / "a.safetensors")
    assert np.array_equal(loaded.x, x)
    assert {**vars(loaded), "x": None} == {**vars(saved), "x": None}


def test_features_are_reused_for_the_same_images_only(films, tmp_path):
    path = tmp_path / "a.safetensors"
    images = features.Folder(films)
    first = features.reused(path, Size(), images, ONE)
    features.save(path, features.Features(first.ids, first.x + 1, first.encoder, first.source))
    assert np.array_equal(features.reused(path, Size(), images, ONE).x, first.x + 1)
    assert features.reused(path, Size(), images, ONE, ids=["film1"]).x.tolist() == [[120, 90]]
    assert features.load(path).ids == ["film1"]


@pytest.mark.parametrize("header, sentence", [
    ({"format": "x"}, "is no file of features of ours"),
    ({"ids": "{"}, "is damaged"),
    ({"ids": '["a", "a"]'}, "names a twice"),
    ({"ids": '["a"]'}, r"names 1 images and holds features of shape \(2, 3\)"),
    ({}, "holds features in float64; float32 is wanted"),
    ({"ids": '["a", "nan"]'}, "the features of nan are not finite"),
])
def test_other_files_are_refused(tmp_path, header, sentence):
    whole = {"format": features.FORMAT, "encoder": "", "source": "", "ids": '["a", "b"]',
             "failures": "{}"}
    x = np.eye(2, 3, dtype=np.float32 if header else np.float64)
    if "not finite" in sentence:
        x[1, 2] = np.nan
    save_file({"features": x}, tmp_path / "a.safetensors", {**whole, **header})
    with pytest.raises(InputError, match=sentence):
        features.load(tmp_path / "a.safetensors")
