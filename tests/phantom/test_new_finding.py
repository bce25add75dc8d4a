"""The recipe in phantom/draw.py: a copy of the room with one more finding works throughout."""
import importlib
import sys
from collections import namedtuple

import numpy as np
import pytest

from helpers import ROOT

ENTRY = '''    "fracture": Finding(
        places=SIDES,
        present=("{side} clavicle fracture.", "Fracture of the {side} clavicle."),
        absent=("No fracture.",),
        pattern=r"fracture"),
'''
FUNCTION = '''

def fracture(canvas, body, fact, dice):
    """A dark gap in the middle of a clavicle."""
    gap = inside(np.abs(canvas.u - dice.uniform(0.18, 0.22)) - 0.015, canvas.pixel)
    near = inside(np.abs(canvas.y - body.clavicle_y + body.clavicle_rise) - 0.05, canvas.pixel)
    canvas.picture -= 0.5 * canvas.on[fact.side] * gap * near
'''
EDITS = {       # file -> what stands there, and what comes behind it
    "facts.py": [
        ('pattern=r"catheter|central (venous )?line|picc"),\n', ENTRY),
        ('OUTSIDE_THE_LUNGS = {"cardiomegaly", "catheter"', ', "fracture"'),
    ],
    "draw.py": [
        ("    anatomy.clavicles_and_shoulders(canvas, body)\n", "    show(fracture)\n"),
        ("0.98 - canvas.picture, 0.15)\n", FUNCTION),
    ],
}
Room = namedtuple("Room", "facts draw prepare scoring")


@pytest.fixture
def room(tmp_path, monkeypatch):
    """The modules of the room with a fracture; afterwards the others are there again."""
    copy = tmp_path / "phantom"
    copy.mkdir()
    for path in (ROOT / "phantom").glob("*.py"):
        text = path.read_text()
        for place, addition in EDITS.get(path.name, []):
            assert text.count(place) == 1, place
            text = text.replace(place, place + addition)
        (copy / path.name).write_text(text)

    stale = [name for name in sys.modules if name.split(".")[0] in ("phantom", "evaluation")]
    before = {name: sys.modules.pop(name) for name in stale}
    monkeypatch.syspath_prepend(str(tmp_path))
    names = ("phantom.facts", "phantom.draw", "phantom.prepare", "evaluation.scoring")
    yield Room(*map(importlib.import_module, names))
    for name in [name for name in sys.modules if name.split(".")[0] in ("phantom", "evaluation")]:
        del sys.modules[name]
    sys.modules.update(before)


def test_one_more_finding_is_drawn_written_read_and_scored(room):
    settings = room.prepare.Settings(size=64)
    phantoms = [room.prepare.make(settings, "test", i) for i in range(60)]
    facts = [frozenset(map(tuple, row["labels"])) for row, _ in phantoms]
    reports = [row["report"] for row, _ in phantoms]
    assert {"left", "right"} == {
        fact[1] for some in facts for fact in some if fact[0] == "fracture"}

    # every report reads back, and scores count the new finding
    labels = room.scoring.PhantomLabels()
    assert labels(reports) == facts
    assert labels.scores(facts, labels(reports))()["fracture"] == 1
    assert room.facts.report_to_facts("No fracture.") == frozenset()

    # it shows on its side, and nowhere else
    for side, half in (("left", np.s_[:, 32:]), ("right", np.s_[:, :32])):
        healthy, broken = (
            room.draw.draw(some, np.random.default_rng(1), 64).astype(float)
            for some in (set(), {("fracture", side, "")}))
        change = healthy - broken
        assert change.max() > 40 and np.abs(change).sum() == np.abs(change[half]).sum()


def test_a_data_set_knows_that_it_has_other_findings(room):
    settings = room.prepare.Settings()
    assert room.prepare.changed({**settings.identity, "findings": room.prepare.FIRST_FINDINGS},
                                settings).keys() == {"findings"}
