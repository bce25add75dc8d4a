"""Images -> feature vectors, and the files that hold them: RAD-DINO as the benchmark feeds it, or a vision tower of ours.

A feature file is safetensors: `features` (n, C) float32, and in its header the ids, the encoder with a hash of its weights, where
the images lie, and which of them could not be read. Only features of the same encoder can be compared.

Two ways into RAD-DINO: "benchmark" squashes every image to 299 x 299 first, whatever its shape, as the published numbers do;
"straight" scales the short side to 518 and cuts out the middle, as RAD-DINO was made for.
"""
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from tqdm import tqdm

import weights
from common.processes import InputError
from training.batches import Packed
from common.images import IMAGES, checked, read_image
from vision import normalize, preprocess
from evaluation.worklist import chunks, gather

FORMAT = "open-unix features 1"


# ---- images: a folder or a packed data set ----

def file_name(name):
    """An id as a file name: what none may hold is replaced."""
    return re.sub(r"[^\w.-]", "_", name)


class Folder:
    """All image files below a folder; an image's id is its file name without the ending."""

    def __init__(self, path):
        files = sorted(p for p in Path(path).rglob("*") if p.suffix.lower() in IMAGES and p.is_file())
        self.source, self.files = str(Path(path).resolve()), {p.stem: p for p in files}
        if not files:
            raise InputError(f"the folder {path} holds no image ({', '.join(IMAGES)}).")
        if len(self.files) < len(files):
            twice = next(p.stem for p in files if self.files[p.stem] != p)
            raise InputError(f"{path} holds two images named {twice}; names are ids, give them different ones.")
        self.ids = list(self.files)

    def read(self, name):
        path = self.files.get(name) or self.files.get(file_name(name))
        if path is None:
            raise InputError(f"there is no image named {name} in {self.source}.")
        return read_image(path)


class PackedImages:
    """The images of a packed data set, `datasets/mimic/gen-512`, one split or all."""

    def __init__(self, path, split=""):
        path = Path(path)
        task, _, size = path.name.rpartition("-")
        if not size.isdigit():
            raise InputError(f"{path} is no packed data set; its name should be like gen-512.")
        self.data = Packed(path.parent, task, int(size), split or None)
        self.source = str(path.resolve()) + (f"#{split}" if split else "")
        self.rows = {row["id"]: row for row in self.data.rows}
        if len(self.rows) < len(self.data.rows):
            raise InputError(f"{path} holds two images of the same id; prepare the data set anew.")
        self.places = {row["id"]: n for n, row in enumerate(self.data.rows)}
        self.ids = list(self.rows)

    def read(self, name):
        try:
            return Image.fromarray(self.data.image(self.places[name]).numpy())
        except (OSError, SyntaxError, ValueError) as error:     # what Pillow raises for broken files
            raise InputError(f"image {name} of {self.source} cannot be read ({error}).") from None


def open_images(path, split=""):
    """A folder of images, or a packed data set (`path`, or `path#split`)."""
    path, _, given = str(path).partition("#")
    if (Path(path) / "dataset.json").exists():
        return PackedImages(path, split or given)
    if not Path(path).is_dir():
        raise InputError(f"there is no folder of images at {path}.")
    return Folder(path)


# ---- encoders ----

@dataclass
class Encoder:
    name: str                   # what it is, how images enter it, and a hash of its weights
    vit: torch.nn.Module
    prepare: callable           # grey PIL image -> uint8 (S, S)
    pool: str                   # "class": the class token; "mean": mean of the patches

    @torch.inference_mode()
    def __call__(self, pictures):
        """uint8 (B, S, S) -> float32 (B, C) numpy, after the last LayerNorm."""
        p = next(self.vit.parameters())
        pixels = normalize(pictures.to(p.device)[:, None].float() / 255, self.vit.cfg).to(p.dtype)
        tokens = self.vit.tokens(pixels).float()
        return (tokens[:, 0] if self.pool == "class" else tokens.mean(1)).cpu().numpy()


def straight(image, size=518):
    """Short side to `size` (bicubic), middle cut out: RAD-DINO's own processor."""
    w, h = image.size
    w, h = (size, int(size * h / w)) if w <= h else (int(size * w / h), size)
    image = image if image.size == (w, h) else image.resize((w, h), Image.Resampling.BICUBIC)
    left, top = (w - size) // 2, (h - size) // 2
    return torch.from_numpy(np.array(image.crop((left, top, left + size, top + size))))


def benchmark(image, size=518):
    """Squash to 299 x 299 (bilinear, antialiased), whatever the shape, then up again: neither detail nor aspect ratio arrive."""
    return straight(image.resize((299, 299), Image.Resampling.BILINEAR), size)


ROUTES = {"benchmark": benchmark, "straight": straight}


def rad_dino(path, route, device):
    if route not in ROUTES:
        raise InputError(f"--route {route} is none of {', '.join(ROUTES)}.")
    vit = weights.load_rad_dino(path).to(device)
    prepare = lambda image: ROUTES[route](image, vit.cfg.image_size)
    return Encoder(f"rad-dino, {route}, {weights.vae_hash(vit)}", vit, prepare, "class")


def tower(model):
    """The vision tower of a UniX as the network of features, the mean of its patches: for phantoms, which RAD-DINO never saw."""
    cfg = model.vision.cfg
    prepare = lambda image: preprocess(image, cfg.image_size, cfg.pad)
    return Encoder(f"vision tower, {weights.vae_hash(model.vision)}", model.vision, prepare, "mean")


# ---- from images to a file ----

@dataclass
class Features:
    ids: list
    x: np.ndarray                       # (n, C) float32
    encoder: str
    source: str = ""                    # where the images lie, for contact sheets
    failures: dict = field(default_factory=dict)        # id -> why it is not there

    def pick(self, ids):
        """The rows of these ids, in their order."""
        places = {name: n for n, name in enumerate(self.ids)}
        return self.x[[places[name] for name in ids]]


def extract(encoder, images, process, batch=32, ids=None):
    """Features of `images` (all, or these ids), shared out among the processes. An image that cannot be read is in
    `failures`, by name: never a black square. Every process gets the whole."""
    failures, found = {}, {}
    blocks = chunks(list(images.ids if ids is None else ids), batch)
    mine, quiet = blocks[process.rank::process.world], not process.master
    for block in tqdm(mine, desc="features", unit="batch", disable=quiet, leave=False):
        read, bad = [], []
        for name in block:
            some = checked([(name, name)], lambda _, name: encoder.prepare(images.read(name)), bad)
            read += some
            if not some:
                failures[name] = bad[-1]
        if read:
            found |= dict(zip((name for name, _ in read), encoder(torch.stack([picture for _, picture in read]))))
    found, failures = ({k: v for part in parts for k, v in part.items()} for parts in zip(*gather((found, failures))))
    good = [name for block in blocks for name in block if name in found]
    if not good:
        raise InputError(f"none of the {sum(map(len, blocks))} images of {images.source} could be read.")
    return Features(good, np.stack([found[name] for name in good]), encoder.name, images.source, failures)


def reused(path, encoder, images, process, batch=32, ids=None):
    """The features in `path` when they are of these images by this encoder; otherwise extracted, and written there."""
    if path.exists():
        old = load(path)
        wanted = set(images.ids if ids is None else ids)
        if (old.encoder, old.source, {*old.ids, *old.failures}) == (encoder.name, images.source, wanted):
            return old
    found = extract(encoder, images, process, batch, ids)       # all processes meet in it, so all have looked for the file
    if process.master:
        save(path, found)
    return found


def save(path, features):
    path = Path(path)
    header = {"format": FORMAT, "encoder": features.encoder, "source": features.source, "ids": json.dumps(features.ids),
              "failures": json.dumps(features.failures)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{path.name}")
    save_file({"features": np.ascontiguousarray(features.x, np.float32)}, temporary, header)
    temporary.rename(path)


def load(path):
    try:
        with safe_open(path, "np") as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise InputError(f"{path} is no file of features of ours; `python evaluate.py features --images …` writes one.")
            features = Features(json.loads(header["ids"]), file.get_tensor("features"), header["encoder"], header["source"],
                                json.loads(header["failures"]))
    except FileNotFoundError:
        raise InputError(f"there are no features at {path}; `python evaluate.py features --images …` writes them.") from None
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path} is damaged or no file of features ({error}).") from None
    ids, x = features.ids, features.x
    if not isinstance(ids, list) or not all(isinstance(i, str) for i in ids) or not isinstance(features.failures, dict):
        raise InputError(f"{path} does not say which images its features are of; extract them anew.")
    if len(set(ids)) < len(ids):
        raise InputError(f"{path} names {next(i for i in ids if ids.count(i) > 1)} twice; every image may be there once.")
    if x.dtype != np.float32:
        raise InputError(f"{path} holds features in {x.dtype}; float32 is wanted.")
    if x.ndim != 2 or len(ids) != len(x):
        raise InputError(f"{path} names {len(ids)} images and holds features of shape {x.shape}.")
    return features


def same_encoder(a, b, names):
    if a.encoder != b.encoder:
        raise InputError(f"{names[0]} was made by '{a.encoder}', {names[1]} by '{b.encoder}': features of two encoders cannot "
                         "be compared; extract both with one.")
    if a.x.shape[1] != b.x.shape[1]:
        raise InputError(f"{names[0]} has {a.x.shape[1]} numbers an image, {names[1]} {b.x.shape[1]}: extract both anew.")
