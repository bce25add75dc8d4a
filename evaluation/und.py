"""`python evaluate.py und`: reports of the test images, and what they are worth (Table 2).

For research, not for clinical use. The model writes one report an image, greedily, and each is
scored against the reference report of that image. An image that cannot be read is named and
counted, and never scored as if its report were empty.
"""
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import weights
from common import locks, processes, worklist
from common.cli import Text, override
from common.files import settings_hash
from evaluation import features, scoring, tables
from evaluation.reading import write_reports
from evaluation.settings import ReportNetworks
from evaluation.text_metrics import same_items
from weights.checkpoint import newest
from weights.int8 import MATRICES
from weights.knowledge import notice


@dataclass
class UndConfig(ReportNetworks):
    checkpoint: str = "out/und"     # the model that reads: a checkpoint directory or run
    data: str = "datasets/mimic"    # root of the packed data; und-<size of the tower> is read
    split: str = "test"             # whose images and reports: train, val or test
    out: str = "out/score-und"      # directory for reports.jsonl, result.json, result.md
    overwrite: bool = False         # begin anew although --out holds a run of other settings
    limit: int = 0                  # only the first so many images; 0: all
    prompt: str = ""                # ask this about every image; default: each row's own question
    max_tokens: int = 0             # longest report; 0: the limit of the checkpoint
    bootstrap: int = 1000           # resamplings for the intervals; 0: none
    batch: int = 16                 # images at once
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    weights: Literal[*MATRICES] = "float"       # int8: large matrices as 8-bit integers
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        assert self.batch > 0, "--batch must be at least 1."
        assert min(self.limit, self.bootstrap, self.max_tokens) >= 0, \
            "--limit, --bootstrap and --max-tokens must be 0 or more."


def main(argv):
    cfg = override(UndConfig(), argv, __doc__)
    out = Path(cfg.out)

    # the model, the images and what is asked about each
    process = processes.setup(cfg.device, cfg.threads)
    processes.on_first(process, partial(locks.refuse_taken, cfg.out))
    cfg.dtype = worklist.number_format(out, cfg, process)
    dtype = processes.torch_dtype(cfg.dtype)
    model, _, tokenizer = weights.load(
        cfg.checkpoint, dtype=dtype, device=process.device, matrices=cfg.weights)
    # the tower reads one size only, and the data set of that size is taken
    size = model.cfg.vision.image_size
    images = features.PackedImages(Path(cfg.data) / f"und-{size}", cfg.split)
    ids = images.ids[:cfg.limit] if cfg.limit else images.ids
    # each row asks what its own reference answers, for example about two sections of a report
    questions = {name: images.rows[name]["prompt"] for name in ids}
    if cfg.prompt:
        questions = dict.fromkeys(ids, cfg.prompt)

    # the labeller now: a wrong file of CheXbert should stop us before hours of reading, not after
    phantom = all(images.rows[name]["source"] == "phantom" for name in ids)
    labeller, left_out = scoring.load_labeller(cfg.chexbert, cfg.cut, process.device, phantom)

    # read
    worklist.claim({out: {
        "checkpoint": str(newest(cfg.checkpoint)), "data": images.source, "split": cfg.split,
        "limit": cfg.limit, "prompt": cfg.prompt, "questions": settings_hash(questions),
        "max_tokens": cfg.max_tokens, "batch": cfg.batch, "dtype": cfg.dtype,
        "weights": cfg.weights,
    }}, cfg.overwrite, process)
    predictions, failures = write_reports(
        out / "reports.jsonl", images, questions, model, tokenizer, cfg, process, "reading")
    if not process.master:
        return 0

    # score
    references = {name: images.rows[name]["report"] for name in ids if name not in failures}
    _, predictions, references = same_items(predictions, references)
    scores, details, missing = scoring.reports(
        predictions, references, labeller, cfg.bootstrap, cfg.python)
    empty = sum(not report.strip() for report in predictions)
    return tables.publish(
        out, "Reading", {"understanding": scores}, cfg, left_out + missing, failures,
        details=details, empty_reports=empty, notice=notice(model))
