"""Open-I (Indiana University): its reports, and which of their images are frontal.

    image root, items = open_i(cfg, left_out)       # prepare_mimic.py --dataset openi

The reports are XML files or Kaggle's table; the images of both have one number each. The XML does
not say which image is frontal. Three things do, the best first:

    Kaggle's indiana_projections.csv        someone looked at every image
    the collection's nlmcxr_dicom_metadata.csv       the view that the DICOM file names
    the names of the files                  the lowest number of a report is mostly frontal

There is no official split, and the collection does not name its patients.
"""
import re
from pathlib import Path
from xml.etree import ElementTree

from common.cli import InputError
from common.images import is_image
from common.tables import find, read_header, read_table
from mimic.items import FRONTAL, Item, hashed_split

PROJECTIONS = "indiana_projections.csv"
DICOM = "nlmcxr_dicom_metadata.csv"
# "CXR1000_IM-0003-1001.png", "1000_IM-0003-1001.dcm.png", "CXR1_1_IM-0001-3001": one form of all
IMAGE = re.compile(r"(\d+_IM-\d+(?:-\d+)+)")
# Image numbers that the file names leave open: of 0001 and 0002 either is the lateral one as often,
# and 1002 and 3003 as the lowest number of a report are lateral ones that stand alone.
LEFT_OPEN = re.compile(r"-0\d{3}$")
LATERAL = re.compile(r"-(?:1002|3003)$")


def open_i(cfg, left_out):
    """The frontal images of Open-I with their reports -> (image root, items)."""
    root = Path(cfg.images)
    folder = Path(cfg.reports) if cfg.reports else root
    tables = sorted(folder.glob("**/indiana_reports.csv"))
    if tables:
        texts = kaggle_reports(tables[0])
        hint = "it comes with indiana_reports.csv."
        path = view_table(cfg.tables if cfg.tables else tables[0].parent, hint)
        images = kaggle_images(find(tables[0].parent, PROJECTIONS, hint))
    else:
        texts, images = xml_files(folder, left_out)
        path = view_table(cfg.tables, f"Open-I's is {DICOM}.") if cfg.tables else None
    if not images:
        raise InputError(f"neither indiana_reports.csv nor ecgen-radiology/*.xml in {folder}; "
                         "--reports wants their folder.")

    # Open-I does not name its patients: every study counts as one of its own
    items = []
    for uid, name in frontal_images(images, path, left_out):
        study = f"CXR{uid}"
        findings, impression, labels = texts.get(uid, (None, None, []))
        items.append(Item(
            Path(name).stem, study, study, hashed_split(study), "frontal",
            name.removesuffix(".png"),          # it may have become a JPEG, or still be DICOM
            (findings, impression, "openi"), {label: 1.0 for label in labels}))

    # Kaggle's archive has the images one or two folders down
    below = ("", "images_normalized", "images/images_normalized", "NLMCXR_png")
    with_images = [root / name for name in below if any(map(is_image, (root / name).glob("*")))]
    return (with_images[0] if with_images else root), items


# ---- reports ----

def kaggle_reports(path):
    """indiana_reports.csv -> {uid: (findings or None, impression or None, labels)}."""
    texts = {}
    columns = ("uid", "findings", "impression", "MeSH")
    for uid, findings, impression, mesh in read_table(path, columns):
        labels = [label for label in mesh.split(";") if label]
        texts[uid] = text_or_none(findings), text_or_none(impression), labels
    return texts


def kaggle_images(path):
    """indiana_projections.csv -> {uid: [file name]}."""
    images = {}
    for uid, name in read_table(path, ("uid", "filename")):
        images.setdefault(uid, []).append(name)
    return images


def xml_files(folder, left_out):
    """Both from Open-I's XML: {uid: (findings, impression, labels)}, {uid: [file name]}."""
    texts = {}
    images = {}
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
        findings = text_or_none(sections.get("FINDINGS"))
        texts[uid] = findings, text_or_none(sections.get("IMPRESSION")), labels

        names = [image.get("id") for image in tree.iter("parentImage") if image.get("id")]
        if names:
            images[uid] = [name + ".png" for name in names]
        else:
            left_out.add(uid, str(path), "report without image")
    return texts, images


def text_or_none(text):
    return text.strip() if text and text.strip() else None


# ---- which images are frontal ----

def view_table(path, hint):
    """The table of views that --tables names: the file itself, or one of the two in a folder."""
    path = Path(path)
    if path.is_file():
        return path
    for name in (PROJECTIONS, DICOM):
        matches = [*path.glob(f"**/{name}"), *path.glob(f"**/{name}.gz")]
        if matches:
            return min(matches)
    raise InputError(f"there is no {PROJECTIONS} or {DICOM}[.gz] in {path}; {hint}")


def frontal_images(images, path, left_out):
    """{uid: [file name]} and the table of views, or None -> [(uid, file name)].

    Every other image, and every study without any, goes to `left_out` with a reason.
    """
    views = {}
    by_projection = False
    if path is not None:
        views, by_projection = read_views(path)
    chosen = []
    for uid, names in images.items():
        names = sorted(names, key=numbers)
        known = [views.get(short(name), "") for name in names]
        if by_projection:
            frontal = [name for name, view in zip(names, known) if view == "frontal"]
            by = PROJECTIONS
        elif views:
            frontal = first_frontal(names, known)
            by = "the DICOM table"
        else:
            frontal = first_by_name(names)
            by = "the file names; --tables knows more"
        chosen += [(uid, name) for name in frontal]

        for name, view in zip(names, known):
            if name in frontal:
                continue
            reason = "not frontal: no view known"
            if view == "lateral":
                reason = "not frontal: lateral"
            elif frontal:
                reason = "another image of the study is taken"
            left_out.add(f"CXR{uid}", name, reason)
        if not frontal:
            left_out.add(f"CXR{uid}", "", f"study without a frontal image, by {by}")
    return chosen


def read_views(path):
    """A table of views -> ({image: "frontal", "lateral" or ""}, whether someone looked at each)."""
    header = read_header(path)
    if "projection" in header:
        rows = read_table(path, ("filename", "projection"))
        return {short(name): view.lower() for name, view in rows}, True
    if "imageid" not in header:
        raise InputError(f"{path} is no table of views: wanted columns filename and projection "
                         f"({PROJECTIONS}), or imageid and View Position ({DICOM}).")
    views = {}
    for name, view in read_table(path, ("imageid", "View Position")):
        if view in FRONTAL:
            views[short(name)] = "frontal"
        else:
            views[short(name)] = "lateral" if view else ""
    return views, False


def short(name):
    """
    >>> short("CXR1_1_IM-0001-3001"), short("1_IM-0001-3001.dcm.png")
    ('1_IM-0001-3001', '1_IM-0001-3001')
    """
    match = IMAGE.search(name)
    return match[1] if match else name


def numbers(name):
    """The numbers of a name, to sort by: 2001 comes before 12012."""
    return [int(number) for number in re.findall(r"\d+", name)]


def first_frontal(names, views):
    """The first image that DICOM calls frontal, else the first without a view: a list of 0 or 1.

    One at most, as the tag is wrong where a report has two: of 1,321 reports the first two images
    are called frontal, and the second is mostly lateral.
    """
    for wanted in ("frontal", ""):
        for name, view in zip(names, views):
            if view == wanted:
                return [name]
    return []


def first_by_name(names):
    """The image with the lowest number, if that tells anything: a list of 0 or 1.

    >>> first_by_name(["CXR9_IM-7-1001.png", "CXR9_IM-7-2001.png"])
    ['CXR9_IM-7-1001.png']
    >>> first_by_name(["CXR9_IM-7-0001.png", "CXR9_IM-7-0002.png"])
    []
    """
    for name in names:
        if not LEFT_OPEN.search(short(name)):
            return [] if LATERAL.search(short(name)) else [name]
    return []
