"""`evaluate.py gen`: images of the test reports beside the real ones (Tables 3 and 4), the cycle score, sweeps.

For research, not for clinical use. Every wording of a report is drawn once, from noise of its own, and read again. Each step
continues when interrupted and is shared out among processes; a report that cannot be drawn is named and left out.
"""
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from common import processes as common
from evaluation import features
from evaluation import radgraph_biovil as foreign
from evaluation import image_metrics as metrics
import sample
from evaluation import scoring
from evaluation import tables
import weights
from evaluation import worklist
from weights.checkpoint import newest
from common.processes import InputError
from evaluation.reading import chosen, finish, reader
from evaluation.settings import combinations, swept
from common.images import captioned, checked, save_png
from common.packed import settings_hash
from evaluation.text_metrics import alignment_mean, unique_captions


@dataclass
class GenConfig:
    checkpoint: str = "out/gen512"  # what draws, and reads for the cycle score
    preset: str = ""                # "release": the sampling settings of the released UniX
    data: str = "datasets/mimic"    # root of the packed data sets; gen-<size> is read
    split: str = "test"             # whose reports are drawn; each wording once, the first row of it is kept
    real: str = ""                  # real images: a folder (file name = id) or a feature file; default: those of the data set
    out: str = "out/score-gen"      # directory for images/, result.json, result.md, plots
    overwrite: bool = False         # begin anew although --out holds a run of other settings
    limit: int = 0                  # only the first so many reports; 0: all
    size: int = 0                   # pixels a side; 0: the largest that the checkpoint draws
    seed: int = 0                   # report number i is drawn from noise (seed, i)
    steps: int = sample.SampleConfig.steps      # solver steps
    solver: str = sample.SampleConfig.solver    # euler, heun, ab2
    shift: float = sample.SampleConfig.shift    # time shift of the schedule
    cfg: float = sample.SampleConfig.cfg        # guidance scale
    cfg_interval: tuple[float, float] = (0.4, 1.0)      # guidance only where low < t <= high
    renorm: str = "global"          # rescaling of the guided velocity: global, channel, none
    encoder: str = "rad-dino"       # features: rad-dino, or vision (the checkpoint's own tower)
    rad_dino: str = "pretrained/rad-dino"       # where RAD-DINO lies
    route: str = "benchmark"        # into RAD-DINO: benchmark (squashed to 299 px first) or straight (518 px)
    shards: list[int] = field(default_factory=list)     # cut the lists into so many blocks; default: 1 and 4
    sweep: list[str] = field(default_factory=list)      # e.g. steps=4,8,16 cfg=1,2,3: score every combination as well
    sweep_num: int = 1000           # reports of the sweep
    prompt: str = sample.SampleConfig.prompt    # what is asked about a drawn image (cycle score)
    chexbert: str = "pretrained/chexbert"       # folder with chexbert.pth and vocab.txt (cycle score)
    cut: bool = False               # CheXbert sees the first 512 characters alone
    python: str = ""                # interpreter of an environment with BioViL-T; default: this one
    bootstrap: int = 100            # draws of the intervals (ten times as many for the cycle score); 0: none
    show: int = 8                   # pairs in the picture
    max_tokens: int = 0             # longest report of the cycle; 0: the limit of the checkpoint
    batch: int = 16                 # images at once
    device: str = "auto"            # auto, cpu, cuda
    dtype: str = "float32"          # or bfloat16

    def __post_init__(self):
        self.shards = self.shards or [1, 4]
        sample.SampleConfig(**chosen(self, *SAMPLING, "size", "batch"))         # checks them
        assert self.encoder in ("rad-dino", "vision"), f"--encoder {self.encoder} is none of rad-dino, vision."
        assert min(self.shards) > 0 and self.show > 0 and self.sweep_num > 0, "--shards, --show and --sweep-num: at least 1."
        assert min(self.limit, self.bootstrap) >= 0, "--limit and --bootstrap must be 0 or more."
        swept(self.sweep)


SAMPLING = ("seed", "steps", "solver", "shift", "cfg", "cfg_interval", "renorm")


class Drawn:
    """One set of generated images: drawn, read again, and turned into features; each step resumes by itself."""

    def __init__(self, cfg, out, ids, captions, files, loaded, process, encoder):
        model, vae, tokenizer = loaded
        self.out, self.captions, self.files, numbering = out, captions, files, {name: n for n, name in enumerate(captions)}
        most, size = model.cfg.max_text, sample.latent_side(model, vae, cfg.size) * vae.factor
        settings = {**chosen(cfg, *SAMPLING), "size": size}
        used = chosen(cfg, "data", "split", "prompt", "max_tokens", "batch", "dtype")
        used |= {"checkpoint": str(newest(cfg.checkpoint)), "captions": settings_hash(list(captions.items())), "images": len(ids)}
        worklist.agree(out, used | settings, cfg.overwrite, process)
        (out / "images").mkdir(exist_ok=True)

        def draw(block):
            count = {name: len(tokenizer.prompt(captions[name])) for name in block}
            good = [name for name in block if captions[name].strip() and count[name] <= most]
            texts, numbers = [captions[name] for name in good], [numbering[name] for name in good]
            sampling = sample.Sampling(batch=cfg.batch, **settings)
            pictures = sample.generate_images(model, vae, tokenizer, texts, sampling, numbers=numbers,
                                              progress=False)[:, 0] if good else []
            for name, picture in zip(good, pictures):
                about = dict(reports=captions[name], number=numbering[name], **settings)
                save_png(Image.fromarray(picture), out / "images" / files[name], **about)
            failed = {name: f"the report has {count[name]} tokens, this checkpoint reads {most}." if count[name] > most else
                      "the report is empty." for name in block if name not in good}
            return [{"id": name, "file": files[name]} if name in good else {"id": name, "error": failed[name]} for name in block]

        rows = worklist.run(out / "images.jsonl", worklist.chunks(ids, cfg.batch), draw, process, "drawing")
        drawn, self.failures = worklist.split(rows, "file")
        if not drawn:
            raise InputError(f"none of the {len(ids)} reports could be drawn; the first: {next(iter(self.failures.values()))}")
        self.ids, folder = list(drawn), features.Folder(out / "images")
        if encoder:
            self.features = features.reused(out / "generated.safetensors", encoder, folder, process, cfg.batch, self.ids)
            self.failures |= self.features.failures
        again = reader(model, tokenizer, folder, dict.fromkeys(self.ids, cfg.prompt), cfg)
        rows = worklist.run(out / "again.jsonl", worklist.chunks(self.ids, cfg.batch), again, process, "reading again")
        self.again, failures = worklist.split(rows, "report")
        self.failures |= failures

    def cycle(self, label, replicates):
        ids = list(self.again)
        return scoring.labelled(label, [self.again[i] for i in ids], [self.captions[i] for i in ids], replicates)


def file_names(ids):
    """{id: file name}."""
    files = {name: features.file_name(name) + ".png" for name in ids}
    if len(set(files.values())) < len(files):
        raise InputError("two ids of the data set differ only in characters that no file name can hold; rename one.")
    return files


def real_features(cfg, images, ids, encoder, process, out):
    """Features of the real images with these ids, from a file, a folder, or the data set itself."""
    if cfg.real.endswith(".safetensors"):
        real = features.load(cfg.real)
        if real.encoder != encoder.name:
            raise InputError(f"{cfg.real} was made by '{real.encoder}', this run uses '{encoder.name}'; extract both with one.")
        have, real.failures = {*real.ids, *real.failures}, {name: why for name, why in real.failures.items() if name in set(ids)}
    else:
        real, source = None, features.open_images(cfg.real) if cfg.real else images
        have = set(source.ids)
    lost = [name for name in ids if name not in have]
    if lost:
        raise InputError(f"{cfg.real or images.source} lacks {len(lost)} of {len(ids)} real images, the first is {lost[0]}.")
    return real or features.reused(out / "real.safetensors", encoder, source, process, cfg.batch, ids)


def both(real, drawn):
    """Features (n, C) of the real and of the drawn images that are there on both sides -> (names, real, drawn)."""
    names = [name for name in drawn.ids if name not in real.failures]
    return names, real.pick(names), drawn.pick(names)


def main(argv, doc=__doc__):
    cfg = common.override(GenConfig(), argv, doc, sample.PRESETS)
    process, out = common.setup(cfg.device), Path(cfg.out)
    model, vae, tokenizer = weights.load(cfg.checkpoint, dtype=common.torch_dtype(cfg.dtype))
    if model.cfg.double_bos and not cfg.preset:     # the released UniX: what is not asked for is done as the release does it
        cfg = common.override(GenConfig(), ["--preset=release", *argv], doc, sample.PRESETS)
    size = sample.latent_side(model, vae, cfg.size) * vae.factor
    loaded = model.to(process.device), vae.to(process.device), tokenizer
    images = features.PackedImages(Path(cfg.data) / f"gen-{size}", cfg.split)
    rows = [{**row, "caption": row["report"]} for row in images.rows.values()]
    captions = {rows[n]["id"]: rows[n]["caption"] for n in unique_captions(rows)}
    ids, files = list(captions)[:cfg.limit or None], file_names(captions)
    phantom = all(row["source"] == "phantom" for row in rows)
    label, left_out = scoring.labeller(cfg.chexbert, cfg.cut, process.device, phantom)
    encoder = features.tower(model) if cfg.encoder == "vision" else None
    if cfg.encoder == "rad-dino" and Path(cfg.rad_dino).exists():
        encoder = features.rad_dino(cfg.rad_dino, cfg.route, process.device)
    elif cfg.encoder == "rad-dino":
        left_out.append(f"FD, KD, precision, recall, density and coverage are left out (nothing at {cfg.rad_dino}): hf download "
                        "microsoft/rad-dino --local-dir pretrained/rad-dino, or --encoder vision for the checkpoint's own tower.")
    if encoder and len(ids) < (least := 6 * max(cfg.shards)):      # neighbours are the fifth
        raise InputError(f"--shards {max(cfg.shards)} needs {least} reports or more, there are {len(ids)}; --shards 1 needs 6.")
    if cfg.sweep and not encoder and label is None:
        raise InputError("--sweep has nothing to measure: RAD-DINO and CheXbert are not there; --encoder vision needs neither.")
    if encoder and cfg.sweep and min(cfg.sweep_num, len(ids)) < 6:
        raise InputError("--sweep-num must be 6 or more: neighbours are the fifth.")
    left_out += tables.plots_left_out()

    drawn = Drawn(cfg, out, ids, captions, files, loaded, process, encoder)
    real = real_features(cfg, images, ids, encoder, process, out) if encoder else None
    sweep, failures, warnings = [], dict(drawn.failures), []
    for point in combinations(cfg.sweep) if cfg.sweep else []:
        some = replace(cfg, **point)
        name = f"steps{some.steps}-cfg{some.cfg:g}"
        part = Drawn(some, out / "sweep" / name, ids[:cfg.sweep_num], captions, files, loaded, process, encoder)
        failures |= {f"{name}/{i}": why for i, why in part.failures.items()}
        if process.master:
            sweep.append({"steps": some.steps, "cfg": some.cfg, **sweep_scores(part, real, label, cfg.bootstrap)})
    if not process.master:
        return 0

    scores = {}
    if encoder:
        failures |= real.failures
        names, a, b = both(real, drawn.features)
        scores["generation"] = scoring.images(a, b, cfg.shards, replicates=cfg.bootstrap)
        named = [{"caption": captions[name], "labels": findings_of(images.rows[name]["labels"])} for name in names]
        known = [name for name in tables.FINDINGS if any(name in row["labels"] for row in named)]
        known = known or sorted({name for row in named for name in row["labels"]})
        scores["findings"] = scoring.by_finding(named, a, b, known, cfg.bootstrap)
        least = max(scoring.FEW, a.shape[1])
        warnings = tables.other_features(encoder.name)
        warnings += [f"FD of {name} is left out: fewer than two images." for name in known if name not in scores["findings"]]
        if few := [f"{name} ({row['n_real']})" for name, row in scores["findings"].items() if row["few"]]:
            warnings.append(f"FD of {', '.join(few)} is over fewer than {least} images each: mostly the bias of a small sample.")
    cosines, sentences = foreign.alignment([(out / "images" / files[name], captions[name]) for name in drawn.ids], cfg.python)
    if cosines is not None:
        mean = lambda at=slice(None): {"alignment": float(np.array(cosines)[at].mean())}
        intervals = metrics.bootstrap(mean, len(cosines), 10 * cfg.bootstrap) if cfg.bootstrap else {}
        number = tables.numbers({"alignment": alignment_mean(cosines)}, intervals, len(cosines))
        if encoder:
            for row in scores["generation"].values():
                row |= number
        else:
            scores["alignment"] = number
    if label is not None:
        scores["cycle"], _ = drawn.cycle(label, 10 * cfg.bootstrap)
    if sweep:
        scores["sweep"] = sweep
    encoder_name = encoder.name if encoder else "none"
    names = [name for name in drawn.ids if name not in failures]
    left_out += pictures(cfg, out, images, names, drawn.captions, scores, encoder_name)
    return finish(out, "Drawing", scores, cfg, left_out + sentences, failures, warnings=warnings, encoder=encoder_name)


def findings_of(labels):
    """CheXpert's {name: 1, 0, -1}, or a phantom's triples, as {name: value}."""
    return labels if isinstance(labels, dict) else {name: 1.0 for name, _, _ in labels}


def sweep_scores(part, real, label, replicates):
    scores = {}
    if real is not None:
        _, a, b = both(real, part.features)
        values = scoring.images(a, b, replicates=replicates)["1"]
        scores |= {"fd": values["fd"], "kd": values["kd"]}
    if label is not None:
        values, _ = part.cycle(label, 10 * replicates)
        scores["cycle_F1"] = values["micro" if "micro" in values else "uncertain_as_negative_micro_f1"]
    return scores


def pictures(cfg, out, images, names, captions, scores, encoder):
    """Real and generated side by side under the report; bars a finding; curves of the sweep -> what could not be shown."""
    folder, side, lost = features.Folder(out / "images"), 128, []
    small = lambda image: np.array(image.resize((side, side), Image.Resampling.BICUBIC))
    read = lambda _, name: (small(images.read(name)), small(folder.read(name)))
    pairs = checked([(name, name) for name in names[:cfg.show]], read, lost)
    if pairs:
        texts = [title + captions[name] for name, _ in pairs for title in ("real: ", "generated: ")]
        save_png(captioned([one for _, two in pairs for one in two], texts, columns=4), out / "pairs.png",
                 checkpoint=Path(cfg.checkpoint).name)
    if not tables.plots_left_out():
        if scores.get("findings"):
            tables.bars(out / "findings.png", scores["findings"], encoder)
        if scores.get("sweep"):
            tables.curves(out / "sweep.png", scores["sweep"])
    return lost
