"""A MIMIC-CXR report as it lies on disk -> its sections, by the rules of the official parser.

    sections(text)                          -> [(name, text)] in order
    study_text(raw_bytes, "s50000001")      -> StudyText, what was odd about the bytes

The official parser is MIT-LCP/mimic-cxr, folder txt/; this one is written anew from a description
of its rules. They are about raw text, where lines start with a space and headers are capitals: cut
into sections first, clean afterwards. The numbers of 54 studies below are facts about the data.
"""
import re
from typing import NamedTuple

# a header starts a line after one space, is capitals, and ends in a colon and white space
HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
LINE_OF_UNDERSCORES = re.compile(r"\n[ \t]*_{5,}[ \t]*\n")
# within the first words of the file: "see addendum" further down does not count
ADDENDUM = re.compile(r"[\s_]*(?:\w+\s+){0,3}addend", re.IGNORECASE)

# How the headers are spelled in 227,835 reports, misspellings included: the table of the official
# parser. Three of its entries are put right: it takes NDICATION for an impression, and CONCUSION
# and COINCLUSION for sections of their own.
SPELLINGS = {
    "impression": """
        impression, impresson, imprression, imoression, impressoin, imprssion, impresion,
        imperssion, mpression, impession, conclusion, concusion, coinclusion,
        findings and impression, findings/impression, findings/ impression""",
    "findings": """
        findings, finding, findins, findindgs, findgings, findngs, findnings, finidngs,
        reference findings""",
    "indication": """
        indication, ndication, idication, clinical indication, reason for exam,
        reason for examination""",
    "history": "history, clinical history, clinical information, patient history, pfi",
    "comparison": """
        comparison, comparisons, comparision, comparisions, comparsion, comparrison,
        comparison exam, comparison film, reference exam""",
    "technique": "technique",
    "examination": "examination, exam, type of examination",
    "recommendations": "recommendations, recommendation, recommendation(s)",
    "notification": "notification",
    "comment": "comment",
    "date": "date",
    "wet read": "wet read, wetread",
    "addendum": "addendum",
}
SPELLINGS = {section: [name.strip() for name in names.split(",")]
             for section, names in SPELLINGS.items()}
NAMES = {name: section for section, names in SPELLINGS.items() for name in names}
# headers that are not in the table: the first of these words within decides, or else a view
CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
VIEWS = re.compile(
    "chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal and|"
    "two views|frontal view|pa view|ap view|one view|lateral view|bone window|frontal upright|"
    "frontal semi-upright|ribs")

# 54 studies that the official parser fixes by hand: their text is that of another section, ...
FIXED_SECTIONS = {
    "recommendations": "50913680 59768032 59067458 59087630 58157373 56482935 58375018",
    "examination": "59363654 53356173 50743547 59215320 55157853",
    "technique": "59279892 53202765 50808053",
    "indication": "57936451 50058765 51966317 55124749 54365831 54654948",
    "note": "56451190",
    "history": "51491012",
}
FROM_SECTION = {f"s{study}": section for section, studies in FIXED_SECTIONS.items()
                for study in studies.split()}
# ... or it is the characters start-end of the file, ...
FIXED_RANGES = """
    50525523:201-349 57564132:233-554 59982525:313-717 53488209:149-475 54875119:234-988
    50196495:59-399  56579911:59-218  52648681:292-631 59889364:172-453 53514462:73-377
    59505494:59-450  53182247:59-412  51410602:47-320  56412866:522-822 54986978:59-306
    59003148:262-505 57150433:61-394  56760320:219-457 59562049:158-348 52674888:145-296
    55258338:192-568 59330497:140-655 52119491:179-454
"""
FROM_RANGE = {f"s{study}": (int(start), int(end))
              for study, start, end in re.findall(r"(\d+):(\d+)-(\d+)", FIXED_RANGES)}
# ... or there is none
NOTHING = {
    "s58235663", "s50798377", "s54168089", "s53071062", "s56724958", "s54231141", "s53607029",
    "s52035334",
}


class StudyText(NamedTuple):
    """What a study says, uncleaned; None where it says nothing."""
    findings: str | None
    impression: str | None
    other: str | None       # last paragraph or hand-fixed text: for --fallback-paragraph only
    source: str             # where it comes from: "findings+impression", "fixed:technique", ...


def study_text(raw, study):
    """A report's bytes -> (StudyText, what was odd about the bytes, or "").

    Of sections that occur twice the last one counts.
    """
    # what was fixed by hand wins over what the sections say
    text, oddity = decode(raw)
    if study in NOTHING:
        return StudyText(None, None, None, "fixed:nothing"), oddity
    if study in FROM_RANGE:
        start, end = FROM_RANGE[study]
        other = none_if_empty(text[start:end].strip())
        return StudyText(None, None, other, f"fixed:{start}-{end}"), oddity

    # a dictionary: of sections with one name the last one stays
    body = {name: none_if_empty(section) for name, section in sections(drop_addendum(text))}
    if study in FROM_SECTION:
        section = FROM_SECTION[study]
        return StudyText(None, None, body.get(section), f"fixed:{section}"), oddity
    findings, impression = body.get("findings"), body.get("impression")
    if findings or impression:
        used = [name for name in ("findings", "impression") if body.get(name)]
        return StudyText(findings, impression, None, "+".join(used)), oddity
    # neither: what the official parser takes for the report instead, in its order
    for name in ("last_paragraph", "comparison"):
        if body.get(name):
            return StudyText(None, None, body[name], name), oddity
    return StudyText(None, None, None, "nothing"), oddity


def none_if_empty(text):
    return text if text else None


def decode(raw):
    """Bytes of a report -> (text, oddity). The text's lines end in \\n alone.

    The encoding is UTF-8, with or without a byte-order mark, else Latin-1, which reads everything.
    """
    oddity = ""
    if raw.startswith(b"\xef\xbb\xbf"):
        oddity = "BOM"
    elif b"\r" in raw:
        oddity = "CRLF"
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
        oddity = "not UTF-8"
    return text.replace("\r\n", "\n").replace("\r", "\n"), oddity


def drop_addendum(text):
    """An addendum stands on top, above a line of underscores: keep what is below the line.

    The line break stays, as a header needs one before it.

    >>> drop_addendum(" ADDENDUM  Line placed.\\n ________\\n FINDINGS: Clear.")
    '\\n FINDINGS: Clear.'
    """
    addendum = ADDENDUM.match(text)
    if not addendum:
        return text
    line = LINE_OF_UNDERSCORES.search(text, addendum.end())
    if not line:
        return text
    report = text[line.end() - 1:]
    return report if report.strip(" _\n") else text


def sections(text):
    """Text -> [(name, text)]; what stands before the first header is the "preamble".

    A second header on a line is part of the text, as a header begins with a line break.

    >>> sections("x\\n FINDINGS: Clear.\\n IMPRESSION: Well.")
    [('preamble', 'x'), ('findings', 'Clear.'), ('impression', 'Well.')]
    """
    # a section goes from its header to the next one; without any header it is the whole text
    headers = list(HEADER.finditer(text))
    if headers:
        parts = [("preamble", text[:headers[0].start()])]
    else:
        parts = [("full report", text)]
    ends = [header.start() for header in headers[1:]] + [len(text)]
    for header, end in zip(headers, ends):
        parts.append((canonical(header[1]), text[header.end():end]))

    # an empty section must not hide an earlier one of its name
    parts = [(name, part) for name, part in parts
             if part.strip(" \n_") or name not in ("findings", "impression")]

    # without findings and impression the last section ends in the report proper, after a blank line
    names = {name for name, _ in parts}
    if not names & {"findings", "impression"}:
        name, last = parts[-1]
        head, blank, paragraph = last.partition("\n \n")
        if blank:
            parts[-1:] = [(name, head), ("last_paragraph", paragraph)]
    return [(name, part.strip()) for name, part in parts]


def canonical(header):
    """A header in any spelling -> the section's name.

    >>> canonical("IMPRESSON")
    'impression'
    >>> canonical("PORTABLE AP")
    'findings'
    """
    name = " ".join(header.lower().split())
    if name in NAMES:
        return NAMES[name]
    for section in CONTAINED:
        if section in name:
            return section
    return "findings" if VIEWS.search(name) else name
