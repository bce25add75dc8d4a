"""`python evaluate.py edit`: one fact of a phantom is changed, and everything about it is measured.

Phantoms are toys, not radiographs; nothing here is for clinical use. A held-out phantom gets one
other fact: another side, another size, one finding less or one more. What it would look like, the
truth, is drawn by formula: the same body, exposure and grain (`phantom.prepare.with_facts`). The
model reads the phantom's report off its picture, the statement about the changed finding takes its
place in it (`abilities.wording`), and `abilities.edit` changes the picture. Measured are

    new fact        share of pictures of which the model reads the new fact, and not the old one
    others kept     share of pictures of which it reads all other facts, and no further ones
    error outside   mean |edited - original| in grey values, over the pixels that are the same in
                    the original and in the truth

beside those of the picture with a mask (the pixels that differ in the truth, and `--brush` around
them), without the film's detail (--no-detail), of a picture drawn anew from the wanted report, and
of the original that only went through the autoencoder (what it reads of the truth, in place of the
facts).

Writes <out>.json and <out>.png: examples of each kind of change.
"""
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import sample
from abilities import edit
from abilities.grid import sheet
from abilities.wording import with_statement
from common import locks, processes
from common.cli import override
from common.files import write_json
from common.images import save_png
from common.worklist import chunks
from evaluation import phantom, scoring, tables
from phantom.facts import FACTS, SIDES, TABLE, Fact, conflict, report_to_facts
from phantom.prepare import Settings, held_out, with_facts
from weights.int8 import MATRICES
from weights.knowledge import notice

KINDS = ("side", "size", "absent", "present")
SAME = 1        # grey values: a pixel that differs by no more is outside of the change


@dataclass
class EditScoreConfig(edit.Editing):
    checkpoint: str = phantom.DEMO  # model to score: checkpoint or run
    out: str = "edit_score"         # writes <out>.json and <out>.png
    num: int = 500                  # held-out phantoms
    data_seed: int = 0              # seed of these phantoms, as of phantom.prepare
    brush: int = 8                  # pixels by which a mask is larger than the change
    show: int = 1                   # examples of each kind of change in the picture
    bootstrap: int = 1000           # resamplings for the intervals; 0: none
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    weights: Literal[*MATRICES] = "float"           # int8: large matrices as 8-bit integers
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        super().__post_init__()
        assert min(self.num, self.show) > 0, "--num and --show must be at least 1."
        assert min(self.brush, self.bootstrap) >= 0, "--brush and --bootstrap must be 0 or more."


def main(argv):
    cfg = override(EditScoreConfig(), argv, __doc__)
    tables.begin(cfg.out, [".png"])
    with locks.take_files(cfg.out):
        examinee = phantom.load(cfg)
        sample.latent_side(examinee.model, examinee.vae, examinee.size)
        return score(cfg, examinee)


# ---- what is changed ----

@dataclass
class Change:
    """One fact of a phantom that becomes another one."""
    number: int                     # of the phantom
    kind: str                       # one of KINDS
    old: object                     # the Fact that goes, or None
    new: object                     # the Fact that comes, or None
    facts: frozenset                # all facts afterwards
    statement: str                  # what a report then says about the finding
    film: np.ndarray                # uint8 (S, S), before
    truth: np.ndarray               # uint8 (S, S), afterwards, drawn by formula

    @property
    def outside(self):
        """Where the truth is the same as the film: (S, S) bool."""
        return np.abs(self.truth.astype(int) - self.film) <= SAME


def changes_of(cfg, size):
    """A change of each of the phantoms, of all kinds about as many."""
    settings = Settings(seed=cfg.data_seed, size=size)
    changes, count = [], Counter()
    for number in range(cfg.num):
        row, film = held_out(settings, number)
        facts = frozenset(Fact(*triple) for triple in row["labels"])
        rng = np.random.default_rng([cfg.data_seed, number])
        possible = possible_changes(facts)
        # the rarest kind so far; a phantom without findings only offers to be given one
        kind = min((kind for kind in KINDS if possible[kind]), key=count.__getitem__)
        count[kind] += 1
        old, new = possible[kind][rng.integers(len(possible[kind]))]
        after = changed(facts, old, new)
        finding = (new if old is None else old).finding
        changes.append(Change(
            number, kind, old, new, after, statement_about(finding, after, rng), film,
            with_facts(settings, "test", number, after)))
    return changes


def possible_changes(facts):
    """{kind: [(old fact or None, new fact or None)]}, so that no two facts are in conflict."""
    pairs = {"absent": [(fact, None) for fact in sorted(facts)],
             "present": [(None, fact) for fact in FACTS], "side": [], "size": []}
    for fact in sorted(facts):
        for degree in TABLE[fact.finding].degrees:
            if degree != fact.degree:
                pairs["size"].append((fact, fact._replace(degree=degree)))
        if fact.side:
            other = SIDES[1 - SIDES.index(fact.side)]
            place = fact.place.replace(fact.side, other)
            pairs["side"].append((fact, fact._replace(place=place)))
    return {kind: [pair for pair in pairs[kind] if is_possible(facts, *pair)] for kind in KINDS}


def changed(facts, old, new):
    """Facts without the old one and with the new one; each may be None."""
    gone = {old} if old else set()
    come = {new} if new else set()
    return (facts - gone) | come


def is_possible(facts, old, new):
    """Whether facts may change so: the new one is new, and goes with all others."""
    if new is None:
        return True
    others = [fact for fact in facts if fact != old]
    same_place = [fact for fact in others if fact[:2] == new[:2]]
    return not same_place and not any(conflict(new, fact) for fact in others)


def statement_about(finding, facts, rng):
    """What a report says about one finding, in the words of the phantom's reports."""
    facts = [fact for fact in sorted(facts) if fact.finding == finding]
    if not facts:
        return str(rng.choice(TABLE[finding].absent))
    texts = [str(rng.choice(TABLE[finding].present)).format(
        side=fact.side, zone=fact.zone, degree=fact.degree, adverb=f"{fact.degree}ly")
        for fact in facts]
    return " ".join(text[0].upper() + text[1:] for text in texts)


# ---- what is measured ----

def score(cfg, examinee):
    """Every score: a table on standard output, <out>.json and <out>.png."""
    changes = changes_of(cfg, examinee.size)
    films = np.stack([change.film for change in changes])
    truths = np.stack([change.truth for change in changes])
    sources = examinee.read(films, "held-out")
    wanted = [with_statement(source, change.statement)
              for source, change in zip(sources, changes)]

    pictures = edited_pictures(cfg, examinee, changes, films, sources, wanted)
    pictures["drawn anew"] = sample.generate_images(
        examinee.model, examinee.vae, examinee.tokenizer, wanted,
        sample.Sampling(seed=cfg.seed, batch=cfg.batch), numbers=range(cfg.num))[:, 0]
    pictures["autoencoder alone"] = examinee.through_vae(films)

    rows = {}
    for name, images in pictures.items():
        errors = outside_errors(changes, images)
        # the autoencoder changes nothing: what it costs is read off the truth that went through it
        if name == "autoencoder alone":
            images = examinee.through_vae(truths)
        read = examinee.read(images, name)
        rows[name] = [outcome(change, text, error)
                      for change, text, error in zip(changes, read, errors)]
    publish(cfg, examinee, changes, pictures, rows, sources, wanted)


def edited_pictures(cfg, examinee, changes, films, sources, wanted):
    """{name: uint8 (N, S, S)}: edited without a mask, the same without detail, and with a mask."""
    masks = np.stack([grown(~change.outside, cfg.brush) for change in changes])
    parts = {"edited": [], "edited, without detail": [], "edited with a mask": []}
    parameters = (examinee.model, examinee.vae, examinee.tokenizer)
    for block in tqdm(chunks(range(cfg.num), cfg.batch), desc="editing", unit="batch"):
        rows = slice(block[0], block[-1] + 1)
        for mask in (None, masks[rows]):
            x_0, x = edit.edit_latents(*parameters, films[rows], sources[rows], wanted[rows], cfg,
                                       mask, list(block), progress=False)
            edited = edit.finish(examinee.vae, films[rows], x_0, x, detail=True)
            if mask is None:
                plain = edit.finish(examinee.vae, films[rows], x_0, x, detail=False)
                parts["edited"].append(edited)
                parts["edited, without detail"].append(plain)
            else:
                parts["edited with a mask"].append(np.where(mask, edited, films[rows]))
    return {name: np.concatenate(part) for name, part in parts.items()}


def grown(mask, pixels):
    """A mask (S, S) and all pixels at most so many rows and columns away."""
    grid = torch.as_tensor(mask)[None, None].float()
    return F.max_pool2d(grid, 2 * pixels + 1, stride=1, padding=pixels)[0, 0].bool().numpy()


def outside_errors(changes, pictures):
    """Mean |picture - film| over the pixels outside of each change -> (N,) grey values."""
    return [float(np.abs(picture.astype(int) - change.film)[change.outside].mean())
            for change, picture in zip(changes, pictures)]


def outcome(change, text, error):
    """What was read off a picture against what was wanted -> a row of the scores."""
    facts = report_to_facts(text)
    came = change.new is None or change.new in facts
    went = change.old is None or change.old not in facts
    both = {change.old, change.new}
    return {"new_fact": all((came, went)), "others_kept": facts - both == change.facts - both,
            "error_outside": error, "read": text}


NAMES = {"new_fact": "new fact", "others_kept": "others kept", "error_outside": "error outside"}


def publish(cfg, examinee, changes, pictures, rows, sources, wanted):
    """Write <out>.json and <out>.png, and print the tables."""
    scores = {name: numbers_of(of_one, cfg.bootstrap) for name, of_one in rows.items()}
    by_kind = {}
    for kind in KINDS:
        of_kind = [row for row, change in zip(rows["edited"], changes) if change.kind == kind]
        if of_kind:
            by_kind[kind] = numbers_of(of_kind, cfg.bootstrap)
    cases = [{"number": change.number, "kind": change.kind, "source": source, "wanted": text,
              **{name: of_one[i] for name, of_one in rows.items()}}
             for i, (change, source, text) in enumerate(zip(changes, sources, wanted))]
    settings, words = tables.public_settings(cfg), notice(examinee.model)
    write_json(f"{cfg.out}.json", {"scores": scores, "by_kind": by_kind, "cases": cases,
                                   "settings": settings, "notice": words})
    save_png(examples(cfg, changes, pictures), Path(f"{cfg.out}.png"), notice=words,
             settings=settings)

    head = ["", *NAMES.values()]
    for table in (scores, by_kind):
        cells = [[name, *(tables.shown(numbers[key], 2 if key == "error_outside" else 3)
                          for key in NAMES)] for name, numbers in table.items()]
        print(tables.table(head, cells), end="\n\n")
    print(f"{cfg.num} held-out phantoms; of the kinds: "
          + ", ".join(f"{kind} {numbers['new_fact']['n']}" for kind, numbers in by_kind.items()))
    print(f"details in {cfg.out}.json, examples in {cfg.out}.png")


def numbers_of(rows, replicates):
    """Rows of outcomes -> {name: number with its interval}."""
    columns = {name: np.array([row[name] for row in rows], float) for name in NAMES}

    def means_at(some=slice(None)):
        return {name: float(column[some].mean()) for name, column in columns.items()}
    return scoring.with_bootstrap(means_at, len(rows), replicates)


def examples(cfg, changes, pictures):
    """Of each kind the first changes: film, edited, the truth, drawn anew -> PIL image."""
    chosen = []
    for kind in KINDS:
        chosen += [i for i, change in enumerate(changes) if change.kind == kind][:cfg.show]
    rows = [[changes[i].film, pictures["edited"][i], changes[i].truth, pictures["drawn anew"][i]]
            for i in chosen]
    columns = ["the film", "one finding edited", "the truth, by formula", "drawn anew"]
    return sheet(np.array(rows), [changes[i].statement for i in chosen], columns)
