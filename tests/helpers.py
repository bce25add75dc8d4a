"""What tests share and is no fixture: reference data, tiny networks and files, closeness."""
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
ROOMS = ("common", "weights", "training", "mimic", "phantom", "evaluation", "abilities", "bench")


def scripts():
    """Every file that runs, as {"phantom.prepare": path}."""
    files = [path for place in (".", *ROOMS) for path in sorted(ROOT.glob(f"{place}/*.py"))]
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    return {name: path for name, path in names.items()
            if 'if __name__ == "__main__":\n    ' in path.read_text("utf-8").split('"""')[-1]}


SCRIPTS = scripts()
GOLDEN = SHARED / "golden"

needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="reference tensors are not here")
needs_films = pytest.mark.skipif(
    not (SHARED / "real_cxr").exists(), reason="real radiographs are not here")

# a small vision tower, by the names that transformers gives its sizes
TOWER = dict(
    hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16)


def close(ours, ref, tolerance=1e-5):
    """Relative error |ours - ref| / |ref| as one number over the whole tensor."""
    assert ours.shape == ref.shape, f"{tuple(ours.shape)} against {tuple(ref.shape)}"
    error = (ours.double() - ref.double()).norm() / ref.double().norm().clamp(min=1e-12)
    assert error <= tolerance, f"relative error {error:.2e} > {tolerance}"


def normal(*shape, seed=0):
    """Standard normal numbers, the same for the same seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tiny_config(**changes):
    from model import UniXConfig
    from vision import ViTConfig
    vision = ViTConfig(image_size=32, patch_size=16, n_layer=2, n_head=2, n_embd=32, n_inner=64)
    base = dict(
        n_layer=3, n_head=4, n_embd=64, n_inner=96, vocab_size=64, bos=60, eos=61, soi=62, eoi=63,
        max_text=64, vision=vision, max_latent_size=8, repa_layer=2)
    return UniXConfig(**{**base, **changes})


def randomise(model, seed=0):
    """Random values everywhere: an output that starts at zero would hide most mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in model.named_parameters():
        noise = torch.randn(p.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            p.data.copy_(1 + 0.2 * noise)
        else:
            p.data.copy_(noise * 0.3 * p.shape[-1] ** -0.5)
    return model


def scramble(module):
    """The same for a network of others, whose zeros and ones would not show a swapped name."""
    generator = torch.Generator().manual_seed(0)
    for p in module.parameters():
        scale = 0.3 if p.ndim < 2 else p[0].numel() ** -0.5
        p.data = torch.randn(p.shape, generator=generator) * scale
    return module.eval()


def some_tokenizer(size):
    """The JSON of a tokenizer with `size` tokens: bytes, then <256>, <257>, ..."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {alphabet[i] if i < len(alphabet) else f"<{i}>": i for i in range(size)}
    return tokenizers.Tokenizer(tokenizers.models.BPE(vocabulary, [])).to_str()


def tiny_vae():
    """A random autoencoder, 8 times smaller latents of 4 channels."""
    from vae import VAE, VAEConfig
    torch.manual_seed(0)
    return VAE(VAEConfig(
        ch=8, ch_mult=(1, 1, 1, 2), n_res=1, z_channels=4, embed_dim=4, norm_groups=4, scale=1.0,
        shift=0.0)).eval()


def lock_of_another(directory, name=""):
    """Leave the lock of a process on another machine, of which nothing can be known here."""
    from common import locks
    directory.mkdir(parents=True, exist_ok=True)
    with locks.take(directory, name) as lock:
        about = json.loads(lock.path.read_text())
    (directory / lock.path.name).write_text(json.dumps({**about, "host": "elsewhere"}))


# ---- a packed data set of noise, in shards of five images ----

NOISE_SIZE = 16


def noise_picture(i):
    """Picture i, (16, 16) uint8."""
    shape = (NOISE_SIZE, NOISE_SIZE)
    return np.random.default_rng(i).integers(0, 256, shape, dtype=np.uint8)


def noise_row(i, split="train"):
    """Row i, whose report has i + 1 letters; the id has an accent, the labels are a list."""
    report = "abcdefghijklmnopqrstuvwxyz"[:i + 1]
    return dict(id=f"é-{i}", split=split, prompt="ask", report=report, labels=[["x", i]])


def pack_noise(root, task="und", train=13, val=3):
    """Pictures 0 to train - 1 to train on, the next to validate -> root."""
    from common.packed import Writer
    directory = root / f"{task}-{NOISE_SIZE}"
    with Writer(directory, task, NOISE_SIZE, {"seed": 0}, shard_size=5) as writer:
        for i in range(train + val):
            png = io.BytesIO()
            Image.fromarray(noise_picture(i)).save(png, "PNG")
            writer.add(png.getvalue(), noise_row(i, "train" if i < train else "val"))
    return root


def png_chunk(name, content):
    """One chunk of a PNG file."""
    checksum = zlib.crc32(name + content).to_bytes(4, "big")
    return len(content).to_bytes(4, "big") + name + content + checksum


def png_of(channels, extra=b""):
    """The bytes of a PNG of 16 bits a channel, (H, W, 2 to 4) unsigned, which Pillow cannot write.

    extra: chunks to stand before the pixels.
    """
    height, width, count = channels.shape
    colour = {2: 4, 3: 2, 4: 6}[count]              # grey and alpha, RGB, RGB and alpha
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, colour, 0, 0, 0])
    # filter 1, "sub": what a pixel adds to the one before it, byte by byte
    rows = channels.astype(">u2").reshape(height, -1).view(np.uint8)
    filtered = rows.copy()
    filtered[:, 2 * count:] -= rows[:, :-2 * count]
    lines = np.pad(filtered, ((0, 0), (1, 0)), constant_values=1).tobytes()
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra
            + png_chunk(b"IDAT", zlib.compress(lines)) + png_chunk(b"IEND", b""))


def tiff_of(values, photometric=1, order="<", deflate=False, **tags):
    """The bytes of a TIFF of one strip that holds an array (H, W) or (H, W, channels) of any type.

    order: "<" or ">", the order of the bytes. tags: more fields, as t338=2.
    """
    height, width, *channels = values.shape
    count = channels[0] if channels else 1
    form = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    pixels = values.astype(values.dtype.newbyteorder(order)).tobytes()
    if deflate:
        pixels = zlib.compress(pixels)
    fields = {256: width, 257: height, 258: 8 * values.itemsize, 259: 8 if deflate else 1,
              262: photometric, 273: 0, 277: count, 278: height, 279: len(pixels), 339: form}
    fields |= {int(tag[1:]): value for tag, value in tags.items()}
    fields[273] = 8 + 2 + 12 * len(fields) + 4          # where the pixels begin
    table = struct.pack(f"{order}H", len(fields))
    for tag, value in sorted(fields.items()):
        # bits and form stand once for all channels, which readers accept
        table += struct.pack(f"{order}HHII", tag, 4, 1, value)
    magic = b"II" if order == "<" else b"MM"
    head = magic + struct.pack(f"{order}HI", 42, 8)
    return head + table + bytes(4) + pixels


def dicom_file(values, photometric="MONOCHROME1", padding=None, syntax="", **fields):
    """The bytes of a DICOM file that holds whole numbers (H, W) with 12 bits each.

    padding: PixelPaddingValue and, in a pair, PixelPaddingRangeLimit. syntax: the end of another
    transfer syntax. fields: more of the header, by keyword; None takes one out.
    """
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID = pydicom.uid.UID(f"1.2.840.10008.1.2{syntax if syntax else '.1'}")
    meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = pydicom.Dataset()
    dataset.file_meta = meta
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel = 1
    dataset.BitsAllocated = 16
    dataset.BitsStored = 12
    dataset.HighBit = 11
    dataset.PixelRepresentation = 0
    dataset.PhotometricInterpretation = photometric
    dataset.PixelData = values.astype(np.uint16).tobytes()
    for keyword, value in fields.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if "PixelData" in dataset:
        dataset["PixelData"].VR = "OB" if dataset.BitsAllocated == 8 else "OW"
    # the type of these is a matter of taste, which is how wrong signs come about
    for tag, value in zip((0x00280120, 0x00280121), padding if padding else ()):
        dataset.add_new(tag, "SS" if value < 0 else "US", value)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()
