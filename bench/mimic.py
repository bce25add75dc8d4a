"""What prepare_mimic.py costs, on generated data (docs/data.md quotes it):

    python -m bench.mimic images 120       # full-size JPEGs -> 256, 384, 512 in one pass: images/s per core, memory
    python -m bench.mimic tables 1000000   # rows of metadata read and filtered: seconds, memory
"""
import multiprocessing
import resource
import shutil
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
from mimic import splits as protocols
from mimic import sources


def megabytes(who):
    return resource.getrusage(who).ru_maxrss / 1024


def images(number):
    """Every JPEG of a tree becomes the same large film: smooth shapes and grain, about 1.5 MB like MIMIC's."""
    folder = Path(tempfile.mkdtemp())
    tree = mimic_tree.make(folder, number, quirks=())
    dice = np.random.default_rng(0)
    film = np.asarray(Image.fromarray(dice.integers(0, 255, (60, 50), np.uint8)).resize((2544, 3056), Image.Resampling.BICUBIC), np.float32)
    large = mimic_tree.jpeg(np.clip(film + dice.normal(0, 2, film.shape), 0, 255).astype(np.uint8))
    for path in tree.jpg.glob("files/*/*/*/*.jpg"):
        path.write_bytes(large)
    cores, processor = 1, time.process_time()
    start = time.perf_counter()
    prepare_mimic.main(["--images", str(tree.jpg), "--reports", str(tree.zip), "--out", str(folder / "out"), "--workers", str(cores)])
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = workers.ru_utime + workers.ru_stime
    print(f"\n{number} images of {len(large) / 2**20:.2f} MB: {number / seconds:.1f} a second with {cores} worker, "
          f"{number / busy:.1f} per second of processor time in the worker")
    print(f"most memory: main process {megabytes(resource.RUSAGE_SELF):.0f} MB, worker {megabytes(resource.RUSAGE_CHILDREN):.0f} MB")
    shutil.rmtree(folder)


def generate(folder, rows):
    names = [(mimic_tree.dicom_id(str(n)), f"1{n // 6:07d}", f"5{n // 2:07d}") for n in range(rows)]
    views, write = ("AP", "PA", "LATERAL"), mimic_tree.write_table
    rest = ("21800506", "213014.531", "CHEST (PA AND LAT)", "postero-anterior", "Erect")
    write(folder / "mimic-cxr-2.0.0-metadata.csv", mimic_tree.META,
          ((*name, "CHEST (PA AND LAT)", views[n % 3], 3056, 2544, *rest) for n, name in enumerate(names)), True)
    write(folder / "mimic-cxr-2.0.0-split.csv", ("dicom_id", "study_id", "subject_id", "split"),
          ((d, st, su, "test" if n % 50 == 0 else "train") for n, (d, su, st) in enumerate(names)), True)
    write(folder / "mimic-cxr-2.0.0-chexpert.csv", ("subject_id", "study_id", *mimic_tree.LABELS),
          ((f"1{n // 3:07d}", f"5{n:07d}", *["1.0", "", "0.0", "-1.0"][n % 4:], *[""] * (10 + n % 4)) for n in range(rows // 2)), True)
    with zipfile.ZipFile(folder / "reports.zip", "w") as file:
        for n in range(rows // 2):
            file.writestr(f"files/p1{n // 300_000}/p1{n // 3:07d}/s5{n:07d}.txt", b"")


def tables(rows):
    folder = Path(tempfile.mkdtemp())
    maker = multiprocessing.Process(target=generate, args=(folder, rows))       # its memory is not ours
    maker.start()
    maker.join()
    start = time.perf_counter()
    cfg = prepare_mimic.Settings(images=str(folder), reports=str(folder / "reports.zip"))
    _, chosen, _ = protocols.listing(cfg, sources.LeftOut())
    print(f"{rows:,} rows of metadata and split, {rows // 2:,} of labels: {time.perf_counter() - start:.1f} s, "
          f"{megabytes(resource.RUSAGE_SELF):.0f} MB at most; {len(chosen['und']):,} frontal images")
    reports = sources.Reports(cfg.reports)
    print(f"with the index of {len(reports.zip.namelist()):,} reports: {megabytes(resource.RUSAGE_SELF):.0f} MB")
    shutil.rmtree(folder)


if __name__ == "__main__":
    {"images": images, "tables": tables}[sys.argv[1]](int(sys.argv[2]))
