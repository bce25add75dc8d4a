"""Images of many reports, their features, and reports of these images: shared out, continued.

This is the part of `python evaluate.py gen` that takes hours. Each of its three steps keeps what is
done in files, and goes on from there after an interruption.
"""
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

import sample
from common import processes, worklist
from common.cli import InputError
from common.files import settings_hash
from common.images import save_png
from common.prompts import file_name
from evaluation import features
from evaluation.reading import write_reports
from evaluation.settings import sampling_of
from evaluation.text_metrics import unique_captions
from weights.checkpoint import newest
from weights.knowledge import notice


@dataclass
class Prompt:
    """A report to draw."""
    number: int                     # it is drawn from the noise (seed, number)
    text: str                       # the report
    file: str                       # name of its image


@dataclass
class Experiment:
    """What all sets of drawn images of one command have in common."""
    process: processes.Process
    model: object                   # a UniX: it draws, and reads what it has drawn
    vae: object
    tokenizer: object
    size: int                       # pixels a side of the images
    prompts: dict                   # {id: Prompt} of the whole split
    encoder: object                 # features.Encoder of FD to coverage, or None
    labeller: object                # of reports, for the cycle score, or None


def prompts_of(images):
    """Every wording of a report once, by the id of the first image that has it -> {id: Prompt}."""
    rows = [{"id": name, "caption": row["report"]} for name, row in images.rows.items()]
    prompts = {}
    for number, n in enumerate(unique_captions(rows)):
        name = rows[n]["id"]
        prompts[name] = Prompt(number, rows[n]["caption"], file_name(name) + ".png")
    # two ids with one file name: one image would overwrite the other, and be scored twice
    files = {prompt.file for prompt in prompts.values()}
    if len(files) < len(prompts):
        raise InputError("two ids of the data set differ only in characters that no file name can "
                         "hold; rename one.")
    return prompts


@dataclass
class Drawn:
    """One set of drawn images, and what came of them."""
    out: Path                       # its directory: images/, *.jsonl, generated.safetensors
    ids: list                       # of the reports that could be drawn
    features: object                # features.Features of the images, or None without an encoder
    reports: dict                   # {id: report read off the image}
    failures: dict                  # {id: why it was not drawn, seen or read}


def settings_of(cfg, ids, experiment):
    """What makes another run of it: if any of these changes, what is done cannot be continued."""
    captions = [(name, prompt.text) for name, prompt in experiment.prompts.items()]
    return {
        "checkpoint": str(newest(cfg.checkpoint)), "data": cfg.data, "split": cfg.split,
        "captions": settings_hash(captions), "images": len(ids), "prompt": cfg.prompt,
        "max_tokens": cfg.max_tokens, "dtype": cfg.dtype, "weights": cfg.weights,
        **sampling_of(cfg), "size": experiment.size,
    }


def draw(cfg, out, ids, experiment):
    """Draw reports, turn the images into features, and read them again -> Drawn. out: a directory
    that has been claimed.

    Takes hours; each of the three steps continues where it was when it is interrupted.
    """
    folder = out / "images"
    folder.mkdir(exist_ok=True)

    # report -> image
    def draw_block(block):
        return draw_images(cfg, folder, block, experiment)
    blocks = worklist.chunks(ids, cfg.batch)
    rows = worklist.run(out / "images.jsonl", blocks, draw_block, experiment.process, "drawing")
    files, failures = worklist.split(rows, "file")
    # when all fail the reason is usually the same, so the first one is quoted
    if not files:
        first = next(iter(failures.values()))
        raise InputError(f"none of the {len(ids)} reports could be drawn; the first: {first}")
    # from here on only what was drawn counts
    ids = list(files)
    images = features.Folder(folder)

    # image -> features
    generated = None
    if experiment.encoder:
        generated = features.reused(out / "generated.safetensors", experiment.encoder, images,
                                    experiment.process, cfg.batch, ids)
        failures |= generated.failures

    # image -> report
    questions = dict.fromkeys(ids, cfg.prompt)
    reports, failed = write_reports(out / "again.jsonl", images, questions, experiment.model,
                                    experiment.tokenizer, cfg, experiment.process, "reading again")
    return Drawn(out, ids, generated, reports, failures | failed)


def draw_images(cfg, folder, ids, experiment):
    """Draw an image of each report of a block -> rows {"id", "file"}, or {"id", "error"}."""
    # a report that cannot be drawn gets a row as well, so that it is not tried again
    rows, drawable = [], []
    for name in ids:
        prompt = experiment.prompts[name]
        try:
            sample.check_report("the report", prompt.text, experiment.model, experiment.tokenizer)
        except InputError as error:
            rows.append({"id": name, "error": str(error)})
        else:
            drawable.append(name)
            rows.append({"id": name, "file": prompt.file})
    if not drawable:
        return rows

    # the number of a report is that in the whole split: its noise is the same with any --limit
    prompts = [experiment.prompts[name] for name in drawable]
    pictures = sample.generate_images(
        experiment.model, experiment.vae, experiment.tokenizer, [prompt.text for prompt in prompts],
        sampling=cfg, numbers=[prompt.number for prompt in prompts], progress=False)[:, 0]
    # each image carries its report, its number and the settings: it can be drawn again from these
    settings = {**sampling_of(cfg), "size": experiment.size}
    for prompt, picture in zip(prompts, pictures):
        save_png(Image.fromarray(picture), folder / prompt.file,
                 notice=notice(experiment.model), reports=prompt.text, number=prompt.number,
                 **settings)
    return rows
