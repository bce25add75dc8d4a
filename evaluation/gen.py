"""`python evaluate.py gen`: images of the test reports beside the real ones (Tables 3 and 4).

For research, not for clinical use. Every wording of a report is drawn once, from noise of its own,
and the image is read again: the cycle score compares the second report with the first. `--sweep`
does all of it again for other numbers of steps and guidance scales.

Drawing, reading and features take hours. They are shared out among processes, and continued when
interrupted. A report that cannot be drawn is named and left out.
"""
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

import sample
import weights
from common import locks, processes, worklist
from common.cli import InputError, Text, override
from common.images import captioned, save_png
from evaluation import features, radgraph_biovil, scoring, tables
from evaluation.drawing import Experiment, draw, prompts_of, settings_of
from evaluation.settings import FeatureNetwork, ReportNetworks, Sweep
from evaluation.text_metrics import alignment_mean
from mimic.annotations import FINDINGS
from weights.int8 import MATRICES
from weights.knowledge import notice


@dataclass
class GenConfig(Sweep, FeatureNetwork, ReportNetworks):
    checkpoint: str = "out/gen512"  # the model that draws, and reads for the cycle score
    preset: str = ""                # "release": the sampling settings of the released UniX
    data: str = "datasets/mimic"    # root of the packed data; gen-<size> is read
    split: str = "test"             # whose reports are drawn: train, val or test
    real: str = ""                  # real images: folder or feature file; default: the data set's
    out: str = "out/score-gen"      # directory for images/, result.json, result.md, plots
    overwrite: bool = False         # begin anew although --out holds a run of other settings
    limit: int = 0                  # only the first so many reports; 0: all
    shards: list[int] = field(default_factory=list)     # means over blocks; default: 1, and 4
    sweep_num: int = 1000           # reports of the sweep
    prompt: str = sample.PROMPT     # what is asked about a drawn image (cycle score)
    max_tokens: int = 0             # longest report of the cycle; 0: the limit of the checkpoint
    bootstrap: int = 100            # resamplings for the intervals, tenfold for F1; 0: none
    show: int = 8                   # pairs in the picture
    device: str = "auto"            # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    weights: Literal[*MATRICES] = "float"       # int8: large matrices as 8-bit integers
    threads: int = 0                # CPU threads; 0: a fair share of the cores

    def __post_init__(self):
        super().__post_init__()
        assert min(*self.shards, self.show, self.sweep_num) > 0, \
            "--shards, --show and --sweep-num must be at least 1."
        assert min(self.limit, self.bootstrap, self.max_tokens) >= 0, \
            "--limit, --bootstrap and --max-tokens must be 0 or more."


def main(argv):
    cfg = override(GenConfig(), argv, __doc__, sample.PRESETS)
    process = processes.setup(cfg.device, cfg.threads)
    processes.on_first(process, partial(locks.refuse_taken, cfg.out))
    out = Path(cfg.out)
    dtype = worklist.number_format(out, cfg, process)
    model, vae, tokenizer = weights.load(cfg.checkpoint, dtype=processes.torch_dtype(dtype),
                                         device=process.device, matrices=cfg.weights)
    # only now it is known whether these are the released weights
    cfg = replace(sample.preset_for(model, cfg, argv, __doc__), dtype=dtype)
    # whose reports are drawn: train, val or test, and which networks judge the images
    size = sample.latent_side(model, vae, cfg.size) * vae.factor
    images = features.PackedImages(Path(cfg.data) / f"gen-{size}", cfg.split)
    prompts = prompts_of(images)
    ids = list(prompts)[:cfg.limit] if cfg.limit else list(prompts)
    # one radiograph among phantoms is enough to need CheXbert
    phantom = all(row["source"] == "phantom" for row in images.rows.values())
    labeller, left_out = scoring.load_labeller(cfg.chexbert, cfg.cut, process.device, phantom)
    encoder, missing = load_encoder(cfg, model, process.device)
    left_out += missing + tables.plots_left_out()
    refuse_what_cannot_end(cfg, len(ids), encoder, labeller)

    experiment = Experiment(process, model, vae, tokenizer, size, prompts, encoder, labeller)
    real_source = real_images(cfg, images, ids, encoder) if encoder else None

    claim(cfg, ids, experiment)

    # the hours: draw, read again, extract features
    drawn = draw(cfg, out, ids, experiment)
    real = real_features(cfg, real_source, ids, experiment) if encoder else None
    points, failures = draw_sweep(cfg, ids, experiment, real)
    # scores take seconds, so one process computes them
    if not process.master:
        return 0
    failures |= drawn.failures

    # the scores
    scores, warnings = {}, []
    if encoder:
        failures |= real.failures
        scores, warnings = image_scores(cfg, images, prompts, real, drawn)
    alignment, missing = alignment_score(cfg, prompts, drawn)
    left_out += missing
    if encoder:                         # a column of Table 3, like FD
        for row in scores["generation"].values():
            row |= alignment
    elif alignment:
        scores["alignment"] = alignment
    if labeller:
        scores["cycle"] = cycle_score(experiment, drawn, cfg.bootstrap)
    if points:
        scores["sweep"] = points

    # what one looks at
    encoder_name = encoder.name if encoder else "none"
    shown = [name for name in drawn.ids if name not in failures][:cfg.show]
    left_out += save_pairs(cfg, images, prompts, shown, notice(model))
    save_plots(out, scores, encoder_name)
    return tables.publish(out, "Drawing", scores, cfg, left_out, failures, warnings=warnings,
                          encoder=encoder_name, notice=notice(model))


# ---- before the work ----

def load_encoder(cfg, model, device):
    """-> (network of features, []), or (None, [what is left out without RAD-DINO])."""
    # a missing RAD-DINO is no error: the cycle score needs none
    if cfg.encoder == "vision":
        return features.tower(model), []
    if Path(cfg.rad_dino).exists():
        return features.rad_dino(cfg.rad_dino, cfg.route, device), []
    return None, [
        "FD, KD, precision, recall, density and coverage are left out (nothing at "
        f"{cfg.rad_dino}): hf download microsoft/rad-dino --local-dir pretrained/rad-dino, or "
        "--encoder vision for the checkpoint's own tower."]


def refuse_what_cannot_end(cfg, reports, encoder, labeller):
    """InputError before hours of drawing, if the scores could not be computed after them."""
    # the smallest block must still hold a sample and its five nearest neighbours
    shards = max(cfg.shards, default=1)
    least = scoring.LEAST * shards
    if encoder and reports < least:
        fewer = f"--shards 1 needs {scoring.LEAST}" if shards > 1 else "take more of them (--limit)"
        raise InputError(f"--shards {shards} needs {least} reports or more, there are {reports}; "
                         f"{fewer}.")
    if cfg.sweep and not encoder and not labeller:
        raise InputError("--sweep has nothing to measure: RAD-DINO and CheXbert are not there; "
                         "--encoder vision needs neither.")
    if cfg.sweep and encoder and cfg.sweep_num < scoring.LEAST:
        raise InputError(f"--sweep-num must be {scoring.LEAST} or more: neighbours are the fifth.")


def claim(cfg, ids, experiment):
    """Take all output directories, now that nothing else can be refused: --overwrite empties them.
    """
    places = {Path(cfg.out): settings_of(cfg, ids, experiment)}
    for directory, point in sweep_points(cfg).items():
        places[directory] = settings_of(point, ids[:cfg.sweep_num], experiment)
    worklist.claim(places, cfg.overwrite, experiment.process)


# ---- real images, and the sweep ----

def real_images(cfg, images, ids, encoder):
    """Where the real images are -> features.Features of a file, or what `features.extract` takes.

    images: the packed data set. InputError if an image is not there, before anything is drawn.
    """
    # a file may hold features of more images than are drawn, and failures of others
    if cfg.real.endswith(".safetensors"):
        real = features.load(cfg.real)
        if real.encoder != encoder.name:
            raise InputError(f"{cfg.real} was made by '{real.encoder}', this run uses "
                             f"'{encoder.name}'; extract both with one.")
        refuse_missing(cfg.real, ids, {*real.ids, *real.failures})
        return real
    source = features.open_images(cfg.real) if cfg.real else images
    refuse_missing(cfg.real if cfg.real else images.source, ids, set(source.ids))
    return source


def real_features(cfg, source, ids, experiment):
    """Features of the real images with these ids. One that cannot be read is a failure.

    source: see `real_images`.
    """
    if isinstance(source, features.Features):
        wanted = set(ids)
        source.failures = {name: why for name, why in source.failures.items() if name in wanted}
        return source
    # the images themselves, of a folder or as they were packed: features are kept in --out
    return features.reused(Path(cfg.out) / "real.safetensors", experiment.encoder, source,
                           experiment.process, cfg.batch, ids)


def refuse_missing(place, ids, available):
    """InputError if real images are not there: FD against fewer images would be another number."""
    missing = [name for name in ids if name not in available]
    if missing:
        raise InputError(f"{place} lacks {len(missing)} of {len(ids)} real images, the first is "
                         f"{missing[0]}.")


def sweep_points(cfg):
    """{directory: settings} of every point of --sweep: each of them continues by itself."""
    sweep = Path(cfg.out) / "sweep"
    return {sweep / f"steps{point.steps}-cfg{point.cfg:g}": point for point in cfg.points()}


def draw_sweep(cfg, ids, experiment, real):
    """Draw and score every point of --sweep -> (a row for each, on the first process; failures)."""
    rows, failures = [], {}
    for directory, point in sweep_points(cfg).items():
        drawn = draw(point, directory, ids[:cfg.sweep_num], experiment)
        failures |= {f"{directory.name}/{failed}": why for failed, why in drawn.failures.items()}
        if not experiment.process.master:
            continue
        row = {"steps": point.steps, "cfg": point.cfg}
        if real is not None:
            _, x_real, x_drawn = on_both_sides(real, drawn.features)
            values = scoring.images(x_real, x_drawn, replicates=cfg.bootstrap)["1"]
            row |= {"fd": values["fd"], "kd": values["kd"]}
        if experiment.labeller:
            values = cycle_score(experiment, drawn, cfg.bootstrap)
            # phantoms have one F1; of CheXbert's eight the published headline is taken
            key = "micro" if "micro" in values else "uncertain_as_negative_micro_f1"
            row["cycle_F1"] = values[key]
        rows.append(row)
    return rows, failures


# ---- scores ----

def on_both_sides(real, drawn):
    """Features of the images that are there, real and drawn -> (ids, real (n, C), drawn (n, C))."""
    ids = [name for name in drawn.ids if name not in real.failures]
    return ids, real.pick(ids), drawn.pick(ids)


def image_scores(cfg, images, prompts, real, drawn):
    """Tables 3 and 4 -> ({"generation", "findings"}, what to mind about them)."""
    ids, x_real, x_drawn = on_both_sides(real, drawn.features)
    # row i of the captions, of the real and of the generated features is about the same report
    rows = [{"caption": prompts[name].text, "labels": labels_by_name(images.rows[name]["labels"])}
            for name in ids]
    labelled = {finding for row in rows for finding in row["labels"]}
    names = [finding for finding in FINDINGS if finding in labelled]
    if not names:                       # phantoms have findings of their own
        names = sorted(labelled)
    by_finding = scoring.by_finding(rows, x_real, x_drawn, names, cfg.bootstrap)

    warnings = tables.other_features(real.encoder)
    warnings += [f"FD of {name} is left out: fewer than two images."
                 for name in names if name not in by_finding]
    # say which findings are too rare for their FD to mean much
    few = [f"{name} ({row['n_real']})" for name, row in by_finding.items() if row["few"]]
    if few:
        least = max(scoring.FEW, x_real.shape[1])
        warnings.append(f"FD of {', '.join(few)} is over fewer than {least} images each: mostly "
                        "the bias of a small sample.")
    shards, left_out = scoring.blocks(cfg.shards, len(ids))
    all_images = scoring.images(x_real, x_drawn, shards, replicates=cfg.bootstrap)
    return {"generation": all_images, "findings": by_finding}, warnings + left_out


def labels_by_name(labels):
    """CheXpert's {name: 1, 0 or -1} as it is; a phantom's triples as {finding: 1}."""
    # 0 (absent) and -1 (uncertain) stay: `text_metrics.select` takes 1 alone
    if isinstance(labels, dict):
        return labels
    return {finding: 1.0 for finding, _, _ in labels}


def alignment_score(cfg, prompts, drawn):
    """BioViL-T's cosine of each image and its report -> ({"alignment": number}, []), or
    ({}, [why it is left out]).
    """
    jobs = [(drawn.out / "images" / prompts[name].file, prompts[name].text) for name in drawn.ids]
    cosines, left_out = radgraph_biovil.alignment(jobs, cfg.python)
    if cosines is None:
        return {}, left_out
    cosines = np.array(cosines)
    number = scoring.mean_of("alignment", cosines, 10 * cfg.bootstrap)
    number["alignment"]["value"] = alignment_mean(cosines)      # rounded twice, as published
    return number, []


def cycle_score(experiment, drawn, replicates):
    """F1 of the labels of the reports read off the images against those of the reports drawn."""
    # only images that were drawn and read take part
    references = [experiment.prompts[name].text for name in drawn.reports]
    predictions = list(drawn.reports.values())
    scores, _ = scoring.label_f1(experiment.labeller, predictions, references, 10 * replicates)
    return scores


# ---- pictures ----

def save_pairs(cfg, images, prompts, ids, notice):
    """Real and generated images side by side, over their report -> what could not be shown."""
    out = Path(cfg.out)
    folder = features.Folder(out / "images")
    pictures, captions, left_out = [], [], []
    for name in ids:
        # one image that cannot be read should not cost the sheet
        try:
            pair = [source.read(name) for source in (images, folder)]
        except InputError as error:
            left_out.append(str(error))
            continue
        pictures += [np.array(image.resize((128, 128), Image.Resampling.BICUBIC)) for image in pair]
        captions += [f"real: {prompts[name].text}", f"generated: {prompts[name].text}"]
    if pictures:
        sheet = captioned(pictures, captions, columns=4)
        save_png(sheet, out / "pairs.png", notice=notice, checkpoint=Path(cfg.checkpoint).name)
    return left_out


def save_plots(out, scores, encoder):
    """Bars of the findings and curves of the sweep, if there is a matplotlib to draw them."""
    if tables.plots_left_out():
        return
    if scores.get("findings"):
        tables.save_figure(tables.bars(scores["findings"], encoder), out / "findings.png")
    if scores.get("sweep"):
        tables.save_figure(tables.curves(scores["sweep"]), out / "sweep.png")
