"""Cleaning rules sentence by sentence (all invented), facts that survive noise, the language model's guards and its endpoint."""
import doctest
import functools
import json
import time

import numpy as np
import pytest

from mimic.cleaning import rules as cleaning
from mimic.cleaning import change as comparing
from mimic.cleaning import guards
from mimic.cleaning import blanks, context, endpoint, llm, now
from mimic.cleaning import sentences as cutting
import prepare_mimic
from phantom import facts as prepare_phantom
from mimic import sections
from mimic import sources
from common.cli import InputError
from llm_server import Server, report_in

prepare_phantom.conflict = functools.lru_cache(maxsize=None)(prepare_phantom.conflict)         # thousands of draws below; 625 pairs


@pytest.mark.parametrize("module", [cleaning, context, comparing, now, blanks, cutting, guards, sections, sources], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0
    if module is cleaning:
        for rule in (*cleaning.TEXT_RULES, *cleaning.CLAUSE_RULES, context.lateral_remarks):
            assert ">>>" in rule.__doc__, f"{rule.__name__} has no example"


@pytest.mark.parametrize("text, expected", [
    # the examples of the facts
    ("small\n  effusion", "Small effusion"),
    ("WET READ: ___ MON 8:10 PM", None),
    ("PORTABLE AP CHEST: Lungs are clear.", "Lungs are clear."),
    ("Findings were phoned to Dr. ___ at 14:05.", None),
    ("Compared with ___, no change.", None),
    ("As compared to the prior study, there is a small left effusion.", "There is a small left effusion."),
    ("unchanged mild cardiomegaly", "Mild cardiomegaly"),
    ("again seen is a pacemaker", "A pacemaker is seen"),
    ("Improved edema.", "Edema."),
    ("Stable heart size.", None),
    ("___-year-old man with cough.", None),
    ("CT is advised.", None),
    ("Nodule of 15 mm, previously 12 mm.", "Nodule of 15 mm."),
    ("Catheter placed at ___.", "Catheter placed."),
    ("1. Clear lungs. 2) A nodule of 1.5 cm.", "Clear lungs. A nodule of 1.5 cm."),
    ("No edema. no edema. Clear.", "No edema. Clear."),
    # negations, certainty, sides and sizes stay as they are
    ("No pneumothorax.", "No pneumothorax."),
    ("No pleural effusion or pneumothorax.", "No pleural effusion or pneumothorax."),
    ("There is no evidence of pulmonary edema.", "There is no evidence of pulmonary edema."),
    ("Pneumonia cannot be excluded.", "Pneumonia cannot be excluded."),
    ("Possible right basilar pneumonia.", "Possible right basilar pneumonia."),
    ("In this setting pneumonia should be considered.", "In this setting pneumonia should be considered."),
    ("Large right and small left effusions.", "Large right and small left effusions."),
    ("Left lower lobe is not well seen.", "Left lower lobe is not well seen."),
    ("The pneumothorax has resolved.", "The pneumothorax has resolved."),
    ("Neither effusion nor edema.", "Neither effusion nor edema."),
    ("Lungs are clear without effusion.", "Lungs are clear without effusion."),
    # densities that are increased or decreased are findings
    ("Increased opacity at the left base.", "Increased opacity at the left base."),
    ("Decreased lung volumes.", "Decreased lung volumes."),
    ("Increased interstitial markings.", "Increased interstitial markings."),
    ("Increased left pleural effusion.", "Left pleural effusion."),
    ("Increasing right effusion.", "Right effusion."),
    # comparisons
    ("No significant interval change.", None),
    ("Little change since the prior radiograph.", None),
    ("Comparison is made to ___.", None),
    ("In comparison with the study of ___, there is no pneumothorax.", "There is no pneumothorax."),
    ("Since the prior exam, a right PICC has been placed.", "A right PICC has been placed."),
    ("Small left effusion is unchanged.", "Small left effusion."),
    ("Moderate cardiomegaly is stable compared to ___.", "Moderate cardiomegaly."),
    ("Right effusion, unchanged since ___, is moderate.", "Right effusion is moderate."),
    ("No change in moderate left effusion.", "Moderate left effusion."),
    ("The cardiomediastinal silhouette is stable.", None),
    ("Heart size is stable and normal.", "Heart size is normal."),
    ("The left effusion has increased, now large.", "The left effusion is large."),
    ("The opacities have worsened and are now severe.", "The opacities are severe."),
    ("Left effusion has decreased.", "Left effusion."),
    ("Mild edema has slightly improved.", "Mild edema."),
    ("Interval placement of a right chest tube.", "A right chest tube."),
    ("Interval removal of the endotracheal tube.", None),
    ("There has been interval increase in the right effusion.", "Right effusion."),
    ("No new consolidation.", "No consolidation."),
    ("No new consolidation, but a large left effusion.", "No consolidation, but a large left effusion."),
    ("New right lower lobe opacity.", "Right lower lobe opacity."),
    ("Persistent left basilar atelectasis.", "Left basilar atelectasis."),
    ("The heart remains moderately enlarged.", "The heart is moderately enlarged."),
    ("Bibasilar opacities remain.", "Bibasilar opacities."),
    ("Median sternotomy wires are again noted.", "Median sternotomy wires are noted."),
    # views, people, plans
    ("PA and lateral views of the chest were obtained.", None),
    ("Single portable AP view of the chest.", None),
    ("Frontal and lateral views of the chest demonstrate clear lungs.", "Clear lungs."),
    ("UPRIGHT PORTABLE CHEST RADIOGRAPH ___: Mild edema.", "Mild edema."),
    ("Chest wall is normal.", "Chest wall is normal."),
    ("Large left pneumothorax was discussed with Dr. ___ by phone.", "Large left pneumothorax."),
    ("Large left pneumothorax, findings discussed with the team at 2 p.m. on ___.", "Large left pneumothorax."),
    ("Discussed with Dr. ___: large pneumothorax.", "Large pneumothorax."),
    ("Dr. ___ was notified at 3:30 PM.", None),
    ("Dictated by ___.", None),
    ("Recommend follow-up CT.", None),
    ("Right upper lobe nodule, CT is recommended.", "Right upper lobe nodule."),
    ("Right nodule and follow-up radiographs are advised.", "Right nodule."),
    ("Right base opacity; recommend repeat radiographs.", "Right base opacity."),
    ("HISTORY: Shortness of breath.", None),
    # dates, times, measures, blanks
    ("Tube placed on 3/4/2150 at 14:05.", "Tube placed."),
    ("Nodule measures 12 mm (previously 9 mm).", "Nodule measures 12 mm."),
    ("Fracture of T8-T9.", "Fracture of T8-T9."),
    ("Tip ends 5.5 cm above the carina.", "Tip ends 5.5 cm above the carina."),
    ("A 3 x 2 cm mass.", "A 3 x 2 cm mass."),
    ("The ___ lobe is collapsed.", None),
    ("1. 2. Clear lungs.", "Clear lungs."),
    ("1. 5 mm nodule. 2. 1.5 cm mass.", "5 mm nodule. 1.5 cm mass."),
    ("2 nodules are seen.", "2 nodules are seen."),
    ("Fractures of ribs 7 and 8. No effusion.", "Fractures of ribs 7 and 8. No effusion."),
    ("Small effusion , on the left . .", "Small effusion, on the left."),
    ("___", None), ("", None),
])
def test_sentences(text, expected):
    assert cleaning.clean(text)[0] == expected


@pytest.mark.parametrize("text, expected", [
    # history with findings beside it
    ("The patient has severe cardiomegaly and bilateral effusions.", "Severe cardiomegaly and bilateral effusions."),
    ("Patient is rotated to the left, which limits evaluation; there is a left pneumothorax.", "There is a left pneumothorax."),
    ("The patient is status post median sternotomy with intact wires.", "Status post median sternotomy with intact wires."),
    ("In this patient with history of lung cancer, there is a large left mass.", "There is a large left mass."),
    ("Given history of lung cancer, the right nodule is suspicious.", "The right nodule is suspicious."),
    ("There is a history of left pneumothorax, now no pneumothorax.", "No pneumothorax."),
    ("Pacemaker in this patient with history of CHF.", "Pacemaker."),
    ("57-year-old man with cough, now with a small left effusion.", "Small left effusion."),
    ("57-year-old man with fever.", None), ("The patient was rotated.", None),
    # what was taken out, and what is found besides
    ("Interval removal of the left chest tube with small left pneumothorax.", "Small left pneumothorax."),
    ("Removal of the right chest tube without pneumothorax.", "No pneumothorax."),
    ("Extubation and removal of NG tube with new left lower lobe opacity.", "Left lower lobe opacity."),
    ("There has been removal of left chest tube and new right effusion.", "Right effusion."),
    ("Interval removal of the endotracheal tube, nasogastric tube, and left PICC.", None),
    ("Interval removal of left PICC, right catheter is unchanged.", "Right catheter."),
    # "no new"
    ("No new consolidation and effusion.", "No consolidation and effusion."),
    ("No new focal consolidation, pleural effusion or pneumothorax.", "No focal consolidation, pleural effusion or pneumothorax."),
    ("No new or residual pneumothorax.", "No residual pneumothorax."),
    ("Stable small right effusion. No new effusion.", "Small right effusion. No new effusion."),
    ("Right base opacity. No new consolidation or edema.", "Right base opacity. No new consolidation or edema."),
    ("No effusion. No new effusion or edema.", "No effusion. No effusion or edema."),
    ("No new abnormality.", None),
    ("No pneumothorax, unchanged left effusion.", "No pneumothorax; left effusion."),
    # advice and people, and what stands beside them
    ("Left nodule should be followed with CT; no effusion.", "Left nodule; no effusion."),
    ("Left nodule can be followed, and right effusion.", "Left nodule, and right effusion."),
    ("Recommend CT for left nodule.", "Recommend CT for left nodule."),
    ("Dr. ___ was notified of the large left pneumothorax.", "Large left pneumothorax."),
    ("Large left pneumothorax was communicated to Dr. ___, no right effusion.", "Large left pneumothorax, no right effusion."),
    ("Pneumonia, which was discussed with Dr. ___, has resolved.", "Pneumonia has resolved."),
    ("No acute process, discussed with Dr. ___ at 3 PM.", "No acute process."),
    # views with a finding
    ("Lateral view on which a small effusion is seen.", "Lateral view on which a small effusion is seen."),
    ("Frontal view on which no pneumothorax is seen.", "Frontal view on which no pneumothorax is seen."),
    # large is a size of the heart too
    ("Heart is large and unchanged.", "Heart is large."), ("Heart size is moderately large and stable.", "Heart size is moderately large."),
    ("Unchanged large heart.", "Large heart."), ("Heart has not enlarged.", "Heart has not enlarged."),
    # statements joined by "and"
    ("Left effusion is unchanged in size and there is no pneumothorax.", "Left effusion; there is no pneumothorax."),
    ("Large right effusion, unchanged from ___ and no left effusion.", "Large right effusion; no left effusion."),
    ("Effusion is unchanged on the left but resolved on the right.", "Effusion is unchanged on the left but resolved on the right."),
    ("Improved but not resolved left effusion.", "Improved but not resolved left effusion."),
    ("There is no left, but an unchanged right effusion.", "There is no left, but a right effusion."),
    ("Compared to the right lung, which is clear, the left lung has edema.", "Compared to the right lung, which is clear, the left lung has edema."),
    ("As compared to the prior study there is no pneumothorax, small left effusion.", "There is no pneumothorax, small left effusion."),
    ("New since ___ is a left pneumothorax.", "There is a left pneumothorax."),
    # of two sizes that of today
    ("Nodule, previously 12 mm, now 15 mm.", "Nodule 15 mm."), ("Nodule has increased from 12 mm to 15 mm.", "Nodule is 15 mm."),
    ("Left effusion, previously moderate, is now small.", "Left effusion is small."),
    ("Moderate left effusion has improved, now small.", "Left effusion is small."),
    ("Left effusion decreased from large to small.", "Left effusion is small."), ("Small effusion on ___ is now large.", "Effusion is large."),
    ("Right nodule of 8 mm, left nodule previously 5 mm, now 6 mm.", "Right nodule of 8 mm, left nodule 6 mm."),
    ("Nodule was 8 mm, now 10 mm.", "Nodule is 10 mm."), ("Previously 12 mm nodule is now 15 mm.", "Nodule is 15 mm."),
    ("Edema is now moderate, previously mild.", "Edema is moderate."), ("Left effusion is larger than on ___.", "Left effusion."),
    ("Slightly increased moderate right effusion.", "Moderate right effusion."), ("Stable, mild cardiomegaly.", "Mild cardiomegaly."),
    ("There is persistent but improved edema.", "There is persistent but improved edema."),
    ("Interval removal of right catheter and placement of left PICC with tip in SVC.", "Placement of left PICC with tip in SVC."),
    ("Dr. ___ was called about the pneumothorax.", "Pneumothorax."), ("AP chest compared to ___: small left effusion.", "Small left effusion."),
    ("History of CHF with moderate edema.", "History of CHF with moderate edema."),
    # what is left says something
    ("As.", None), ("New.", None), ("The heart.", None), ("The heart is unchanged.", None), ("The mediastinum remains stable.", None),
    ("Seen by Dr. ___ today.", None), ("No effusion or ___.", "No effusion."), ("The left effusion seen on ___ has resolved.", "The left effusion seen has resolved."),
    ("Opacity in the left lower lobe may 2 be atelectasis.", "Opacity in the left lower lobe may 2 be atelectasis."),
])
def test_nothing_found_is_lost(text, expected):
    assert cleaning.clean(text)[0] == expected


@pytest.mark.parametrize("text, expected", [
    # findings in a sentence about age; what is asked is no finding
    ("72-year-old man with right pleural effusion and cough, evaluate for change.", "Right pleural effusion and cough."),
    ("72-year-old man with cough, evaluate for left pneumothorax.", None), ("72-year-old man with pneumonia?", None),
    ("___M with right pleural effusion.", "Right pleural effusion."), ("72F with cough.", None), ("14F chest tube in place.", "14F chest tube in place."),
    ("72-year-old man who presented to the emergency room with chest pain.", None), ("72-year-old man with no effusion.", "No effusion."),
    ("72-year-old man with history of left pneumothorax.", None), ("Patient with history of CHF, now with bilateral effusions.", "Bilateral effusions."),
    ("72-year-old man with suspected left pneumonia, please evaluate.", "Suspected left pneumonia."),
    # a blank for a noun: the other statements of the sentence stay, but none that hangs on what goes
    ("The ___ is clear and there is a small effusion.", "There is a small effusion."), ("The ___ has been removed.", None),
    ("Right ___ ends in the SVC, no effusion, edema or pneumothorax.", "No effusion, edema or pneumothorax."),
    ("Mild edema, ___ unchanged.", "Mild edema."), ("Effusion, edema, or a ___ is not seen.", None), ("No ___, effusion or pneumothorax.", None),
    ("Possible ___, pneumonia.", None), ("Effusion, ___ or mass cannot be excluded.", None), ("The ___ lobe is clear, no opacity.", None),
    # for a maker's name or a number: the noun stays
    ("A left-sided ___ catheter ends in the right atrium.", "A left-sided catheter ends in the right atrium."),
    ("Swan-___ catheter ends in the right pulmonary artery.", "Catheter ends in the right pulmonary artery."),
    ("In the right upper lobe, a ___ cm nodule is seen.", "In the right upper lobe, a nodule is seen."),
    ("Nodule in the left apex measures ___ cm.", "Nodule in the left apex."), ("Edema with ___ and effusion.", "Edema with effusion."),
    ("Left chest wall ___ with leads in the right ventricle.", None),
    # new and larger than before, but not than the other one
    ("Small left effusion is new.", "Small left effusion."), ("Small right effusion, new since the prior study.", "Small right effusion."),
    ("The effusion is slightly larger.", "The effusion."), ("Left basilar atelectasis, worse.", "Left basilar atelectasis."),
    ("Pulmonary edema is improved.", "Pulmonary edema."), ("The left effusion is not changed.", "The left effusion."), ("Left effusion is worse, now large.", "Left effusion is large."),
    ("Bilateral effusions, the left is larger.", "Bilateral effusions, the left is larger."), ("Heart size is increased.", "Heart size is increased."),
    ("Two nodules, the left nodule is larger.", "Two nodules, the left nodule is larger."),
    ("Right effusion is larger than left effusion.", "Right effusion is larger than left effusion."), ("No effusion is new.", "No effusion is new."),
    ("Stable to slightly increased left effusion.", "Left effusion."), ("Unchanged to minimally decreased left effusion.", "Left effusion."),
    ("The pre-existing left opacity has decreased.", "The left opacity."), ("There is worsening of the left opacity.", "Left opacity."),
    ("New since ___, there is a left effusion.", "There is a left effusion."), ("As before, there is edema.", "There is edema."),
    ("Lungs are clear, as on the previous study.", "Lungs are clear."), ("Stable position of the left line.", "Left line."),
    ("Left pneumothorax, 2 cm, unchanged since 3:00 a.m.", "Left pneumothorax, 2 cm."),
    # what was on another day
    ("On ___ there was none.", None), ("Small left effusion; on ___ there was none.", "Small left effusion."),
    ("Small left effusion, on 3/4/2150 there was no effusion.", "Small left effusion."), ("There is none.", "There is none."),
    ("Left effusion is 3 cm (was 2 cm).", "Left effusion is 3 cm."), ("Nodule, 8 mm, was 6 mm.", "Nodule, 8 mm."), ("Nodule was 8 mm.", "Nodule was 8 mm."),
])
def test_ages_blanks_and_what_is_new(text, expected):
    assert cleaning.clean(text)[0] == expected


def test_no_new_looks_at_the_other_section_too():
    assert cleaning.clean("No new effusion.", beside="Small left effusion.")[0] == "No new effusion."
    assert cleaning.clean("No new effusion.", beside="Clear lungs.")[0] == "No effusion."


def test_what_says_nothing_is_counted():
    text, dropped = cleaning.clean("As. New. The heart. Small effusion.")
    assert text == "Small effusion." and dropped == {"remnants": 3}


@pytest.mark.parametrize("unit", ["AP/PA ", "chest ", "the ", "on at ", "1. ", "not ", "discussed ", "3 mm ", "x 3 ", "___ ", ", ", "; ", "no new. ",
                                  "as compared to the prior ", "history of ", "unchanged and ", "Dr. ", "is unchanged and the ", "____ "])
def test_contrived_texts_take_no_time(unit):
    """20,000 characters; a rule that tries all ways to split them would not come back."""
    text, start = (unit * 20_000)[:20_000] + "x", time.process_time()
    cleaning.clean(text)
    guards.guard(text, text)
    assert time.process_time() - start < 2                          # both together, on a busy machine; a second at most here


def test_lateral_sentences_go_when_asked():
    text = "Mild edema. On the lateral view there is blunting."
    assert cleaning.clean(text)[0] == text
    assert cleaning.clean(text, drop_lateral=True) == ("Mild edema.", {"lateral_remarks": 1})


def test_cleaning_twice_changes_nothing():
    for seed in range(200):
        dice = np.random.default_rng(seed)
        text = cleaning.clean(noisy(prepare_phantom.facts_to_report(prepare_phantom.sample_facts(dice), dice), dice))[0]
        assert cleaning.clean(text)[0] == text


NOISE = ["PA and lateral views of the chest were obtained.", "Comparison is made to the prior study of ___.", "No significant change.",
         "Findings were discussed with Dr. ___ by telephone at 14:05 on ___.", "CT is advised for further evaluation.", "Dictated by ___.",
         "___-year-old man with cough and fever.", "Compared with ___, there is no relevant change.", "The patient was rotated.",
         "Follow-up radiographs are recommended.", "Stable heart size.", "Line placed by ___ at 3 PM is not described.", "On ___, at ___."]
STARTS = ["As compared to the prior study, ", "In comparison with the study of ___, ", "Since the prior exam, ", "Unchanged ", "Again, "]


def noisy(report, dice):
    """Noise around the sentences of a report, and clauses and adverbs before them; wrapped and numbered."""
    parts = []
    for sentence in report.split(". "):
        sentence = sentence.rstrip(".") + "."
        start, first = str(dice.choice(STARTS)), sentence.split()[0]
        if dice.random() < 0.4 and (start.endswith(", ") or first.lower() in ("mild", "severe", "small", "large", "moderate", "pulmonary", "left")):
            sentence = start + sentence[0].lower() + sentence[1:]
        if dice.random() < 0.2:
            sentence = sentence[:-1] + str(dice.choice([", unchanged.", " compared to ___.", ", discussed with Dr. ___ at 4:15 PM.", " since ___."]))
        parts += [sentence, *([str(dice.choice(NOISE))] * (dice.random() < 0.5))]
    if dice.random() < 0.5:
        parts = [f"{n}. {part}" for n, part in enumerate(parts, 1)]
    text = " ".join(["WET READ: ___ MON 8:10 PM"] * (dice.random() < 0.3) + ["PORTABLE AP CHEST:"] * (dice.random() < 0.3) + parts)
    words, lines = text.split(" "), [""]
    for word in words:
        lines = lines + [word] if len(lines[-1]) + len(word) > 60 else lines[:-1] + [(lines[-1] + " " + word).strip()]
    return "\n ".join(lines)


def test_facts_survive_the_noise_around_them():
    for seed in range(2000):
        dice = np.random.default_rng([7, seed])
        facts = prepare_phantom.sample_facts(dice)
        dirty = noisy(prepare_phantom.facts_to_report(facts, dice), dice)
        cleaned = cleaning.clean(dirty)[0]
        assert prepare_phantom.report_to_facts(cleaned) == facts, f"{dirty}\n-> {cleaned}"
        assert "___" not in cleaned and "compar" not in cleaned.lower() and "Dr" not in cleaned


# ---- guards ----

RAW = "FINDINGS:\nThe left effusion has increased, now moderate. No pneumothorax. Right PICC ends in the low SVC at 14:05."


@pytest.mark.parametrize("clean, complaint", [
    ("FINDINGS:\nModerate left effusion. No pneumothorax. Right PICC ends in the low SVC.", None),
    ("FINDINGS:\nEffusion.", "length"),
    (RAW, "left"),
    ("FINDINGS:\nModerate left effusion of 3 cm. No pneumothorax. Right PICC ends in the low SVC.", "number"),
    ("FINDINGS:\nModerate left effusion, cirrhotic abdomen, gallstones, spondylosis. No pneumothorax. Right PICC ends low SVC.", "words"),
    ("FINDINGS:\nModerate right effusion. No pneumothorax. Right PICC ends in the low SVC.", "side"),
    ("FINDINGS:\nModerate left effusion. Pneumothorax. Right PICC ends in the low SVC.", "Pneumothorax"),
    ("FINDINGS:\nNo moderate left effusion. No pneumothorax. Right PICC ends in the low SVC.", "Pleural Effusion"),
    ("FINDINGS:\nModerate left effusion. No pneumothorax. Edema. Right PICC ends in the low SVC.", "Edema"),
])
def test_guards(clean, complaint):
    complaints, _ = guards.guard(RAW, clean)
    assert not complaints if complaint is None else any(complaint in one for one in complaints), complaints


@pytest.mark.parametrize("raw, clean, complaint", [
    ("Small left effusion. Heart is normal.", "Large left effusion. Heart is normal.", "size or severity"),
    ("Small left effusion. Heart is normal.", "Left effusion. Heart is normal.", "lost: small"),
    ("A 1.5 cm nodule in the left apex.", "A nodule in the left apex.", "lost: 15 mm"),
    ("A 1.5 cm nodule in the left apex.", "A 1.5 mm nodule in the left apex.", "size or severity"),
    ("Nodule previously 12 mm, now 15 mm, in the left apex.", "Nodule of 12 mm in the left apex.", "lost: 15 mm"),
    ("Nodule previously 12 mm, now 15 mm, in the left apex.", "Nodule of 15 mm in the left apex.", None),
    ("A 5 mm right and 9 mm left nodule.", "A 9 mm right and 5 mm left nodule.", "belongs to something else"),
    ("Large right and small left effusions.", "Small right and large left effusions.", "belongs to something else"),
    ("Left pneumonia in the lung base cannot be excluded.", "Left pneumonia in the lung base.", "certainty"),
    ("Possible left basal pneumonia. Clear right lung.", "Left basal pneumonia. Clear right lung.", "certainty"),
    ("Left basal pneumonia. Clear right lung.", "Probable left basal pneumonia. Clear right lung.", "certainty|words"),
    ("Left opacity may represent pneumonia or atelectasis.", "Left opacity represents pneumonia or atelectasis.", "certainty"),
    ("No definite pneumothorax. Normal heart size.", "No pneumothorax. Normal heart size.", "certainty"),
    ("Left opacity may represent pneumonia, unchanged.", "Left opacity may represent pneumonia.", None),
    ("Moderate left effusion has improved, now small. No edema.", "Small left effusion. No edema.", None),
    ("No pleural effusion or\n pneumothorax. Clear left lung\n and mild right edema.", "No pleural effusion or pneumothorax. Clear left lung "
     "and mild right edema.", None)])
def test_sizes_and_certainty_are_guarded(raw, clean, complaint):
    complaints = "; ".join(guards.guard("FINDINGS:\n" + raw, "FINDINGS:\n" + clean)[0])
    assert complaints == "" if complaint is None else any(part in complaints for part in complaint.split("|")), complaints


@pytest.mark.parametrize("word", "Possible Probable Likely Suspected Questionable Equivocal Presumed Definite".split())
def test_words_of_doubt_may_not_go(word):
    assert "certainty has changed for pneumonia" in guards.guard(f"{word} pneumonia in the left base.", "Pneumonia in the left base.")[0]


def test_a_lost_negative_only_warns():
    complaints, warnings = guards.guard(RAW, "FINDINGS:\nModerate left effusion. Right PICC ends in the low SVC.")
    assert complaints == [] and warnings == ["lost negative: Pneumothorax"]


@pytest.mark.parametrize("content, finish, wrong", [
    ('{"findings": "Clear.", "impression": null}', "stop", ""), ('```json\n{"findings": "Clear."}\n```', "stop", ""),
    ('{"findings": "Clear."', "stop", "json"), ("   ", "stop", "json"), ('{"findings": "Clear."}', "length", "cut off"),
    ('{"findings": null, "impression": "x"}', "stop", "missing"), ("[1]", "stop", "findings"), ('{"findings": 3}', "stop", "findings")])
def test_answers(content, finish, wrong):
    answer, complaints = guards.parse(content, finish, "Clear lungs.")
    assert (answer == ("Clear.", None)) if not wrong else (answer is None and wrong in complaints[0])


# ---- a server on this machine that plays the language model ----

@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    servers = []
    yield lambda reply: servers.append(Server(reply)) or servers[-1]
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def settings(server, **more):
    return prepare_mimic.Settings(clean="llm", llm_url=server.url, llm_workers=2, **more)


TEXTS = [(f"s5000000{n}/report", f"Small left effusion. No pneumothorax. Case {n}.", None) for n in range(4)]
good = lambda n, body: {"findings": report_in(body).removeprefix("FINDINGS:\n"), "impression": None}


def test_model_cleans_and_resumes(serve, tmp_path):
    server, path = serve(good), tmp_path / "llm.jsonl"
    answers = llm.clean_all(settings(server), path, TEXTS[:2])
    assert {answer["method"] for answer in answers.values()} == {"llm"} and len(server.bodies) == 2
    assert path.stat().st_mode & 0o777 == 0o600
    with open(path, "ab") as file:
        file.write(b'{"key": "s5000')                                       # a kill tore the last line
    assert llm.clean_all(settings(server), path, TEXTS)[TEXTS[0][0]] == json.loads(json.dumps(answers[TEXTS[0][0]]))
    assert len(server.bodies) == 4 and len(path.read_text().splitlines()) == 4
    llm.clean_all(settings(server), path, [(TEXTS[0][0], "Other text, clear lungs.", None)])
    llm.clean_all(settings(server, llm_model="another"), path, TEXTS[:1])
    assert len(server.bodies) == 6                                          # other text, other model: asked anew
    body = server.bodies[0]
    assert "json" in body["messages"][0]["content"] and body["response_format"] == {"type": "json_object"} and "thinking" not in body


def test_retry_with_the_complaint_then_rules(serve, tmp_path):
    def reply(n, body):
        if len(body["messages"]) == 4:
            return "not json"
        return good(n, body) if "Case 0" in body["messages"][3]["content"] else {"findings": "Large right pneumothorax."}
    answers = llm.clean_all(settings(serve(reply)), tmp_path / "llm.jsonl", TEXTS[:2])
    first, second = (answers[key] for key, *_ in TEXTS[:2])
    assert first["method"] == "llm" and first["flags"] == ["retried"]
    assert second["method"] == "rules" and second["text"] is None and "llm refused" in second["flags"][0]


def test_judge(serve, tmp_path):
    def reply(n, body):
        judging = len(body["messages"]) == 2
        return {"lost": ["a side"], "added": [], "changed": [], "leftover": []} if judging else good(n, body)
    answer = llm.clean_all(settings(serve(reply), llm_judge=True), tmp_path / "a.jsonl", TEXTS[:1])[TEXTS[0][0]]
    assert answer["method"] == "rules" and "lost" in answer["flags"][0]


def test_busy_server_is_waited_for(serve, tmp_path):
    server = serve(lambda n, body: {1: 429, 2: 503}.get(n) or good(n, body))
    answers = llm.clean_all(settings(server), tmp_path / "a.jsonl", TEXTS[:1])
    assert answers[TEXTS[0][0]]["method"] == "llm" and len(server.bodies) == 3


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_refusal_stops_and_keeps_what_there_is(serve, tmp_path, status):
    server = serve(lambda n, body: good(n, body) if n == 1 else status)
    with pytest.raises(InputError, match=str(status)) as error:
        llm.clean_all(settings(server), tmp_path / "a.jsonl", TEXTS)
    assert "effusion" not in str(error.value) and "Case" not in str(error.value)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("url, allowed", [
    ("http://127.0.0.1:8000/v1", True), ("http://localhost:8000/v1", True), ("http://[::1]:8000/v1", True), ("https://api.example.com/v1", False),
    ("http://10.0.0.4:8000/v1", False), ("http://localhost.example.com/v1", False), ("http://127.0.0.1.example.com/v1", False),
    ("http://0.0.0.0:8000/v1", False), ("http://LOCALHOST:8000", True), ("http://2130706433/v1", False), ("http://[::ffff:8.8.8.8]/v1", False)])
def test_only_this_machine_gets_credentialed_data(url, allowed):
    cfg = prepare_mimic.Settings(clean="llm", llm_url=url)
    if allowed:
        llm.refuse_others(cfg)
    else:
        with pytest.raises(InputError, match="i-verified-zero-retention"):
            llm.refuse_others(cfg)
        llm.refuse_others(prepare_mimic.Settings(clean="llm", llm_url=url, i_verified_zero_retention=True))
        llm.refuse_others(prepare_mimic.Settings(clean="llm", llm_url=url, dataset="openi"))


@pytest.mark.parametrize("url", [
    "here", "ftp://localhost/v1", "http://[::1", "http://127.0.0.1:abc/v1", "http://127.0.0.1:99999/v1", "http://[::1].example.com/v1",
    "http://[::1]example.com/", "http://127.0.0.1@example.com/v1", "http://example.com\\@127.0.0.1/v1", "http://example.com#@127.0.0.1/",
    "http://localhost:8000@example.com/", "http://[::1%25eth0]/", "http://example.com\t@127.0.0.1/", "http://127.0.0.1/v1 x", "http://",
    "http://127.0.0.1/v1?x=1", "http://[example.com]/v1", "http://127.0.0.1/v1\r\nHost: example.com", "http://\u2460.0.0.1/", ""])
def test_addresses_that_two_readers_could_read_differently_are_refused(url):
    for extra in ({}, {"i_verified_zero_retention": True}, {"dataset": "openi"}):
        with pytest.raises(InputError, match="is no address"):
            llm.refuse_others(prepare_mimic.Settings(clean="llm", llm_url=url, **extra))


def test_the_request_goes_to_the_host_that_was_judged():
    import urllib.request
    for url in ("http://127.0.0.1:8000/v1", "http://[::1]:8000", "https://api.example.com/v1/", "http://a_b.example-1.com:80/x"):
        asked = urllib.request.Request(endpoint.Endpoint(prepare_mimic.Settings(llm_url=url)).url)
        assert asked.host.rpartition(":")[0].strip("[]") in (endpoint.host_of(url), "") or asked.host == endpoint.host_of(url)


def test_a_key_with_a_line_break_is_refused(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "abc\nHost: x")
    with pytest.raises(InputError, match="set it anew"):
        llm.refuse_others(prepare_mimic.Settings(clean="llm"))


@pytest.mark.parametrize("status", [400, 413, 422])
def test_one_refused_report_is_left_to_the_rules(serve, tmp_path, status):
    server = serve(lambda n, body: status if "Case 1" in report_in(body) else good(n, body))
    answers = llm.clean_all(settings(server), tmp_path / "a.jsonl", TEXTS)
    refused = answers.pop(TEXTS[1][0])
    assert refused == {"text": None, "method": "rules", "flags": [f"llm refused: the server answered {status}"]}
    assert {answer["method"] for answer in answers.values()} == {"llm"}
    llm.clean_all(settings(server), tmp_path / "a.jsonl", TEXTS)
    assert len(server.bodies) == 4                                          # the refusal is remembered


@pytest.mark.parametrize("number", [3, 200])
def test_a_server_that_refuses_everything_ends_the_run(serve, tmp_path, number):
    server = serve(lambda n, body: 400)
    with pytest.raises(InputError, match="llm-model"):
        llm.clean_all(settings(server), tmp_path / "a.jsonl", [(f"s{n}/report", f"Effusion {n}.", None) for n in range(number)])
    assert len(server.bodies) <= endpoint.HOPELESS + 4 and (tmp_path / "a.jsonl").read_text() == ""


@pytest.mark.parametrize("reply", [["x"], [{"type": "text"}], "[" * 100_000, '{"findings": ' * 50_000, "[1]", "null",
                                   json.dumps({"findings": "Small left effusion. No pneumothorax. Case 0. \ud800", "impression": None})])
def test_answers_of_any_kind_end_with_the_rules(serve, tmp_path, reply):
    answer = llm.clean_all(settings(serve(lambda n, body: reply)), tmp_path / "a.jsonl", TEXTS[:1])[TEXTS[0][0]]
    assert answer["method"] == "rules" and answer["flags"][0].startswith("llm refused")


def test_damaged_lines_of_the_stored_answers_are_counted_and_asked_again(serve, tmp_path, capsys):
    server, path = serve(good), tmp_path / "llm.jsonl"
    llm.clean_all(settings(server), path, TEXTS)
    lines = path.read_text().splitlines()
    entry = json.loads(lines[0])
    damaged = ["{" * 5, "[]", "[" * 50_000, json.dumps({**entry, "answer": {"method": "llm", "text": None, "flags": []}}),
               json.dumps({**entry, "answer": {"method": "llm", "text": [1, 2], "flags": []}}), '{"prompt": 1}']
    path.write_bytes("\n".join([lines[1], *damaged, *lines[2:], ""]).encode() + b'\xff"\n')
    assert len(llm.clean_all(settings(server), path, TEXTS)) == 4 and len(server.bodies) == 5
    assert "7 lines" in capsys.readouterr().out


def test_stored_answers_pass_the_guards_of_today(serve, tmp_path, monkeypatch):
    server, path = serve(good), tmp_path / "llm.jsonl"
    llm.clean_all(settings(server), path, TEXTS[:1])
    monkeypatch.setattr(llm, "guard", lambda raw, clean: (["a stricter guard"], []))
    assert llm.clean_all(settings(server), path, TEXTS[:1])[TEXTS[0][0]]["method"] == "rules"


def test_no_proxy_sees_what_is_for_this_machine(serve, tmp_path, monkeypatch):
    proxy = serve(lambda n, body: {"findings": "from the proxy"})
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.delenv("no_proxy", raising=False)
    llm.clean_all(settings(serve(good)), tmp_path / "a.jsonl", TEXTS[:1])
    assert proxy.bodies == []


@pytest.mark.parametrize("sentence", [
    "Two separate 5 mm nodules in the left apex.", "Primary 3 cm mass in the right upper lobe.",
    "PICC tip at the cavoatrial junction 2 cm below the carina.", "No increased left pleural effusion.",
    "No evidence of worsening edema.", "No enlarging pneumothorax.", "Scarring from prior radiation in the left upper lobe.",
    "Clips from prior surgery in the right axilla."])
def test_what_looks_like_a_rule_but_is_a_size_a_side_or_a_negation(sentence):
    """Left as it is, or dropped whole: never a finding without its number, its side or its "no"."""
    assert cleaning.clean(sentence)[0] in (sentence, "")


@pytest.mark.parametrize("sentence, never", [
    ("Pneumothorax from the previous exam has resolved.", "Pneumothorax."),
    ("The left effusion from the prior study is no longer present.", "The left effusion."),
    ("The left pneumothorax reported by ___ is not seen.", "The left pneumothorax."),
    ("Left nodule, for which CT was recommended, is no longer seen.", "Left nodule."),
    ("Right nodule 8 mm vs 6 mm on the left.", "Right nodule 8 mm on the left.")])
def test_what_is_gone_does_not_come_back(sentence, never):
    assert cleaning.clean(sentence)[0] != never
