"""`evaluate.py features` and `evaluate.py compare`: other people's models, from their files. For research, not for clinical use.
"""
import sys
from dataclasses import dataclass, field
from pathlib import Path

from common import processes as common
from evaluation import features
from evaluation import scoring
from evaluation import tables
import weights
from common.processes import InputError
from evaluation.text_metrics import same_items
from evaluation.worklist import read_rows


# ---- features of a folder ----

@dataclass
class FeaturesConfig:
    images: str = ""                # folder of images, or a packed data set (datasets/mimic/gen-512)
    split: str = ""                 # of a packed data set: train, val, test; default: all
    out: str = "features.safetensors"       # file to write
    encoder: str = "rad-dino"       # or vision: the tower of --checkpoint
    rad_dino: str = "pretrained/rad-dino"   # where RAD-DINO lies
    route: str = "benchmark"        # into RAD-DINO: benchmark (squashed to 299 px first) or straight (518 px)
    checkpoint: str = "out/gen512"  # whose tower, for --encoder vision
    batch: int = 32                 # images at once
    device: str = "auto"            # auto, cpu, cuda
    dtype: str = "float32"          # or bfloat16

    def __post_init__(self):
        assert self.batch > 0, "--batch must be at least 1."
        assert self.encoder in ("rad-dino", "vision"), f"--encoder {self.encoder} is none of rad-dino, vision."


def encoder_of(cfg, device):
    if cfg.encoder == "rad-dino":
        return features.rad_dino(cfg.rad_dino, cfg.route, device)
    return features.tower(weights.load(cfg.checkpoint, dtype=common.torch_dtype(cfg.dtype))[0].to(device))


def extract(argv):
    cfg = common.override(FeaturesConfig(), argv, __doc__)
    if not cfg.images:
        raise InputError("say which images: `python evaluate.py features --images DIR --out a.safetensors`.")
    process, images = common.setup(cfg.device), features.open_images(cfg.images, cfg.split)
    found = features.extract(encoder_of(cfg, process.device), images, process, cfg.batch)
    if not process.master:
        return 0
    features.save(cfg.out, found)
    print(f"{len(found.ids)} images by '{found.encoder}' in {cfg.out}; {len(found.failures)} could not be read")
    return complain(found.failures)


def complain(failures):
    """Say what failed -> exit code."""
    print("".join(f"error: {why}\n" for why in failures.values()), end="", file=sys.stderr)
    return 1 if failures else 0


# ---- two sets of images, or two of reports ----

@dataclass
class CompareConfig:
    real: str = ""                  # the first of the two: a feature file or a folder of images; or references, JSON lines
    generated: str = ""             # the second: the same of the generated images; or reports, JSON lines
    out: str = "compare"            # writes <out>.json and <out>.md
    shards: list[int] = field(default_factory=list)     # cut the lists into so many blocks; default: 1 and 4
    k: int = 5                      # which neighbour's distance is a sample's radius
    encoder: str = "rad-dino"       # of folders: rad-dino, or vision (the tower of --checkpoint)
    rad_dino: str = "pretrained/rad-dino"   # where RAD-DINO lies
    route: str = "benchmark"        # into RAD-DINO: benchmark or straight
    checkpoint: str = "out/gen512"  # whose tower, for --encoder vision
    chexbert: str = "pretrained/chexbert"   # of reports: folder with chexbert.pth and vocab.txt
    cut: bool = False               # CheXbert sees the first 512 characters alone, as in the official evaluation
    python: str = ""                # interpreter of an environment with RadGraph; default: this one
    bootstrap: int = 100            # draws of the intervals, ten times as many of reports; 0: none
    batch: int = 32                 # images at once
    device: str = "auto"            # auto, cpu, cuda
    dtype: str = "float32"          # or bfloat16

    def __post_init__(self):
        self.shards = self.shards or [1, 4]
        assert min(self.shards) > 0 and self.k > 0 and self.batch > 0, "--shards, --k and --batch must be at least 1."
        assert self.bootstrap >= 0, "--bootstrap must be 0 or more."
        assert self.encoder in ("rad-dino", "vision"), f"--encoder {self.encoder} is none of rad-dino, vision."


def compare(argv):
    if len(argv) > 1 and not any(word.startswith("--") for word in argv[:2]):
        argv = ["--real", argv[0], "--generated", *argv[1:]]
    cfg = common.override(CompareConfig(), argv, __doc__)
    if not cfg.real or not cfg.generated:
        raise InputError("say what to compare: `python evaluate.py compare real.safetensors generated.safetensors`.")
    process, paths = common.setup(cfg.device), (cfg.real, cfg.generated)
    if process.world > 1:
        raise InputError("compare runs in one process; extract features under torchrun with `evaluate.py features`.")
    if any(path.endswith(".jsonl") for path in paths):
        return compare_reports(cfg, process)
    encoder = None if all(path.endswith(".safetensors") for path in paths) else encoder_of(cfg, process.device)
    real, made = (features.load(path) if path.endswith(".safetensors") else
                  features.extract(encoder, features.open_images(path), process, cfg.batch) for path in paths)
    features.same_encoder(real, made, paths)
    failures = real.failures | made.failures
    ids, others = ([name for name in part.ids if name not in failures] for part in (real, made))    # what failed, on both sides
    shared, paired = set(ids) & set(others), set(ids) == set(others)
    warnings = tables.other_features(real.encoder)
    if shared and not paired:
        warnings.append(f"{len(shared)} of {len(ids)} and {len(others)} names are in both sets: they are compared as two sets, "
                        "not image by image, and blocks hold different prompts.")
    scores = {"generation": scoring.images(real.pick(ids), made.pick(ids if paired else others), cfg.shards, cfg.k, cfg.bootstrap,
                                           paired)}         # pairs in the same order, so in the same blocks
    print(tables.write(Path(cfg.out), f"{cfg.real} and {cfg.generated}", scores, vars(cfg), failures=failures,
                       encoder=real.encoder, paired=paired, warnings=warnings))
    return complain(failures)


def compare_reports(cfg, process):
    """Only rows of both files with text are scored; {"id", "error"} rows are failures, named and left out on both sides."""
    for path in (cfg.real, cfg.generated):
        if not path.endswith(".jsonl"):
            raise InputError(f"{path} is no .jsonl file; references and reports are compared with each other, not with images.")
        if not Path(path).is_file():
            raise InputError(f"there are no reports at {path}.")
    there, said = (read_rows(Path(path), ours=False) for path in (cfg.real, cfg.generated))
    failures = {name: row["error"] for rows in (there, said) for name, row in rows.items() if "error" in row}
    for rows, path in ((there, cfg.real), (said, cfg.generated)):
        bad = [name for name, row in rows.items() if name not in failures and not isinstance(row.get("report"), str)]
        if bad:
            raise InputError(f"{path}: row {bad[0]} has no 'report' that is text; what failed has an 'error' instead.")
    texts = [{name: row["report"] for name, row in rows.items() if name not in failures} for rows in (said, there)]
    _, said, there = same_items(*texts)
    label, left_out = scoring.labeller(cfg.chexbert, cfg.cut, process.device, phantom=False)
    values, details, more = scoring.reports(said, there, label, 10 * cfg.bootstrap, cfg.python)
    print(tables.write(Path(cfg.out), f"{cfg.real} and {cfg.generated}", {"understanding": values}, vars(cfg), left_out + more,
                       failures, details=details))
    return complain(failures)
