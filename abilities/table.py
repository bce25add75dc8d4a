"""A data set out of a table of reports: images, and a manifest that prepare_mimic.py reads.

    python sample.py --table prompts.csv --out synth/
    python sample.py --table prompts.csv --out synth/ --balance Edema Pneumothorax --total 1000
    torchrun --nproc_per_node=8 sample.py --table prompts.csv --out synth/ --best-of 4

The table is CSV or JSON lines. It has a column `id` and one of reports (`report` or `findings`), or
columns named as the 14 labels of CheXpert with 1, 0 or nothing, which become a report
(abilities/templates.py). Its other columns (subject, sex, age, view, ...) are carried along.

    synth/images/ID.png     the pictures; each holds its report and settings as text chunks
    synth/manifest.csv      a line a picture: id, image, report, likelihoods, what was carried along
    synth/settings.json     settings, the checkpoint and its hash; `made_with` is their hash
    synth/drawn.jsonl       what became of every picture, also of those that were left out

    python prepare_mimic.py --dataset table --reports synth/manifest.csv --out datasets/synth

The noise of a picture depends on the seed, the id of its row and its number alone. Interrupted, the
command goes on when it is given again and leaves the same bytes; under torchrun processes share the
work. For research, not for clinical use.
"""
import csv
import hashlib
import io
import math
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

import sample
import weights
from abilities import templates
from abilities.likelihood import token_scores
from common import columns, locks, processes, worklist
from common.cli import InputError, override
from common.files import settings_hash, write_text
from common.images import save_png
from common.prompts import file_name, id_of
from common.tables import own_table
from phantom.facts import FINDINGS, report_to_facts
from vision import preprocess
from weights.adapters import fingerprint
from weights.checkpoint import newest
from weights.int8 import MATRICES
from weights.knowledge import notice, tell_unknown


@dataclass
class TableConfig(sample.Sampling):
    table: str = ""             # CSV or JSON lines: id and report, or columns of labels
    out: str = "synth"          # directory for images/, manifest.csv and settings.json
    columns: list[str] = field(default_factory=list)    # what holds what: report=caption
    num: int = 1                # pictures of each row
    balance: list[str] = field(default_factory=list)    # findings that get equal shares
    total: int = 0              # pictures in all, with --balance
    best_of: int = 1            # drawings of each picture; the model's reader keeps the likeliest
    keep_above: float = -math.inf   # leave out pictures with a less likely word; -3 is a start
    checkpoint: str = str(Path(__file__).resolve().parents[1] / "demo")     # directory or run
    preset: str = ""            # "release": the sampling settings of the released UniX
    prompt: str = sample.PROMPT     # what the model's reader is asked
    overwrite: bool = False     # begin anew although --out holds pictures of other settings
    device: str = "auto"        # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # number format of the weights
    weights: Literal[*MATRICES] = "float"       # int8: large matrices as 8-bit integers
    threads: int = 0            # CPU threads; 0: a fair share of the cores
    raw: bool = False           # the raw weights of a training run instead of the averaged ones

    def __post_init__(self):
        super().__post_init__()
        assert min(self.num, self.best_of) > 0, "--num and --best-of must be at least 1."
        assert self.total >= 0, "--total must be 0 or more."
        assert bool(self.balance) == (self.total > 0), (
            "--balance says of which findings, --total how many pictures in all: give both.")
        assert len(set(self.balance)) == len(self.balance), "--balance names a finding twice."
        assert not self.balance or self.num == 1, "--num has no meaning beside --balance."
        assert not self.balance or self.total % len(self.balance) == 0, (
            f"--total {self.total} is no multiple of the {len(self.balance)} named findings.")


# ---- the table ----

@dataclass
class Row:
    """A row of the table."""
    id: str
    report: str                 # what is drawn
    labels: dict                # {label: 1 or 0} of the columns that are labels
    carried: dict               # {column: value} that goes into the manifest


LONGEST_ID = 150            # bytes; a file's name may have 255, endings and numbers among them

# columns of the manifest that are ours; what the table calls so is not carried along
OURS = ("id", "image", "report", "log_likelihood", "least_word", "made_with")


def read_rows(cfg):
    """The rows of the table, in its order. InputError for one that cannot be drawn."""
    names, rows = own_table(cfg.table)
    known = columns.understand(cfg.table, names, cfg.columns)
    labels = templates.label_columns(names)
    if not labels and known.keys().isdisjoint(("report", "findings")):
        usual = [", ".join(list(some)[:4]) for some in (columns.NAMES["report"],
                                                        templates.SENTENCES)]
        raise InputError(f"{columns.there_are(cfg.table, names)} None is known as the report "
                         f"({usual[0]}, …) or as a label ({usual[1]}, …): rename it, or say which "
                         "with --columns report=COLUMN.")
    # what is read here, and texts that `report` takes the place of
    used = {known[what] for what in ("id", "image", "report", "findings", "impression")
            if what in known}
    kept = [name for name in names if name not in used and name not in OURS]

    made, ids = [], set()
    for number, row in enumerate(rows, 1):
        where = f"{cfg.table}, row {number}"
        id = id_of(row, known, number)
        if len(file_name(id).encode()) > LONGEST_ID:
            raise InputError(f"{where}: its id is too long for the name of a file; {LONGEST_ID} "
                             "bytes at most.")
        # ids that differ in signs or capitals alone would be one file
        if file_name(id).lower() in ids:
            raise InputError(f"{where}: the id {id} is there twice; give every row its own.")
        ids.add(file_name(id).lower())
        values = templates.labels_of(row, labels, where)
        carried = {name: row.get(name, "") for name in kept}
        if "subject" not in known:
            carried["subject"] = id         # pictures of one report are to stay in one split
        made.append(Row(id, report_of(row, known, values, where), values, carried))
    return made


def report_of(row, known, labels, where):
    """What is to be drawn of a row: its text, or the sentences of its labels."""
    text = columns.known_value(row, known.get("findings", known.get("report")))
    if text is None:
        text = templates.text_of(labels)
    elif columns.not_text(text):
        raise InputError(f"{where}: the report is no text but {columns.not_text(text)}.")
    if not text:
        raise InputError(f"{where} has neither a report nor a label; take it out.")
    return text


# ---- which pictures ----

@dataclass
class Picture:
    """A picture to draw: number k of a row."""
    id: str
    row: Row
    k: int

    def noise(self, n):
        """A number for the noise of drawing n of this picture, from (id of the row, k, n) alone."""
        key = f"{self.row.id}\0{self.k}\0{n}".encode()
        return int.from_bytes(hashlib.sha256(key).digest()[:7])


def pictures_of(cfg, rows):
    """The pictures to draw: --num of each row, or what --balance chooses -> {id: Picture}."""
    if cfg.balance:
        chosen = balanced(cfg, rows)
    else:
        chosen = [(row, k) for row in rows for k in range(cfg.num)]
    several = any(k > 0 for _, k in chosen)
    pictures = [Picture(f"{row.id}-{k}" if several else row.id, row, k) for row, k in chosen]
    return {picture.id: picture for picture in pictures}


def balanced(cfg, rows):
    """Equal shares of the findings of --balance -> [(row, number of its picture)].

    A row counts for a finding if it has this one and no other of --balance, so that the counts are
    exact. Rows of a finding take turns, and are drawn anew when all have had theirs.
    """
    having = {name: [] for name in cfg.balance}
    for row in rows:
        found = findings_of(row, cfg.balance)
        if len(found) == 1:
            having[found[0]].append(row)
    empty = [name for name, those in having.items() if not those]
    if empty:
        raise InputError(f"{cfg.table} has no row with {empty[0]} and no other of "
                         f"{', '.join(cfg.balance)}; --balance draws from such rows.")
    share = cfg.total // len(cfg.balance)
    return [(those[n % len(those)], n // len(those))
            for those in having.values() for n in range(share)]


def findings_of(row, names):
    """Which of these findings a row has, by its labels or, of phantoms, by its report."""
    facts = {fact.finding for fact in report_to_facts(row.report)}
    found = []
    for name in names:
        label = next((label for label in templates.SENTENCES
                      if columns.plain(label) == columns.plain(name)), None)
        if label is None and name not in FINDINGS:
            raise InputError(f"--balance {name} is none of the labels "
                             f"{', '.join(templates.SENTENCES)}, nor of a phantom's findings "
                             f"{', '.join(FINDINGS)}.")
        if (label in row.labels and row.labels[label] == 1) or name in facts:
            found.append(name)
    return found


# ---- drawing ----

@dataclass
class Studio:
    """What all pictures of a run have in common."""
    cfg: TableConfig
    model: object
    vae: object
    tokenizer: object
    folder: Path                # of the images
    about: dict                 # what every picture carries as text chunks

    def draw(self, pictures):
        """Draw and write a block of pictures -> a row {"id", "image", ...} for each."""
        reports = [picture.row.report for picture in pictures]
        with_scores = self.cfg.best_of > 1 or self.cfg.keep_above > -math.inf
        best = [None] * len(pictures)
        for n in range(self.cfg.best_of):
            drawn = sample.generate_images(
                self.model, self.vae, self.tokenizer, reports, self.cfg, progress=False,
                numbers=[picture.noise(n) for picture in pictures])[:, 0]
            scores = self.likelihoods(drawn, reports) if with_scores else [{}] * len(pictures)
            for i, (image, score) in enumerate(zip(drawn, scores)):
                if best[i] is None or score["log_likelihood"] > best[i][1]["log_likelihood"]:
                    best[i] = (image, score)

        rows = []
        for picture, (image, score) in zip(pictures, best):
            row = {"id": picture.id, **score}
            if with_scores and score["least_word"] < self.cfg.keep_above:
                row["error"] = f"its least likely word is at {score['least_word']}"
            else:
                row["image"] = f"{file_name(picture.id)}.png"
                save_png(Image.fromarray(image), self.folder / row["image"],
                         reports=picture.row.report, id=picture.id, **self.about)
            rows.append(row)
        return rows

    def likelihoods(self, drawn, reports):
        """What the model's own reader thinks of pictures (N, S, S) of these reports.

        log_likelihood: of the whole report, given the picture. least_word: of its least likely
        word. Where a text could go on in other words, one of them is at -1 to -3; a wrong side,
        size or finding is at -4 to -15.
        """
        vision = self.model.cfg.vision
        images = [preprocess(Image.fromarray(image), vision.image_size, vision.pad)
                  for image in drawn]
        scores = token_scores(self.model, self.tokenizer, torch.stack(images), reports,
                              self.cfg.prompt, self.cfg.batch)
        return [{"log_likelihood": round(score.total, 3), "least_word": round(score.least, 3)}
                for score in scores]


# ---- what is written at the end ----


def write_manifest(path, pictures, rows, made_with):
    """The manifest: a line for every picture that was kept, in the order of the table."""
    lines = []
    for id, row in rows.items():
        picture = pictures[id]
        line = {"id": id, "image": f"images/{row['image']}", "report": picture.row.report}
        line |= {name: row[name] for name in ("log_likelihood", "least_word") if name in row}
        lines.append({**line, **picture.row.carried, "made_with": made_with})
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(lines[0]))
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, text.getvalue())


def settings_of(cfg, pictures, size, warning):
    """What decides the bytes of the pictures; another run of --out must have the same."""
    skipped = ("table", "out", "columns", "overwrite", "device", "threads", "preset")
    settings = {name: value for name, value in asdict(cfg).items() if name not in skipped}
    directory = newest(cfg.checkpoint)
    rows = [(picture.id, asdict(picture.row)) for picture in pictures.values()]
    return {**settings, "table": settings_hash(rows), "pictures": len(pictures), "size": size,
            "keep_above": str(cfg.keep_above), "checkpoint": str(directory),
            "checkpoint_sha256": fingerprint(directory), "notice": warning}


def main(argv):
    cfg = override(TableConfig(), argv, __doc__, sample.PRESETS)
    rows = read_rows(cfg)
    pictures = pictures_of(cfg, rows)
    out = Path(cfg.out)
    process = processes.setup(cfg.device, cfg.threads)
    processes.on_first(process, partial(locks.refuse_taken, out))
    dtype = worklist.number_format(out, cfg, process)
    model, vae, tokenizer = weights.load(cfg.checkpoint, not cfg.raw, processes.torch_dtype(dtype),
                                         process.device, cfg.weights)
    cfg = replace(sample.preset_for(model, cfg, argv, __doc__), dtype=dtype)
    size = sample.latent_side(model, vae, cfg.size) * vae.factor
    for row in rows:
        sample.check_report(f"{cfg.table}: the report of {row.id}", row.report, model, tokenizer)
    if process.master:
        tell_unknown(model, tokenizer, [row.report for row in rows])

    # from here on the directory is ours
    settings = settings_of(cfg, pictures, size, notice(model))
    worklist.claim({out: settings}, cfg.overwrite, process)
    made_with = settings_hash(settings)
    about = {setting.name: getattr(cfg, setting.name) for setting in fields(sample.Sampling)}
    about |= {"size": size, "made_with": made_with, "notice": notice(model)}
    studio = Studio(cfg, model, vae, tokenizer, out / "images", about)
    studio.folder.mkdir(exist_ok=True)

    def work(ids):
        return studio.draw([pictures[id] for id in ids])

    blocks = worklist.chunks(list(pictures), cfg.batch)
    done = worklist.run(out / "drawn.jsonl", blocks, work, process, "drawing")
    if process.master:
        finish(cfg, out, pictures, done, made_with)
    return 0


def finish(cfg, out, pictures, done, made_with):
    """Write the manifest and say what came of it."""
    left_out = {id: row for id, row in done.items() if "error" in row}
    kept = {id: row for id, row in done.items() if id not in left_out}
    if not kept:
        raise InputError(f"all {len(done)} pictures are below --keep-above {cfg.keep_above:g}; "
                         f"{out}/drawn.jsonl says how far; lower it, or try --best-of 4.")
    write_manifest(out / "manifest.csv", pictures, kept, made_with)
    print(f"{len(kept)} pictures in {out}/images, {out}/manifest.csv says what they show.")
    if left_out:
        print(f"{len(left_out)} are left out: the model's reader finds a word of their report "
              f"unlikely (log p below {cfg.keep_above:g}); {out}/drawn.jsonl has them.")
    print(f"To train on them: python prepare_mimic.py --dataset table --reports "
          f"{out}/manifest.csv --out datasets/{out.name}")
