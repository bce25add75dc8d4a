"""A MIMIC-CXR report as it lies on disk -> its sections, by the rules of the official parser (MIT-LCP/mimic-cxr, `txt/`).

    sections(text)                            -> [(name, text)] in order
    study_text(raw_bytes, "s50000001")        -> StudyText(findings, impression, other, source)

The rules are about raw text: lines start with one space, headers are capitals. So section first, clean afterwards.
Written anew from a description of the rules; the numbers of the 54 studies below are facts about the data.
"""
import re
from typing import NamedTuple

HEADER = re.compile(r"\n ([A-Z ()/,-]+):\s")
UNDERSCORES = re.compile(r"\n[ \t]*_{5,}[ \t]*\n")
ADDENDUM = re.compile(r"[\s_]*(?:\w+\s+){0,3}addend", re.IGNORECASE)       # "see addendum" further down does not count

# spellings of the headers; looked up whole, then word by word
NAMES = {name: section for section, names in {
    "impression": "impression impressions impresson impresion impreson imprression imression impession impessions "
                  "conclusion conclusions|findings and impression|findings/impression|findings / impression|findings impression|"
                  "impression and findings|impression/findings|diagnostic impression|final impression|pfi|summary|opinion",
    "findings": "findings finding findngs fidings findigs fndings finidngs|chest, two views|chest two views|"
                "chest, pa and lateral|report|discussion|heart and lungs",
    "indication": "indication indications indicatation|reason for exam|reason for examination|clinical indication|"
                  "reason for study|reason",
    "history": "history histories hx|clinical history|clinical information|patient history|clinical data",
    "comparison": "comparison comparisons comparision comparsion comparrison|comparison exam|comparison film|"
                  "reference exam|prior",
    "technique": "technique techniques technqiue procedure|imaging technique",
    "examination": "examination exam study examinations|type of examination|exam type",
    "recommendations": "recommendation recommendations recommedation|follow-up",
    "notification": "notification notifications",
    "note": "note notes comment comments",
    "wet read": "|wet read",
    "addendum": "addendum addenda addendums",
}.items() for group, _, phrases in [names.partition("|")] for name in [*group.split(), *filter(None, phrases.split("|"))]}
CONTAINED = ("impression", "findings", "history", "comparison", "addendum")
VIEWS = re.compile(r"\b(chest|portable|pa and lateral|pa & lateral|lateral|ap|frontal|views?|radiographs?|ribs?|abdomen|"
                   r"sternum|upright|supine|single|two)\b")

# 54 studies that the official list fixes by hand: text of another section, characters start-end of the file, or nothing
FROM_SECTION = {f"s{study}": section for section, studies in {
    "recommendations": "50913680 59768032 59067458 59087630 58157373 56482935 58375018",
    "examination": "59363654 53356173 50743547 59215320 55157853",
    "technique": "59279892 53202765 50808053",
    "indication": "57936451 50058765 51966317 55124749 54365831 54654948",
    "note": "56451190",
    "history": "51491012"}.items() for study in studies.split()}
FROM_RANGE = {f"s{study}": (int(start), int(end)) for study, start, end in re.findall(r"(\d+):(\d+)-(\d+)", """
    50525523:201-349 57564132:233-554 59982525:313-717 53488209:149-475 54875119:234-988 50196495:59-399 56579911:59-218
    52648681:292-631 59889364:172-453 53514462:73-377 59505494:59-450 53182247:59-412 51410602:47-320 56412866:522-822
    54986978:59-306 59003148:262-505 57150433:61-394 56760320:219-457 59562049:158-348 52674888:145-296 55258338:192-568
    59330497:140-655 52119491:179-454""")}
NOTHING = {f"s{study}" for study in "58235663 50798377 54168089 53071062 56724958 54231141 53607029 52035334".split()}


class StudyText(NamedTuple):
    """What a study says, uncleaned; None where it says nothing."""
    findings: str | None
    impression: str | None
    other: str | None       # last paragraph or hand-fixed text: for training with --fallback-paragraph only
    source: str             # where the text came from: "findings+impression", "last_paragraph", "fixed:technique", ...


def decode(raw):
    """Bytes of a report -> (text with \\n alone, what was odd about them or ""): utf-8 with or without BOM, else latin-1."""
    odd = "BOM" if raw.startswith(b"\xef\xbb\xbf") else "CRLF" if b"\r" in raw else ""
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        text, odd = raw.decode("latin-1"), "not UTF-8"
    return text.replace("\r\n", "\n").replace("\r", "\n"), odd


def drop_addendum(text):
    """An addendum comes first, set off by a line of underscores: keep what is below the line.

    >>> drop_addendum(" ADDENDUM  Line placed.\\n ________\\n FINDINGS: Clear.")
    ' FINDINGS: Clear.'
    """
    start = ADDENDUM.match(text)
    line = start and UNDERSCORES.search(text, start.end())
    below = text[line.end():] if line else ""
    return below if below.strip(" _\n") else text


def canonical(header):
    """A header of any spelling -> the section's name."""
    name = " ".join(header.lower().split())
    if name in NAMES:
        return NAMES[name]
    for part in CONTAINED:
        if part in name:
            return part
    return "findings" if VIEWS.search(name) else name


def sections(text):
    """Text -> [(name, text)]. What stands before the first header is the preamble; without headers all is "full report".

    >>> sections("x\\n FINDINGS: Clear.\\n IMPRESSION: Well.")
    [('preamble', 'x'), ('findings', 'Clear.'), ('impression', 'Well.')]
    """
    found = HEADER.search(text)
    parts = [("preamble", text[:found.start()])] if found else [("full report", text)]
    while found:
        following = HEADER.search(text, found.end())    # it starts with a line break: a second header on the line is swallowed
        parts.append((canonical(found[1]), text[found.end():following.start() if following else len(text)]))
        found = following
    parts = [(name, part) for name, part in parts if part.strip(" \n_") or name not in ("findings", "impression")]
    if not {"findings", "impression"} & {name for name, _ in parts}:
        name, last = parts[-1]
        head, blank, paragraph = last.partition("\n \n")
        if blank:
            parts[-1:] = [(name, head), ("last_paragraph", paragraph)]
    return [(name, part.strip()) for name, part in parts]


def study_text(raw, study):
    """A report's bytes -> (StudyText, oddness of the bytes). Of sections that occur twice the last one counts."""
    text, odd = decode(raw)
    if study in NOTHING:
        return StudyText(None, None, None, "fixed:nothing"), odd
    if study in FROM_RANGE:
        start, end = FROM_RANGE[study]
        return StudyText(None, None, text[start:end].strip() or None, f"fixed:{start}-{end}"), odd
    body = dict(sections(drop_addendum(text)))
    if study in FROM_SECTION:
        return StudyText(None, None, body.get(FROM_SECTION[study]) or None, f"fixed:{FROM_SECTION[study]}"), odd
    findings, impression = body.get("findings"), body.get("impression")
    other = None if findings or impression else body.get("last_paragraph") or body.get("comparison") or None
    used = [name for name in ("findings", "impression") if body.get(name)]
    if not used:
        used = ["last_paragraph" if body.get("last_paragraph") else "comparison"] if other else ["nothing"]
    return StudyText(findings or None, impression or None, other, "+".join(used)), odd
