"""--clean llm: what is asked, what is stored, and what is left to the rules."""
import json

import pytest
from llm_server import report_in
from prepare_mimic import Settings

from common.cli import InputError
from mimic.cleaning import llm

TEXTS = [(f"s5000000{number}/report", f"Small left effusion. No pneumothorax. Case {number}.", None)
         for number in range(4)]
FIRST = TEXTS[0][0]


def settings(server, **more):
    return Settings(clean="llm", llm_url=server.url, llm_workers=2, **more)


def good(number, body):
    """A model that returns every report as it is."""
    return {"findings": report_in(body).removeprefix("FINDINGS:\n"), "impression": None}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "llm.jsonl"


def test_only_this_machine_gets_credentialed_data():
    llm.refuse_others(Settings(clean="llm", llm_url="http://127.0.0.1:8000/v1"))
    for url in ("https://api.example.com/v1", "http://10.0.0.4:8000/v1"):
        with pytest.raises(InputError, match="i-verified-zero-retention"):
            llm.refuse_others(Settings(clean="llm", llm_url=url))
        llm.refuse_others(Settings(clean="llm", llm_url=url, i_verified_zero_retention=True))
        llm.refuse_others(Settings(clean="llm", llm_url=url, dataset="openi"))


def test_a_key_with_a_line_break_and_settings_that_are_no_object_are_refused(monkeypatch):
    for extra in ("[1]", "{", "[" * 100_000):
        with pytest.raises(InputError, match="JSON object"):
            llm.refuse_others(Settings(clean="llm", llm_extra=extra))
    monkeypatch.setenv("OPENAI_API_KEY", "abc\nHost: x")
    with pytest.raises(InputError, match="set it anew"):
        llm.refuse_others(Settings(clean="llm"))


def test_a_bad_answer_is_asked_for_again_with_the_complaint(serve, path):
    def reply(number, body):
        if "Case 0" not in report_in(body):
            return {"findings": "Large right pneumothorax."}
        return "not json" if len(body["messages"]) == 4 else good(number, body)

    server = serve(reply)
    answers = llm.clean_all(settings(server), path, TEXTS[:2])
    first, second = (answers[key] for key, *_ in TEXTS[:2])
    assert first["method"] == "llm" and first["flags"] == ["retried"]
    assert second["method"] == "rules" and second["text"] is None
    assert second["flags"][0].startswith("llm refused: ")
    retries = [body["messages"][5]["content"] for body in server.bodies
               if len(body["messages"]) == 6]
    assert any("was refused: the answer was not json" in retry for retry in retries)


def test_a_report_cannot_end_its_own_fence():
    assert llm.fenced("a REPORT>>> b").count("REPORT>>>") == 1


@pytest.mark.parametrize("verdict, flag", [
    ({"lost": ["a side"], "added": []}, "the judge found something lost"),
    ("no json", "the judge gave no json"),
])
def test_the_judge_has_the_last_word(serve, path, verdict, flag):
    def reply(number, body):
        judging = len(body["messages"]) == 2
        return verdict if judging else good(number, body)

    answer = llm.clean_all(settings(serve(reply), llm_judge=True), path, TEXTS[:1])[FIRST]
    assert answer["method"] == "rules" and answer["flags"] == [f"llm refused: {flag}"]


@pytest.mark.parametrize("reply", [["x"], "[" * 100_000, "null", '{"findings": "\\ud800"}'])
def test_answers_of_any_kind_end_with_the_rules(serve, path, reply):
    answer = llm.clean_all(settings(serve(lambda number, body: reply)), path, TEXTS[:1])[FIRST]
    assert answer["method"] == "rules" and answer["flags"][0].startswith("llm refused")


def test_one_refused_report_is_left_to_the_rules_and_remembered(serve, path):
    server = serve(lambda number, body: 413 if "Case 1" in report_in(body) else good(number, body))
    answers = llm.clean_all(settings(server), path, TEXTS)
    refused = answers.pop(TEXTS[1][0])
    flags = ["llm refused: the server answered 413"]
    assert refused == {"text": None, "method": "rules", "flags": flags}
    assert {answer["method"] for answer in answers.values()} == {"llm"}
    llm.clean_all(settings(server), path, TEXTS)
    assert len(server.bodies) == 4


def test_a_refused_key_stops_the_run_and_what_there_is_stays(serve, path):
    server = serve(lambda number, body: good(number, body) if number == 1 else 401)
    with pytest.raises(InputError, match="401") as error:
        llm.clean_all(settings(server), path, TEXTS)
    assert "effusion" not in str(error.value) and "Case" not in str(error.value)
    assert len(path.read_text().splitlines()) == 1


@pytest.mark.parametrize("number", [3, 200])
def test_a_server_that_refuses_everything_ends_the_run(serve, path, number):
    server = serve(lambda number, body: 400)
    texts = [(f"s{n}/report", f"Effusion {n}.", None) for n in range(number)]
    with pytest.raises(InputError, match="llm-model"):
        llm.clean_all(settings(server), path, texts)
    assert len(server.bodies) < 100 and path.read_text() == ""


def test_answers_are_stored_for_the_user_alone_and_nothing_is_asked_twice(
        serve, path, capsys, monkeypatch):
    server = serve(good)
    path.touch(0o644)
    answers = llm.clean_all(settings(server), path, TEXTS[:2])
    assert {answer["method"] for answer in answers.values()} == {"llm"} and len(server.bodies) == 2
    assert path.stat().st_mode & 0o777 == 0o600

    # damaged lines are counted, and a last line that a kill tore is cut off
    entry = json.loads(path.read_text().splitlines()[0])
    wrong = [{"method": "llm", "text": None, "flags": []}, {"text": None, "flags": []},
             {"method": "llm", "text": [1, 2], "flags": []}]
    damaged = ["[]", "[" * 50_000, '{"prompt": 1}', "\udcff"]
    damaged += [json.dumps({**entry, "answer": answer}) for answer in wrong]
    with open(path, "a", encoding="utf-8", errors="surrogateescape") as file:
        file.write("\n".join([*damaged, '{"key": "s5000']))
    again = llm.clean_all(settings(server), path, TEXTS)
    assert len(again) == len(server.bodies) == 4 and "7 lines" in capsys.readouterr().out
    assert again[FIRST] == json.loads(json.dumps(answers[FIRST]))

    # stored answers pass the guards of today, or are asked for anew
    monkeypatch.setattr(llm, "guard", lambda raw, clean: (["a stricter guard"], []))
    assert llm.clean_all(settings(server), path, TEXTS[:1])[FIRST]["method"] == "rules"


@pytest.mark.parametrize("text, more", [
    (TEXTS[0][1] + " Clear lungs.", {}), (TEXTS[0][1], {"llm_model": "another"}),
    (TEXTS[0][1], {"llm_extra": '{"seed": 1}'}), (TEXTS[0][1], {"llm_judge": True})])
def test_another_text_or_request_is_asked_anew(serve, path, text, more):
    server = serve(lambda number, body: good(number, body) if len(body["messages"]) > 2 else "{}")
    llm.clean_all(settings(server), path, TEXTS[:1])
    llm.clean_all(settings(server, **more), path, [(FIRST, text, None)])
    assert len(server.bodies) >= 2
