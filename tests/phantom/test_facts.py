"""The facts of a phantom: reports read back exactly, findings that contradict each other do not meet."""
import functools

import numpy as np
import pytest

from phantom import facts as P

P.conflict = functools.lru_cache(maxsize=None)(P.conflict)         # tens of thousands of draws below; 625 pairs


def rng(*key):
    return np.random.default_rng(key)


def test_reports_read_back_exactly():
    seen = set()
    for i in range(20_000):
        dice = rng(i)
        facts = P.sample_facts(dice)
        report = P.facts_to_report(facts, dice)
        assert P.report_to_facts(report) == facts, report
        assert 3 <= report.count(".") <= 6, report
        seen |= facts
    assert seen == set(P.FACTS)


def test_any_set_of_facts_reads_back_even_contradicting_ones():
    for i in range(3000):
        dice = rng(1, i)
        facts = frozenset(P.FACTS[k] for k in dice.choice(len(P.FACTS), dice.integers(0, 9), replace=False))
        assert P.report_to_facts(P.facts_to_report(facts, dice)) == facts


@pytest.mark.parametrize("text, facts", [
    ("Large left pleural effusion.", {("effusion", "left", "large")}),
    ("LARGE LEFT EFFUSION", {("effusion", "left", "large")}),
    ("Bilateral small effusions", {("effusion", "left", "small"), ("effusion", "right", "small")}),
    ("small left and large right effusions, no pneumothorax", {("effusion", "left", "small"), ("effusion", "right", "large")}),
    ("Mild cardiomegaly.", {("cardiomegaly", "", "mild")}),
    ("The heart is severely enlarged and there is edema", {("cardiomegaly", "", "severe"), ("edema", "", "")}),
    ("The heart is not enlarged. The heart is normal in size.", set()),
    ("No effusion.", set()),
    ("No effusion, edema, or pneumothorax.", set()),
    ("No left effusion or right pneumothorax.", set()),
    ("No pneumothorax but a small right effusion", {("effusion", "right", "small")}),
    ("No pneumothorax, severe cardiomegaly", {("cardiomegaly", "", "severe")}),
    ("Right pneumothorax without effusion or edema", {("pneumothorax", "right", "")}),
    ("Large left effusion with right upper zone nodule", {("effusion", "left", "large"), ("nodule", "right upper", "")}),
    ("opacities in the right upper and left lower zones and edema",
     {("opacity", "right upper", ""), ("opacity", "left lower", ""), ("edema", "", "")}),
    ("right upper and lower zone nodules", {("nodule", "right upper", ""), ("nodule", "right lower", "")}),
    ("Right PICC", {("catheter", "right", "")}),
    ("left effusion. nodule. Small to moderate left effusion.", set()),       # incomplete or unclear: no facts
    ("", set()), ("the the zone <eos> Ġ 12 left left", set()), (" and , or no with but . ;", set()),
])
def test_natural_phrases(text, facts):
    assert P.report_to_facts(text) == facts


def test_shuffled_words_never_raise():
    words = " ".join(sum(P.POSITIVE.values(), []) + sum(P.NEGATIVE.values(), []) + ["and", "or", ",", "but"]).split()
    for i in range(3000):
        found = P.report_to_facts(" ".join(rng(2, i).choice(words, 20)))
        assert found <= set(P.FACTS)


def test_frequencies():
    drawn = [P.sample_facts(rng(3, i)) for i in range(4000)]
    assert 0.17 < np.mean([not facts for facts in drawn]) < 0.23 and max(map(len, drawn)) == 4
    for finding in P.FINDINGS:
        assert np.mean([any(fact[0] == finding for fact in facts) for facts in drawn]) > 0.12, finding
    for facts in drawn:
        assert not any(P.conflict(a, b) for a in facts for b in facts if a != b)


@pytest.mark.parametrize("a, b", [
    (("effusion", "left", "large"), ("nodule", "left lower", "")), (("effusion", "left", "large"), ("opacity", "left upper", "")),
    (("effusion", "left", "small"), ("effusion", "left", "large")), (("effusion", "left", "large"), ("effusion", "right", "large")),
    (("effusion", "left", "small"), ("pneumothorax", "left", "")), (("opacity", "left mid", ""), ("nodule", "left mid", "")),
    (("cardiomegaly", "", "mild"), ("cardiomegaly", "", "severe")), (("cardiomegaly", "", "severe"), ("effusion", "left", "small")),
    (("opacity", "left mid", ""), ("opacity", "left lower", "")), (("pneumothorax", "left", ""), ("edema", "", "")),
])
def test_conflicts(a, b):
    assert P.conflict(a, b) and P.conflict(b, a)


def test_no_conflict_across_sides():
    assert not P.conflict(("effusion", "left", "large"), ("nodule", "right lower", ""))
    assert not P.conflict(("opacity", "left upper", ""), ("opacity", "left lower", ""))
    assert not P.conflict(("effusion", "left", "small"), ("pneumothorax", "right", ""))
