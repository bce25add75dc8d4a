"""Which words are facts, and which are dates, times and earlier studies."""
import pytest

from mimic.cleaning.words import DATE, EARLIER_STUDY, TIME, facts, pattern


@pytest.mark.parametrize("text, words", [
    ("A 1.5 x 2 cm nodule in the right apex", "1.5 x 2 cm|nodul|right|apex"),
    ("Possible pneumonia cannot be excluded", "possible pneumonia cannot excluded"),
    ("The PICC tip is unchanged since the prior exam", "picc"),
])
def test_facts_are_findings_sides_sizes_negations_and_doubts(text, words):
    expected = words.split("|") if "|" in words else words.split()
    assert sorted(facts(text).elements()) == sorted(expected)


@pytest.mark.parametrize("piece, texts, not_texts", [
    (DATE, ["3/4/2150", "2150-03-04", "March 4, 2150", "Sept 4"], ["May 5.5 cm", "may 2 cm"]),
    (TIME, ["14:05", "3 PM", "2:30:00 p.m.", "08:15 hrs"], ["5 mm", "1405"]),
    (EARLIER_STUDY, ["the prior chest radiograph of ___ at 14:05", "outside CT"], ["effusion"]),
])
def test_dates_times_and_names_of_earlier_studies(piece, texts, not_texts):
    assert all(pattern(piece).fullmatch(text) for text in texts)
    assert not any(pattern(piece).search(text) for text in not_texts)
