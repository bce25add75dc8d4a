"""`python evaluate.py severity`: does a drawn finding grow with the word for its size?

Phantoms are toys, not radiographs; nothing here is for clinical use. Reports that differ in a word
are drawn from the same noise (`sample.py --grid` shows such a sheet), from many noises:

    effusion        No, Small, Moderate, Large, on either side
    cardiomegaly    No, Mild, Severe
    opacity, nodule     upper, mid, lower, on either side

and each picture is measured in two ways. The model reads it: which size, side and zone it finds.
And it is compared with the picture of the same noise whose report denies the finding: the pixels
that differ by more than `--least` grey values are the finding's area. They have a mean height and a
side, too. The scores are

    none as asked   share of pictures of the denial in which the model reads no such finding
    read as asked   share of pictures of which it reads that size, side and zone, and no other
    read, rank      Spearman's correlation of the size read with the size asked
    area, rank      the same of the area, within each noise (the mean over noises)
    area in order   share of noises whose area grows with every step of the word
    same side       share of the area that lies on the side that was asked for
    zones in order  share of noises whose areas lie in the order upper, mid, lower

The same of phantoms drawn by formula, same body, says what is possible. The reports have one
sentence each; --rest gives them others, in which the sentence takes the place of what they say
about its finding. Writes <out>.json.
"""
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import sample
from abilities.wording import with_statement
from common import locks, processes
from common.cli import Text, override
from common.files import write_json
from common.worklist import chunks
from evaluation import phantom, scoring, tables
from phantom.facts import SIDES, ZONES, Fact, report_to_facts
from phantom.prepare import Settings, with_facts
from weights.int8 import MATRICES
from weights.knowledge import notice

SIZES = {"effusion": ("small", "moderate", "large"), "cardiomegaly": ("mild", "severe")}
NONE = {"effusion": "No pleural effusion.", "cardiomegaly": "The heart is normal in size.",
        "opacity": "No consolidation.", "nodule": "No nodule."}
SAYS = {"effusion": "{degree} {side} pleural effusion.", "cardiomegaly": "{degree} cardiomegaly.",
        "opacity": "Opacity in the {side} {zone} zone.",
        "nodule": "Nodule in the {side} {zone} zone."}


@dataclass
class SeverityConfig(sample.Sampling):
    checkpoint: str = phantom.DEMO  # model to score: checkpoint or run
    out: str = "severity_score"     # writes <out>.json
    rest: Text = ""                 # what every report says besides, as "No edema. No catheter."
    size: int = 0                   # pixels of the pictures; 0: as many as the reader takes
    num: int = 50                   # noises, and phantoms drawn by formula
    data_seed: int = 0              # seed of these phantoms, as of phantom.prepare
    least: int = 12                 # grey values by which a pixel of the finding differs, or more
    bootstrap: int = 1000           # resamplings for the intervals, over noises; 0: none
    batch: int = 32                 # pictures at once
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    weights: Literal[*MATRICES] = "float"           # int8: large matrices as 8-bit integers
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        super().__post_init__()
        assert self.num > 0, "--num must be at least 1."
        assert self.bootstrap >= 0, "--bootstrap must be 0 or more."
        assert 0 < self.least < 255, "--least must be 1 to 254 grey values."


def main(argv):
    cfg = override(SeverityConfig(), argv, __doc__)
    tables.begin(cfg.out, [])
    with locks.take_files(cfg.out):
        examinee = phantom.load(cfg)
        if cfg.size == 0:
            cfg = replace(cfg, size=examinee.size)
        sample.latent_side(examinee.model, examinee.vae, cfg.size)
        return score(cfg, examinee)


# ---- what is asked for ----

def series():
    """Everything that is compared -> {(finding, side): [a Fact for each step of the word]}."""
    asked = {}
    for side in SIDES:
        asked["effusion", side] = [Fact("effusion", side, size) for size in SIZES["effusion"]]
        for finding in ("opacity", "nodule"):
            asked[finding, side] = [Fact(finding, f"{side} {zone}") for zone in ZONES]
    asked["cardiomegaly", ""] = [Fact("cardiomegaly", "", size) for size in SIZES["cardiomegaly"]]
    return asked


def reports(rest=""):
    """What is drawn -> {Fact, or the name of a finding that is denied: report}.

    rest: what every report says besides; the statement takes its place in it.
    """
    texts = dict(NONE)
    for fact in (fact for facts in series().values() for fact in facts):
        text = SAYS[fact.finding].format(side=fact.side, zone=fact.zone, degree=fact.degree)
        texts[fact] = text[0].upper() + text[1:]
    return {asked: with_statement(rest, text) for asked, text in texts.items()}


def drawn(cfg, examinee):
    """{Fact or finding: uint8 (num, S, S)}: each report drawn from the noises 0 to num - 1."""
    texts = reports(cfg.rest)
    for text in texts.values():
        sample.check_report(f'"{text}"', text, examinee.model, examinee.tokenizer)
    pictures = {asked: [] for asked in texts}
    pairs = [(asked, k) for asked in texts for k in range(cfg.num)]
    for block in tqdm(chunks(pairs, cfg.batch), desc="drawing", unit="batch"):
        images = sample.generate_images(
            examinee.model, examinee.vae, examinee.tokenizer, [texts[asked] for asked, _ in block],
            cfg, numbers=[k for _, k in block], progress=False)[:, 0]
        for (asked, _), image in zip(block, images):
            pictures[asked].append(image)
    return {asked: np.stack(images) for asked, images in pictures.items()}


def by_formula(cfg):
    """The same of phantoms, bodies 0 to num - 1 of the test split."""
    settings = Settings(seed=cfg.data_seed, size=cfg.size)

    def bodies(facts):
        return np.stack([with_facts(settings, "test", k, facts) for k in range(cfg.num)])
    without = bodies(frozenset())
    return {asked: bodies(frozenset({asked})) if isinstance(asked, Fact) else without
            for asked in reports()}


# ---- what is measured ----

@dataclass
class Measured:
    """One series of pictures, measured; N noises, W steps of the word."""
    none: np.ndarray                # (N,): whether it reads no such finding where that is asked
    read: np.ndarray                # (N, W): the step that the model reads; 0 for none, from 1 on
    asked: np.ndarray               # (W,): 1 to W
    right: np.ndarray               # (N, W): whether it reads this fact
    area: np.ndarray                # (N, W): pixels that differ from the picture without
    height: np.ndarray              # (N, W): their mean row, in shares of the picture
    same_side: np.ndarray           # (N, W): the share of them on the side asked for


def measure(cfg, examinee, pictures):
    """{Fact or finding: pictures} -> {(finding, side): Measured}."""
    measured, none = {}, {}
    for finding in NONE:
        texts = examinee.read(pictures[finding], f"no {finding}")
        none[finding] = np.array([all(fact.finding != finding for fact in report_to_facts(text))
                                  for text in texts])
    for (finding, side), facts in series().items():
        without = pictures[finding].astype(int)
        columns = [measure_step(cfg, examinee, facts, fact, pictures[fact], without)
                   for fact in facts]
        read, right, area, height, same_side = (np.stack(rows, axis=1) for rows in zip(*columns))
        measured[finding, side] = Measured(
            none[finding], read, np.arange(1, len(facts) + 1), right, area, height, same_side)
    return measured


def measure_step(cfg, examinee, facts, fact, images, without):
    """Pictures (N, S, S) of one step of a series -> its columns of `Measured`, (N,) each."""
    N, S, _ = images.shape
    texts = examinee.read(images, f"{fact.degree} {fact.place} {fact.finding}".strip())
    found = [report_to_facts(text) for text in texts]
    steps = [[n for n, step in enumerate(facts, 1) if step in given] for given in found]
    read = np.array([max(given, default=0) for given in steps])
    right = np.array([given & set(facts) == {fact} for given in found])

    # where a picture differs; the patient's left is on the right of the picture
    differs = np.abs(images.astype(int) - without) > cfg.least
    area = differs.sum((1, 2))
    rows = differs.sum(2) @ np.arange(S) / np.maximum(area, 1) / S
    half = differs[:, :, S // 2:] if fact.side == "left" else differs[:, :, :S // 2]
    return read, right, area, rows, half.sum((1, 2)) / np.maximum(area, 1)


def scores_of(finding, series, replicates):
    """Measured of each side -> {name: number}, with intervals over noises."""
    def scores_at(some=slice(None)):
        values = {"none as asked": mean([one.none[some] for one in series]),
                  "read as asked": mean([one.right[some] for one in series])}
        if finding in SIZES:
            values["read, rank"] = spearman(
                np.concatenate([one.read[some].ravel() for one in series]),
                np.concatenate([np.broadcast_to(one.asked, one.read[some].shape).ravel()
                                for one in series]))
            values["area, rank"] = mean([spearman(row, one.asked)
                                         for one in series for row in one.area[some]])
            values["area in order"] = mean([np.diff(one.area[some]).min(1) > 0 for one in series])
            for n, size in enumerate(SIZES[finding]):
                values[f"pixels, {size}"] = mean([one.area[some][:, n] for one in series])
        else:
            values["zones in order"] = mean([np.diff(one.height[some]).min(1) > 0
                                             for one in series])
        if finding != "cardiomegaly":
            values["same side"] = mean([one.same_side[some] for one in series])
        return values
    return scoring.with_bootstrap(scores_at, len(series[0].read), replicates)


def mean(arrays):
    """The mean of the means of arrays of one size."""
    return float(np.mean([np.mean(array) for array in arrays]))


def spearman(a, b):
    """Spearman's rank correlation of two vectors: of their ranks, equal values sharing one."""
    a, b = ranks(a), ranks(b)
    spread = a.std() * b.std()
    if spread == 0:                     # one of them is the same everywhere
        return 0.0
    return float(((a - a.mean()) * (b - b.mean())).mean() / spread)


def ranks(values):
    """Ranks of a vector, from 0; equal values have the mean of theirs."""
    values = np.asarray(values)
    below = (values[None] < values[:, None]).sum(1)
    equal = (values[None] == values[:, None]).sum(1)
    return below + (equal - 1) / 2


# ---- the table ----

def score(cfg, examinee):
    """Every score: a table on standard output, and <out>.json."""
    scores = {}
    for name, pictures in (("drawn by the model", drawn(cfg, examinee)),
                           ("drawn by formula", by_formula(cfg))):
        measured = measure(cfg, examinee, pictures)
        for finding in NONE:
            series = [one for (other, _), one in measured.items() if other == finding]
            scores[f"{finding}, {name}"] = scores_of(finding, series, cfg.bootstrap)
    write_json(f"{cfg.out}.json", {
        "scores": scores, "settings": tables.public_settings(cfg),
        "notice": notice(examinee.model)})
    for finding in NONE:
        rows = {name: numbers for name, numbers in scores.items() if name.startswith(finding)}
        names = list(next(iter(rows.values())))
        digits = [0 if key.startswith("pixels") else 3 for key in names]
        cells = [[name, *map(tables.shown, numbers.values(), digits)]
                 for name, numbers in rows.items()]
        print(tables.table(["", *names], cells), end="\n\n")
    print(f"{cfg.num} noises; areas in pixels of {cfg.size ** 2}; details in {cfg.out}.json")
