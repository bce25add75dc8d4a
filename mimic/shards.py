"""Many processes, one order: jobs -> shards of several packed data sets at once, in a way that can be interrupted.

Shard k of every set holds what is usable of the jobs k * shard and following, so shards differ a little in length.
`00000.done.json` (counts, hashes, what was skipped) comes last and makes a shard finished: a run that starts again skips
it. A shard depends on its jobs alone, so an interrupted run ends with the same bytes as one that was not.
"""
import fcntl
import hashlib
import json
import logging
import os
import threading
import time
import warnings
import zlib
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from common.packed import Shard, write
from common.processes import InputError
from mimic import pixels as radiographs
from mimic.cleaning import llm
from mimic.rows import PROMPTS, row_of


DONE = {"counts", "sha256", "skipped", "inputs"}


@dataclass
class Set:
    """One packed data set in the making; `info` is the content of its dataset.json."""
    task: str
    size: int
    directory: Path
    info: dict


def refuse_git(out):
    """Credentialed data is committed by accident sooner or later: no output inside a git work tree."""
    place = out.expanduser().resolve()
    for folder in (place, *place.parents):
        if (folder / ".git").exists():
            raise InputError(f"{out} lies in the git work tree {folder}, where credentialed data could be committed by accident: "
                             f"choose --out elsewhere (training finds it through a link: ln -s /big/disk/mimic {out}).")


@contextmanager
def alone_and_private(out):
    """One run at a time writes to `out`, and all that it makes is for its owner alone (0600, folders 0700)."""
    before = os.umask(0o077)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with open(out / ".lock", "w") as lock:
            try:
                fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)        # not flock: worker processes would inherit it
            except BlockingIOError:
                raise InputError(f"another run is writing to {out}; wait for it or choose another --out.") from None
            yield
    finally:
        os.umask(before)


def begin(one, overwrite):
    """Make the directory of a set, or continue in one of the same settings; leftovers of a killed run go."""
    one.directory.mkdir(parents=True, exist_ok=True)
    one.directory.chmod(0o700)
    known, content = one.directory / "settings.json", json.dumps(one.info, indent=1).encode()
    begun = known.exists() or (one.directory / "dataset.json").exists()
    if begun and not (known.exists() and known.read_bytes() == content):
        if not overwrite:
            raise InputError(f"{one.directory} was begun with other settings or inputs: choose another --out, "
                             "or --overwrite it.")
        # a kill in between must leave nothing that looks finished
        for old in [*one.directory.glob("dataset.json"), *one.directory.glob("*.done.json"), *one.directory.glob("[0-9]*")]:
            old.unlink(missing_ok=True)
    for old in one.directory.glob(".tmp-*"):
        old.unlink(missing_ok=True)
    write(known, content)


def finished(one, k):
    """What `00000.done.json` says of a shard, or None where it is not finished, damaged, or without its files."""
    try:
        done = json.loads((one.directory / f"{k:05d}.done.json").read_bytes())
        whole = all((one.directory / name).exists() for name in done["sha256"]) and done.keys() == DONE
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return done if whole else None


def inputs_unchanged(sets, jobs, size, stamp, overwrite):
    """Finished shards were made of images and reports that are still the same; otherwise say so, or forget those shards."""
    for k, first in enumerate(tqdm(range(0, len(jobs), size), desc="looking at the inputs of finished shards", unit="shards")):
        found, part = {n: finished(one, k) for n, one in enumerate(sets)}, jobs[first:first + size]
        marks = {task: [stamp(job, task) for job in part] for task in {sets[n].task for n, done in found.items() if done}}
        for n, done in found.items():
            pairs = zip(part, done["inputs"], marks[sets[n].task]) if done else []
            other = [path for (path, _), old, new in pairs if old != new]
            if other and not overwrite:
                raise InputError(f"{sets[n].directory} was packed from other files: {len(other)} images or reports of shard {k} "
                                 f"have changed, come or gone since, the first at {other[0]}; --overwrite makes "
                                 "such shards anew.")
            if other:
                (sets[n].directory / "dataset.json").unlink(missing_ok=True)
                for old in sorted(sets[n].directory.glob(f"{k:05d}.*"), key=lambda path: not path.name.endswith("done.json")):
                    old.unlink()


def finish(one, number_of_shards):
    """Write dataset.json -> [(id, path, reason)] of what was skipped."""
    done = [finished(one, k) for k in range(number_of_shards)]
    counts = sum((Counter(shard["counts"]) for shard in done), Counter())
    hashes = {name: digest for shard in done for name, digest in shard["sha256"].items()}
    write(one.directory / "dataset.json", json.dumps({**one.info, "counts": counts, "sha256": hashes}, indent=1).encode())
    return [tuple(skip) for shard in done for skip in shard["skipped"]]


def start(parent, initializer, arguments):
    """In each worker. A killed parent would leave its workers waiting for ever, so they watch it."""
    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()
    initializer(*arguments)


def in_order(pool, function, jobs, ahead):
    """pool.map that holds no more than `ahead` results, however slow the disk is."""
    waiting = deque()
    for job in jobs:
        waiting.append(pool.submit(function, job))
        if len(waiting) >= ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def pack_all(sets, jobs, size, stamp, workers, function, initializer, arguments, prepared):
    """jobs: [(path, [(task, item)])]. `function` gets what `prepared(jobs, numbers of the sets)` yields, one a job, and
    returns ({task: row, or a reason to skip}, {number of the set: encoded image})."""
    workers = workers or len(os.sched_getaffinity(0))
    pool = ProcessPoolExecutor(workers, initializer=start, initargs=(os.getpid(), initializer, arguments))
    try:
        with tqdm(total=len(jobs), unit="images", smoothing=0.05) as bar:
            for k, first in enumerate(range(0, len(jobs), size)):
                part, done = jobs[first:first + size], f"{k:05d}.done.json"
                numbers = [n for n, one in enumerate(sets) if not finished(one, k)]
                if not numbers:
                    bar.initial += len(part)            # the rate is that of the images of this run
                    bar.update(len(part))
                    continue
                inputs = {task: [stamp(job, task) for job in part] for task in {sets[n].task for n in numbers}}
                shards, skipped = {n: Shard(sets[n].directory, k) for n in numbers}, {}
                results = in_order(pool, function, prepared(part, numbers), 8 * workers)
                for (path, items), (rows, pictures) in zip(part, results):
                    for n, picture in pictures.items():
                        shards[n].add(picture, rows[sets[n].task])
                    for task, item in items:
                        if isinstance(rows.get(task), str):
                            skipped.setdefault(task, []).append((item.id, path, rows[task]))
                    bar.update()
                for n, shard in shards.items():
                    counts, hashes = Counter(row["split"] for row in shard.rows), shard.close()
                    about = {"counts": counts, "sha256": hashes, "skipped": skipped.get(sets[n].task, []),
                             "inputs": inputs[sets[n].task]}
                    write(sets[n].directory / done, json.dumps(about).encode())
    except BrokenProcessPool:
        raise InputError("a worker was killed, most likely for want of memory; run again with fewer --workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def start_worker(cfg, root, sets):
    global CFG, ROOT, SETS
    warnings.simplefilter("ignore")         # decoders quote single files; the verdict on each is in skipped.csv
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    CFG, ROOT, SETS = cfg, root, sets


def pack_image(job):
    """(path, [(task, item, report, answer)], numbers of the sets) -> {task: row or reason}, {number of the set: bytes}."""
    path, texts, numbers = job
    rows = {task: row_of(CFG, task, item, content, answer) for task, item, content, answer in texts}
    wanted = [n for n in numbers if isinstance(rows.get(SETS[n].task), dict)]
    if not wanted:
        return rows, {}
    largest = max(SETS[n].size for n in wanted)
    picture, reason = radiographs.read(ROOT / path, largest, CFG.min_side, CFG.max_aspect, CFG.equalize)
    if reason:
        return {task: reason if isinstance(row, dict) else row for task, row in rows.items()}, {}
    pads, pictures = {"und": CFG.und_pad, "gen": CFG.gen_pad}, {}
    for n in wanted:
        small = radiographs.fit(picture, SETS[n].size, CFG.fit, pads[SETS[n].task])
        pictures[n] = radiographs.encode(small, CFG.format, CFG.quality)
    return rows, pictures


def prepared(jobs, sets, numbers, reports, answers):
    """What a worker gets to know about each job: its report, and what a language model made of it."""
    tasks = {sets[n].task for n in numbers}
    for path, items in jobs:
        yield path, [(task, item, None if item.text else reports.read(item), answers.get(item.text_key))
                     for task, item in items if task in tasks], numbers


def settings_of(cfg, task, jobs):
    """What decides about the content of a set, and a hash of which images it was asked for."""
    used = ("dataset gen_split fallback_paragraph clean drop_lateral fit und_pad gen_pad equalize format quality min_side "
            "max_aspect shard").split() + ["llm_model", "llm_extra", "llm_judge"] * (cfg.clean == "llm")
    settings = {name: value for name, value in asdict(cfg).items() if name in used}
    asked = hashlib.sha256()
    for n, (path, items) in enumerate(jobs):
        for i in (item for its, item in items if its == task):
            asked.update(repr((n, path, i.id, i.subject, i.study, i.split, i.view, i.text, i.labels)).encode("utf-8", "replace"))
    settings |= {"sizes": cfg.und_sizes if task == "und" else cfg.gen_sizes, "asked": asked.hexdigest()[:16]}
    if task == "und":
        settings["questions"] = hashlib.sha256(repr(PROMPTS).encode()).hexdigest()[:16]
    if cfg.clean == "llm":
        settings["prompts"] = llm.prompt_hash(cfg)
    return settings


def stamp(root, reports, job, task):
    """What a rerun compares: the image's size and time (or why it is not there), and the same of the report files it needs."""
    path, items = job
    wanted = [item for its, item in items if its == task]
    texts = [reports.stamp(item) for item in wanted if not item.text]
    return f"{zlib.crc32(repr((radiographs.stamp(root / path), texts)).encode()):08x}" if wanted else ""
