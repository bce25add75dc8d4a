"""Guards on what a language model made of a report: does the clean text still say the same?

    answer, complaints = parse(content, finish_reason, raw_findings)
    complaints, warnings = guard(raw, clean)

    guard 1     the answer is whole, and JSON with findings                         parse
    guard 2     the text is neither much shorter nor longer                         guard
    guard 3     no blanks, dates, times, names or comparisons are left
    guard 4     no number is new
    guard 5     few words are new
    guard 6     no finding is on a new side
    guard 7     every finding of CheXpert is affirmed or denied as before, and today's sizes,
                severities and doubts still belong to what they belonged to
    guard 8     a second request found nothing wrong (--llm-judge)                  llm.py

The guards compare words by simple patterns, and they would rather refuse a good text than let a
wrong one pass: a refused text is asked for once more, then the text of the rules is taken. A
complaint is a sentence that names findings and sides. It never quotes a report.
"""
import json
import re
from bisect import bisect
from operator import attrgetter
from typing import NamedTuple

from mimic.cleaning.blanks import drop_dates
from mimic.cleaning.now import state_now
from mimic.cleaning.sentences import sentences
from mimic.cleaning.words import DATE, DOUBT, FINDING, MERE_CHANGE, SEVERITY, SIDE, SIZE

# ---- guard 1: the form of an answer ----

# Half a character, which no file can hold: JSON may write it as "\ud800".
BROKEN_CHARACTER = re.compile("[\ud800-\udfff]")


def parse(content, finish_reason, raw_findings):
    """Read an answer -> ((findings, impression), []) or (None, [complaint]).

    A missing section is None; `raw_findings` tells whether findings are expected.

    >>> parse('{"findings": "Clear.", "impression": null}', "stop", "Clear lungs.")
    (('Clear.', None), [])
    >>> parse('{"findings": "Cle', "length", "Clear lungs.")
    (None, ['the answer was cut off'])
    """
    if finish_reason == "length":
        return None, ["the answer was cut off"]
    # models like to put JSON between ``` marks, whatever they are told
    without_fence = re.sub(r"^```(?:json)?|```$", "", content.strip()).strip()
    try:
        answer = json.loads(without_fence)
    except (ValueError, RecursionError):                # RecursionError: nested without end
        return None, ["the answer was not json"]
    if not is_answer(answer):
        return None, ['the answer was not {"findings": .., "impression": ..}']
    findings = text_or_none(answer.get("findings"))
    impression = text_or_none(answer.get("impression"))
    if raw_findings and findings is None:
        return None, ["the findings are missing"]
    if BROKEN_CHARACTER.search(f"{findings}{impression}"):
        return None, ["the answer has broken characters"]
    return (findings, impression), []


def is_answer(answer):
    """Whether it is an object whose two sections are text, null or absent."""
    if not isinstance(answer, dict):
        return False
    return all(isinstance(answer.get(name), str | None) for name in ("findings", "impression"))


def text_or_none(text):
    """The text of a section without blanks around it; None if it says nothing."""
    if text is None or not text.strip():
        return None
    return text.strip()


# ---- guards 2 to 7 ----

def guard(raw, clean):
    """Compare a report with its clean form -> (complaints, warnings), two lists of sentences.

    >>> guard("Left effusion is unchanged. No edema.", "Left effusion.")
    ([], ['lost negative: Edema'])
    >>> guard("Left effusion. Clear right lung.", "Right effusion. Clear left lung.")
    (['a side is new for Pleural Effusion'], [])
    """
    complaints = changed_length(raw, clean) + leftovers(clean)
    complaints += new_numbers(raw, clean) + new_words(raw, clean)
    # from here on line breaks and capitals do not matter
    raw = flat(raw)
    clean = flat(clean)
    complaints += new_sides(raw, clean)
    changes, warnings = changed_labels(raw, clean)
    complaints += changes + changed_degrees(raw, clean) + changed_doubts(raw, clean)
    return complaints, warnings


def flat(text):
    """One line in lower case; a section begins a sentence."""
    return " ".join(text.replace("IMPRESSION:", ". IMPRESSION:").split()).lower()


def clauses_of(text):
    """Cut a flat text where a negation, a side or a doubt ends: more finely than the rules do."""
    return re.split(r"\.(?!\d)|[;:]|\bbut\b|\bhowever\b|, (?=there )", text)


# ---- guards 2 to 5: length, leftovers, numbers, words ----

LEFTOVER = re.compile(
    rf"_{{2,}}|{DATE}|\b\d{{1,2}}:\d{{2}}\b|"
    r"\b(?:Drs?|compar(?:ed|ison)|previous(?:ly)?|interval|prior)\b", re.IGNORECASE)
NUMBER = re.compile(r"\d+(?:\.\d+)?")
ENDING = re.compile(r"(?:ies|es|s|ed|ing|ly|al)$")
SMALL_WORDS = set(
    "a an and are as at be been both by for from has have in into is it no not of on or over seen "
    "shows that the there these this to under was were which with within without".split())


def changed_length(raw, clean):
    # cleaning shortens, and hardly adds: the bounds only catch what went badly wrong
    ratio = len(clean.split()) / max(1, len(raw.split()))
    if 0.25 <= ratio <= 1.15:
        return []
    return ["the length changed too much"]


def leftovers(clean):
    # what the model was asked to take out
    if LEFTOVER.search(clean):
        return ["blanks, dates, times, names or comparisons are left"]
    return []


def new_numbers(raw, clean):
    # a number may go with a date, but none may come
    if set(NUMBER.findall(clean)) - set(NUMBER.findall(raw)):
        return ["a number is new"]
    return []


def stems(text):
    """
    >>> stems("Opacities are seen within the lungs")
    ['opacit', 'lung']
    """
    words = re.findall(r"[a-z]{3,}", text.lower())
    return [ENDING.sub("", word) for word in words if word not in SMALL_WORDS]


def new_words(raw, clean):
    # endings may change with the grammar, and some words with it: 15 % of them
    known = set(stems(raw))
    words = stems(clean)
    unknown = sum(word not in known for word in words)
    if unknown > 0.15 * max(1, len(words)):
        return ["too many words are new"]
    return []


# ---- guards 6 and 7: sides, and findings affirmed or denied ----

# By which words a class of CheXpert is recognised. "No Finding" follows from the others.
CLASSES = {
    "Enlarged Cardiomediastinum":
        r"widened mediast|mediastinal (?:widening|enlarge)|enlarged (?:cardio)?mediast",
    "Cardiomegaly":
        r"cardiomegaly|heart (?:size )?(?:is |appears )?(?:\w+ )?enlarged|"
        r"enlarged (?:heart|cardiac)|cardiac enlargement",
    "Lung Opacity": r"opaci",
    "Lung Lesion": r"nodul|\bmass(?:es)?\b|lesion",
    "Edema": r"edema|vascular congestion",
    "Consolidation": r"consolidat",
    "Pneumonia": r"pneumonia|infectio",
    "Atelectasis": r"atelecta|collapse",
    "Pneumothorax": r"pneumothora",
    "Pleural Effusion": r"effusion",
    "Pleural Other": r"pleural thicken|pleural scar|fibrothorax",
    "Fracture": r"fracture",
    "Support Devices":
        r"catheter|\btubes?\b|picc|pacemaker|\blines?\b|\bleads?\b|port-a-cath|\bstents?\b|"
        r"prosthetic",
}

# A negation before a finding reaches to the end of its clause; behind it, it follows at once.
DENIED_BEFORE = re.compile(
    r"\b(?:no|not|without|free of|negative for|resolved|absence of|clear of|never|nor|neither|"
    r"resolution of|removed|removal of)\b")
DENIED_BEHIND = re.compile(r"\w* (?:has|have|is|are) (?:been )?(?:resolved|not)\b")


def labels(text):
    """{class: "yes" or "no"} of the classes that a flat text names. A "yes" outweighs a "no".

    >>> labels("no left effusion. edema, no edema at the bases. the pneumothorax has resolved")
    {'Pleural Effusion': 'no', 'Edema': 'yes', 'Pneumothorax': 'no'}
    """
    verdicts = {}
    # "No effusion on the left. Right effusion.": what is affirmed anywhere is there
    for clause in clauses_of(text):
        for name, words in CLASSES.items():
            for match in re.finditer(words, clause):
                before = clause[:match.start()]
                behind = clause[match.end():]
                if DENIED_BEFORE.search(before) or DENIED_BEHIND.match(behind):
                    verdicts.setdefault(name, "no")
                else:
                    verdicts[name] = "yes"
    return verdicts


def sides(text):
    """{(side, class)} of the classes that stand in one clause with the side."""
    # a clause names a side for all of its findings; the raw report is read in the same way
    pairs = set()
    for clause in clauses_of(text.replace("both", "bilateral")):
        for side in re.findall(r"\b(?:left|right|bilateral)\b", clause):
            pairs |= {(side, name) for name, words in CLASSES.items() if re.search(words, clause)}
    return pairs


def new_sides(raw, clean):
    # a side may go with its finding, but none may come
    new = sides(clean) - sides(raw)
    if not new:
        return []
    return ["a side is new for " + ", ".join(sorted({name for _, name in new}))]


def changed_labels(raw, clean):
    """-> (complaints, warnings). That a finding is absent may go unsaid: this only warns."""
    complaints = []
    warnings = []
    before = labels(raw)
    after = labels(clean)
    for name in CLASSES:
        was = before.get(name, "absent")
        is_now = after.get(name, "absent")
        if was == "no" and is_now == "absent":
            warnings.append(f"lost negative: {name}")
        elif was != is_now:
            complaints.append(f"{name} was {was} and is now {is_now}")
    return complaints, warnings


# ---- guard 7: sizes and severities, and what they belong to ----

DEGREE = re.compile(rf"{SIZE}|\b{SEVERITY}\b")
SIDE_WORD = re.compile(rf"\b{SIDE}\b")
UNSPECIFIC = ("pleural", "interstitial", "airspace", "clear", "normal")


class Span(NamedTuple):
    """A word and where it stands in its clause."""
    start: int
    end: int
    word: str


def spans(words, clause):
    return [Span(match.start(), match.end(), match[0]) for match in words.finditer(clause)]


def finding_spans(clause):
    """The findings that a clause names, without words that leave open which finding it is."""
    return [span for span in spans(FINDING, clause) if span.word not in UNSPECIFIC]


def millimetres(size):
    """
    >>> millimetres("1.5 x 2 cm")
    '15 x 20 mm'
    """
    unit = 10 if "c" in size else 1
    return " x ".join(f"{float(number) * unit:g}" for number in re.findall(r"[\d.]+", size)) + " mm"


def normal_form(degree):
    """The same degree in other words: "1.5 cm" and "15 mm", "mildly" and "mild"."""
    if degree[0].isdigit():
        return millimetres(degree)
    return re.sub(r"ly$", "", degree)


def neighbours(degree, findings, places):
    """The words that a degree belongs to: the finding behind it, or else the clause's last, and the
    side that stands nearest, before or behind.

    All arguments are spans of one clause; `findings` and `places` are sorted.
    """
    # the finding: English puts a size before its noun, "large effusion"
    words = []
    following = bisect(findings, degree.start, key=attrgetter("start"))
    if findings:
        words.append(findings[min(following, len(findings) - 1)].word)

    def distance(place):
        return max(place.start - degree.end, degree.start - place.end)

    # the side: "small left" and "left small" are both written, so the nearer of the two
    behind = bisect(places, degree.start, key=attrgetter("start"))
    around = places[max(behind - 1, 0):behind + 1]
    if around:
        words.append(min(around, key=distance).word)
    return words


def degrees(text):
    """{(size in mm or severity, finding or side that it belongs to)}; each degree also with "".

    >>> sorted(degrees("a 1.5 cm left nodule"))
    [('15 mm', ''), ('15 mm', 'left'), ('15 mm', 'nodul')]
    """
    pairs = set()
    for clause in clauses_of(text):
        findings = finding_spans(clause)
        places = spans(SIDE_WORD, clause)
        for span in spans(DEGREE, clause):
            degree = normal_form(span.word)
            pairs.add((degree, ""))
            pairs |= {(degree, word) for word in neighbours(span, findings, places)}
    return pairs


def changed_degrees(raw, clean):
    """Degrees of today must not be lost, nor may there be new ones. Those of earlier studies go."""
    # earlier degrees are taken out of the raw report by the same rules that clean it
    today = " ".join(state_now(drop_dates(sentence)).lower() for sentence in sentences(raw))
    before = degrees(MERE_CHANGE.sub(" ", today))
    after = degrees(MERE_CHANGE.sub(" ", clean))

    # a degree may go with what it belongs to; "": if it is nowhere any more, it is lost in any case
    stayed = {span.word for span in finding_spans(clean)} | set(SIDE_WORD.findall(clean)) | {""}
    lost = {degree for degree, word in before - after if word in stayed}
    new = {degree for degree, _ in after - before}

    complaints = []
    if lost:
        complaints.append(f"a size or severity is lost: {', '.join(sorted(lost))}")
    if new:
        complaints.append("a size or severity is new or belongs to something else: "
                          + ", ".join(sorted(new)))
    return complaints


# ---- guard 7: doubts ----

DOUBTED_BEFORE = re.compile(
    rf"\b(?:{DOUBT}|definite|convincing|obvious|apparent|perhaps|presum\w+|favou?r\w*)\b|\?")
DOUBTED_BEHIND = re.compile(
    r"[^,]*?\b(?:excluded|possible|probable|likely|suspected|question\w*|versus|vs|considered|"
    r"equivocal)\b|[^,]*\?")


def doubts(text):
    """{(finding, whether a word of its clause makes it uncertain)}

    >>> sorted(doubts("possible pneumonia. edema"))
    [('edema', False), ('pneumonia', True)]
    """
    pairs = set()
    for clause in clauses_of(text):
        for span in finding_spans(clause):
            before = DOUBTED_BEFORE.search(clause[:span.start])
            behind = DOUBTED_BEHIND.match(clause[span.end:])
            pairs.add((span.word, bool(before or behind)))
    return pairs


def changed_doubts(raw, clean):
    """A finding that stays keeps its doubt, or its certainty."""
    before = doubts(raw)
    after = doubts(clean)
    # a finding may be named twice, once in doubt and once not: both are compared
    in_both = {word for word, _ in before} & {word for word, _ in after}
    changed = {word for word, _ in before ^ after if word in in_both}
    if not changed:
        return []
    return [f"certainty has changed for {', '.join(sorted(changed))}"]
