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
