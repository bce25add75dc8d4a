"""The row of an image: the question, the report that answers it, labels, and where all came from.

    row = row_of(cfg, "und", item, content, answer)     # a dict; UnusableReport without findings

A row of und (reading) has a question, FINDINGS, and IMPRESSION where the report has one; a row of
gen (drawing) has the findings alone. `clean` and `flags` say how the text was cleaned. The test of
und also keeps the text as it was before, as `raw`: scores on cleaned and on raw references are two
different things.
"""
from typing import NamedTuple

from mimic import sections
from mimic.cleaning import rules
from mimic.cleaning.blanks import marked_blanks
from mimic.cleaning.sentences import has_words
from mimic.headings import apart
from mimic.items import fraction

# Our wording of the question; {parts} is what the report has. An image always gets the same one.
# The paper draws from twenty sentences of its own, two endings of ten.
PROMPTS = [
    "Describe this chest X-ray. Give the {parts}.",
    "Look at this chest radiograph and write the {parts}.",
    "You are a radiologist. Read this X-ray and state the {parts}.",
    "Report this chest X-ray with its {parts}.",
    "What does this radiograph show? Answer with the {parts}.",
    "Please read the image and write down the {parts}.",
    "As an expert in chest imaging, give the {parts} for this film.",
    "Study this frontal chest X-ray, then list the {parts}.",
    "Write a radiology report for this image, made up of the {parts}.",
    "Interpret the chest X-ray in detail: {parts}.",
]


class UnusableReport(Exception):
    """A report without what a row needs. The message is the reason, which is counted."""


class Raw(NamedTuple):
    """What a report says, not yet cleaned."""
    findings: str
    impression: str | None
    source: str                     # the sections or annotations that it came from
    oddity: str                     # what was odd about the file's bytes, or ""


class Clean(NamedTuple):
    """The same, cleaned."""
    findings: str | None            # None: cleaning left nothing
    impression: str | None
    method: str                     # rules, llm or none
    flags: list                     # rules that dropped a clause, guards that refused an answer


def row_of(cfg, task, item, content, answer):
    """One row of the data set `task` (und or gen), or UnusableReport with the reason.

    content: the bytes of the report file, None where it is missing or not needed. answer: what a
    language model made of the study's text (mimic/cleaning/llm.py), None without --clean llm.
    """
    raw = raw_text(cfg, item, content)
    clean = cleaned(cfg, raw, answer)
    if not clean.findings:
        raise UnusableReport("no findings after cleaning")

    # one flag for the bytes: a broken character tells more than why it broke
    report = with_headings(clean.findings, clean.impression)
    flags = list(clean.flags)
    if "\ufffd" in report:
        flags.append("broken characters")
    elif raw.oddity:
        flags.append(raw.oddity)

    row = {
        "id": item.id,
        "subject": item.subject,
        "study": item.study,
        "split": item.split,
        "view": item.view,
        "prompt": question(item, clean.impression) if task == "und" else "",
        "report": report if task == "und" else clean.findings,
        "labels": item.labels if item.labels else {},
        "source": raw.source,
        "clean": clean.method,
        "flags": flags,
        "image": item.image,
    }
    if task == "und" and item.split == "test":
        row["raw"] = with_headings(raw.findings, raw.impression)
    return row


def raw_text(cfg, item, content):
    """What an item's report says -> Raw, or UnusableReport. All of the paper's samples have
    findings, so ours must."""
    if item.text:                   # the input had findings and impression apart
        findings, impression, source = item.text
        oddity = ""
    elif content is None:
        raise UnusableReport("report missing")
    else:
        text, oddity = sections.study_text(content, item.study)
        findings, impression, source = text.findings, text.impression, text.source
        # a file of underscores is empty; one with any other words merely has no findings
        nothing = not findings and not impression and not text.other
        if nothing and not has_words(sections.decode(content)[0]):
            raise UnusableReport("report empty")
        if cfg.fallback_paragraph and not findings:
            findings = text.other

    # from here on, for the rules, the language model and --clean none: no impression within the
    # findings, and one spelling of blanks
    if findings:
        findings, impression = apart(marked_blanks(findings), impression)
    if impression:
        impression = marked_blanks(impression)
    if findings and has_words(findings):
        return Raw(findings, impression, source, oddity)
    if source.startswith("fixed"):
        raise UnusableReport("no findings: hand-fixed study")
    raise UnusableReport("no findings")


def cleaned(cfg, raw, answer):
    """The text without what an image cannot show (--clean) -> Clean."""
    if answer and answer["method"] == "llm":
        findings, impression = answer["text"]
        return Clean(findings, impression, "llm", answer["flags"])
    if cfg.clean == "none":
        return Clean(raw.findings, raw.impression, "none", [])

    # by rules, also where an answer of the language model was refused
    # each section is told of the other: an old effusion there makes a difference to "no new" here
    impression = raw.impression if raw.impression else ""
    findings, dropped = rules.clean(raw.findings, cfg.drop_lateral, beside=impression)
    impression, dropped_too = rules.clean(impression, cfg.drop_lateral, beside=raw.findings)
    flags = list(answer["flags"]) if answer else []
    return Clean(findings, impression, "rules", flags + sorted({*dropped, *dropped_too}))


def with_headings(findings, impression):
    report = f"FINDINGS: {findings}"
    if impression:
        report += f"\nIMPRESSION: {impression}"
    return report


def question(item, impression):
    """The question that the report answers: it asks for an impression only where there is one."""
    # chosen by a hash of the id: it stays the same whichever other images there are
    number = int(fraction(item.id) * len(PROMPTS))
    parts = "FINDINGS and IMPRESSION" if impression else "FINDINGS"
    return PROMPTS[number].format(parts=parts)


def texts_to_clean(cfg, jobs, reports):
    """(key, findings, impression) of every distinct text, for the language model to clean."""
    keys = set()
    for job in jobs:
        for task, item in job.items:
            if task not in cfg.task or item.text_key in keys:
                continue
            keys.add(item.text_key)
            content = None if item.text else reports.read(item)
            try:
                raw = raw_text(cfg, item, content)
            except UnusableReport:            # counted when its image's turn comes
                continue
            yield item.text_key, raw.findings, raw.impression
