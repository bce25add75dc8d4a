"""The images of a collection -> shards of several packed data sets at once, by many processes.

    sets = sets_to_make(cfg, out, jobs)                     # und-384, gen-256, gen-512
    refuse_other_settings(sets, overwrite)
    stale = changed_inputs(cfg, root, sets, jobs, reports)
    begin(sets, stale)                                      # deletes, if anything is to go
    pack_all(cfg, root, sets, jobs, reports, answers)
    skipped = finish(sets, jobs, cfg.shard)

Every image is read once for all sets. Shard k of each set holds what can be used of jobs k * shard
and following, so shards differ a little in length. `00000.done.json` (counts, hashes, what was
skipped, stamps of the inputs) is written last and makes a shard finished. A run that starts again
goes on behind the finished shards. A shard depends on its jobs alone, so an interrupted run ends
with the same bytes as one that was not.
"""
import hashlib
import json
import os
import subprocess
import zlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tqdm import tqdm

from common import locks
from common.cli import InputError, differences
from common.files import read_json, write_json
from common.images import Unusable
from common.packed import (
    Shard, clear, describe, other_sizes, refuse_foreign, remove_leftovers)
from common.platforms import usable_cores
from common.processes import ahead, worker_pool
from mimic import pixels
from mimic.cleaning import llm
from mimic.rows import PROMPTS, UnusableReport, row_of

# the settings that decide what is in a data set, and those that do so with --clean llm
DECISIVE = (
    "dataset", "gen_split", "fallback_paragraph", "clean", "drop_lateral", "fit", "und_pad",
    "gen_pad", "equalize", "format", "quality", "min_side", "max_aspect", "shard",
)
DECISIVE_WITH_LLM = ("llm_model", "llm_extra", "llm_judge")


@dataclass
class DataSet:
    """One packed data set in the making; `info` is the content of its dataset.json."""
    task: str                   # und or gen
    size: int                   # pixels a side
    directory: Path
    info: dict


def sets_to_make(cfg, out, jobs):
    """The data sets that the settings ask for, one a task and size."""
    sets = []
    for task, sizes in (("und", cfg.und_sizes), ("gen", cfg.gen_sizes)):
        if task not in cfg.task:
            continue
        settings = identity(cfg, task, sizes, jobs)
        for size in sizes:
            info = describe(task, size, settings)
            sets.append(DataSet(task, size, out / f"{task}-{size}", info))
    return sets


def identity(cfg, task, sizes, jobs):
    """What decides about the content of a data set: settings, and a hash of what it was asked for.

    The code is no part of it: an edited comment must not make another data set of it.
    """
    # what only makes a run faster or stricter is left out: it may change while a run goes on
    names = list(DECISIVE)
    if cfg.clean == "llm":
        names += DECISIVE_WITH_LLM
    settings = {name: value for name, value in asdict(cfg).items() if name in names}
    settings["sizes"] = sizes

    # which images, in which order, with which texts, splits and labels
    items = hashlib.sha256()
    # the number of a job counts too: it decides in which shard the image lies
    for number, job in enumerate(jobs):
        for other, item in job.items:
            if other == task:
                about = (number, job.path, item.id, item.subject, item.study, item.split, item.view,
                         item.text, item.labels)
                items.update(repr(about).encode("utf-8", "replace"))
    settings["items"] = items.hexdigest()[:16]
    if task == "und":
        settings["questions"] = hashlib.sha256(repr(PROMPTS).encode()).hexdigest()[:16]
    if cfg.clean == "llm":
        settings["prompts"] = llm.prompt_hash(cfg)
    return settings


# ---- care for credentialed data ----

def refuse_git(directory):
    """No output where git would take it: it is committed by accident, one day."""
    resolved = directory.resolve()      # a link that leads elsewhere is fine
    for folder in (resolved, *resolved.parents):
        if (folder / ".git").exists() and not ignored(folder, resolved):
            raise InputError(
                f"{directory} lies in the git work tree {folder}, where credentialed data could be "
                "committed by accident: choose --out elsewhere (training finds it through a link: "
                f"ln -s /big/disk/mimic {directory}), or have git ignore it, as it does datasets/.")


def ignored(work_tree, directory):
    """Whether git leaves alone what lies in a directory of its work tree. No git: it does not."""
    # about a file in it, since a pattern such as /datasets/ is for directories that are there
    line = ["git", "-C", work_tree, "check-ignore", "-q", directory / "any"]
    try:
        return subprocess.run(line, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@contextmanager
def alone_and_private(out):
    """One run at a time writes to `out`, and its files are for their owner alone (0600, 0700)."""
    before = os.umask(0o077)
    try:
        with locks.take(out):
            yield
    finally:
        os.umask(before)


# ---- beginning, or going on ----

def refuse_other_settings(sets, overwrite):
    """InputError for data sets that were begun with other settings. Nothing is deleted here."""
    for data_set in sets:
        refuse_git(data_set.directory)                  # it may be a link
        refuse_foreign(data_set.directory, "prepare_mimic.py")
        changes = changed_settings(data_set)
        if changes and not overwrite:
            raise InputError(f"{data_set.directory} was begun with other settings or inputs "
                             f"({', '.join(changes)}): choose another --out, or --overwrite it.")


def begin(sets, stale):
    """Make the directories of data sets, or go on in those that were begun with the same settings.

    What was made with other settings is removed, and so are the `stale` shards.
    """
    for data_set in sets:
        directory = data_set.directory
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(0o700)
        if changed_settings(data_set):
            clear(directory)
        remove_leftovers(directory)
        write_json(directory / "settings.json", data_set.info)
    for directory, number in stale:
        clear(directory, number)
    for sentence in other_sizes([data_set.directory for data_set in sets]):
        print(sentence)


def changed_settings(data_set):
    """How the settings of a directory that was begun differ from ours: ["quality=80", ...]."""
    known = data_set.directory / "settings.json"
    if not known.exists():
        begun = (data_set.directory / "dataset.json").exists()
        return ["settings.json is missing"] if begun else []
    try:
        info = read_json(known)
        theirs = {"schema": info["schema"], **info["settings"]}
    except (InputError, KeyError, TypeError):
        return ["settings.json is damaged"]
    ours = {"schema": data_set.info["schema"], **data_set.info["settings"]}
    return [f"{key}={value}" for key, (value, _) in differences(theirs, ours).items()]


def changed_inputs(cfg, root, sets, jobs, reports):
    """Finished shards must come from the images and reports that are there now -> [(directory,
    number of a shard)] of those that must be made anew.

    InputError where files have changed, come or gone and there is no --overwrite.
    """
    stale = []
    shards = list(enumerate(shards_of(jobs, cfg.shard)))
    for number, shard_jobs in tqdm(shards, desc="looking at the inputs of finished shards",
                                   unit="shards"):
        # looking at 243,000 files takes a while on a network disk, hence the progress bar
        stamps = {}                     # of a task, the same for all its sizes
        for data_set in sets:
            done = finished(data_set, number)
            if not done:
                continue
            task = data_set.task
            if task not in stamps:
                stamps[task] = [stamp(root, reports, job, task) for job in shard_jobs]
            # stamps are compared in the order of the jobs, which the settings guarantee
            changed = [job.path for job, old, new in zip(shard_jobs, done["inputs"], stamps[task])
                       if old != new]
            if changed and not cfg.overwrite:
                raise InputError(
                    f"{data_set.directory} was packed from other files: {len(changed)} images or "
                    f"reports of shard {number} have changed, come or gone since, the first at "
                    f"{changed[0]}; --overwrite makes such shards anew.")
            if changed:
                stale.append((data_set.directory, number))
    return stale


def stamp(root, reports, job, task):
    """What a rerun compares, 8 hex digits: size and time of the image, and the same of the reports.

    "" if the job does not serve the task. It reads no file: 243,000 of them would take an hour.
    """
    items = [item for other, item in job.items if other == task]
    if not items:
        return ""
    texts = [reports.stamp(item) for item in items if not item.text]
    about = repr((pixels.stamp(root / job.path), texts))
    return f"{zlib.crc32(about.encode()):08x}"


def shards_of(jobs, size):
    """The jobs of each shard."""
    return (jobs[first:first + size] for first in range(0, len(jobs), size))


def finished(data_set, number):
    """What `00000.done.json` says of a shard; None if it is missing, damaged or lacks a file."""
    try:
        done = json.loads((data_set.directory / f"{number:05d}.done.json").read_bytes())
        files = [data_set.directory / name for name in done["sha256"]]
        complete = done.keys() == {"counts", "sha256", "skipped", "inputs"}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return done if complete and all(path.exists() for path in files) else None


def finish(sets, jobs, size):
    """Write dataset.json of each set -> [(id, path, reason)] of what was skipped."""
    skipped = []
    # all shards are finished by now: their done files hold everything that is to be summed
    for data_set in sets:
        counts = Counter()
        hashes = {}
        for number, _ in enumerate(shards_of(jobs, size)):
            done = finished(data_set, number)
            counts.update(done["counts"])
            hashes.update(done["sha256"])
            skipped += [tuple(skip) for skip in done["skipped"]]
        info = {**data_set.info, "counts": counts, "sha256": hashes}
        write_json(data_set.directory / "dataset.json", info)
    return skipped


# ---- packing ----

def pack_all(cfg, root, sets, jobs, reports, answers):
    """Pack every shard that is not finished.

    reports: mimic.sources.Reports, or None if the items have their texts. answers: {text key: what
    a language model made of the text}.
    """
    # processes, because the cleaning rules are plain Python: threads would take turns
    workers = cfg.workers if cfg.workers else usable_cores()
    bar = tqdm(total=len(jobs), unit="images", smoothing=0.05)
    with worker_pool(workers) as pool, bar:
        for number, shard_jobs in enumerate(shards_of(jobs, cfg.shard)):
            unfinished = [data_set for data_set in sets if not finished(data_set, number)]
            if not unfinished:
                bar.initial += len(shard_jobs)      # the rate is that of this run's images
                bar.update(len(shard_jobs))
                continue

            # stamps first: a file that changes while it is packed is noticed by the next run
            tasks = {data_set.task for data_set in unfinished}
            stamps = {task: [stamp(root, reports, job, task) for job in shard_jobs]
                      for task in tasks}
            # sets whose shard is finished already are not made again
            targets = [(data_set.task, data_set.size) for data_set in unfinished]
            work = partial(pack_image, cfg, root, targets)
            texts = with_texts(shard_jobs, tasks, reports, answers)
            # so far ahead and no further: a slow disk must not let pictures fill the memory
            results = ahead(pool, work, texts, depth=8 * workers)
            pack_shard(unfinished, number, shard_jobs, stamps, results, bar)


def pack_shard(sets, number, jobs, stamps, results, bar):
    """Write shard `number` of every set in `sets` from the results of its jobs."""
    # results come in the order of the jobs, whichever worker was the fastest
    shards = [Shard(data_set.directory, number) for data_set in sets]
    skipped = {data_set.task: [] for data_set in sets}
    for job, (rows, reasons, pictures) in zip(jobs, results):
        for data_set, shard, picture in zip(sets, shards, pictures):
            if picture is not None:
                shard.add(picture, rows[data_set.task])
        for task, item in job.items:
            if task in reasons:
                skipped[task].append((item.id, job.path, reasons[task]))
        bar.update()

    for data_set, shard in zip(sets, shards):
        # the done file comes after the shard that it vouches for
        counts = Counter(row["split"] for row in shard.rows)
        write_json(data_set.directory / f"{number:05d}.done.json", {
            "counts": counts,
            "sha256": shard.close(),
            "skipped": skipped[data_set.task],
            "inputs": stamps[data_set.task],
        })


def with_texts(jobs, tasks, reports, answers):
    """(path, [(task, item, report, answer)]) of each job: what a worker gets to know about it."""
    for job in jobs:
        texts = []
        for task, item in job.items:
            if task in tasks:
                content = None if item.text else reports.read(item)
                texts.append((task, item, content, answers.get(item.text_key)))
        yield job.path, texts


# ---- in the worker processes ----

def pack_image(cfg, root, targets, job):
    """One image for all data sets -> ({task: row}, {task: reason}, [bytes or None of each target]).

    targets: [(task, size)]. job: (path, [(task, item, report, answer)]).
    """
    # text first: decoding an image whose report is of no use would be wasted
    path, texts = job
    rows = {}
    reasons = {}
    for task, item, content, answer in texts:
        try:
            rows[task] = row_of(cfg, task, item, content, answer)
        except UnusableReport as reason:
            reasons[task] = str(reason)
    nothing = [None] * len(targets)
    if not rows:
        return rows, reasons, nothing

    # decoded once, large enough for the largest square; all squares come from this picture
    largest = max(size for task, size in targets if task in rows)
    try:
        image = pixels.read(root / path, largest, cfg.min_side, cfg.max_aspect, cfg.equalize)
    except Unusable as reason:
        return {}, reasons | dict.fromkeys(rows, f"image: {reason}"), nothing
    pads = {"und": cfg.und_pad, "gen": cfg.gen_pad}
    pictures = []
    for task, size in targets:
        picture = None
        if task in rows:
            square = pixels.fit(image, size, cfg.fit, pads[task])
            picture = pixels.encode(square, cfg.format, cfg.quality)
        pictures.append(picture)
    return rows, reasons, pictures
