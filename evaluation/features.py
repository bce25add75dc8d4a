"""Images -> features, and the files that hold them.

    python evaluate.py features --images DIR --out a.safetensors        # evaluation/compare.py

The network of features is RAD-DINO, or the vision tower of a checkpoint of ours. There are two
routes into RAD-DINO. "benchmark" squashes every image to 299 x 299 first, whatever its shape, as
for the published numbers. "straight" scales the short side to 518 pixels and cuts out the middle,
as RAD-DINO was made for.

A feature file is safetensors: `features` (n, C) float32, and in its header the ids, the encoder
with a hash of its weights, where the images lie, and which of them could not be read. Only
features of the same encoder can be compared.
"""
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import weights
from common.cli import InputError
from common.files import as_utf8, replacing
from common.finite import refuse_non_finite
from common.images import IMAGES, look_into, read_image
from common.packed import Packed
from common.processes import gather, print0
from common.prompts import file_name
from common.worklist import chunks, meet
from vision import normalize, preprocess

FORMAT = "open-unix features 1"


# ---- images: a folder, or a packed data set ----

class Folder:
    """All images below a folder; an image's id is its file name without the ending."""

    def __init__(self, folder):
        self.source = as_utf8(str(Path(folder).resolve())).decode()
        self.files = {}                         # id -> path
        # in the order of `look_into`, which decides which images share a block of
        # `image_metrics.sharded`
        paths, self.story = look_into(folder)
        for path in paths:
            # a DICOM file may be called 1.2.840.113 and have no ending
            name = path.stem if path.suffix.lower() in IMAGES else path.name
            if name in self.files:
                raise InputError(
                    f"{folder} holds two images named {name}; names are ids, give them "
                    "different ones.")
            self.files[name] = path
        self.ids = list(self.files)

    def read(self, name):
        """The image with this id, or whose file is named after it -> 8-bit grey PIL image."""
        # our drawn images are stored under file_name(id); the films of others have the id itself
        path = self.files.get(name, self.files.get(file_name(name)))
        if path is None:
            raise InputError(f"there is no image named {name} in {self.source}.")
        return read_image(path)


class PackedImages:
    """The images of a packed data set such as `datasets/mimic/gen-512`, of one split or of all."""

    def __init__(self, path, split=""):
        path = Path(path)
        # the name of a packed data set says what it holds: task gen, 512 pixels a side
        task, _, size = path.name.rpartition("-")
        if not size.isdigit():
            raise InputError(f"{path} is no packed data set; its name should be like gen-512.")
        self.source = str(path.resolve())
        # the split is part of the source: `reused` must not take train for test
        if split:
            self.source += f"#{split}"
            self.data = Packed(path.parent, task, int(size), split)
        else:
            self.data = Packed(path.parent, task, int(size))
        self.numbers = {row["id"]: number for number, row in enumerate(self.data.rows)}
        if len(self.numbers) < len(self.data.rows):
            raise InputError(f"{path} holds two images of the same id; prepare the data set anew.")
        self.rows = {row["id"]: row for row in self.data.rows}
        self.ids = list(self.rows)

    def read(self, name):
        """The image with this id -> 8-bit grey PIL image."""
        return Image.fromarray(self.data.image(self.numbers[name]).numpy())


def open_images(path, split=""):
    """A folder of images, or a packed data set, also as `path#split`."""
    path, _, named_split = str(path).partition("#")
    # a packed data set is a folder, too, and its dataset.json tells it apart
    if (Path(path) / "dataset.json").exists():
        return PackedImages(path, split if split else named_split)
    if not Path(path).is_dir():
        raise InputError(f"there is no folder of images at {path}.")
    folder = Folder(path)
    if folder.story:
        print0(f"{folder.story}.", file=sys.stderr)
    return folder


# ---- encoders: the networks of features ----

@dataclass
class Encoder:
    """A vision transformer, with the way into it and out of it."""
    name: str                   # what it is, how images enter it, and a hash of its weights
    vit: torch.nn.Module
    prepare: Callable           # 8-bit grey PIL image -> uint8 (S, S)
    pool: str                   # "class": the class token; "mean": the mean of the patches

    @torch.inference_mode()
    def __call__(self, pictures):
        """uint8 (B, S, S) -> features after the last LayerNorm, float32 array (B, C), all finite.
        """
        weight = next(self.vit.parameters())
        pixels = pictures.to(weight.device)[:, None].float() / 255                  # (B, 1, S, S)
        pixels = normalize(pixels, self.vit.cfg).to(weight.dtype)                   # (B, 3, S, S)
        tokens = self.vit.tokens(pixels).float()                                    # (B, N, C)
        # SigLIP, the tower of UniX, has no class token: there the patches are averaged
        x = tokens[:, 0] if self.pool == "class" else tokens.mean(1)
        refuse_non_finite("a feature of an image", x)
        return x.cpu().numpy()


def straight(image, size=518):
    """PIL image -> uint8 (size, size): short side scaled (bicubic), the middle cut out.

    RAD-DINO's own processor does the same.
    """
    width, height = image.size
    # int() cuts decimals off, as transformers does; rounding would give other pixels
    if width <= height:
        width, height = size, int(size * height / width)
    else:
        width, height = int(size * width / height), size
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    # the middle; of an odd rest, one pixel more is cut off on the right and below
    left = (width - size) // 2
    top = (height - size) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + size, top + size))))


def benchmark(image, size=518):
    """PIL image -> uint8 (size, size): squashed to 299 x 299 (bilinear, antialiased), then scaled
    as by `straight`.

    Neither fine detail nor the aspect ratio of the image reaches the network.
    """
    return straight(image.resize((299, 299), Image.Resampling.BILINEAR), size)


ROUTES = {"benchmark": benchmark, "straight": straight}


def rad_dino(path, route, device):
    """The Encoder of the paper's metrics: the class token of RAD-DINO, by one of ROUTES."""
    # a hash of the weights goes into the name, so that retrained ones are another encoder
    vit = weights.load_rad_dino(path).to(device)
    prepare = partial(ROUTES[route], size=vit.cfg.image_size)
    return Encoder(f"rad-dino, {route}, {weights.vae_hash(vit)}", vit, prepare, "class")


def tower(model):
    """The mean patch of a UniX's own vision tower: for phantoms, which RAD-DINO has never seen."""
    cfg = model.vision.cfg
    prepare = partial(preprocess, size=cfg.image_size, pad=cfg.pad)
    name = f"vision tower, {weights.vae_hash(model.vision)}"
    return Encoder(name, model.vision, prepare, "mean")


# ---- from images to features ----

@dataclass
class Features:
    """Features of images, as a feature file holds them."""
    ids: list
    x: np.ndarray                                       # (n, C) float32, a row an id
    encoder: str                                        # the name of the Encoder
    source: str = ""                                    # where the images lie, to show them
    failures: dict = field(default_factory=dict)        # id of an image without features -> why

    def pick(self, ids):
        """The rows of these ids, in their order, (len(ids), C)."""
        numbers = {name: number for number, name in enumerate(self.ids)}
        return self.x[[numbers[name] for name in ids]]


def extract(encoder, images, process, batch=32, ids=None):
    """Features of `images`, of all or of these ids, in their order; every process gets all of them.

    The work is shared out among the processes. An image that cannot be read is in `failures`: the
    official code scores a black square in its place. InputError if no image at all can be read.
    """
    if ids is None:
        ids = images.ids
    # the blocks do not depend on the number of processes, so neither do the last digits
    blocks = chunks(list(ids), batch)
    mine = blocks[process.rank::process.world]
    vectors, failures = {}, {}
    for block in tqdm(mine, "features", unit="batch", disable=not process.master, leave=False):
        pictures = {}
        for name in block:
            try:
                pictures[name] = encoder.prepare(images.read(name))
            except InputError as error:
                failures[name] = str(error)
        if pictures:
            vectors.update(zip(pictures, encoder(torch.stack(list(pictures.values())))))

    meet()                              # the slowest may take longer than gather waits
    for their_vectors, their_failures in gather((vectors, failures)):
        vectors.update(their_vectors)
        failures.update(their_failures)
    # the processes come one after the other; the order of the ids is the one that counts
    readable = [name for name in ids if name in vectors]
    if not readable:
        raise InputError(f"none of the {len(ids)} images of {images.source} could be read.")
    x = np.stack([vectors[name] for name in readable])
    return Features(readable, x, encoder.name, images.source, failures)


def reused(path, encoder, images, process, batch=32, ids=None):
    """The features in `path` if they are of these images by this encoder, else new ones, saved."""
    if ids is None:
        ids = images.ids
    if path.exists():
        features = load(path)
        # an image that failed was looked at, too; asking for it again changes nothing
        same_ids = {*features.ids, *features.failures} == set(ids)
        same_source = features.source == images.source
        if same_ids and same_source and features.encoder == encoder.name:
            return features
    # all processes meet in `extract`, so the first cannot write before the last has looked
    features = extract(encoder, images, process, batch, ids)
    if process.master:
        save(path, features)
    return features


# ---- feature files ----

def save(path, features):
    """Write a feature file, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # a safetensors header holds strings alone, so lists and tables are written as JSON
    header = {
        "format": FORMAT,
        "encoder": features.encoder,
        "source": features.source,
        "ids": json.dumps(features.ids),
        "failures": json.dumps(features.failures),
    }
    with replacing(path) as temporary:
        save_file({"features": np.ascontiguousarray(features.x, np.float32)}, temporary, header)


def load(path):
    """Read a feature file -> Features. InputError if it is missing, damaged or inconsistent."""
    try:
        with safe_open(path, "np") as file:
            header = file.metadata()
            if not header or header.get("format") != FORMAT:
                raise InputError(
                    f"{path} is no file of features of ours; "
                    "`python evaluate.py features --images ...` writes one.")
            features = Features(
                ids=json.loads(header["ids"]),
                x=file.get_tensor("features"),
                encoder=header["encoder"],
                source=header["source"],
                failures=json.loads(header["failures"]),
            )
    except FileNotFoundError:
        raise InputError(
            f"there are no features at {path}; "
            "`python evaluate.py features --images ...` writes them.") from None
    # what is no safetensors, or lacks a key, or holds no JSON where JSON should be
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged or no file of features ({error}).") from None
    check(features, path)
    return features


def check(features, path):
    """InputError if the parts of a feature file do not belong together."""
    ids, x = features.ids, features.x
    named = isinstance(ids, list) and all(isinstance(name, str) for name in ids)
    if not named or not isinstance(features.failures, dict):
        raise InputError(
            f"{path} does not say which images its features are of; extract them anew.")
    if len(set(ids)) < len(ids):
        twice = [name for name in ids if ids.count(name) > 1]
        raise InputError(f"{path} names {twice[0]} twice; every image may be there once.")
    if x.dtype != np.float32:
        raise InputError(f"{path} holds features in {x.dtype}; float32 is wanted.")
    if x.ndim != 2 or len(ids) != len(x):
        raise InputError(f"{path} names {len(ids)} images and holds features of shape {x.shape}.")
    if not np.isfinite(x).all():
        name = ids[int(np.isfinite(x).all(axis=1).argmin())]
        raise InputError(f"{path}: the features of {name} are not finite; extract them anew.")


def same_encoder(a, b, names):
    """InputError if two Features, called by these names, are of different encoders."""
    if a.encoder != b.encoder:
        raise InputError(
            f"{names[0]} was made by '{a.encoder}', {names[1]} by '{b.encoder}': features of two "
            "encoders cannot be compared; extract both with one.")
    if a.x.shape[1] != b.x.shape[1]:
        raise InputError(
            f"{names[0]} has {a.x.shape[1]} numbers an image, {names[1]} {b.x.shape[1]}: "
            "extract both anew.")
