"""What a report says about itself and not about the image: views, people who were told, the patient's past, advice."""
import re

from mimic.cleaning.sentences import ended
from mimic.cleaning.words import BLANK, DENIES, FINDING, I, facts

DANGLING = re.compile(r"(?:[ ,;]|\b(?:and|for which|which|for|this|these|was|were|is|are|has been|have been)(?= |$)){1,6}$", I)


def cut_clause(sentence, pattern):
    """Cut the clause that holds `pattern`, up to the next comma; nothing is left of a sentence that says no more than that."""
    found = pattern.search(sentence)
    if not found:
        return sentence
    head, tail = sentence[:found.start()], sentence[found.end():]
    boundary = max(head.rfind(mark) for mark in (",", ";", " and ", " which ", " for which ", " - "))
    if not facts(head[max(boundary, 0):]):
        head = head[:max(boundary, 0)]
    gone, _, rest = tail.partition(", ")
    _, colon, told = gone.partition(":")        # "Discussed with Dr. ___: large pneumothorax."
    if colon and facts(told) and not re.match(r"\d\d", told):
        rest = told + ", " * bool(rest) + rest
    elif DENIES.search(gone):
        return sentence
    head = re.sub(DANGLING, "", head) if facts(head) else ""
    if not facts(rest):
        return ended(head)
    joint = " " if re.match(r"(?:has|have|had|is|are|was|were)\b", rest) else ", "
    return head + joint + rest if head else ended(re.sub(r"^ ?and ", "", rest))


VIEW = (r"(?:(?:a|an|the|of|and|or|in|single|one|two|three|frontal|lateral|portable|upright|supine|semi-?erect|semi-?upright|"
        r"erect|AP|PA|bedside|digital|chest|thorax|views?|radiographs?|radiography|x-?rays?|films?|images?|exam|"
        r"examination|study|projections?|position)\b[ ,&/]*)+")
VIEW_PREFIX = re.compile(rf"^(?=[^:]*\b(?:chest|views?|radiographs?|AP|PA|x-?rays?)\b){VIEW}"
                         rf"(?:(?:as )?compared (?:to|with) {BLANK}|{BLANK})? ?: ?", I)
VIEW_ONLY = re.compile(rf"^{VIEW}(?:(?:was|were|is|are|has been|have been)\b ?)?(?:(?:obtained|performed|provided|submitted|"
                       r"presented|acquired|available|reviewed|taken|for review|for interpretation)\b ?)*"
                       r"(?:(?:on|at|dated) [^,;]*)?[.:]?$", I)
VIEW_SHOWS = re.compile(rf"^(?=.*?\b(?:views?|radiographs?|x-?rays?|films?|images?|chest)\b){VIEW}"
                        r"(?:demonstrates?|shows?|reveals?)(?: that)? (?=\S)", I)


def views(sentence):
    """
    >>> views("PORTABLE AP CHEST: Lungs are clear.")
    'Lungs are clear.'
    >>> views("PA and lateral views of the chest were obtained.")
    ''
    >>> views("Frontal view of the chest shows a small effusion.")
    'a small effusion.'
    """
    if VIEW_ONLY.match(sentence):
        return ""
    return VIEW_SHOWS.sub("", VIEW_PREFIX.sub("", sentence))


TO_SOMEONE = (rf"(?:with|to|by|at|via|over) (?:the |a )?(?:Drs?\b|{BLANK}|team|referring|ordering|physician|nurse|"
              rf"resident|tele|phone|pager|e-?mail)")
TOLD = re.compile(rf"\b(?:was |were |is |are |has been |have been )?(?:(?:discussed|communicated|conveyed|phoned|"
                  rf"telephoned|paged|relayed|reported|called|e-?mailed|reviewed)\b[^.;]{{0,100}}?\b{TO_SOMEONE}|"
                  r"(?:notified|informed|made aware)\b)", I)
NOTIFIED = re.compile(r"^[^,;:]{0,60}\b(?:was|were|is) (?:notified|informed|made aware|called|paged|told|alerted) "
                      r"(?:of|about|that|regarding) (?:the )?", I)
BY_PHONE = re.compile(r",? (?:by|via|over|on) (?:the )?(?:tele)?phone\b[^,;.]*", I)
SIGNED = re.compile(r"^(?:dictated|transcribed|electronically signed|approved|signed|edited|interpreted|reviewed) (?:by|on)\b|"
                    r"personally reviewed|attending radiologist|^please (?:see|refer)|voice recognition|^Dr\. ", I)


def communication(sentence):
    """
    >>> communication("Findings were phoned to Dr. ___ at 14:05.")
    ''
    >>> communication("Large left pneumothorax, discussed with Dr. ___ at 2 p.m.")
    'Large left pneumothorax.'
    >>> communication("Dr. ___ was notified of the large pneumothorax by phone.")
    'large pneumothorax.'
    """
    told = NOTIFIED.sub("", sentence)
    if told != sentence and facts(told):
        return BY_PHONE.sub("", told)
    return "" if SIGNED.search(sentence) else cut_clause(sentence, TOLD)


AGED = re.compile(rf"^(?:(?:this|the|an?) )?(?:(?:{BLANK}|\d{{1,3}})[ -]?(?:year|yr|y)s?[ /-]?(?:old|o[MF]?)\b|{BLANK}[MF]\b|"
                  r"\d{2,3}[MF](?= (?:with|who|presenting|here)\b|[,.]|$))[ ,]*", I)
LABEL = re.compile(r"^(?:clinical )?(?:history|indication|reason for \w+) ?:", I)
PATIENT = re.compile(r"^(?:the )?patient (?:is|has|presents with)(?! been| had) (?:an? )?", I)
ASKED = re.compile(r"[ ,;]*(?:\b(?:to|for|here|please|now|and) ){0,4}\b(?:evaluat|assess|rule out|r/o|query|question of).*", I)
STARTS = re.compile(r"^(?:with |who )?(?:an? )?|, (?:now )?(?:with )?(?:an? )?| (?:with|has|had|who) (?:an? )?")
HISTORY = re.compile(r",? ?(?:\b(?:there is|in|given|with|for|has|had|and|the|an?|this|her|his|patient|known|remote|prior|past|"
                     r"clinical|medical|status post|s/p) ){0,8}\bhistory of (?P<what>[^,;.]*)(?:, ?)?", I)


def history(sentence):
    """What the patient is or was; what is found in the same sentence stays.

    >>> history("___-year-old man with cough.")
    ''
    >>> history("Given history of cancer, the right nodule is suspicious.")
    'the right nodule is suspicious.'
    >>> history("The patient has severe cardiomegaly.")
    'severe cardiomegaly.'
    """
    if LABEL.search(sentence):
        return ""
    aged = AGED.match(sentence)
    if aged:                                        # "72-year-old man with cough, now with an effusion, evaluate for change"
        rest = ASKED.sub("", sentence[aged.end():])
        named = FINDING.search(rest)
        if not named or "?" in rest:
            return ""
        sentence = ended(rest[max(part.end() for part in STARTS.finditer(rest, 0, named.start() + 1)):])
    past = HISTORY.search(sentence)
    if past:
        if re.search(rf"\b(?:and|with|now|but)\b.*(?:{FINDING.pattern})", past["what"], I):
            return sentence             # of the past or of today? It cannot tell
        rest = sentence[:past.start()] + " " * (0 < past.start()) + sentence[past.end():]
        return ended(re.sub(r"^now (?:with )?", "", rest)) if facts(rest) else ""
    if re.match(r"(?:the )?patient\b", sentence, I):
        return PATIENT.sub("", sentence) if facts(re.sub(r"\brotated to the (?:left|right)", "", sentence)) else ""
    return sentence


ADVICE = re.compile(
    r"\b(?:(?:is|are|be|would be|may be|could be) )?(?:advised|recommended|suggested for)\b|\brecommend\b|\brecommendations?\b|"
    r"\b(?:should|could|may|can) be (?:obtained|performed|repeated|followed)\b|\bif (?:clinically )?(?:indicated|warranted|"
    r"desired|needed)\b|\bwould be helpful\b|\bsuggest (?:a |an )?(?:CT|follow|repeat|further)|\bconsider (?:a |an )?(?:chest |"
    r"dedicated |repeat )?(?:CT|"
    r"follow|repeat|ultrasound|MRI)|\bfor further (?:evaluation|assessment|characterization)\b|^(?:correlat\w+|"
    r"clinical correlation)|\bfollow-?up (?:to|until|imaging|radiographs?|CT)\b", I)


def advice(sentence):
    """
    >>> advice("CT is advised.")
    ''
    >>> advice("Right upper lobe nodule, for which CT is recommended.")
    'Right upper lobe nodule.'
    """
    return cut_clause(sentence, ADVICE)


LATERAL = re.compile(r"\b(?:on|in) (?:the )?lateral (?:view|projection|radiograph|film|image)|seen only on (?:the )?lateral", I)


def lateral_remarks(sentence):
    """
    >>> lateral_remarks("On the lateral view there is blunting.")
    ''
    """
    return "" if LATERAL.search(sentence) else sentence
