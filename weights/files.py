"""Read tensors from files, translate their names, fill a network with them.

Strict on both sides: every tensor of a file is used, or dropped by name because its layout says so,
and every tensor of the network is filled; otherwise an error lists what is missing and what is
unknown. Files of safetensors and of torch are memory-mapped, so a tensor is copied only if it is
cast or joined. Nothing is ever unpickled that could run code.

    tensors = read_tensors(path)                    {name: tensor} of a file, or of a directory
    fill(module, tensors, path)                     where the names are ours
    fill_translated(module, tensors, UNIX, path)    where they are those of a layout
"""
import json
import pickle
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.cli import InputError

# what the weights of a directory may be called; the first one that is there is read
FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "diffusion_pytorch_model.safetensors",
    "kl-f16d16.ckpt",
)


# ---- reading ----

class Nothing:
    """An empty class in place of one that Lightning's checkpoints name beside the weights."""


# kl-f16's file of 2022 names this class of Lightning as the key of a callback's state; torch's
# reader takes Nothing where it stands, so neither Lightning nor any of its code is needed
INERT = [(Nothing, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def read_tensors(path):
    """{name: tensor} of a safetensors file, a torch state dict, an index of shards or a directory.

    InputError where there is no such file, or where it is damaged, asks to run code, or holds
    anything but named tensors.
    """
    path = Path(path)
    if path.is_dir():
        path = file_of_weights(path)

    # the libraries report damage by many kinds of error; all of them become one sentence
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".json":
            index = json.loads(path.read_bytes())
            return read_shards(path, index["weight_map"])
        return read_state_dict(path)
    except FileNotFoundError:
        raise InputError(
            f"there are no weights at {path}; docs/weights.md says where to get them.") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} asks to run code when it is read, or is no torch file; refused.") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}).") from None


def file_of_weights(directory):
    """The file of a directory that holds its weights, or lists the files that do."""
    for name in FILES:
        if (directory / name).exists():
            return directory / name
    raise InputError(f"{directory} holds no weights, none of {', '.join(FILES)}.")


def read_state_dict(path):
    """{name: tensor} of a file that `torch.save` wrote."""
    # such a file is a zip archive, whose table of contents stands at its end, so that one cut short
    # is none; before torch 1.6 it was a plain pickle, which cannot be memory-mapped
    is_whole_archive = zipfile.is_zipfile(path)
    with open(path, "rb") as file:
        begins_as_archive = file.read(2) == b"PK"
    if begins_as_archive and not is_whole_archive:
        raise InputError(f"{path} is cut short; download it again.")

    # weights_only: no class is looked up but tensors, plain containers and the inert one
    with torch.serialization.safe_globals(INERT):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_whole_archive)

    # training scripts often put the tensors one level down
    if isinstance(content, dict):
        for key in ("state_dict", "model_state_dict"):
            if key in content:
                content = content[key]
                break

    if not is_table_of_tensors(content):
        raise InputError(f"{path} holds something else than named tensors.")
    return content


def is_table_of_tensors(content):
    if not isinstance(content, dict):
        return False
    return all(isinstance(k, str) and torch.is_tensor(v) for k, v in content.items())


def read_shards(index, file_of):
    """The tensors of all shards beside an index file. file_of {tensor: name of its shard} is what
    the index says; it must name exactly what is in the shards."""
    # an index comes from others: it must not lead us to files outside of its directory
    if not isinstance(file_of, dict) or not all(map(is_file_name, file_of.values())):
        raise InputError(f"{index} does not say which file beside it holds which tensor.")
    names = sorted(set(file_of.values()))
    missing = [name for name in names if not (index.parent / name).exists()]
    if missing:
        raise InputError(
            f"{index} names {', '.join(missing)}, not there; download again what is missing.")

    tensors = {}
    pairs = set()                           # (tensor, shard) as they are on the disk
    for name in names:
        shard = read_tensors(index.parent / name)
        pairs |= {(key, name) for key in shard}
        tensors |= shard

    # what is on the disk and not in the index, or the other way round, or in another shard
    differences = {key for key, _ in pairs ^ set(file_of.items())}
    if differences:
        raise InputError(f"{index} and its shards differ in {few(differences)}.")
    return tensors


def is_file_name(value):
    """Whether a value names a file in the same directory, and nothing outside of it."""
    return isinstance(value, str) and value != "" and Path(value).name == value


def few(names):
    """The first eight of some names, and how many more there are, as part of a sentence."""
    names = sorted(names)
    if not names:
        return "nothing"
    text = ", ".join(names[:8])
    if len(names) > 8:
        text += f" and {len(names) - 8} more"
    return text


# ---- names ----

def translate(shapes, source, layout):
    """The tensors of a file under our names. shapes {our name: shape} says which ones are wanted.

    What the layout drops is left out. A tensor that the layout does not know keeps its name, and
    for one that the file lacks there is no entry: `fill` then refuses the file and names both.
    InputError where tensors that are joined differ in shape or type.
    """
    # every wanted tensor takes its pieces out of what remains of the file
    remaining = dict(source)
    tensors = {}
    for ours, shape in shapes.items():
        theirs = layout.theirs(ours)
        if not theirs:
            tensors[ours] = torch.full(shape, first_value(ours, layout))
        elif all(name in remaining for name in theirs):
            pieces = [remaining.pop(name) for name in theirs]
            if len({(piece.dtype, piece.shape) for piece in pieces}) > 1:
                raise InputError(
                    f"{', '.join(theirs)} belong together and differ in shape or type.")
            tensors[ours] = reshaped(pieces, shape)

    # nobody wanted what remains now: either the layout drops it, or it is unknown
    for name, tensor in remaining.items():
        if name.startswith(tuple(layout.dropped)):
            continue
        # a tensor of theirs must not pass for ours because it happens to have one of our names
        key = f"{name} (our name, not theirs)" if name in shapes else name
        tensors[key] = tensor
    return tensors


def first_value(ours, layout):
    """The value that a tensor which only we have is filled with at first."""
    for ending, value in layout.new.items():
        if ours.endswith(ending):
            return value
    raise KeyError(ours)


def reshaped(pieces, shape):
    """Pieces of one tensor joined; reshaped where it differs from `shape` by axes of length 1.

    So a table (1, N, C) becomes our (N, C), and a linear layer (C, C) a 1x1 convolution. A tensor
    that differs in more than that is returned as it is; `fill` then names the two shapes.
    """
    tensor = pieces[0]
    if len(pieces) > 1:
        tensor = torch.cat(pieces)
    if [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]:
        return tensor.reshape(shape)
    return tensor


def dropped(source, layout):
    """The tensors of a file that its layout drops, by their own names."""
    beginnings = tuple(layout.dropped)
    return {name: tensor for name, tensor in source.items() if name.startswith(beginnings)}


# ---- filling ----

def fill(module, tensors, source, dtype=None):
    """Put tensors {our name: tensor} into a module -> the module. dtype=None keeps theirs.

    A matrix that the module has in int8 is quantised. InputError names what is missing, unknown,
    misshapen, no floating-point number or not finite. source is the file's path, for the message.
    """
    # names first: torch's own strict loading would print hundreds of them
    wanted = module.state_dict()
    missing = wanted.keys() - tensors.keys()
    unknown = tensors.keys() - wanted.keys()
    if missing or unknown:
        raise InputError(f"{source} does not fit: missing there: {few(missing)}; "
                         f"unknown to us: {few(unknown)}.")
    for name, tensor in tensors.items():
        if tensor.shape != wanted[name].shape:
            raise InputError(f"{source}: {name} has shape {tuple(tensor.shape)}, "
                             f"the configuration wants {tuple(wanted[name].shape)}.")
        # weights in 8-bit integers would have scales beside them, which we do not read
        if not tensor.is_floating_point():
            raise InputError(f"{source}: {name} holds {tensor.dtype}, not floating-point numbers.")

    # one tensor after another, so that there is never more than one in a format that is not kept
    kept = {}
    for name, tensor in tensors.items():
        if wanted[name].dtype == torch.int8:
            layer = module.get_submodule(name.removesuffix(".weight"))
            kept[name] = layer.take(tensor, tensor.dtype if dtype is None else dtype)
            refuse_non_finite({name: layer.scale}, source)
        else:
            kept[name] = tensor if dtype is None else tensor.to(dtype)
            refuse_non_finite({name: kept[name]}, source)
    # assign: the module takes over these tensors, so what is memory-mapped stays so
    module.load_state_dict(kept, assign=True)
    return module.eval()


def refuse_non_finite(tensors, source):
    """InputError that names the first tensor with NaN or infinity in it."""
    for name, tensor in tensors.items():
        # both ends are NaN if any value is, and cost a quarter of casting the tensor
        if tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
            raise InputError(f"{source}: {name} holds numbers that are not finite; the file is "
                             "damaged, or training has ruined the weights.")


def fill_translated(module, source, layout, path, dtype=None):
    """Put the tensors of a file of that layout into a module; -> the module."""
    shapes = {name: tensor.shape for name, tensor in module.state_dict().items()}
    return fill(module, translate(shapes, source, layout), path, dtype)
