"""`python evaluate.py explain`: does the heat of a statement lie on what it is about?

Phantoms are toys, not radiographs; nothing here is for clinical use. Every finding with a place of
a held-out phantom is a case: where it is, is where the phantom with it and the one without differ,
drawn by formula with the same body (`phantom.prepare.with_facts`). Of every kind of map of
`abilities/explain.py` are measured

    hit         the pointing game (Zhang et al. 2016, arXiv 1608.00507): how often the maximum of
                the map lies on the finding, without any tolerance
    inside      the share of the map's sum that lies on it

beside chance, which is the share of the picture that the finding covers. The best single head of
attention is chosen on validation phantoms. `--choose` chooses the times of the velocity maps there,
too: most hits, then most heat inside, then fewest velocities.

Writes <out>.json and two pictures.
"""
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

import sample
from abilities import explain
from abilities.wording import sentences
from common import locks, processes
from common.cli import InputError, override
from common.files import write_json
from common.images import captioned, save_png
from evaluation import phantom, scoring, tables
from phantom.facts import Fact, report_to_facts
from phantom.prepare import Settings, make, with_facts
from vision import preprocess
from weights.int8 import MATRICES
from weights.knowledge import notice

# how maps are made -> what the table calls them; the first is what `--explain` shows
KINDS = {
    "heat": "velocities, decoded",
    "grid": "velocities, on the latent grid",
    "head": "attention, best head",
    "attention": "attention, mean of all heads",
    "gradient": "gradient of the likelihood",
}


@dataclass
class ExplainScoreConfig(explain.Explaining):
    checkpoint: str = phantom.DEMO  # model to score: checkpoint or run
    out: str = "explain_score"      # writes <out>.json, <out>.png and <out>-examples.png
    num: int = 300                  # held-out phantoms
    validation: int = 60            # validation phantoms, on which is chosen
    choose: bool = False            # choose the times on validation phantoms, and nothing else
    data_seed: int = 0              # seed of these phantoms, as of phantom.prepare
    bootstrap: int = 1000           # resamplings for the intervals; 0: none
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    weights: Literal[*MATRICES] = "float"           # int8: large matrices as 8-bit integers
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        super().__post_init__()
        assert min(self.num, self.validation) > 0, "--num and --validation must be at least 1."
        assert self.bootstrap >= 0, "--bootstrap must be 0 or more."


def main(argv):
    cfg = override(ExplainScoreConfig(), argv, __doc__)
    tables.begin(cfg.out, [".png", "-examples.png"])
    with locks.take_files(cfg.out):
        examinee = phantom.load(cfg)
        sample.latent_side(examinee.model, examinee.vae, examinee.size)
        return choose(cfg, examinee) if cfg.choose else score(cfg, examinee)


# ---- cases ----

@dataclass
class Case:
    """A finding of a phantom, and where it is."""
    film: np.ndarray                # uint8 (S, S)
    report: str
    statement: str                  # the sentence of the report that is about it
    finding: str
    place: np.ndarray               # (S, S) bool


def cases_of(cfg, size, split, num):
    """The findings with a place of the first phantoms of a split, each with a sentence alone."""
    settings = Settings(seed=cfg.data_seed, size=size)
    cases = []
    for number in range(num):
        row, film = make(settings, split, number)
        facts = frozenset(Fact(*triple) for triple in row["labels"])
        for fact in sorted(facts):
            about = [said for said in sentences(row["report"]) if fact in report_to_facts(said)]
            # "Bilateral effusions" are two findings in one sentence, which has one map
            if not fact.place or len(about) != 1 or len(report_to_facts(about[0])) > 1:
                continue
            other = with_facts(settings, split, number, facts - {fact})
            place = np.abs(other.astype(int) - film) > 1
            cases.append(Case(film, row["report"], about[0], fact.finding, place))
    if not cases:
        option = "--validation" if split == "val" else "--num"
        raise InputError(f"the first {num} phantoms have no finding with a place; take more of "
                         f"them, {option}.")
    return cases


# ---- maps ----

def velocity_maps(cfg, examinee, cases, grid=False):
    """The maps of abilities.explain of all cases, at the size of the films -> [(S, S)]."""
    maps = []
    for start in tqdm(range(0, len(cases), cfg.batch), desc="velocities", unit="batch",
                      leave=False):
        some = cases[start:start + cfg.batch]
        columns = zip(*((case.film, case.report, case.statement) for case in some))
        films, reports, said = map(list, columns)
        found = explain.heat_maps(examinee.model, examinee.vae, examinee.tokenizer, films, reports,
                                  said, cfg, grid)
        maps += [explain.enlarged(each, examinee.size) if grid else each for each in found]
    return maps


def reading_maps(examinee, cases):
    """-> attention (cases, layers, heads, n, n) of all cases, and gradients [(S, S)]."""
    model, tokenizer = examinee.model, examinee.tokenizer
    vision = model.cfg.vision
    attention, gradients = [], []
    for case in tqdm(cases, desc="attention and gradients", leave=False):
        small = preprocess(Image.fromarray(case.film), vision.image_size, vision.pad).numpy()
        arguments = (model, tokenizer, small, case.report, case.statement)
        attention.append(explain.attention_maps(*arguments))
        gradient = explain.gradient_map(*arguments)
        gradients.append(explain.enlarged(gradient, len(case.film)))
    return np.stack(attention), gradients


def best_head(cfg, examinee):
    """(layer, head) with the most hits on validation phantoms."""
    cases = cases_of(cfg, examinee.size, "val", cfg.validation)
    attention, _ = reading_maps(examinee, cases)
    _, layers, heads, _, _ = attention.shape
    hits = {(i, j): np.mean([hit(case, explain.enlarged(maps[i, j], len(case.film)))
                             for case, maps in zip(cases, attention)])
            for i in range(layers) for j in range(heads)}
    return max(hits, key=hits.get)


def hit(case, heat):
    """Whether the maximum of a map lies on the finding."""
    return bool(case.place[np.unravel_index(heat.argmax(), heat.shape)])


def inside(case, heat):
    """The share of a map that lies on the finding."""
    return float(heat[case.place].sum() / heat.sum())


# ---- the scores ----

def score(cfg, examinee):
    """Every score: a table on standard output, <out>.json and the pictures."""
    cases = cases_of(cfg, examinee.size, "test", cfg.num)
    layer, head = best_head(cfg, examinee)
    attention, gradients = reading_maps(examinee, cases)
    maps = {
        "heat": velocity_maps(cfg, examinee, cases),
        "grid": velocity_maps(cfg, examinee, cases, grid=True),
        "head": [explain.enlarged(each[layer, head], examinee.size) for each in attention],
        "attention": [explain.enlarged(each.mean((0, 1)), examinee.size) for each in attention],
        "gradient": gradients,
    }
    findings = np.array([case.finding for case in cases])
    scores = {}
    for kind, words in KINDS.items():
        scores[words] = scores_of(cfg, findings, {
            "hit": np.array([hit(case, heat) for case, heat in zip(cases, maps[kind])], float),
            "inside": np.array([inside(*pair) for pair in zip(cases, maps[kind])])})
    covered = np.array([case.place.mean() for case in cases])
    scores["chance"] = scores_of(cfg, findings, {"hit": covered, "inside": covered})

    about = notice(examinee.model)
    write_json(f"{cfg.out}.json", {
        "scores": scores, "cases": len(cases), "head": [layer, head],
        "settings": tables.public_settings(cfg), "notice": about})
    print_scores(cfg, findings, scores)
    save_png(examples(cases, maps), f"{cfg.out}-examples.png", notice=about)
    if not tables.plots_left_out():
        tables.save_figure(bars(scores), f"{cfg.out}.png")
    print(f"{len(cases)} findings of {cfg.num} phantoms; best head: layer {layer + 1}, head "
          f"{head + 1}; details in {cfg.out}.json")


def scores_of(cfg, findings, values):
    """{"hit": {"all" and each finding: number}, "inside": likewise}, with intervals."""
    result = {}
    for name, numbers in values.items():
        result[name] = {}
        for finding in ("all", *sorted(set(findings))):
            chosen = numbers if finding == "all" else numbers[findings == finding]

            def mean_at(rows=slice(None), chosen=chosen):
                return {"mean": float(chosen[rows].mean())}
            result[name][finding] = scoring.with_bootstrap(
                mean_at, len(chosen), cfg.bootstrap)["mean"]
    return result


def print_scores(cfg, findings, scores):
    """The scores on standard output, for people."""
    names = ["all", *sorted(set(findings))]
    for what, title in (("hit", "the maximum lies on the finding"),
                        ("inside", "share of the map on the finding")):
        rows = [[words, tables.shown(row[what]["all"]),
                 *(f"{row[what][name]['value']:.3f}" for name in names[1:])]
                for words, row in scores.items()]
        print(tables.table([title, *names], rows), end="\n\n")


def choose(cfg, examinee):
    """Print hits and share inside for one and two times, on validation phantoms."""
    cases = cases_of(cfg, examinee.size, "val", cfg.validation)
    times = (0.3, 0.5, 0.7, 0.9)
    rows = []
    for pair in [*((time, time) for time in times), *combinations(times, 2)]:
        # one time twice is that time alone, at the price of both
        point = replace(cfg, times=pair)
        maps = velocity_maps(point, examinee, cases)
        hits = np.mean([hit(*each) for each in zip(cases, maps)])
        share = np.mean([inside(*each) for each in zip(cases, maps)])
        rows.append([", ".join(f"{time:g}" for time in sorted(set(pair))), f"{hits:.3f}",
                     f"{share:.3f}"])
    print(tables.table(["times", "hit", "inside"], rows))
    print(f"{len(cases)} findings of {cfg.validation} validation phantoms, {cfg.noises} noises")


# ---- pictures ----

def examples(cases, maps):
    """A row a finding: the film, and each kind of map over it."""
    pictures, captions = [], []
    for finding in sorted({case.finding for case in cases}):
        n = next(n for n, case in enumerate(cases) if case.finding == finding)
        case = cases[n]
        pictures.append(explain.overlay(case.film, case.place.astype(float)))
        captions.append(f"{case.statement}\nwhere it is")
        for kind, words in KINDS.items():
            pictures.append(explain.overlay(case.film, maps[kind][n]))
            captions.append(words)
    return captioned(pictures, captions, columns=1 + len(KINDS), scale=1)


def bars(scores):
    """Hits of each kind of map, by finding -> figure."""
    names = list(next(iter(scores.values()))["hit"])
    figure = tables.new_figure((9, 3.5))
    axes = figure.subplots()
    width = 0.8 / len(scores)
    for k, (words, row) in enumerate(scores.items()):
        axes.bar(np.arange(len(names)) + k * width, [row["hit"][name]["value"] for name in names],
                 width, label=words)
    axes.set_xticks(np.arange(len(names)) + 0.4, names)
    axes.set_ylabel("maximum on the finding")
    axes.legend(fontsize=7, ncols=2)
    axes.set_ylim(0, 1.35)
    return figure
