"""One statement about a picture, put into the report of it.

    with_statement("The heart is normal in size. Small left pleural effusion.",
                   "Large left pleural effusion.")
    # -> "The heart is normal in size. Large left pleural effusion."

Which sentences belong to a finding is known for the findings in `phantom.facts.TABLE`, which are
named in the same words in reports about people.
"""
import re

from common.cli import InputError
from phantom.facts import FINDINGS, OUTSIDE_THE_LUNGS, TABLE, report_to_facts

# by which words a sentence is known to be about a finding, also where it denies it
WORDS = {name: finding.pattern for name, finding in TABLE.items()}
CLEAR_LUNGS = r"\blungs? (?:is|are) clear|\bclear lungs?\b"
WORDS["cardiomegaly"] += r"|\bheart\b"
WORDS["opacity"] += f"|{CLEAR_LUNGS}"


def sentences(text):
    """A text -> its sentences. A full stop inside a number ("1.5 cm") ends none."""
    return [part for part in re.split(r"(?<=[.!?])\s+", text.strip()) if part]


def named(text):
    """The findings that a text is about, stated or denied, in the order of FINDINGS."""
    return [name for name in FINDINGS if re.search(WORDS[name], text.lower())]


def with_statement(report, statement):
    """The report with a statement in place of all that it says about the same findings.

    The sentences that name a finding of the statement go, and the statement stands where the first
    of them stood. If there is none, the statement is added, in the order in which reports name
    findings. A denial of several findings keeps those that the statement is not about, and "The
    lungs are clear." goes when the statement puts something into them. InputError for a sentence
    that goes and states another finding: what shall become of that one cannot be known.
    """
    about = named(statement)
    in_lungs = any(fact.finding not in OUTSIDE_THE_LUNGS for fact in report_to_facts(statement))
    kept, place = [], None
    for sentence in sentences(report):
        others = [name for name in named(sentence) if name not in about]
        clear = all((in_lungs, re.search(CLEAR_LUNGS, sentence.lower())))
        if clear and "opacity" in others:
            others.remove("opacity")            # by "clear", which is not true any more
        goes = len(others) < len(named(sentence))
        if not goes:
            kept.append(sentence)
            continue
        if others and report_to_facts(sentence):
            raise InputError(f'"{sentence}" is about {" and ".join(named(sentence))} at once, so '
                             "one statement cannot replace it; give each finding its own sentence, "
                             "or edit with --report, the whole wanted report.")
        if place is None and not clear:
            place = len(kept)
        kept += [TABLE[name].absent[0] for name in others]
    if place is None:
        place = place_of(about, kept)
    return " ".join([*kept[:place], statement.strip(), *kept[place:]])


def place_of(about, kept):
    """Where a statement about new findings belongs: before the first sentence about later ones."""
    if about:
        first = FINDINGS.index(about[0])
        for place, sentence in enumerate(kept):
            later = [name for name in named(sentence) if FINDINGS.index(name) > first]
            if later:
                return place
    return len(kept)
