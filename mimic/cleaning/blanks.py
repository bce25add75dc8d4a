"""Cleaning rules about dates, clock times, and the blanks that de-identification has left.

In MIMIC-CXR dates, names and places have been replaced by "___", in Open-I by "XXXX". Each rule
takes one clause and returns what is left of it, or "". All examples are invented.
"""
import re

from mimic.cleaning.sentences import ended, without_dangling
from mimic.cleaning.words import (
    BLANK, CLAUSE_END, DATE, DOUBT, EARLIER, FINDING, NEGATION, NEGATION_WORD, SEVERITY, SIZE, TIME,
    either, facts, pattern)

# ---- one spelling of blanks ----

# capitals also within a word ("XXXX-A-XXXX", "4XXXX"), small letters as a word of their own
OPEN_I_BLANK = re.compile(r"X{4,}|\bx{4,}\b")

# Open-I took out common words with the names. Where only one word can stand, it is put back.
RESTORED = (
    (re.compile(r"\b([Xx])-X{4,}"), r"\1-ray"),                             # "Ray" is a name, too
    (re.compile(r"\b([Ll]ymph) X{4,}"), r"\1 nodes"),
    (re.compile(r"\b((?:[Ll]eft|[Rr]ight) (?:lateral |posterior )?(?:cost|cardi)ophrenic) X{4,}"),
     r"\1 angle"),
    (re.compile(r"\b([Cc]ostophrenic) X{4,}(?= blunting)"), r"\1 angle"),
    (re.compile(r"\b([Cc]ostophrenic) X{4,}"), r"\1 angles"),
    (re.compile(r"\b(sternotomy) X{4,}(?= (?:are|appear|remain|intact))"), r"\1 wires"),
)


def marked_blanks(text):
    """Open-I's XXXX, where a word was taken out, as MIMIC's ___.

    >>> marked_blanks("Chest x-XXXX of XXXX. XXXX-XXXX catheter.")
    'Chest x-ray of ___. ___-___ catheter.'
    >>> marked_blanks("Density in the left cardiophrenic XXXX.")
    'Density in the left cardiophrenic angle.'
    """
    for blank, whole in RESTORED:
        text = blank.sub(whole, text)
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
    # "a 10 ___ nodule"
    rf"\b\d+(?:\.\d+)? {BLANK} (?=(?:nodul|opaci|densit|mass|lesion))",
    # "edema with ___ and effusion", "normal in ___ and alignment"
    rf"(?:(?<=\bwith )|(?<=\bnormal in )){BLANK} (?:and|or) (?=\w)",
    # "___ sternotomy ___": the wires and what kind it was
    rf"{BLANK} (?=sternotom)",
    rf"(?<=\bsternotomy) {BLANK}(?!\w)",
    # "is in ___ with its tip", "are in ___ and intact": in place
    rf" (?:is|are) in {BLANK}(?= with\b)",
    rf"(?:(?<=\bis)|(?<=\bare)) in {BLANK} and(?= \w)",
    # "no ___ of a pleural effusion": evidence or signs
    rf"(?<=\bno ){BLANK} of (?:an? )?(?=\w)"))

# An adjective before a finding that one sees: "There are ___ opacities", "Mild ___ deformity".
# Elsewhere a blank may hide a doubt ("opacity, ___ atelectasis"), and takes its statement along.
DESCRIBED = either(
    "opaci|densit|lucen|nodul|lesion|calcif|deformit|fracture|blunt|curvature|airspace",
    "degenerat|markings|thicken|effusion|pneumothora|spondyl|scolio")
DEDUCED = "(?:atelecta|scar|granuloma|infiltrat|edema|congesti|fibro|emphysem)"
MORE_ADJECTIVES = "(?:" + either(
    "left|right|upper|middle|lower|bilateral|bibasilar|basilar|basal|biapical|anterior|lobes?|lung",
    "mild|minimal|small|increased|subtle|residual|patchy|streaky|focal|rounded?|nodular|linear",
    "alveolar|interstitial|pulmonary|pleural|thoracic|multilevel|calcified|and") + " ){0,4}"
AMOUNT = either(
    r"there (?:is|are)(?: an?| some| also)*", SEVERITY, "an?|the|some|multiple|several|few",
    # "with" a finding, not "compared with ___"
    "(?<!compared )(?<!comparison )(?<!discussed )(?<!reviewed )with|residual",
    "scattered|wedge|anterior|thoracic|bibasilar|basilar|basal|bilateral|biapical")
ADJECTIVE_BEFORE_FINDING = pattern(either(
    rf"(?:^|\b{AMOUNT} |\blobe ){BLANK} (?:{BLANK} )?(?={MORE_ADJECTIVES}{DESCRIBED})",
    rf"\b{AMOUNT} {BLANK} (?:{BLANK} )?(?={MORE_ADJECTIVES}{DEDUCED})"))

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
NEGATION_OR_DOUBT = pattern(rf"{NEGATION_WORD}|\b{DOUBT}\b|\b(?:resol|remov|clearing|clearance)")

# A statement that is whole where its blank begins: "Bibasilar opacities{ ___ atelectasis}"
WHOLE = pattern(
    r"\b(?:opacit(?:y|ies)|opacifications?|densit(?:y|ies)|nodules?|markings|deformit(?:y|ies)|",
    r"calcifications?|granulomas?|effusions?|scarring|thickening|blunting|atelectasis|fractures?|",
    r"consolidations?|edema|lucenc(?:y|ies)|changes|disease|cardiomegaly|lungs?|midlung|lobes?|",
    r"zones?|bases?|ribs?|apex|apices|hemidiaphragm|aorta|spine|angles?|sulc(?:us|i)|lesions?|",
    r"mass(?:es)?|(?:is|are) (?:seen|noted|present|identified|demonstrated))$")
# the beginning of a place whose name is blank: "Calcifications are seen{ within the aortic} ___"
PLACE_OF_BLANK = pattern(
    r" (?:in|within|of|at|along|over|about|near|overlying|involving|throughout|on)",
    r"(?: [\w-]+){0,3}$")
# What is remarked on it hangs on it: "A nodule{ which is ___ calcified}"
REMARK = pattern(r"(?:^|,? )(?:(?:most|several|some) of )?which\b")


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
    clause = without_adjectives(clause)

    def joint(match):
        """What stays of a blank with its preposition: mostly nothing.

        ", on ___ there is": without the comma two statements would run into one. "Scar or ___": as
        long as nothing is denied, the other alternative makes the first one doubtful.
        """
        if match[0].lower().startswith(" or") and not NEGATION.search(clause[:match.start()]):
            return match[0]
        if match[0].startswith(",") and clause.startswith(" there", match.end()):
            return ","
        return ""

    clause_without = PREPOSITION_AND_BLANK.sub(joint, clause)
    if BLANK not in clause_without:
        return clause_without
    return drop_statements_with_blanks(clause_without)


def without_adjectives(clause):
    """A blank for an adjective goes alone, unless its finding is denied or doubted.

    >>> without_adjectives("There are ___ left lower lobe opacities.")
    'There are left lower lobe opacities.'
    >>> without_adjectives("No large ___ effusion.")
    'No large ___ effusion.'
    """
    def replacement(match):
        if NEGATION_OR_DOUBT.search(clause[:match.start()]):
            return match[0]
        kept = match[0].partition(BLANK)[0]
        if re.search(r"\ban? $", kept, re.IGNORECASE):
            n = "n" if clause[match.end()].lower() in "aeio" else ""
            kept = f"{kept.rstrip('n ')}{n} "
        return kept

    return ADJECTIVE_BEFORE_FINDING.sub(replacement, clause)


def drop_statements_with_blanks(clause):
    """From the first blank to the next statement that stands alone, everything goes.

    >>> drop_statements_with_blanks("Effusion, ___ or mass cannot be excluded.")
    ''
    >>> drop_statements_with_blanks("Mild edema, ___ unchanged.")
    'Mild edema.'
    >>> drop_statements_with_blanks("Bibasilar opacities ___ atelectasis.")
    'Bibasilar opacities.'
    """
    statements = STATEMENT_BREAK.split(clause)
    with_blank = [number for number, statement in enumerate(statements) if BLANK in statement]
    first, last = with_blank[0], with_blank[-1]

    end = last + 1
    while end < len(statements) and not STANDS_ALONE.match(statements[end]):
        end += 1

    # the statement with the blank may have said something before it
    before = ", ".join(statements[:first])
    gone = " ".join(statements[first:end])
    head = statements[first].partition(BLANK)[0].strip()
    remark = REMARK.search(head)
    if remark:
        # a doubt in it is not about what it is a remark on: "opacity, which may be ___"
        gone = pattern(DOUBT).sub("", gone)
    head = what_is_whole(head)
    if head:
        before = f"{before}, {head}" if before else head

    # what goes may have denied what stands before: "Effusion, edema, or a ___ is not seen."
    if not FINDING.search(before) or NEGATION_OR_DOUBT.search(gone):
        before = ""
    return ended(", ".join(text for text in [before, *statements[end:]] if text))


def what_is_whole(head):
    """Of the words before a blank, those that stand without it, or "".

    >>> what_is_whole("Calcifications within the aortic")
    'Calcifications'
    >>> what_is_whole("Scar or")
    ''
    """
    remark = REMARK.search(head)
    if remark:
        head = head[:remark.start()]
    elif re.search(r"\b(?:or|versus|vs\.?)$", head):       # one of the two
        return ""
    whole = without_dangling(head)
    if not remark and not WHOLE.search(whole):
        whole = without_dangling(PLACE_OF_BLANK.sub("", head))
        if not WHOLE.search(whole):
            return ""
    return "" if NEGATION_OR_DOUBT.search(whole) else whole
