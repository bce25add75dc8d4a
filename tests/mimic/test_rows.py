"""The row of an image: question, report, labels; which reports are of no use."""
from collections import Counter

import pytest

from mimic import rows
from mimic.items import Item
from mimic.rows import UnusableReport, row_of, texts_to_clean
from mimic.splits import Job
from prepare_mimic import Settings

TEXT = ("Small left effusion, unchanged since ___.", "Left effusion.", "table:sections")


def item(number=1, split="train", text=TEXT):
    return Item(f"a{number}", "p1", "s1", split, "PA", f"{number}.png", text, {"Edema": 0.0})


def test_reading_has_a_question_and_both_sections_drawing_the_findings_alone():
    read = row_of(Settings(), "und", item(), None, None)
    assert read["report"] == "FINDINGS: Small left effusion.\nIMPRESSION: Left effusion."
    assert "FINDINGS and IMPRESSION" in read["prompt"]
    assert (read["clean"], read["source"], read["labels"]) == ("rules", TEXT[2], {"Edema": 0.0})
    drawn = row_of(Settings(), "gen", item(), None, None)
    assert (drawn["report"], drawn["prompt"]) == ("Small left effusion.", "")
    uncleaned = row_of(Settings(clean="none"), "gen", item(), None, None)
    assert (uncleaned["report"], uncleaned["clean"]) == (TEXT[0], "none")


def test_without_impression_the_question_does_not_ask_for_one():
    row = row_of(Settings(), "und", item(text=("Clear \ufffd lungs.", None, "x")), None, None)
    assert row["report"] == "FINDINGS: Clear \ufffd lungs." and "IMPRESSION" not in row["prompt"]
    assert row["flags"] == ["broken characters"]


def test_an_image_always_gets_the_same_of_ten_questions():
    def asked(n):
        return row_of(Settings(), "und", item(n), None, None)["prompt"]
    questions = Counter(asked(n) for n in range(500))
    assert asked(7) == asked(7) and len(questions) == len(rows.PROMPTS) == 10
    assert min(questions.values()) > 25


def test_the_test_of_reading_keeps_its_text_as_it_was():
    raw = "FINDINGS: Small left effusion, unchanged since ___.\nIMPRESSION: Left effusion."
    assert row_of(Settings(), "und", item(split="test"), None, None)["raw"] == raw
    assert "raw" not in row_of(Settings(), "und", item(), None, None)
    assert "raw" not in row_of(Settings(), "gen", item(split="test"), None, None)


def test_what_a_language_model_made_of_it_or_the_rules_where_it_was_refused():
    cfg = Settings(clean="llm")
    answer = {"method": "llm", "text": ("Effusion.", None), "flags": ["retried"]}
    row = row_of(cfg, "und", item(), None, answer)
    assert (row["report"], row["flags"]) == ("FINDINGS: Effusion.", ["retried"])
    refused = {"method": "rules", "text": None, "flags": ["llm refused: length"]}
    row = row_of(cfg, "gen", item(), None, refused)
    assert (row["report"], row["clean"]) == ("Small left effusion.", "rules")
    assert row["flags"][0] == "llm refused: length"


@pytest.mark.parametrize("clean, findings", [
    ("none", "The ___ lobe is clear. ___'s effusion, 4___. ___-a-___. Chest x-ray. Edema, ___."),
    ("rules", "Edema."),
])
def test_blanks_of_open_i_are_blanks_wherever_a_text_comes_from(clean, findings):
    """Capitals or not, with punctuation or within a word; the language model sees ___ too."""
    raw = "The XXXX lobe is clear. XXXX's effusion, 4XXXX. XXXX-a-XXXX. Chest x-XXXX. Edema, xxxx."
    one = item(text=(raw, "In XXXX.", "table:sections"))
    assert row_of(Settings(clean=clean), "gen", one, None, None)["report"] == findings
    (_, text, impression), = texts_to_clean(Settings(), [Job("1.png", [("gen", one)])], None)
    assert "XXXX" not in text.upper() and impression == "In ___."


@pytest.mark.parametrize("text, content", [
    (("Small effusion. IMPRESSION: Edema.", None, "table:sections"), None),
    (None, b"x\n FINDINGS: Small effusion. IMPRESSION: Edema.\n"),
])
def test_an_impression_in_the_line_of_the_findings_never_comes_into_a_drawing_prompt(text, content):
    row = row_of(Settings(), "gen", item(text=text), content, None)
    assert row["report"] == "Small effusion."
    row = row_of(Settings(), "und", item(text=text), content, None)
    assert row["report"] == "FINDINGS: Small effusion.\nIMPRESSION: Edema."


@pytest.mark.parametrize("text, content, reason", [
    (None, None, "report missing"), (None, b" ___\n ______\n", "report empty"),
    (None, b"x\n INDICATION: Cough.\n \n Clear.\n", "no findings"),
    (("___", "Clear.", "x"), None, "no findings"),
    (("Compared with ___, no change.", None, "x"), None, "no findings after cleaning"),
])
def test_reports_of_no_use(text, content, reason):
    with pytest.raises(UnusableReport, match=f"^{reason}$"):
        row_of(Settings(), "und", item(text=text), content, None)


def test_fallback_paragraph_is_the_last_one_but_no_impression():
    cfg = Settings(fallback_paragraph=True)
    row = row_of(cfg, "und", item(text=None), b"x\n INDICATION: Cough.\n \n Clear.\n", None)
    assert (row["report"], row["source"]) == ("FINDINGS: Clear.", "last_paragraph")
    with pytest.raises(UnusableReport, match="no findings"):
        row_of(cfg, "und", item(text=None), b"x\n IMPRESSION: Clear.\n", None)
    fixed = item(text=None)
    fixed.study = "s58235663"
    with pytest.raises(UnusableReport, match="no findings: hand-fixed study"):
        row_of(cfg, "und", fixed, b"x\n FINDINGS: Clear.\n", None)


def test_a_language_model_gets_every_text_once():
    """The images of a study share their text; a text of no use is not sent."""
    jobs = [Job("1.png", [("und", item(1)), ("gen", item(1))]), Job("2.png", [("und", item(2))]),
            Job("3.png", [("und", item(3, text=(None, "Clear.", "x")))]),
            Job("4.png", [("gen", item(4, text=("Edema.", None, "x")))])]
    texts = list(texts_to_clean(Settings(task=["und"]), jobs, None))
    assert texts == [(item().text_key, TEXT[0], TEXT[1])]
