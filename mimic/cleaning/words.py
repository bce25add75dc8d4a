"""Words of chest X-ray reports that the cleaning rules and the guards share: what is a finding, a side, a size, a doubt.

    facts("No large left effusion.")        Counter({"no": 1, "large": 1, "left": 1, "effusion": 1})

A rule that would lose one of these is not applied (mimic/cleaning/rules.py); an answer that loses one is refused (mimic/cleaning/guards.py).
"""
import re
from collections import Counter

I = re.IGNORECASE
# words that say something is (or is not) to be seen: a sentence with one of them is cut, not dropped
DEVICES = (r"catheter|\blines?\b|\btubes?\b|picc|pacemaker|\bleads?\b|wires?\b|clips?\b|device|\bport\b|valve|\bstents?\b|"
           r"prosthe|sternotom|hardware")
FINDING = re.compile(
    r"effusion|pneumothora|opaci|consolidat|edema|cardiomegaly|enlarge|nodul|\bmass|atelecta|pneumonia|infiltrat|fracture|"
    rf"{DEVICES}|hernia|emphysem|fibros|scar|thicken|congesti|calcif|granuloma|cavit|lesion|densit|lucen|deformit|scolio|"
    r"kypho|degenerat|elevat|inflat|volumes|clear|normal|tortu|prominen|engorge|widen|shift|collapse|bronch|markings|pleural|"
    r"airspace|free air|interstitial|metasta|adenopathy", I)
SEVERITY = (r"(?:small|tiny|trace|minimal(?:ly)?|mild(?:ly)?|moderate(?:ly)?|large|severe(?:ly)?|massive(?:ly)?|extensive(?:ly)?|"
            r"marked(?:ly)?)")
SIZE = r"\b\d+(?:\.\d+)?(?: ?x ?\d+(?:\.\d+)?){0,2} ?[cm]m\b"
SIDE = r"(?:left|right|bilateral(?:ly)?|both|bibas(?:ilar|al))"
DENIES = re.compile(r"\b(?:no|not|without|none|never|neither|nor|cannot|resolved|cleared|gone|absent|absence|negative)\b", I)
DOUBT = (r"(?:possibl[ey]|probabl[ey]|likely|unlikely|may|might|could|suspect\w*|suspicious|concern(?:ing)?|question\w*|"
         r"suggest\w*|exclud\w*|versus|vs|consider(?:ed)?|equivocal)")
PLACE = r"(?:upper|lower|mid(?:dle)?|apex|apical|apices|bas(?:e|es|al|ilar)|lingula)"
FACT = re.compile(rf"{FINDING.pattern}|{SIZE}|{DENIES.pattern}|\b(?:{SEVERITY}|{SIDE}|{DOUBT}|{PLACE})\b", I)
BLANK = "___"
DATE = (r"(?:\d{1,2}/\d{1,2}/\d{2,4}|\d{4}-\d{2}-\d{2}|"
        r"\b(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
        r"Nov(?:ember)?|Dec(?:ember)?)\.? \d{1,2}(?:, ?\d{4})?(?![\d.]| ?[cm]m\b))")
TIME = r"(?:\d{1,2}:\d{2}(?::\d{2})?(?: ?[AaPp]\.?[Mm]\b\.?)?(?: hours| hrs)?|\d{1,2} ?[AaPp]\.?[Mm]\b\.?)"
EARLIER = (r"(?:prior|previous|earlier|preceding|last|most recent|recent|comparison|outside|old|remote|baseline|study|exam|"
           rf"radiograph|film|{BLANK})")
# an earlier study by whatever name: "the prior chest radiograph of ___"
PRIOR = (rf"(?:the |a |an |those |that )?(?:{EARLIER}(?!\w)|examination|radiographs|films|studies|exams|priors?|chest|portable|"
         rf"CT|x-ray|multiple|day|same|{DATE}|{TIME})(?: (?:{EARLIER}(?!\w)|examination|radiographs|films|studies|exams|chest|"
         rf"portable|CT|x-rays?|image|scan|of|from|dated|on|performed|obtained|at|the|{DATE}|{TIME}))" + "{0,8}")
# words of change
MUCH = (r"(?:significant|relevant|interval|major|appreciable|substantial|important|definite|notable|short-interval|radiographic|"
        r"essentially|largely|grossly|relatively|overall|otherwise|(?:not )?(?:significantly|substantially|"
        r"appreciably)|not|slightly|markedly|mildly|moderately|somewhat|quite|very|further)")
SAME = rf"(?:{MUCH} ){{0,4}}(?:unchanged|stable|similar|unaltered|changed|as before|the same)"
COMPARED = rf"(?:as |when )?(?:compared|in comparison|comparison is made|relative|comparing|allowing for) (?:to|with)"
THAN = (rf"(?: (?:(?:{COMPARED}|from|since|to|as on|over) {PRIOR}|in (?:the )?(?:position|appearance|size|"
        r"extent|severity|degree|interval)(?: and (?:position|appearance|size|extent))?|as before|overall)){0,3}")
END = r"(?=[,;.]|$)"
IS = r"(?:is|are|remains?|appears?|has been|have been|has|have)"
WORSE = r"(?:increased|decreased|improved|worsened|progressed|enlarged|grown|diminished)"
OTHER = "(?:larger|bigger|smaller|worse|better)"
HARMLESS = re.compile(rf"\b(?:stable|unchanged) to {SEVERITY} {WORSE}\b|"
                      rf"\b(?:no|not|little|without|{SEVERITY}) (?:{MUCH} ){{0,4}}changed?s?\b|"
                      rf"\bnot (?:{MUCH} ){{0,4}}(?!enlarged){WORSE}\b|"
                      rf"\b(?:has|have) (?:{MUCH} ){{0,4}}{WORSE}\b|\b{SAME}\b", I)


def facts(text):
    """The words of `text` that no rule may lose."""
    return Counter(found[0].lower() for found in FACT.finditer(text))
