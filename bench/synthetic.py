"""Whether a data set drawn from a table of phantom reports shows what was asked for.

    python sample.py --table prompts.jsonl --steps 4 --out out/synth
    python -m bench.synthetic --manifest out/synth/manifest.csv

Every picture of the manifest is read by the checkpoint, and the facts in what it writes are
compared with those of the report that was drawn. The reader is the same model that drew, so an
error that it makes twice is not seen; it reads phantoms themselves without a mistake
(docs/results.md).
"""
from dataclasses import dataclass, field
from pathlib import Path

import torch

import weights
from bench.measuring import tell
from common.cli import InputError, cli, override
from common.images import read_image
from common.processes import setup
from common.tables import own_table
from evaluation import scoring
from evaluation.tables import shown
from sample import generate_reports
from vision import preprocess


@dataclass
class SyntheticConfig:
    manifest: list[str] = field(default_factory=list)   # manifest.csv of sample.py --table, several
    checkpoint: str = str(Path(__file__).resolve().parents[1] / "demo")     # the reader
    bootstrap: int = 1000       # resamplings for the intervals; 0: none
    threads: int = 0            # CPU threads; 0: a fair share of the cores
    json: bool = False          # print the line of JSON alone, without the words


def score(path, model, tokenizer, bootstrap):
    """Facts read off the pictures of a manifest against those of their reports."""
    columns, rows = own_table(path)
    if not {"image", "report"} <= set(columns):
        raise InputError(f"{path} is no manifest of sample.py --table: it has no image or report.")
    vision = model.cfg.vision
    images = [preprocess(read_image(Path(path).parent / row["image"]), vision.image_size,
                         vision.pad) for row in rows]
    asked = [row["report"] for row in rows]
    written = generate_reports(model, tokenizer, torch.stack(images))
    scores, _ = scoring.label_f1(scoring.PhantomLabels(), written, asked, bootstrap)
    return {"pictures": len(rows), **scores}


def show(figures):
    for path, f in figures.items():
        print(f"{path}: {f['pictures']} pictures, micro-F1 {shown(f['micro'])}, all facts right "
              f"{shown(f['exact'])}")


def main(argv):
    cfg = override(SyntheticConfig(), argv, __doc__)
    if not cfg.manifest:
        raise InputError("name a --manifest, as out/synth/manifest.csv.")
    setup("cpu", cfg.threads)
    model, _, tokenizer = weights.load(cfg.checkpoint)
    tell({path: score(path, model, tokenizer, cfg.bootstrap) for path in cfg.manifest}, cfg.json,
         show)


if __name__ == "__main__":
    cli(main)
