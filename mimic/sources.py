"""Where images and reports lie: MIMIC-CXR, Open-I, a table of your own -> lists of `Item` (mimic/annotations.py reads those of others).

Tables are read as streams, every id stays a string, and every row that is not used goes to `left_out` with a reason.
docs/data.md says which files there are and where they come from.
"""
import hashlib
import json
import os
import re
import sys
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from common.processes import InputError
from mimic.annotations import chexpert_labels
from mimic.tables import find, header_of, lines_of, read_table, whole_characters

FRONTAL = ("PA", "AP")          # exactly these two, the convention of the field; in the order of --one-per-study
DICOM_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{8}){4}")


@dataclass(slots=True)
class Item:
    """One image with its report, for one task."""
    id: str
    subject: str
    study: str
    split: str                      # train, val or test
    view: str
    image: str                      # path below the image root, or absolute
    text: tuple | None = None       # (findings, impression, source) when the input has them apart; else the report file
    labels: dict | None = None

    @property
    def text_key(self):
        """Items with the same key have the same text: all images of a study, per origin of the text."""
        return f"{self.study}/{hashlib.sha256(repr(self.text).encode()).hexdigest()[:8] if self.text else 'report'}"


class LeftOut(list):
    """(id, path, reason) of everything that is not packed, and of nothing else: never a word of a report."""

    def add(self, id, path, reason):
        self.append((id, path, sys.intern(reason)))


def fraction(key):
    """A number in [0, 1) that depends on `key` alone: splits that stay as they are when rows come and go."""
    return int(hashlib.sha256(key.encode()).hexdigest()[:12], 16) / 16**12


def hashed_split(key):
    """70 / 10 / 20 for data without an official split.

    >>> hashed_split("CXR1")
    'train'
    """
    return "train" if (x := fraction(key)) < 0.7 else "val" if x < 0.8 else "test"


# ---- MIMIC-CXR ----

class Reports:
    """The report files of MIMIC-CXR: the zip itself, or a folder that holds p10/p1.../s5....txt itself or some levels below."""

    def __init__(self, path):
        self.path, self.zip = Path(path).expanduser(), None
        if self.path.is_file():
            try:
                self.zip = zipfile.ZipFile(self.path)
            except zipfile.BadZipFile:
                raise InputError(f"{self.path} is not a whole zip file; download mimic-cxr-reports.zip again.") from None
            names = (re.match(r"(.*?)p1\d/p\d{8}/s\d{8}\.txt$", name) for name in self.zip.namelist())
            first = next(filter(None, names), None)
            if not first:
                raise InputError(f"{self.path} holds no report like files/p10/p10000032/s50414267.txt.")
            self.prefix = first[1]
        else:
            levels = (sorted(self.path.glob("*/" * depth)) if depth else [self.path] for depth in range(6))
            folders = (folder for level in levels for folder in level)
            self.prefix = next((folder for folder in folders if any(folder.glob("p1[0-9]/p*/s*.txt"))), None)
            if not self.prefix:
                raise InputError(f"no reports in {self.path}: wanted mimic-cxr-reports.zip, or a folder with "
                                 "files/p10/p1.../s5....txt in it (the JPG release has none).")

    def read(self, item):
        """The bytes of a study's report, or None where it is missing or damaged."""
        name = f"p{item.subject[:2]}/p{item.subject}/{item.study}.txt"
        try:
            return self.zip.read(self.prefix + name) if self.zip else (self.prefix / name).read_bytes()
        except (KeyError, FileNotFoundError, NotADirectoryError, IsADirectoryError, zipfile.BadZipFile, zlib.error, EOFError,
                RuntimeError):          # encrypted, or packed in a way that zipfile does not know
            return None

    def stamp(self, item):
        """What changes when the report changes, without reading it: its checksum in the zip, or size and time of the file."""
        name = f"p{item.subject[:2]}/p{item.subject}/{item.study}.txt"
        if self.zip:
            found = self.zip.NameToInfo.get(self.prefix + name)
            return found and (found.CRC, found.file_size)
        try:
            about = (self.prefix / name).stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return about.st_size, about.st_mtime_ns


def mimic(cfg, left_out):
    """The frontal images of MIMIC-CXR-JPG with the official split -> (image root, items)."""
    metadata = find(cfg.tables or cfg.images, "mimic-cxr-2.0.0-metadata.csv", "--images wants the root of MIMIC-CXR-JPG.")
    split_file = find(metadata.parent, "mimic-cxr-2.0.0-split.csv", "it belongs to MIMIC-CXR-JPG, beside the metadata.")
    items = {}
    for dicom, subject, study, view in read_table(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
        if not re.fullmatch(r"\d{8}", subject) or not re.fullmatch(r"\d{8}", study) or not DICOM_ID.fullmatch(dicom):
            raise InputError(f"{metadata} has ids of another form (subject '{subject}', study '{study}'): wanted 8 digits each; "
                             "was it written anew by a program that turned ids into numbers?")
        path = f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}"
        if view not in FRONTAL:
            left_out.add(dicom, path, f"not frontal: {view or 'no view position'}")
        elif dicom in items:
            left_out.add(dicom, path, "duplicate row")
        else:
            items[dicom] = Item(dicom, subject, "s" + study, "", sys.intern(view), path)
    names = {"train": "train", "validate": "val", "test": "test"}
    for dicom, split in read_table(split_file, ("dicom_id", "split")):
        if split not in names:
            raise InputError(f"{split_file} has the split '{split}'; wanted train, validate, test.")
        if dicom in items:
            items[dicom].split = names[split]
    lost = [dicom for dicom, item in items.items() if not item.split]
    if lost:
        raise InputError(f"{len(lost)} of {len(items)} frontal images of {metadata} are not in {split_file}, the first is "
                         f"{lost[0]}; are the tables of one release?")
    if cfg.labels:
        path = find(metadata.parent, "mimic-cxr-2.0.0-chexpert.csv", "it belongs to MIMIC-CXR-JPG; --no-labels does without.")
        labels = chexpert_labels(path)
        for item in items.values():
            item.labels = labels.get(item.study)
    root = Path(cfg.images).expanduser()
    return root if any(root.glob("files/p1[0-9]")) else metadata.parent, list(items.values())


def one_per_study(items, left_out):
    """The first PA image of a study, else its first AP."""
    best = {}
    for item in items:
        if item.study not in best or (best[item.study].view, item.view) == ("AP", "PA"):
            best[item.study] = item
    for item in items:
        if best[item.study] is not item:
            left_out.add(item.id, item.image, "another image of the study is kept")
    return [item for item in items if best[item.study] is item]


# ---- data for everyone ----

def open_i(cfg, left_out):
    """Open-I / IU X-Ray: the Kaggle tables, which know the frontal images, or the XML files (first image that ends in -1001)."""
    root, reports = Path(cfg.images).expanduser(), Path(cfg.reports or cfg.images).expanduser()
    kaggle, items = sorted(reports.glob("**/indiana_reports.csv")), []
    if kaggle:
        texts = {uid: (findings, impression, [m for m in mesh.split(";") if m])
                 for uid, findings, impression, mesh in read_table(kaggle[0], ("uid", "findings", "impression", "MeSH"))}
        projections = find(kaggle[0].parent, "indiana_projections.csv", "it comes with indiana_reports.csv.")
        images = list(read_table(projections, ("uid", "filename", "projection")))
    else:
        texts, images = {}, []
        for path in sorted(reports.glob("**/*.xml"), key=lambda p: (len(p.stem), p.stem)):
            try:
                tree = ElementTree.parse(path).getroot()
            except (ElementTree.ParseError, ValueError, LookupError):
                left_out.add(path.stem, str(path), "damaged XML")
                continue
            parts = {part.get("Label"): part.text or "" for part in tree.iter("AbstractText")}
            labels = [major.text for major in tree.iter("major") if major.text]
            texts[path.stem] = parts.get("FINDINGS", ""), parts.get("IMPRESSION", ""), labels
            names = [image.get("id") for image in tree.iter("parentImage") if image.get("id")]
            frontal = next((name for name in names if name.endswith("-1001")), None)
            images += [(path.stem, name + ".png", "Frontal" if name == frontal else "Lateral") for name in names]
            if not names:
                left_out.add(path.stem, str(path), "report without image")
    if not images:
        raise InputError(f"neither indiana_reports.csv nor ecgen-radiology/*.xml in {reports}; --reports wants their folder.")
    folders = [folder for folder in (root, root / "images_normalized", root / "images" / "images_normalized", root / "NLMCXR_png")
               if any(folder.glob("*.png"))] or [root]
    blank = lambda text: re.sub(r"\bX{4,}\b", "___", text).strip() or None      # Open-I's de-identified spans
    for uid, name, projection in images:
        findings, impression, labels = texts.get(uid, ("", "", []))
        if projection != "Frontal":
            left_out.add(f"CXR{uid}", name, f"not frontal: {projection}")
        else:
            items.append(Item(Path(name).stem, f"CXR{uid}", f"CXR{uid}", hashed_split(f"CXR{uid}"), "frontal", name,
                              (blank(findings), blank(impression), "openi"), {label: 1.0 for label in labels}))
    return folders[0], items


def parts_of(report):
    """A report of any origin -> (findings, impression, source); without headings all of it is findings.

    >>> parts_of("FINDINGS: Clear lungs.\\nIMPRESSION: Normal.")
    ('Clear lungs.', 'Normal.', 'table:sections')
    >>> parts_of("Clear lungs.")
    ('Clear lungs.', None, 'table:whole report')
    """
    pieces = re.split(r"(?im)^[ \t]*(findings|impression)[ \t]*:", report)
    found = {name.lower(): text.strip() for name, text in zip(pieces[1::2], pieces[2::2])}
    if not found:
        return report.strip() or None, None, "table:whole report"
    return found.get("findings") or None, found.get("impression") or None, "table:sections"


def table(cfg, left_out):
    """Your own CSV or JSONL: `image, report[, split, id, subject, study, view]`; any other column is a label."""
    path = Path(cfg.reports).expanduser()
    if not path.is_file():
        raise InputError(f"--dataset table wants --reports FILE.csv or .jsonl with columns image, report; {path} is no file.")
    known, items = ("image", "report", "split", "id", "subject", "study", "view"), []
    for number, row in enumerate(own_rows(path), 1):
        row = {key: value for key, value in row.items() if value not in (None, "")}
        split = str(row.get("split", ""))
        split = {"validate": "val", "valid": "val", "validation": "val"}.get(split, split)
        if "image" not in row or split not in ("", "train", "val", "test"):
            raise InputError(f"{path}, entry {number}: wanted an image, and train, val or test where there is a split.")
        image = os.path.normpath(str(row["image"]))            # "./a.png" and "a.png" are one file
        name = str(row.get("id", row["image"]))
        subject = str(row.get("subject", name))
        study, view = (str(row.get(key, default)) for key, default in (("study", name), ("view", "")))
        items.append(Item(name, subject, study, split or hashed_split(subject), view, image,
                          parts_of(str(row.get("report", ""))), {k: v for k, v in row.items() if k not in known}))
    return Path(cfg.images or path.parent).expanduser(), items


def own_rows(path):
    """The rows of a CSV or JSONL file as dictionaries."""
    if path.suffix in (".jsonl", ".json"):
        for number, line in enumerate(lines_of(path), 1):
            try:
                row = whole_characters(json.loads(line))
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict) or not {"image", "report"} <= row.keys():
                raise InputError(f"{path}, line {number}: wanted one JSON object a line with image and report.")
            yield row
    else:
        header = header_of(path)
        rest = [column for column in header if column not in ("image", "report")]
        for values in read_table(path, ("image", "report", *rest)):
            yield dict(zip(("image", "report", *rest), values))
