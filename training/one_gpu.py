"""How long to train on a data set of one's own: batch and steps from the number of its images.

    python train_und.py --preset one-gpu --data datasets/mine       # has --batch-size 0 --steps 0

The paper's 3,840 steps of 256 images would show each of a thousand images a thousand times. Where
the batch or the number of steps is 0, the table below says what they are. It is a rule of thumb,
made for adapters on trained weights (training/lora.py): small sets are seen more often, and drawing
takes more passes than reading. A number on the command line is taken as it is.
"""
import math
from dataclasses import replace
from pathlib import Path

from common.files import read_json
from common.processes import print0

# fewer training images than these -> batch, passes over them to learn to read, and to draw
TABLE = (
    (500, 8, 10, 100),
    (5_000, 16, 6, 30),
    (math.inf, 32, 3, 10),
)


def length(images, task):
    """(batch size, passes) for so many training images. task: "und" reads, "gen" draws."""
    for fewer, batch, reading, drawing in TABLE:
        if images < fewer:
            return batch, reading if task == "und" else drawing


def training_images(info):
    """How many training images a dataset.json counts; 0 where it is none of a packed data set."""
    if not isinstance(info, dict) or "counts" not in info:
        return 0
    return info["counts"].get("train", 0)


def fitted(cfg, task):
    """The settings, with batch and steps for the images of `cfg.data` where they were 0.

    The batch is a multiple of the micro-batch. A data set that is not there is left to those who
    read it, who say how to make it.
    """
    if cfg.batch_size > 0 and cfg.steps > 0:
        return cfg
    # one data set may be there in several sizes, of the same images
    images = 0
    for path in Path(cfg.data).glob(f"{task}-*/dataset.json"):
        images = max(images, training_images(read_json(path)))
    batch, passes = length(images, task)
    if cfg.batch_size > 0:
        batch = cfg.batch_size
    batch = cfg.micro_batch * math.ceil(batch / cfg.micro_batch)
    steps = cfg.steps
    if steps == 0:
        steps = max(1, math.ceil(passes * images / batch))
    print0(f"{images} images to train on: {steps} steps of {batch}.")
    return replace(cfg, batch_size=batch, steps=steps)
