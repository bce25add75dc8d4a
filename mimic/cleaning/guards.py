"""Guards on what a language model made of a report: does the cleaned text still say the same? Sentences that say what is wrong.

    answer, complaints = parse(content, finish_reason, findings)        # guard 1: whole, valid JSON with findings
    complaints, warnings = guard(raw, clean)                            # guards 2 to 7; the judge of mimic/cleaning/llm.py is the eighth

Each guard compares words by simple patterns and errs on the side of refusing: a refused text is asked for once more, and then
replaced by that of the rules. Complaints name findings and sides, they never quote a report.
"""
import json
import re
from bisect import bisect

from mimic.cleaning.blanks import dates
from mimic.cleaning.now import now
from mimic.cleaning.sentences import sentences
from mimic.cleaning.words import DATE, DOUBT, FINDING, HARMLESS, SEVERITY, SIDE, SIZE

STEM = re.compile(r"(?:ies|es|s|ed|ing|ly|al)$")
STOP = set("a an and are as at be been both by for from has have in into is it no not of on or over seen shows that the "
           "there these this to under was were which with within without".split())
LEFTOVER = re.compile(rf"_{{2,}}|{DATE}|\b\d{{1,2}}:\d{{2}}\b|"
                      r"\b(?:Drs?|compar(?:ed|ison)|previous(?:ly)?|interval|prior)\b", re.I)
BROKEN = re.compile("[\ud800-\udfff]")      # half a character, which no file can hold
CLASSES = {     # a small lexicon of the 14 CheXpert classes; "No Finding" follows from the others
    "Enlarged Cardiomediastinum": r"widened mediast|mediastinal (?:widening|enlarge)|enlarged (?:cardio)?mediast",
    "Cardiomegaly": r"cardiomegaly|heart (?:size )?(?:is |appears )?(?:\w+ )?enlarged|enlarged (?:heart|cardiac)|"
                    r"cardiac enlargement",
    "Lung Opacity": r"opaci", "Lung Lesion": r"nodul|\bmass(?:es)?\b|lesion", "Edema": r"edema|vascular congestion",
    "Consolidation": r"consolidat", "Pneumonia": r"pneumonia|infectio", "Atelectasis": r"atelecta|collapse",
    "Pneumothorax": r"pneumothora", "Pleural Effusion": r"effusion", "Pleural Other": r"pleural thicken|pleural scar|fibrothorax",
    "Fracture": r"fracture",
    "Support Devices": r"catheter|\btubes?\b|picc|pacemaker|\blines?\b|\bleads?\b|port-a-cath|stent|prosthetic"}
NEGATED = re.compile(r"\b(?:no|not|without|free of|negative for|resolved|absence of|clear of|never|nor|neither|"
                     r"resolution of|removed|removal of)\b")
DENIED = re.compile(r"\w* (?:has|have|is|are) (?:been )?(?:resolved|not)\b")      # "pneumothorax has resolved"
DOUBTED = re.compile(rf"\b(?:{DOUBT}|definite|convincing|obvious|apparent|perhaps|presum\w+|favou?r\w*)\b|\?")
DOUBTED_AFTER = re.compile(r"[^,]*?\b(?:excluded|possible|probable|likely|suspected|question\w*|versus|vs|considered|"
                           r"equivocal)\b|[^,]*\?")
UNSPECIFIC = ("pleural", "interstitial", "airspace", "clear", "normal")


def stems(text):
    return [STEM.sub("", word) for word in re.findall(r"[a-z]{3,}", text.lower()) if word not in STOP]


def flat(text):
    """Lines of a report are wrapped anywhere; a section begins a sentence."""
    return " ".join(text.replace("IMPRESSION:", ". IMPRESSION:").split()).lower()


def clauses(text):
    return re.split(r"\.(?!\d)|[;:]|\bbut\b|\bhowever\b|, (?=there )", text)


def labels(text):
    """{class: "yes" or "no"}; a class both affirmed and denied is affirmed. A negation reaches to the end of its clause."""
    found = {}
    for clause in clauses(text):
        for name, pattern in CLASSES.items():
            for hit in re.finditer(pattern, clause):
                verdict = "no" if NEGATED.search(clause[:hit.start()]) or DENIED.match(clause[hit.end():]) else "yes"
                found[name] = "yes" if "yes" in (verdict, found.get(name)) else "no"
    return found


def sides(text):
    """{(side, class)} of what is affirmed or denied in one clause with the side."""
    found = set()
    for clause in clauses(text.replace("both", "bilateral")):
        for side in re.findall(r"\b(?:left|right|bilateral)\b", clause):
            found |= {(side, name) for name, pattern in CLASSES.items() if re.search(pattern, clause)}
    return found


def named(clause):
    """[(start, end, word)] of the findings that the clause names."""
    return [(hit.start(), hit.end(), hit[0]) for hit in FINDING.finditer(clause) if hit[0] not in UNSPECIFIC]


def millimetres(size):
    """
    >>> millimetres("1.5 x 2 cm")
    '15 x 20 mm'
    """
    return " x ".join(f"{float(n) * (10 if 'c' in size else 1):g}" for n in re.findall(r"[\d.]+", size)) + " mm"


def degrees(text):
    """{(size in mm or severity, finding or side next to it)}: what is small and what is 15 mm."""
    found = set()
    for clause in clauses(text):
        findings, places = named(clause), [(hit.start(), hit.end(), hit[0]) for hit in re.finditer(rf"\b{SIDE}\b", clause)]
        starts, sites = [start for start, *_ in findings], [start for start, *_ in places]
        for hit in re.finditer(rf"{SIZE}|\b{SEVERITY}\b", clause):
            degree = millimetres(hit[0]) if hit[0][0].isdigit() else re.sub(r"ly$", "", hit[0])
            n, m = bisect(starts, hit.start()), bisect(sites, hit.start())
            near = sorted(places[max(m - 1, 0):m + 1], key=lambda place: max(place[0] - hit.end(), hit.start() - place[1]))
            found |= {(degree, word) for _, _, word in (findings[n:n + 1] or findings[-1:]) + near[:1]} | {(degree, "")}
    return found


def doubts(text):
    """{(finding, True if it is "possible", "cannot be excluded", …)}"""
    return {(word, bool(DOUBTED.search(clause[:start]) or DOUBTED_AFTER.match(clause[end:])))
            for clause in clauses(text) for start, end, word in named(clause)}


def parse(content, finish_reason, raw_findings):
    """An answer -> ((findings, impression), complaints). Guard 1: whole, valid JSON with findings."""
    if finish_reason == "length":
        return None, ["the answer was cut off"]
    try:
        answer = json.loads(re.sub(r"^```(?:json)?|```$", "", content.strip()).strip())
    except (ValueError, RecursionError):
        return None, ["the answer was not json"]
    if not isinstance(answer, dict) or not all(isinstance(answer.get(k), str | None) for k in ("findings", "impression")):
        return None, ['the answer was not {"findings": .., "impression": ..}']
    findings, impression = ((answer.get(k) or "").strip() or None for k in ("findings", "impression"))
    if raw_findings and not findings:
        return None, ["the findings are missing"]
    if BROKEN.search(f"{findings}{impression}"):
        return None, ["the answer has broken characters"]
    return (findings, impression), []


def guard(raw, clean):
    """Guards 2 to 7 on the joined texts -> (complaints, warnings)."""
    complaints, warnings = [], []
    ratio = len(clean.split()) / max(1, len(raw.split()))
    if not 0.25 <= ratio <= 1.15:
        complaints.append("the length changed too much")
    if LEFTOVER.search(clean):
        complaints.append("blanks, dates, times, names or comparisons are left")
    number = r"\d+(?:\.\d+)?"
    if set(re.findall(number, clean)) - set(re.findall(number, raw)):
        complaints.append("a number is new")
    known, words = set(stems(raw)), stems(clean)
    if sum(word not in known for word in words) > 0.15 * max(1, len(words)):
        complaints.append("too many words are new")
    raw, clean = flat(raw), flat(clean)
    if new := sides(clean) - sides(raw):
        complaints.append("a side is new for " + ", ".join(sorted({name for _, name in new})))
    before, after = labels(raw), labels(clean)
    for name in CLASSES:
        was, is_now = before.get(name), after.get(name)
        if was == "no" and is_now is None:
            warnings.append(f"lost negative: {name}")
        elif was != is_now:
            complaints.append(f"{name} was {was or 'absent'} and is now {is_now or 'absent'}")
    return complaints + same_degrees(raw, clean) + same_doubts(raw, clean), warnings


def same_degrees(raw, clean):
    """Today's sizes and severities, and what they belong to, neither lost nor new; those of earlier studies should go."""
    today = HARMLESS.sub(" ", " ".join(now(dates(sentence)).lower() for sentence in sentences(raw)))
    was, is_now = degrees(today), degrees(HARMLESS.sub(" ", clean))
    kept = {word for _, _, word in named(clean)} | {""} | set(re.findall(rf"\b{SIDE}\b", clean))
    lost = {degree for degree, word in was - is_now if word in kept}
    other = {degree for degree, _ in is_now - was}
    return [f"a size or severity is {how}: {', '.join(sorted(which))}"
            for how, which in (("lost", lost), ("new or belongs to something else", other)) if which]


def same_doubts(raw, clean):
    was, is_now = doubts(raw), doubts(clean)
    both = {word for word, _ in was} & {word for word, _ in is_now}
    changed = {word for word, _ in was ^ is_now if word in both}
    return [f"certainty has changed for {', '.join(sorted(changed))}"] if changed else []
