"""Open-I: which image of a report is frontal, by each table and by names, and damaged files."""
import doctest
import gzip
from collections import Counter
from pathlib import Path

import pytest

from common.cli import InputError
from mimic import check, openi, pixels, sources
from mimic.items import LeftOut
from mimic_tree import write_table
from prepare_mimic import Settings

XML = """<eCitation><MeSH><major>normal</major></MeSH>
<AbstractText Label="FINDINGS">{}</AbstractText>
<AbstractText Label="IMPRESSION">Fine.</AbstractText>
{}</eCitation>"""
SHARED = Path(__file__).parents[3] / "shared" / "openi"


def items_of(**settings):
    """(image root, items, what was left out) of an Open-I."""
    left_out = LeftOut()
    settings = {name: str(value) for name, value in settings.items()}
    root, items = sources.read_source(Settings(dataset="openi", **settings), left_out)
    return root, items, left_out


def write_xml(folder, number, names, findings="Clear lungs."):
    folder.mkdir(exist_ok=True)
    images = "".join(f'<parentImage id="{name}"/>' for name in names)
    folder.joinpath(f"{number}.xml").write_text(XML.format(findings, images))


def test_examples_in_docstrings_hold():
    assert doctest.testmod(openi).failed == 0


def test_from_xml_and_from_kaggles_tables(tmp_path):
    xml, kaggle = tmp_path / "ecgen-radiology", tmp_path / "kaggle"
    images = kaggle / "images" / "images_normalized"
    images.mkdir(parents=True)
    reports, projections = [], []
    for n in range(1, 31):
        frontal, lateral = f"CXR{n}_IM-{n:04d}-1001", f"CXR{n}_IM-{n:04d}-2001"
        findings = "" if n == 30 else f"Clear left lung {n}."
        write_xml(xml, n, [frontal, lateral], findings)
        reports.append((n, "normal", findings, "Fine."))
        projections += [(n, f"{frontal}.png", "Frontal"), (n, f"{lateral}.png", "Lateral")]
    (images / "CXR1_IM-0001-1001.png").write_bytes(b"")
    write_table(kaggle / "indiana_reports.csv", ("uid", "MeSH", "findings", "impression"), reports)
    write_table(kaggle / "indiana_projections.csv", ("uid", "filename", "projection"), projections)

    _, from_xml, _ = items_of(images=images, reports=xml)
    root, from_tables, _ = items_of(images=kaggle)
    assert root == images and from_xml == from_tables and len(from_xml) == 30
    assert from_xml[0].text == ("Clear left lung 1.", "Fine.", "openi")
    assert from_xml[-1].text == (None, "Fine.", "openi") and from_xml[0].labels == {"normal": 1.0}
    assert {item.split for item in from_xml} == {"train", "val", "test"}


@pytest.mark.parametrize("ending", [".jpg", ".dcm", ".PNG", ".tif"])
def test_images_may_have_any_ending(tmp_path, ending):
    """The tables and the XML say .png or nothing."""
    folder = tmp_path / "images_normalized"
    folder.mkdir()
    (folder / f"CXR1_IM-0001-1001{ending}").write_bytes(b"")
    write_xml(tmp_path, 1, ["CXR1_IM-0001-1001"])
    root, (item,), _ = items_of(images=tmp_path)
    assert item.id == "CXR1_IM-0001-1001"
    assert pixels.locate(root / item.image) == folder / f"CXR1_IM-0001-1001{ending}"


# image numbers of one report with the view that DICOM names, and which is taken with the DICOM
# table and without one
REPORTS = [
    ({"1001": "PA", "2001": "PA"}, "1001", "1001"),         # the second PA is a lateral one
    ({"1001": "LL", "2001": "AP"}, "2001", "1001"),
    ({"1001": "", "2001": ""}, "1001", "1001"),
    ({"1001": "", "4004": "AP"}, "4004", "1001"),
    ({"12012": "AP", "2002": "PA"}, "2002", "2002"),        # by number, not by letter
    ({"3001": "PA"}, "3001", "3001"),                       # no -1001
    ({"0001": "LATERAL", "0002": ""}, "0002", None),        # either order is as common
    ({"0001": "LL", "4004": "AP"}, "4004", "4004"),
    ({"1002": "LL"}, None, None),
    ({"2001": "LL", "3001": "RL"}, None, "2001"),
]


@pytest.mark.parametrize("named", ["file", "folder", "gzipped"])
def test_the_frontal_image_by_the_dicom_table_and_without_it(tmp_path, named):
    rows = []
    for n, (views, _, _) in enumerate(REPORTS, 1):
        # the collection writes one number twice in some of its names
        twice = f"CXR{n}_{n}_IM-0001" if n == 1 else f"CXR{n}_IM-0001"
        write_xml(tmp_path / "xml", n, [f"{twice}-{number}" for number in views])
        rows += [(f"CXR{n}_IM-0001-{number}", view, 7) for number, view in views.items()]
    write_table(tmp_path / "nlmcxr_dicom_metadata.csv", ("imageid", "View Position", "Rows"), rows)
    tables = tmp_path / "nlmcxr_dicom_metadata.csv"
    if named == "gzipped":
        content = tables.read_bytes()
        tables.unlink()
        tables = tmp_path / "nlmcxr_dicom_metadata.csv.gz"
        tables.write_bytes(gzip.compress(content))
    where = {"images": tmp_path, "reports": tmp_path / "xml"}

    for number, given in ((1, tmp_path if named == "folder" else tables), (2, "")):
        _, items, left_out = items_of(**where, tables=given)
        taken = {item.study: item.image.rpartition("-")[2] for item in items}
        expected = {f"CXR{n}": report[number] for n, report in enumerate(REPORTS, 1)
                    if report[number]}
        assert taken == expected
        # all others have a reason, and a report without any image has one of its own
        without = {id for id, _, reason in left_out if reason.startswith("study without")}
        assert without == {f"CXR{n}" for n in range(1, len(REPORTS) + 1)} - set(expected)
        # how the collection is made is no fault of a download: the run still ends with 0
        assert all(reason.startswith(check.LEFT_OUT) for *_, reason in left_out)
        images = [path for _, path, _ in left_out if path]
        assert len(images) + len(items) == len(rows)


def test_a_table_of_projections_beside_the_xml_takes_every_frontal_image(tmp_path):
    write_xml(tmp_path / "xml", 7, ["CXR7_IM-0001-1001", "CXR7_IM-0001-2001", "CXR7_IM-0001-3001"])
    views = [("7_IM-0001-1001", "Lateral"), ("7_IM-0001-2001", "Frontal"),
             ("7_IM-0001-3001", "Frontal")]
    rows = [(7, f"{name}.dcm.png", view) for name, view in views]
    path = tmp_path / "indiana_projections.csv"
    write_table(path, ("uid", "filename", "projection"), rows)
    _, items, left_out = items_of(images=tmp_path, reports=tmp_path / "xml", tables=path)
    assert [item.id for item in items] == ["CXR7_IM-0001-2001", "CXR7_IM-0001-3001"]
    assert [reason for *_, reason in left_out] == ["not frontal: lateral"]


@pytest.mark.parametrize("content, message", [
    ("image,view\n1,PA\n", "no table of views"), (None, "there is no indiana_projections.csv or")])
def test_a_table_that_says_nothing_of_views_is_refused(tmp_path, content, message):
    write_xml(tmp_path / "xml", 1, ["CXR1_IM-0001-1001"])
    path = tmp_path / "views.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        items_of(images=tmp_path, reports=tmp_path / "xml", tables=path)


def test_files_that_are_damaged(tmp_path):
    (tmp_path / "1.xml").write_text("<eCitation><")
    (tmp_path / "2.xml").write_text("<eCitation/>")
    left_out = LeftOut()
    with pytest.raises(InputError, match="neither indiana_reports.csv nor"):
        sources.read_source(Settings(dataset="openi", images=str(tmp_path)), left_out)
    assert [reason for _, _, reason in left_out] == ["damaged XML", "report without image"]


@pytest.mark.skipif(not SHARED.exists(), reason="the collection is not here")
@pytest.mark.slow
def test_of_the_whole_collection_few_reports_are_left_out(tmp_path):
    """With the DICOM table at most 3 % of the 3,337 studies with image and findings."""
    import tarfile
    with tarfile.open(SHARED / "NLMCXR_reports.tgz") as archive:
        archive.extractall(tmp_path, filter="data")
    for tables, least in ((SHARED, 0.97), ("", 0.94)):
        _, items, left_out = items_of(images=tmp_path, reports=tmp_path, tables=tables)
        studies = {item.study for item in items if item.text[0]}
        assert least * 3337 <= len(studies) <= 3337
        reasons = Counter(reason.split(",")[0] for *_, reason in left_out)
        assert reasons["report without image"] == 104
        without = reasons["study without a frontal image"]
        assert len({item.study for item in items}) + without == 3955 - 104
