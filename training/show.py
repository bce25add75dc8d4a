"""Something to look at while training: what the model draws and writes, beside what was given."""
import torch

from common.files import write_text
from common.images import NOTICE, captioned, save_png
from sample import Sampling, generate_images, generate_reports


def show_drawn(model, vae, tokenizer, data, path, n=8):
    """A grid: the first n images of a data set, each beside one drawn from its report."""
    reports = [row["report"] for row in data.rows[:n]]
    drawn = generate_images(model, vae, tokenizer, reports, Sampling(size=data.size),
                            numbers=range(len(reports)), progress=False)
    pictures, captions = [], []
    for i, report in enumerate(reports):
        pictures += [data.image(i).numpy(), drawn[i, 0]]
        captions += ["given: " + report, "drawn from the report"]
    path.parent.mkdir(exist_ok=True)
    save_png(captioned(pictures, captions, columns=4), path)


def show_written(model, tokenizer, data, path, n=8):
    """A text: the first n reports of a data set, and what the model writes about their images."""
    n = min(n, len(data))
    images = torch.stack([data.image(i) for i in range(n)])
    written = generate_reports(model, tokenizer, images, progress=False)
    lines = [f"{row['id']}\n  given    {row['report']}\n  written  {text}\n"
             for row, text in zip(data.rows, written)]
    path.parent.mkdir(exist_ok=True)
    write_text(path, "\n".join(lines) + NOTICE + "\n")
