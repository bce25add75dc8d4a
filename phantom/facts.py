"""The facts of a phantom and its report: which findings there are, facts -> report, and a report -> its facts, exactly.

A fact is a triple (finding, place, degree), "" where there is none: ("effusion", "left", "large").
"""
import re

SIDES, ZONES = ("left", "right"), ("upper", "mid", "lower")
FINDINGS = ["cardiomegaly", "effusion", "pneumothorax", "opacity", "nodule", "edema", "catheter"]
PLACES = [f"{side} {zone}" for side in SIDES for zone in ZONES]
DEGREES = {"cardiomegaly": ("mild", "severe"), "effusion": ("small", "moderate", "large")}
WHERE = {"effusion": SIDES, "pneumothorax": SIDES, "opacity": PLACES, "nodule": PLACES, "catheter": SIDES}
FACTS = [(f, place, degree) for f in FINDINGS for place in WHERE.get(f, ("",)) for degree in DEGREES.get(f, ("",))]

# two facts, written one after the other in the order of FACTS, that would contradict or hide each other
CONFLICTS = [
    r"(cardiomegaly|pneumothorax|edema|catheter)\b.*\| \1",          # at most one of each
    r"(?:effusion|pneumothorax) (left|right).*\| (effusion|pneumothorax) \1",
    r"effusion (left|right) (.* \1 lower|large .*(\1 \w|effusion \w+ large))",  # under water
    r"pneumothorax (left|right).*\| (edema|(opacity|nodule) \1)",    # the collapsed lung has other zones
    r"(?:opacity|nodule) (\w+ \w+) \| \w+ \1",                      # one patch a zone; neighbours would melt
    r"opacity (left|right) (mid .*opacity \1|.*opacity \1 mid)",
    r"(opacity|nodule) \w+ mid \| edema",                            # its haze lies around the hila
    r"cardiomegaly (.*left lower|.*effusion left large|severe .*effusion left)"]  # the heart lies there


def conflict(*facts):
    pair = " | ".join(" ".join(filter(None, fact)) for fact in sorted(facts, key=FACTS.index))
    return any(re.match(pattern, pair) for pattern in CONFLICTS)


def sample_facts(rng):
    """About one picture in five is normal; the others have one to four findings that do not hide each other."""
    number, facts, free = rng.choice(5, p=[0.20, 0.25, 0.25, 0.20, 0.10]), [], FACTS
    often = [0.17 if f in ("effusion", "opacity", "nodule") else 0.1225 for f in FINDINGS]  # those with many places
    while len(facts) < number and free:
        finding = rng.choice(FINDINGS, p=often)
        if candidates := [fact for fact in free if fact[0] == finding]:
            facts.append(candidates[rng.integers(len(candidates))])
            free = [fact for fact in free if fact != facts[-1] and not conflict(fact, facts[-1])]
    return frozenset(facts)


PROMPTS = ["Describe the findings in this chest X-ray.", "What does this chest X-ray show?", "Report this chest X-ray.",
           "Write a report for this image.", "What are the findings?"]
POSITIVE = {  # {s} side, {z} zone, {d} degree, {ly} the degree as an adverb
    "cardiomegaly": ["{d} cardiomegaly.", "The heart is {ly} enlarged.", "There is {d} cardiomegaly."],
    "effusion": ["{d} {s} pleural effusion.", "There is a {d} {s} pleural effusion.", "{d} pleural effusion on the {s}."],
    "pneumothorax": ["{s} pneumothorax.", "There is a {s} pneumothorax.", "Pneumothorax on the {s}."],
    "opacity": ["Opacity in the {s} {z} zone.", "{s} {z} zone consolidation.", "There is an opacity in the {s} {z} lung zone."],
    "nodule": ["Nodule in the {s} {z} zone.", "{s} {z} zone nodule.", "There is a nodule in the {s} {z} lung zone."],
    "edema": ["Pulmonary edema.", "There is pulmonary edema.", "Edema of both lungs."],
    "catheter": ["{s} central venous catheter.", "There is a {s} central line.", "Central venous catheter from the {s}."]}
NEGATIVE = {
    "cardiomegaly": ["The heart is normal in size.", "Heart size is normal.", "No cardiomegaly."],
    "effusion": ["No pleural effusion."], "pneumothorax": ["No pneumothorax.", "There is no pneumothorax."],
    "opacity": ["No consolidation.", "No focal opacity."], "nodule": ["No nodule.", "No lung nodule."],
    "edema": ["No pulmonary edema.", "No edema."], "catheter": ["No catheter.", "No central line."]}


def facts_to_report(facts, rng):
    """Three to six sentences in the order of FINDINGS, in varied words: every fact, and some of what is absent."""
    sentences, facts, present = [], sorted(facts), {fact[0] for fact in facts}
    both = [degree for degree in DEGREES["effusion"] if all(("effusion", side, degree) in facts for side in SIDES)]
    if both and rng.random() < 0.7:
        sentences.append((FINDINGS.index("effusion"), f"{both[0]} bilateral pleural effusions."))
        facts = [fact for fact in facts if fact[::2] != ("effusion", both[0])]
    for finding, place, degree in facts:
        side, _, zone = place.partition(" ")
        words = rng.choice(POSITIVE[finding]).format(s=side, z=zone, d=degree, ly=degree + "ly")
        sentences.append((FINDINGS.index(finding), words))
    absent = rng.permutation([f for f in FINDINGS if f not in present])[:max(1, rng.integers(4, 6) - len(sentences))].tolist()
    if {"effusion", "pneumothorax"} <= set(absent) and rng.random() < 0.5:
        absent = [f for f in absent if f not in ("effusion", "pneumothorax")]
        sentences.append((FINDINGS.index("effusion"), "No pleural effusion or pneumothorax."))
    sentences += [(FINDINGS.index(f), str(rng.choice(NEGATIVE[f]))) for f in absent]
    if present <= {"cardiomegaly", "catheter"} and rng.random() < 0.5:
        sentences.append((FINDINGS.index("opacity"), "The lungs are clear."))
    return " ".join(text[0].upper() + text[1:] for _, text in sorted(sentences, key=lambda pair: pair[0]))


WORDS = {"cardiomegaly": r"cardiomegaly|enlarge", "effusion": r"effusion", "pneumothorax": r"pneumothora",
         "opacity": r"opacit|consolidation|infiltrate|pneumonia", "nodule": r"nodul", "edema": r"edema",
         "catheter": r"catheter|central (venous )?line|picc"}
MEANS = {"bilateral": "left right", "both": "left right", "middle": "mid", "base": "lower", "apex": "upper", "mildly": "mild",
         "slight": "mild", "severely": "severe", "marked": "severe", "massive": "large", "tiny": "small", "trace": "small"}
NEGATION = set("no not without normal clear absent free resolved negative never neither nor".split())


def report_to_facts(text):
    """Sentence → parts with one finding each → negated, or finding, sides, zones and degrees in the order they come.
    Lists go in step ("right upper and left lower"), or one word serves all ("right upper and lower"). A part that does
    not say all its finding needs (an effusion without side or size) is not a fact."""
    facts = set()
    for clause in re.split(r"[.;:!?\n]|\bbut\b|\bhowever\b|\bthere (?:is|are)\b", text.lower()):
        negated = False
        for finding, part in split_parts(clause):
            words = " ".join(MEANS.get(word, word) for word in re.findall(r"[a-z]+", part)).split()
            sides, zones, degrees = ([w for w in words if w in known and finding in users] or [""] for known, users in
                                     ((SIDES, WHERE), (ZONES, ("opacity", "nodule")), (sum(DEGREES.values(), ()), DEGREES)))
            # "no effusion or edema": a negation reaches on over "or", and over "and" until something is described
            negated = bool(NEGATION.intersection(words)) or (negated and ("or" in words or sides == degrees == [""]))
            count = max(len(sides), len(zones))
            if not negated and all(len(group) in (1, count) for group in (sides, zones, degrees)):
                rows = [[group[i % len(group)] for group in (sides, zones, degrees)] for i in range(count)]
                facts |= {(finding, f"{side} {zone}".strip(), degree) for side, zone, degree in rows} & set(FACTS)
    return frozenset(facts)


def split_parts(clause):
    """(finding, part) pairs: cut at commas and "and"; a piece without a finding joins the next one, or the last."""
    parts, held = [], ""
    for piece in re.split(r",|\band\b|\bwith\b|\bplus\b|(?= or\b)|(?=\bwithout\b)|(?=\bno\b)", clause):
        found, held = [f for f in FINDINGS if re.search(WORDS[f], piece)], f"{held} {piece}"
        if found or (parts and "zone" in piece):   # "opacities in the left upper and right lower zones"
            parts, held = (parts + [(found[0], held)] if found else parts[:-1] + [(parts[-1][0], parts[-1][1] + held)]), ""
    return parts
