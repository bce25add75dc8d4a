"""What an answer of a language model must not lose or add."""
import pytest

from mimic.annotations import FINDINGS
from mimic.cleaning.guards import CLASSES, guard, parse

RAW = ("FINDINGS:\nThe left effusion has increased, now moderate. No pneumothorax. Right PICC ends "
       "in the low SVC at 14:05.")


def test_every_finding_of_chexpert_has_its_words():
    assert {*CLASSES, "No Finding"} == set(FINDINGS)


@pytest.mark.parametrize("content, finish, wrong", [
    ('{"findings": "Clear.", "impression": null}', "stop", None),
    ('```json\n{"findings": " Clear. "}\n```', "stop", None),
    ('{"findings": "Clear."}', "length", "cut off"),
    ('{"findings": "Clear."', "stop", "json"),
    ("[" * 100_000, "stop", "json"),
    ('{"findings": 3}', "stop", '{"findings": .., "impression": ..}'),
    ('{"findings": null, "impression": "Clear."}', "stop", "missing"),
    ('{"findings": "\\ud800"}', "stop", "broken characters"),
])
def test_an_answer_is_whole_and_json_with_findings(content, finish, wrong):
    answer, complaints = parse(content, finish, "Clear lungs.")
    if wrong is None:
        assert answer == ("Clear.", None) and complaints == []
    else:
        assert answer is None and wrong in complaints[0]


@pytest.mark.parametrize("clean, complaint", [
    ("Moderate left effusion. No pneumothorax. Right PICC ends in the low SVC.", None),
    ("Effusion.", "the length changed too much"),
    (RAW, "blanks, dates, times, names or comparisons are left"),
    ("Moderate left effusion of 3 cm. No pneumothorax. Right PICC in the SVC.", "a number is new"),
    ("Moderate left effusion, cirrhotic abdomen, gallstones. No pneumothorax. Right PICC.",
     "too many words are new"),
    ("Moderate right effusion. No pneumothorax. Right PICC in the low SVC.", "a side is new"),
    ("Moderate left effusion. Pneumothorax. Right PICC in the low SVC.",
     "Pneumothorax was no and is now yes"),
    ("Moderate left effusion. No pneumothorax. Edema. Right PICC in the low SVC.",
     "Edema was absent and is now yes"),
    ("Moderate left effusion. No pneumothorax, all is in the low SVC.",
     "Support Devices was yes and is now absent"),
])
def test_each_guard_sees_its_fault(clean, complaint):
    complaints, _ = guard(RAW, "FINDINGS:\n" + clean)
    if complaint is None:
        assert complaints == []
    else:
        assert any(complaint in sentence for sentence in complaints), complaints


def test_a_persistent_opacity_is_no_stent():
    complaints, _ = guard("Persistent left base opacity.", "Left base opacity.")
    assert complaints == []


def test_a_lost_negative_only_warns():
    complaints, warnings = guard(RAW, "Moderate left effusion. Right PICC ends in the low SVC.")
    assert complaints == [] and warnings == ["lost negative: Pneumothorax"]


LOST, OTHER, CERTAINTY = "is lost", "belongs to something else", "certainty has changed"


@pytest.mark.parametrize("raw, clean, complaint", [
    ("Small left effusion. Heart is normal.", "Large left effusion. Heart is normal.", OTHER),
    ("A 1.5 cm nodule in the left apex.", "A nodule in the left apex.", LOST + ": 15 mm"),
    ("A 1.5 cm nodule in the left apex.", "A 1.5 mm nodule in the left apex.", OTHER),
    ("Nodule previously 12 mm, now 15 mm, in the apex.", "Nodule of 12 mm in the apex.", LOST),
    ("Nodule previously 12 mm, now 15 mm, in the apex.", "Nodule of 15 mm in the apex.", None),
    ("Small pleural effusion. No edema.", "Small effusion. No edema.", None),
    ("Edema has markedly improved. Clear lung.", "Edema. Clear lung.", None),
    ("Mild edema. Mild scoliosis.", "Mild edema.", None),
    ("A 5 mm right and 9 mm left nodule.", "A 9 mm right and 5 mm left nodule.", OTHER),
    ("Pneumonia in the left base cannot be excluded.", "Pneumonia in the left base.", CERTAINTY),
    ("Left basal pneumonia. Clear lung.", "Probable left basal pneumonia. Clear lung.", CERTAINTY),
    ("No definite pneumothorax. Normal heart.", "No pneumothorax. Normal heart.", CERTAINTY),
    ("No effusion or\n edema. Clear left\n lung.", "No effusion or edema. Clear left lung.", None),
])
def test_sizes_and_certainty_are_guarded(raw, clean, complaint):
    complaints = "; ".join(guard("FINDINGS:\n" + raw, "FINDINGS:\n" + clean)[0])
    if complaint is None:
        assert complaints == ""
    else:
        assert complaint in complaints


def test_words_of_doubt_may_not_go():
    words = "Possible Probable Likely Suspected Questionable Equivocal Presumed Definite"
    for word in words.split():
        complaints, _ = guard(f"{word} pneumonia in the left base.", "Pneumonia in the left base.")
        assert "certainty has changed for pneumonia" in complaints
