"""
The phantom: a chest X-ray of our own, drawn by formula, with findings of known side, zone and degree and a report
written from the same facts. A toy, not a radiograph; nothing here is for clinical use.

    python -m phantom.prepare                      # → datasets/phantom/{und-128,gen-64,gen-128,tokenizer.json}
    python -m phantom.prepare --show 12            # → phantom.png, a contact sheet to look at, and nothing else

`report_to_facts` reads a report back exactly, so whatever a model says about a picture, or draws from a report, can be
measured. A fact is a triple (finding, place, degree), "" where there is none: ("effusion", "left", "large").
Lengths are in units of the picture (x to the right, y down, 0 to 1): the same phantom at any size. As in any chest
X-ray the patient faces us: the patient's left is on the right of the picture.
"""
import io
import json
import multiprocessing
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from common import processes as common
from common.packed import Writer
from phantom.draw import draw
from phantom.facts import PROMPTS, facts_to_report, sample_facts


@dataclass
class Settings:
    out: str = "datasets/phantom"   # where the packed data sets und-<size>, gen-<size/2>, gen-<size> go
    train: int = 9000               # pictures to train on
    val: int = 500                  # pictures to watch the training with
    test: int = 1000                # pictures to report numbers on
    size: int = 128                 # pixels a side; stage 2 learns to draw at half of it, stage 3 at all of it
    seed: int = 0                   # picture i of a split depends on (seed, split, i) alone
    vocab_size: int = 512           # most entries of the tokenizer
    workers: int = 0                # processes that draw; 0: one a core
    overwrite: bool = False         # replace a data set of other settings
    show: int = 0                   # write this many phantoms and their reports to phantom.png, and stop

    def __post_init__(self):
        assert self.size >= 32 and self.size % 2 == 0, f"--size {self.size}: wanted an even number of 32 or more."
        assert min(self.train - 1, self.val, self.test, self.seed) >= 0, "--train wants 1 or more; --val, --test, --seed 0."


SPLITS = ("train", "val", "test")


def make_tokenizer(reports, vocab_size):
    """Byte-level BPE trained on the reports: any text can be written, these reports take few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.train_from_iterator(reports, trainers.BpeTrainer(
        vocab_size=vocab_size, show_progress=False, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=[AddedToken(token, special=True) for token in ("<bos>", "<eos>", "<soi>", "<eoi>")]))
    return tokenizer


def pack(job):
    """Phantom number i of a split: its row, PNG bytes, and PNG bytes at half size."""
    cfg, split, i = job
    rng = np.random.default_rng([cfg.seed, SPLITS.index(split), i])
    facts, name = sample_facts(rng), f"{split}-{i:06d}"
    row = dict(id=name, subject=name, study=name, split=split, view="frontal", prompt=str(rng.choice(PROMPTS)),
               report=facts_to_report(facts, rng), labels=sorted(map(list, facts)), source="phantom")
    picture, buffers = draw(facts, rng, cfg.size), (io.BytesIO(), io.BytesIO())
    half = picture.reshape(cfg.size // 2, 2, cfg.size // 2, 2).mean((1, 3)).round().astype(np.uint8)
    for buffer, pixels in zip(buffers, (picture, half)):
        Image.fromarray(pixels).save(buffer, "PNG")
    return row, *(buffer.getvalue() for buffer in buffers)


def held_out(cfg, i):
    """Phantom number i of the test split, drawn anew: its row and its picture (size, size) uint8."""
    row, picture, _ = pack((cfg, "test", i))
    return row, np.array(Image.open(io.BytesIO(picture)))


def contact_sheet(cfg, columns=4, side=384):
    sheet = Image.new("L", (columns * side, -(-cfg.show // columns) * (side + 90)))
    for i in range(cfg.show):
        row, picture, _ = pack((cfg, "train", i))
        x, y = i % columns * side, i // columns * (side + 90)
        sheet.paste(Image.open(io.BytesIO(picture)).resize((side - 4, side - 4), Image.BICUBIC), (x, y))
        ImageDraw.Draw(sheet).text((x + 4, y + side), row["report"].replace(". ", ".\n"), fill=255)
    return sheet


def main(argv):
    cfg = common.override(Settings(), argv, __doc__)
    if cfg.show:
        contact_sheet(cfg).save("phantom.png")
        return print(f"{cfg.show} phantoms in phantom.png: toys, not radiographs")
    out, settings = Path(cfg.out), {name: getattr(cfg, name) for name in ("train", "val", "test", "size", "seed", "vocab_size")}
    sets = [(out / f"{task}-{size}", task, size) for task, size in (("und", cfg.size), ("gen", cfg.size // 2), ("gen", cfg.size))]
    marker = out / "phantom.json"                  # written last: it is there when all the rest is
    if not cfg.overwrite and marker.exists() and json.loads(marker.read_text()) == settings:
        return print(f"{out} is there already, with these settings")
    if not cfg.overwrite and any(json.loads(path.read_text())["settings"] != settings for path in out.glob("*/dataset.json")):
        raise common.InputError(f"{out} holds a data set of other settings: choose another --out, or --overwrite it.")
    marker.unlink(missing_ok=True)
    for directory, _, _ in sets:
        shutil.rmtree(directory, ignore_errors=True)
    writers, reports = [Writer(*place, settings) for place in sets], []
    jobs = [(cfg, split, i) for split in SPLITS for i in range(getattr(cfg, split))]
    with multiprocessing.Pool(cfg.workers or None) as pool:
        for row, full, half in tqdm(pool.imap(pack, jobs, chunksize=16), total=len(jobs), unit="images"):
            for writer, picture in zip(writers, (full, half, full)):
                writer.add(picture, row)
            reports += [row["report"]] * (row["split"] == "train")
    make_tokenizer(reports + PROMPTS * (cfg.train // 50 + 1), cfg.vocab_size).save(str(out / "tokenizer.json"))
    for writer in writers:
        writer.close()
    marker.write_text(json.dumps(settings))
    print(f"{len(jobs)} phantoms in {out}: toys, not radiographs; nothing here is for clinical use")


if __name__ == "__main__":
    common.cli(main)
