"""`python evaluate.py phantom`: a phantom model on phantoms that it has never seen.

Phantoms are toys, not radiographs; nothing here is for clinical use. The facts of a phantom are
known, and `phantom.facts.report_to_facts` reads a report back into facts, exactly. So:

    report F1    image -> report: facts of the written report against the facts drawn
    cycle F1     report -> image -> report: facts read off the generated image against the report's
    VAE ceiling  real phantom -> VAE -> report: what reading loses when an image only went through
                 the autoencoder; a generated image cannot be expected to do better
    all normal   the score of a report without findings

F1 is over (finding, side or zone, degree) triples, exact match, "normal" statements not counted:
micro over all triples, macro as the mean over the findings that occur. FD to coverage are those of
evaluation/image_metrics.py over features of the checkpoint's own vision tower: of generated
phantoms, of real ones that went through the VAE, and of as many other real ones, which no model
can beat.

Writes <out>.json and <out>.png, drawn beside generated over the reports, with what the generated
image misses; with --sweep it writes <out>.json and the curves, <out>-sweep.png.
"""
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image

import sample
import weights
from common import locks, processes
from common.cli import override
from common.files import write_json
from common.images import captioned, save_png
from common.worklist import chunks
from evaluation import features, image_metrics, scoring, tables
from evaluation.settings import Sweep
from phantom.facts import FINDINGS, report_to_facts
from phantom.prepare import Settings, held_out
from weights.int8 import MATRICES
from weights.knowledge import notice


DEMO = str(Path(__file__).resolve().parents[1] / "demo")


@dataclass
class PhantomConfig(Sweep):
    checkpoint: str = DEMO          # model to score: checkpoint or run
    out: str = "phantom_score"      # writes <out>.json and <out>.png
    num: int = 500                  # held-out phantoms
    data_seed: int = 0              # seed of these phantoms, as of phantom.prepare
    size: int = 0                   # pixels of generated images; 0: as many as the reader takes
    show: int = 8                   # pairs in the picture
    bootstrap: int = 100            # resamplings for the intervals, tenfold for F1; 0: none
    batch: int = 32                 # images at once
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    weights: Literal[*MATRICES] = "float"       # int8: large matrices as 8-bit integers
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        super().__post_init__()
        assert min(self.num, self.show) > 0, "--num and --show must be at least 1."
        assert self.bootstrap >= 0, "--bootstrap must be 0 or more."
        assert not self.sweep or self.num >= scoring.LEAST, \
            f"--num must be {scoring.LEAST} or more for a sweep: neighbours are the fifth."


def main(argv):
    cfg = override(PhantomConfig(), argv, __doc__)
    tables.begin(cfg.out, [".png", "-sweep.png"])
    with locks.take_files(cfg.out):
        examinee = load(cfg)
        if cfg.sweep:
            return sweep(cfg, examinee)
        return score(cfg, examinee)


# ---- the phantoms and the model that is examined on them ----

@dataclass
class Phantoms:
    """Held-out phantoms; item i of each list is about phantom i."""
    pictures: list                  # uint8 (S, S)
    reports: list                   # texts
    facts: list                     # frozensets of (finding, side or zone, degree)


def held_out_phantoms(cfg, size, numbers):
    """The phantoms with these numbers of the test split, `size` pixels a side."""
    # phantoms are drawn by formula, so the test split is made here, not read from a disk
    settings = Settings(seed=cfg.data_seed, size=size)
    phantoms = Phantoms([], [], [])
    for number in numbers:
        row, picture = held_out(settings, number)
        phantoms.pictures.append(picture)
        phantoms.reports.append(row["report"])
        phantoms.facts.append(frozenset(tuple(triple) for triple in row["labels"]))
    return phantoms


@dataclass
class Examinee:
    """The model that is examined."""
    model: object                   # a UniX
    vae: object                     # its VAE, or None: a checkpoint of stage 1 only reads
    tokenizer: object
    encoder: object                 # its vision tower as the network of features
    size: int                       # pixels a side of what it reads
    batch: int                      # images at once

    def read(self, pictures, which):
        """Pictures of any size -> what the model reports on each. The bar says `which` they are."""
        pictures = np.stack(resized(pictures, self.size))
        return sample.generate_reports(self.model, self.tokenizer, pictures, batch=self.batch,
                                       title=f"reading {which} phantoms")

    def draw(self, reports, cfg):
        """One picture of each report, picture number i of report i: noise differs by phantom."""
        # draw what the reader takes, so that nothing is scaled in between
        if cfg.size == 0:
            cfg = replace(cfg, size=self.size)
        return sample.generate_images(self.model, self.vae, self.tokenizer, reports,
                                      sampling=cfg, numbers=range(len(reports)))[:, 0]

    @torch.inference_mode()
    def through_vae(self, pictures):
        """Encode pictures (posterior mean) and decode them again -> uint8 (N, S, S)."""
        parameter = next(self.vae.parameters())
        decoded = []
        for block in chunks(pictures, self.batch):
            pixels = torch.as_tensor(np.stack(block)).to(parameter.device)
            # the VAE takes three channels from -1 to 1; the posterior mean has no noise in it
            pixels = pixels[:, None].expand(-1, 3, -1, -1) / 127.5 - 1          # (B, 3, S, S)
            latents = self.vae.encode(pixels.to(parameter.dtype))
            decoded.append(self.vae.pictures(latents.to(parameter.dtype)).cpu())
        return torch.cat(decoded).numpy()

    def look(self, pictures):
        """Features (N, C) of pictures, as the model's vision tower sees them."""
        vectors = []
        for block in chunks(list(pictures), self.batch):
            prepared = [self.encoder.prepare(Image.fromarray(picture)) for picture in block]
            vectors.append(self.encoder(torch.stack(prepared)))
        return np.concatenate(vectors)


def load(cfg):
    """Load the checkpoint -> Examinee."""
    device = processes.setup(cfg.device, cfg.threads).device
    cfg.dtype = processes.number_format(cfg.dtype, device)      # <out>.json says which it was
    dtype = processes.torch_dtype(cfg.dtype)
    model, vae, tokenizer = weights.load(
        cfg.checkpoint, dtype=dtype, device=device, matrices=cfg.weights)
    return Examinee(model, vae, tokenizer, features.tower(model), model.cfg.vision.image_size,
                    cfg.batch)


def resized(pictures, size):
    """Pictures of any size -> the same with `size` pixels a side (bicubic)."""
    return [np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC))
            for picture in pictures]


# ---- every score of one model ----

def score(cfg, examinee):
    """Every score of one model: a table on standard output, <out>.json and <out>.png."""
    phantoms = held_out_phantoms(cfg, examinee.size, range(cfg.num))

    # image -> report
    written = examinee.read(phantoms.pictures, "real")
    scores = {
        "report": f1(cfg, phantoms, written),
        "all_normal": f1(cfg, phantoms, [""] * cfg.num),
    }

    # report -> image -> report, and the same after the autoencoder alone
    by_features = {}
    if examinee.vae is not None:
        drawn = examinee.draw(phantoms.reports, cfg)
        size = cfg.size if cfg.size else examinee.size
        decoded = examinee.through_vae(resized(phantoms.pictures, size))
        read_again = examinee.read(drawn, "generated")
        cycle = f1(cfg, phantoms, read_again)
        ceiling = f1(cfg, phantoms, examinee.read(decoded, "decoded"))
        # 1 would mean that drawing loses no more than the autoencoder alone does
        scores |= {"cycle": cycle, "vae_ceiling": ceiling,
                   "cycle_of_ceiling": cycle["micro"] / max(1e-9, ceiling["micro"])}
        if cfg.num >= 2 * scoring.LEAST:           # intervals take halves
            by_features = feature_scores(cfg, examinee, phantoms, drawn, decoded)
        sheet = contact_sheet(cfg, phantoms, resized(drawn, examinee.size), read_again)

    # the picture after the numbers, by which it is known as ours
    write_json(f"{cfg.out}.json", {
        "scores": scores, "images": by_features,
        "settings": tables.public_settings(cfg), "notice": notice(examinee.model)})
    if examinee.vae is not None:
        save_png(sheet, Path(f"{cfg.out}.png"), notice=notice(examinee.model),
                 settings=tables.public_settings(cfg))
    print_scores(cfg, phantoms, scores, by_features)


def f1(cfg, phantoms, texts):
    """Facts of texts against those of the phantoms -> {"micro", "macro", "exact", each finding}.

    With "intervals" beside them, unless --bootstrap is 0.
    """
    # the texts are labelled once; a draw of the bootstrap only counts other rows
    labels = scoring.PhantomLabels()
    scores_at = labels.scores(phantoms.facts, labels(texts))
    scores = scores_at()
    if cfg.bootstrap:
        scores["intervals"] = image_metrics.bootstrap(scores_at, len(texts), 10 * cfg.bootstrap)
    return scores


def feature_scores(cfg, examinee, phantoms, drawn, decoded):
    """FD to coverage of generated, decoded and other real phantoms against the real ones."""
    # the next numbers of the same split: what two sets of real phantoms are apart
    others = held_out_phantoms(cfg, examinee.size, range(cfg.num, 2 * cfg.num))
    real = examinee.look(phantoms.pictures)

    def against_real(pictures, paired):
        vectors = examinee.look(pictures)
        return scoring.images(real, vectors, replicates=cfg.bootstrap, paired=paired)["1"]

    return {
        "generated": against_real(drawn, paired=True),
        "vae_ceiling": against_real(decoded, paired=True),
        "other_real": against_real(others.pictures, paired=False),
    }


def contact_sheet(cfg, phantoms, drawn, read_again):
    """The phantoms with the most findings, each beside the image generated from its report."""
    # the phantoms with most to see are the ones to look at
    order = sorted(range(cfg.num), key=lambda i: len(phantoms.facts[i]), reverse=True)
    pictures, captions = [], []
    for i in order[:cfg.show]:
        pictures += [phantoms.pictures[i], drawn[i]]
        captions += [f"drawn by formula: {phantoms.reports[i]}",
                     f"generated from it, then read: {read_again[i]}"
                     + mistakes(phantoms.facts[i], report_to_facts(read_again[i]))]
    return captioned(pictures, captions, columns=4)


def mistakes(wanted, given):
    """What sets of facts do not agree on, in lines of a caption; "" if they are the same."""
    lines = ""
    for word, facts in (("MISSED", wanted - given), ("ADDED", given - wanted)):
        if facts:
            names = sorted(" ".join(f"{degree} {place} {finding}".split())
                           for finding, place, degree in facts)
            lines += f"\n{word}: {', '.join(names)}"
    return lines


# of the table on standard output
ROWS = {
    "report": "report: reading real phantoms",
    "cycle": "cycle: reading generated ones",
    "vae_ceiling": "ceiling: reading decoded ones",
    "all_normal": "all normal: a report of nothing",
}


def print_scores(cfg, phantoms, scores, by_features):
    """The scores on standard output, for people."""
    print(f"{'':31} {'micro-F1':>9} {'macro-F1':>9} {'exact':>7}   ({cfg.num} held-out phantoms)")
    for name, words in ROWS.items():
        if name in scores:
            row = scores[name]
            print(f"{words:31} {row['micro']:9.3f} {row['macro']:9.3f} {row['exact']:7.3f}")
    there = {finding for facts in phantoms.facts for finding, _, _ in facts}
    missing = [finding for finding in FINDINGS if finding not in there]
    if missing:
        print(f"macro-F1 is over the findings that occur; these phantoms show no "
              f"{', no '.join(missing)}")
    if "cycle_of_ceiling" in scores:
        print(f"cycle / ceiling {scores['cycle_of_ceiling']:.3f}; pictures in {cfg.out}.png")
    if by_features:
        # the features are those of the examined model itself, so compare within this table only
        names = image_metrics.NAMES
        rows = [[name, *(tables.shown(numbers[key]) for key in names)]
                for name, numbers in by_features.items()]
        print(tables.table(["features: vision tower", *names], rows))
    print(f"details in {cfg.out}.json")


# ---- a grid of sampling settings ----

def sweep(cfg, examinee):
    """Cycle F1 and FD at every point of --sweep, over the same phantoms with the same noise."""
    # a checkpoint that cannot draw should hear so before the phantoms are read
    sample.latent_side(examinee.model, examinee.vae, cfg.size if cfg.size else examinee.size)
    phantoms = held_out_phantoms(cfg, examinee.size, range(cfg.num))
    real = examinee.look(phantoms.pictures)
    rows = []
    for point in cfg.points():
        drawn = examinee.draw(phantoms.reports, point)
        # the noise depends on the phantom alone, so points differ by their settings only
        cycle, _ = scoring.label_f1(scoring.PhantomLabels(), examinee.read(drawn, "generated"),
                                    phantoms.reports, 10 * cfg.bootstrap)
        fd = scoring.images(real, examinee.look(drawn), replicates=cfg.bootstrap)["1"]["fd"]
        rows.append({"steps": point.steps, "cfg": point.cfg, "cycle_F1": cycle["micro"], "fd": fd})
        print(f"{point.steps} steps, guidance {point.cfg:g}: "
              f"cycle F1 {tables.shown(cycle['micro'])}, FD {tables.shown(fd)}")

    write_json(f"{cfg.out}.json", {
        "sweep": rows, "settings": tables.public_settings(cfg), "notice": notice(examinee.model)})
    # the numbers are written in any case; the curves need matplotlib
    for sentence in tables.plots_left_out():
        print(sentence)
    if not tables.plots_left_out():
        tables.save_figure(tables.curves(rows), f"{cfg.out}-sweep.png")
    print(f"details in {cfg.out}.json")
