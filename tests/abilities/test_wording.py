"""A statement put into a report: what goes, what stays, where it stands."""
import numpy as np
import pytest

from abilities.wording import named, sentences, with_statement
from common.cli import InputError
from phantom.facts import FACTS, TABLE, conflict, facts_to_report, report_to_facts, sample_facts


@pytest.mark.parametrize("report, statement, changed", [
    # in place of what was said about the finding, on either side
    ("The heart is normal in size. Small left pleural effusion. No edema.",
     "Large right pleural effusion.",
     "The heart is normal in size. Large right pleural effusion. No edema."),
    ("Small left pleural effusion. Large right pleural effusion. No edema.", "No effusion.",
     "No effusion. No edema."),
    ("The heart is normal in size. No edema.", "Severe cardiomegaly.",
     "Severe cardiomegaly. No edema."),
    # or added, in the order in which reports name findings
    ("Mild cardiomegaly. No edema.", "Left pneumothorax.",
     "Mild cardiomegaly. Left pneumothorax. No edema."),
    ("Mild cardiomegaly.", "Right central venous catheter.",
     "Mild cardiomegaly. Right central venous catheter."),
    ("Right central venous catheter.", "Rib fracture of 1.5 cm.",
     "Right central venous catheter. Rib fracture of 1.5 cm."),
    # a denial of two findings keeps the other
    ("No pleural effusion or pneumothorax. No nodule.", "Left pneumothorax.",
     "Left pneumothorax. No pleural effusion. No nodule."),
    ("No pleural effusion or pneumothorax. No nodule.", "No pneumothorax or effusion.",
     "No pneumothorax or effusion. No nodule."),
    # clear lungs are not clear any more, unless it is said of something else
    ("The lungs are clear. No catheter.", "Pulmonary edema.", "Pulmonary edema. No catheter."),
    ("The lungs are clear. No catheter.", "Mild cardiomegaly.",
     "Mild cardiomegaly. The lungs are clear. No catheter."),
    ("The lungs are clear. No catheter.", "No edema.",
     "The lungs are clear. No edema. No catheter."),
    # what else such a sentence denies stays
    ("Heart size is normal and lungs are clear. No catheter.", "Left pneumothorax.",
     "The heart is normal in size. Left pneumothorax. No catheter."),
    ("The lungs are clear without effusion or edema.", "Left pneumothorax.",
     "No pleural effusion. Left pneumothorax. No pulmonary edema."),
    ("", "No edema.", "No edema."),
])
def test_a_statement_takes_its_place(report, statement, changed):
    assert with_statement(report, statement) == changed


def test_a_sentence_that_states_another_finding_is_not_thrown_away():
    with pytest.raises(InputError, match="about effusion and edema at once.*with --report"):
        with_statement("Left pleural effusion with pulmonary edema.", "No effusion.")
    with pytest.raises(InputError, match="about cardiomegaly and opacity at once"):
        with_statement("Mild cardiomegaly and the lungs are clear.", "Left pneumothorax.")


def test_sentences_end_where_a_blank_follows():
    assert sentences(" Nodule of 1.5 cm. No edema!  ") == ["Nodule of 1.5 cm.", "No edema!"]
    assert sentences("") == []


def test_every_sentence_of_a_phantom_is_known_by_its_finding():
    for name, finding in TABLE.items():
        for text in (*finding.present, *finding.absent):
            words = text.format(side="left", zone="upper", degree="mild", adverb="mildly")
            assert named(words) == [name], words


def test_one_fact_of_a_phantom_changes_and_all_others_stay():
    """Facts are read back from the changed reports, exactly."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        facts = sample_facts(rng)
        report = facts_to_report(facts, rng)
        new = FACTS[rng.integers(len(FACTS))]
        others = {fact for fact in facts if fact.finding != new.finding}
        if any(conflict(new, fact) for fact in others):
            continue
        text = TABLE[new.finding].present[0].format(
            side=new.side, zone=new.zone, degree=new.degree, adverb=f"{new.degree}ly")
        assert report_to_facts(with_statement(report, text)) == others | {new}
        text = TABLE[new.finding].absent[0]
        assert report_to_facts(with_statement(report, text)) == others
