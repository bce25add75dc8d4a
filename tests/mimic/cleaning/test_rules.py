"""--clean rules as a whole: what goes, what never goes, and facts that survive noise."""
import doctest
import time

import numpy as np
import pytest

from mimic.cleaning import (
    blanks, change, context, endpoint, guards, now, rules, sentences)
from mimic.cleaning.guards import guard
from mimic.cleaning.rules import clean
from phantom.facts import facts_to_report, report_to_facts, sample_facts


@pytest.mark.parametrize(
    "module", [rules, context, change, now, blanks, sentences, guards, endpoint])
def test_examples_in_docstrings_hold(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0


TABLE = """
Stamps, list numbers and repeats go.
    1. 2. Clear lungs. -> Clear lungs.
    FINAL REPORT Clear lungs. -> Clear lungs.
    Fractures of ribs 7 and 8. No effusion. -> same

Negations, certainty, sides and sizes stay.
    Pneumonia cannot be excluded. -> same
    The pneumothorax has resolved. -> same

Views go; a finding that is seen on one stays, with it.
    Single portable AP view of the chest. -> nothing
    UPRIGHT PORTABLE CHEST RADIOGRAPH ___: Mild edema. -> Mild edema.
    AP chest compared to ___: small left effusion. -> Small left effusion.
    Lateral view on which a small effusion is seen. -> same

People go; what they were told about stays, and so does its "has resolved".
    Dictated by ___. -> nothing
    Discussed with Dr. ___: large pneumothorax. -> Large pneumothorax.
    Pneumothorax was communicated to Dr. ___, no effusion. -> Pneumothorax, no effusion.
    Reviewed the large pneumothorax with Dr. ___. -> Reviewed the large pneumothorax.
    Pneumonia, which was discussed with Dr. ___, has resolved. -> Pneumonia has resolved.

Age, past and the question that is asked go; a finding beside an age stays.
    HISTORY: Shortness of breath. -> nothing
    72F with cough. -> nothing
    14F chest tube in place. -> same
    ___M with right pleural effusion. -> Right pleural effusion.
    72-year-old man with right effusion, evaluate for change. -> Right effusion.
    72-year-old man with cough, evaluate for left pneumothorax. -> nothing
    There is a history of left pneumothorax, now no pneumothorax. -> No pneumothorax.
    Patient with history of CHF, now with bilateral effusions. -> Bilateral effusions.
    History of CHF with moderate edema. -> same
    The patient is mildly rotated to left. -> nothing
    Patient is rotated to the left; there is a left pneumothorax. -> There is a left pneumothorax.

Advice goes, but not where it would take a finding along.
    Consider followup radiograph to document resolution. -> nothing
    Left nodule should be followed with CT; no effusion. -> Left nodule; no effusion.
    Recommend CT for left nodule. -> same

Dates, earlier measures and what was on another day go; measures of today stay.
    Left effusion is 3 cm (was 2 cm). -> Left effusion is 3 cm.
    Small effusion, on 3/4/2150 there was no effusion. -> Small effusion.
    Small left effusion; on ___ there was none. -> Small left effusion.
    Nodule was 8 mm. -> same
    Opacity in the left lower lobe may 2 be atelectasis. -> same

What somebody was told about stays, however it is said.
    Findings discussed with Dr. ___ of pneumothorax by telephone. -> Pneumothorax.
    Discussed with Dr. ___ regarding the small left effusion. -> Small left effusion.
    Chronic markings, consistent with the patient's history of fibrosis. -> Chronic markings.

A blank for a date, a maker or a number goes alone.
    The left effusion seen on ___ has resolved. -> The left effusion seen has resolved.
    No effusion or ___. -> No effusion.
    Edema with ___ and effusion. -> Edema with effusion.
    Swan-___ catheter ends in the right atrium. -> Catheter ends in the right atrium.
    Nodule in the left apex measures ___ cm. -> Nodule in the left apex.

A blank for an adjective goes alone before a finding that one sees, unless it is denied or doubted.
    ___ opacity in the left midlung. -> Opacity in the left midlung.
    There is a ___ opacity. -> There is an opacity.
    There are ___ left opacities, ___ atelectasis. -> There are left opacities.
    Mild ___ deformity is noted. -> Mild deformity is noted.
    Minimal ___ scarring. -> Minimal scarring.
    Low volumes with ___ opacities. -> Low volumes with opacities.
    Bones normal in ___ and alignment. -> Bones normal in alignment.
    ___ atelectasis. -> nothing
    No displaced ___ fracture. -> nothing
    Possible ___ opacity. -> nothing
    Scar or ___ atelectasis in the lingula. -> nothing
    Scar or ___. -> nothing
    No scar or ___. -> No scar.
    There are no ___ of a pleural effusion. -> There are no pleural effusion.
    ___ sternotomy wires are in ___ and intact. -> Sternotomy wires are intact.

What is whole before its blank stays, unless it is denied or doubted behind it.
    Bibasilar opacities ___ atelectasis. -> Bibasilar opacities.
    Right nodule of 2 cm which is ___ calcified. -> Right nodule of 2 cm.
    Calcifications are seen within the aortic ___. -> Calcifications are seen.
    Mild calcifications of the aortic ___ are noted. -> Mild calcifications.
    There are no fractures of the left ___. -> nothing
    A 10 ___ nodule in the right apex. -> A nodule in the right apex.
    Right opacity, which may be ___. -> Right opacity.
    Edema, with bibasilar opacities ___ infiltrate. -> Edema, with bibasilar opacities.
    Left effusion ___ is not seen. -> nothing
    Opacity in the left base ___ cannot be excluded. -> nothing
    Resolution of the left effusion ___ today. -> nothing
    Lymph ___ are seen. -> nothing

A blank for a noun takes its statement along, and what hangs on a negation or doubt that goes.
    The ___ lobe is clear, no opacity. -> nothing
    Effusion, edema, or a ___ is not seen. -> nothing
    Possible ___, pneumonia. -> nothing
"""


@pytest.mark.parametrize("line", [line for line in TABLE.splitlines() if " -> " in line])
def test_what_goes_and_what_stays(line, holds):
    holds(line)


def test_remarks_on_the_lateral_view_go_when_asked():
    text = "Mild edema. On the lateral view there is blunting."
    assert clean(text)[0] == text
    assert clean(text, drop_lateral=True) == ("Mild edema.", {"lateral_remarks": 1})


def test_a_rule_that_would_lose_a_fact_is_undone():
    """A rule is guarded by default; what it may lose is told beside it."""
    careless = rules.Rule("careless", lambda clause: "Effusion.")
    assert rules.apply_rule(careless, "Small effusion.") == "Small effusion."
    assert rules.apply_rule(careless, "Effusion again.") == "Effusion."
    assert rules.apply_rule(careless._replace(guarded=False), "Small effusion.") == "Effusion."
    may_lose = careless._replace(may_lose=rules.pattern("small"))
    assert rules.apply_rule(may_lose, "Small effusion.") == "Effusion."


def test_what_is_dropped_is_counted_by_rule():
    assert clean("") == (None, {})
    text, dropped = clean("As. New. The heart. Small effusion. CT is advised. ___.")
    assert text == "Small effusion." and dropped == {"remnants": 3, "advice": 1}


# ---- noise ----

NOISE = [
    "PA and lateral views of the chest were obtained.", "No significant change.", "On ___, at ___.",
    "Comparison is made to the prior study of ___.", "CT is advised for further evaluation.",
    "Findings were discussed with Dr. ___ by telephone at 14:05 on ___.", "Dictated by ___.",
    "___-year-old man with cough and fever.", "The patient was rotated.", "Stable heart size.",
]
BEFORE = ["As compared to the prior study, ", "Since the prior exam, ", "Again, "]
BEHIND = [", unchanged.", " compared to ___.", ", discussed with Dr. ___ at 4 PM.", " since ___."]


def noisy(report, dice):
    """A report with sentences and phrases of noise between its own; wrapped and numbered."""
    parts = ["PORTABLE AP CHEST:", "WET READ: ___ MON 8:10 PM"][:dice.integers(3)]
    for number, sentence in enumerate(report.rstrip(".").split(". "), 1):
        if dice.random() < 0.4:
            sentence = str(dice.choice(BEFORE)) + sentence[0].lower() + sentence[1:]
        end = str(dice.choice(BEHIND)) if dice.random() < 0.2 else "."
        parts.append(f"{number}. {sentence}{end}")
        if dice.random() < 0.5:
            parts.append(str(dice.choice(NOISE)))
    words = " ".join(parts).split(" ")
    return "\n ".join(" ".join(words[start:start + 9]) for start in range(0, len(words), 9))


@pytest.mark.parametrize("number", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_facts_survive_the_noise_around_them(number):
    """A phantom's report has its facts, no noise is left, and cleaning twice is once."""
    for seed in range(number):
        dice = np.random.default_rng([7, seed])
        facts = sample_facts(dice)
        dirty = noisy(facts_to_report(facts, dice), dice)
        cleaned = clean(dirty)[0]
        assert report_to_facts(cleaned) == facts, f"{dirty}\n-> {cleaned}"
        assert not any(word in cleaned for word in ("___", "ompar", "Dr", "READ"))
        assert clean(cleaned)[0] == cleaned


UNITS = ["AP/PA ", "chest ", "the ", "on at ", "1. ", "not ", "discussed ", "3 mm ", "x 3 ", "___ ",
         ", ", "; ", "no new. ", "as compared to the prior ", "history of ", "Dr. ", "____ ",
         "unchanged and ", "is unchanged and the "]


@pytest.mark.parametrize("length", [1_000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("unit", UNITS)
def test_contrived_texts_take_no_time(unit, length):
    """A pattern that tries all ways to split a text would not come back from some of these."""
    text = (unit * length)[:length] + "x"
    start = time.process_time()
    clean(text)
    guard(text, text)
    assert time.process_time() - start < 4          # half a second for 20,000 characters
