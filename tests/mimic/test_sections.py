"""Sectioning against reports written by hand, one for each rule of the official parser."""
import pytest

from mimic import sections
from mimic.sections import StudyText, study_text

HEAD = "                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___F with cough\n \n"


def names(text):
    return [name for name, _ in sections.sections(text)]


def test_a_usual_report():
    text = HEAD + " COMPARISON:  None.\n \n FINDINGS: \n \n Heart is normal.\n Lungs are clear.\n \n IMPRESSION: \n \n Normal chest.\n"
    assert names(text) == ["preamble", "examination", "indication", "comparison", "findings", "impression"]
    assert study_text(text.encode(), "s50000000") == (
        StudyText("Heart is normal.\n Lungs are clear.", "Normal chest.", None, "findings+impression"), "")


@pytest.mark.parametrize("text, found", [
    ("x\n FINDINGS: Clear.", True),
    ("x\nFINDINGS: Clear.", False),                 # no space before: lines were stripped
    ("x\n  FINDINGS: Clear.", True),                # more spaces are part of the run of capitals and spaces
    ("x\n Findings: Clear.", False),                # lower case
    ("x\n FINDINGS Clear.", False),
    ("x\n FINDINGS:Clear.", False),                 # a whitespace belongs to the header
    ("FINDINGS: Clear.", False),                    # a header follows a line break
])
def test_what_a_header_is(text, found):
    assert ("findings" in names(text)) == found


def test_a_second_header_on_the_line_is_swallowed():
    assert sections.sections("x\n FINDINGS: Clear.\n IMPRESSION: Fine. NOTE: no\n END: x")[-2:] == [("impression", "Fine. NOTE: no"), ("end", "x")]
    assert names("x\n FINDINGS:\n IMPRESSION: Fine.\n") == ["preamble", "findings"]     # the header took the line break


@pytest.mark.parametrize("header, name", [
    ("IMPRESSON", "impression"), ("FINDNGS", "findings"), ("CONCLUSION", "impression"), ("FINDINGS AND IMPRESSION", "impression"),
    ("FINDINGS/IMPRESSION", "impression"), ("CHEST, TWO VIEWS", "findings"), ("REASON FOR EXAMINATION", "indication"),
    ("REASON FOR EXAM", "indication"), ("CLINICAL INDICATION", "indication"), ("CLINICAL HISTORY", "history"), ("CLINICAL INFORMATION", "history"),
    ("PRELIMINARY IMPRESSION", "impression"), ("OTHER FINDINGS", "findings"), ("PAST HISTORY", "history"), ("COMPARISON STUDY", "comparison"),
    ("ADDENDUM A", "addendum"), ("PORTABLE AP", "findings"), ("RIBS, LEFT", "findings"), ("PA AND LATERAL CHEST", "findings"),
    ("TECHNIQUE", "technique"), ("SOMETHING", "something")])
def test_names_of_headers(header, name):
    assert names(f"x\n {header}: Text here.\n")[-1] in (name, "last_paragraph") and sections.canonical(header) == name


def test_the_last_of_two_sections_counts():
    text = "x\n IMPRESSION: First.\n FINDINGS: One.\n IMPRESSION: Second.\n"
    assert study_text(text.encode(), "s1")[0][:2] == ("One.", "Second.")


def test_empty_sections_are_dropped():
    assert study_text(b"x\n FINDINGS: ___\n \n IMPRESSION: Fine.\n", "s1")[0] == StudyText(None, "Fine.", None, "impression")
    assert study_text(b"x\n FINDINGS: Clear.\n FINDINGS:  \n \n IMPRESSION: Fine.\n", "s1")[0].findings == "Clear."
    assert study_text(b"x\n INDICATION: Cough.\n \n Clear lungs.\n FINDINGS:  \n \n", "s1")[0].other == "Clear lungs."
    assert study_text(b"x\n FINDINGS:  \n \n IMPRESSION: Fine.\n", "s1")[0] == StudyText(None, "Fine.", None, "impression")


def test_last_paragraph_and_comparison_are_set_apart():
    text, _ = study_text(b"x\n INDICATION: Cough.\n \n Clear lungs.\n \n No edema.\n", "s1")
    assert text == StudyText(None, None, "Clear lungs.\n \n No edema.", "last_paragraph")
    assert study_text(b"x\n COMPARISON: Lungs remain clear.\n", "s1")[0] == StudyText(None, None, "Lungs remain clear.", "comparison")
    assert study_text(b"No headers.\n \n Clear lungs.", "s1")[0] == StudyText(None, None, "Clear lungs.", "last_paragraph")
    assert study_text(b"", "s1")[0] == StudyText(None, None, None, "nothing")


def test_there_are_54_studies_fixed_by_hand():
    assert (len(sections.FROM_SECTION), len(sections.FROM_RANGE), len(sections.NOTHING)) == (23, 23, 8)
    assert len({*sections.FROM_SECTION, *sections.FROM_RANGE, *sections.NOTHING}) == 54
    text = " FINDINGS\n TECHNIQUE: Lungs are clear.\n RECOMMENDATIONS: Small effusion.\n FINDINGS: Something.\n"
    assert study_text(text.encode(), "s59279892")[0] == StudyText(None, None, "Lungs are clear.", "fixed:technique")
    assert study_text(text.encode(), "s50913680")[0].other == "Small effusion."
    assert study_text(text.encode(), "s58235663")[0] == StudyText(None, None, None, "fixed:nothing")
    long = "".join(chr(97 + n % 26) for n in range(400))
    assert study_text(long.encode(), "s50525523")[0] == StudyText(None, None, long[201:349], "fixed:201-349")
    lines = "ab\r\n" * 200                                              # ranges count characters after universal newlines
    assert study_text(lines.encode(), "s50525523")[0].other == ("ab\n" * 200)[201:349].strip()


@pytest.mark.parametrize("raw, odd", [
    (b"x\n FINDINGS: Clear.\n", ""), (b"\xef\xbb\xbfx\n FINDINGS: Clear.\n", "BOM"), (b"x\r\n FINDINGS: Clear.\r\n", "CRLF"),
    (b"Sj\xf6gren\n FINDINGS: Clear.\n", "not UTF-8")])
def test_bytes_of_any_kind(raw, odd):
    assert study_text(raw, "s1") == (StudyText("Clear.", None, None, "findings"), odd)


def test_addendum_above_the_line_of_underscores():
    text = " ADDENDUM  See below.\n FINDINGS: Wrong.\n IMPRESSION: Wrong.\n ____________\n FINAL REPORT\n FINDINGS: Right.\n"
    assert study_text(text.encode(), "s1")[0] == StudyText("Right.", None, None, "findings")
    assert sections.drop_addendum(" FINAL\n _____\n ADDENDUM\n A\n _____\n B\n") == " B\n"
    below = "x\n FINDINGS: Clear, see addendum below.\n _____\n ADDENDUM: Line placed.\n"
    assert study_text(below.encode(), "s1")[0].findings.startswith("Clear")
    assert sections.drop_addendum("A\n _____\n B") == "A\n _____\n B"          # without the word it is but a line
