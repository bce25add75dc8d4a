"""FINDINGS and IMPRESSION wherever a section can start, and nowhere else."""
import doctest

import pytest

from mimic import headings
from mimic.headings import apart, divided


def test_examples_in_docstrings_hold():
    assert doctest.testmod(headings).failed == 0


@pytest.mark.parametrize("report, findings, impression", [
    ("FINDINGS: Clear. IMPRESSION: Fine.", "Clear.", "Fine."),              # on one line
    ("FINDINGS:\nClear.\n\nIMPRESSION:\r\nFine.", "Clear.", "Fine."),       # a line for each
    ("findings: clear. impression: fine.", "clear.", "fine."),              # in small letters
    ("FINDINGS:Clear.IMPRESSION:Fine", "Clear.", "Fine"),                   # without blanks
    ("**Findings:** Clear.\n\n**Impression:** Fine.", "Clear.", "Fine."),   # marked
    ("## Findings\n: Clear.\n## Conclusion: Fine.", "Clear.", "Fine."),
    ("EXAM: CHEST PA FINDINGS: CLEAR IMPRESSION: FINE", "CLEAR", "FINE"),   # no full stops
    ("Cough for a week FINDINGS: Clear.", "Clear.", None),
    ("COMPARISON: ___ FINDINGS: Clear.", "Clear.", None),
    ("(PA and lateral) Findings: Clear.", "Clear.", None),
    ("FINDNGS: Clear. IMPRESSIONS: Fine.", "Clear.", "Fine."),              # other spellings
    ("FINDINGS AND IMPRESSION: Clear.", "Clear.", None),                    # both at once
    ("FINDINGS: Clear. FINDINGS: IMPRESSION: Fine.", "Clear.", "Fine."),    # empty: not the last
    ("IMPRESSION: Fine. FINDINGS: Clear.", "Clear.", "Fine."),              # the other way round
])
def test_headings_count_where_a_section_can_start(report, findings, impression):
    assert divided(report) == (findings, impression, "table:sections")


@pytest.mark.parametrize("report", [
    "No acute findings: lungs are clear.", "NO ACUTE FINDINGS: LUNGS ARE CLEAR.",
    "There are two findings: a nodule and an effusion.", "The impression: of a catheter.",
    "Clear. Additional findings: none.", "FINDINGS are normal. IMPRESSION is fine.",
])
def test_headings_do_not_count_within_a_sentence(report):
    assert divided(report) == (report, None, "table:whole report")
    assert apart(report, "Fine.") == (report, "Fine.")


def test_findings_that_run_on_into_an_impression_give_it_up():
    assert apart("Clear. IMPRESSION: Fine.", None) == ("Clear.", "Fine.")
    assert apart("Clear. IMPRESSION: Fine.", "Normal.") == ("Clear.", "Normal.")
    assert apart("FINDINGS: Clear. FINDINGS: No edema.", None) == ("Clear. No edema.", None)
