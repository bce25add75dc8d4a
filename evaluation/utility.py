"""`python evaluate.py utility`: does it help to train on drawn images?

    python evaluate.py utility --real datasets/mine --synthetic datasets/synth --checkpoint out/mine
    python evaluate.py utility              # phantoms: few real ones, and many drawn by demo/

A small classifier is trained on frozen features of images, once a finding: logistic regression of
standardised features (scikit-learn), a linear probe. The features are RAD-DINO's or those of the
checkpoint's own vision tower. It is trained on four sets, and always tested on real images:

    real                    the real training images
    synthetic               the drawn ones
    real + synthetic        both
    real + repeated real    the real ones, repeated as often as there are drawn ones: the control

A set that is larger changes the classifier even if it says nothing new. So what drawn images give
is the third row over the fourth, not over the first.

Every set is drawn anew --seeds times by bootstrap over its patients. An interval is over these
draws and over bootstraps of the test patients together. Phantoms are toys, not radiographs; nothing
here is for clinical use. Writes <out>.json, <out>.md and <out>.png.
"""
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

import sample
import weights
from common import locks, processes
from common.cli import InputError, override
from common.files import write_json, write_text
from common.packed import Packed
from common.worklist import chunks
from evaluation import features, phantom, tables
from evaluation.match import auroc
from phantom.facts import report_to_facts
from phantom.prepare import Settings, make
from weights.int8 import MATRICES
from weights.knowledge import notice


@dataclass
class UtilityConfig(sample.Sampling):
    checkpoint: str = phantom.DEMO  # its vision tower; without --real it also draws
    real: str = ""                  # root of packed data, or one data set; "": phantoms
    synthetic: str = ""             # the same of drawn images
    encoder: Literal["vision", "rad-dino"] = "vision"   # whose features; vision: the checkpoint's
    rad_dino: str = "pretrained/rad-dino"   # folder of RAD-DINO
    route: Literal[*features.ROUTES] = "benchmark"      # to RAD-DINO; benchmark: via 299 px
    out: str = "utility_score"      # writes <out>.json, <out>.md and <out>.png
    num_real: int = 50              # phantoms to train on, if they are phantoms
    num_synthetic: int = 500        # drawn ones
    num_test: int = 500             # phantoms to test on
    data_seed: int = 0              # seed of these phantoms, as of phantom.prepare
    c: float = 1.0                  # inverse strength of the probe's L2 penalty
    seeds: int = 10                 # draws of each training set
    bootstrap: int = 1000           # resamplings for the intervals
    steps: int = 8                  # solver steps of a drawn phantom
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    weights: Literal[*MATRICES] = "float"           # int8: large matrices as 8-bit integers
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        super().__post_init__()
        assert min(self.num_real, self.num_synthetic, self.num_test, self.seeds) > 0, \
            "--num-real, --num-synthetic, --num-test and --seeds must be at least 1."
        assert self.bootstrap > 0, "--bootstrap must be at least 1."
        assert self.c > 0, "--c must be positive."
        assert bool(self.real) == bool(self.synthetic), "give both --real and --synthetic, or none."


def main(argv):
    cfg = override(UtilityConfig(), argv, __doc__)
    missing = tables.probe_left_out()
    if missing:
        raise InputError(missing[0])
    tables.begin(cfg.out, [".md", ".png"])
    with locks.take_files(cfg.out):
        device = processes.setup(cfg.device, cfg.threads).device
        dtype = processes.number_format(cfg.dtype, device)
        model, vae, tokenizer = weights.load(
            cfg.checkpoint, dtype=processes.torch_dtype(dtype), device=device,
            matrices=cfg.weights)
        encoder = features.tower(model)
        if cfg.encoder == "rad-dino":
            encoder = features.rad_dino(cfg.rad_dino, cfg.route, device)
        if cfg.real:
            sets = of_data(cfg, encoder)
        else:
            sets = of_phantoms(cfg, encoder, model, vae, tokenizer)
        return score(cfg, sets, encoder.name, notice(model))


# ---- three sets of images ----

@dataclass
class Labelled:
    """Features of images, what is on them, and whose they are."""
    x: np.ndarray                   # (n, C) float32
    found: list                     # of each image the set of its findings
    subjects: np.ndarray            # (n,) names of patients


def seen(encoder, pictures, batch):
    """Features (n, C) of grey PIL images, given one by one."""
    vectors = []
    for block in tqdm(chunks(pictures, batch), desc="features", unit="batch", leave=False):
        vectors.append(encoder(torch.stack([encoder.prepare(picture()) for picture in block])))
    return np.concatenate(vectors)


def of_phantoms(cfg, encoder, model, vae, tokenizer):
    """-> (real, synthetic, test): phantoms drawn by formula, by the model, and others."""
    side = sample.latent_side(model, vae, cfg.size) * vae.factor
    settings = Settings(seed=cfg.data_seed, size=side)

    def by_formula(split, numbers):
        made = [make(settings, split, number) for number in numbers]
        pictures = [Image.fromarray(picture).copy for _, picture in made]
        return labelled(encoder, cfg, pictures, [row for row, _ in made])

    # drawn from the reports of phantoms that nobody trains on
    others = range(cfg.num_real, cfg.num_real + cfg.num_synthetic)
    rows = [make(settings, "train", number)[0] for number in others]
    pictures = []
    for block in tqdm(chunks(range(len(rows)), cfg.batch), desc="drawing", unit="batch"):
        drawn = sample.generate_images(
            model, vae, tokenizer, [rows[n]["report"] for n in block], cfg, numbers=block,
            progress=False)[:, 0]
        pictures += [Image.fromarray(picture).copy for picture in drawn]
    synthetic = labelled(encoder, cfg, pictures, rows)
    return (by_formula("train", range(cfg.num_real)), synthetic,
            by_formula("test", range(cfg.num_test)))


def of_data(cfg, encoder):
    """-> (real, synthetic, test) of packed data sets: splits train, train and test.

    All of one size, the largest that both have: a probe could tell sizes apart.
    """
    real, synthetic = sizes_of(cfg.real), sizes_of(cfg.synthetic)
    common = sorted(real.keys() & synthetic.keys())
    if not common:
        raise InputError(f"{cfg.real} has images of {', '.join(map(str, sorted(real)))} pixels and "
                         f"{cfg.synthetic} of {', '.join(map(str, sorted(synthetic)))}; prepare "
                         "both in one size.")
    size = common[-1]
    # the grammar of phantoms reads phantoms' reports, and nobody else's
    sources = {row.get("source") for row in Packed(*real[size], size, "train").rows}
    grammar = sources == {"phantom"}
    return tuple(of_packed(cfg, encoder, places[size], size, split, grammar) for places, split in (
        (real, "train"), (synthetic, "train"), (real, "test")))


def sizes_of(root):
    """{pixels a side: (root, task)} of the packed data sets in a folder, or of the one that it is.
    """
    root = Path(root)
    directories = [root] if (root / "dataset.json").exists() else [
        path.parent for path in root.glob("*-[0-9]*/dataset.json")]
    if not directories:
        raise InputError(f"there is no packed data set at {root}; `python prepare_mimic.py` makes "
                         "one (docs/data.md).")
    sizes = {}
    for directory in sorted(directories):
        task, _, size = directory.name.rpartition("-")
        sizes[int(size)] = (directory.parent, task)
    return sizes


def of_packed(cfg, encoder, place, size, split, grammar):
    """One split of a packed data set."""
    data = Packed(*place, size, split)

    def reader(number):
        return lambda: Image.fromarray(data.image(number).numpy())
    if not grammar and not any(has_labels(row) for row in data.rows):
        raise InputError(f"{data.directory} has no labels, so nobody knows what is on its images: "
                         "columns of 1 and 0 in the table of prepare_mimic.py become labels.")
    pictures = [reader(number) for number in range(len(data))]
    return labelled(encoder, cfg, pictures, data.rows, grammar)


def labelled(encoder, cfg, pictures, rows, grammar=True):
    """Features and labels of images. pictures: functions that give them."""
    return Labelled(seen(encoder, pictures, cfg.batch), [findings_of(row, grammar) for row in rows],
                    np.array([str(row.get("subject", row["id"])) for row in rows]))


def has_labels(row):
    return isinstance(row.get("labels"), dict) and len(row["labels"]) > 0


def findings_of(row, grammar):
    """The findings of a row: its labels that are 1. Uncertain (-1) and blank ones count as absent.

    grammar: rows without labels are phantoms, whose facts are read off their reports.
    """
    if has_labels(row):
        return {name for name, value in row["labels"].items() if value == 1}
    return {fact.finding for fact in report_to_facts(row["report"])} if grammar else set()


# ---- the probe ----

# name of a training set -> whether it has the real images, and what stands beside them
SETS = {
    "real": (True, ""),
    "synthetic": (False, "synthetic"),
    "real + synthetic": (True, "synthetic"),
    "real + repeated real": (True, "repeated"),
}


def training_rows(kind, real, synthetic, rng):
    """Row numbers of one draw of a training set -> (of the real images, of the drawn ones).

    Patients are drawn with replacement, with all of their images; the same real ones for every set
    that begins with this rng, so that sets differ in what stands beside them alone.
    """
    has_real, beside = SETS[kind]
    of_real = resampled(real.subjects, rng)
    of_synthetic = resampled(synthetic.subjects, rng)
    if beside == "repeated":
        again = np.arange(len(of_synthetic)) % len(of_real)
        return np.concatenate([of_real, of_real[again]]), of_synthetic[:0]
    return of_real if has_real else of_real[:0], of_synthetic if beside else of_synthetic[:0]


def resampled(subjects, rng):
    """Row numbers of a bootstrap over patients: as many patients, with all of their rows."""
    names, of = np.unique(subjects, return_inverse=True)
    rows = [np.flatnonzero(of == n) for n in range(len(names))]
    return np.concatenate([rows[n] for n in rng.integers(len(names), size=len(names))])


def predictions(cfg, x, y, test):
    """How sure the probe is of a finding on each test image (n,), after training on x and y."""
    from sklearn.linear_model import LogisticRegression
    mean, spread = x.mean(0), x.std(0) + 1e-6
    probe = LogisticRegression(C=cfg.c, max_iter=2000)
    probe.fit((x - mean) / spread, y)
    return probe.decision_function((test - mean) / spread)


def score(cfg, sets, encoder, warning):
    """Train and test, write the table and the plot."""
    real, synthetic, test = sets
    names, left_out = usable_findings(real, synthetic, test)
    truth = {name: np.array([name in found for found in test.found]) for name in names}
    guesses = {}                    # of each set: (seeds, findings, n) predictions
    for kind in SETS:
        guesses[kind] = np.stack([draw_of(cfg, kind, real, synthetic, names, test.x, seed)
                                  for seed in tqdm(range(cfg.seeds), desc=kind, leave=False)])
    rows = {kind: row_of(cfg, guess, truth, test.subjects) for kind, guess in guesses.items()}
    gain = gain_of(cfg, guesses["real + synthetic"], guesses["real + repeated real"], truth,
                   test.subjects)

    counts = f"{len(real.x)} real, {len(synthetic.x)} drawn, {len(test.x)} to test on"
    head = ["trained on", "mean AUROC", *names]
    lines = [[kind, tables.shown(row["mean"]), *(f"{row[name]['value']:.3f}" for name in names)]
             for kind, row in rows.items()]
    text = "\n\n".join([
        "# Does it help to train on drawn images?", f"*{warning}*", tables.table(head, lines),
        f"real + synthetic over real + repeated real: {tables.shown(gain)} of mean AUROC. "
        f"{counts}; features: {encoder}; {cfg.seeds} draws of each training set.", *left_out])
    write_json(f"{cfg.out}.json", {"scores": rows, "gain": gain, "images": counts,
                                   "encoder": encoder, "left_out": left_out, "notice": warning,
                                   "settings": tables.public_settings(cfg)})
    write_text(f"{cfg.out}.md", text + "\n")
    print(text)
    if not tables.plots_left_out():
        tables.save_figure(bars(rows), f"{cfg.out}.png")
    print(f"details in {cfg.out}.json")


def usable_findings(real, synthetic, test):
    """Findings that are there and not there in every set -> (names, sentences about the others)."""
    names = sorted(set().union(*real.found, *synthetic.found, *test.found))
    used, left_out = [], []
    for name in names:
        counts = [sum(name in found for found in part.found) for part in (real, synthetic, test)]
        sizes = [len(part.found) for part in (real, synthetic, test)]
        if all(0 < count < size for count, size in zip(counts, sizes)):
            used.append(name)
        else:
            left_out.append(f"{name} is left out: it is on {counts[0]} real, {counts[1]} drawn and "
                            f"{counts[2]} test images, and a set needs some with it and some "
                            "without.")
    if not used:
        raise InputError("no finding is there and not there in each of the three sets; are there "
                         "labels? Columns of 1 and 0 in the table of prepare_mimic.py become them.")
    return used, left_out


def draw_of(cfg, kind, real, synthetic, names, test, seed):
    """Predictions (findings, n) after training on one draw of a set."""
    results = []
    for name in names:
        labels = [np.array([name in found for found in part.found]) for part in (real, synthetic)]
        for attempt in range(1000):
            rng = np.random.default_rng([seed, attempt])
            rows = training_rows(kind, real, synthetic, rng)
            y = np.concatenate([part[some] for part, some in zip(labels, rows)])
            # a draw without one of the classes says nothing: the next one is taken
            if y.any() and not y.all():
                break
        x = np.concatenate([part.x[some] for part, some in zip((real, synthetic), rows)])
        results.append(predictions(cfg, x, y, test))
    return np.stack(results)


def at(guess, truth, rows):
    """AUROC of each finding on some rows (nan without one of the classes), their mean last."""
    values = []
    for scores, there in zip(guess, truth.values()):
        value = auroc(scores[rows][there[rows]], scores[rows][~there[rows]])
        values.append(np.nan if value is None else value)
    known = [value for value in values if not np.isnan(value)]
    return np.array([*values, np.mean(known) if known else np.nan])


def row_of(cfg, guess, truth, subjects):
    """{finding and "mean": number with interval} of one training set."""
    everything = np.arange(len(subjects))
    values = np.mean([at(each, truth, everything) for each in guess], axis=0)
    rng = np.random.default_rng(0)
    draws = np.array([at(guess[rng.integers(len(guess))], truth, resampled(subjects, rng))
                      for _ in range(cfg.bootstrap)])
    return {name: with_interval(value, draws[:, n])
            for n, (name, value) in enumerate(zip([*truth, "mean"], values))}


def gain_of(cfg, guess, control, truth, subjects):
    """Difference of mean AUROC of two sets, with an interval over the same draws of both."""
    everything = np.arange(len(subjects))
    value = np.mean([at(a, truth, everything)[-1] - at(b, truth, everything)[-1]
                     for a, b in zip(guess, control)])
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(cfg.bootstrap):
        seed, rows = rng.integers(len(guess)), resampled(subjects, rng)
        draws.append(at(guess[seed], truth, rows)[-1] - at(control[seed], truth, rows)[-1])
    return with_interval(value, np.array(draws))


def with_interval(value, draws):
    """A number as tables show it, with its 95 % interval."""
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return {"value": float(value), "interval": [float(low), float(high)]}


def bars(rows):
    """AUROC of each finding, a bar a training set -> figure."""
    names = list(next(iter(rows.values())))
    figure = tables.new_figure((9, 3.5))
    axes = figure.subplots()
    width = 0.8 / len(rows)
    lowest = 1.0
    for k, (kind, row) in enumerate(rows.items()):
        values = np.array([row[name]["value"] for name in names])
        ends = np.array([row[name]["interval"] for name in names])
        lowest = min(lowest, ends.min())
        axes.bar(np.arange(len(names)) + k * width, values, width, label=kind,
                 yerr=np.abs(ends.T - values), error_kw={"linewidth": 0.8})
    axes.set_xticks(np.arange(len(names)) + 0.3, names)
    axes.set_ylabel("AUROC on real test images")
    axes.set_ylim(max(0.0, lowest - 0.05), 1.12)        # room for the legend
    axes.legend(fontsize=8, ncols=4)
    return figure
