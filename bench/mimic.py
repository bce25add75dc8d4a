"""What prepare_mimic.py costs, on generated data (docs/data.md quotes it).

    python -m bench.mimic images 120        # full-size JPEGs -> 256, 384, 512: images a second
    python -m bench.mimic tables 1000000    # rows of metadata read and filtered: seconds, memory
"""
import multiprocessing
import os
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import mimic_tree
import prepare_mimic
from common.cli import InputError, cli
from common.platforms import peak_memory
from mimic import sources, splits
from mimic.items import LeftOut
from mimic.annotations import FINDINGS


# ---- images ----

def images(folder, number):
    """`number` images of MIMIC's size, packed by one worker."""
    tree = mimic_tree.make(folder, number, quirks=())
    film = large_film()
    # the made-up films are small: each is replaced by one of the size that MIMIC's have
    for path in tree.jpg.glob("files/*/*/*/*.jpg"):
        path.write_bytes(film)

    start = time.perf_counter()
    prepare_mimic.main(["--images", str(tree.jpg), "--reports", str(tree.zip), "--out",
                        str(folder / "out"), "--workers", "1"])
    seconds = time.perf_counter() - start
    # processor time of the worker is what more cores divide; the rest is starting and writing
    times = os.times()
    busy = times.children_user + times.children_system
    print(f"\n{number} images of {len(film) / 2**20:.2f} MB: {number / seconds:.1f} a second with "
          f"one worker, {number / busy:.1f} per second of its processor time")
    print(f"most memory: main process {peak_memory() / 2**20:.0f} MB, "
          f"worker {peak_memory(children=True) / 2**20:.0f} MB")


def large_film():
    """A JPEG of 2544 x 3056, smooth shapes and grain: about 1.5 MB, like MIMIC's."""
    rng = np.random.default_rng(0)
    shapes = Image.fromarray(rng.integers(0, 255, (60, 50), np.uint8))
    smooth = np.asarray(shapes.resize((2544, 3056), Image.Resampling.BICUBIC), np.float32)
    grain = rng.normal(0, 2, smooth.shape)
    return mimic_tree.jpeg(np.clip(smooth + grain, 0, 255).astype(np.uint8))


# ---- tables ----

def tables(folder, rows):
    """The tables of so many images read and filtered, and the index of their reports."""
    # made in another process, so that its memory is not counted as ours
    maker = multiprocessing.Process(target=write_tables, args=(folder, rows))
    maker.start()
    maker.join()

    start = time.perf_counter()
    cfg = prepare_mimic.Settings(images=str(folder), reports=str(folder / "reports.zip"))
    left_out = LeftOut()
    _, items = sources.read_source(cfg, left_out)
    chosen, _ = splits.assign(cfg, items, left_out)
    seconds = time.perf_counter() - start
    print(f"{rows:,} rows of metadata and split, {rows // 2:,} of labels: {seconds:.1f} s, "
          f"{peak_memory() / 2**20:.0f} MB; {len(chosen['und']):,} frontal images")
    reports = sources.Reports(cfg.reports)
    print(f"with the index of {len(reports.zip.namelist()):,} reports: "
          f"{peak_memory() / 2**20:.0f} MB")


def write_tables(folder, rows):
    """Tables and empty reports: two images a study, three studies a patient."""
    # as many different ids, and columns as wide, as the real tables have
    ids = [(mimic_tree.dicom_id(str(n)), f"1{n // 6:07d}", f"5{n // 2:07d}") for n in range(rows)]
    views = ("AP", "PA", "LATERAL")
    rest = ("21800506", "213014.531", "CHEST (PA AND LAT)", "postero-anterior", "Erect")
    metadata = ((*names, "CHEST (PA AND LAT)", views[n % 3], 3056, 2544, *rest)
                for n, names in enumerate(ids))
    split = ((dicom, study, subject, "test" if n % 50 == 0 else "train")
             for n, (dicom, subject, study) in enumerate(ids))
    values = ["1.0", "", "0.0", "-1.0"]
    labels = ((f"1{n // 3:07d}", f"5{n:07d}", *values[n % 4:], *[""] * (10 + n % 4))
              for n in range(rows // 2))
    for name, header, content in (
            ("metadata", mimic_tree.METADATA, metadata), ("split", mimic_tree.SPLIT, split),
            ("chexpert", ("subject_id", "study_id", *FINDINGS), labels)):
        path = folder / f"mimic-cxr-2.0.0-{name}.csv"
        mimic_tree.write_table(path, header, content, zipped=True)
    # reports are empty: only the index of the zip is measured
    with zipfile.ZipFile(folder / "reports.zip", "w") as archive:
        for n in range(rows // 2):
            archive.writestr(f"files/p1{n // 300_000}/p1{n // 3:07d}/s5{n:07d}.txt", b"")


def main(argv):
    commands = {"images": images, "tables": tables}
    if len(argv) != 2 or argv[0] not in commands or not argv[1].isdigit():
        raise InputError("wanted images or tables, and a number, as in: "
                         "python -m bench.mimic images 120")
    with tempfile.TemporaryDirectory() as folder:
        commands[argv[0]](Path(folder), int(argv[1]))


if __name__ == "__main__":
    cli(main, __doc__)
