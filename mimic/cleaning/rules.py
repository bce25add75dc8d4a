"""--clean rules: from the text of a report to what one frontal image can show.

    text, dropped = clean("1. As compared to ___, there is a small effusion.  2. CT is advised.")
    "There is a small effusion."        Counter({"advice": 1})

The rules have a fixed order. Some work on the whole text; the others on one clause, of which they
return what is left, or "". Each has an example that is also a test. Where a rule would take along a
finding, a side, a size, a negation or a doubt, the clause is left as it is: a comparison that stays
does less harm than a finding that goes. Nothing is sent anywhere. All examples are invented.
"""
import re
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from mimic.cleaning.blanks import drop_blanks, drop_dates
from mimic.cleaning.change import affirmed, drop_comparisons, drop_removals, no_new_to_no
from mimic.cleaning.context import (
    ADVICE, drop_advice, drop_communication, drop_history, drop_lateral_remarks, drop_views)
from mimic.cleaning.now import drop_change_words, state_now
from mimic.cleaning.sentences import clauses, has_words, sentences, tidy, without_dangling
from mimic.cleaning.words import MERE_CHANGE, either, facts, pattern

# ---- rules on the whole text ----

# "WET READ: ___ MON 8:10 PM"; or the words without a time, or a ruled line
TIMED_STAMP = re.compile(
    r"\b(?:WET|FINAL|PRELIMINARY) READ(?: VERSION #?\d+)?\b:?"
    r"[^.;]{0,60}?\d{1,2}:\d{2}\s?[AP]M\b[.:]?\s*")
STAMP = re.compile(r"(?:\b(?:WET READ|FINAL REPORT|PRELIMINARY REPORT)\b:?|_{5,})\s*")

# "1. ", "(2) ": at the beginning or after the end of a sentence, and before a word
LIST_NUMBERS = re.compile(r"(?:^|(?<=[.!?;:] ))(?:\(?\d{1,2}[.)] ){1,9}(?=[A-Za-z_(])")


def join_lines(text):
    r"""Reports are wrapped anywhere.

    >>> join_lines("small\n  effusion")
    'small effusion'
    """
    return " ".join(text.split())


def drop_stamps(text):
    """Who read the report first, and when, is in no image.

    >>> drop_stamps("WET READ: ___ MON 8:10 PM Clear.")
    'Clear.'
    """
    return STAMP.sub("", TIMED_STAMP.sub("", text)).strip()


def drop_list_numbers(text):
    """This comes before the rules on clauses, because they look at how a clause begins.

    >>> drop_list_numbers("1. A nodule of 1.5 cm. 2) Clear.")
    'A nodule of 1.5 cm. Clear.'
    """
    return LIST_NUMBERS.sub("", text)


# ---- the last rule on a clause ----

# A clause that is made of these words says nothing.
SAYS_NOTHING = pattern(r"\b", either(
    "an?|the|this|these|that|there|it|its|as|new|old|is|are|was|were|has|have|had|been|be",
    "and|or|but|of|in|on|with|to|from|at|by|for|also|still|now|then|than|which|when|today",
    "seen|noted|findings?|study|exam|examination|patient|history|changes?",
    "chest|heart|lungs?|lobes?|hil[ai]r?|cardiac|mediastin(?:um|al)|cardiomediastinal|silhouettes?",
    "contours?|size|volumes|appearance|positions?|left|right|bilaterally|upper|lower|both"), r"\b")


def drop_remnants(clause):
    """What the other rules have left may say nothing any more.

    >>> drop_remnants("The heart.")
    ''
    >>> drop_remnants("The heart is large.")
    'The heart is large.'
    """
    if has_words(SAYS_NOTHING.sub("", clause)):
        return clause
    return ""


# ---- which rules there are ----

class Rule(NamedTuple):
    """A rule on one clause."""
    name: str                   # what rows and counts call it when it has dropped a clause
    apply: Callable             # clause -> what is left of it
    guarded: bool = True        # undo it where a fact is lost; False: it looks after facts itself
    may_lose: re.Pattern | None = None      # phrases that may go although they look like facts
    looks_around: bool = False  # it is also given the findings that the rest of the report affirms


TEXT_RULES = (join_lines, drop_stamps, drop_list_numbers)

# The order matters: what stands before a sentence goes first, dates and blanks go last, because
# rules about comparisons recognise an earlier study by them.
CLAUSE_RULES = (
    Rule("views", drop_views),
    Rule("communication", drop_communication),
    Rule("removals", drop_removals, guarded=False),
    Rule("no_new", no_new_to_no, guarded=False, looks_around=True),
    Rule("comparisons", drop_comparisons, may_lose=MERE_CHANGE),
    Rule("now", state_now, guarded=False),
    Rule("change_words", drop_change_words, may_lose=MERE_CHANGE),
    Rule("history", drop_history, guarded=False),
    Rule("advice", drop_advice, may_lose=ADVICE),
    Rule("dates", drop_dates, guarded=False),
    Rule("blanks", drop_blanks, guarded=False),
    Rule("remnants", drop_remnants, guarded=False),
)
LATERAL_RULE = Rule("lateral_remarks", drop_lateral_remarks, guarded=False)


# ---- applying them ----

def apply_rule(rule, clause, known=frozenset()):
    """What a rule leaves of a clause: the clause itself where a fact would be lost.

    `known` are the findings that the rest of the report affirms.
    """
    # only "no new" needs to know the rest of the report
    if rule.looks_around:
        left = rule.apply(clause, known)
    else:
        left = rule.apply(clause)
    if left == clause or not rule.guarded:
        return left
    lost = facts_that_count(rule, clause) - facts_that_count(rule, left)
    return clause if lost else left


def facts_that_count(rule, text):
    """The facts of a text, without those in phrases that the rule may take away."""
    # "no change" has the letters of a negation, but denies no finding
    if rule.may_lose is not None:
        text = rule.may_lose.sub(" ", text)
    return facts(text)


def clean_clause(clause, rules, known):
    """All rules in turn -> (what is left or "", name of the rule that left nothing or "")."""
    for rule in rules:
        left = apply_rule(rule, clause, known)
        if left != clause:
            left = without_dangling(left)
        if not has_words(left):
            # a clause without any words was not dropped by the rule: there was nothing to drop
            return "", rule.name if has_words(clause) else ""
        clause = left
    return clause, ""


def affirmations(texts):
    """For each finding, the number of clauses in all texts that affirm it."""
    counts = Counter()
    for text in texts:
        for sentence in sentences(text):
            for clause in clauses(sentence):
                counts.update(affirmed(clause))
    return counts


def without_repeats(cleaned):
    """
    >>> without_repeats(["Clear.", "No edema.", "clear."])
    ['Clear.', 'No edema.']
    """
    first_of = {}
    # reports repeat themselves in other capitals, above all when comparisons are gone
    for sentence in cleaned:
        first_of.setdefault(sentence.lower(), sentence)
    return list(first_of.values())


def clean_sentence(sentence, rules, affirmed_by, dropped):
    """What is left of a sentence, or "". Clauses that go are counted in `dropped`.

    `affirmed_by` counts for each finding how many clauses of the report affirm it.
    """
    remains = []
    # what a clause affirms itself is not "elsewhere": subtract it from the counts
    for clause in clauses(sentence):
        affirmed_elsewhere = set(affirmed_by - Counter(affirmed(clause)))
        left, dropped_by = clean_clause(clause, rules, affirmed_elsewhere)
        if left:
            remains.append(left.rstrip(" .!?"))
        elif dropped_by:
            dropped[dropped_by] += 1
    if not remains:
        return ""
    # clauses are joined again as they were cut, and the sentence gets its own mark back
    mark = sentence[-1] if sentence.endswith((".", "!", "?")) else ""
    return tidy("; ".join(remains) + mark)


def clean(text, drop_lateral=False, beside=""):
    """Clean one section of a report -> (text, Counter of the clauses that each rule dropped).

    The text is None where nothing is left. `beside` is the report's other section: it may affirm
    what this one calls "no new". With `drop_lateral`, remarks on the lateral view go too.

    >>> clean("1. As compared to ___, there is a small left\\n effusion.  2. CT is advised.")
    ('There is a small left effusion.', Counter({'advice': 1}))
    """
    for rule in TEXT_RULES:
        text = rule(text)
    rules = CLAUSE_RULES
    if drop_lateral:
        rules = rules + (LATERAL_RULE,)

    # "no new" depends on what other clauses affirm
    affirmed_by = Counter()
    if " new " in text:
        affirmed_by = affirmations([text, join_lines(beside)])

    dropped = Counter()
    cleaned = [clean_sentence(raw, rules, affirmed_by, dropped) for raw in sentences(text)]
    cleaned = without_repeats(sentence for sentence in cleaned if sentence)
    if not cleaned:
        return None, dropped
    return " ".join(cleaned), dropped
