"""A table of your own as a collection: CSV or JSON lines, a row an image.

    image root, items = table(cfg, left_out)        # prepare_mimic.py --dataset table

Columns are known by their usual names, or by --columns (common/columns.py). A column of 1, 0, -1
and blanks is a label; any other is passed over, and said to be. Without a column of patients the
images would be split one by one, and a patient could train and test: that must be asked for.
"""
import os
import re
import shlex
from pathlib import Path

from common import columns
from common.cli import InputError
from common.columns import known_value, name_of, not_text
from common.tables import own_table
from mimic.headings import divided
from mimic.items import FRONTAL, Item, hashed_split

SPLITS = {"train": "train", "training": "train",
          "val": "val", "valid": "val", "validate": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}
# how tables write the two views that are read; any other one is left out, as of MIMIC-CXR
VIEWS = {"pa": "PA", "posteroanterior": "PA", "posterioranterior": "PA",
         "ap": "AP", "anteroposterior": "AP", "anteriorposterior": "AP", "apsupine": "AP",
         "aperect": "AP", "apportable": "AP", "portableap": "AP", "aphorizontal": "AP",
         "frontal": "frontal"}
LABELS = {"1": 1.0, "1.0": 1.0, "0": 0.0, "0.0": 0.0, "-1": -1.0, "-1.0": -1.0,
          "True": 1.0, "False": 0.0}


class NoItem(Exception):
    """A row that is left out. The message is the reason, which is counted."""


def table(cfg, left_out):
    """Your own CSV or JSONL -> (image root, items).

    It has columns of images and of reports, or of their findings and impression; and, where they
    are known, of split, id, subject (the patient), study and view. Without `id` the image's name is
    it. Patients without a split get one by a hash.
    """
    path = Path(cfg.reports)
    names, rows = own_table(path)
    known = columns.understand(path, names, cfg.columns)
    columns.refuse_missing(path, names, known, "image", ("report", "findings"))
    refuse_unknown_patients(cfg, path, names, rows, known)
    labels = label_columns(names, rows, known) if cfg.labels else []
    print(in_words(path, names, known, labels))

    items = []
    for number, row in enumerate(rows, 1):
        values = {what: known_value(row, known.get(what)) for what in columns.NAMES}
        try:
            item = item_of(f"{path}, row {number}", values, known)
        except NoItem as reason:
            name = first_known(values["id"], values["image"], f"row {number}")
            left_out.add(name, first_known(values["image"], ""), str(reason))
            continue
        item.labels = labels_of(row, labels)
        items.append(item)
    settle_splits(path, known, items)
    return Path(cfg.images if cfg.images else path.parent), items


def first_known(*values):
    """The first of some values that names something."""
    return next(name for name in map(name_of, values) if name is not None)


# ---- the patients: one split each ----

def refuse_unknown_patients(cfg, path, names, rows, known):
    """InputError where nothing tells the patients apart, and nobody has said that it need not."""
    if "subject" in known and cfg.split_by != "patient":
        raise InputError(f"{path} names its patients in '{known['subject']}': without --split-by "
                         f"{cfg.split_by} none of them is in two splits.")
    if cfg.split_by == "study":
        columns.refuse_missing(path, names, known, "study")
    if "subject" in known or cfg.split_by != "patient":
        return

    # a name that sounds like patients is asked about, even where there are splits; so is an id that
    # several rows have
    maybe = [name for name in names
             if columns.may_be_patients(name) and name not in known.values()]
    ids = [known_value(row, known.get("id")) for row in rows]
    ids = [str(id) for id in ids if id is not None]
    if len(set(ids)) < len(ids):
        maybe.append(known["id"])
    if maybe:
        option = shlex.quote(f"subject={maybe[0]}")
        raise InputError(
            f"{path}: is '{maybe[0]}' the patient? Then say --columns {option}; if no column names "
            "the patients, --split-by image, and one of them may train and test.")
    if "split" not in known:
        study = "" if "study" not in known else ", or each study is another one, --split-by study"
        raise InputError(
            f"{path} has no column that names the patients "
            f"({', '.join(columns.NAMES['subject'][:4])}, …): split by image, one of them would "
            "train and test. Name it with --columns subject=COLUMN; or, if each patient has one "
            f"image, say --split-by image{study}.")


def settle_splits(path, known, items):
    """Give every patient without a split one by a hash; InputError for a patient who has two, or
    who may be another one in other capitals.
    """
    patients = {}
    for item in items if "subject" in known else []:
        first = patients.setdefault(item.subject.casefold(), item.subject)
        if first != item.subject:
            raise InputError(f"{path}: the patients {first} and {item.subject} differ in capitals "
                             "alone: as two, one might train and test; write each in one way.")
    stated = {}
    for item in items:
        if item.split:
            stated.setdefault(item.subject, set()).add(item.split)
    torn = [subject for subject, splits in stated.items() if len(splits) > 1]
    if torn:
        raise InputError(
            f"{path}: {len(torn)} patients are in more than one split by its column "
            f"'{known['split']}', the first is {torn[0]} ({', '.join(sorted(stated[torn[0]]))}); "
            "mend the column, or take it out: patients are then split by a hash.")
    for item in items:
        if not item.split:
            item.split, = stated.get(item.subject, {hashed_split(item.subject)})


# ---- one row ----

def item_of(where, row, known):
    """A row, {what: value}, as an Item whose split may be "". NoItem says why there is none.

    where: the file and row that an InputError names.
    """
    image, name, subject, study = (name_of(row[what])
                                   for what in ("image", "id", "subject", "study"))
    if image is None:
        raise NoItem("no image named")
    if "subject" in known and subject is None:
        raise NoItem("no patient named")
    if any(re.fullmatch(r"\d(\.\d+)?[eE]\+\d+", id) for id in (name, subject, study) if id):
        raise InputError(f"{where}: an id like 1.23E+11 was rounded by a spreadsheet; write the "
                         "table anew with its ids as text.")
    split = "" if row["split"] is None else SPLITS.get(str(row["split"]).lower())
    if split is None:
        raise InputError(f"{where}: its split is none of train, val and test.")
    view = "" if row["view"] is None else str(row["view"])
    view = VIEWS.get(columns.plain(view), view)
    if view not in ("", "frontal", *FRONTAL):
        raise NoItem(f"not frontal: {view}")

    # without a column for them, every image is a study of its own, and every study a patient
    name = image if name is None else name
    study = name if study is None else study
    if subject is None:
        subject = study if "study" in known else name
    # Windows writes a\\b.png for a/b.png, and "./a.png" is "a.png"
    file = os.path.normpath(image.replace("\\", "/"))
    return Item(name, subject, study, split, view, file, text_of(row, known))


def text_of(row, known):
    """A row -> (findings, impression, source), from columns of these or from a whole report."""
    used = ("findings", "impression") if "findings" in known else ("report",)
    for what in used:
        oddity = "" if row[what] is None else not_text(row[what])
        if oddity:
            raise NoItem(f"{what} is no text but {oddity}")
    findings, impression, source = divided("" if row[used[0]] is None else row[used[0]])
    if "findings" not in known:
        return findings, impression, source
    return findings, impression if impression else row["impression"], "table:columns"


# ---- the other columns ----

def label_columns(names, rows, known):
    """The columns that hold nothing but 1, 0, -1 and blanks, as CheXpert's do."""
    labels = []
    for name in names:
        values = [known_value(row, name) for row in rows]
        values = {str(value).capitalize() for value in values if value is not None}
        free = name not in known.values() and not columns.may_be_patients(name)
        if name and free and values and values <= LABELS.keys():
            labels.append(name)
    return labels


def labels_of(row, names):
    """A row's labels {name: 1.0, 0.0 or -1.0}, without those that are blank."""
    values = {name: known_value(row, name) for name in names}
    return {name: LABELS[str(value).capitalize()]
            for name, value in values.items() if value is not None}


def in_words(path, names, known, labels):
    """A sentence that says how a table was understood."""
    parts = [f"{what} from '{name}'" for what, name in known.items()]
    if "subject" not in known:
        parts.append(f"every {'study' if 'study' in known else 'image'} counts as a patient")
    if labels:
        parts.append(f"{len(labels)} labels ({', '.join(labels)})")
    others = [name for name in names if name and name not in labels + list(known.values())]
    if others:
        parts.append(f"{len(others)} more passed over ({', '.join(others)})")
    return f"{path}: {'; '.join(parts)}."
