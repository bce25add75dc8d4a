"""Packed data sets, written and read: a directory `<root>/<task>-<size>/`, with task und or gen.

    00000.bin                  encoded images (PNG or JPEG, 8-bit grey, size x size), joined
    00000.idx.npy              int64 offsets into it, one more than there are images
    00000.jsonl                one row an image: id, subject, study, split, view, prompt, report,
                               labels, source
    00000.latents.safetensors  optional: mean and logvar of the VAE's posterior
                               (python -m training.latents)
    dataset.json               schema, task, size, counts, settings and their hash; written last

A shard holds about 10,000 images. Each of its files is written under a temporary name, then
renamed; dataset.json comes last and makes a data set of the directory. What decides whether two
data sets are the same are the settings and the inputs, never the code that wrote them.
"""
import hashlib
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from common.cli import InputError
from common.files import (
    as_utf8, json_lines, naming, read_json, read_jsonl, settings_hash, write_bytes, write_json)
from common.platforms import open_to_read, read_at

SCHEMA = 1


def describe(task, size, settings):
    """The content of dataset.json, but for the counts."""
    return {"schema": SCHEMA, "task": task, "size": size, "settings": settings,
            "hash": settings_hash(settings)}


# ---- writing ----

# the files of a packed data set, settings.json and 00000.done.json being of prepare_mimic.py alone
OURS = re.compile(r"(\.tmp-)?(\d{5}\.(bin|idx\.npy|jsonl|latents\.safetensors|done\.json)"
                  r"|dataset\.json|settings\.json)")


# the files that say what a data set was made with
ABOUT = ("dataset.json", "settings.json")
# a setting that only one of the two commands has which make data sets
MAKERS = {"dataset": "prepare_mimic.py", "vocab_size": "phantom.prepare"}


def settings_of(directory):
    """What a data set that is finished or begun was made with; None where no file says so."""
    for name in ABOUT:
        try:
            settings = read_json(Path(directory) / name)["settings"]
        except (InputError, KeyError, TypeError):       # missing, damaged, or of another program
            continue
        if isinstance(settings, dict):
            return settings
    return None


def refuse_foreign(directory, maker=""):
    """InputError for a directory that holds files, but none of a packed data set, or a data set
    that another command than `maker` has made or begun.
    """
    directory = Path(directory)
    if not directory.exists():
        return
    names = sorted(path.name for path in directory.iterdir())
    others = [name for name in names if not name.startswith(".")]
    # many programs call a file dataset.json or settings.json
    shards = [name for name in names if OURS.fullmatch(name) and name not in ABOUT]
    settings = settings_of(directory)
    if others and not shards and settings is None:
        raise InputError(f"{directory} holds files and no data set of ours ({others[0]}): choose "
                         "another --out, so that nothing of yours is replaced.")
    for setting, command in MAKERS.items():
        if settings and maker and command != maker and setting in settings:
            raise InputError(f"{directory} was made by {command}, and {maker} replaces no such "
                             "data set: choose another --out.")


def clear(directory, number=None):
    """Remove the files of a packed data set, or of its shard of that number, and no others."""
    names = [path.name for path in Path(directory).iterdir() if OURS.fullmatch(path.name)]
    if number is not None:
        names = [name for name in names if name.startswith((f"{number:05d}.", "dataset.json"))]
    # in this order, so that a kill leaves nothing that looks finished
    for ending in ("dataset.json", ".done.json", ""):
        for name in names:
            if name.endswith(ending):
                (Path(directory) / name).unlink(missing_ok=True)


def remove_leftovers(directory):
    """Remove what a kill has left half-written."""
    for path in Path(directory).glob(".tmp-*"):
        if OURS.fullmatch(path.name):
            path.unlink()


def other_sizes(directories):
    """Sentences about data sets of other sizes beside these; they are left as they are."""
    tasks = {path.name.rpartition("-")[0] for path in directories}
    beside = {path.parent for directory in directories
              for path in directory.parent.glob("*-[0-9]*/dataset.json")}
    return [f"{path} is of an earlier run and stays as it is; delete it if it is not wanted, since "
            "its split may be another." for path in sorted(beside - set(directories))
            if path.name.rpartition("-")[0] in tasks]


class Shard:
    """One shard: images go to the disk as they come, so that memory does not grow.

    `close` gives its files their final names.
    """

    def __init__(self, directory, number):
        self.directory = Path(directory)
        self.name = f"{number:05d}"
        self.temporary = self.directory / f".tmp-{self.name}.bin"
        self.file = open(self.temporary, "wb")
        self.digest = hashlib.sha256()
        self.offsets = [0]
        self.rows = []

    def add(self, image, row):
        """image: encoded bytes of a PNG or JPEG. row: a dict with at least id, split and report."""
        with naming(self.temporary):
            self.file.write(image)
        self.digest.update(image)
        self.offsets.append(self.offsets[-1] + len(image))
        self.rows.append(row)

    def close(self):
        """-> {file name: sha256}, empty if nothing was added: there are no empty shards."""
        with naming(self.temporary):
            self.file.close()
        if not self.rows:
            self.temporary.unlink()
            return {}
        # the index and the rows are small: they are made in memory
        offsets = io.BytesIO()
        np.save(offsets, np.array(self.offsets, dtype=np.int64))
        contents = {"idx.npy": offsets.getvalue(), "jsonl": as_utf8(json_lines(self.rows))}

        # the images lie on the disk already and only get their name
        self.temporary.replace(self.directory / f"{self.name}.bin")
        hashes = {f"{self.name}.bin": self.digest.hexdigest()}
        for ending, content in contents.items():
            name = f"{self.name}.{ending}"
            write_bytes(self.directory / name, content)
            hashes[name] = hashlib.sha256(content).hexdigest()
        return hashes


class Writer:
    """Pack images and rows into `directory`: `add` them in order, then `close`; or use it in a
    `with`.

    Shards, latents and dataset.json of an earlier data set in the directory are removed first.
    """

    def __init__(self, directory, task, size, settings, shard_size=10_000):
        self.directory = Path(directory)
        self.shard_size = shard_size
        self.shard = None               # the one that is being filled
        self.shards = 0                 # how many are finished
        self.counts = Counter()         # images of each split
        self.info = describe(task, size, settings)
        # dataset.json goes first: from here on this is no data set until `close`
        refuse_foreign(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        clear(self.directory)

    def add(self, image, row):
        """One image, as encoded bytes, and its row."""
        if self.shard is None:
            self.shard = Shard(self.directory, self.shards)
        self.shard.add(image, row)
        self.counts[row["split"]] += 1
        if len(self.shard.rows) == self.shard_size:
            self.finish_shard()

    def finish_shard(self):
        self.shard.close()
        self.shard = None
        self.shards += 1

    def close(self):
        """Finish the last shard and write dataset.json."""
        if self.shard is not None:
            self.finish_shard()
        write_json(self.directory / "dataset.json", {**self.info, "counts": dict(self.counts)})

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        # after an exception there is no dataset.json, so what was written is no data set
        if kind is None:
            self.close()


# ---- reading ----

class Packed:
    """A packed data set, one split or all: `len`, `.rows[i]`, `.image(i)`, `.moments(i)`.

    Raises InputError for a data set that is missing, damaged, incomplete or of another schema.
    """

    def __init__(self, root, task, size, split=None):
        self.directory = Path(root) / f"{task}-{size}"
        self.size = size
        self.info = self.read_info(task)
        self.rows = []                  # of the split, in the order of the shards
        self.places = []                # of each: (number of its shard, place in it, offset, bytes)
        self.files = {}                 # descriptors of the shards that have been opened
        self.latents = None             # (mean, logvar) a shard, see open_latents
        # all rows are held in memory, the images stay on the disk
        self.shards = sorted(self.directory.glob("[0-9]*.jsonl"))
        for number, path in enumerate(self.shards):
            rows, offsets = read_shard(path)
            for i, row in enumerate(rows):
                if split in (None, row["split"]):
                    start, end = int(offsets[i]), int(offsets[i + 1])
                    self.rows.append(row)
                    self.places.append((number, i, start, end - start))

        # a shard that is missing altogether shows in the counts only
        counts = self.info["counts"]
        expected = sum(counts.values()) if split is None else counts.get(split, 0)
        if len(self.rows) != expected:
            raise InputError(f"{self.directory} lacks a shard; prepare it anew.")
        if not self.rows:
            there = ", ".join(f"{count} in {name}" for name, count in counts.items() if count)
            raise InputError(f"{self.directory} has no image in split '{split}' ({there}): "
                             f"{self.more_of(split)}")

    def more_of(self, split):
        """What to do about a split without an image."""
        if split not in ("train", "val", "test"):
            return "choose train, val or test."
        if "dataset" not in self.info["settings"]:
            return f"`python -m phantom.prepare --{split} 100 --overwrite` draws some."
        return (f"give the table more patients, or a column split that says {split} of some, and "
                "run `python prepare_mimic.py … --overwrite` again.")

    def read_info(self, task):
        """dataset.json, if it is what the directory's name says."""
        if not (self.directory / "dataset.json").exists():
            raise InputError(self.how_to_make(task))
        info = read_json(self.directory / "dataset.json")
        if not isinstance(info, dict) or not info.keys() >= {*describe("", 0, {}), "counts"}:
            raise InputError(f"{self.directory}/dataset.json is no packed data set's; choose "
                             "another folder.")
        if info["schema"] != SCHEMA:
            raise InputError(f"{self.directory} has schema {info['schema']}, this code reads "
                             f"{SCHEMA}; prepare it anew.")
        if info["size"] != self.size or info["task"] != task:
            raise InputError(f"{self.directory} says it is {info['task']}-{info['size']}; "
                             "was it renamed?")
        return info

    def how_to_make(self, task):
        """A sentence for a data set that is not there, or not finished."""
        root = self.directory.parent
        if (self.directory / "settings.json").exists():
            return (f"{self.directory} was begun and not finished; run its `python "
                    "prepare_mimic.py …` again, it goes on where it was.")
        others = sorted(path.parent.name for path in root.glob("*-*/dataset.json"))
        there = f" ({', '.join(others)} {'is' if len(others) == 1 else 'are'} there)"
        return (f"there is no packed data set at {self.directory}{there if others else ''}; "
                f"`python prepare_mimic.py … --{task}-sizes {self.size} --out {root}` makes it of "
                "radiographs (docs/data.md), `python -m phantom.prepare` makes phantoms.")

    def __len__(self):
        return len(self.rows)

    def encoded(self, i):
        """The bytes of image i as they were packed, a PNG or a JPEG."""
        # a shard is opened when it is first needed, and stays open
        number, _, offset, length = self.places[i]
        if number not in self.files:
            path = self.shards[number].with_suffix(".bin")
            self.files[number] = open_to_read(path)
        return read_at(self.files[number], length, offset)

    def image(self, i):
        """Image i -> (size, size) uint8."""
        name = f"image {self.rows[i]['id']} of {self.directory}"
        try:
            pixels = np.array(Image.open(io.BytesIO(self.encoded(i))).convert("L"))
        except (OSError, SyntaxError, ValueError):
            raise InputError(f"{name} cannot be read; prepare it anew.") from None
        height, width = pixels.shape
        if (height, width) != (self.size, self.size):
            raise InputError(f"{name} has {width}x{height} pixels, not {self.size}x{self.size}; "
                             "prepare it anew.")
        return torch.from_numpy(pixels)

    def open_latents(self, vae_hash):
        """Use the posteriors stored beside the shards, if all are there -> whether they are."""
        paths = [path.with_suffix(".latents.safetensors") for path in self.shards]
        if not all(path.exists() for path in paths):
            return False
        try:
            files = [safe_open(path, "pt") for path in paths]
        except SafetensorError:
            raise InputError(f"a latents file in {self.directory} is damaged; encode anew "
                             "(python -m training.latents).") from None
        # latents of another VAE would be learnt without an error, so they say where they are from
        if any(file.metadata() != {"vae": vae_hash, "data": self.info["hash"]} for file in files):
            raise InputError(
                f"the latents in {self.directory} come from another VAE or data set; encode them "
                "anew (python -m training.latents) or delete them.")
        # slices map the files into memory and read what is asked for
        self.latents = [(file.get_slice("mean"), file.get_slice("logvar")) for file in files]
        return True

    def moments(self, i):
        """Posterior mean and log-variance, each (z, h, w), of image i, before normalisation."""
        number, place, _, _ = self.places[i]
        mean, logvar = self.latents[number]
        return mean[place:place + 1][0].float(), logvar[place:place + 1][0].float()


def read_shard(path):
    """The rows of a shard and its offsets, if its three files fit each other. path: its .jsonl."""
    damaged = InputError(f"shard {path.with_suffix('.bin')} is cut short or does not fit its "
                         "index; prepare it anew.")
    try:
        offsets = np.load(path.with_suffix(".idx.npy"))
        rows = read_jsonl(path)
        length = path.with_suffix(".bin").stat().st_size
    except (OSError, ValueError, InputError):       # a file is missing or ends in the middle
        raise damaged from None
    if len(rows) + 1 != len(offsets) or length != offsets[-1]:
        raise damaged
    return rows, offsets
