"""`evaluate.py und`: reports of the test images, and what they are worth (Table 2). For research, not for clinical use.

One report an image, greedy, in batches of one question, shared out among processes, continued when interrupted. What fails is
named and counted, and never scored as text.
"""
from dataclasses import dataclass
from pathlib import Path

from common import processes as common
from evaluation import features
from evaluation import scoring
import weights
from evaluation import worklist
from weights.checkpoint import newest
from common.packed import settings_hash
from evaluation.text_metrics import same_items
from evaluation.reading import chosen, finish, reader


@dataclass
class UndConfig:
    checkpoint: str = "out/und"     # what reads
    data: str = "datasets/mimic"    # root of the packed data sets; und-<size of the checkpoint's tower> is read
    split: str = "test"             # whose images and reports
    out: str = "out/score-und"      # directory for reports.jsonl, result.json, result.md
    overwrite: bool = False         # begin anew although --out holds a run of other settings
    limit: int = 0                  # only the first so many images; 0: all
    prompt: str = ""                # ask this about every image; default: each row's own question
    max_tokens: int = 0             # longest report; 0: the limit of the checkpoint
    chexbert: str = "pretrained/chexbert"   # folder with chexbert.pth and vocab.txt
    cut: bool = False               # CheXbert sees the first 512 characters alone, as in the official evaluation
    python: str = ""                # interpreter of an environment with RadGraph; default: this one
    bootstrap: int = 1000           # draws of the intervals; 0: none
    batch: int = 16                 # images at once
    device: str = "auto"            # auto, cpu, cuda
    dtype: str = "float32"          # or bfloat16

    def __post_init__(self):
        assert self.batch > 0 and min(self.limit, self.bootstrap, self.max_tokens) >= 0, \
            "--batch must be at least 1; --limit, --bootstrap and --max-tokens 0 or more."


def main(argv, doc=__doc__):
    cfg = common.override(UndConfig(), argv, doc)
    process, out = common.setup(cfg.device), Path(cfg.out)
    model, _, tokenizer = weights.load(cfg.checkpoint, dtype=common.torch_dtype(cfg.dtype))
    model = model.to(process.device)
    images = features.PackedImages(Path(cfg.data) / f"und-{model.cfg.vision.image_size}", cfg.split)
    ids = images.ids[:cfg.limit or None]
    prompts = {name: cfg.prompt or images.rows[name]["prompt"] for name in ids}
    phantom = all(images.rows[name]["source"] == "phantom" for name in ids)
    label, left_out = scoring.labeller(cfg.chexbert, cfg.cut, process.device, phantom)     # a bad file stops us before the work

    used = chosen(cfg, "split", "limit", "prompt", "max_tokens", "batch", "dtype")
    used |= {"checkpoint": str(newest(cfg.checkpoint)), "data": images.source, "questions": settings_hash(prompts)}
    worklist.agree(out, used, cfg.overwrite, process)
    blocks = worklist.grouped(ids, prompts.get, cfg.batch)
    rows = worklist.run(out / "reports.jsonl", blocks, reader(model, tokenizer, images, prompts, cfg), process, "reading")
    if not process.master:
        return 0
    said, failures = worklist.split(rows, "report")
    _, said, there = same_items(said, {name: images.rows[name]["report"] for name in ids if name not in failures})
    values, details, more = scoring.reports(said, there, label, cfg.bootstrap, cfg.python)
    empty = sum(not text.strip() for text in said)
    return finish(out, "Reading", {"understanding": values}, cfg, left_out + more, failures, details=details, empty_reports=empty)
