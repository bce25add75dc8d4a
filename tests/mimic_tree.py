"""A made-up MIMIC-CXR with the layout and columns of the real one, invented text, and every quirk.

    tree = make(folder)                 # tree.jpg, tree.zip, tree.at["truncated"] = (study, [ids])
    prepare(tree, out, "--limit", 20)   # prepare_mimic.py on it, with small pictures
"""
import contextlib
import csv
import gzip
import hashlib
import io
import zipfile
from types import SimpleNamespace

import numpy as np
from PIL import Image

import prepare_mimic
from common.packed import Packed
from helpers import dicom_file
from mimic.annotations import FINDINGS

METADATA = (
    "dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition",
    "Rows", "Columns", "StudyDate", "StudyTime", "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning", "PatientOrientationCodeSequence_CodeMeaning",
)
SPLIT = ("dicom_id", "study_id", "subject_id", "split")
SIDES, DEGREES = ("left", "right"), ("small", "moderate", "large")

# one study each: one good PA image and a plain report, except for what the name says
QUIRKS = (
    "truncated zero_byte gstmp image_missing tiny aspect constant png16 dicom_monochrome1 "
    "view_empty view_odd duplicate_row several_frontals no_label "
    "report_missing no_findings latin1").split()
VIEWS = {"several_frontals": ("AP", "PA", "PA", "LATERAL"), "view_empty": ("",),
         "view_odd": ("AP AXIAL",)}
REPORT = """                                 FINAL REPORT
 INDICATION:  ___-year-old woman with cough.\n
 FINDINGS:\n
 {findings}\n
 IMPRESSION:\n
 {impression}
"""
SIZES = "--und-sizes 48 --gen-sizes 32 48 --max-bad 1 --workers 2".split()


def prepare(tree, out, *options):
    """prepare_mimic.py on a tree -> its exit code."""
    where = ["--images", tree.top, "--reports", tree.zip, "--out", out]
    return prepare_mimic.main([str(word) for word in (*where, *SIZES, *options)])


def make_packed(folder):
    """A tree and what the script makes of it; tests/conftest.py says what the fields hold."""
    tree = make(folder)
    tree.out = folder / "out"
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        assert prepare(tree, tree.out, "--shard", 32) == 0
    tree.printed = printed.getvalue()
    tree.und = Packed(tree.out, "und", 48)
    tree.gen = Packed(tree.out, "gen", 48)
    tree.rows = {row["id"]: row for row in tree.und.rows}
    tree.skipped = skipped(tree.out)
    return tree


def skipped(out):
    """{id: reason} of skipped.csv."""
    with open(out / "skipped.csv") as file:
        return {row["id"]: row["reason"] for row in csv.DictReader(file)}


def hashes(folder):
    """{file: SHA-256} of all that a run has written."""
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


# ---- pictures ----

def film(seed, width=120, height=144):
    """A grey picture, dark at the top left and bright at the bottom right, with grain."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ramp = 255 * (x / width + y / height) / 2
    return np.clip(ramp + rng.normal(0, 6, ramp.shape), 0, 255).astype(np.uint8)


def jpeg(pixels):
    return encoded(Image.fromarray(pixels), "JPEG", quality=95)


def png(image):
    return encoded(image, "PNG")


def encoded(image, form, **options):
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def image_file(quirk, n):
    """(ending, bytes) of an image with a quirk; None: there is no file."""
    pixels = film(n)
    good = jpeg(pixels)
    if quirk == "png16":
        return ".png", png(Image.fromarray(pixels.astype(np.uint16) * 200 + 1000))
    if quirk == "dicom_monochrome1":
        return ".dcm", dicom_file(4095 - pixels.astype(np.uint16) * 16)
    files = {
        "truncated": (".jpg", good[:len(good) * 2 // 3]),
        "zero_byte": (".jpg", b""),
        "gstmp": (".jpg_.gstmp", good[:100]),
        "image_missing": None,
        "tiny": (".jpg", jpeg(film(n, 40, 48))),
        "aspect": (".jpg", jpeg(film(n, 80, 400))),
        "constant": (".jpg", jpeg(np.full((100, 100), 77, np.uint8))),
    }
    return files.get(quirk, (".jpg", good))


# ---- reports and tables ----

def report_file(quirk, text):
    """The bytes of a report with a quirk; None: there is no file."""
    files = {
        "report_missing": None,
        "no_findings": b"x\n IMPRESSION:\n \n Small left effusion.\n",
        "latin1": text.replace("effusion", "effusion in Sj\xf6gren's").encode("latin-1"),
    }
    return files.get(quirk, text.encode())


def write_table(path, header, rows, zipped=False):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    content = text.getvalue().encode()
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content))
    else:
        path.write_bytes(content)


def dicom_id(name):
    digest = hashlib.sha256(name.encode()).hexdigest()
    return "-".join(digest[i:i + 8] for i in range(0, 40, 8))


# ---- the tree ----

def make(folder, studies=80, quirks=QUIRKS, zipped=True, wget=False):
    """`studies` studies, two a patient, of which the last ones carry the quirks.

    Of the plain ones 70 % train, then 10 % validate and 20 % test. zipped: tables end in .csv.gz.
    wget: with the folders that `wget -r` leaves above.
    """
    jpg = folder / ("physionet.org/files/mimic-cxr-jpg/2.1.0" if wget else "mimic-cxr-jpg")
    tree = SimpleNamespace(
        jpg=jpg, top=folder if wget else jpg, reports=folder / "reports",
        zip=folder / "mimic-cxr-reports.zip", at={}, split={}, views={}, metadata=[])
    (jpg / "files").mkdir(parents=True)
    labels = []
    plain = studies - len(quirks)
    with zipfile.ZipFile(tree.zip, "w") as archive:
        for n in range(studies):
            quirk = quirks[n - plain] if n >= plain else ""
            subject = f"1{n // 2 % 10}{n // 2:06d}"
            study = f"5{n * 7919 % 10_000_000:07d}"
            place = f"files/p{subject[:2]}/p{subject}/s{study}"
            split = "train" if quirk else split_of(n // 2 * 2 / plain)
            tree.at[quirk if quirk else n] = "s" + study, add_images(
                tree, n, quirk, subject, study, place, split)
            content = report_file(quirk, report_text(n, quirk))
            if content is not None:
                archive.writestr(f"{place}.txt", content)
                path = tree.reports / f"{place}.txt"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            if quirk != "no_label":
                known = {"Pleural Effusion": "1.0", "Pneumothorax": "0.0", "Edema": "-1.0"}
                labels.append([subject, study, *(known.get(name, "") for name in FINDINGS)])

    rows = [[row[0], row[2], row[1], tree.split[row[0]]] for row in tree.metadata]
    write_table(jpg / "mimic-cxr-2.0.0-metadata.csv", METADATA, tree.metadata, zipped)
    write_table(jpg / "mimic-cxr-2.0.0-split.csv", SPLIT, rows, zipped)
    write_table(jpg / "mimic-cxr-2.0.0-chexpert.csv", ("subject_id", "study_id", *FINDINGS),
                labels, zipped)
    return tree


def split_of(share):
    if share < 0.7:
        return "train"
    return "validate" if share < 0.8 else "test"


def add_images(tree, n, quirk, subject, study, place, split):
    """Write the images of study n and their rows -> their ids."""
    ids = []
    for k, view in enumerate(VIEWS.get(quirk, ("PA", "LATERAL") if n % 3 else ("AP",))):
        name = dicom_id(f"{n} {k}")
        file = image_file(quirk, n * 10 + k)
        (tree.jpg / place).mkdir(parents=True, exist_ok=True)
        if file:
            ending, content = file
            (tree.jpg / place / (name + ending)).write_bytes(content)
        row = [name, subject, study, "CHEST (PA AND LAT)", view, 144, 120, "21800506",
               "013014.531", "", "", "Erect"]
        tree.metadata += [row, row] if quirk == "duplicate_row" else [row]
        tree.split[name] = split
        tree.views[name] = view
        ids.append(name)
    return ids


def report_text(n, quirk):
    """Every fifth plain report has no impression."""
    degree, side = DEGREES[n % 3], SIDES[n % 2]
    text = REPORT.format(
        findings=f"There is a {degree} {side} pleural effusion. Study number {n} of this tree.\n"
                 " No pneumothorax.",
        impression=f"{degree.title()} {side} effusion.")
    if n % 5 == 4 and not quirk:
        return text[:text.index(" IMPRESSION")]
    return text
