"""Where images and reports lie, in three kinds of collection -> a list of `Item`, one an image.

    mimic     MIMIC-CXR-JPG and the reports of MIMIC-CXR
    openi     Open-I (Indiana University), as XML files or as Kaggle's tables: openi.py
    table     a CSV or JSONL file of your own

To add a source, write a function like these, (cfg, left_out) -> (image root, items), and name it in
SOURCES. An `Item` without a text needs MIMIC's report files. Every row that does not become an item
goes to `left_out` with a reason; a reason counts as a fault of the data, towards --max-bad, unless
it begins as one of LEFT_OUT in mimic/check.py. docs/data.md says which files there are and where
they come from.
"""
import os
import re
import sys
import zipfile
import zlib
from pathlib import Path

from common.cli import InputError
from common.files import read_jsonl
from mimic.annotations import chexpert_labels
from mimic.items import Item, hashed_split
from mimic.openi import open_i
from mimic.tables import find, read_header, read_table, whole_characters

FRONTAL = ("PA", "AP")          # exactly these two views: the convention of the field
DICOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}")


def refuse_unnamed(cfg):
    """InputError if the command line does not say where the collection lies."""
    if not cfg.images and cfg.dataset != "table":
        raise InputError("--images names the folder of the images; --help and docs/data.md say "
                         "what belongs there.")
    if not cfg.reports and cfg.dataset == "table":
        raise InputError("--dataset table wants --reports FILE.csv or .jsonl with columns image, "
                         "report; none was given.")


def read_source(cfg, left_out):
    """The collection that --dataset names -> (image root, items)."""
    return SOURCES[cfg.dataset](cfg, left_out)


# ---- MIMIC-CXR ----

def mimic(cfg, left_out):
    """The frontal images of MIMIC-CXR-JPG, by its official split.

    The metadata knows the views, a second table the split, a third one the labels.
    """
    folder = cfg.tables if cfg.tables else cfg.images
    metadata = find(folder, "mimic-cxr-2.0.0-metadata.csv",
                    "--images wants the root of MIMIC-CXR-JPG.")
    split_table = find(metadata.parent, "mimic-cxr-2.0.0-split.csv",
                       "it belongs to MIMIC-CXR-JPG, beside the metadata.")
    items = frontal_images(metadata, left_out)
    read_official_split(split_table, items)
    without = [dicom for dicom, item in items.items() if not item.split]
    if without:
        raise InputError(f"{len(without)} of {len(items)} frontal images of {metadata} are not in "
                         f"{split_table}, the first is {without[0]}; are the tables of one "
                         "release?")
    if cfg.labels:
        path = find(metadata.parent, "mimic-cxr-2.0.0-chexpert.csv",
                    "it belongs to MIMIC-CXR-JPG; --no-labels does without.")
        labels = chexpert_labels(path)
        for item in items.values():
            item.labels = labels.get(item.study)        # 8 studies have none

    # --images may name the top of the tree that wget left; the tables lie beside files/
    root = Path(cfg.images).expanduser()
    if not any(root.glob("files/p1[0-9]")):
        root = metadata.parent
    return root, list(items.values())


def frontal_images(metadata, left_out):
    """The metadata -> {dicom id: Item without split} of the PA and AP images."""
    # the ids make up the path of the file, so ids of another form would all be "missing"
    items = {}
    columns = ("dicom_id", "subject_id", "study_id", "ViewPosition")
    for dicom, subject, study, view in read_table(metadata, columns):
        eight_digits = all(re.fullmatch(r"\d{8}", number) for number in (subject, study))
        if not eight_digits or not DICOM_ID.fullmatch(dicom):
            raise InputError(
                f"{metadata} has ids of another form (subject '{subject}', study '{study}'): "
                "wanted 8 digits each; was it written anew by a program that turned ids into "
                "numbers?")
        path = f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}"
        if view not in FRONTAL:
            view = view if view else "no view position"
            left_out.add(dicom, path, f"not frontal: {view}")
        elif dicom in items:
            left_out.add(dicom, path, "duplicate row")
        else:
            items[dicom] = Item(dicom, subject, "s" + study, "", sys.intern(view), path)
    return items


def read_official_split(path, items):
    """Give every item the split that the table says. It calls the validation set "validate"."""
    names = {"train": "train", "validate": "val", "test": "test"}
    for dicom, split in read_table(path, ("dicom_id", "split")):
        if split not in names:
            raise InputError(f"{path} has the split '{split}'; wanted train, validate, test.")
        if dicom in items:
            items[dicom].split = names[split]


class Reports:
    """The report files of MIMIC-CXR: mimic-cxr-reports.zip itself, or its unpacked folder.

    A report is p10/p10000032/s50414267.txt, some levels below: the zip has files/ above it. The
    texts lie beside the studies, and not in the JPG release.
    """

    def __init__(self, path):
        self.path = Path(path).expanduser()
        self.zip = None
        if self.path.is_file():
            self.open_zip()
        else:
            self.open_folder()

    def open_zip(self):
        try:
            self.zip = zipfile.ZipFile(self.path)
        except zipfile.BadZipFile:
            raise InputError(f"{self.path} is not a whole zip file; download mimic-cxr-reports.zip "
                             "again.") from None
        # what stands above p10/ depends on who packed the zip: the first report shows it
        for name in self.zip.namelist():
            match = re.match(r"(.*?)p1\d/p\d{8}/s\d{8}\.txt$", name)
            if match:
                self.prefix = match[1]
                return
        raise InputError(f"{self.path} holds no report like files/p10/p10000032/s50414267.txt.")

    def open_folder(self):
        # the folder above p10/ may lie some levels below, as in the zip
        folders = [self.path]
        for depth in range(1, 6):
            folders += sorted(self.path.glob("*/" * depth))
        for folder in folders:
            if any(folder.glob("p1[0-9]/p*/s*.txt")):
                self.prefix = folder
                return
        raise InputError(f"no reports in {self.path}: wanted mimic-cxr-reports.zip, or a folder "
                         "with files/p10/p1.../s5....txt in it (the JPG release has none).")

    def name(self, item):
        return f"p{item.subject[:2]}/p{item.subject}/{item.study}.txt"

    def read(self, item):
        """The bytes of an item's report, or None where it is missing or cannot be unpacked."""
        try:
            if self.zip:
                return self.zip.read(self.prefix + self.name(item))
            return (self.prefix / self.name(item)).read_bytes()
        except (KeyError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except (zipfile.BadZipFile, zlib.error, EOFError):
            return None
        except RuntimeError:            # encrypted, or packed in a way that zipfile does not know
            return None

    def stamp(self, item):
        """What changes when a report changes, found without reading it; None where it is missing.

        In the zip that is the checksum, in a folder the size and time of the file.
        """
        if self.zip:
            entry = self.zip.NameToInfo.get(self.prefix + self.name(item))
            return (entry.CRC, entry.file_size) if entry else None
        try:
            about = (self.prefix / self.name(item)).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return about.st_size, about.st_mtime_ns


# ---- a table of your own ----

def table(cfg, left_out):
    """Your own CSV or JSONL: `image, report[, split, id, subject, study, view]`.

    Any other column is a label. Without `id` the image's name is it, without `subject` every image
    is a patient of its own.
    """
    path = Path(cfg.reports).expanduser()
    if not path.is_file():
        raise InputError("--dataset table wants --reports FILE.csv or .jsonl with columns image, "
                         f"report; {path} is no file.")
    # the validation split goes by many names
    spellings = {"validate": "val", "valid": "val", "validation": "val"}
    columns = ("image", "report", "split", "id", "subject", "study", "view")
    items = []
    for number, row in enumerate(own_rows(path), 1):
        # an empty cell and a null say nothing, as if the column were not there
        row = {key: value for key, value in row.items() if value not in (None, "")}
        split = str(row.get("split", ""))
        split = spellings.get(split, split)
        if "image" not in row or split not in ("", "train", "val", "test"):
            raise InputError(f"{path}, entry {number}: wanted an image, and train, val or test "
                             "where there is a split.")
        name = str(row.get("id", row["image"]))
        subject = str(row.get("subject", name))
        items.append(Item(
            id=name,
            subject=subject,
            study=str(row.get("study", name)),
            split=split if split else hashed_split(subject),
            view=str(row.get("view", "")),
            image=os.path.normpath(str(row["image"])),      # "./a.png" and "a.png" are one file
            text=divided(str(row.get("report", ""))),
            labels={key: value for key, value in row.items() if key not in columns}))
    return Path(cfg.images if cfg.images else path.parent).expanduser(), items


def own_rows(path):
    """The rows of a CSV or JSONL file as dictionaries."""
    if path.suffix not in (".jsonl", ".json"):
        # a table must have these two columns; all others are optional
        others = [column for column in read_header(path) if column not in ("image", "report")]
        columns = ("image", "report", *others)
        for values in read_table(path, columns):
            yield dict(zip(columns, values))
        return
    try:
        rows = [whole_characters(row) for row in read_jsonl(path)]
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be JSON lines.") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not {"image", "report"} <= row.keys():
            raise InputError(f"{path}, entry {number}: wanted one JSON object a line with image "
                             "and report.")
        yield row


def divided(report):
    """A report of any origin -> (findings, impression, source); without headings all is findings.

    >>> divided("FINDINGS: Clear lungs.\\nIMPRESSION: Normal.")
    ('Clear lungs.', 'Normal.', 'table:sections')
    >>> divided("Clear lungs.")
    ('Clear lungs.', None, 'table:whole report')
    """
    before, *pieces = re.split(r"(?im)^[ \t]*(findings|impression)[ \t]*:", report)
    if not pieces:
        text = before.strip()
        return (text if text else None), None, "table:whole report"
    # split by a pattern with a group: text before, then heading, text, heading, text
    sections = {}
    for heading, text in zip(pieces[::2], pieces[1::2]):
        sections[heading.lower()] = text.strip() if text.strip() else None
    return sections.get("findings"), sections.get("impression"), "table:sections"


SOURCES = {"mimic": mimic, "openi": open_i, "table": table}
