"""Write packed data sets; training/batches.py reads them and its docstring gives the format. prepare_*.py are the users."""
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np

from training.batches import SCHEMA


def settings_hash(settings):
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def describe(task, size, settings):
    """The content of dataset.json, but for the counts."""
    return {"schema": SCHEMA, "task": task, "size": size, "settings": settings, "hash": settings_hash(settings)}


def write(path, content):
    """Under a temporary name, then renamed: a kill leaves the old file or the new one whole."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_bytes(content)
    temporary.rename(path)


class Shard:
    """One shard: images go to disk as they come, so that memory does not grow; `close` gives the files their names."""

    def __init__(self, directory, number):
        self.directory, self.name = Path(directory), f"{number:05d}"
        self.temporary = self.directory / f".tmp-{self.name}.bin"
        self.file, self.offsets, self.rows, self.digest = open(self.temporary, "wb"), [0], [], hashlib.sha256()

    def add(self, image, row):
        """image: encoded bytes; row: a dict with at least id, split, report."""
        self.file.write(image)
        self.digest.update(image)
        self.offsets.append(self.offsets[-1] + len(image))
        self.rows.append(row)

    def close(self):
        """-> {file name: sha256}, empty if nothing was added: there are no empty shards."""
        self.file.close()
        if not self.rows:
            self.temporary.unlink()
            return {}
        encoded = io.BytesIO()
        np.save(encoded, np.array(self.offsets, dtype=np.int64))
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows).encode()
        self.temporary.rename(self.directory / f"{self.name}.bin")
        hashes = {f"{self.name}.bin": self.digest.hexdigest()}
        for ending, content in (("idx.npy", encoded.getvalue()), ("jsonl", rows)):
            write(self.directory / f"{self.name}.{ending}", content)
            hashes[f"{self.name}.{ending}"] = hashlib.sha256(content).hexdigest()
        return hashes


class Writer:
    """Pack images and rows into `directory`: `add` them in order, then `close`; or use it in a `with`.

    Every shard is written under a temporary name, then renamed; dataset.json comes last and makes it a data set.
    """

    def __init__(self, directory, task, size, settings, shard_size=10_000):
        self.directory, self.shard_size, self.n, self.shard = Path(directory), shard_size, 0, None
        self.info, self.counts = describe(task, size, settings), Counter()
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in [*self.directory.glob("dataset.json"), *self.directory.glob("[0-9]*")]:
            old.unlink()        # shards and latents of an earlier data set

    def add(self, image, row):
        self.shard = self.shard or Shard(self.directory, self.n)
        self.shard.add(image, row)
        self.counts[row["split"]] += 1
        if len(self.shard.rows) == self.shard_size:
            self.flush()

    def flush(self):
        self.shard.close()
        self.n, self.shard = self.n + 1, None

    def close(self):
        if self.shard:
            self.flush()
        self.info["counts"] = dict(self.counts)
        write(self.directory / "dataset.json", json.dumps(self.info, indent=1).encode())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
