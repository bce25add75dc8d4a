"""Reports of many images: in batches, shared out among processes, continued when interrupted.

`python evaluate.py und` reads the test images this way, and `python evaluate.py gen` the images
that it has drawn.
"""
import torch

import sample
from common import worklist
from common.cli import InputError
from vision import preprocess


def write_reports(path, images, questions, model, tokenizer, cfg, process, title):
    """Have the model report on images -> ({id: report}, {id: why there is none}).

    path: file of JSON lines that holds what is done. images: has read(id) -> grey PIL image.
    questions: {id: what is asked about this image}; only images with one question share a batch.
    cfg: a config with `batch` and `max_tokens`.
    """
    def work(ids):
        # the others of a block are read although one of its files is broken
        pictures, failures = readable(images, ids, model.cfg.vision)
        reports = []
        if pictures:
            reports = sample.generate_reports(
                model, tokenizer, torch.stack(list(pictures.values())), questions[ids[0]],
                max_tokens=cfg.max_tokens, batch=cfg.batch, progress=False)
        rows = [{"id": name, "report": report} for name, report in zip(pictures, reports)]
        return rows + [{"id": name, "error": why} for name, why in failures.items()]

    # a batch has one prompt, because it is computed once for all rows
    blocks = worklist.grouped(questions, questions.get, cfg.batch)
    rows = worklist.run(path, blocks, work, process, title)
    return worklist.split(rows, "report")


def readable(images, ids, vision):
    """Prepare images for the vision tower -> ({id: uint8 (S, S)}, {id: why it cannot be read}).

    vision: the tower's config; S is its image size.
    """
    pictures, failures = {}, {}
    for name in ids:
        try:
            pictures[name] = preprocess(images.read(name), vision.image_size, vision.pad)
        except InputError as error:
            failures[name] = str(error)
    return pictures, failures
