"""What can be found in a phantom, and its report: facts -> report, report -> facts, exactly.

Because a report can be read back without a mistake, whatever a model writes about a picture, or
draws from a report, can be measured against what is really there.

A fact is a triple (finding, place, degree), with "" where there is none: ("effusion", "left",
"large"). Left and right are the patient's. `TABLE` holds everything that the words need to know
about a finding; phantom/draw.py says how to add a new one.
"""
import re
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from phantom.wordings import WORDINGS

SIDES = ("left", "right")
ZONES = ("upper", "mid", "lower")
SIDES_AND_ZONES = tuple(f"{side} {zone}" for side in SIDES for zone in ZONES)


@dataclass(frozen=True)
class Finding:
    """One finding, in the words of a report."""
    present: tuple                  # sentences that state it, with {side}, {degree} ... to fill in
    absent: tuple                   # sentences that deny it
    pattern: str                    # regular expression by which it is recognised in any text
    places: tuple = ("",)           # where it may be
    degrees: tuple = ("",)          # how severe it may be
    weight: float = 0.1225          # how often it is drawn; those with many places come more often


TABLE = {                           # in the order in which a report mentions them
    "cardiomegaly": Finding(
        degrees=("mild", "severe"),
        present=("{degree} cardiomegaly.", "The heart is {adverb} enlarged.",
                 "There is {degree} cardiomegaly."),
        absent=("The heart is normal in size.", "Heart size is normal.", "No cardiomegaly."),
        pattern=r"cardiomegaly|enlarge"),
    "effusion": Finding(
        places=SIDES, degrees=("small", "moderate", "large"), weight=0.17,
        present=("{degree} {side} pleural effusion.",
                 "There is a {degree} {side} pleural effusion.",
                 "{degree} pleural effusion on the {side}."),
        absent=("No pleural effusion.",),
        pattern=r"effusion"),
    "pneumothorax": Finding(
        places=SIDES,
        present=("{side} pneumothorax.", "There is a {side} pneumothorax.",
                 "Pneumothorax on the {side}."),
        absent=("No pneumothorax.", "There is no pneumothorax."),
        pattern=r"pneumothora"),
    "opacity": Finding(
        places=SIDES_AND_ZONES, weight=0.17,
        present=("Opacity in the {side} {zone} zone.", "{side} {zone} zone consolidation.",
                 "There is an opacity in the {side} {zone} lung zone."),
        absent=("No consolidation.", "No focal opacity."),
        pattern=r"opacit|consolidation|infiltrate|pneumonia"),
    "nodule": Finding(
        places=SIDES_AND_ZONES, weight=0.17,
        present=("Nodule in the {side} {zone} zone.", "{side} {zone} zone nodule.",
                 "There is a nodule in the {side} {zone} lung zone."),
        absent=("No nodule.", "No lung nodule."),
        pattern=r"nodul"),
    "edema": Finding(
        present=("Pulmonary edema.", "There is pulmonary edema.", "Edema of both lungs."),
        absent=("No pulmonary edema.", "No edema."),
        pattern=r"edema"),
    "catheter": Finding(
        places=SIDES,
        present=("{side} central venous catheter.", "There is a {side} central line.",
                 "Central venous catheter from the {side}."),
        absent=("No catheter.", "No central line."),
        pattern=r"catheter|central (venous )?line|picc"),
}
FINDINGS = list(TABLE)
OUTSIDE_THE_LUNGS = {"cardiomegaly", "catheter"}    # beside these, "The lungs are clear." is true


class Fact(NamedTuple):
    """A finding that is there. It equals the plain tuple (finding, place, degree)."""
    finding: str
    place: str = ""                 # "", a side ("left") or a side and a zone ("left upper")
    degree: str = ""

    @property
    def side(self):
        return self.place.partition(" ")[0]

    @property
    def zone(self):
        return self.place.partition(" ")[2]


FACTS = [
    Fact(name, place, degree)
    for name, finding in TABLE.items()
    for place in finding.places
    for degree in finding.degrees
]

PROMPTS = ["Describe the findings in this chest X-ray.", "What does this chest X-ray show?",
           "Report this chest X-ray.", "Write a report for this image.", "What are the findings?"]


# ---- which facts a picture has ----

ONE_AT_MOST = {"cardiomegaly", "pneumothorax", "edema", "catheter"}


@cache
def conflict(fact, other):
    """Whether two facts contradict each other, or one would hide the other in the picture."""
    first, second = sorted((Fact(*fact), Fact(*other)), key=FACTS.index)
    findings = {first.finding, second.finding}
    same_side = first.side == second.side
    return any((
        # one picture shows no two of these
        first.finding == second.finding and findings <= ONE_AT_MOST,
        # a side of the chest holds one collection, of fluid or of air
        same_side and findings <= {"effusion", "pneumothorax"},
        # an effusion covers the lower zone of its side, a large one the whole lung
        first.finding == "effusion" and same_side and second.zone == "lower",
        first.finding == "effusion" and first.degree == "large"
        and same_side and second.zone != "",
        # two large effusions would leave no lung
        findings == {"effusion"} and first.degree == second.degree == "large",
        # a collapsed lung has its zones elsewhere, and no room for the haze of an edema
        first.finding == "pneumothorax" and second.finding == "edema",
        first.finding == "pneumothorax" and same_side and second.zone != "",
        # one patch a zone; opacities in neighbouring zones would melt into one
        findings <= {"opacity", "nodule"} and first.place == second.place,
        findings == {"opacity"} and same_side and "mid" in (first.zone, second.zone),
        # the haze of an edema lies around the hila, in the middle zones
        first.zone == "mid" and second.finding == "edema",
        # a large heart covers the left lower zone, and a severely enlarged one any fluid there
        first.finding == "cardiomegaly" and second.place == "left lower",
        first.finding == "cardiomegaly" and second == ("effusion", "left", "large"),
        first == ("cardiomegaly", "", "severe") and second[:2] == ("effusion", "left"),
    ))


def sample_facts(rng):
    """Draw the facts of a picture -> frozenset of Fact. rng: a numpy Generator.

    About one picture in five is normal; the others have one to four findings, none in conflict.
    """
    number = rng.choice(5, p=[0.20, 0.25, 0.25, 0.20, 0.10])
    total = sum(finding.weight for finding in TABLE.values())
    shares = [finding.weight / total for finding in TABLE.values()]
    facts = []
    free = FACTS                                # what may still be added
    while len(facts) < number and free:
        finding = rng.choice(FINDINGS, p=shares)
        candidates = [fact for fact in free if fact.finding == finding]
        if candidates:
            fact = candidates[rng.integers(len(candidates))]
            facts.append(fact)
            free = [other for other in free if other != fact and not conflict(other, fact)]
    return frozenset(facts)


# ---- facts -> report ----

def facts_to_report(facts, rng, wording="plain"):
    """Write a report: every fact, and some of what is absent, in the order of FINDINGS.

    Three to six sentences for the facts of a picture. rng: a numpy Generator; it varies the words.
    wording: whose sentences they are, one of WORDINGS.
    """
    house = WORDINGS[wording]
    present = {finding for finding, _, _ in facts}
    sentences = []                              # (finding, text)

    # what is there; two effusions of the same size are mostly mentioned together
    facts = [Fact(*fact) for fact in sorted(facts)]
    bilateral = [degree for degree in TABLE["effusion"].degrees
                 if all(("effusion", side, degree) in facts for side in SIDES)]
    if bilateral and rng.random() < 0.7:
        degree = bilateral[0]
        text = house.bilateral.format(degree=degree)
        sentences.append(("effusion", text))
        facts = [fact for fact in facts if (fact.finding, fact.degree) != ("effusion", degree)]
    for fact in facts:
        template = rng.choice(house.present.get(fact.finding, TABLE[fact.finding].present))
        text = template.format(
            side=fact.side, zone=fact.zone, degree=fact.degree, adverb=fact.degree + "ly")
        sentences.append((fact.finding, text))

    # what is absent: as many sentences as bring the report to four or five, and at least one
    absent = rng.permutation([finding for finding in FINDINGS if finding not in present])
    absent = absent[:max(1, rng.integers(4, 6) - len(sentences))].tolist()
    if {"effusion", "pneumothorax"} <= set(absent) and rng.random() < 0.5:
        absent = [finding for finding in absent if finding not in ("effusion", "pneumothorax")]
        sentences.append(("effusion", house.neither))
    for finding in absent:
        template = rng.choice(house.absent.get(finding, TABLE[finding].absent))
        sentences.append((finding, str(template)))
    if present <= OUTSIDE_THE_LUNGS and rng.random() < 0.5:
        sentences.append(("opacity", house.clear))

    sentences.sort(key=lambda sentence: FINDINGS.index(sentence[0]))
    return " ".join(text[0].upper() + text[1:] for _, text in sentences)


# ---- report -> facts ----

DEGREES = {degree for finding in TABLE.values() for degree in finding.degrees if degree}
SAME_AS = {                         # a word, and the words of a fact that it stands for
    "bilateral": "left right", "both": "left right",
    "middle": "mid", "base": "lower", "apex": "upper",
    "mildly": "mild", "slight": "mild", "severely": "severe", "marked": "severe",
    "massive": "large", "tiny": "small", "trace": "small",
}
NEGATIONS = {"no", "not", "without", "normal", "clear", "absent", "free", "resolved", "negative",
             "never", "neither", "nor"}
CLAUSE_ENDS = re.compile(r"[.;:!?\n]|\bbut\b|\bhowever\b|\bthere (?:is|are)\b")
PIECE_ENDS = re.compile(r",|\band\b|\bwith\b|\bplus\b|(?= or\b)|(?=\bwithout\b)|(?=\bno\b)")


def report_to_facts(text):
    """Read a report -> frozenset of Fact. Any text will do; what is not understood is no fact.

    A text is cut into clauses, and a clause into parts with one finding each. A part is either
    negated, or it states its finding with sides, zones and degrees, in the order of the text. Lists
    go in step ("right upper and left lower"), or one word serves all ("right upper and lower"). A
    part that lacks a word which its finding needs, like an effusion without a side, is not a fact.
    """
    facts = set()
    for clause in CLAUSE_ENDS.split(text.lower()):
        negated = False
        for name, part in split_parts(clause):
            words = [SAME_AS.get(word, word) for word in re.findall(r"[a-z]+", part)]
            words = " ".join(words).split()     # "both" has become two words
            places = TABLE[name].places
            sides = known_words(words, SIDES, used=places != ("",))
            zones = known_words(words, ZONES, used=places == SIDES_AND_ZONES)
            degrees = known_words(words, DEGREES, used=TABLE[name].degrees != ("",))

            # "no effusion or edema": a negation reaches on over "or"; over "and" or a comma too,
            # until a side or a degree says that something is really there
            described = sides != [""] or degrees != [""]
            reaches_on = negated and ("or" in words or not described)
            negated = reaches_on or not NEGATIONS.isdisjoint(words)
            if not negated:
                facts.update(in_step(name, sides, zones, degrees))
    return frozenset(facts)


def known_words(words, known, used):
    """The `words` that are `known`, in their order; [""] if there are none, or if none are used."""
    matches = [word for word in words if word in known]
    if used and matches:
        return matches
    return [""]


def in_step(finding, sides, zones, degrees):
    """The facts that three lists of words state together; a list of one word serves them all."""
    count = max(len(sides), len(zones))
    if any(len(words) not in (1, count) for words in (sides, zones, degrees)):
        return set()
    facts = set()
    for i in range(count):
        side, zone, degree = (words[i % len(words)] for words in (sides, zones, degrees))
        facts.add(Fact(finding, f"{side} {zone}".strip(), degree))
    return facts.intersection(FACTS)


def split_parts(clause):
    """Cut a clause at commas, "and", "with", "or", "no" -> [(finding, part of the clause)].

    A piece that names no finding belongs to the next one that does. But if it says "zone", it
    belongs to the one before: "opacities in the left upper and right lower zones".
    """
    parts = []
    waiting = ""                                # pieces that have not found their finding yet
    for piece in PIECE_ENDS.split(clause):
        waiting = f"{waiting} {piece}"
        names = [name for name in FINDINGS if re.search(TABLE[name].pattern, piece)]
        if names:
            parts.append((names[0], waiting))
            waiting = ""
        elif parts and "zone" in piece:
            name, text = parts[-1]
            parts[-1] = (name, text + waiting)
            waiting = ""
    return parts
