"""Draw phantoms, pack them for training, make their tokenizer. Toys, not radiographs.

    python -m phantom.prepare             # -> datasets/phantom: und-128, gen-64, gen-128, tokenizer
    python -m phantom.prepare --show 12   # -> phantom.png, a contact sheet, and nothing else
    python -m phantom.prepare --exposure 2 --wording headings --out datasets/shifted

What can be found stands in phantom/facts.py, how it is drawn in phantom/draw.py. A picture depends
on the seed, its split and its number alone: more pictures, or more workers, change no other one.
The last command shows the same pictures as films of another hospital, far darker, and reports on
them in its words (phantom/wordings.py): something to fine-tune on.
"""
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from common import locks
from common.cli import InputError, cli, differences, override
from common.files import read_json, settings_hash, write_json, write_text
from common.images import captioned, save_png
from common.packed import Writer, other_sizes, refuse_foreign, settings_of
from common.platforms import usable_cores
from common.processes import worker_pool
from phantom.draw import draw
from phantom.facts import PROMPTS, TABLE, facts_to_report, sample_facts
from phantom.wordings import WORDINGS

SPLITS = ("train", "val", "test")
# the hash of the first seven findings: data sets that do not say which they have, have these
FIRST_FINDINGS = "a275e00d63b0ecc0"
# settings that a data set names only where it has others
USUAL = {"exposure": 1.0, "wording": "plain"}
NOTICE = "Drawn by formula: a toy, not a radiograph; not for clinical use."


@dataclass
class Settings:
    out: str = "datasets/phantom"   # where the data sets und-<size>, gen-<size/2>, gen-<size> go
    train: int = 9000               # pictures to train on
    val: int = 500                  # pictures of validation losses and samples
    test: int = 1000                # pictures to report numbers on
    size: int = 128                 # pixels a side, for stage 3; stage 2 draws at half of it
    seed: int = 0                   # picture i of a split depends on (seed, split, i) alone
    exposure: float = 1.0           # exponent of the grey values: 2 is a far darker film
    wording: Literal[*WORDINGS] = "plain"   # whose sentences the reports are made of
    vocab_size: int = 512           # most entries of the tokenizer
    workers: int = 0                # processes that draw; 0: one a core
    overwrite: bool = False         # replace a data set of other settings
    show: int = 0                   # write so many phantoms with reports to phantom.png, and stop

    def __post_init__(self):
        assert self.size >= 32 and self.size % 2 == 0, \
            f"--size {self.size}: wanted an even number of 32 or more."
        assert self.train >= 1, f"--train {self.train}: wanted 1 or more."
        for name in ("val", "test", "seed", "workers", "show"):
            assert vars(self)[name] >= 0, f"--{name} {vars(self)[name]}: wanted 0 or more."
        assert self.exposure > 0, f"--exposure {self.exposure:g} must be positive."

    @property
    def identity(self):
        """What decides what is in the data set: the settings, and which findings there are."""
        names = ("train", "val", "test", "size", "seed", "vocab_size")
        findings = {name: asdict(finding) for name, finding in TABLE.items()}
        shifted = {name: vars(self)[name] for name, usual in USUAL.items()
                   if vars(self)[name] != usual}
        return {**{name: vars(self)[name] for name in names}, **shifted,
                "findings": settings_hash(findings)}


# ---- one phantom ----

def begin(cfg, split, i):
    """Phantom number i of a split before it is drawn -> (its row, its facts, the dice to draw it).
    """
    key = [cfg.seed, SPLITS.index(split), i]
    rng = np.random.default_rng(key)
    name = f"{split}-{i:06d}"
    facts = sample_facts(rng)
    prompt = str(rng.choice(PROMPTS))
    report = facts_to_report(facts, rng)
    if cfg.wording != "plain":          # by dice of its own, so that the picture stays the same
        report = facts_to_report(facts, np.random.default_rng([*key, 1]), cfg.wording)
    row = dict(
        id=name, subject=name, study=name, split=split, view="frontal",
        prompt=prompt,
        report=report,
        labels=sorted(map(list, facts)),
        source="phantom",
    )
    return row, facts, rng


def make(cfg, split, i):
    """Phantom number i of a split -> (its row, its picture (size, size) uint8)."""
    row, facts, rng = begin(cfg, split, i)
    return row, exposed(draw(facts, rng, cfg.size), cfg.exposure)


def exposed(picture, exponent):
    """A picture (size, size) uint8 as another exposure or another film shows it: a gamma curve."""
    curve = 255 * (np.arange(256) / 255) ** exponent
    return curve.round().astype(np.uint8)[picture]


def with_facts(cfg, split, i, facts):
    """The picture of phantom number i if it had these facts: the same body, exposure and grain.

    Where a fact that it has already lies, and how large it is, does not change.
    """
    _, _, rng = begin(cfg, split, i)
    return exposed(draw(facts, rng, cfg.size), cfg.exposure)


def held_out(cfg, i):
    """Phantom number i of the test split, drawn anew -> (its row, its picture)."""
    return make(cfg, "test", i)


def halved(picture):
    """(size, size) uint8 -> (size/2, size/2): the mean of every four pixels."""
    side = len(picture) // 2
    return picture.reshape(side, 2, side, 2).mean((1, 3)).round().astype(np.uint8)


def png(picture):
    """A picture as the bytes of a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


# ---- the data set ----

def pack(job):
    """(cfg, split, i) -> the row of a phantom, its PNG, and its PNG at half the size."""
    row, picture = make(*job)
    return row, png(picture), png(halved(picture))


def make_tokenizer(reports, vocab_size):
    """Byte-level BPE trained on reports: it can write any text, and writes these in few tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token, special=True) for token in ("<bos>", "<eos>", "<soi>", "<eoi>")]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=special, show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(reports, trainer)
    return tokenizer


def directories(cfg):
    """{directory: (task, size)} of the three data sets."""
    tasks = (("und", cfg.size), ("gen", cfg.size // 2), ("gen", cfg.size))
    return {Path(cfg.out) / f"{task}-{size}": (task, size) for task, size in tasks}


def write_data_set(cfg):
    """Draw all pictures into three packed data sets, train the tokenizer -> how many pictures."""
    out = Path(cfg.out)
    writers = [Writer(directory, task, size, cfg.identity)
               for directory, (task, size) in directories(cfg).items()]

    # the pictures come back in order, whoever drew them
    und, gen_small, gen = writers
    reports = []
    jobs = [(cfg, split, i) for split in SPLITS for i in range(vars(cfg)[split])]
    workers = cfg.workers if cfg.workers else usable_cores()
    with worker_pool(workers) as pool:
        packed = pool.map(pack, jobs, chunksize=16)
        for row, picture, half in tqdm(packed, total=len(jobs), unit="images"):
            und.add(picture, row)
            gen_small.add(half, row)
            gen.add(picture, row)
            if row["split"] == "train":
                reports.append(row["report"])

    # prompts are as frequent as a fiftieth of the reports each, so that they take few tokens too
    tokenizer = make_tokenizer(reports + PROMPTS * (cfg.train // 50 + 1), cfg.vocab_size)
    write_text(out / "tokenizer.json", tokenizer.to_str(pretty=True))
    for writer in writers:
        writer.close()
    return len(jobs)


def contact_sheet(cfg):
    """The first `cfg.show` pictures to train on, over their reports -> PIL image."""
    rows, pictures = zip(*(make(cfg, "train", i) for i in range(cfg.show)))
    reports = [row["report"].replace(". ", ".\n") for row in rows]
    return captioned(pictures, reports, columns=min(4, cfg.show), scale=max(1, 384 // cfg.size))


def changed(settings, cfg):
    """How the settings of a finished data set differ from those that are wanted."""
    theirs = {"findings": FIRST_FINDINGS, **USUAL, **settings}
    return differences(theirs, {**USUAL, **cfg.identity})


def main(argv):
    cfg = override(Settings(), argv, __doc__)
    if cfg.show:
        save_png(contact_sheet(cfg), Path("phantom.png"), notice=NOTICE)
        print(f"{cfg.show} phantoms in phantom.png: toys, not radiographs")
        return

    with locks.take(cfg.out):
        prepare(cfg, Path(cfg.out))


def prepare(cfg, out):
    """Write the data sets, unless they are there."""
    # the marker is written last: it is there when all the rest is
    marker = out / "phantom.json"
    made = read_json(marker) if marker.exists() else {"vocab_size": None}
    if not isinstance(made, dict) or "vocab_size" not in made:
        raise InputError(f"{out} holds a phantom.json that is no phantom's; choose another --out.")
    if not cfg.overwrite:
        if marker.exists() and not changed(made, cfg):
            print(f"{out} is there already, with these settings")
            return
        for path in out.glob("*/dataset.json"):
            settings = settings_of(path.parent)         # None for other programs' dataset.json
            other = changed(settings, cfg) if settings is not None else {}
            if other:
                names = ", ".join(f"{name}={theirs}" for name, (theirs, _) in other.items())
                raise InputError(f"{out} holds a data set of other settings ({names}): choose "
                                 "another --out, or --overwrite it.")
    # nothing of anybody else's goes, and nothing at all before everything has been looked at
    for directory in directories(cfg):
        refuse_foreign(directory, "phantom.prepare")
    begun = marker.exists() or any(directory.exists() for directory in directories(cfg))
    if (out / "tokenizer.json").exists() and not begun:
        raise InputError(f"{out} holds a tokenizer.json that is no phantom's; choose another "
                         "--out.")
    marker.unlink(missing_ok=True)
    images = write_data_set(cfg)
    write_json(marker, cfg.identity)
    for sentence in other_sizes(directories(cfg)):
        print(sentence)
    print(f"{images} phantoms in {out}: toys, not radiographs; nothing here is for clinical use")


if __name__ == "__main__":
    cli(main)
