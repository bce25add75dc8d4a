"""`evaluate.py edit`: which facts are changed, what is measured, and the demo's model at it."""
import json

import numpy as np
import pytest
from PIL import Image

from common.cli import InputError
from evaluation import edits
from evaluation.edits import KINDS, Change, EditScoreConfig
from phantom.facts import Fact, conflict, report_to_facts

SMALL, LARGE = Fact("effusion", "left", "small"), Fact("effusion", "left", "large")
NODULE = Fact("nodule", "right upper")


def test_one_fact_changes_to_what_a_phantom_may_have():
    changes = edits.changes_of(EditScoreConfig(num=80), 32)
    kinds = [change.kind for change in changes]
    assert min(kinds.count(kind) for kind in KINDS) >= 12
    for change in changes:
        assert (change.old is None) == (change.kind == "present")
        assert (change.new is None) == (change.kind == "absent")
        if change.kind == "side":
            assert change.old.side != change.new.side and change.old.zone == change.new.zone
        if change.kind == "size":
            assert change.old[:2] == change.new[:2] and change.old != change.new
        assert not any(conflict(a, b) for a in change.facts for b in change.facts if a != b)
        finding = (change.old if change.old else change.new).finding
        assert report_to_facts(change.statement) == {
            fact for fact in change.facts if fact.finding == finding}
        assert not change.outside.all()


def test_nothing_takes_the_place_of_a_fact_that_stays():
    facts = frozenset({SMALL, NODULE})
    possible = edits.possible_changes(facts)
    assert possible["absent"] == [(SMALL, None), (NODULE, None)]
    assert (SMALL, LARGE) in possible["size"] and len(possible["size"]) == 2
    assert (SMALL, Fact("effusion", "right", "small")) in possible["side"]
    assert (None, LARGE) not in possible["present"], "there is an effusion on this side"
    assert not edits.possible_changes(frozenset())["absent"]


def a_change(old=SMALL, new=LARGE, facts=frozenset({LARGE, NODULE})):
    film = np.full((4, 4), 100, np.uint8)
    truth = film.copy()
    truth[0] = 150
    truth[1] = 101
    return Change(0, "size", old, new, facts, "", film, truth)


def test_an_error_is_counted_where_the_truth_is_the_same():
    change = a_change()
    picture = change.film.copy()
    picture[0] = 0
    picture[2] = 94
    assert edits.outside_errors([change], [picture]) == [2.0]
    assert edits.grown(~change.outside, 1).tolist() == [[True] * 4] * 2 + [[False] * 4] * 2


@pytest.mark.parametrize("text, new_fact, others_kept", [
    ("Large left pleural effusion. Right upper zone nodule.", True, True),
    ("Small left pleural effusion. Right upper zone nodule.", False, True),
    ("Large left pleural effusion. Right upper zone nodule. Pulmonary edema.", True, False),
    ("Large left pleural effusion.", True, False),
    ("Small left effusion. Large left effusion. Nodule in the right upper zone.", False, True),
    ("", False, False),
])
def test_what_is_read_is_compared_with_what_was_wanted(text, new_fact, others_kept):
    row = edits.outcome(a_change(), text, 1.5)
    assert (row["new_fact"], row["others_kept"]) == (new_fact, others_kept)
    assert row["error_outside"] == 1.5


def test_a_finding_that_should_go_or_come():
    gone = a_change(new=None, facts=frozenset({NODULE}))
    assert edits.outcome(gone, "Right upper zone nodule.", 0)["new_fact"]
    assert not edits.outcome(gone, "Small left effusion.", 0)["new_fact"]
    come = a_change(old=None, new=NODULE, facts=frozenset({NODULE}))
    assert edits.outcome(come, "Right upper zone nodule.", 0)["others_kept"]
    assert not edits.outcome(come, "No nodule.", 0)["new_fact"]


def test_the_model_of_the_demo(tmp_path, capsys):
    line = "--num 4 --steps 4 --bootstrap 2 --device cpu --out".split()
    edits.main([*line, str(tmp_path / "score")])
    page = json.loads((tmp_path / "score.json").read_text())
    scores = page["scores"]
    error = {name: numbers["error_outside"]["value"] for name, numbers in scores.items()}
    assert error["edited with a mask"] < error["edited"] < error["edited, without detail"]
    assert error["edited"] < error["drawn anew"] / 4
    assert scores["edited"]["others_kept"]["value"] > 0.7
    assert scores["edited"]["new_fact"]["n"] == len(page["cases"]) == 4
    assert page["settings"]["checkpoint"] == "demo"
    assert {case["kind"] for case in page["cases"]} == set(page["by_kind"])
    printed = capsys.readouterr().out
    assert "| autoencoder alone |" in printed and "4 held-out phantoms" in printed
    assert "not for clinical use" in Image.open(tmp_path / "score.png").text["notice"]


def test_bad_input_is_one_sentence(tmp_path, stage1):
    for line, words in (("--num 0", "--num and --show"), ("--brush -1", "--brush"),
                        ("--strength 2", "--strength"), ("--checkpoint nowhere", "nowhere"),
                        (f"--checkpoint {stage1}", "cannot draw")):
        with pytest.raises(InputError, match=words):
            edits.main([*line.split(), "--device", "cpu", "--out", str(tmp_path / "score")])
    assert not list(tmp_path.glob("*.*"))
    (tmp_path / "score.png").write_bytes(b"mine")
    with pytest.raises(InputError, match="no result of ours"):
        edits.main(["--out", str(tmp_path / "score")])
