"""Where images and reports lie: every layout that people have, and tables that are wrong."""
import gzip
import re
import shutil
import zipfile
from types import SimpleNamespace

import pytest

from common.cli import InputError
from mimic import sources
from mimic.items import LeftOut
from mimic.sources import Reports
from mimic_tree import make, write_table
from prepare_mimic import Settings


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tree"), 12, quirks=())


def items_of(dataset, **settings):
    settings = {name: str(value) for name, value in settings.items()}
    return sources.read_source(Settings(dataset=dataset, **settings), LeftOut())


# ---- MIMIC-CXR ----

@pytest.mark.parametrize("zipped, wget", [(True, True), (False, False)])
def test_images_in_every_layout(tree, tmp_path, zipped, wget):
    """Tables gzipped or not, below the folders that wget leaves or not."""
    other = make(tmp_path, 12, quirks=(), zipped=zipped, wget=wget)
    root, items = items_of("mimic", images=other.top)
    assert root == other.jpg and items == items_of("mimic", images=tree.top)[1]
    assert len(items) == 12 and {item.view for item in items} == {"PA", "AP"}


def test_reports_in_every_layout(tree, tmp_path):
    copied = shutil.copytree(tree.reports, tmp_path / "mimic-cxr-reports").parent
    _, items = items_of("mimic", images=tree.top)
    other = SimpleNamespace(subject="10000000", study="s1")
    for path in (tree.zip, tree.reports, tree.reports / "files", copied):
        assert all(b"FINDINGS" in Reports(path).read(item) for item in items)
        assert Reports(path).read(other) is None and Reports(path).stamp(other) is None
    # a stamp changes with the report, in a folder and in the zip
    name = f"p{items[0].subject[:2]}/p{items[0].subject}/{items[0].study}.txt"
    (tmp_path / "mimic-cxr-reports" / "files" / name).write_bytes(b"changed")
    with zipfile.ZipFile(tmp_path / "changed.zip", "w") as archive:
        archive.writestr(f"files/{name}", b"changed")
    for path, changed in ((tree.reports, copied), (tree.zip, tmp_path / "changed.zip")):
        assert Reports(path).stamp(items[0]) != Reports(changed).stamp(items[0])

    with pytest.raises(InputError, match="JPG release has none"):
        Reports(tree.jpg)
    (tmp_path / "cut.zip").write_bytes(tree.zip.read_bytes()[:-500])
    with pytest.raises(InputError, match="not a whole zip"):
        Reports(tmp_path / "cut.zip")


@pytest.mark.parametrize("name, old, new, message", [
    ("split", ",split", ",labels", "no column 'split'"),
    ("metadata", r"(CHEST.*)", r"\1,", "line 2: 13 values in 12"),
    ("metadata", r",(\d{8}),(\d{8}),C", r",\1.0,\2.0,C", "8 digits"),       # a number no more
    ("split", r"(?m)^[0-9a-f](.*train)", r"\1", "not in .*-split.csv"),
    ("split", "train", "training", "wanted train, validate, test"),
    ("metadata", None, None, "damaged"),                                     # cut short
])
def test_wrong_tables_are_named(tree, tmp_path, name, old, new, message):
    for path in tree.jpg.glob("*.csv.gz"):
        shutil.copy(path, tmp_path)
    path = tmp_path / f"mimic-cxr-2.0.0-{name}.csv.gz"
    if old is None:
        path.write_bytes(path.read_bytes()[:-50])
    else:
        text = gzip.decompress(path.read_bytes()).decode()
        path.write_bytes(gzip.compress(re.sub(old, new, text).encode()))
    with pytest.raises(InputError, match=message) as error:
        items_of("mimic", images=tree.top, tables=tmp_path)
    assert path.name in str(error.value)


# ---- Open-I ----

XML = """<eCitation><MeSH><major>normal</major></MeSH>
<AbstractText Label="FINDINGS">{}</AbstractText>
<AbstractText Label="IMPRESSION">Fine.</AbstractText>
<parentImage id="{}"/><parentImage id="{}"/></eCitation>"""


def test_open_i_from_xml_and_from_kaggles_tables(tmp_path):
    """The tables say which image is frontal; of the XML's the one that ends in -1001 is."""
    xml, kaggle = tmp_path / "ecgen-radiology", tmp_path / "kaggle"
    images = kaggle / "images" / "images_normalized"
    images.mkdir(parents=True)
    xml.mkdir()
    reports, projections = [], []
    for n in range(1, 31):
        frontal, lateral = f"CXR{n}_IM-{n:04d}-1001", f"CXR{n}_IM-{n:04d}-2001"
        findings = "" if n == 30 else f"Small XXXX effusion. Clear left lung {n}."
        xml.joinpath(f"{n}.xml").write_text(XML.format(findings, frontal, lateral))
        reports.append((n, "normal", findings, "Fine."))
        projections += [(n, f"{frontal}.png", "Frontal"), (n, f"{lateral}.png", "Lateral")]
    (images / "CXR1_IM-0001-1001.png").write_bytes(b"")
    write_table(kaggle / "indiana_reports.csv", ("uid", "MeSH", "findings", "impression"), reports)
    write_table(kaggle / "indiana_projections.csv", ("uid", "filename", "projection"), projections)

    _, from_xml = items_of("openi", images=images, reports=xml)
    root, from_tables = items_of("openi", images=kaggle)
    assert root == images and from_xml == from_tables and len(from_xml) == 30
    assert from_xml[0].text == ("Small ___ effusion. Clear left lung 1.", "Fine.", "openi")
    assert from_xml[-1].text == (None, "Fine.", "openi") and from_xml[0].labels == {"normal": 1.0}
    assert {item.split for item in from_xml} == {"train", "val", "test"}


def test_open_i_files_that_are_damaged(tmp_path):
    (tmp_path / "1.xml").write_text("<eCitation><")
    (tmp_path / "2.xml").write_text("<eCitation/>")
    left_out = LeftOut()
    with pytest.raises(InputError, match="neither indiana_reports.csv nor"):
        sources.read_source(Settings(dataset="openi", images=str(tmp_path)), left_out)
    assert [reason for _, _, reason in left_out] == ["damaged XML", "report without image"]
