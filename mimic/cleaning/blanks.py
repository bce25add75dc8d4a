"""Cleaning rules about dates, clock times, and the blanks that de-identification has left.

In MIMIC-CXR dates, names and places have been replaced by "___", in Open-I by "XXXX". Each rule
takes one clause and returns what is left of it, or "". All examples are invented.
"""
import re

from mimic.cleaning.sentences import ended
from mimic.cleaning.words import (
    BLANK, CLAUSE_END, DATE, DOUBT, EARLIER, FINDING, NEGATION_WORD, SEVERITY, SIZE, TIME, either,
    facts, pattern)

# ---- one spelling of blanks ----

# capitals also within a word ("XXXX-A-XXXX", "4XXXX"), small letters as a word of their own
OPEN_I_BLANK = re.compile(r"X{4,}|\bx{4,}\b")


def marked_blanks(text):
    """Open-I's XXXX, where a word was taken out, as MIMIC's ___.

    Its "x-XXXX" is always an x-ray: "Ray" had been taken for a name.

    >>> marked_blanks("Chest x-XXXX of XXXX. XXXX-XXXX catheter.")
    'Chest x-ray of ___. ___-___ catheter.'
    """
    text = re.sub(r"\b([Xx])-X{4,}", r"\1-ray", text)
    return OPEN_I_BLANK.sub(BLANK, text)


# ---- dates and earlier measures ----

# What a finding measured, or how severe it was, on an earlier day.
EARLIER_MEASURE = pattern(either(
    rf", (?:previously|formerly) {SEVERITY}{CLAUSE_END}",                   # ", previously mild"
    r"[ ,(]{0,3}\b(?:previously|formerly|prior(?:ly)?|versus|vs\.?|compared (?:to|with)) "
    rf"(?:measur(?:ed|ing) )?(?:approximately )?{SIZE}(?: previously| before| on {BLANK})?\)?"
    r"(?= ?(?:[.,;)]|$))",                                                  # "(previously 9 mm)"
    rf" ?\(was {SIZE}\)",                                                   # "3 cm (was 2 cm)"
    rf"(?<=[cm]m), was {SIZE}{CLAUSE_END}"))                                # "8 mm, was 6 mm"

# ", on the prior study of ___ there was none": a statement about another image, to its end
ON_THAT_DAY = pattern(
    "(?:^|,? (?:and |but |while |whereas )?)(?:on|in) ",
    rf"(?:(?:the )?(?:{EARLIER} ){{1,3}}(?:(?:of|from|dated) )?)?(?:{BLANK}|{DATE}),? ",
    r"there (?:was|were)\b[^,;.]*[.]?")

# " on 3/4/2150", " (at 14:05)"
WHEN = pattern(
    r"[ ,(]{0,3}(?:\b(?:on|at|from|dated|of|since|obtained|performed|the) ){0,4}",
    rf"(?:{DATE}|{TIME})\)?")


def unless_a_verb(match):
    """Nothing in place of a date, but "may 2" is no date: "opacity may 2 be atelectasis"."""
    if match[0].strip(" ,(").startswith("may "):
        return match[0]
    return ""


def drop_dates(clause):
    """Dates, times and earlier measures go; measures of today stay.

    >>> drop_dates("Nodule of 15 mm, previously 12 mm.")
    'Nodule of 15 mm.'
    >>> drop_dates("Tube placed on 3/4/2150 at 14:05.")
    'Tube placed.'
    >>> drop_dates("Small left effusion, on ___ there was none.")
    'Small left effusion.'
    """
    today = ON_THAT_DAY.sub("", clause)
    if today != clause and (FINDING.search(today) or not facts(today)):
        return drop_dates(ended(today))
    clause = EARLIER_MEASURE.sub("", clause)
    return WHEN.sub(unless_a_verb, clause).strip()


# ---- blanks ----

# A maker's name or a number before the noun that it belongs to: the noun stays.
BLANK_BEFORE_NOUN = pattern(either(
    # "a ___ catheter", "Swan-___ catheter"
    rf"(?:\w+-)?{BLANK}[ -](?=(?:(?:central|venous|chest|feeding|dialysis) )*"
    r"(?:catheter|line|tube|pacemaker|lead|wire|clip|device|port|valve|stent)s?\b)",
    # "measuring approximately ___ cm", "a ___ cm nodule"
    rf"(?:,? measur(?:es|ing) )?(?:(?:approximately|about|up to) )?{BLANK} ?[cm]m\b ?",
    # "edema with ___ and effusion"
    rf"(?<=\bwith ){BLANK} (?:and|or) (?=\w)"))

# A preposition and its blank: "placed{ at ___ on ___} is". It must be followed by what does not
# belong to the blank, else the blank stands for an adjective: "in the ___ lobe".
PREPOSITION = r"\b(?:at|on|from|of|since|dated|to|by|in|with|per|via|as of|performed|obtained)"
BEHIND_BLANK = " ?" + either(
    "[.,;:)]|$",
    r"\b(?:at|on|is|are|was|were|has|have|had|there|and|or|but|as|in|with|without|no|which|that|"
    r"shows?|when|where|remains?)\b")
PREPOSITION_AND_BLANK = pattern(
    r"[ ,(]{0,3}",
    either(
        rf"(?:{PREPOSITION} (?:the )?){{1,4}}(?:Drs?\.? )?",
        rf"\b(?:and|or) (?={BLANK} ?(?:[.,;]|$))"),             # the last of an enumeration
    rf"{BLANK}(?: ?(?:and|,|-) ?{BLANK}){{0,5}}\)?(?={BEHIND_BLANK})")

# Where one statement ends and the next begins, and how one begins that hangs on no other.
STATEMENT_BREAK = pattern(r",? (?:and|but) (?=(?:there|no)\b)|, (?:and |but )?")
STANDS_ALONE = pattern(r"there (?:is|are)\b|no [^,;]*(?:effusion|pneumothora|edema)")
NEGATION_OR_DOUBT = pattern(rf"{NEGATION_WORD}|\b{DOUBT}\b")


def drop_blanks(clause):
    """A blank goes with its preposition; one that stood for a noun takes its statement along.

    Other statements of the clause stay, unless they hang on a negation or a doubt that goes.

    >>> drop_blanks("Line placed at ___ on ___ is in the left vein.")
    'Line placed is in the left vein.'
    >>> drop_blanks("The ___ lobe is clear.")
    ''
    >>> drop_blanks("Small left effusion, a ___ in the right apex, and there is no pneumothorax.")
    'Small left effusion, there is no pneumothorax.'
    """
    clause = BLANK_BEFORE_NOUN.sub("", clause)

    def comma_before_there(match):
        """", on ___ there is": without the comma two statements would run into one."""
        if match[0].startswith(",") and clause.startswith(" there", match.end()):
            return ","
        return ""

    clause_without = PREPOSITION_AND_BLANK.sub(comma_before_there, clause)
    if BLANK not in clause_without:
        return clause_without
    return drop_statements_with_blanks(clause_without)


def drop_statements_with_blanks(clause):
    """From the first blank to the next statement that stands alone, everything goes.

    >>> drop_statements_with_blanks("Effusion, ___ or mass cannot be excluded.")
    ''
    >>> drop_statements_with_blanks("Mild edema, ___ unchanged.")
    'Mild edema.'
    """
    statements = STATEMENT_BREAK.split(clause)
    with_blank = [number for number, statement in enumerate(statements) if BLANK in statement]
    first, last = with_blank[0], with_blank[-1]

    end = last + 1
    while end < len(statements) and not STANDS_ALONE.match(statements[end]):
        end += 1

    # what goes may have denied what stands before: "Effusion, edema, or a ___ is not seen."
    before = ", ".join(statements[:first])
    gone = " ".join(statements[first:end])
    if not FINDING.search(before) or NEGATION_OR_DOUBT.search(gone):
        before = ""
    return ended(", ".join(text for text in [before, *statements[end:]] if text))
