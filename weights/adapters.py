"""Checkpoints of LoRA: adapters alone, and the name of the base that they belong to.

    out/lora/00000300/   config.json  tokenizer.json  state.pt
                         adapters.safetensors  ema.safetensors

`adapters.safetensors` holds the two small matrices of every adapted layer (`….lora_a` and
`….lora_b`, see training/lora.py) and, under their usual names, weights that the run trained whole.
Everything else is in the base. config.json says which directory that is and what its files hash to:

    "lora": {"rank": 16, "alpha": 16.0},
    "base": {"path": "pretrained/UniX", "absolute": "/home/me/pretrained/UniX", "sha256": "…"}

and "vae_base" likewise where the VAE came from elsewhere. The base may be the released UniX,
Janus-Pro, or a checkpoint of ours, also one that holds adapters itself. Adapters are small
differences to one set of weights and worthless on any other, so the hash is compared whenever they
are loaded. A base that has moved is looked for under both paths; "path" may be corrected by hand.

`weights.load` adds the adapters to the matrices of the base: whoever draws, reads, starts another
run or exports gets plain weights.
"""
import hashlib
import json
from pathlib import Path

import torch

from common.cli import InputError
from common.files import digest, read_json
from weights.about import vae_hash
from weights.checkpoint import checkpoints, newest, read_config
from weights.files import few, file_of_weights, read_tensors, refuse_non_finite

# the tables of a checkpoint of ours from which a model is made, as far as they are there
TABLES = ("model", "model-frozen", "ema", "adapters")


# ---- which base ----

def fingerprint(directory):
    """SHA-256, as hexadecimal digits, of the files that decide what the model in a directory
    computes: its config.json and its weights.
    """
    directory = Path(directory)
    config = directory / "config.json"
    files = [config] if config.exists() else []
    if files and read_json(config).get("format") == "open-unix":
        tables = [directory / f"{name}.safetensors" for name in TABLES]
        files += [table for table in tables if table.exists()]
    else:
        files += weights_of_others(directory)
    lines = [f"{path.name} {digest(path)}\n" for path in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def weights_of_others(directory):
    """The file that holds the weights of a directory, or an index and its shards."""
    path = file_of_weights(directory)
    if path.suffix != ".json":
        return [path]
    shards = set(json.loads(path.read_bytes())["weight_map"].values())
    return [path, *(directory / shard for shard in sorted(shards))]


def named(path, sha256):
    """How a config.json names a base."""
    return {"path": str(path), "absolute": str(Path(path).resolve()), "sha256": sha256}


def model_base(init):
    """The entry "base" of a run that starts from the run or directory `init`."""
    directory = newest(init)
    return named(directory, fingerprint(directory))


def vae_base(path, vae):
    """The entry "vae_base" of a run whose VAE comes from elsewhere; path: as --vae has it."""
    return named(newest(path) if checkpoints(path) else path, vae_hash(vae))


def place_of(entry, directory):
    """Where a base is now. entry: "base" or "vae_base" of the config.json in `directory`.

    InputError if it is neither where it was nor, seen from here, under the path as it was given.
    """
    for path in (entry["absolute"], entry["path"]):
        if Path(path).exists():
            return Path(path)
    raise InputError(f"{directory} holds adapters of {entry['path']}, which is not there (it was "
                     f"{entry['absolute']}); put it back, or write its place into \"path\" of "
                     f"{directory}/config.json.")


def refuse_other(entry, path, sha256, directory):
    """InputError if what lies at a base's path is not what the adapters were trained on."""
    if sha256 != entry["sha256"]:
        raise InputError(f"{path} is not what the adapters in {directory} were trained on: it has "
                         "changed since, or it is another one.")


def base_of(directory, config):
    """Where the base of the adapters in a directory is, if it is still the one that they belong to.

    config: of the config.json there.
    """
    entry = config["base"]
    path = place_of(entry, directory)
    refuse_other(entry, path, fingerprint(path), directory)
    return path


def foundations(path):
    """A path of weights, and the directories that these rest on: the base of adapters, its base."""
    places = [Path(path)]
    while True:
        directory = places[-1]
        if checkpoints(directory):
            directory = newest(directory)
        if not (directory / "config.json").exists():
            return places
        config = read_config(directory)
        if config.get("format") != "open-unix" or "base" not in config:
            return places
        places.append(place_of(config["base"], directory))


# ---- adapters and their base -> plain weights ----

def read(directory, ema):
    """{name: tensor} of the adapters in a directory and of what was trained whole with them.

    ema: the average, where one was kept.
    """
    averaged = directory / "ema.safetensors"
    path = averaged if ema and averaged.exists() else directory / "adapters.safetensors"
    tensors = read_tensors(path)
    refuse_non_finite(tensors, path)
    return tensors


def apart(tensors):
    """{name: tensor} of a directory -> {layer: {"lora_a": A, "lora_b": B}}, and what is no adapter.
    """
    pairs, whole = {}, {}
    for name, tensor in tensors.items():
        layer, _, part = name.rpartition(".")
        if part in ("lora_a", "lora_b"):
            pairs.setdefault(layer, {})[part] = tensor
        else:
            whole[name] = tensor
    return pairs, whole


def merged(base, tensors, config, directory, dtype=None, merge=True):
    """Weights {name: tensor} of the base, with what a LoRA run has trained put in -> the same kind.

    tensors: of the run, see `read`. An adapted matrix becomes W + alpha / r * B A, computed in fp32
    and then, one after another, turned to dtype (None: fp32); with merge=False it stays W.
    InputError where an adapter does not fit.
    """
    if dtype is None:
        dtype = torch.float32
    rank, alpha = config["lora"]["rank"], config["lora"]["alpha"]
    pairs, whole = apart(tensors)
    weights = {**base, **whole}
    misfits = []
    for layer, pair in pairs.items():
        name = f"{layer}.weight"
        if name not in base or not fits(base[name], pair, rank):
            misfits.append(layer)
        elif merge:
            difference = pair["lora_b"].float() @ pair["lora_a"].float()
            weights[name] = (base[name].float() + alpha / rank * difference).to(dtype)
    if misfits:
        raise InputError(f"{directory}: the adapters of {few(misfits)} are not of rank {rank}, as "
                         "config.json says, or of other sizes than the base.")
    return weights


def fits(weight, pair, rank):
    """Whether A (r, in) and B (out, r) are both there and belong to a matrix W (out, in)."""
    shapes = {part: tuple(tensor.shape) for part, tensor in pair.items()}
    outputs, inputs = weight.shape
    return shapes == {"lora_a": (rank, inputs), "lora_b": (outputs, rank)}


@torch.no_grad()
def take_over(parameters, directory):
    """Put the tensors of a run's checkpoint into the parameters {name: p} that the run trains.

    Not their average. InputError if they are not the same ones.
    """
    tensors = read(directory, ema=False)
    shapes = [{name: tuple(tensor.shape) for name, tensor in table.items()}
              for table in (tensors, parameters)]
    if shapes[0] != shapes[1]:
        other = {name for name, _ in shapes[0].items() ^ shapes[1].items()}
        raise InputError(f"{directory} holds other adapters than this run trains: they differ in "
                         f"{few(other)}.")
    for name, parameter in parameters.items():
        parameter.copy_(tensors[name])
