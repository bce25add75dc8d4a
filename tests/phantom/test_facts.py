"""The facts of a phantom: every report reads back exactly, and no finding hides another."""
import numpy as np
import pytest

from phantom.facts import (FACTS, FINDINGS, TABLE, Fact, conflict, facts_to_report, report_to_facts,
                           sample_facts)
from phantom.wordings import WORDINGS


def rng(*key):
    return np.random.default_rng(key)


def facts_in(text):
    """"effusion/left/large, edema" -> its facts."""
    return {Fact(*fact.split("/")) for fact in text.split(", ") if fact}


# ---- which facts a picture has ----

def test_one_picture_in_five_is_normal_and_all_findings_are_frequent():
    pictures = [sample_facts(rng(3, i)) for i in range(4000)]
    assert 0.17 < np.mean([not facts for facts in pictures]) < 0.23
    assert max(map(len, pictures)) == 4
    for finding in FINDINGS:
        share = np.mean([finding in {fact.finding for fact in facts} for facts in pictures])
        assert share > 0.12, finding
    for facts in pictures:
        assert not any(conflict(a, b) for a in facts for b in facts if a != b)


@pytest.mark.parametrize("pair", [
    "effusion/left/large, nodule/left lower", "effusion/left/large, opacity/left upper",
    "effusion/left/large, effusion/right/large", "effusion/left/small, opacity/left lower",
    "cardiomegaly//severe, effusion/left/small", "cardiomegaly//mild, nodule/left lower",
    "opacity/left mid, nodule/left mid", "opacity/left mid, opacity/left lower",
    "opacity/right mid, edema", "pneumothorax/left, nodule/left upper",
    "effusion/left/small, effusion/left/large", "effusion/left/small, pneumothorax/left",
    "cardiomegaly//mild, cardiomegaly//severe", "catheter/left, catheter/right",
    "pneumothorax/left, edema",
])
def test_facts_that_hide_or_contradict_each_other(pair):
    a, b = facts_in(pair)
    assert conflict(a, b) and conflict(b, a)


@pytest.mark.parametrize("pair", [
    "effusion/left/large, nodule/right lower", "effusion/left/small, pneumothorax/right",
    "effusion/left/small, opacity/left mid", "opacity/left upper, opacity/left lower",
    "cardiomegaly//severe, effusion/right/large", "nodule/left mid, nodule/left lower",
])
def test_facts_that_go_together(pair):
    assert not conflict(*facts_in(pair))


# ---- reports ----

@pytest.mark.parametrize("wording", WORDINGS)
def test_the_report_of_every_picture_reads_back_exactly(wording):
    seen = set()
    for i in range(3000):
        dice = rng(i)
        facts = sample_facts(dice)
        report = facts_to_report(facts, dice, wording)
        assert report_to_facts(report) == facts, report
        assert 3 <= report.count(".") <= 6, report
        seen |= facts
    assert seen == set(FACTS)


@pytest.mark.parametrize("wording", WORDINGS)
def test_any_set_of_facts_reads_back_even_a_contradicting_one(wording):
    for i in range(1000):
        dice = rng(1, i)
        numbers = dice.choice(len(FACTS), dice.integers(0, 9), replace=False)
        facts = frozenset(FACTS[k] for k in numbers)
        assert report_to_facts(facts_to_report(facts, dice, wording)) == facts


@pytest.mark.parametrize("wording", [name for name in WORDINGS if name != "plain"])
def test_every_sentence_of_another_wording_is_read_as_what_it_is(wording):
    """Of a finding that is there exactly its fact; of one that is not, nothing. None is plain."""
    house = WORDINGS[wording]
    assert house.present.keys() == house.absent.keys() == TABLE.keys()
    for fact in FACTS:
        for template in house.present[fact.finding]:
            text = template.format(side=fact.side, zone=fact.zone, degree=fact.degree,
                                   adverb=fact.degree + "ly")
            assert report_to_facts(text) == {fact}, text
            assert template not in TABLE[fact.finding].present
    for text in [*sum(house.absent.values(), ()), house.neither, house.clear]:
        assert report_to_facts(text) == frozenset(), text


@pytest.mark.parametrize("text, facts", [
    # one fact
    ("Large left pleural effusion.", "effusion/left/large"),
    ("LARGE LEFT EFFUSION", "effusion/left/large"),
    ("Mild cardiomegaly.", "cardiomegaly//mild"),
    ("Right PICC", "catheter/right"),
    # several, in lists that go in step
    ("Bilateral small effusions", "effusion/left/small, effusion/right/small"),
    ("small left and large right effusions", "effusion/left/small, effusion/right/large"),
    ("opacities in the right upper and left lower zones and edema",
     "opacity/right upper, opacity/left lower, edema"),
    ("right upper and lower zone nodules", "nodule/right upper, nodule/right lower"),
    ("The heart is severely enlarged and there is edema", "cardiomegaly//severe, edema"),
    ("Large left effusion with right upper zone nodule",
     "effusion/left/large, nodule/right upper"),
    # negations, and where they end
    ("The heart is not enlarged. The heart is normal in size.", ""),
    ("No effusion.", ""),
    ("No effusion, edema, or pneumothorax.", ""),
    ("No left effusion or right pneumothorax.", ""),
    ("No pneumothorax but a small right effusion", "effusion/right/small"),
    ("No pneumothorax, severe cardiomegaly", "cardiomegaly//severe"),
    ("Right pneumothorax without effusion or edema", "pneumothorax/right"),
    # what is incomplete, unclear or no language states nothing
    ("left effusion. nodule. Small to moderate left effusion.", ""),
    ("", ""),
    ("the the zone <eos> Ġ 12 left left", ""),
    (" and , or no with but . ;", ""),
])
def test_phrases_as_a_person_or_a_model_may_write_them(text, facts):
    assert report_to_facts(text) == facts_in(facts)


def test_any_text_can_be_read():
    sentences = [text for finding in TABLE.values() for text in finding.present + finding.absent]
    words = " ".join([*sentences, "and or , but"]).split()
    for i in range(1500):
        text = " ".join(rng(2, i).choice(words, 20))
        assert report_to_facts(text) <= set(FACTS)
