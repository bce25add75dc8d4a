"""Where images and reports lie, in three kinds of collection -> a list of `Item`, one an image.

    mimic     MIMIC-CXR-JPG and the reports of MIMIC-CXR
    openi     Open-I (Indiana University), as XML files or as Kaggle's tables: openi.py
    table     a CSV or JSONL file of your own: own_table.py

To add a source, write a function like these, (cfg, left_out) -> (image root, items), and name it in
SOURCES. An `Item` without a text needs MIMIC's report files. Every row that does not become an item
goes to `left_out` with a reason; a reason counts as a fault of the data, towards --max-bad, unless
it begins as one of LEFT_OUT in mimic/check.py. docs/data.md says which files there are and where
they come from.
"""
import re
import sys
import zipfile
import zlib
from pathlib import Path

from common.cli import InputError
from common.tables import find, read_table
from mimic.annotations import chexpert_labels
from mimic.items import FRONTAL, Item
from mimic.openi import open_i
from mimic.own_table import table

DICOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}")


def refuse_unnamed(cfg):
    """InputError if the command line does not say where the collection lies."""
    if not cfg.images and cfg.dataset != "table":
        raise InputError("--images names the folder of the images; --help and docs/data.md say "
                         "what belongs there.")
    if not cfg.reports and cfg.dataset == "table":
        raise InputError("--dataset table wants --reports FILE.csv or .jsonl, with columns of "
                         "images and reports; none was given.")
    if cfg.dataset != "table" and (cfg.columns or cfg.split_by != "patient"):
        raise InputError("--columns and --split-by are for a table of your own: --dataset table.")


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
    root = Path(cfg.images)
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
        self.path = Path(path)
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


SOURCES = {"mimic": mimic, "openi": open_i, "table": table}
