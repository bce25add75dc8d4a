"""Files of weights: read tensors, translate their names, fill a network strictly.

Nothing is unpickled, files are memory-mapped, and every tensor is used or dropped by name: what `translate` does not know
keeps its name, and `fill` refuses it.
"""
import json
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.processes import InputError

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
         "diffusion_pytorch_model.safetensors", "kl-f16d16.ckpt")


class Nothing:
    """Stands for a class that checkpoints of Lightning name beside the weights; none of its code is here, none is run."""


INERT = [(Nothing, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def read_tensors(path):
    """{name: tensor} of a safetensors file or torch state dict, both memory-mapped, or of a directory with one of FILES."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).exists()]
        if not found:
            raise InputError(f"{path} holds no weights, none of {', '.join(FILES)}.")
        path = found[0]
    try:
        if path.suffix == ".json":
            return read_shards(path, json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(INERT):
            # files of torch before 1.6 are no zip archives and cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise InputError(f"there are no weights at {path}; docs/weights.md says where to get them.") from None
    except pickle.UnpicklingError:
        raise InputError(f"{path} asks to run code when it is read, or is no torch file; refused.") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}).") from None
    if isinstance(content, dict):
        content = next((content[key] for key in ("state_dict", "model_state_dict") if key in content), content)
    if not isinstance(content, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in content.items()):
        raise InputError(f"{path} holds something else than named tensors.")
    return content


def read_shards(index, places):
    """The tensors of the shards beside an index {name: file}; both must say the same."""
    if not isinstance(places, dict) or not all(isinstance(v, str) and Path(v).name == v != "" for v in places.values()):
        raise InputError(f"{index} does not say which file beside it holds which tensor.")
    lacking = [name for name in sorted(set(places.values())) if not (index.parent / name).exists()]
    if lacking:
        raise InputError(f"{index} names {', '.join(lacking)}, not there; download again what is missing.")
    tensors, found = {}, {}
    for name in sorted(set(places.values())):
        shard = read_tensors(index.parent / name)
        found |= {(k, name): v for k, v in shard.items()}
        tensors |= shard
    if found.keys() != set(places.items()):
        raise InputError(f"{index} and its shards differ in {few({k for k, _ in found.keys() ^ set(places.items())})}.")
    return tensors


def few(names):
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def translate(shapes, source, layout, keep=False):
    """Tensors of a foreign file under our names. shapes {our name: shape} says what is wanted.

    What the layout drops is left out, or kept as `unused.*`; what it does not know keeps its name, so that `fill` objects.
    """
    tensors, left = {}, dict(source)
    for ours, shape in shapes.items():
        theirs = layout.theirs(ours)
        if not theirs:
            tensors[ours] = torch.full(shape, next(value for end, value in layout.new.items() if ours.endswith(end)))
        elif all(name in left for name in theirs):
            parts = [left.pop(name) for name in theirs]
            if len({(part.dtype, part.shape) for part in parts}) > 1:
                raise InputError(f"{', '.join(theirs)} belong together and differ in shape or type.")
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
            # a table (N, C) that is (1, N, C) here, a linear layer that is a 1x1 convolution here: the same numbers
            same = [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]
            tensors[ours] = tensor.reshape(shape) if same else tensor
    unused = {k: left.pop(k) for k in list(left) if k.startswith(tuple(layout.dropped))}
    left = {f"{k} (our name, not theirs)" if k in shapes or k.startswith("unused.") else k: v for k, v in left.items()}
    return {**tensors, **left, **({"unused." + k: v for k, v in unused.items()} if keep else {})}


def fill(module, tensors, source, dtype=None):
    """Put tensors {our name: tensor} into the module, strictly: same names, same shapes, floating point."""
    want = module.state_dict()
    missing, unknown = want.keys() - tensors.keys(), tensors.keys() - want.keys()
    if missing or unknown:
        raise InputError(f"{source} does not fit: missing there: {few(missing)}; unknown to us: {few(unknown)}.")
    for name, tensor in tensors.items():
        if tensor.shape != want[name].shape:
            raise InputError(f"{source}: {name} has shape {tuple(tensor.shape)}, the configuration wants "
                             f"{tuple(want[name].shape)}.")
        if not tensor.is_floating_point():
            raise InputError(f"{source}: {name} holds {tensor.dtype}, not floating-point numbers.")
    module.load_state_dict({k: v.to(dtype or v.dtype) for k, v in tensors.items()}, assign=True)
    return module.eval()
