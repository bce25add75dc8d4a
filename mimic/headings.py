"""FINDINGS and IMPRESSION in a text of any origin, whose lines may have been joined.

    divided(report)         a whole report -> findings, impression, and how they were found
    apart(findings, impression)     findings that run on into an impression give it up

The reports of MIMIC-CXR have their own rules, which want a line for each header: sections.py.
"""
import re

from mimic.sections import SPELLINGS

# the official parser's spellings of the two, and of both at once
NAME = "|".join(re.escape(name) for name in SPELLINGS["findings"] + SPELLINGS["impression"])
# Where a section can start: at the beginning, on a new line, or after a sentence or a mark ("**").
# In capitals it can start behind any word, but for those that make "FINDINGS:" part of a sentence.
HEADING = re.compile(
    rf"(?:^|[\n.!?;>)\]*#])[\s*#]*(?i:({NAME})s?)[\s*]*:|(?<=\s)({NAME.upper()})S?\s*:")
GOES_ON = re.compile(
    r"\b(?:no|acute|new|other|additional|incidental|significant|abnormal|any|the|these|following|"
    r"above|of|and|or|with)\s+$", re.IGNORECASE)


def headed(text):
    """Text -> [(section, text)]; the section of what stands before the first heading is "".

    >>> headed("Cough. FINDINGS: No acute findings: clear. Impression: Normal.")
    [('', 'Cough.'), ('findings', 'No acute findings: clear.'), ('impression', 'Normal.')]
    """
    parts = []
    name, start = "", 0
    for match in HEADING.finditer(text):
        heading = 1 if match[1] else 2
        if heading == 2 and GOES_ON.search(text[:match.start(2)][-20:]):
            continue
        # a full stop before the heading belongs to the text before it
        parts.append((name, text[start:match.start(heading)]))
        name, start = section_of(match[heading]), match.end()
    parts.append((name, text[start:]))
    return [(name, part.strip(" \t\r\n*#")) for name, part in parts]


def section_of(heading):
    """A heading of both sections counts as findings: what it holds is all that there is."""
    name = " ".join(heading.lower().split())
    if "finding" in name:
        return "findings"
    return "findings" if name in SPELLINGS["findings"] else "impression"


def divided(report):
    """A report of any origin -> (findings, impression, source); without headings all is findings.

    Of sections with one name the last counts that is not empty.

    >>> divided("FINDINGS: Clear lungs. IMPRESSION: Normal.")
    ('Clear lungs.', 'Normal.', 'table:sections')
    >>> divided("Clear lungs.")
    ('Clear lungs.', None, 'table:whole report')
    """
    (_, before), *parts = headed(report)
    if not parts:
        return (before if before else None), None, "table:whole report"
    sections = {name: text for name, text in parts if text}
    return sections.get("findings"), sections.get("impression"), "table:sections"


def apart(findings, impression):
    """Findings that run on into an impression, in the middle of a line, without it.

    It is the impression, if there is no other.

    >>> apart("Clear lungs. IMPRESSION: Normal.", None)
    ('Clear lungs.', 'Normal.')
    """
    (_, before), *parts = headed(findings)
    if not parts:
        return findings, impression
    kept = [before, *(text for name, text in parts if name == "findings")]
    others = [text for name, text in parts if name == "impression" and text]
    findings = " ".join(text for text in kept if text)
    if others and not impression:
        impression = others[-1]
    return findings, impression
