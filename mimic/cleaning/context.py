"""Cleaning rules about what a report says besides the image: views, people, history, advice.

Each rule takes one clause and returns what is left of it, or "". What a clause says of the exam, of
those who made or heard of it, of the patient's past or of plans goes; what it says of the image
stays. All examples are invented.
"""
import re

from mimic.cleaning.sentences import ended, without_dangling
from mimic.cleaning.words import (
    BLANK, FINDING, FINDING_WORD, NEGATION, SEVERITY, either, facts, pattern)

# ---- cutting a clause out of a sentence ----

# Where a clause can begin, if no fact stands between this place and what is cut.
CLAUSE_STARTS = (",", ";", " and ", " which ", " for which ", " - ")

# What a message is about: "with Dr. ___ regarding the left pneumothorax"
ABOUT = pattern(r"^[ .,_]*(?:and [ _]+)?(?:of|about|regarding|concerning|that) (?:the |an? )?")
BY_PHONE = pattern(r",? (?:by|via|over|on) (?:the )?(?:tele)?phone\b[^,;.]*")

# A verb that goes on with the words before the cut: "Pneumonia, [which ...], has resolved".
VERB_FOLLOWS = re.compile(r"(?:has|have|had|is|are|was|were)\b")


def cut_clause(sentence, cause):
    """Cut out the clause in which the pattern `cause` matches, up to the next comma.

    Nothing is left of a sentence that says no more than that.

    >>> cut_clause("Right nodule, CT is advised, no effusion.", ADVICE)
    'Right nodule, no effusion.'
    """
    match = cause.search(sentence)
    if match is None:
        return sentence
    head = sentence[:match.start()]
    tail = sentence[match.end():]

    # before the match: back to where its clause begins, unless that would take facts along
    start = max(0, *(head.rfind(mark) for mark in CLAUSE_STARTS))
    if not facts(head[start:]):
        head = head[:start]

    # after the match: what stands before the next comma goes too
    gone, _, rest = tail.partition(", ")
    _, colon, message = gone.partition(":")
    is_time = re.match(r"\d\d", message)                # the colon of "at 14:05"
    if colon and facts(message) and not is_time:
        # "Discussed with Dr. ___: large pneumothorax." keeps the message
        rest = f"{message}, {rest}" if rest else message
    elif ABOUT.match(gone) and facts(gone):
        # "discussed with Dr. ___ of pneumothorax by telephone": so does this
        message = BY_PHONE.sub("", ABOUT.sub("", gone))
        rest = f"{message}, {rest}" if rest else message
    elif NEGATION.search(gone):
        return sentence                 # "The pneumothorax reported by ___ is not seen."

    # join the two remains, where they say anything
    head = without_dangling(head) if facts(head) else ""
    if not facts(rest):
        return ended(head)
    if not head:
        return ended(re.sub(r"^ ?and ", "", rest))
    if VERB_FOLLOWS.match(rest):
        return f"{head} {rest}"
    return f"{head}, {rest}"


# ---- views ----

# Any number of words that name an exam: "PA and lateral views of the chest".
VIEW_WORD = either(
    r"a|an|the|of|and|or|in|single|one|two|three|\d",
    "frontal|lateral|portable|upright|supine|semi-?erect|semi-?upright|erect|AP|PA|bedside|digital",
    "chest|thorax|views?|radiographs?|radiography|x-?rays?|films?|images?|exam|examination|study",
    "projections?|position")
VIEW = rf"(?:{VIEW_WORD}\b[ ,&/]*)+"

# "PORTABLE AP CHEST:", "AP chest compared to ___:". At least one of the words must mean an image.
VIEW_HEADER = pattern(
    r"^(?=[^:]*\b(?:chest|views?|radiographs?|AP|PA|x-?rays?)\b)", VIEW,
    f"(?:(?:as )?compared (?:to|with) {BLANK}|{BLANK})? ?: ?")

# "PA and lateral views of the chest were obtained on ___." and nothing else
VIEW_ALONE = pattern(
    f"^{VIEW}", r"(?:(?:was|were|is|are|has been|have been)\b ?)?",
    r"(?:(?:obtained|performed|provided|submitted|presented|acquired|available|reviewed|taken|",
    r"for review|for interpretation)\b ?)*",
    r"(?:(?:on|at|dated) [^,;]*)?[.:]?$")

# "Frontal view of the chest shows" before a finding
VIEW_SHOWS = pattern(
    r"^(?=.*?\b(?:views?|radiographs?|x-?rays?|films?|images?|chest)\b)", VIEW,
    r"(?:demonstrates?|shows?|reveals?)(?: that)? (?=\S)")


def drop_views(clause):
    """The model is given one image; how it was taken is no finding.

    >>> drop_views("PORTABLE AP CHEST: Lungs are clear.")
    'Lungs are clear.'
    >>> drop_views("PA and lateral views of the chest were obtained.")
    ''
    >>> drop_views("Frontal view of the chest shows a small effusion.")
    'a small effusion.'
    """
    if VIEW_ALONE.match(clause):
        return ""
    return VIEW_SHOWS.sub("", VIEW_HEADER.sub("", clause))


# What can only be seen on a second image.
LATERAL = pattern(
    r"\b(?:on|in) (?:the )?lateral (?:view|projection|radiograph|film|image)",
    "|seen only on (?:the )?lateral")


def drop_lateral_remarks(clause):
    """With --drop-lateral: the model sees the frontal view alone.

    >>> drop_lateral_remarks("On the lateral view there is blunting.")
    ''
    """
    if LATERAL.search(clause):
        return ""
    return clause


# ---- people who were told ----

LISTENER = "(?:with|to|by|at|via|over) (?:the |a )?" + either(
    rf"Drs?\b|{BLANK}|team|referring|ordering|physician|nurse|resident|tele|phone|pager|e-?mail")

# "was discussed with Dr. ___", "were phoned to the team", "has been notified". What was told
# may stand in the middle, "reviewed the large nodule with Dr. ___": the guard of the rule keeps it.
TOLD = pattern(
    r"\b(?:was |were |is |are |has been |have been )?",
    either(
        "(?:discussed|communicated|conveyed|phoned|telephoned|paged|relayed|reported|called|"
        rf"e-?mailed|reviewed)\b[^.;]{{0,100}}?\b{LISTENER}",
        r"(?:notified|informed|made aware)\b"))

# "Dr. ___ was notified of the" before a finding
NOTIFIED_OF = pattern(
    r"^[^,;:]{0,60}\b(?:was|were|is) (?:notified|informed|made aware|called|paged|told|alerted) ",
    "(?:of|about|that|regarding) (?:the )?")

# Signatures and the like: the whole clause goes.
SIGNED = pattern(either(
    "^(?:dictated|transcribed|electronically signed|approved|signed|edited|interpreted|reviewed) "
    r"(?:by|on)\b",
    "personally reviewed|attending radiologist|^please (?:see|refer)|voice recognition",
    r"^Dr\. "))


def drop_communication(clause):
    """Who told whom, and who signed, goes; what they were told about stays.

    >>> drop_communication("Findings were phoned to Dr. ___ at 14:05.")
    ''
    >>> drop_communication("Large left pneumothorax, discussed with Dr. ___ at 2 p.m.")
    'Large left pneumothorax.'
    >>> drop_communication("Dr. ___ was notified of the large pneumothorax by phone.")
    'large pneumothorax.'
    """
    message = NOTIFIED_OF.sub("", clause)
    if message != clause and facts(message):
        return BY_PHONE.sub("", message)
    if SIGNED.search(clause):
        return ""
    return cut_clause(clause, TOLD)


# ---- the patient and the past ----

HISTORY_HEADER = pattern(r"^(?:clinical )?(?:history|indication|reason for \w+) ?:")

# "___-year-old ", "This 72 y/o", "72F": at the beginning of a clause. "14F chest tube" is a size.
AGE = pattern(
    "^(?:(?:this|the|an?) )?",
    either(
        rf"(?:{BLANK}|\d{{1,3}})[ -]?(?:year|yr|y)s?[ /-]?(?:old|o[MF]?)\b",
        rf"{BLANK}[MF]\b",
        r"\d{2,3}[MF](?= (?:with|who|presenting|here)\b|[,.]|$)"),
    "[ ,]*")

# What the image was made for, to the end of the clause: a question is no finding.
QUESTION = pattern(
    r"[ ,;]*(?:\b(?:to|for|here|please|now|and) ){0,4}\b",
    "(?:evaluat|assess|rule out|r/o|query|question of).*")

# Where a statement about the patient begins: "man {with} cough{, now with a} left effusion". Unlike
# the others it minds capitals. It also matches, empty, at the beginning of a text.
STATEMENT_START = re.compile(
    "^(?:with |who )?(?:an? )?|, (?:now )?(?:with )?(?:an? )?| (?:with|has|had|who) (?:an? )?")

# "Given history of cancer, ": what follows "of", up to the next comma, is called `what`.
HISTORY_OF = pattern(
    r",? ?(?:\b",
    either(
        "there is|in|given|with|for|has|had|and|the|an?|this|her|his|patient",
        "known|remote|prior|past|clinical|medical|status post|s/p"),
    r" ){0,8}\bhistory of (?P<what>[^,;.]*)(?:, ?)?")
OF_TODAY = pattern(rf"\b(?:and|with|now|but)\b.*{FINDING_WORD}")

# "The patient has a " before a finding; not "has been" or "has had", which tell of the past.
PATIENT_HAS = pattern("^(?:the )?patient (?:is|has|presents with)(?! been| had) (?:an? )?")
PATIENT = pattern(r"^(?:the )?patient\b")
ROTATED = pattern(
    rf"(?:\b{SEVERITY} )?\brotated(?: {SEVERITY})?",
    "(?: to(?:wards?)? (?:the |his |her )?(?:left|right))?")


def drop_history(clause):
    """Who the patient is, and what was once the matter, goes; what is seen today stays.

    >>> drop_history("___-year-old man with cough.")
    ''
    >>> drop_history("Given history of cancer, the right nodule is suspicious.")
    'the right nodule is suspicious.'
    >>> drop_history("The patient has severe cardiomegaly.")
    'severe cardiomegaly.'
    """
    if HISTORY_HEADER.search(clause):
        return ""
    clause = drop_age(clause)
    if HISTORY_OF.search(clause):
        return drop_history_of(clause)
    if not PATIENT.match(clause):
        return clause
    # a patient who is rotated to the left has no finding on the left
    if facts(ROTATED.sub("", clause)):
        return PATIENT_HAS.sub("", clause)
    return ""


def drop_age(clause):
    """Of a clause that begins with an age, the statement with the first finding.

    >>> drop_age("72-year-old man with cough, now with an effusion, evaluate for change.")
    'effusion.'
    """
    age = AGE.match(clause)
    if age is None:
        return clause
    rest = QUESTION.sub("", clause[age.end():])
    finding = FINDING.search(rest)
    if finding is None or "?" in rest:
        return ""
    starts = STATEMENT_START.finditer(rest, 0, finding.start() + 1)
    return ended(rest[max(start.end() for start in starts):])


def drop_history_of(clause):
    """A clause that holds "history of ...": that phrase goes.

    >>> drop_history_of("Pacemaker in this patient with history of CHF, no edema.")
    'Pacemaker no edema.'
    """
    history = HISTORY_OF.search(clause)
    # "history of CHF with edema": is the edema of the past or of today? Words cannot tell.
    if OF_TODAY.search(history["what"]):
        return clause
    head = clause[:history.start()]
    rest = clause[history.end():]
    head = without_dangling(head)
    if head:
        rest = f"{head} {rest}"
    if not facts(rest):
        return ""
    return ended(re.sub(r"^now (?:with )?", "", rest))


# ---- advice ----

ADVICE = pattern(either(
    # what should be done
    r"\b(?:(?:is|are|be|would be|may be|could be) )?(?:advised|recommended|suggested for)\b",
    r"\brecommend\b|\brecommendations?\b",
    r"\b(?:should|could|may|can) be (?:obtained|performed|repeated|followed)\b",
    r"\bwould be helpful\b",
    r"\bsuggest (?:a |an )?(?:CT|follow|repeat|further)",
    r"\bconsider (?:an? |chest |dedicated |repeat |additional |further |rib |decubitus ){0,3}"
    "(?:CT|follow|repeat|ultrasound|MRI|views|series|imaging)",
    r"\b(?:consider |could be |can be |may be )?further evaluat(?:ion|ed) with\b",
    r"\bwould benefit from\b",
    # when and what for
    r"\bif (?:clinically )?(?:indicated|warranted|desired|needed)\b",
    r"\bif (?:there is )?(?:high |continued )?clinical concern\b",
    r"\bif (?:no )?(?:prior|comparison) \w+ (?:are|exist)\b",
    r"(?:^| however,? )(?:in )?the absence of (?:any )?(?:prior|comparison)\b",
    r"\bfor further (?:evaluation|assessment|characterization)\b",
    r"\bfollow-?up (?:to|until|imaging|radiographs?|CT)\b",
    # "Correlate clinically."
    r"^(?:correlat\w+|clinical correlation)"))


def drop_advice(clause):
    """What should be done next is in no image.

    >>> drop_advice("CT is advised.")
    ''
    >>> drop_advice("Right upper lobe nodule, for which CT is recommended.")
    'Right upper lobe nodule.'
    >>> drop_advice("If clinical concern persists, consider dedicated rib series.")
    ''
    >>> drop_advice("Opacity, however the absence of comparison exam, CT is advised.")
    'Opacity.'
    """
    left = cut_clause(clause, ADVICE)
    # "if needed, consider CT": one cut may leave the next
    return left if left == clause else drop_advice(left)
