"""Something to look at while training: what the model draws and writes, beside what was given."""
import sys

import torch

from common.files import write_text
from common.images import captioned, save_png
from sample import Sampling, generate_images, generate_reports
from weights.knowledge import notice


def sheet(pictures, captions):
    """A captioned grid of four columns, in which small pictures are enlarged -> PIL image."""
    size = pictures[0].shape[-1]
    return captioned(pictures, captions, columns=4, scale=max(1, 256 // size))


def show_drawn(model, vae, tokenizer, data, path, n=8):
    """A sheet: the first n images of a data set, each beside one drawn from its report."""
    reports = [row["report"] for row in data.rows[:n]]
    try:
        drawn = generate_images(model, vae, tokenizer, reports, Sampling(size=data.size),
                                numbers=range(len(reports)), progress=False)
    except FloatingPointError as error:     # no reason to end a run
        print(f"no samples now: {error}", file=sys.stderr)
        return
    pictures, captions = [], []
    for i, report in enumerate(reports):
        pictures += [data.image(i).numpy(), drawn[i, 0]]
        captions += ["given: " + report, "drawn from the report"]
    path.parent.mkdir(exist_ok=True)
    save_png(sheet(pictures, captions), path, notice=notice(model))


def show_written(model, tokenizer, data, path, n=8):
    """A sheet: the first n images of a data set, each over its report and what the model writes.

    The same as text, for a terminal, goes beside it: `path` with the ending .txt.
    """
    n = min(n, len(data))
    images = torch.stack([data.image(i) for i in range(n)])
    try:
        written = generate_reports(model, tokenizer, images, progress=False)
    except FloatingPointError as error:
        print(f"no samples now: {error}", file=sys.stderr)
        return
    captions, lines = [], []
    for row, text in zip(data.rows, written):
        captions.append(f"given: {row['report']}\nwritten: {text}")
        lines.append(f"{row['id']}\n  given    {row['report']}\n  written  {text}\n")
    path.parent.mkdir(exist_ok=True)
    save_png(sheet(images.numpy(), captions), path, notice=notice(model))
    write_text(path.with_suffix(".txt"), "\n".join(lines) + notice(model) + "\n")
