"""Report text -> what one frontal image can show, by rules in a fixed order; nothing is sent anywhere.

    text, dropped = clean("1. As compared to ___, there is a small left\\n effusion.  2. CT is advised.")
    "There is a small left effusion."           Counter({"advice": 1})

Each rule is a small function on the text or on one clause, with an example that is also a test. A rule may drop a clause
that only speaks of other images, people or plans, or cut one. Where it would take along a finding, a side, a size, a
negation or a "possible", the clause is left as it is. All examples are invented.
"""
import re
from collections import Counter

from mimic.cleaning.blanks import blanks, dates
from mimic.cleaning.change import affirmed, comparisons, no_new, removals
from mimic.cleaning.context import (
    ADVICE, TOLD, advice, communication, history, lateral_remarks, views)
from mimic.cleaning.now import change_words, now
from mimic.cleaning.sentences import has_words, sentences, tidy
from mimic.cleaning.words import HARMLESS, I, facts

# ---- rules on the whole text ----

def unwrap(text):
    r"""
    >>> unwrap("small\n  effusion")
    'small effusion'
    """
    return " ".join(text.split())


def stamps(text):
    """
    >>> stamps("WET READ: ___ MON 8:10 PM Clear.")
    'Clear.'
    """
    text = re.sub(r"\b(?:WET|FINAL|PRELIMINARY) READ(?: VERSION #?\d+)?\b:?[^.;]{0,60}?\d{1,2}:\d{2}\s?[AP]M\b[.:]?\s*", "", text)
    return re.sub(r"(?:\b(?:WET READ|FINAL REPORT|PRELIMINARY REPORT)\b:?|_{5,})\s*", "", text).strip()


def list_numbers(text):
    """Before the sentence rules, because they look at how a sentence starts.

    >>> list_numbers("1. A nodule of 1.5 cm. 2) Clear.")
    'A nodule of 1.5 cm. Clear.'
    """
    return re.sub(r"(?:(?<=^)|(?<=[.!?;:] ))(?:\(?\d{1,2}[.)] ){1,9}(?=[A-Za-z_(])", "", text)


NOT_A_WORD = re.compile(
    r"\b(?:an?|the|this|these|that|there|it|its|as|new|old|is|are|was|were|has|have|had|been|be|and|or|but|of|in|on|with|to|from|"
    r"at|by|for|also|still|now|then|than|which|when|today|seen|noted|findings?|study|exam|examination|chest|heart|lungs?|lobes?|"
    r"hil[ai]r?|cardiac|mediastin(?:um|al)|cardiomediastinal|silhouettes?|contours?|size|appearance|positions?|left|right|upper|"
    r"lower|both|patient|history|changes?)\b", I)


def remnants(sentence):
    """What is left says nothing.

    >>> remnants("The heart.")
    ''
    >>> remnants("The heart is large.")
    'The heart is large.'
    """
    return sentence if has_words(NOT_A_WORD.sub("", sentence)) else ""


# ---- putting it together ----

def repeats(parts):
    """
    >>> repeats(["Clear.", "No edema.", "clear."])
    ['Clear.', 'No edema.']
    """
    seen = set()
    return [part for part in parts if not (part.lower() in seen or seen.add(part.lower()))]


TEXT_RULES = (unwrap, stamps, list_numbers)
CLAUSE_RULES = (views, communication, removals, no_new, comparisons, now, change_words, history, advice, dates, blanks, remnants)
# rules that may lose a fact by their nature, and look after it themselves; what the others may take away
AT_OWN_RISK = (removals, no_new, now, history, dates, blanks, remnants, lateral_remarks)
TAKES = {advice: ADVICE, communication: TOLD, comparisons: HARMLESS, change_words: HARMLESS}


def applied(rule, clause, known):
    """What the rule leaves of the clause, or the clause itself where a fact would be lost."""
    left = rule(clause, known) if rule is no_new else rule(clause)
    if left == clause or rule in AT_OWN_RISK:
        return left
    neutral = lambda text: facts(TAKES[rule].sub(" ", text) if rule in TAKES else text)
    return clause if neutral(clause) - neutral(left) else left


def clean(text, drop_lateral=False, beside=""):
    """-> (text or None if nothing is left, Counter of clauses dropped by each rule). `beside`: the report's other section.

    >>> clean("1. As compared to ___, there is a small left\\n effusion.  2. CT is advised.")
    ('There is a small left effusion.', Counter({'advice': 1}))
    """
    dropped, kept = Counter(), []
    for rule in TEXT_RULES:
        text = rule(text)
    whole = [sentence.split("; ") for sentence in sentences(text)]
    mentioned = Counter()
    if " new " in text:
        every = [clause for part in (*whole, *(s.split("; ") for s in sentences(unwrap(beside)))) for clause in part]
        mentioned.update(word for clause in every for word in affirmed(clause))
    for parts in whole:
        clauses = []
        for clause in parts:
            known = {word for word, n in mentioned.items() if n > (word in affirmed(clause))} if mentioned else set()
            for rule in CLAUSE_RULES + (lateral_remarks,) * drop_lateral:
                left = applied(rule, clause, known)
                if not has_words(left):
                    dropped[rule.__name__] += has_words(clause)
                    break
                clause = left
            else:
                clauses.append(clause.rstrip(" .!?"))
        if clauses:
            kept.append(tidy("; ".join(clauses) + parts[-1][-1:] * parts[-1].endswith((".", "!", "?"))))
    return " ".join(repeats(kept)) or None, +dropped
