"""Sections of reports written by hand, one for each rule of the official parser."""
import pytest

from mimic import sections
from mimic.sections import StudyText

USUAL = """                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 \n COMPARISON:  None.
 \n FINDINGS: \n
 Heart is normal.
 Lungs are clear.
 \n IMPRESSION: \n
 Normal chest.
"""


def names(text):
    return [name for name, _ in sections.sections(text)]


def study_text(text, study="s1"):
    """(findings, impression, other, source) of a report."""
    study, _ = sections.study_text(text.encode(), study)
    return study


def test_a_usual_report():
    assert names(USUAL) == ["preamble", "examination", "comparison", "findings", "impression"]
    findings = "Heart is normal.\n Lungs are clear."
    assert study_text(USUAL) == (findings, "Normal chest.", None, "findings+impression")


@pytest.mark.parametrize("text, is_header", [
    ("x\n FINDINGS: Clear.", True),
    ("x\nFINDINGS: Clear.", False),                 # no space before: lines were stripped
    ("x\n  FINDINGS: Clear.", True),                # more spaces are part of the run of capitals
    ("x\n Findings: Clear.", False),                # lower case
    ("x\n FINDINGS:Clear.", False),                 # a white space belongs to the header
    ("FINDINGS: Clear.", False),                    # a header follows a line break
    ("x\n NOTE:\n FINDINGS: Clear.", False),        # the one that "NOTE:" has taken
])
def test_what_a_header_is(text, is_header):
    assert ("findings" in names(text)) == is_header


@pytest.mark.parametrize("header, name", [
    ("IMPRESSON", "impression"), ("CHEST, TWO VIEWS", "findings"),              # in the table
    ("PRELIMINARY IMPRESSION", "impression"), ("PAST HISTORY", "history"),      # a word inside
    ("RIBS, LEFT", "findings"), ("LATERAL AND AP", "findings"),                 # a view
    ("SOMETHING", "something"), ("AP", "ap"), ("ABDOMEN", "abdomen"),           # none of them
    ("PFI", "history"), ("RECOMMENDATION(S)", "recommendations"), ("WETREAD", "wet read"),
    ("FINDINGS/ IMPRESSION", "impression"), ("FINDINGS  AND IMPRESSION", "impression"),
    ("NDICATION", "indication"), ("CONCUSION", "impression"),                   # put right
])
def test_names_of_headers(header, name):
    assert sections.canonical(header) == name


@pytest.mark.parametrize("spelling", (
    "MPRESSION IMPRESSOIN IMPRSSION IMPERSSION IMORESSION IMPRESION IMPRESSON IMPRESSION IMPESSION "
    "CONCLUSION COINCLUSION").split())
def test_every_misspelling_of_impression_in_the_official_table(spelling):
    assert study_text(f"x\n {spelling}: Fine.\n").impression == "Fine."


@pytest.mark.parametrize("spelling", "FINDING FINDINS FINDINDGS FINDGINGS FINDNGS FINDNINGS "
                                     "FINIDNGS".split())
def test_every_misspelling_of_findings_in_the_official_table(spelling):
    assert study_text(f"x\n {spelling}: Clear.\n").findings == "Clear."


@pytest.mark.parametrize("text, expected", [
    # the last of two sections counts, unless it is empty
    ("x\n IMPRESSION: A.\n FINDINGS: One.\n IMPRESSION: B. NOTE: no\n",
     StudyText("One.", "B. NOTE: no", None, "findings+impression")),
    ("x\n FINDINGS: Clear.\n FINDINGS:  \n \n", StudyText("Clear.", None, None, "findings")),
    ("x\n FINDINGS: ___\n \n IMPRESSION: Fine.\n", StudyText(None, "Fine.", None, "impression")),
    # without findings and impression the last paragraph is set apart, or the comparison
    ("x\n INDICATION: Cough.\n \n Clear.\n \n No edema.\n",
     StudyText(None, None, "Clear.\n \n No edema.", "last_paragraph")),
    ("No headers.\n \n Clear.", StudyText(None, None, "Clear.", "last_paragraph")),
    ("x\n COMPARISON: Remains clear.\n", StudyText(None, None, "Remains clear.", "comparison")),
    ("", StudyText(None, None, None, "nothing")),
])
def test_what_counts_as_findings_and_what_stands_in_for_them(text, expected):
    assert study_text(text) == expected


def test_54_studies_are_fixed_by_hand_and_their_text_is_no_findings():
    """Ranges count characters after universal newlines."""
    fixed = (sections.FROM_SECTION, sections.FROM_RANGE, sections.NOTHING)
    assert [len(studies) for studies in fixed] == [23, 23, 8] and len(set().union(*fixed)) == 54
    text = " x\n TECHNIQUE: Lungs are clear.\n FINDINGS: Something.\n"
    assert study_text(text, "s59279892") == (None, None, "Lungs are clear.", "fixed:technique")
    assert study_text(text, "s58235663") == (None, None, None, "fixed:nothing")
    text = study_text("ab\r\n" * 200, "s50525523")
    assert text.other == ("ab\n" * 200)[201:349].strip() and text.source == "fixed:201-349"


@pytest.mark.parametrize("raw, text, oddity", [
    (b"\xef\xbb\xbfa", "a", "BOM"), (b"a\r\nb\rc", "a\nb\nc", "CRLF"),
    ("\xf6".encode("latin-1"), "\xf6", "not UTF-8"), ("\xf6".encode(), "\xf6", ""),
])
def test_bytes_of_every_origin(raw, text, oddity):
    assert sections.decode(raw) == (text, oddity)


@pytest.mark.parametrize("text, below", [
    (" ADDENDUM  See below.\n FINDINGS: Wrong.\n ____________\n FINDINGS: Right.\n",
     "\n FINDINGS: Right.\n"),
    ("A\n _____\n B", "A\n _____\n B"),                        # without the word it is but a line
    (" ADDENDUM\n ______\n ___\n", " ADDENDUM\n ______\n ___\n"),           # nothing below
    ("x\n FINDINGS: Clear, see addendum below.\n _____\n ADDENDUM: Line placed.\n",) * 2,
])
def test_an_addendum_above_a_line_of_underscores_is_dropped(text, below):
    assert sections.drop_addendum(text) == below


@pytest.mark.parametrize("between", ["", " \n", "                 FINAL REPORT\n"])
def test_findings_right_under_the_line_of_an_addendum(between):
    text = f" ADDENDUM  Line placed.\n ______________\n{between} FINDINGS: Clear.\n"
    assert study_text(text).findings == "Clear."
