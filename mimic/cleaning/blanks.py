"""Dates, clock times, and the blanks ("___") that de-identification left where dates and names stood."""
import re

from mimic.cleaning.sentences import ended
from mimic.cleaning.words import (
    BLANK, DATE, DENIES, DOUBT, EARLIER, END, FINDING, I, SEVERITY, SIZE, TIME, facts)

BEFORE = re.compile(rf", (?:previously|formerly) {SEVERITY}{END}|"
                    r"[ ,(]{0,3}\b(?:previously|formerly|prior(?:ly)?|versus|vs\.?|compared (?:to|with)) "
                    rf"(?:measur(?:ed|ing) )?(?:approximately )?{SIZE}(?: previously| before| on {BLANK})?\)?"
                    rf"(?= ?(?:[.,;)]|$))| ?\(was {SIZE}\)|(?<=[cm]m), was {SIZE}{END}", I)
THEN = re.compile(rf"(?:^|,? (?:and |but |while |whereas )?)(?:on|in) (?:(?:the )?(?:{EARLIER} ){{1,3}}(?:(?:of|from|dated) )?)?"
                  rf"(?:{BLANK}|{DATE}),? there (?:was|were)\b[^,;.]*[.]?", I)         # speaks of another image
WHEN = re.compile(rf"[ ,(]{{0,3}}(?:\b(?:on|at|from|dated|of|since|obtained|performed|the) ){{0,4}}(?:{DATE}|{TIME})\)?", I)


def dates(sentence):
    """Current measures stay, and so does the verb "may".

    >>> dates("Nodule of 15 mm, previously 12 mm.")
    'Nodule of 15 mm.'
    >>> dates("Tube placed on 3/4/2150 at 14:05.")
    'Tube placed.'
    >>> dates("Small left effusion, on ___ there was none.")
    'Small left effusion.'
    """
    rest = THEN.sub("", sentence)
    if rest != sentence and (FINDING.search(rest) or not facts(rest)):
        return dates(ended(rest))
    return WHEN.sub(lambda found: found[0] if found[0].strip(" ,(").startswith("may ") else "", BEFORE.sub("", sentence)).strip()


AFTER_BLANK = (r" ?(?:[.,;:)]|$|\b(?:at|on|is|are|was|were|has|have|had|there|and|or|but|as|in|with|without|no|which|that|"
               r"shows?|when|where|remains?)\b)")
PREPOSITION = re.compile(rf"[ ,(]{{0,3}}(?:(?:\b(?:at|on|from|of|since|dated|to|by|in|with|per|via|as of|performed|obtained) "
                         rf"(?:the )?){{1,4}}(?:Drs?\.? )?|\b(?:and|or) (?={BLANK} ?(?:[.,;]|$))){BLANK}"
                         rf"(?: ?(?:and|,|-) ?{BLANK}){{0,5}}\)?(?={AFTER_BLANK})", I)

# a maker's name or a number before what it belongs to: "a ___ catheter", "a ___ cm nodule", "with ___ and effusion"
BEFORE_NOUN = re.compile(rf"(?:\w+-)?{BLANK}[ -](?=(?:(?:central|venous|chest|feeding|dialysis) )*(?:catheter|line|tube|"
                         r"pacemaker|lead|wire|clip|device|port|valve|stent)s?\b)|"
                         rf"(?:,? measur(?:es|ing) )?(?:(?:approximately|about|up to) )?{BLANK} ?[cm]m\b ?|"
                         rf"(?<=\bwith ){BLANK} (?:and|or) (?=\w)", I)
STATEMENT = re.compile(r",? (?:and|but) (?=(?:there|no)\b)|, (?:and |but )?", I)
ALONE = re.compile(r"there (?:is|are)\b|no [^,;]*(?:effusion|pneumothora|edema)", I)


def blanks(sentence):
    """De-identified spans: cut with their preposition; one that stood for a noun takes its clause along.

    Other statements of the sentence stay, unless they hang on a negation or doubt that goes.

    >>> blanks("Line placed at ___ on ___ is in the left vein.")
    'Line placed is in the left vein.'
    >>> blanks("The ___ lobe is clear.")
    ''
    >>> blanks("Small left effusion, a ___ in the right apex, and there is no pneumothorax.")
    'Small left effusion, there is no pneumothorax.'
    """
    sentence = BEFORE_NOUN.sub("", sentence)
    comma = lambda found: "," * (found[0][0] == "," and sentence.startswith(" there", found.end()))
    cut = PREPOSITION.sub(comma, sentence)
    if BLANK not in cut:
        return cut
    parts = STATEMENT.split(cut)
    hit = [BLANK in part for part in parts]
    first, last = hit.index(True), len(hit) - hit[::-1].index(True)
    after = next((n for n in range(last, len(parts)) if ALONE.match(parts[n])), len(parts))
    before = ", ".join(parts[:first])
    if not FINDING.search(before) or re.search(rf"{DENIES.pattern}|\b{DOUBT}\b", " ".join(parts[first:after]), I):
        before = ""
    return ended(", ".join(filter(None, [before, *parts[after:]])))
