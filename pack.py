"""Write packed data sets; data.py reads them and its docstring gives the format. prepare_*.py are the users."""
import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np

from data import SCHEMA


def settings_hash(settings):
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Writer:
    """Pack images and rows into `directory`: `add` them in order, then `close`; or use it in a `with`.

    Every shard is written under a temporary name, then renamed; dataset.json comes last and makes it a data set.
    """

    def __init__(self, directory, task, size, settings, shard_size=10_000):
        self.directory, self.shard_size, self.n = Path(directory), shard_size, 0
        self.info = {"schema": SCHEMA, "task": task, "size": size, "settings": settings, "hash": settings_hash(settings)}
        self.counts, self.images, self.rows = Counter(), [], []
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in [*self.directory.glob("dataset.json"), *self.directory.glob("[0-9]*")]:
            old.unlink()        # shards and latents of an earlier data set

    def add(self, image, row):
        """image: encoded bytes; row: a dict with at least id, split, report."""
        self.images.append(image)
        self.rows.append(row)
        self.counts[row["split"]] += 1
        if len(self.rows) == self.shard_size:
            self.flush()

    def flush(self):
        offsets = np.cumsum([0] + [len(image) for image in self.images], dtype=np.int64)
        encoded = io.BytesIO()
        np.save(encoded, offsets)
        rows = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
        for ending, content in (("bin", b"".join(self.images)), ("idx.npy", encoded.getvalue()), ("jsonl", rows.encode())):
            self.write(f"{self.n:05d}.{ending}", content)
        self.n, self.images, self.rows = self.n + 1, [], []

    def write(self, name, content):
        temporary = self.directory / f".tmp-{name}"
        temporary.write_bytes(content)
        temporary.rename(self.directory / name)

    def close(self):
        if self.rows:
            self.flush()
        self.info["counts"] = dict(self.counts)
        self.write("dataset.json", json.dumps(self.info, indent=1).encode())

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None:
            self.close()
