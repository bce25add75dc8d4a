"""
MIMIC-CXR as it lies on disk -> packed data sets for stages 1-3 and the evaluation, by the paper's protocols.

    python prepare_mimic.py --images mimic-cxr-jpg/2.1.0 --reports mimic-cxr-reports.zip --out /data/mimic
    python prepare_mimic.py --images … --reports … --task und --limit 200 --out /data/try      # look first
    python prepare_mimic.py --check /data/mimic              # verify hashes, pictures, splits
    python prepare_mimic.py --show 16 --out /data/mimic      # a contact sheet with ids
    python prepare_mimic.py --dataset openi --images NLMCXR_png --reports ecgen-radiology --out /data/openi
    python prepare_mimic.py --dataset table --reports mine.csv --out /data/mine

und-384 is for reading (frontal images whose report has FINDINGS, official split), gen-256 and gen-512 for drawing (findings
alone; images of the understanding test are never among those to train on). All sizes are made in one pass over the images.
Interrupted, run it again: finished shards stay as they are. docs/data.md leads from the PhysioNet account to here.
Read on in the order of a sample's way: sources (annotations, protocols: which images, with whose text), sections (the report's
parts), cleaning (comparing, wording; or llm and guards), radiographs (one image), packing (many), audit (looking back).
MIMIC-CXR may not be passed on: the output is readable by you alone, may not lie in a git work tree, and no log quotes a report.
"""
from dataclasses import dataclass, field
from pathlib import Path

from common import processes as common
from common.packed import describe, write
from common.processes import InputError
from mimic import check as audit
from mimic import rows
from mimic import shards as packing
from mimic import sources
from mimic import splits as protocols
from mimic.cleaning import llm


@dataclass
class Settings:
    dataset: str = "mimic"          # mimic, openi (needs no credentials) or table (your own CSV or JSONL)
    images: str = ""                # root of MIMIC-CXR-JPG (or the tree that wget left above it); folder of the images
    reports: str = ""               # mimic-cxr-reports.zip or its unpacked folder; Open-I's XML or Kaggle folder; your table
    tables: str = ""                # folder of the metadata and split tables, when it is not that of the images
    out: str = ""                   # where und-<size> and gen-<size> go, by default datasets/<dataset>; not in a git work tree
    task: list[str] = field(default_factory=lambda: ["und", "gen"])       # und (read reports), gen (draw), or both in one pass
    und_sizes: list[int] = field(default_factory=lambda: [384])           # pixels a side
    gen_sizes: list[int] = field(default_factory=lambda: [256, 512])      # pixels a side
    gen_split: str = "official"     # or chexgenbench, which needs its CSV files and mixes the official splits
    chexgenbench: str = ""          # folder of LLAVARAD_ANNOTATIONS_{TRAIN,TEST}.csv
    llava_rad: str = ""             # folder of the LLaVA-Rad annotations (JSON): their findings instead of the report files'
    test_ids: str = ""              # file that names the images of the understanding test: the official JSON, or a list
    one_per_study: bool = False     # one frontal image a study, PA before AP; else all (the paper's are 1.11 a study)
    fallback_paragraph: bool = False    # without FINDINGS use the last paragraph or the hand-fixed text
    labels: bool = True             # put the CheXpert labels of the study in the rows
    clean: str = "rules"            # rules, llm (a server that speaks OpenAI's protocol) or none
    drop_lateral: bool = False      # rules: also drop sentences about the lateral view, which the model does not see
    llm_url: str = "http://127.0.0.1:8000/v1"   # your own server; another host is refused for MIMIC, see the next line
    i_verified_zero_retention: bool = False     # I checked that this host keeps nothing, trains on nothing, shows no human
    llm_model: str = "deepseek-ai/DeepSeek-V3"  # the name that the server knows
    llm_key_env: str = "OPENAI_API_KEY"         # environment variable with the key, if the server wants one
    llm_extra: str = ""             # JSON that is merged into each request, as {"thinking": {"type": "disabled"}}
    llm_workers: int = 16           # requests at a time
    llm_judge: bool = False         # a second request asks what was lost, added or changed
    fit: str = "pad"                # pad, stretch or crop to a square
    und_pad: int = 141              # grey of the bars: what the released encoder saw
    gen_pad: int = 0                # outside of the body is black
    equalize: bool = False          # equalise the histogram of DICOM and PNG, as MIMIC's JPGs are already
    format: str = "jpg"             # jpg or png (exact, 1.6 times the space)
    quality: int = 95               # of the JPEG
    min_side: int = 64              # smaller images are skipped
    max_aspect: float = 3.0         # so are longer ones
    max_bad: float = 0.01           # more unusable images or reports than this share: exit code 1
    strict: bool = False            # exit code 1 for a single one
    limit: int = 0                  # only the first images, to try things out; 0: all
    shard: int = 10_000             # images a shard, the unit of restarting
    workers: int = 0                # processes; 0: one a core
    overwrite: bool = False         # replace data sets of other settings
    check: str = ""                 # verify this packed data set, or all in this folder, and stop
    show: int = 0                   # write so many images of --out to contact-sheet.png with their ids, and stop

    def __post_init__(self):
        choices = dict(dataset=("mimic", "openi", "table"), gen_split=("official", "chexgenbench"),
                       clean=("rules", "llm", "none"), fit=("pad", "stretch", "crop"), format=("jpg", "png"))
        for name, known in choices.items():
            value = self.__dict__[name]
            assert value in known, f"--{name.replace('_', '-')} {value} is none of {', '.join(known)}."
        assert self.task and set(self.task) <= {"und", "gen"}, f"--task {' '.join(self.task)}: wanted und, gen or both."
        ranges = dict(shard=(1, 10**9), llm_workers=(1, 1000), workers=(0, 1000), und_pad=(0, 255), gen_pad=(0, 255),
                      quality=(1, 100), min_side=(1, 10**5), limit=(0, 10**9), show=(0, 1000), max_bad=(0, 1),
                      max_aspect=(1, 1000))
        for name, (low, high) in ranges.items():
            assert low <= self.__dict__[name] <= high, f"--{name.replace('_', '-')} wants {low} to {high}."
        for sizes in (self.und_sizes, self.gen_sizes):
            assert min(sizes) >= 1 and max(sizes) <= 4096 and len({*sizes}) == len(sizes), "sizes want 1 to 4096, each once."
        assert self.gen_split == "official" or self.chexgenbench, "--gen-split chexgenbench needs --chexgenbench FOLDER."


def main(argv):
    cfg = common.override(Settings(), argv, __doc__)
    out = Path(cfg.out or f"datasets/{cfg.dataset}").expanduser()
    if cfg.check:
        return audit.check(Path(cfg.check).expanduser())
    if cfg.show:
        packing.refuse_git(out)
        return audit.show(out, cfg.show)
    packing.refuse_git(out)
    if cfg.clean == "llm":
        llm.refuse_others(cfg)
    with packing.alone_and_private(out):
        return run(cfg, out)


def run(cfg, out):
    left_out = sources.LeftOut()
    root, chosen, test = protocols.listing(cfg, left_out)
    # both tasks' images, whatever --task says: so shard k holds the same, whether they are made together or one by one
    jobs = protocols.by_image(chosen, left_out)
    for path, items in jobs[cfg.limit or len(jobs):]:
        left_out.add(items[0][1].id, path, "beyond --limit")
    jobs = jobs[:cfg.limit or None]
    asked = [item for _, items in jobs for task, item in items if task in cfg.task]
    if not asked:
        raise InputError(f"no image is left for {' and '.join(cfg.task)}; {len(left_out)} were left out.")
    needed = any(not item.text for item in asked)
    if needed and not cfg.reports:
        raise InputError("--reports names mimic-cxr-reports.zip or its unpacked folder; the JPG release has no reports.")
    reports = sources.Reports(cfg.reports) if needed else None
    audit.first_look(cfg, root, jobs, reports)

    sets = []
    for task in (task for task in chosen if task in cfg.task):
        for size in cfg.und_sizes if task == "und" else cfg.gen_sizes:
            settings = packing.settings_of(cfg, task, jobs)
            sets.append(packing.Set(task, size, out / f"{task}-{size}", describe(task, size, settings)))
    for one in sets:
        packing.refuse_git(one.directory)             # it may be a link
        packing.begin(one, cfg.overwrite)
    marks = lambda job, task: packing.stamp(root, reports, job, task)
    packing.inputs_unchanged(sets, jobs, cfg.shard, marks, cfg.overwrite)
    write(out / "und-test-ids.txt", "".join(f"{name}\n" for name in sorted(test)).encode())
    answers = {}
    if cfg.clean == "llm":
        answers = llm.clean_all(cfg, out / "llm.jsonl", rows.studies(cfg, jobs, reports))
    packing.pack_all(sets, jobs, cfg.shard, marks, cfg.workers, packing.pack_image, packing.start_worker, (cfg, root, sets),
                     lambda part, numbers: packing.prepared(part, sets, numbers, reports, answers))

    skipped = list(left_out)
    for one in sets:
        skipped += packing.finish(one, -(-len(jobs) // cfg.shard))
    return audit.report(cfg, out, sets, list(dict.fromkeys(skipped)), len({item.id for item in asked}))


if __name__ == "__main__":
    common.cli(main)
