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
import csv
import hashlib
import io
import logging
import warnings
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path

from mimic import annotations
from mimic import check as audit
from mimic.cleaning import rules as cleaning
from common import processes as common
from mimic.cleaning import change as comparing
from mimic.cleaning import guards
from common import images
from mimic.cleaning import llm
from common import packed as pack
from mimic import shards as packing
from mimic import splits as protocols
from mimic import pixels as radiographs
from mimic import sections
from mimic import sources
import vision
from mimic.cleaning import words as wording
from common.processes import InputError
from common.packed import describe, write


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


# The wording of the question, ours; an image always gets the same one. {parts} is what the report has.
PROMPTS = ["Describe this chest X-ray. Give the {parts}.", "Look at this chest radiograph and write the {parts}.",
           "You are a radiologist. Read this X-ray and state the {parts}.", "Report this chest X-ray with its {parts}.",
           "What does this radiograph show? Answer with the {parts}.", "Please read the image and write down the {parts}.",
           "As an expert in chest imaging, give the {parts} for this film.",
           "Study this frontal chest X-ray, then list the {parts}.",
           "Write a radiology report for this image, made up of the {parts}.",
           "Interpret the chest X-ray in detail: {parts}."]

# images in train, val and test of others, to hold ours against (None: not published)
PUBLISHED = {"und": {"frontal, rule-parsed findings (LLaVA-Rad table)": (162_969, 1_286, 2_461), "UniX": (163_344, None, 2_365)},
             "gen": {"UniX and CheXGenBench (not the official split)": (237_387, None, 4_352)}}
# reasons that are the protocol's, not the data's fault
LEFT_OUT = ("not frontal", "no findings", "another image", "not in --test-ids", "patient of", "understanding test",
            "beyond --limit")
DOWNLOAD = ("truncated", "empty file", "not an image", "unfinished", "missing")


# ---- text ----

def question(item, impression):
    number = int(sources.fraction(item.id) * len(PROMPTS))
    return PROMPTS[number].format(parts="FINDINGS and IMPRESSION" if impression else "FINDINGS")


def raw_text(cfg, item, content):
    """What the item's report says -> (findings, impression, source, what was odd), or why it cannot be used."""
    if item.text:
        (findings, impression, source), odd = item.text, ""
    elif content is None:
        return "report missing"
    else:
        (findings, impression, other, source), odd = sections.study_text(content, item.study)
        if not findings and not impression and not other and not cleaning.has_words(sections.decode(content)[0]):
            return "report empty"
        if cfg.fallback_paragraph and not findings:
            findings = other
    if not findings or not cleaning.has_words(findings):
        return "no findings" + (": hand-fixed study" if source.startswith("fixed") else "")
    return findings, impression, source, odd


def row_of(cfg, task, item, content, answer):
    """One row of the data set, or the reason why there is none. `answer` is what a language model made of the study."""
    raw = raw_text(cfg, item, content)
    if isinstance(raw, str):
        return raw
    findings, impression, source, odd = raw
    clean, flags = cfg.clean, []
    if answer:
        clean, flags = answer["method"], answer["flags"]
    if clean == "llm":
        findings, impression = answer["text"]
    elif clean == "rules":
        pair = findings, impression or ""
        (findings, dropped), (impression, more) = (cleaning.clean(one, cfg.drop_lateral, beside)
                                                   for one, beside in (pair, pair[::-1]))
        flags = flags + sorted({*dropped, *more})
    if not findings:
        return "no findings after cleaning"
    both = f"FINDINGS: {findings}" + (f"\nIMPRESSION: {impression}" if impression else "")
    odd = "broken characters" if "\ufffd" in both else odd
    row = dict(id=item.id, subject=item.subject, study=item.study, split=item.split, view=item.view,
               prompt=question(item, impression) if task == "und" else "", report=both if task == "und" else findings,
               labels=item.labels or {}, source=source, clean=clean, flags=flags + [odd] * bool(odd), image=item.image)
    if task == "und" and item.split == "test":          # scores on cleaned and on raw references are different things
        row["raw"] = f"FINDINGS: {raw[0]}" + (f"\nIMPRESSION: {raw[1]}" if raw[1] else "")
    return row


# ---- packing: one process takes one image ----

def start_worker(cfg, root, sets):
    global CFG, ROOT, SETS
    warnings.simplefilter("ignore")         # decoders quote single files; the verdict on each is in skipped.csv
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    CFG, ROOT, SETS = cfg, root, sets


def pack_image(job):
    """(path, [(task, item, report, answer)], numbers of the sets) -> {task: row or reason}, {number of the set: bytes}."""
    path, texts, numbers = job
    rows = {task: row_of(CFG, task, item, content, answer) for task, item, content, answer in texts}
    wanted = [n for n in numbers if isinstance(rows.get(SETS[n].task), dict)]
    if not wanted:
        return rows, {}
    largest = max(SETS[n].size for n in wanted)
    picture, reason = radiographs.read(ROOT / path, largest, CFG.min_side, CFG.max_aspect, CFG.equalize)
    if reason:
        return {task: reason if isinstance(row, dict) else row for task, row in rows.items()}, {}
    pads, pictures = {"und": CFG.und_pad, "gen": CFG.gen_pad}, {}
    for n in wanted:
        small = radiographs.fit(picture, SETS[n].size, CFG.fit, pads[SETS[n].task])
        pictures[n] = radiographs.encode(small, CFG.format, CFG.quality)
    return rows, pictures


def prepared(jobs, sets, numbers, reports, answers):
    """What a worker gets to know about each job: its report, and what a language model made of it."""
    tasks = {sets[n].task for n in numbers}
    for path, items in jobs:
        yield path, [(task, item, None if item.text else reports.read(item), answers.get(item.text_key))
                     for task, item in items if task in tasks], numbers


# ---- the run ----

def first_look(cfg, root, jobs, reports):
    """Before hours of work: are the images and the reports where we look for them?"""
    some = jobs[::max(1, len(jobs) // 500)]
    missing = []
    for path, _ in some:
        try:
            radiographs.locate(root / path)
        except radiographs.Unusable:
            missing.append(root / path)
    if len(missing) > len(some) / 2 and cfg.max_bad < 0.5:
        raise InputError(f"{len(missing)} of {len(some)} images looked for are missing, as {missing[0]}[.jpg]; is --images "
                         "the folder above files/? (For a partial copy on purpose: --max-bad 1.)")
    items = [item for _, items in some for task, item in items if task in cfg.task and not item.text]
    lost = [item.study for item in items if reports.read(item) is None]
    if len(lost) > len(items) / 2 and cfg.max_bad < 0.5:
        raise InputError(f"{len(lost)} of {len(items)} reports looked for are missing in {reports.path}, as {lost[0]}.txt.")


def settings_of(cfg, task, jobs):
    """What decides about the content of a set, and a hash of which images it was asked for."""
    used = ("dataset gen_split fallback_paragraph clean drop_lateral fit und_pad gen_pad equalize format quality min_side "
            "max_aspect shard").split() + ["llm_model", "llm_extra", "llm_judge"] * (cfg.clean == "llm")
    settings = {name: value for name, value in asdict(cfg).items() if name in used}
    asked = hashlib.sha256()
    for n, (path, items) in enumerate(jobs):
        for i in (item for its, item in items if its == task):
            asked.update(repr((n, path, i.id, i.subject, i.study, i.split, i.view, i.text, i.labels)).encode("utf-8", "replace"))
    modules = [cleaning, comparing, wording, sections, sources, annotations, protocols, radiographs, images, vision, pack]
    modules += [llm, guards] * (cfg.clean == "llm")
    code = [Path(file).read_bytes() for file in (__file__, *(module.__file__ for module in modules))]
    settings |= {"sizes": cfg.und_sizes if task == "und" else cfg.gen_sizes, "asked": asked.hexdigest()[:16],
                 "code": hashlib.sha256(b"".join(code)).hexdigest()[:16]}
    if task == "und":
        settings["questions"] = hashlib.sha256(repr(PROMPTS).encode()).hexdigest()[:16]
    if cfg.clean == "llm":
        settings["prompts"] = llm.prompt_hash(cfg)
    return settings


def stamp(root, reports, job, task):
    """What a rerun compares: the image's size and time (or why it is not there), and the same of the report files it needs."""
    path, items = job
    wanted = [item for its, item in items if its == task]
    texts = [reports.stamp(item) for item in wanted if not item.text]
    return f"{zlib.crc32(repr((radiographs.stamp(root / path), texts)).encode()):08x}" if wanted else ""


def main(argv):
    cfg = common.override(Settings(), argv, __doc__)
    out = Path(cfg.out or f"datasets/{cfg.dataset}").expanduser()
    if cfg.check:
        return audit.check(Path(cfg.check).expanduser())
    if cfg.show:
        audit.refuse_git(out)
        return audit.show(out, cfg.show)
    audit.refuse_git(out)
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
    first_look(cfg, root, jobs, reports)

    sets = []
    for task in (task for task in chosen if task in cfg.task):
        for size in cfg.und_sizes if task == "und" else cfg.gen_sizes:
            settings = settings_of(cfg, task, jobs)
            sets.append(packing.Set(task, size, out / f"{task}-{size}", describe(task, size, settings)))
    for one in sets:
        audit.refuse_git(one.directory)             # it may be a link
        packing.begin(one, cfg.overwrite)
    marks = lambda job, task: stamp(root, reports, job, task)
    packing.inputs_unchanged(sets, jobs, cfg.shard, marks, cfg.overwrite)
    write(out / "und-test-ids.txt", "".join(f"{name}\n" for name in sorted(test)).encode())
    answers = {}
    if cfg.clean == "llm":
        answers = llm.clean_all(cfg, out / "llm.jsonl", studies(cfg, jobs, reports))
    packing.pack_all(sets, jobs, cfg.shard, marks, cfg.workers, pack_image, start_worker, (cfg, root, sets),
                     lambda part, numbers: prepared(part, sets, numbers, reports, answers))

    skipped = list(left_out)
    for one in sets:
        skipped += packing.finish(one, -(-len(jobs) // cfg.shard))
    return report(cfg, out, sets, list(dict.fromkeys(skipped)), len({item.id for item in asked}))


def studies(cfg, jobs, reports):
    """(key, findings, impression) of every distinct text, for the language model."""
    seen = set()
    for _, items in jobs:
        for task, item in items:
            if task in cfg.task and item.text_key not in seen:
                seen.add(item.text_key)
                raw = raw_text(cfg, item, None if item.text else reports.read(item))
                if not isinstance(raw, str):
                    yield item.text_key, raw[0], raw[1]


def report(cfg, out, sets, skipped, asked):
    """ids and reasons to files, counts to the screen; the exit code."""
    for one in sets:
        rows = audit.rows_of(one.directory)
        write(out / f"{one.task}-ids.csv", csv_bytes([("id", "split"), *((row["id"], row["split"]) for row in rows)]))
    write(out / "skipped.csv", csv_bytes([("id", "path", "reason"), *skipped]))
    for one in sets:
        audit.summary(one.directory, PUBLISHED[one.task] if cfg.dataset == "mimic" else {})
    reasons = Counter(reason for _, _, reason in skipped)
    if reasons:
        print(f"\nnot packed ({out / 'skipped.csv'} has the ids):")
        for reason, number in reasons.most_common():
            print(f"  {number:9,}  {reason}")
    if any(reason.startswith(DOWNLOAD) for reason in reasons):
        print("  (damaged or missing images: download them again, then run again with --overwrite)")
    bad = len({name for name, _, reason in skipped if not reason.startswith(LEFT_OUT)})
    allowed = 0 if cfg.strict else cfg.max_bad
    if bad > allowed * asked:
        print(f"{bad} of {asked} images or reports are unusable, more than {allowed:.1%} (--max-bad).")
        return 1
    return 0


def csv_bytes(rows):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")


if __name__ == "__main__":
    common.cli(main)
