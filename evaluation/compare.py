"""Other people's models, from their files. For research, not for clinical use.

    python evaluate.py features --images DIR --out theirs.safetensors     # a folder, or packed data
    python evaluate.py compare real.safetensors theirs.safetensors        # FD to coverage
    python evaluate.py compare DIR DIR                                    # the same, of two folders
    python evaluate.py compare references.jsonl reports.jsonl             # CheXbert F1, BLEU, ...

Two systems A and B against the same references, with a p value for the difference of each score:

    python evaluate.py compare references.jsonl a.jsonl b.jsonl           # reports
    python evaluate.py compare real.safetensors a.safetensors b.safetensors     # images
    python evaluate.py compare out/score-a out/score-b                    # two runs of und, or gen

Reports are JSON lines {"id", "report"}. What failed on one side, an image that cannot be read or a
row {"id", "error"}, is named and left out on all. p is that of a paired randomisation test: the two
systems' outputs of each item are swapped with probability 1/2, and p is the share of such draws in
which the scores differ as much as they do. So A and B must be about the same items. One system
alone has no p: real images are no system.
"""
import itertools
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal

import weights
from common import locks, processes
from common.cli import InputError, override, report_failures
from common.files import read_jsonl, refuse_unwritable
from evaluation import features, paired, runs, scoring, tables
from evaluation.settings import FeatureNetwork, ReportNetworks
from evaluation.text_metrics import same_items


# ---- features of a folder ----

@dataclass
class FeaturesConfig(FeatureNetwork):
    images: str = ""                # folder of images, or packed data (datasets/mimic/gen-512)
    split: str = ""                 # of packed data: train, val, test; default: all
    out: str = "features.safetensors"           # file to write
    checkpoint: str = "out/gen512"  # whose tower, for --encoder vision
    batch: int = 32                 # images at once
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        assert self.batch > 0, "--batch must be at least 1."


def extract_features(argv):
    """`python evaluate.py features`: images -> a feature file."""
    cfg = override(FeaturesConfig(), argv, __doc__)
    if not cfg.images:
        raise InputError("say which images: `python evaluate.py features --images DIR --out "
                         "a.safetensors`.")
    refuse_unwritable(cfg.out)
    if Path(cfg.out).exists():
        features.load(cfg.out)          # what is no file of features is not replaced by one
    process = processes.setup(cfg.device, cfg.threads)
    processes.on_first(process, partial(locks.take_files, cfg.out))
    # the images first: a wrong folder should stop us before a network is loaded
    images = features.open_images(cfg.images, cfg.split)
    encoder = load_encoder(cfg, process.device)
    result = features.extract(encoder, images, process, cfg.batch)
    # every process has all features now; one of them writes the file
    if not process.master:
        return 0
    features.save(cfg.out, result)
    print(f"{len(result.ids)} images by '{result.encoder}' in {cfg.out}; "
          f"{len(result.failures)} could not be read")
    return report_failures(tables.named(result.failures), len(result.ids))


def load_encoder(cfg, device):
    """RAD-DINO, or the vision tower of a checkpoint, as the network of features."""
    if cfg.encoder == "rad-dino":
        return features.rad_dino(cfg.rad_dino, cfg.route, device)
    # the whole checkpoint is loaded for its tower alone: a tower has no file of its own
    cfg.dtype = processes.number_format(cfg.dtype, device)
    model, _, _ = weights.load(cfg.checkpoint, dtype=processes.torch_dtype(cfg.dtype))
    return features.tower(model.to(device))


# ---- two sets of images, or two of reports ----

@dataclass
class CompareConfig(FeatureNetwork, ReportNetworks):
    real: str = ""                  # real images: feature file or folder; or references, .jsonl
    generated: str = ""             # the generated ones, of the same kind
    other: str = ""                 # those of a second system, B, for p values
    out: str = "compare"            # writes <out>.json and <out>.md
    shards: list[int] = field(default_factory=list)     # means over blocks; default: 1, and 4
    k: int = 5                      # precision to coverage: the k-th neighbour is a sample's radius
    checkpoint: str = "out/gen512"  # whose tower, for --encoder vision
    bootstrap: int = 100            # resamplings for the intervals, tenfold for reports; 0: none
    swaps: int = 100                # draws of p for two systems, tenfold for reports; 0: none
    batch: int = 32                 # images at once
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        assert min(*self.shards, self.k, self.batch) > 0, \
            "--shards, --k and --batch must be at least 1."
        assert min(self.bootstrap, self.swaps) >= 0, "--bootstrap and --swaps must be 0 or more."


# `compare A B C` is short for `compare --real A --generated B --other C`
POSITIONS = ("--real", "--generated", "--other")


def named_positions(argv):
    """The command line with the option in front of each of the first words that have none."""
    bare = list(itertools.takewhile(lambda word: not word.startswith("--"), argv))
    if len(bare) not in (2, 3):
        return argv
    pairs = zip(POSITIONS, bare)
    return [*(word for pair in pairs for word in pair), *argv[len(bare):]]


def main(argv):
    cfg = override(CompareConfig(), named_positions(argv), __doc__)
    if not cfg.real or not cfg.generated:
        raise InputError("say what to compare: `python evaluate.py compare real.safetensors "
                         "generated.safetensors`.")
    process = processes.setup(cfg.device, cfg.threads)
    # extraction is what takes long; the metrics themselves take seconds
    if process.world > 1:
        raise InputError("compare runs in one process; extract features under torchrun with "
                         "`evaluate.py features`.")
    tables.begin(cfg.out, [".md"])
    with locks.take_files(cfg.out):
        if not cfg.other and runs.is_run(cfg.real) and runs.is_run(cfg.generated):
            return runs.compare(cfg, process)
        if cfg.real.endswith(".jsonl") or cfg.generated.endswith(".jsonl"):
            return compare_reports(cfg, process)
        return compare_images(cfg, process)


def places(cfg):
    """What is compared: the references, then one system, or A and B."""
    return [path for path in (cfg.real, cfg.generated, cfg.other) if path]


def title(cfg):
    """The title of the page."""
    if cfg.other:
        return f"A: {cfg.generated}, B: {cfg.other}, against {cfg.real}"
    return f"{cfg.real} and {cfg.generated}"


def compare_images(cfg, process):
    """FD, KD, precision, recall, density, coverage of feature files or folders -> exit code."""
    real, *systems = load_features(cfg, process)
    for path, images in zip(places(cfg)[1:], systems):
        features.same_encoder(real, images, (cfg.real, path))

    failures = dict(real.failures)
    for images in systems:
        failures |= images.failures
    code = report_failures(tables.named(failures), results=1)
    ids = [name for name in real.ids if name not in failures]
    generated_ids = [name for name in systems[0].ids if name not in failures]
    if cfg.other:
        refuse_other_names(cfg, generated_ids, {*systems[1].ids} - failures.keys())
    # the same names on both sides are pairs: put into one order, they fall into the same blocks
    pairs = set(ids) == set(generated_ids)
    if pairs:
        generated_ids = ids
    warnings = tables.other_features(real.encoder)
    if not pairs:
        shared = set(ids) & set(generated_ids)
        warnings.append(
            f"{len(shared)} of {len(ids)} and {len(generated_ids)} names are in both sets: they "
            "are compared as two sets, not image by image, and blocks hold different prompts.")
    shards, few = scoring.blocks(cfg.shards, min(len(ids), len(generated_ids)), cfg.k)
    warnings += few

    x_real = real.pick(ids)
    x_systems = [images.pick(generated_ids) for images in systems]
    if cfg.other:
        by_blocks = paired.images(
            x_real, *x_systems, shards, cfg.k, cfg.bootstrap, cfg.swaps, pairs)
        scores = {f"paired images, blocks: {n}": rows for n, rows in by_blocks.items()}
    else:
        scores = {"generation": scoring.images(
            x_real, *x_systems, shards, cfg.k, cfg.bootstrap, pairs)}
    print(tables.write(
        Path(cfg.out), title(cfg), scores, vars(cfg), failures=failures, encoder=real.encoder,
        paired=pairs, warnings=warnings))
    return code


def refuse_other_names(cfg, ids, other_ids):
    """InputError unless two systems have drawn the same prompts: the test swaps their images."""
    if set(ids) != other_ids:
        shared = len(other_ids & set(ids))
        raise InputError(
            f"{cfg.generated} and {cfg.other} share {shared} of {len(ids)} and {len(other_ids)} "
            "names: a paired test needs two images of each prompt, named alike; compare each set "
            "with the real images by itself.")


def load_features(cfg, process):
    """Features of all sides: read from files, or extracted from folders."""
    # all sides by one encoder, which is loaded once
    encoder = None
    sides = []
    for path in places(cfg):
        if path.endswith(".safetensors"):
            sides.append(features.load(path))
            continue
        if encoder is None:             # only a folder needs one
            encoder = load_encoder(cfg, process.device)
        sides.append(features.extract(encoder, features.open_images(path), process, cfg.batch))
    return sides


def compare_reports(cfg, process):
    """CheXbert F1, BLEU, ROUGE-L and RadGraph F1 of files of reports -> exit code."""
    for path in places(cfg):
        if not path.endswith(".jsonl"):
            raise InputError(f"{path} is no .jsonl file; references and reports are compared with "
                             "each other, not with images.")
    failures, sides = {}, []
    for path in places(cfg):
        reports, failed = read_reports(path)
        failures |= failed
        sides.append(reports)
    # what failed on one side is left out on all
    sides = [{name: text for name, text in reports.items() if name not in failures}
             for reports in sides]
    texts = []                          # of each system, in the order of the references
    for reports in sides[1:]:
        _, predictions, references = same_items(reports, sides[0])
        texts.append(predictions)

    # reports of others are of radiographs: the exact labels of phantoms are not for them
    labeller, left_out = scoring.load_labeller(
        cfg.chexbert, cfg.cut, process.device, phantom=False)
    details = {}
    if cfg.other:
        scores, missing = paired.reports(
            *texts, references, labeller, 10 * cfg.bootstrap, 10 * cfg.swaps, cfg.python)
        scores = {"paired reports": scores}
    else:
        scores, details, missing = scoring.reports(
            *texts, references, labeller, 10 * cfg.bootstrap, cfg.python)
        scores = {"understanding": scores}
    print(tables.write(
        Path(cfg.out), title(cfg), scores, vars(cfg), left_out + missing, failures,
        details=details))
    return report_failures(tables.named(failures), results=1)


def read_reports(path):
    """A file of JSON lines {"id", "report"} or {"id", "error"} -> ({id: report}, {id: error})."""
    reports, failures = {}, {}
    for row in read_jsonl(path):
        # a number may be an id, a list may not: it cannot be a key
        if not isinstance(row, dict) or not isinstance(row.get("id"), (str, int)):
            raise InputError(f"{path}: every line should be like "
                             '{"id": "a", "report": "Clear lungs."}.')
        name = row["id"]
        # an id twice would count one report twice, or hide a row behind another
        if name in reports or name in failures:
            raise InputError(f"{path}: the id {name} stands there twice; it may stand there once.")
        # an error is no report: scored as an empty one it would look like "no findings"
        if "error" in row:
            failures[name] = row["error"]
        elif isinstance(row.get("report"), str):
            reports[name] = row["report"]
        else:
            raise InputError(f"{path}: row {name} has no 'report' that is text; what failed has an "
                             "'error' instead.")
    return reports, failures
