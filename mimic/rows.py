"""The rows of a study: the question that is asked, the report, cleaned, and the labels beside it."""
from mimic.cleaning import rules as cleaning
from mimic import sections
from mimic import sources

# The wording of the question, ours; an image always gets the same one. {parts} is what the report has.
PROMPTS = ["Describe this chest X-ray. Give the {parts}.", "Look at this chest radiograph and write the {parts}.",
           "You are a radiologist. Read this X-ray and state the {parts}.", "Report this chest X-ray with its {parts}.",
           "What does this radiograph show? Answer with the {parts}.", "Please read the image and write down the {parts}.",
           "As an expert in chest imaging, give the {parts} for this film.",
           "Study this frontal chest X-ray, then list the {parts}.",
           "Write a radiology report for this image, made up of the {parts}.",
           "Interpret the chest X-ray in detail: {parts}."]


def question(item, impression):
    number = int(sources.fraction(item.id) * len(PROMPTS))
    return PROMPTS[number].format(parts="FINDINGS and IMPRESSION" if impression else "FINDINGS")


def raw_text(cfg, item, content):
    """What the item's report says -> (findings, impression, source, what was odd), or why it cannot be used."""
    if item.text:
        (findings, impression, source), odd = item.text, ""
    elif content is None:
        return "report missing"
    else:
        (findings, impression, other, source), odd = sections.study_text(content, item.study)
        if not findings and not impression and not other and not cleaning.has_words(sections.decode(content)[0]):
            return "report empty"
        if cfg.fallback_paragraph and not findings:
            findings = other
    if not findings or not cleaning.has_words(findings):
        return "no findings" + (": hand-fixed study" if source.startswith("fixed") else "")
    return findings, impression, source, odd


def row_of(cfg, task, item, content, answer):
    """One row of the data set, or the reason why there is none. `answer` is what a language model made of the study."""
    raw = raw_text(cfg, item, content)
    if isinstance(raw, str):
        return raw
    findings, impression, source, odd = raw
    clean, flags = cfg.clean, []
    if answer:
        clean, flags = answer["method"], answer["flags"]
    if clean == "llm":
        findings, impression = answer["text"]
    elif clean == "rules":
        pair = findings, impression or ""
        (findings, dropped), (impression, more) = (cleaning.clean(one, cfg.drop_lateral, beside)
                                                   for one, beside in (pair, pair[::-1]))
        flags = flags + sorted({*dropped, *more})
    if not findings:
        return "no findings after cleaning"
    both = f"FINDINGS: {findings}" + (f"\nIMPRESSION: {impression}" if impression else "")
    odd = "broken characters" if "\ufffd" in both else odd
    row = dict(id=item.id, subject=item.subject, study=item.study, split=item.split, view=item.view,
               prompt=question(item, impression) if task == "und" else "", report=both if task == "und" else findings,
               labels=item.labels or {}, source=source, clean=clean, flags=flags + [odd] * bool(odd), image=item.image)
    if task == "und" and item.split == "test":          # scores on cleaned and on raw references are different things
        row["raw"] = f"FINDINGS: {raw[0]}" + (f"\nIMPRESSION: {raw[1]}" if raw[1] else "")
    return row


def studies(cfg, jobs, reports):
    """(key, findings, impression) of every distinct text, for the language model."""
    seen = set()
    for _, items in jobs:
        for task, item in items:
            if task in cfg.task and item.text_key not in seen:
                seen.add(item.text_key)
                raw = raw_text(cfg, item, None if item.text else reports.read(item))
                if not isinstance(raw, str):
                    yield item.text_key, raw[0], raw[1]
