"""Comparisons with earlier films go, and change becomes a statement about now; findings stay."""
import pytest

from mimic.cleaning.rules import clean

TABLE = """
What only compares goes.
    No significant interval change. -> nothing
    Comparison is made to ___. -> nothing
    No new abnormality. -> nothing

A comparison before, in, or behind a finding goes; the finding stays.
    As compared to the prior study there is no edema. -> There is no edema.
    As before, there is edema. -> There is edema.
    Right effusion, unchanged since ___, is moderate. -> Right effusion is moderate.
    Left pneumothorax, 2 cm, unchanged since 3:00 a.m. -> Left pneumothorax, 2 cm.
    Stable position of the left line. -> Left line.
    Large right effusion, unchanged from ___ and no edema. -> Large right effusion; no edema.

Nothing is left hanging on what went.
    Heart is mildly enlarged but stable. -> Heart is mildly enlarged.
    Right nodule is again seen but unchanged. -> Right nodule is seen.
    Opacity in the right base also appears unchanged. -> Opacity in the right base.
    Upper abdominal surgical sutures are likewise stable. -> Upper abdominal surgical sutures.
    We note scars that are unchanged from the prior study. -> We note scars.
    Small effusions, with interval improvement. -> Small effusions.
    Hernia, increased from prior exam. -> Hernia.
    Mild cardiomegaly, stable mediastinal contours. -> Mild cardiomegaly.
    Enlarged heart, mediastinal contours appear similar to prior. -> Enlarged heart.
    Relatively unchanged appearance of scars. -> Scars.
    Grossly unchanged rightward shift. -> Rightward shift.
    There is significant interval decrease in the left effusion. -> Left effusion.
    Interval improvement in lung volumes bilaterally. -> nothing
    There is stable appearing bullous disease. -> There is bullous disease.
    The left catheter is unchanged position. -> The left catheter.
    Redemonstration and stable appearance of granulomas. -> Granulomas.
    There is an interval placement of a left catheter. -> Left catheter.
    The lungs are stable given the low volumes. -> same
    The right lung is clear, and the left is unchanged. -> same
    Heart is enlarged but unchanged, and no edema. -> Heart is enlarged; no edema.
    Opacity, which is new since ___, may be pneumonia. -> Opacity may be pneumonia.
    Unchanged or slightly decreased left pneumothorax. -> Left pneumothorax.
    Left tube in place, PICC in place, both unchanged. -> Left tube in place, PICC in place.

What is normal, or no word of lungs and pleura, is a finding too.
    Cardiac silhouette is stable and unremarkable. -> Cardiac silhouette is unremarkable.
    Stable ectasia of the thoracic aorta. -> Ectasia of the thoracic aorta.
    Postsurgical changes, including CABG, are stable. -> Postsurgical changes, including CABG.
    Patient is status post CABG. -> Status post CABG.

"Larger" goes where it means "than before", not where it means "than the other".
    Left effusion is larger than on ___. -> Left effusion.
    Two nodules, the left nodule is larger. -> same
    Heart size is increased. -> same

Devices that were removed go; what is found besides stays.
    Interval removal of the tube, nasogastric tube, and left PICC. -> nothing
    Interval removal of left PICC, right catheter is unchanged. -> Right catheter.
    There is interval removal of the tracheostomy tube. -> nothing
    Compared to the study of ___, there has been removal of the catheter. -> nothing

"No new" is "no", unless the report knows of one, be it by another name: the old one may be there.
    No new consolidation, but a large left effusion. -> No consolidation, but a large left effusion.
    No effusion. No new effusion or edema. -> No effusion. No effusion or edema.
    Stable small effusion. No new effusion. -> Small effusion. No new effusion.
    Right opacity. No new consolidation. -> same

Of two sizes or degrees the one of today stays.
    Left effusion decreased from large to small. -> Left effusion is small.
    Left effusion, previously moderate, is now small. -> Left effusion is small.
    Small effusion on ___ is now large. -> Effusion is large.
    Nodule was 8 mm, now 10 mm. -> Nodule is 10 mm.
    Previously 12 mm nodule is now 15 mm. -> Nodule is 15 mm.

Words of change go.
    Mild edema has slightly improved. -> Mild edema.
    There has been interval increase in the right effusion. -> Right effusion.
    New since ___ is a left pneumothorax. -> There is a left pneumothorax.
    Stable, mild cardiomegaly. -> Mild cardiomegaly.
    Unchanged to minimally decreased left effusion. -> Left effusion.
    Bibasilar opacities remain. -> Bibasilar opacities.
    Lung volumes remain low. -> Lung volumes are low.
    Interval central catheter exchange. -> Central catheter exchange.
    No pneumothorax, unchanged left effusion. -> No pneumothorax; left effusion.
    There is no left, but an unchanged right effusion. -> There is no left, but a right effusion.
    Stable appearance of the left upper lobe. -> nothing

A density that is increased is a finding of one film; more fluid is a comparison.
    Increased opacity at the left base. -> same

What looks like change, or is denied or qualified, stays.
    Heart has not enlarged. -> same
    Improved but not resolved left effusion. -> same
    There is persistent but improved edema. -> same
    No evidence of worsening edema. -> same
    Interval enlargement of the mass. -> same
    Compared to the right lung, which is clear, the left lung has edema. -> same
    Scarring from prior radiation in the left upper lobe. -> same
"""


@pytest.mark.parametrize("line", [line for line in TABLE.splitlines() if " -> " in line])
def test_what_is_said_of_change(line, holds):
    holds(line)


def test_no_new_looks_at_the_other_section_too():
    assert clean("No new effusion.", beside="Small left effusion.")[0] == "No new effusion."
    assert clean("No new effusion.", beside="Clear lungs.")[0] == "No effusion."


@pytest.mark.parametrize("text, never", [
    ("Pneumothorax from the previous exam has resolved.", "Pneumothorax."),
    ("The left effusion from the prior study is no longer present.", "The left effusion."),
    ("Right nodule 8 mm vs 6 mm on the left.", "Right nodule 8 mm on the left."),
    ("The left pneumothorax reported by ___ is not seen.", "The left pneumothorax."),
    ("Left nodule, for which CT was recommended, is no longer seen.", "Left nodule."),
])
def test_a_finding_that_is_gone_does_not_come_back(text, never):
    assert clean(text)[0] != never
