"""Looking at a collection before hours of work, and at the packed data sets afterwards.

    first_look      are the images and reports where we look for them?
    report          what became of everything: counts, reasons, the exit code
    check           --check: hashes, pictures, splits of a finished data set
    show            --show: a contact sheet

Prints ids and numbers, never a word of a report.
"""
import csv
import io
from collections import Counter

import numpy as np
from tqdm import tqdm

from common.cli import InputError
from common.files import (
    as_utf8, digest, read_json, replacing, settings_hash, text_lines, write_bytes)
from common.images import Unusable, captioned
from common.packed import Packed, read_shard
from mimic import leaks, pixels

SPLITS = ("train", "val", "test")

# images in train, val and test of others, to hold ours against; None: not published
PUBLISHED = {
    "und": {
        "frontal, rule-parsed findings (LLaVA-Rad table)": (162_969, 1_286, 2_461),
        "UniX": (163_344, None, 2_365),
    },
    "gen": {
        "UniX and CheXGenBench (not the official split)": (237_387, None, 4_352),
    },
}

# how reasons begin that are the protocol's, and no fault of the data
LEFT_OUT = ("not frontal", "no findings", "another image", "not in --test-ids", "patient of",
            "understanding test", "beyond --limit", "report without image", "study without")
# how reasons begin that another download may mend
DOWNLOAD = ("image: it is truncated", "image: it is empty", "image: it is a damaged",
            "image: unfinished", "image: missing")


# ---- before: are the files there? ----

def first_look(cfg, root, jobs, reports):
    """InputError if more than half of 500 images, or of their reports, are missing."""
    # from all over the collection: a download that stopped lacks whole folders at its end
    sample = jobs[::max(1, len(jobs) // 500)]
    if cfg.max_bad >= 0.5:              # a partial copy on purpose
        return
    missing = []
    for job in sample:
        try:
            pixels.locate(root / job.path)
        except Unusable:
            missing.append(root / job.path)
    if len(missing) > len(sample) / 2:
        wanted = "the folder above files/"
        if cfg.dataset != "mimic":
            wanted = f"the folder in which {sample[0].path} lies"
        raise InputError(
            f"{len(missing)} of {len(sample)} images looked for are missing, as {missing[0]}"
            f"[.jpg]; is --images {wanted}? (For a partial copy on purpose: --max-bad 1.)")

    # items that brought their text along need no report file
    items = [item for job in sample for task, item in job.items
             if task in cfg.task and not item.text]
    missing = [item.study for item in items if reports.read(item) is None]
    if len(missing) > len(items) / 2:
        raise InputError(f"{len(missing)} of {len(items)} reports looked for are missing in "
                         f"{reports.path}, as {missing[0]}.txt.")


def in_short(left_out):
    """What most rows were left out for, as a part of a sentence."""
    reasons = Counter(reason for _, _, reason in left_out).most_common(3)
    most = ", ".join(f"{number} as '{reason}'" for reason, number in reasons)
    return f"{len(left_out)} were left out, {most}" if reasons else "there was none"


# ---- after: what became of everything ----

def report(cfg, out, sets, skipped, images):
    """Write ids and reasons to files, print counts -> the exit code.

    skipped: [(id, path, reason)]. images: the ids that were to be packed. The exit code is 1 if the
    data is to blame for more than the share --max-bad of them and of those that are left out.
    """
    # ids go into files, so that others can compare them, and counts to the screen
    for data_set in sets:
        ids = [(row["id"], row["split"]) for row in rows_of(data_set.directory)]
        write_csv(out / f"{data_set.task}-ids.csv", [("id", "split"), *ids])
    write_csv(out / "skipped.csv", [("id", "path", "reason"), *skipped])
    for data_set in sets:
        summary(data_set.directory, PUBLISHED[data_set.task] if cfg.dataset == "mimic" else {})
        counts = read_json(data_set.directory / "dataset.json")["counts"]
        for split in ("train", "val"):
            if not counts.get(split):
                print(f"  no image in {split}, without which there is no training: more patients, "
                      "or a table with a column split, give some")

    reasons = Counter(reason for _, _, reason in skipped)
    if reasons:
        print(f"\nnot packed ({out / 'skipped.csv'} has the ids):")
    for reason, number in reasons.most_common():
        print(f"  {number:9,}  {reason}")
    if any(reason.startswith(DOWNLOAD) for reason in reasons):
        print("  (damaged or missing images: download them again, then run again with --overwrite)")

    # a third of MIMIC-CXR is not frontal: what the protocol leaves out is no fault
    bad = {id for id, _, reason in skipped if not reason.startswith(LEFT_OUT)}
    looked_at = len(images | bad)
    allowed = 0 if cfg.strict else cfg.max_bad
    if len(bad) > allowed * looked_at:
        print(f"{len(bad)} of {looked_at} images or reports are unusable, more than {allowed:.1%} "
              "(--max-bad).")
        return 1
    return 0


def rows_of(directory):
    """The rows of a data set, a shard at a time, so that they need not fit into memory."""
    for path in sorted(directory.glob("[0-9]*.jsonl")):
        damaged = InputError(f"{path} is damaged; prepare the data set anew.")
        try:
            rows, _ = read_shard(path)
        except RecursionError:          # JSON that is nested too deeply
            raise damaged from None
        if not all(well_formed(row) for row in rows):
            raise damaged
        yield from rows


def well_formed(row):
    texts = ("id", "subject", "split", "report")
    return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in texts)


def write_csv(path, rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    # paths may hold what no encoding has
    write_bytes(path, as_utf8(text.getvalue()))


def summary(directory, published):
    """Print a data set's counts, with the published ones below, and the lengths of its texts."""
    info = read_json(directory / "dataset.json")
    # in one pass over the rows, which are too many to be held
    counters = {name: Counter() for name in ("view", "source", "clean", "flags")}
    words = []
    patients = {split: set() for split in SPLITS}
    for row in rows_of(directory):
        words.append(len(row["report"].split()))
        patients.setdefault(row["split"], set()).add(row["subject"])
        for name, counter in counters.items():
            value = row.get(name, "")
            counter.update(value if isinstance(value, list) else [str(value)])

    print(f"\n{directory}: {sum(info['counts'].values()):,} images, settings {info['hash']}")
    print(f"  {'':48}" + "".join(f"{split:>10}" for split in SPLITS))
    ours = [info["counts"].get(split, 0) for split in SPLITS]
    theirs = [len(patients[split]) for split in SPLITS]
    for name, counts in {"found here": ours, "their patients": theirs, **published}.items():
        columns = ["-" if count is None else f"{count:,}" for count in counts]
        print(f"  {name:48}" + "".join(f"{column:>10}" for column in columns))
    for name, counter in counters.items():
        values = [f"{value if value else '-'} {number:,}"
                  for value, number in counter.most_common(12)]
        print(f"  {name}: {', '.join(values)}")
    if words:
        marks = np.percentile(words, [1, 50, 90, 99, 100]).astype(int)
        print("  words a report: 1% {} / half {} / 90% {} / 99% {} / most {}".format(*marks))


# ---- --check ----

KEYS = {"schema": int, "task": str, "size": int, "counts": dict, "settings": dict, "hash": str,
        "sha256": dict}


def check(directory):
    """Verify one packed data set, or all in a folder -> 0; InputError says what is wrong first."""
    sets = {}
    for folder in data_sets_in(directory):
        info, packed = open_set(folder)
        check_files(folder, info)
        check_rows(folder, info, packed)
        sets[folder] = info, leaks.refuse_shared_patients(folder, info, packed.rows)
        leaks.refuse_shared_pictures(folder, info, packed)
        # a hash vouches for bytes alone; only decoding tells that they are a picture
        for i in tqdm(range(len(packed)), desc=f"decoding {folder.name}", unit="images"):
            packed.image(i)
        summary(folder, {})
        print("  all hashes, offsets, pictures and splits are right")
    # each may be right by itself, and a patient train in one and test in another
    leaks.refuse_other_splits(sets)
    return 0


def data_sets_in(directory):
    """The folders of finished data sets: this one, or those in it."""
    if (directory / "dataset.json").exists():
        return [directory]
    folders = sorted(path.parent for path in directory.glob("*/dataset.json"))
    if not folders:
        raise InputError(f"there is no finished data set in {directory} (no dataset.json); if the "
                         "run was interrupted, start it again.")
    return folders


def open_set(directory):
    """-> the content of dataset.json, and the data set; InputError if either has another form."""
    try:
        info = read_json(directory / "dataset.json")
        if isinstance(info, dict) and "hash" in info and "sha256" not in info:
            raise InputError(f"{directory} has no hashes to verify: phantoms have none, and "
                             "`python -m phantom.prepare --overwrite` draws them again.")
        if not isinstance(info, dict) or any(type(info.get(key)) is not kind
                                             for key, kind in KEYS.items()):
            raise ValueError("dataset.json")
        packed = Packed(directory.parent, info["task"], info["size"])
        if not all(well_formed(row) for row in packed.rows):
            raise ValueError("rows")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise InputError(f"{directory}: its dataset.json or rows are damaged; prepare the data set "
                         "anew.") from None
    return info, packed


def check_files(directory, info):
    """The settings have their hash, and the files are those of dataset.json, to the last byte."""
    # training compares settings by their hash, so it must be theirs
    if info["hash"] != settings_hash(info["settings"]):
        raise InputError(f"{directory}/dataset.json: its settings do not have its hash; it was "
                         "edited.")
    # a shard more or less than it names would shift the rows against the pictures
    files = {path.name for ending in ("bin", "idx.npy", "jsonl")
             for path in directory.glob(f"[0-9]*.{ending}")}
    if files != info["sha256"].keys():
        raise InputError(f"{directory}: its shards are not those that dataset.json names; prepare "
                         "it anew.")
    for name, expected in info["sha256"].items():
        if digest(directory / name) != expected:
            raise InputError(f"{directory / name} has changed since it was written (its SHA-256 "
                             "differs).")


def check_rows(directory, info, packed):
    """Ids occur once, reports are not empty, and no image of the understanding test is among those
    to train drawing on."""
    # each image once, with a text
    ids = Counter(row["id"] for row in packed.rows)
    most_common, number = ids.most_common(1)[0]
    if number > 1:
        raise InputError(f"{directory}: image {most_common} occurs twice.")
    if any(not row["report"].strip() for row in packed.rows):
        raise InputError(f"{directory}: an image has an empty report.")

    # drawing an image in training shows the network the report that the test asks for
    if info["task"] == "gen":
        test = understanding_test(directory.parent)
        leaked = [row["id"] for row in packed.rows if row["split"] != "test" and row["id"] in test]
        if leaked:
            others = [folder for folder in directory.parent.glob("und-*")
                      if (folder / "dataset.json").exists()]
            raise InputError(f"{directory}: {len(leaked)} images of the understanding test are "
                             f"among those to train on, the first is {leaked[0]}: "
                             f"{leaks.prepared_apart(directory, *others)}")


def understanding_test(root):
    """Ids of the understanding test: those packed for it in `root`, and those that the run listed,
    which include images without findings."""
    ids = {row["id"] for folder in root.glob("und-*") for row in rows_of(folder)
           if row["split"] == "test"}
    listed = root / "und-test-ids.txt"
    if listed.exists():
        ids.update(text_lines(listed))
    return ids


# ---- --show ----

def show(directory, number):
    """contact-sheet.png beside the shards: images from all over each set, with ids, not reports."""
    for folder in data_sets_in(directory):
        _, packed = open_set(folder)
        # evenly spaced, from the first image to the last
        count = min(number, len(packed))
        numbers = np.linspace(0, len(packed) - 1, count).astype(int).tolist()
        rows = [packed.rows[i] for i in numbers]
        captions = [f"{row['id']}\n{row['split']} {row['view']}" for row in rows]
        sheet = captioned([packed.image(i).numpy() for i in numbers], captions, scale=1)
        with replacing(folder / "contact-sheet.png") as temporary:
            temporary.touch(0o600)              # for its owner alone, as the shards are
            sheet.save(temporary, "PNG")
        print(f"{count} of {len(packed)} images in {folder / 'contact-sheet.png'}")
    return 0
