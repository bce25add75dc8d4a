"""Which images with which texts go where: the paper's protocols for reading (und) and drawing (gen), splits, pinned tests.

    root, {"und": items, "gen": items}, test_ids = listing(cfg, left_out)
    jobs = by_image(chosen, left_out)           # [(path, [(task, item)])], one pass over the images
"""
import re
from dataclasses import replace

from mimic import annotations
from mimic import sources
from common.processes import InputError
from mimic.sources import Item
from mimic.tables import find, read_table


def listing(cfg, left_out):
    """-> (image root, {task: items}, ids of the understanding test)."""
    if not cfg.images and cfg.dataset != "table":
        raise InputError("--images names the folder of the images; --help and docs/data.md say what belongs there.")
    root, items = {"mimic": sources.mimic, "openi": sources.open_i, "table": sources.table}[cfg.dataset](cfg, left_out)
    if cfg.one_per_study:
        items = sources.one_per_study(items, left_out)
    test = {item.id for item in items if item.split == "test"}
    und, gen = items, items
    if cfg.test_ids:
        pinned = annotations.read_ids(cfg.test_ids, {item.id for item in items})
        und = pin(items, pinned, left_out)
        test |= pinned
    if cfg.gen_split == "chexgenbench":
        gen = chexgenbench(cfg.chexgenbench, items, left_out)
    if cfg.llava_rad:
        texts = annotations.llava_rad(cfg.llava_rad)
        # the official loader: the test is rule-parsed; for drawing the model's parse where there is one
        und = with_text(und, texts["rule-based"], {}, left_out)
        gen = gen if cfg.gen_split == "chexgenbench" else with_text(gen, texts["rule-based"], texts["gpt4"], left_out)
    kept = []
    for item in gen:
        if item.split != "test" and item.id in test:
            left_out.add(item.id, item.image, "understanding test, not to be trained on")
        else:
            kept.append(item)
    return root, {"und": und, "gen": kept}, test


def by_image(chosen, left_out):
    """{task: items} -> [(path, [(task, item)])], each image and each id once a task: the first counts."""
    jobs = {}
    for task, items in chosen.items():
        seen = set()
        for item in items:
            if item.id in seen:
                left_out.add(item.id, item.image, "duplicate row")
            elif any(task == other for other, _ in jobs.get(item.image, ())):
                left_out.add(item.id, item.image, "another row has this image")
            else:
                jobs.setdefault(item.image, []).append((task, item))
                seen.add(item.id)
    return list(jobs.items())


def pin(items, pinned, left_out):
    """The understanding test is exactly `pinned`; the other splits keep no image of its patients."""
    patients, kept = {item.subject for item in items if item.id in pinned}, []
    for item in items:
        if item.id in pinned:
            kept.append(replace(item, split="test"))
        elif item.split == "test" or item.subject in patients:
            left_out.add(item.id, item.image, "not in --test-ids" if item.split == "test" else "patient of a test image")
        else:
            kept.append(item)
    return kept


def with_text(items, rules, preferred, left_out):
    """Items with the findings of the LLaVA-Rad annotations."""
    kept = []
    for item in items:
        text = (item.split != "test" and preferred.get(item.id)) or rules.get(item.id)
        if text:
            kept.append(replace(item, text=text))
        else:
            left_out.add(item.id, item.image, "no findings in the LLaVA-Rad annotations")
    return kept


def chexgenbench(folder, items, left_out):
    """CheXGenBench's own split and texts -> items for generation; its images in the official validate set are `val`."""
    official, chosen = {item.id: item for item in items}, {}
    for split in ("TRAIN", "TEST"):
        path = find(folder, f"LLAVARAD_ANNOTATIONS_{split}.csv", "--chexgenbench wants the folder of CheXGenBench's CSV files.")
        for image, text in read_table(path, ("path", "annotated_prompt")):
            parts = re.fullmatch(r"files/p1\d/p(\d{8})/(s\d{8})/([0-9a-f-]{44})\.jpg", image)
            if not parts:
                raise InputError(f"{path} has a path that is not like files/p10/p1.../s5.../<id>.jpg; is it the right file?")
            subject, study, dicom = parts.groups()
            if dicom in chosen or not text.strip():
                left_out.add(dicom, image, "duplicate row" if dicom in chosen else "no text")
                continue
            known = official.get(dicom)
            place = "test" if split == "TEST" else "val" if known and known.split == "val" else "train"
            chosen[dicom] = Item(dicom, subject, study, place, known.view if known else "", image[:-4],
                                 (text, None, "chexgenbench"), known.labels if known else None)
    return list(chosen.values())
