"""`python evaluate.py match`: which reports do not belong to their films, and is that found out?

    python evaluate.py match --data datasets/mine --split train --checkpoint out/mine-und
    python evaluate.py match                # how well it works, on phantoms

With --data every pair of a data set is judged (abilities/match.py). In --out are `suspicious.csv`,
all pairs from the most suspicious to the least, with the least likely words of each report, and a
sheet of the first ones. It shares the work out under torchrun, and goes on where it was.

Without, it is scored on held-out phantoms, whose facts are known. AUROC tells true pairs from

    shuffled    the report of the next phantom, if it has other facts
    changed     a report of the same phantom in which one fact is another

and, for single findings, phantoms that have them from those that have not: by the reader's
probability, with its calibration (ECE, ten bins), and by the drawing branch, as the difference of
its errors under the likeliest statement and the denial. Phantoms are toys, not radiographs; nothing
here is for clinical use.
"""
import csv
import io
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import sample
import weights
from abilities import match
from common import locks, processes, worklist
from common.cli import Text, override
from common.files import settings_hash, write_json, write_text
from common.images import captioned, save_png
from evaluation import edits, phantom, scoring, tables
from evaluation.features import PackedImages
from phantom.facts import FINDINGS, Fact, facts_to_report
from vision import preprocess
from weights.checkpoint import newest
from weights.int8 import MATRICES
from weights.knowledge import notice


@dataclass
class MatchConfig:
    checkpoint: str = phantom.DEMO  # the model that reads: checkpoint or run
    data: str = ""                  # root of packed data; reads <data>/und-<size>; "": phantoms
    split: str = "train"            # of --data: train, val or test
    out: str = "match_score"        # directory of the list; of phantoms, writes <out>.json and .png
    overwrite: bool = False         # begin anew although --out holds a run of other settings
    limit: int = 0                  # of --data, only the first so many pairs; 0: all
    show: int = 12                  # pairs in the sheet
    num: int = 500                  # held-out phantoms
    drawer_num: int = 100           # of these, how many the drawing branch judges; 0: none
    data_seed: int = 0              # seed of these phantoms, as of phantom.prepare
    bootstrap: int = 1000           # resamplings for the intervals; 0: none
    prompt: Text = sample.PROMPT    # what the reader is asked
    batch: int = 16                 # films at once
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    weights: Literal[*MATRICES] = "float"           # int8: large matrices as 8-bit integers
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        assert min(self.num, self.batch, self.show) > 0, \
            "--num, --batch and --show must be at least 1."
        assert min(self.limit, self.bootstrap, self.drawer_num) >= 0, \
            "--limit, --bootstrap and --drawer-num must be 0 or more."


def main(argv):
    cfg = override(MatchConfig(), argv, __doc__)
    if cfg.data:
        return judge(cfg)
    tables.begin(cfg.out, [".png"])
    with locks.take_files(cfg.out):
        examinee = phantom.load(cfg)
        if examinee.vae is not None and cfg.drawer_num:
            sample.latent_side(examinee.model, examinee.vae, examinee.size)
        return score(cfg, examinee)


# ---- a data set ----

def judge(cfg):
    """Judge every pair of a data set and write the list."""
    out = Path(cfg.out)
    process = processes.setup(cfg.device, cfg.threads)
    processes.on_first(process, partial(locks.refuse_taken, out))
    cfg = replace(cfg, dtype=worklist.number_format(out, cfg, process))
    model, _, tokenizer = weights.load(cfg.checkpoint, dtype=processes.torch_dtype(cfg.dtype),
                                       device=process.device, matrices=cfg.weights)
    vision = model.cfg.vision
    images = PackedImages(Path(cfg.data) / f"und-{vision.image_size}", cfg.split)
    ids = images.ids[:cfg.limit] if cfg.limit else images.ids
    for id in ids:
        sample.check_report(f"the report of {id}", images.rows[id]["report"], model, tokenizer)
    skipped = ("out", "overwrite", "show", "limit", "num", "drawer_num", "data_seed", "bootstrap",
               "device", "threads")
    settings = {name: value for name, value in asdict(cfg).items() if name not in skipped}
    settings |= {"checkpoint": str(newest(cfg.checkpoint)), "pairs": len(ids),
                 "reports": settings_hash([(id, images.rows[id]["report"]) for id in ids])}
    worklist.claim({out: settings}, cfg.overwrite, process)

    def work(block):
        films = [preprocess(images.read(id), vision.image_size, vision.pad) for id in block]
        reports = [images.rows[id]["report"] for id in block]
        found = match.compare(model, tokenizer, torch.stack(films), reports, cfg.prompt, cfg.batch)
        return [{"id": id, **asdict(pair)} for id, pair in zip(block, found)]

    pairs = worklist.run(out / "reports.jsonl", worklist.chunks(ids, cfg.batch), work, process,
                         "comparing")
    if process.master:
        write_list(cfg, out, images, pairs, notice(model))
    return 0


def write_list(cfg, out, images, pairs, warning):
    """suspicious.csv, the most suspicious pair first, and a sheet of the first ones."""
    ranked = sorted(pairs.values(), key=lambda pair: pair["score"])
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["rank", "id", "score", "log_p", "gain", "least_likely_words", "report",
                     "what_the_model_writes"])
    for rank, pair in enumerate(ranked, 1):
        numbers = [f"{pair[name]:.4f}" for name in ("score", "log_p", "gain")]
        writer.writerow([rank, pair["id"], *numbers, in_words(pair),
                         images.rows[pair["id"]]["report"], pair["own"]])
    write_text(out / "suspicious.csv", text.getvalue())

    first = ranked[:cfg.show]
    captions = [f"{n}. {pair['id']}: {images.rows[pair['id']]['report']}\nleast likely: "
                f"{in_words(pair)}\nthe model writes: {pair['own']}"
                for n, pair in enumerate(first, 1)]
    sheet = captioned([np.array(images.read(pair["id"])) for pair in first], captions)
    save_png(sheet, out / "suspicious.png", notice=warning)
    print(f"{len(ranked)} pairs in {out}/suspicious.csv, the most suspicious first; "
          f"{out}/suspicious.png shows {len(first)}. {warning}")


def in_words(pair):
    return ", ".join(f"{word} ({log_p:.1f})" for word, log_p in pair["least"])


# ---- phantoms ----

# fields of a Match -> how the table calls them
JUDGES = {"score": "over the model's own report", "log_p": "likelihood a token",
          "gain": "over no film"}


def score(cfg, examinee):
    """Every score: tables on standard output, <out>.json and <out>.png."""
    phantoms = phantom.held_out_phantoms(cfg, examinee.size, range(cfg.num))
    films = np.stack(phantoms.pictures)
    parameters = examinee.model, examinee.tokenizer
    wrong = wrong_reports(cfg, phantoms)
    found = {}
    for name, reports in {"true": phantoms.reports, **wrong}.items():
        found[name] = []
        for block in tqdm(worklist.chunks(range(cfg.num), cfg.batch), desc=f"{name} pairs",
                          unit="batch", leave=False):
            rows = slice(block[0], block[-1] + 1)
            found[name] += match.compare(*parameters, films[rows], reports[rows], cfg.prompt)
    texts = [pair.own for pair in found["true"]]
    pairs = {"pairs": pair_scores(cfg, phantoms, found)}
    findings = finding_scores(cfg, examinee, phantoms, films, texts)

    write_json(f"{cfg.out}.json", {
        "scores": {**pairs, "findings": {name: row for name, (row, _) in findings.items()}},
        "settings": tables.public_settings(cfg), "notice": notice(examinee.model)})
    print_scores(cfg, pairs["pairs"], findings)
    for sentence in tables.plots_left_out():
        print(sentence)
    if not tables.plots_left_out():
        tables.save_figure(reliability(findings), f"{cfg.out}.png")
    print(f"details in {cfg.out}.json")


def wrong_reports(cfg, phantoms):
    """{kind: a report for each phantom that is not its own}."""
    changed = []
    for number, facts in enumerate(phantoms.facts):
        rng = np.random.default_rng([cfg.data_seed, number, 1])
        facts = frozenset(Fact(*fact) for fact in facts)
        possible = [pair for pairs in edits.possible_changes(facts).values() for pair in pairs]
        after = edits.changed(facts, *possible[rng.integers(len(possible))])
        changed.append(facts_to_report(after, rng))
    return {"shuffled": [*phantoms.reports[1:], phantoms.reports[0]], "changed": changed}


def pair_scores(cfg, phantoms, found):
    """AUROC of true pairs against each wrong kind, and how often the true one of two is preferred.
    """
    # the next phantom may have the same facts: then its report is no wrong one
    others = [*phantoms.facts[1:], phantoms.facts[0]]
    wrong = np.array([a != b for a, b in zip(phantoms.facts, others)])
    use = {"shuffled": wrong, "changed": np.ones(cfg.num, dtype=bool)}
    scores = {}
    for kind, rows in use.items():
        for field, words in JUDGES.items():
            true, false = (np.array([getattr(pair, field) for pair in found[name]])
                           for name in ("true", kind))

            def scores_at(draw=np.arange(cfg.num), true=true, false=false, rows=rows):
                few = draw[rows[draw]]
                # a draw of few phantoms may have no wrong report
                preferred = float((true[few] > false[few]).mean()) if len(few) else None
                return {"auroc": auroc(true[draw], false[few]), "preferred": preferred}
            scores[f"{kind}, {words}"] = scoring.with_bootstrap(scores_at, cfg.num, cfg.bootstrap)
    return scores


def finding_scores(cfg, examinee, phantoms, films, texts):
    """{finding: (numbers, probabilities and whether it is there)}, by reading and by drawing."""
    results = {}
    judged = min(cfg.drawer_num, cfg.num)
    for finding in tqdm(FINDINGS, desc="findings", leave=False):
        there = np.array([any(fact[0] == finding for fact in facts) for facts in phantoms.facts])
        p = np.concatenate([
            match.chances(examinee.model, examinee.tokenizer, films[block], texts[block], finding)
            for block in (slice(start, start + cfg.batch)
                          for start in range(0, cfg.num, cfg.batch))])
        row = {"phantoms": int(there.sum()), "auroc": auroc(p[there], p[~there]),
               "ece": calibration_error(p, there)}
        if examinee.vae is not None and judged:
            gaps = np.array([drawer_says(examinee, film, text, finding)
                             for film, text in zip(films[:judged], texts[:judged])])
            row["auroc_drawing"] = auroc(gaps[there[:judged]], gaps[~there[:judged]])
        results[finding] = (row, (p, there))
    return results


def drawer_says(examinee, film, text, finding):
    """Error of the drawing branch under the denial minus that under the best statement."""
    stating, denying = match.rivals(text, finding)
    reports = [*stating, denying]
    errors = match.flow_errors(examinee.model, examinee.vae, examinee.tokenizer,
                               [film] * len(reports), reports, batch=len(reports))
    return errors[-1] - errors[:-1].min()


def auroc(positives, negatives):
    """How often a positive is above a negative, ties counting half: area under the ROC curve; None
    without one of both.
    """
    if not len(positives) or not len(negatives):
        return None
    negatives = np.sort(negatives)
    below = np.searchsorted(negatives, positives, "left")
    not_above = np.searchsorted(negatives, positives, "right")
    return float((below + not_above).mean() / 2 / len(negatives))


def calibration_error(p, there, bins=10):
    """Expected calibration error: mean |probability - frequency| over bins of equal width, weighted
    by how many are in them (Guo et al. 2017, arXiv 1706.04599).
    """
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    error = 0.0
    for n in range(bins):
        rows = bin_of == n
        if rows.any():
            error += rows.mean() * abs(p[rows].mean() - there[rows].mean())
    return float(error)


def print_scores(cfg, pairs, findings):
    """The scores on standard output, for people."""
    print(tables.table(["true pairs against", "AUROC", "true one preferred"], [
        [name, tables.shown(row["auroc"]), tables.shown(row["preferred"])]
        for name, row in pairs.items()]), end="\n\n")
    rows = []
    for name, (row, _) in findings.items():
        numbers = [row["auroc"], row["ece"], row.get("auroc_drawing")]
        rows.append([name, row["phantoms"], *("–" if x is None else f"{x:.3f}" for x in numbers)])
    print(tables.table(["finding", f"of {cfg.num}", "AUROC, reading", "ECE", "AUROC, drawing"],
                       rows))


def reliability(findings, bins=10):
    """How often a finding is there against its probability, all findings together -> figure."""
    p = np.concatenate([p for _, (p, _) in findings.values()])
    there = np.concatenate([there for _, (_, there) in findings.values()])
    bin_of = np.minimum((p * bins).astype(int), bins - 1)
    used = [n for n in range(bins) if (bin_of == n).any()]
    figure = tables.new_figure((5, 4))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1)
    axes.plot([p[bin_of == n].mean() for n in used], [there[bin_of == n].mean() for n in used],
              marker="o")
    for n in used:
        axes.annotate(str((bin_of == n).sum()), (p[bin_of == n].mean(), there[bin_of == n].mean()),
                      textcoords="offset points", xytext=(6, -10), fontsize=8)
    axes.set_xlabel("probability of a finding, by the reader")
    axes.set_ylabel("share of phantoms that have it")
    axes.set_title("phantoms; numbers: how many judgements")
    return figure
