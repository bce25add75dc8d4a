"""Two finished runs of `evaluate.py und`, or of `gen`, beside each other, with p values.

    python evaluate.py compare out/score-a out/score-b          # evaluation/compare.py

Their directories hold what was written and drawn for each item, so nothing is read or drawn again.
The references come from the data set that both runs name. docs/evaluation.md says what p means.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import worklist
from common.cli import InputError, report_failures
from common.files import read_json
from evaluation import features, paired, radgraph_biovil, scoring, tables
from evaluation.drawing import prompts_of
from evaluation.text_metrics import alignment_mean


@dataclass
class Run:
    """What a finished run has left in its directory."""
    path: Path
    settings: dict                  # what it was begun with
    outputs: dict                   # {id: report} of `und`, {id: name of the image} of `gen`
    failures: dict                  # {id: why there is none}

    @property
    def draws(self):
        """Whether it is a run of `gen`."""
        return "solver" in self.settings


def is_run(path):
    """Whether this is a directory of `und` or `gen`."""
    settings = Path(path) / "settings.json"
    if not settings.exists():
        return False
    content = read_json(settings)
    # a data set has a settings.json too
    return isinstance(content, dict) and "checkpoint" in content


def load(path):
    """A directory -> Run. InputError if the run was not finished."""
    path = Path(path)
    settings = read_json(path / "settings.json")
    list_of_outputs, key = ("images", "file") if "solver" in settings else ("reports", "report")
    rows = worklist.read_rows(path / f"{list_of_outputs}.jsonl")
    # the result is written last
    if not rows or not (path / "result.json").exists():
        raise InputError(f"{path} was begun and not finished; give its command again, it goes on "
                         "where it was.")
    return Run(path, settings, *worklist.split(rows, key))


def compare(cfg, process):
    """Two runs of the same command over the same items -> exit code. cfg: a CompareConfig."""
    a, b = load(cfg.real), load(cfg.generated)
    refuse_other_items(a, b)
    failures = a.failures | b.failures
    part = compare_drawing if a.draws else compare_reading
    scores, left_out, failed = part(cfg, process, a, b)
    failures |= failed
    print(tables.write(
        Path(cfg.out), f"A: {a.path}, B: {b.path}", scores, vars(cfg), left_out, failures))
    return report_failures(tables.named(failures), results=1)


def refuse_other_items(a, b):
    """InputError unless both runs are of one command over the same items."""
    if a.draws != b.draws:
        raise InputError(f"{a.path} and {b.path} are of two commands: one reads images, the other "
                         "draws reports.")
    # the captions of `gen` are known by their hash, wherever the data set lies
    for name in ("captions", "split") if a.draws else ("data", "split"):
        if a.settings[name] != b.settings[name]:
            raise InputError(f"{a.path} and {b.path} are not about the same items ({name}: "
                             f"{a.settings[name]}, {b.settings[name]}).")
    ours = {*a.outputs, *a.failures}
    theirs = {*b.outputs, *b.failures}
    if ours != theirs:
        raise InputError(f"{a.path} is over {len(ours)} items and {b.path} over {len(theirs)}, not "
                         "the same; run both with one --limit.")
    if not a.outputs.keys() & b.outputs.keys():
        raise InputError(f"{a.path} and {b.path} have no item that went well in both.")


# ---- und ----

def compare_reading(cfg, process, a, b):
    """-> (scores, what is left out, failures) of two runs of `und`."""
    images = features.open_images(a.settings["data"])
    ids = [name for name in a.outputs if name in b.outputs]
    references = [images.rows[name]["report"] for name in ids]
    labeller, left_out = labeller_for(cfg, process, images)
    scores, missing = paired.reports(
        [a.outputs[name] for name in ids], [b.outputs[name] for name in ids], references,
        labeller, 10 * cfg.bootstrap, 10 * cfg.swaps, cfg.python)
    return {"paired reports": scores}, left_out + missing, {}


def labeller_for(cfg, process, images):
    """The labeller of this data set's reports -> (labeller or None, [what is left out])."""
    # one radiograph among phantoms is enough to need CheXbert
    phantom = all(row["source"] == "phantom" for row in images.rows.values())
    return scoring.load_labeller(cfg.chexbert, cfg.cut, process.device, phantom)


# ---- gen ----

def compare_drawing(cfg, process, a, b):
    """-> (scores, what is left out, failures) of two runs of `gen`."""
    data = Path(a.settings["data"]) / f"gen-{a.settings['size']}"
    images = features.PackedImages(data, a.settings["split"])
    prompts = prompts_of(images)
    scores, failures = {}, {}

    # FD to coverage
    left_out = other_features(a, b)
    if not left_out:
        scores, few = image_scores(cfg, a, b)
        left_out += few

    # the reports read off the images against the reports drawn
    labeller, missing = labeller_for(cfg, process, images)
    left_out += missing
    again = []
    for run in (a, b):
        reports, failed = worklist.split(worklist.read_rows(run.path / "again.jsonl"), "report")
        again.append(reports)
        failures |= failed
    ids = [name for name in again[0] if name in again[1]]
    if labeller and ids:
        scores["paired cycle"] = paired.labels(
            *([reports[name] for name in ids] for reports in again),
            [prompts[name].text for name in ids], labeller, 10 * cfg.bootstrap, 10 * cfg.swaps)

    alignment, missing = alignment_scores(cfg, a, b, prompts)
    return scores | alignment, left_out + missing, failures


def other_features(a, b):
    """[] or [why FD to coverage of two runs cannot be compared]."""
    names = ("generated.safetensors", "real.safetensors")
    if not all((run.path / name).exists() for run in (a, b) for name in names):
        return ["FD to coverage are left out: both runs need generated.safetensors and "
                "real.safetensors; with real features of another place, compare the files: "
                "`python evaluate.py compare real.safetensors A/generated.safetensors "
                "B/generated.safetensors`."]
    real, other = (features.load(run.path / "real.safetensors") for run in (a, b))
    if (real.encoder, real.source) != (other.encoder, other.source):
        return [f"FD to coverage are left out: the real images of {a.path} are {real.source} by "
                f"'{real.encoder}', those of {b.path} {other.source} by '{other.encoder}'; a "
                "difference needs the same references."]
    return []


def image_scores(cfg, a, b):
    """FD to coverage of two runs -> (scores, [what is left out])."""
    real = features.load(a.path / "real.safetensors")
    drawn = [features.load(run.path / "generated.safetensors") for run in (a, b)]
    features.same_encoder(*drawn, (a.path, b.path))
    # a report takes part if it was drawn twice and its real image could be read
    drawn_twice = set(drawn[0].ids) & set(drawn[1].ids)
    ids = [name for name in real.ids if name in drawn_twice]
    shards, few = scoring.blocks(cfg.shards, len(ids), cfg.k)
    by_blocks = paired.images(real.pick(ids), drawn[0].pick(ids), drawn[1].pick(ids), shards,
                              cfg.k, cfg.bootstrap, cfg.swaps, paired=True)
    return {f"paired images, blocks: {n}": rows for n, rows in by_blocks.items()}, few


def alignment_scores(cfg, a, b, prompts):
    """BioViL-T's cosines of both runs' images and their reports -> (scores, [what is left out])."""
    ids = [name for name in a.outputs if name in b.outputs]
    jobs = [(run.path / "images" / run.outputs[name], prompts[name].text)
            for run in (a, b) for name in ids]
    cosines, left_out = radgraph_biovil.alignment(jobs, cfg.python)
    if cosines is None:
        return {}, left_out
    cosines = np.array(cosines)

    def scores_at(rows):
        return {"alignment": alignment_mean(cosines[rows])}
    return {"paired alignment": paired.with_bootstrap(
        scores_at, len(ids), 10 * cfg.bootstrap, 10 * cfg.swaps)}, left_out
