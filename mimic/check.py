"""Packed data sets looked at again: hashes, pictures, splits, counts, a contact sheet. Prints ids, never a report."""
import csv
import hashlib
import io
import json
from collections import Counter

import numpy as np
from tqdm import tqdm

from common.processes import InputError
from training.batches import Packed
from common.images import captioned
from common.packed import settings_hash, write
from mimic import pixels as radiographs

SPLITS = ("train", "val", "test")


def well_formed(row):
    return isinstance(row, dict) and all(isinstance(row.get(key), str) for key in ("id", "subject", "split", "report"))


def rows_of(directory):
    """The rows of a packed data set, one by one."""
    for path in sorted(directory.glob("[0-9]*.jsonl")):
        with open(path, encoding="utf-8") as file:
            try:
                for line in file:
                    row = json.loads(line)
                    if not well_formed(row):
                        raise ValueError
                    yield row
            except (ValueError, RecursionError):
                raise InputError(f"{path} is damaged; prepare the data set anew.") from None


def summary(directory, published=()):
    """Counts per split, view, section and cleaning, lengths of the texts; the published numbers beside ours."""
    info = json.loads((directory / "dataset.json").read_text())
    tables, words = {name: Counter() for name in ("view", "source", "clean", "flags")}, []
    for row in rows_of(directory):
        words.append(len(row["report"].split()))
        for name, counter in tables.items():
            value = row.get(name, "")
            counter.update(value if isinstance(value, list) else [str(value)])
    line = lambda counts: "".join(f"{'-' if n is None else format(n, ','):>10}" for n in counts)
    print(f"\n{directory}: {sum(info['counts'].values()):,} images, settings {info['hash']}")
    print(f"  {'':48}" + "".join(f"{split:>10}" for split in SPLITS))
    print(f"  {'found here':48}" + line([info["counts"].get(split, 0) for split in SPLITS]))
    for name, counts in dict(published).items():
        print(f"  {name:48}" + line(counts))
    for name, counter in tables.items():
        print(f"  {name}: " + ", ".join(f"{value or '-'} {number:,}" for value, number in counter.most_common(12)))
    if words:
        marks = np.percentile(words, [1, 50, 90, 99, 100]).astype(int)
        print("  words a report: 1% {} / half {} / 90% {} / 99% {} / most {}".format(*marks))


def sets_in(directory):
    found = [directory] if (directory / "dataset.json").exists() else sorted(p.parent for p in directory.glob("*/dataset.json"))
    if not found:
        raise InputError(f"there is no finished data set in {directory} (no dataset.json); if the run was interrupted, start it "
                         "again.")
    return found


KEYS = {"schema": int, "task": str, "size": int, "counts": dict, "settings": dict, "hash": str, "sha256": dict}


def open_set(directory):
    try:
        info = json.loads((directory / "dataset.json").read_text())
        if not isinstance(info, dict) or any(type(info.get(key)) is not kind for key, kind in KEYS.items()):
            raise ValueError
        packed = Packed(directory.parent, info["task"], info["size"])
        if not all(map(well_formed, packed.rows)):
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise InputError(f"{directory}: its dataset.json or rows are damaged; prepare the data set anew.") from None
    return info, packed


def check(directory):
    """Verify one packed data set or all in a folder -> 0, or InputError with the first thing that is wrong."""
    for one in sets_in(directory):
        info, packed = open_set(one)
        if info["hash"] != settings_hash(info["settings"]):
            raise InputError(f"{one}/dataset.json: its settings do not have its hash; it was edited.")
        files = {path.name for ending in ("bin", "idx.npy", "jsonl") for path in one.glob(f"[0-9]*.{ending}")}
        if files != info["sha256"].keys():
            raise InputError(f"{one}: its shards are not those that dataset.json names; prepare it anew.")
        for name, expected in info["sha256"].items():
            with open(one / name, "rb") as file:
                digest = hashlib.sha256()
                while piece := file.read(1 << 20):
                    digest.update(piece)
                if digest.hexdigest() != expected:
                    raise InputError(f"{one / name} has changed since it was written (its SHA-256 differs).")
        check_rows(one, info, packed)
        for i in tqdm(range(len(packed)), desc=f"decoding {one.name}", unit="images"):
            packed.image(i)
        summary(one)
        print("  all hashes, offsets, pictures and splits are right")
    return 0


def check_rows(directory, info, packed):
    """Ids once, splits disjoint by patient, and no image of the understanding test among those to train drawing on."""
    ids = Counter(row["id"] for row in packed.rows)
    if max(ids.values()) > 1:
        raise InputError(f"{directory}: image {ids.most_common(1)[0][0]} occurs twice.")
    if any(not row["report"].strip() for row in packed.rows):
        raise InputError(f"{directory}: an image has an empty report.")
    splits = {}
    for row in packed.rows:
        splits.setdefault(row["subject"], set()).add(row["split"])
    shared = [subject for subject, found in splits.items() if len(found) > 1]
    if shared and info["settings"].get("gen_split") == "chexgenbench" and info["task"] == "gen":
        print(f"{directory}: {len(shared)} patients are in more than one split, as CheXGenBench has it")
    elif shared:
        raise InputError(f"{directory}: {len(shared)} patients are in more than one split, the first is {shared[0]}.")
    if info["task"] == "gen":
        beside = [row["id"] for und in directory.parent.glob("und-*") for row in rows_of(und) if row["split"] == "test"]
        listed = directory.parent / "und-test-ids.txt"
        test = {*beside, *(listed.read_text().split("\n") if listed.exists() else [])}
        leaked = [row["id"] for row in packed.rows if row["split"] != "test" and row["id"] in test]
        if leaked:
            raise InputError(f"{directory}: {len(leaked)} images of the understanding test are among those to train on, "
                             f"the first is {leaked[0]}.")


def refuse_leak(root, und_size, gen_size):
    """Training both tasks together must not see, in one, the patients that the other holds out (CheXGenBench's split of
    MIMIC-CXR pools and splits anew, so it does)."""
    und, gen = Packed(root, "und", und_size), Packed(root, "gen", gen_size)
    patients = lambda data, train: {row["subject"] for row in data.rows if (row["split"] == "train") == train}
    both = patients(und, True) & patients(gen, False) | patients(gen, True) & patients(und, False)
    if both:
        raise InputError(f"{len(both)} patients whom one task trains on are held out by the other in {root}; joint training "
                         "needs one split for both: prepare_mimic.py --gen-split official.")


def show(directory, number):
    """contact-sheet.png beside the shards: images spread over each set, with ids, not reports."""
    for one in sets_in(directory):
        info, packed = open_set(one)
        places = np.linspace(0, len(packed) - 1, min(number, len(packed))).astype(int).tolist()
        captions = [f"{packed.rows[i]['id']}\n{packed.rows[i]['split']} {packed.rows[i]['view']}" for i in places]
        sheet = captioned([packed.image(i).numpy() for i in places], captions, scale=1)
        buffer = io.BytesIO()
        sheet.save(buffer, "PNG")
        place = one / "contact-sheet.png"
        place.touch(0o600), place.chmod(0o600)
        place.write_bytes(buffer.getvalue())
        print(f"{len(places)} of {len(packed)} images in {place}")
    return 0


def first_look(cfg, root, jobs, reports):
    """Before hours of work: are the images and the reports where we look for them?"""
    some = jobs[::max(1, len(jobs) // 500)]
    missing = []
    for path, _ in some:
        try:
            radiographs.locate(root / path)
        except radiographs.Unusable:
            missing.append(root / path)
    if len(missing) > len(some) / 2 and cfg.max_bad < 0.5:
        raise InputError(f"{len(missing)} of {len(some)} images looked for are missing, as {missing[0]}[.jpg]; is --images "
                         "the folder above files/? (For a partial copy on purpose: --max-bad 1.)")
    items = [item for _, items in some for task, item in items if task in cfg.task and not item.text]
    lost = [item.study for item in items if reports.read(item) is None]
    if len(lost) > len(items) / 2 and cfg.max_bad < 0.5:
        raise InputError(f"{len(lost)} of {len(items)} reports looked for are missing in {reports.path}, as {lost[0]}.txt.")


# images in train, val and test of others, to hold ours against (None: not published)
PUBLISHED = {"und": {"frontal, rule-parsed findings (LLaVA-Rad table)": (162_969, 1_286, 2_461), "UniX": (163_344, None, 2_365)},
             "gen": {"UniX and CheXGenBench (not the official split)": (237_387, None, 4_352)}}
# reasons that are the protocol's, not the data's fault
LEFT_OUT = ("not frontal", "no findings", "another image", "not in --test-ids", "patient of", "understanding test",
            "beyond --limit")
DOWNLOAD = ("truncated", "empty file", "not an image", "unfinished", "missing")


def report(cfg, out, sets, skipped, asked):
    """ids and reasons to files, counts to the screen; the exit code."""
    for one in sets:
        rows = rows_of(one.directory)
        write(out / f"{one.task}-ids.csv", csv_bytes([("id", "split"), *((row["id"], row["split"]) for row in rows)]))
    write(out / "skipped.csv", csv_bytes([("id", "path", "reason"), *skipped]))
    for one in sets:
        summary(one.directory, PUBLISHED[one.task] if cfg.dataset == "mimic" else {})
    reasons = Counter(reason for _, _, reason in skipped)
    if reasons:
        print(f"\nnot packed ({out / 'skipped.csv'} has the ids):")
        for reason, number in reasons.most_common():
            print(f"  {number:9,}  {reason}")
    if any(reason.startswith(DOWNLOAD) for reason in reasons):
        print("  (damaged or missing images: download them again, then run again with --overwrite)")
    bad = len({name for name, _, reason in skipped if not reason.startswith(LEFT_OUT)})
    allowed = 0 if cfg.strict else cfg.max_bad
    if bad > allowed * asked:
        print(f"{bad} of {asked} images or reports are unusable, more than {allowed:.1%} (--max-bad).")
        return 1
    return 0


def csv_bytes(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
