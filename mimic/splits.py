"""Who trains, validates and tests: the paper's protocols for reading (und) and drawing (gen).

    chosen, test = assign(cfg, items, left_out)     # {"und": items, "gen": items}
    jobs = by_image(chosen, left_out)               # one job an image, for one pass over the files

Both tasks follow the official split, unless --test-ids names the images of the understanding test
or --gen-split takes CheXGenBench's split for drawing. Whatever they say, no image of the
understanding test is ever among those to train drawing on.
"""
from dataclasses import replace
from typing import NamedTuple

from mimic import annotations
from mimic.items import Item


class Job(NamedTuple):
    """One image file and the items that it serves."""
    path: str                       # below the image root
    items: list                     # of (task, Item), each task at most once


def assign(cfg, items, left_out):
    """The items of a collection -> {task: items with their split and text}, ids of the und test."""
    if cfg.one_per_study:
        items = one_per_study(items, left_out)
    test = {item.id for item in items if item.split == "test"}

    # whose images, in which split
    und = gen = items
    if cfg.test_ids:
        pinned = annotations.read_ids(cfg.test_ids, {item.id for item in items})
        und = pin(items, pinned, left_out)
        test |= pinned
    if cfg.gen_split == "chexgenbench":
        gen = chexgenbench_items(annotations.chexgenbench(cfg.chexgenbench), items, left_out)

    # with which text: as LLaVA-Rad's own loader has it, a test's is parsed by rules; what trains
    # drawing is GPT-4's parse where there is one
    if cfg.llava_rad:
        texts = annotations.llava_rad(cfg.llava_rad)
        und = with_text(und, texts["rule-based"], {}, left_out)
        if cfg.gen_split == "official":
            gen = with_text(gen, texts["rule-based"], texts["gpt4"], left_out)

    return {"und": und, "gen": without_leak(gen, test, left_out)}, test


def one_per_study(items, left_out):
    """The first PA image of a study, else its first AP."""
    # a table may number the studies of each patient from 1
    best = {}
    for item in items:
        known = best.get((item.subject, item.study))
        if known is None or (known.view == "AP" and item.view == "PA"):
            best[item.subject, item.study] = item
    chosen = []
    for item in items:
        if best[item.subject, item.study] is item:
            chosen.append(item)
        else:
            left_out.add(item.id, item.image, "another image of the study is kept")
    return chosen


def pin(items, pinned, left_out):
    """The understanding test is exactly `pinned`; other splits lose the patients of its images."""
    # other images of a tested patient may be nearly the same picture, so they go as well
    patients = {item.subject for item in items if item.id in pinned}
    chosen = []
    for item in items:
        if item.id in pinned:
            chosen.append(replace(item, split="test"))
        elif item.split == "test":
            left_out.add(item.id, item.image, "not in --test-ids")
        elif item.subject in patients:
            left_out.add(item.id, item.image, "patient of a test image")
        else:
            chosen.append(item)
    return chosen


def chexgenbench_items(rows, items, left_out):
    """CheXGenBench's rows -> items for drawing.

    Its split pools all images and deals them anew, so it has no validation set of its own, and
    official test images are among those to train on (`without_leak` takes them out). What it trains
    on and the official split validates on becomes val.
    """
    official = {item.id: item for item in items}
    chosen = {}
    for split, subject, study, dicom, image, text in rows:
        if dicom in chosen:
            left_out.add(dicom, image, "duplicate row")
            continue
        if not text.strip():
            left_out.add(dicom, image, "no text")
            continue
        item = Item(dicom, subject, study, split, view="", image=image.removesuffix(".jpg"),
                    text=(text, None, "chexgenbench"))
        # its tables lack the view and the labels, which ours have for images of the official split
        if dicom in official:
            item.view = official[dicom].view
            item.labels = official[dicom].labels
            if split == "train" and official[dicom].split == "val":
                item.split = "val"
        chosen[dicom] = item
    return list(chosen.values())


def with_text(items, rule_based, gpt4, left_out):
    """Items with LLaVA-Rad's findings: GPT-4's where there are some, by rules in the test."""
    chosen = []
    for item in items:
        text = rule_based.get(item.id)
        if item.split != "test" and item.id in gpt4:
            text = gpt4[item.id]
        if text:
            chosen.append(replace(item, text=text))
        else:
            left_out.add(item.id, item.image, "no findings in the LLaVA-Rad annotations")
    return chosen


def without_leak(items, test, left_out):
    """Items for drawing; those that train or validate on an image of the understanding test go."""
    chosen = []
    for item in items:
        if item.split != "test" and item.id in test:
            left_out.add(item.id, item.image, "understanding test, not to be trained on")
        else:
            chosen.append(item)
    return chosen


def by_image(chosen, left_out):
    """{task: items} -> jobs, one an image file. Of rows that name one image, or have one id, the
    first of a task counts."""
    jobs = {}
    for task, items in chosen.items():
        ids = set()
        for item in items:
            # a new job is kept only if it gets this item
            job = jobs.get(item.image, Job(item.image, []))
            if item.id in ids:
                left_out.add(item.id, item.image, "duplicate row")
            elif any(other == task for other, _ in job.items):
                left_out.add(item.id, item.image, "another row has this image")
            else:
                jobs[item.image] = job
                job.items.append((task, item))
                ids.add(item.id)
    return list(jobs.values())


def limited(jobs, limit, left_out):
    """The first jobs, to try things out; 0 is no limit."""
    if not limit:
        return jobs
    for job in jobs[limit:]:
        _, item = job.items[0]
        left_out.add(item.id, job.path, "beyond --limit")
    return jobs[:limit]
