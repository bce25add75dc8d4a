"""Reading many images, shared out among processes: what `evaluate.py und` and the cycle score of `evaluate.py gen` share."""
import sys
from pathlib import Path

import torch

import sample
from evaluation import tables
from common.images import checked
from vision import preprocess


def chosen(cfg, *names):
    return {name: getattr(cfg, name) for name in names}


def reader(model, tokenizer, images, prompts, cfg):
    """A function for worklist.run: ids (of one prompt) -> rows with a report each, or with the sentence why there is none."""
    vision = model.cfg.vision

    def do(ids):
        bad, good, failed = [], [], []
        for name in ids:
            one = checked([(name, name)], lambda _, name: preprocess(images.read(name), vision.image_size, vision.pad), bad)
            good += one
            failed += [] if one else [{"id": name, "error": bad[-1]}]
        texts = sample.generate_reports(model, tokenizer, torch.stack([picture for _, picture in good]), prompts[ids[0]],
                                        max_tokens=cfg.max_tokens, batch=cfg.batch, progress=False) if good else []
        return [{"id": name, "report": text} for (name, _), text in zip(good, texts)] + failed
    return do


def finish(out, title, scores, cfg, left_out, failures, **more):
    settings = {**vars(cfg), "checkpoint": Path(cfg.checkpoint).name}
    print(tables.write(out / "result", title, scores, settings, left_out, failures, **more))
    print(f"written: {out}/result.json, {out}/result.md")
    print("".join(f"error: {name}: {why}\n" for name, why in failures.items()), end="", file=sys.stderr)
    return 1 if failures else 0
