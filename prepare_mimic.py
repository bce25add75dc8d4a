"""MIMIC-CXR as it lies on disk -> packed data sets for stages 1-3 and the evaluation.

    python prepare_mimic.py --images mimic-cxr-jpg/2.1.0 --reports mimic-cxr-reports.zip --out DIR
    python prepare_mimic.py --images … --reports … --task und --limit 200 --out TRY    # look first
    python prepare_mimic.py --check DIR                  # verify hashes, pictures, splits
    python prepare_mimic.py --show 16 --out DIR          # a contact sheet with ids
    python prepare_mimic.py --dataset openi --images NLMCXR_png --reports ecgen-radiology --out DIR
    python prepare_mimic.py --dataset table --reports mine.csv --out DIR

und-384 is for reading: frontal images whose report has FINDINGS, by the official split. gen-256 and
gen-512 are for drawing: the findings alone, and never an image of the understanding test among
those to train on. All sizes are made in one pass over the images. After an interruption run it
again: finished shards stay as they are. docs/data.md leads from the PhysioNet account to here.

MIMIC-CXR may not be passed on. So the output is readable by you alone and may not lie where git
would take it, and nothing that is printed quotes a report.

Read on in the order of a sample's way, all in mimic/: sources and openi (where images and reports
lie), annotations and splits (who trains and tests), sections and cleaning/ (what a report says),
rows, pixels (one image), shards (many), check (looking back).
"""
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from common.cli import InputError, cli, override
from common.files import write_text
from mimic import check, rows, shards, sources, splits
from mimic.cleaning import llm
from mimic.items import LeftOut


@dataclass
class Settings:
    # where everything lies
    dataset: Literal[*sources.SOURCES] = "mimic"    # openi needs no credentials; table: your own
    images: str = ""                # root of MIMIC-CXR-JPG or the tree above; folder of images
    reports: str = ""               # mimic-cxr-reports.zip or unpacked; Open-I's folder; your table
    columns: list[str] = field(default_factory=list)    # of your table: subject=case_no image=film
    split_by: Literal["patient", "study", "image"] = "patient"  # your table, if it has no patients
    tables: str = ""                # metadata and split tables' folder; Open-I: its table of views
    out: str = ""                   # und-<size>, gen-<size> go here; default: datasets/<dataset>

    # which images, for what
    task: list[Literal["und", "gen"]] = field(default_factory=lambda: ["und", "gen"])   # what for
    und_sizes: list[int] = field(default_factory=lambda: [384])         # pixels a side
    gen_sizes: list[int] = field(default_factory=lambda: [256, 512])    # pixels a side
    gen_split: Literal["official", "chexgenbench"] = "official"  # chexgenbench mixes official ones
    chexgenbench: str = ""          # its folder, of LLAVARAD_ANNOTATIONS_{TRAIN,TEST}.csv
    llava_rad: str = ""             # folder of LLaVA-Rad's JSON: its findings, not the reports'
    test_ids: str = ""              # file that names the und test: the official JSON, or a list
    one_per_study: bool = False     # one image a study, PA before AP; else all (1.11 in the paper)

    # the text
    fallback_paragraph: bool = False    # without FINDINGS the last paragraph or hand-fixed text
    labels: bool = True             # put the CheXpert labels of the study in the rows
    clean: Literal["rules", "llm", "none"] = "rules"    # llm: a server of OpenAI's protocol
    drop_lateral: bool = False      # rules: also drop sentences about the unseen lateral view
    llm_url: str = "http://127.0.0.1:8000/v1"   # its server; MIMIC stays on this machine, unless
    i_verified_zero_retention: bool = False     # I checked: it keeps, trains and shows nothing
    llm_model: str = "deepseek-ai/DeepSeek-V3"  # the name that the server knows
    llm_key_env: str = "OPENAI_API_KEY"         # environment variable that holds the key
    llm_extra: str = ""             # JSON for each request, as {"thinking": {"type": "disabled"}}
    llm_workers: int = 16           # requests at a time
    llm_judge: bool = False         # a second request asks what was lost, added or changed

    # the pictures
    fit: Literal["pad", "stretch", "crop"] = "pad"      # how an image becomes square
    und_pad: int = 141              # grey (0 to 255) of the bars, to read: what the release saw
    gen_pad: int = 0                # the same to draw: black, as outside of the body
    equalize: bool = False          # equalise the histogram of DICOM and PNG, as MIMIC's JPGs are
    format: Literal["jpg", "png"] = "jpg"           # png: exact, 1.6 times the space
    quality: int = 95               # of the JPEG, 1 to 100
    min_side: int = 64              # images with fewer pixels on a side are skipped
    max_aspect: float = 3.0         # so are those longer than so many times their width

    # the run
    max_bad: float = 0.01           # a larger share of unusable images or reports: exit code 1
    strict: bool = False            # exit code 1 for a single unusable one
    limit: int = 0                  # only the first images, to try things out; 0: all
    shard: int = 10_000             # images a shard, the unit of restarting
    workers: int = 0                # processes; 0: one a core
    overwrite: bool = False         # replace data sets of other settings
    check: str = ""                 # verify this packed data set, or all in this folder, and stop
    show: int = 0                   # write so many images of --out to contact-sheet.png, and stop

    def __post_init__(self):
        ranges = {
            "shard": (1, 10**9), "llm_workers": (1, 1000), "workers": (0, 1000),
            "und_pad": (0, 255), "gen_pad": (0, 255), "quality": (1, 100), "min_side": (1, 10**5),
            "limit": (0, 10**9), "show": (0, 1000), "max_bad": (0, 1), "max_aspect": (1, 1000),
        }
        for name, (low, high) in ranges.items():
            option = name.replace("_", "-")
            assert low <= getattr(self, name) <= high, f"--{option} wants {low} to {high}."
        assert self.task, "--task wants und, gen or both."
        for sizes in (self.und_sizes, self.gen_sizes):
            in_range = min(sizes) >= 1 and max(sizes) <= 4096
            assert in_range and len(set(sizes)) == len(sizes), "sizes want 1 to 4096, each once."
        assert self.gen_split == "official" or self.chexgenbench, \
            "--gen-split chexgenbench needs --chexgenbench FOLDER."


def main(argv):
    cfg = override(Settings(), argv, __doc__)
    out = Path(cfg.out if cfg.out else f"datasets/{cfg.dataset}")

    # looking at what is finished
    if cfg.check:
        return check.check(Path(cfg.check))
    if cfg.show:
        shards.refuse_git(out)
        return check.show(out, cfg.show)

    # what can be refused is refused before a folder is made
    sources.refuse_unnamed(cfg)
    shards.refuse_git(out)
    if cfg.clean == "llm":
        llm.refuse_others(cfg)                  # before anything is read
    with shards.alone_and_private(out):
        return prepare(cfg, out)


def prepare(cfg, out):
    """From raw data to packed data sets in `out` -> the exit code."""
    # which images there are; everything that drops out on the way is remembered with a reason
    left_out = LeftOut()
    root, items = sources.read_source(cfg, left_out)

    # who trains, validates and tests. Both tasks are laid out even if one is asked for: so shard k
    # holds the same images, whether the tasks are packed together or one by one
    chosen, test = splits.assign(cfg, items, left_out)
    jobs = splits.limited(splits.by_image(chosen, left_out), cfg.limit, left_out)
    asked = [item for job in jobs for task, item in job.items if task in cfg.task]
    if not asked:
        raise InputError(f"no image is left for {' and '.join(cfg.task)}: "
                         f"{check.in_short(left_out)}.")

    # where the reports are, unless the source brought their text along
    reports = None
    if any(not item.text for item in asked):
        if not cfg.reports:
            raise InputError("--reports names mimic-cxr-reports.zip or its unpacked folder; the "
                             "JPG release has no reports.")
        reports = sources.Reports(cfg.reports)
    check.first_look(cfg, root, jobs, reports)

    # the data sets to make: begun anew, or gone on with if their settings and inputs are the same
    sets = shards.sets_to_make(cfg, out, jobs)
    shards.refuse_other_settings(sets, cfg.overwrite)
    stale = shards.changed_inputs(cfg, root, sets, jobs, reports)

    # a language model cleans every report once, if it is asked for; the rules work while packing
    answers = {}
    if cfg.clean == "llm":
        texts = rows.texts_to_clean(cfg, jobs, reports)
        answers = llm.clean_all(cfg, out / "llm.jsonl", texts)

    # now that nothing can be refused any more, what --overwrite replaces may go
    shards.begin(sets, stale)
    write_text(out / "und-test-ids.txt", "".join(f"{id}\n" for id in sorted(test)))

    # one pass over the images: report -> row, image -> squares of all sizes, both -> shards
    shards.pack_all(cfg, root, sets, jobs, reports, answers)
    skipped = left_out + shards.finish(sets, jobs, cfg.shard)

    # what became of everything; an image that both tasks skip for one reason counts once
    images = {item.id for item in asked}
    return check.report(cfg, out, sets, list(dict.fromkeys(skipped)), images)


if __name__ == "__main__":
    cli(main)
