"""Report text -> what one frontal image can show, by rules in a fixed order; nothing is sent anywhere.

    text, dropped = clean("1. As compared to ___, there is a small left\\n effusion.  2. CT is advised.")
    "There is a small left effusion."           Counter({"advice": 1})

Each rule is a small function on the text or on one sentence, with an example that is also a test. A rule may drop a sentence
that only speaks of other images, people or plans, or cut such a clause; it never touches a negation, a side, a size or a
"possible". Sentences where it cannot tell are left as they are. All examples are invented.
"""
import re
from collections import Counter

I = re.IGNORECASE
# words that say something is (or is not) to be seen: a sentence with one of them is cut, not dropped
FINDING = re.compile(
    r"effusion|pneumothora|opaci|consolidat|edema|cardiomegaly|enlarge|nodul|\bmass|atelecta|pneumonia|infiltrat|fracture|"
    r"catheter|\blines?\b|\btubes?\b|picc|pacemaker|\bleads?\b|wires?\b|clips?\b|device|\bport\b|valve|stent|hernia|emphysem|"
    r"fibros|scar|thicken|congesti|calcif|granuloma|cavit|lesion|densit|lucen|deformit|scolio|degenerat|elevat|inflat|volumes|"
    r"clear|normal|tortu|prominen|engorge|widen|shift|collapse|bronch|markings|pleural|airspace|free air|interstitial|"
    r"metasta|adenopathy", I)
BLANK = "___"
DATE = (r"(?:\d{1,2}/\d{1,2}/\d{2,4}|\d{4}-\d{2}-\d{2}|"
        r"\b(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|"
        r"Nov(?:ember)?|Dec(?:ember)?)\.? \d{1,2}(?:, ?\d{4})?(?![\d.]| ?[cm]m\b))")
TIME = r"(?:\d{1,2}:\d{2}(?::\d{2})?(?: ?[AaPp]\.?[Mm]\b\.?)?(?: hours| hrs)?|\d{1,2} ?[AaPp]\.?[Mm]\b\.?)"
EARLIER = (r"(?:prior|previous|earlier|preceding|last|most recent|recent|comparison|outside|old|remote|baseline|study|exam|"
           rf"radiograph|film|{BLANK})")


def has_words(text):
    """More than blanks and punctuation."""
    return bool(re.search(r"[^\W\d_]{2}", text))


def sentences(text):
    """Cut after . ! ? but not in decimals or after titles.

    >>> sentences("Nodule of 1.5 cm. Seen by Dr. ___ today. Clear.")
    ['Nodule of 1.5 cm.', 'Seen by Dr. ___ today.', 'Clear.']
    """
    found = []
    for piece in re.split(r"(?<=[.!?])\s+", text.strip()):
        if found and re.search(r"\b(?:Drs?|Mrs?|Ms|Prof|vs|approx|e\.g|i\.e|[ap]\.m)\.$", found[-1], I):
            found[-1] += " " + piece
        elif piece:
            found.append(piece)
    return found


def ended(text):
    """A cut sentence gets its full stop back."""
    text = text.strip(" ,;:-")
    return text + "." if has_words(text) and text[-1] not in ".!?" else text if has_words(text) else ""


DANGLING = re.compile(r"[\s,;]*\b(?:and|for which|which|for|this|these|was|were|is|are|has been|have been)\s*$", I)


DENIES = re.compile(r"\b(?:no|not|without|no longer|resolved|cleared)\b", I)


def cut_tail(sentence, pattern):
    """Cut from the clause that holds `pattern` on; nothing is left of a sentence that says no more than that."""
    found = pattern.search(sentence)
    if not found:
        return sentence
    head, tail = sentence[:found.start()], sentence[found.end():]
    boundary = max(head.rfind(mark) for mark in (",", ";", " and ", " which ", " for which ", " - "))
    if not FINDING.search(head[max(boundary, 0):]):
        head = head[:max(boundary, 0)]
    if DENIES.search(tail):
        return sentence
    if FINDING.search(head):
        return ended(DANGLING.sub("", head))
    _, colon, rest = tail.partition(":")        # "Discussed with Dr. ___: large pneumothorax."
    return ended(rest) if colon and FINDING.search(rest) and not re.match(r"\d\d", rest) else ""


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
    return re.sub(r"(?:(?<=^)|(?<=[.!?;:] ))(?:\(?\d{1,2}[.)]\s+)+(?=[A-Za-z_(])", "", text)


# ---- rules on one sentence: what is left of it, or "" ----

VIEW = (r"(?:(?:a|an|the|of|and|or|in|single|one|two|three|frontal|lateral|portable|upright|supine|semi-?erect|semi-?upright|"
        r"erect|AP|PA|AP/PA|bedside|digital|chest|thorax|views?|radiographs?|radiography|x-?rays?|films?|images?|exam|"
        r"examination|study|projections?|position)\b[ ,&/]*)+")
VIEW_PREFIX = re.compile(rf"^(?=[^:]*\b(?:chest|views?|radiographs?|AP|PA|x-?rays?)\b){VIEW}\s*(?:{BLANK})?\s*:\s*", I)
VIEW_ONLY = re.compile(rf"^{VIEW}(?:(?:was|were|is|are|has been|have been)\b\s*)?(?:(?:obtained|performed|provided|submitted|"
                       r"presented|acquired|available|reviewed|taken|for review|for interpretation)\b\s*)*"
                       r"(?:(?:on|at|dated) [^,;]*)?[.:]?$", I)
VIEW_SHOWS = re.compile(rf"^(?=.*?\b(?:views?|radiographs?|x-?rays?|films?|images?|chest)\b){VIEW}"
                        r"(?:demonstrates?|shows?|reveals?)(?: that)?\s+(?=\S)", I)


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


TO_SOMEONE = (rf"(?:with|to|by|at|via|over)\s+(?:the |a )?(?:Drs?\b|{BLANK}|team|referring|ordering|physician|nurse|"
              rf"resident|tele|phone|pager|e-?mail)")
TOLD = re.compile(rf"\b(?:was |were |is |are |has been |have been )?(?:(?:discussed|communicated|conveyed|phoned|telephoned|"
                  rf"paged|"
                  rf"relayed|reported|called|e-?mailed|reviewed)\b[^.;]*?\b{TO_SOMEONE}|(?:notified|informed|made aware)\b)", I)
SIGNED = re.compile(r"^(?:dictated|transcribed|electronically signed|approved|signed|edited|interpreted|reviewed) (?:by|on)\b|"
                    r"personally reviewed|attending radiologist|^please (?:see|refer)|voice recognition|^Dr\. ", I)


def communication(sentence):
    """
    >>> communication("Findings were phoned to Dr. ___ at 14:05.")
    ''
    >>> communication("Large left pneumothorax, discussed with Dr. ___ at 2 p.m.")
    'Large left pneumothorax.'
    """
    return "" if SIGNED.search(sentence) else cut_tail(sentence, TOLD)


COMPARED = rf"(?:as |when )?(?:compared|in comparison|comparison is made|relative|comparing|allowing for)\s+(?:to|with)"
LEADING = re.compile(rf"^(?:{COMPARED}\s+[^,;:]*|(?:in the interval )?since (?:the )?{EARLIER}[^,;:]*|in the interval|"
                     rf"from {BLANK}[^,;:]*)[,:]\s*", I)
MUCH = (r"(?:significant|relevant|interval|major|appreciable|substantial|important|definite|notable|short-interval|radiographic|"
        r"essentially|largely|grossly|relatively|overall|otherwise|not significantly|not substantially|not)")
SAME = rf"(?:(?:{MUCH}|quite|very)\s+)*(?:unchanged|stable|similar|unaltered|changed|as before|the same)"
THAN = (r"(?:\s+(?:as |when )?(?:compared (?:to|with)|in comparison (?:to|with)|from|since|to|as on|as|in position|in appearance|"
        r"in size|in extent|over|relative to)\b[^,;]*)?")
NO_CHANGE = re.compile(rf"^(?:there (?:is|has been|are) )?(?:no|little|minimal|without)\s+(?:{MUCH}\s+)*change (?:in|of) "
                       r"(?:the )?(?:(?:size|extent|appearance|position|degree|severity) of (?:the )?)?", I)
PREDICATE = re.compile(rf",?\s+(?:which )?(?:is|are|remains?|appears?|has been|have been|has|have)\s+{SAME}{THAN}(?=[,;.]|$)|"
                       rf",\s*{SAME}{THAN}(?:,(?=\s+(?:is|are|was|were|has|have)\b)|(?=[,;.]|$))", I)
TAIL = re.compile(rf",?\s+{COMPARED}\s+[^,;]*(?=[,;.]|$)|"
                  rf",?\s+(?:since|from) (?:the |a )?(?:\w+ )?{EARLIER}\b[^,;]*(?=[,;.]|$)", I)
CHANGE = re.compile(r"\b(?:change|unchanged|stable|similar|as before|compar\w+|interval|prior|previous|unaltered|(?:no|"
                    r"without) new)\b", I)
NONE_NEW = re.compile(r"(?:there (?:is|are) )?no new\b(?!.*\b(?:but|with|however)\b)[^,;]*$", I)
REMOVED = re.compile(r"(?:there has been )?(?:interval )?(?:removal of|extubation)[^,;]*$", I)


MORE = re.compile(rf"\b(?:no|not|without|resolved|cleared|gone|left|right|bilateral|small|moderate|large|upper|"
                  rf"lower)\b|{FINDING.pattern}", I)


def comparisons(sentence):
    """
    >>> comparisons("Compared with ___, no change.")
    ''
    >>> comparisons("As compared to the prior study, there is a small left effusion.")
    'there is a small left effusion.'
    >>> comparisons("Small left effusion is unchanged since ___.")
    'Small left effusion.'
    >>> comparisons("No significant change in the small left effusion.")
    'small left effusion.'
    >>> comparisons("No new consolidation.")
    ''
    """
    sentence = LEADING.sub("", sentence)
    if NONE_NEW.match(sentence) or REMOVED.match(sentence):
        return ""               # "no new" does not say that there is none: an old one may be there
    if not FINDING.search(sentence) and CHANGE.search(sentence):
        return ""
    keep = lambda found: found[0] if MORE.search(re.sub(SAME, "", found[0], flags=I)) else ""
    cut = TAIL.sub(keep, PREDICATE.sub(keep, NO_CHANGE.sub("", sentence)))
    return ended(cut) if cut != sentence else sentence


SOFT = r"(?:effusions?|edema|pneumothora(?:x|ces)|atelectas[ie]s|congestion|consolidations?|cardiomegaly|pneumonia)"
SIZE = (r"(?:(?:right|left|bilateral|bibasilar|basilar|small|moderate|large|mild|severe|tiny|trace|pleural|pulmonary|"
        r"interstitial|the)\s+)*")
WORSE = r"(?:increased|decreased|improved|worsened|progressed|enlarged|grown|diminished)"
AGAIN = r"(?:seen|noted|demonstrated|visualized|visualised|identified|present|redemonstrated)"
ADVERBS = re.compile(
    r"\b(?:unchanged|persistent|persisting|redemonstrated|newly|(?<!no )(?<!without )(?<!any )new|once again|again|"
    r"stable(?: and)?|"
    r"improving|worsening|improved|worsened|enlarging|resolving|(?:slightly |markedly )?(?:increasing|decreasing)|"
    r"previously (?:seen|noted|described)|now|"
    rf"currently|(?:increased|decreased)(?= {SIZE}{SOFT}))\s+(?=\w)", I)

SEEN_AGAIN = re.compile(rf"^(?:once )?again,? {AGAIN} (is|are) (.*?)(\.?)$", I)
DEVELOPED = re.compile(r"^(?:there (?:has been|is) )?(?:an )?interval (?:increase|decrease|improvement|worsening|"
                       r"development|progression|enlargement|placement|insertion) (?:in|of) (?:the )?(?:size of (?:the )?)?", I)
HAS_CHANGED = re.compile(rf"\b(?:has|have) (?:{MUCH} |slightly |markedly |mildly )*{WORSE}(?: in (?:size|extent))?(?=[.,;]|$)", I)
NOW = re.compile(rf"\b(has|have) (?:{MUCH} |slightly |markedly )*{WORSE}(?: in size)?,? (?:and (?:is|are) )?now ", I)


# "no worsening edema" does not say that there is none, "not previously seen nodule" says that there is one: left as it is
NO_MORE = re.compile(r"\b(?:no|not|without|nor|neither|any)\b[^,;.]*?\b(?:newly|new|worsening|worsened|increas(?:ed|ing)|"
                     r"decreas(?:ed|ing)|enlarging|improv(?:ed|ing)|resolving|previously (?:seen|noted|described))\s+\w", I)


def change_words(sentence):
    """
    >>> change_words("unchanged mild cardiomegaly")
    'mild cardiomegaly'
    >>> change_words("again seen is a pacemaker.")
    'a pacemaker is seen.'
    >>> change_words("improved edema") + ", " + change_words("increased opacity")
    'edema, increased opacity'
    >>> change_words("The left effusion has increased, now moderate.")
    'The left effusion is moderate.'
    >>> change_words("There continues to be a small effusion.")
    'There is a small effusion.'
    """
    sentence = SEEN_AGAIN.sub(r"\2 \1 seen\3", sentence)
    sentence = DEVELOPED.sub("", sentence)
    sentence = NOW.sub(lambda found: ("are" if found[1].lower() == "have" else "is") + " ", sentence)
    if FINDING.search(sentence):
        sentence = HAS_CHANGED.sub("", sentence)
    sentence = re.sub(r"\s+(?:remains?|persists?)(?=[.,;]|$)", "", sentence, flags=I)
    sentence = re.sub(r"\bcontinues? to be\b|\bremains\b", "is", sentence, flags=I)
    sentence = re.sub(r"\bremain\b", "are", sentence, flags=I)
    if NO_MORE.search(sentence):
        return sentence
    cut = re.sub(r"\binterval(?:ly)? (?=\w)", "", ADVERBS.sub("", sentence), flags=I)
    if not FINDING.search(sentence) and re.search(r"\b(?:stable|unchanged)\b", sentence, I):
        return ""                                                           # "stable heart size"
    return cut if has_words(cut) else ""


PERSON = re.compile(rf"\b(?:{BLANK}|\d{{1,3}})[ -]?(?:year|yr|y)s?[ -]?(?:old|o)\b|^(?:clinical )?(?:history|indication|"
                    rf"reason for \w+)\s*:|^(?:the )?patient (?:is|was|has|had|presents)\b|\bhistory of\b", I)
ADVICE = re.compile(
    r"\b(?:(?:is|are|be|would be|may be|could be) )?(?:advised|recommended|suggested for)\b|\brecommend\b|\brecommendations?\b|"
    r"\b(?:should|could|may|can) be (?:obtained|performed|repeated|followed)\b|\bif (?:clinically )?(?:indicated|warranted|"
    r"desired|needed)\b|\bwould be helpful\b|\bsuggest (?:a |an )?(?:CT|follow|repeat|further)|\bconsider (?:a |an )?(?:chest |"
    r"dedicated |repeat )?(?:CT|"
    r"follow|repeat|ultrasound|MRI)|\bfor further (?:evaluation|assessment|characterization)\b|^(?:correlat\w+|"
    r"clinical correlation)|\bfollow-?up (?:to|until|imaging|radiographs?|CT)\b", I)


def history(sentence):
    """
    >>> history("___-year-old man with cough.")
    ''
    """
    found = PERSON.search(sentence)
    return "" if found and not FINDING.search(sentence[:found.start()]) else sentence


def advice(sentence):
    """
    >>> advice("CT is advised.")
    ''
    >>> advice("Right upper lobe nodule, for which CT is recommended.")
    'Right upper lobe nodule.'
    """
    return cut_tail(sentence, ADVICE)


BEFORE = re.compile(r"[ ,(]*\b(?:previously|formerly|prior(?:ly)?|versus|vs\.?|compared (?:to|with))\s+(?:measur(?:ed|ing) )?"
                    r"(?:approximately )?\d+(?:\.\d+)?(?: ?x ?\d+(?:\.\d+)?)* ?[cm]m\b(?: previously| before| on ___)?\)?"
                    r"(?=\s*(?:[.,;)]|$))", I)
WHEN = re.compile(rf"[ ,(]*(?:\b(?:on|at|from|dated|of|since|obtained|performed|the)\s+)*(?:{DATE}|{TIME})\)?", I)


def dates(sentence):
    """Current measures stay.

    >>> dates("Nodule of 15 mm, previously 12 mm.")
    'Nodule of 15 mm.'
    >>> dates("Tube placed on 3/4/2150 at 14:05.")
    'Tube placed.'
    """
    return WHEN.sub("", BEFORE.sub("", sentence)).strip()


AFTER_BLANK = r"\s*(?:[.,;:)]|$|\b(?:at|on|is|are|was|were|there|and|in|with|no|which|shows?)\b)"
PREPOSITION = re.compile(r"[ ,(]*(?:\b(?:at|on|from|of|since|dated|to|by|in|with|per|via|as of|performed|obtained|the)\s+)+"
                         rf"{BLANK}(?:\s*(?:and|,|-)\s*{BLANK})*\)?(?={AFTER_BLANK})", I)


def blanks(sentence):
    """De-identified spans: cut with their preposition; one that stood for a noun takes its sentence along.

    >>> blanks("Line placed at ___ on ___ is in the left vein.")
    'Line placed is in the left vein.'
    >>> blanks("The ___ lobe is clear.")
    ''
    """
    cut = PREPOSITION.sub("", sentence)
    return "" if BLANK in cut else cut


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


def tidy(sentence):
    """
    >>> tidy("small effusion , stable  . .")
    'Small effusion, stable.'
    """
    sentence = re.sub(r"\s+([,.;:)])", r"\1", " ".join(sentence.split()))
    sentence = re.sub(r"([,;:])(?:\s*[,;:])+", r"\1", sentence)
    sentence = re.sub(r"[,;:]+\.|\.(?:\s*\.)+", ".", sentence).strip(" ,;:-")
    return sentence[:1].upper() + sentence[1:]


TEXT_RULES = (unwrap, stamps, list_numbers)
SENTENCE_RULES = (views, communication, comparisons, change_words, history, advice, dates, blanks)


def clean(text, drop_lateral=False):
    """-> (text or None if nothing is left, Counter of sentences dropped by each rule).

    >>> clean("1. As compared to ___, there is a small left\\n effusion.  2. CT is advised.")
    ('There is a small left effusion.', Counter({'advice': 1}))
    """
    dropped, kept = Counter(), []
    for rule in TEXT_RULES:
        text = rule(text)
    for sentence in sentences(text):
        for rule in SENTENCE_RULES + (lateral_remarks,) * drop_lateral:
            left = rule(sentence)
            if not has_words(left):
                if has_words(sentence):
                    dropped[rule.__name__] += 1
                sentence = ""
                break
            sentence = left
        if sentence:
            kept.append(tidy(sentence))
    return " ".join(repeats(kept)) or None, dropped
