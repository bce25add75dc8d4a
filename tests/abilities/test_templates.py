"""abilities/templates.py: labels and the sentences that state them."""
import pytest

from abilities import templates
from common.cli import InputError
from mimic.annotations import FINDINGS
from mimic.cleaning.guards import CLASSES
from mimic.cleaning.guards import labels as labels_in_words


def test_the_labels_are_those_of_chexpert():
    assert set(templates.SENTENCES) == set(FINDINGS)


@pytest.mark.parametrize("label", sorted(CLASSES.keys() - {"Support Devices"}))
def test_a_sentence_says_what_its_label_says(label):
    """By the rules of another part of this code, which read labels in texts of MIMIC-CXR."""
    present, absent = templates.SENTENCES[label]
    assert labels_in_words(present.lower())[label] == "yes"
    assert labels_in_words(absent.lower())[label] == "no"


def test_labels_become_a_report_in_the_order_of_reports():
    labels = {"Pneumothorax": 0, "Edema": 1, "Cardiomegaly": 0}
    assert templates.text_of(labels) == (
        "No cardiomegaly. There is pulmonary edema. No pneumothorax.")
    assert templates.text_of({}) == ""
    assert templates.text_of({"No Finding": 0}) == ""


def test_columns_are_known_in_any_spelling():
    columns = templates.label_columns(["id", "pleural_effusion", "NO FINDING", "age"])
    assert columns == {"Pleural Effusion": "pleural_effusion", "No Finding": "NO FINDING"}


def test_values():
    labels = {"Edema": "Edema", "Fracture": "Fracture"}
    assert templates.labels_of({"Edema": "1.0", "Fracture": ""}, labels, "t") == {"Edema": 1}
    assert templates.labels_of({"Edema": 0, "Fracture": "nan"}, labels, "t") == {"Edema": 0}
    with pytest.raises(InputError, match="row 3: Fracture is -1; a label is 1"):
        templates.labels_of({"Edema": "", "Fracture": "-1"}, labels, "table.csv, row 3")
