"""Open-I (Indiana University): frontal images and their reports, from XML files or Kaggle's tables.

There is no official split, and the collection does not name its patients.
"""
import re
from pathlib import Path
from xml.etree import ElementTree

from common.cli import InputError
from common.tables import find, read_table
from mimic.items import Item, hashed_split


def open_i(cfg, left_out):
    """Open-I: Kaggle's tables where they are, which know the frontal images; else the XML files.

    There is no official split.
    """
    root = Path(cfg.images).expanduser()
    folder = Path(cfg.reports).expanduser() if cfg.reports else root
    tables = sorted(folder.glob("**/indiana_reports.csv"))
    if tables:
        texts, images = kaggle_tables(tables[0])
    else:
        texts, images = xml_files(folder, left_out)
    if not images:
        raise InputError(f"neither indiana_reports.csv nor ecgen-radiology/*.xml in {folder}; "
                         "--reports wants their folder.")

    # Open-I does not name its patients: every study counts as one of its own
    items = []
    for uid, name, projection in images:
        study = f"CXR{uid}"
        if projection != "Frontal":
            left_out.add(study, name, f"not frontal: {projection}")
            continue
        findings, impression, labels = texts.get(uid, ("", "", []))
        text = marked_blanks(findings), marked_blanks(impression), "openi"
        items.append(Item(Path(name).stem, study, study, hashed_split(study), "frontal", name, text,
                          {label: 1.0 for label in labels}))

    # Kaggle's archive has the images one or two folders down
    below = ("", "images_normalized", "images/images_normalized", "NLMCXR_png")
    with_images = [root / name for name in below if any((root / name).glob("*.png"))]
    return (with_images[0] if with_images else root), items


def kaggle_tables(path):
    """-> {uid: (findings, impression, labels)}, [(uid, file name, Frontal or Lateral)]."""
    texts = {}
    columns = ("uid", "findings", "impression", "MeSH")
    for uid, findings, impression, mesh in read_table(path, columns):
        texts[uid] = findings, impression, [label for label in mesh.split(";") if label]
    projections = find(path.parent, "indiana_projections.csv", "it comes with indiana_reports.csv.")
    return texts, list(read_table(projections, ("uid", "filename", "projection")))


def xml_files(folder, left_out):
    """The same from Open-I's XML, which does not say what is frontal: the image that ends in -1001
    is taken for it."""
    texts = {}
    images = []
    for path in sorted(folder.glob("**/*.xml"), key=lambda path: (len(path.stem), path.stem)):
        uid = path.stem
        try:
            tree = ElementTree.parse(path).getroot()
        except (ElementTree.ParseError, ValueError, LookupError):
            left_out.add(uid, str(path), "damaged XML")
            continue
        # a report may lack a section, and a section its text
        sections = {section.get("Label"): section.text for section in tree.iter("AbstractText")}
        labels = [major.text for major in tree.iter("major") if major.text]
        texts[uid] = sections.get("FINDINGS"), sections.get("IMPRESSION"), labels

        names = [image.get("id") for image in tree.iter("parentImage") if image.get("id")]
        frontal = [name for name in names if name.endswith("-1001")]
        for name in names:
            projection = "Frontal" if name in frontal[:1] else "Lateral"
            images.append((uid, name + ".png", projection))
        if not names:
            left_out.add(uid, str(path), "report without image")
    return texts, images


def marked_blanks(text):
    """Open-I's XXXX, where a word was taken out, as MIMIC's ___. None where there is no text."""
    text = re.sub(r"\bX{4,}\b", "___", text).strip() if text else ""
    return text if text else None
