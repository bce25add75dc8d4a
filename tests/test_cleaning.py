"""Cleaning rules sentence by sentence (all invented), facts that survive noise, the language model's guards and its endpoint."""
import doctest
import functools
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

import cleaning
import comparing
import guards
import llm
import prepare_mimic
import prepare_phantom
import sections
import sources
import wording
from common import InputError

prepare_phantom.conflict = functools.lru_cache(maxsize=None)(prepare_phantom.conflict)         # thousands of draws below; 625 pairs


@pytest.mark.parametrize("module", [cleaning, comparing, wording, guards, sections, sources], ids=lambda m: m.__name__)
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.failed == 0 and result.attempted > 0
    if module is cleaning:
        for rule in (*cleaning.TEXT_RULES, *cleaning.CLAUSE_RULES, cleaning.lateral_remarks):
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

class Server:
    """Answers with `self.reply(number of the request, body)`: a dictionary is an answer, a number an HTTP status."""

    def __init__(self, reply):
        self.bodies, self.lock, outer = [], threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    outer.bodies.append(body)
                    number = len(outer.bodies)
                found = reply(number, body)
                content = json.dumps({"choices": [{"message": {"content": found if isinstance(found, str) else json.dumps(found)},
                                                   "finish_reason": "stop"}]}).encode()
                self.send_response(found if isinstance(found, int) else 200)
                if found == 429:
                    self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                return None

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()


@pytest.fixture
def serve(monkeypatch):
    monkeypatch.setattr(llm, "FIRST_WAIT", 0.01)
    servers = []
    yield lambda reply: servers.append(Server(reply)) or servers[-1]
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


def settings(server, **more):
    return prepare_mimic.Settings(clean="llm", llm_url=server.url, llm_workers=2, **more)


TEXTS = [(f"s5000000{n}/report", f"Small left effusion. No pneumothorax. Case {n}.", None) for n in range(4)]
report_in = lambda body: body["messages"][3]["content"].removeprefix("<<<REPORT\n").removesuffix("\nREPORT>>>")
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


@pytest.mark.parametrize("status", [400, 401, 402, 422])
def test_refusal_stops_and_keeps_what_there_is(serve, tmp_path, status):
    server = serve(lambda n, body: good(n, body) if n == 1 else status)
    with pytest.raises(InputError, match=str(status)) as error:
        llm.clean_all(settings(server), tmp_path / "a.jsonl", TEXTS)
    assert "effusion" not in str(error.value) and "Case" not in str(error.value)
    assert len((tmp_path / "a.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("url, allowed", [
    ("http://127.0.0.1:8000/v1", True), ("http://localhost:8000/v1", True), ("http://[::1]:8000/v1", True), ("https://api.example.com/v1", False),
    ("http://10.0.0.4:8000/v1", False), ("http://localhost.example.com/v1", False), ("http://127.0.0.1@example.com/v1", False)])
def test_only_this_machine_gets_credentialed_data(url, allowed):
    cfg = prepare_mimic.Settings(clean="llm", llm_url=url)
    if allowed:
        llm.refuse_others(cfg)
    else:
        with pytest.raises(InputError, match="i-verified-zero-retention"):
            llm.refuse_others(cfg)
        llm.refuse_others(prepare_mimic.Settings(clean="llm", llm_url=url, i_verified_zero_retention=True))
        llm.refuse_others(prepare_mimic.Settings(clean="llm", llm_url=url, dataset="openi"))


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
