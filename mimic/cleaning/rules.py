"""Report text -> what one frontal image can show, by rules in a fixed order; nothing is sent anywhere.

    text, dropped = clean("1. As compared to ___, there is a small left\\n effusion.  2. CT is advised.")
    "There is a small left effusion."           Counter({"advice": 1})

Each rule is a small function on the text or on one clause, with an example that is also a test. A rule may drop a clause
that only speaks of other images, people or plans, or cut one. Where it would take along a finding, a side, a size, a
negation or a "possible", the clause is left as it is. All examples are invented.
"""
import re
from collections import Counter

from mimic.cleaning.change import HARMLESS, affirmed, change_words, comparisons, dates, no_new, now, removals
from mimic.cleaning.words import BLANK, DENIES, DOUBT, FINDING, I, ended, facts, has_words, sentences, tidy

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


# ---- rules on one clause: what is left of it, or "" ----

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


LATERAL = re.compile(r"\b(?:on|in) (?:the )?lateral (?:view|projection|radiograph|film|image)|seen only on (?:the )?lateral", I)


def lateral_remarks(sentence):
    """
    >>> lateral_remarks("On the lateral view there is blunting.")
    ''
    """
    return "" if LATERAL.search(sentence) else sentence


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
