"""The words of chest X-ray reports that decide for the rules and for the guards.

    facts("No large left effusion.")    Counter({"no": 1, "large": 1, "left": 1, "effusion": 1})

A fact is a word that an image can confirm or refute: a finding, a side, a size, a negation, a
doubt. A rule that would lose a fact is not applied (rules.py), and an answer that loses one is
refused (guards.py).

Names in capitals that hold a string are pieces, of which other files build longer patterns; those
that hold a compiled pattern can be searched for. All are meant to be matched without regard to
upper and lower case.
"""
import re
from collections import Counter


def either(*alternatives):
    """One of several pieces: either("small", "tiny|trace") is "(?:small|tiny|trace)"."""
    return "(?:" + "|".join(alternatives) + ")"


def pattern(*pieces):
    """Compile pieces that follow each other; upper and lower case are alike."""
    return re.compile("".join(pieces), re.IGNORECASE)


# ---- facts ----

# What may have been put into a patient. After "removal of", these words are no finding.
DEVICE = either(
    r"catheter|\blines?\b|\btubes?\b|picc|pacemaker|\bleads?\b|wires?\b|clips?\b|device",
    r"\bport\b|valve|\bstents?\b|prosthe|sternotom|hardware|tracheostom|defibrillat|\bicd\b",
    r"stimulator|\bfilters?\b|\bsutures?\b|\bscrews?\b|\bplates?\b")

# What says that something is to be seen, or is normal. Most are beginnings of words: "opaci" stands
# for opacity, opacities and opacification. A sentence with one of them is cut, never dropped.
FINDING_WORD = either(
    # the lungs
    "opaci|consolidat|edema|atelecta|pneumonia|infiltrat|emphysem|fibros|scar|congesti|engorge",
    r"nodul|\bmass|granuloma|cavit|lesion|densit|lucen|airspace|interstitial|bronch|markings",
    r"collapse|inflat|expan[ds]|aerated|volumes|metasta|adenopathy|\bnodes?\b|\bcopd\b|\bcyst",
    r"\bbull(?:a|ous)|\bhaz[ey]|crowding",
    # the pleura, and air where none belongs
    r"effusion|pneumothora|pleural|thicken|blunt|\bfluid|free air",
    # the heart and the great vessels
    "cardiomegaly|enlarge|widen|tortu|prominen|calcif|ectasia|ectatic|unfold|atheroscl",
    # bones, diaphragm, position
    "fracture|deformit|irregularit|wedg|scolio|kypho|curvature|degenerat|spondyl|osteop|arthr",
    "scleros|sclerot|hernia|elevat|eventrat|flatten|shift|deviat",
    # what an operation has left
    r"postsurgical|postoperative|surgical change|\bfusion|\bcabg\b|bypass|resect|ectomy\b",
    # devices
    DEVICE,
    # nothing wrong: a finding as well
    "clear|normal|unremarkable|intact")
FINDING = pattern(FINDING_WORD)

# How bad a finding is, in words. Of two degrees in one sentence, the one of today counts.
SEVERITY = either(
    "small|tiny|trace|large", "minimal(?:ly)?", "mild(?:ly)?", "moderate(?:ly)?", "severe(?:ly)?",
    "massive(?:ly)?", "extensive(?:ly)?", "marked(?:ly)?")

# How large a finding is, in numbers: "5 mm", "1.5 x 2 cm".
SIZE = r"\b\d+(?:\.\d+)?(?: ?x ?\d+(?:\.\d+)?){0,2} ?[cm]m\b"

# On which side, and in which part of a lung. A finding that changes its side is another finding.
SIDE = r"(?:left|right|bilateral(?:ly)?|both|bibas(?:ilar|al))"
PLACE = "(?:upper|lower|mid(?:dle)?|apex|apical|apices|bas(?:e|es|al|ilar)|lingula)"

# What turns a finding into its contrary. A rule may never cut it away from its finding.
NEGATION_WORD = (r"\b(?:no|not|without|none|never|neither|nor|cannot|resolved|cleared|gone|absent|"
                 r"absence|negative)\b")
NEGATION = pattern(NEGATION_WORD)

# What makes a finding uncertain: "possible pneumonia" must not become "pneumonia".
DOUBT = either(
    "possibl[ey]|probabl[ey]|likely|unlikely|may|might|could",
    r"suspect\w*|suspicious|concern(?:ing)?|question\w*|suggest\w*|exclud\w*",
    "versus|vs|consider(?:ed)?|equivocal")

FACT = pattern(either(
    FINDING_WORD, SIZE, NEGATION_WORD, rf"\b(?:{SEVERITY}|{SIDE}|{DOUBT}|{PLACE})\b"))


def facts(text):
    """The facts in `text`, as a Counter of words in lower case: what no rule may lose."""
    return Counter(match[0].lower() for match in FACT.finditer(text))


# ---- dates, times, earlier studies ----

# What de-identification has left of a date, a name or a place.
BLANK = "___"

# A calendar date. "May 5.5 cm" and "may 2 cm" are no dates: a measure follows.
MONTH = either(
    "Jan(?:uary)?", "Feb(?:ruary)?", "Mar(?:ch)?", "Apr(?:il)?", "May", "June?", "July?",
    "Aug(?:ust)?", "Sept?(?:ember)?", "Oct(?:ober)?", "Nov(?:ember)?", "Dec(?:ember)?")
DATE = either(
    r"\d{1,2}/\d{1,2}/\d{2,4}",                                             # 3/4/2150
    r"\d{4}-\d{2}-\d{2}",                                                   # 2150-03-04
    rf"\b{MONTH}\.? \d{{1,2}}(?:, ?\d{{4}})?(?![\d.]| ?[cm]m\b)")           # March 4, 2150

# A time of day: "14:05", "2:30:00 p.m.", "3 PM".
AM_PM = r" ?[AaPp]\.?[Mm]\b\.?"
TIME = either(rf"\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?:{AM_PM})?(?: hours| hrs)?", rf"\d{{1,2}}{AM_PM}")

# A word that can name an earlier study by itself: "since the prior", "compared to ___".
EARLIER = either(
    "prior|previous|earlier|preceding|last|most recent|recent|comparison|outside|old|remote",
    "baseline|study|exam|radiograph|film", BLANK)

# An earlier study by whatever name: "the prior chest radiograph of ___ at 14:05". It begins with a
# word that can stand for a study, and up to eight words that describe it may follow.
STUDY = rf"{EARLIER}(?!\w)|examination|radiographs|films|studies|exams|chest|portable|CT"
FIRST_OF_STUDY = either(STUDY, "priors?|x-ray|multiple|day|same", DATE, TIME)
MORE_OF_STUDY = either(
    STUDY, "x-rays?|image|scan", "of|from|dated|on|performed|obtained|at|the", DATE, TIME)
EARLIER_STUDY = rf"(?:the |a |an |those |that )?{FIRST_OF_STUDY}(?: {MORE_OF_STUDY}){{0,8}}"


# ---- change ----

# Up to four words about how much has changed, or how surely: "no {significant interval }change".
HOW_MUCH = "(?:" + either(
    "significant|relevant|interval|major|appreciable|substantial|important|definite|notable",
    "both|all|short-interval|radiographic|essentially|largely|grossly|relatively|overall|otherwise",
    "(?:not )?(?:significantly|substantially|appreciably)",
    "not|slightly|markedly|mildly|moderately|somewhat|quite|very|further") + " ){0,4}"

# Nothing has changed. "Changed" is among them for "not significantly changed".
SAME = HOW_MUCH + "(?:unchanged|stable|similar|unaltered|changed|as before|the same)"

# Something has changed, and in which direction.
CHANGED = "(?:increased|decreased|improved|worsened|progressed|enlarged|grown|diminished)"
COMPARATIVE = "(?:larger|bigger|smaller|worse|better)"

# Against what: "as compared to", "in comparison with".
COMPARED_TO = (
    "(?:as |when )?"
    "(?:compared|in comparison|comparison(?: is made)?|relative|comparing|allowing for)"
    " (?:to|with)")

# Up to three phrases that may follow a word of change: "unchanged {since ___ in size and extent}".
IN_COMPARISON = "(?: " + either(
    f"(?:{COMPARED_TO}|from|since|to|as on|over) {EARLIER_STUDY}",
    "(?:(?:in )?(?:the )?position|in (?:the )?(?:appearance|size|extent|severity|degree|interval))"
    "(?: and (?:position|appearance|size|extent))?",
    "as before|overall") + "){0,3}"

# The verb before a word of change, and the place where a clause ends.
VERB = ("(?:(?:also|likewise|again|otherwise) )?"
        "(?:is|are|remains?|appears?|has been|have been|has|have)(?: (?:also|likewise|again))?")
CLAUSE_END = "(?=[,;.]|$)"
# ", which is new{,} may be": the comma that closes a remark, before the verb of the sentence
CLAUSE_END_OR_COMMA = (
    rf"(?:,(?= (?:is|are|was|were|has|have|may|might|could|likely|probably)\b)|{CLAUSE_END})")

# Phrases that hold a fact by the letter ("not", "markedly", "enlarged") but speak of change alone.
# Rules about change may take them away.
MERE_CHANGE = pattern(either(
    rf"\b(?:stable|unchanged) (?:to|or) {SEVERITY} {CHANGED}\b",
    rf"\b(?:no|not|little|without|{SEVERITY}) {HOW_MUCH}changed?s?\b",
    rf"\bnot {HOW_MUCH}(?!enlarged){CHANGED}\b",        # "is not enlarged" speaks of today
    rf"\b(?:has|have) {HOW_MUCH}{CHANGED}\b",
    rf"\b{SAME}\b"))
