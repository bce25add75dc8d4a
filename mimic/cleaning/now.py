"""Statements about change that become statements about now: of two sizes that of today, and words like "unchanged" go."""
import re

from mimic.cleaning.words import (
    DENIES, END, FINDING, I, MUCH, OTHER, PRIOR, SEVERITY, SIZE, WORSE, facts)


SOFT = r"(?:effusions?|edema|pneumothora(?:x|ces)|atelectas[ie]s|congestion|consolidations?|cardiomegaly|pneumonia)"
PLACED = (r"(?:(?:right|left|bilateral|bibasilar|basilar|small|moderate|large|mild|severe|tiny|trace|pleural|pulmonary|"
          r"interstitial|the) ){0,6}")
AGAIN = r"(?:seen|noted|demonstrated|visualized|visualised|identified|present|redemonstrated)"
ADVERBS = re.compile(
    rf"(\ban? )?\b(?:(?:unchanged|stable) to (?:slightly |{SEVERITY} )?{WORSE}|unchanged|persistent|persisting|redemonstrated|"
    r"newly|(?<!no )(?<!without )(?<!any )new|once again|again|"
    r"(?:unchanged|stable)(?: and)?|pre-?existing|improving|worsening|enlarging|resolving|"
    r"(?<!has )(?<!have )(?<!not )(?<!but )(?:slightly |markedly |mildly )?(?:improved|worsened)|"
    r"(?:slightly |markedly |mildly )?(?:increasing|decreasing)|previously (?:seen|noted|described)|now|currently|"
    rf"(?:slightly |markedly |mildly )?(?:increased|decreased)(?= {PLACED}{SOFT})) (?=(\w))(?!(?:and|but|not|or|"
    r"in|on|at|from|since|to|with|by|as|over|of|compared|relative)\b)", I)
MEANWHILE = re.compile(r", (?=(?:an? )?(?:unchanged|stable|persist\w+|new|improv\w+|worsen\w+|increas\w+|decreas\w+|enlarging|"
                       r"resolving) (?!or\b|and\b))", I)
STRAY = re.compile(rf"^(?:unchanged|stable|persistent), |,(?= (?:unchanged|stable|persistent) {SOFT})", I)       # "stable, mild"
SEEN_AGAIN = re.compile(rf"^(?:once )?again,? {AGAIN} (is|are) ([^,;]*?)(\.?)$", I)
NEW_IS = re.compile(rf"^new(?: (?:since|from|compared to) {PRIOR})? (is|are) ", I)
DEVELOPED = re.compile(r"^(?:there (?:has been|is) )?(?:an )?(?:interval |(?=(?:worsening|progression) of))"
                       r"(?:increase|decrease|improvement|worsening|development|progression|enlargement|placement|insertion) "
                       r"(?:in|of) (?:the )?(?:size of (?:the )?)?", I)
# "has increased, now moderate", "decreased from large to small", "grew from 9 mm to 12 mm": what is now stays
HAS_CHANGED = re.compile(rf",? (?:has|have) (?:{MUCH} ){{0,4}}{WORSE}(?: in (?:size|extent))?{END}", I)
DEGREE = rf"(?:(?:{SEVERITY})(?: in size)?|{SIZE})"
NOW = re.compile(rf"(?: in size| in extent)?(?:(?:,| and) (?:and )?(?:(?:is|are) )?(?:now|currently) |"
                 rf" from {DEGREE} to (?={DEGREE}))", I)
IS_NOW = re.compile(r" (is|are) (?:now|currently) ", I)
BECOME = re.compile(rf" (?:(has|have|is|are) (?:{MUCH} ){{0,4}})?(?:{WORSE}|{OTHER}){NOW.pattern}", I)
WAS = re.compile(rf",? (?:(?:which|that) (?:was|were) )?(?:previously|formerly) {DEGREE},?(?: and)?(?= (?:(?:is|are|measures|"
                 r"measuring) )?(?:now|currently|today)\b)", I)
WAS_IS = re.compile(rf" (?:was|were|measured) {DEGREE},? (?:and |but )?(?:(?:is|are|measures) )?now ", I)
# "no worsening edema" does not say that there is none, "not previously seen nodule" says that there is one: left as it is
NO_MORE = re.compile(r"\b(?:no|not|without|nor|neither|any)\b[^,;.]{0,120}?\b(?:newly|new|worsening|worsened|increas(?:ed|ing)|"
                     r"decreas(?:ed|ing)|enlarging|improv(?:ed|ing)|resolving|previously (?:seen|noted|described)) \w", I)


def now(sentence):
    """Of two sizes or degrees the one of today.

    >>> now("The left effusion has increased, now moderate.")
    'The left effusion is moderate.'
    >>> now("Moderate effusion has decreased, now small.")
    'Effusion is small.'
    >>> now("Nodule, previously 12 mm, now 15 mm.")
    'Nodule now 15 mm.'
    >>> now("Nodule has increased from 9 mm to 12 mm.")
    'Nodule is 12 mm.'
    """
    sentence = WAS_IS.sub(" is ", WAS.sub("", sentence))
    found = BECOME.search(sentence) or IS_NOW.search(sentence)
    degree = found and re.match(DEGREE, sentence[found.end():], I)
    if not degree or re.search(r"[,;]| and ", sentence[:found.start()]):
        return re.sub(BECOME, lambda f: (" are " if f[1].lower() in ("have", "are") else " is ") if f[1] else f[0], sentence)
    head = re.sub(rf"\b(?:(?:previously|formerly) {DEGREE}|{SEVERITY}) ", "", sentence[:found.start()], flags=I)
    many = (found[1] or "").lower() in ("have", "are") or head.endswith(("effusions", "opacities", "nodules", "masses"))
    return f"{head[:1].upper()}{head[1:]} {'are' if many else 'is'} {sentence[found.end():]}"


def change_words(sentence):
    """
    >>> change_words("unchanged mild cardiomegaly")
    'mild cardiomegaly'
    >>> change_words("again seen is a pacemaker.")
    'a pacemaker is seen.'
    >>> change_words("improved edema") + ", " + change_words("increased opacity")
    'edema, increased opacity'
    >>> change_words("There continues to be a small effusion.")
    'There is a small effusion.'
    >>> change_words("There is a new effusion.")
    'There is an effusion.'
    """
    sentence = SEEN_AGAIN.sub(r"\2 \1 seen\3", NEW_IS.sub(r"there \1 ", sentence))
    sentence = STRAY.sub("", DEVELOPED.sub("", sentence))
    if FINDING.search(HAS_CHANGED.sub("", sentence)):
        sentence = HAS_CHANGED.sub("", sentence)
    if not DENIES.search(sentence):
        sentence = re.sub(rf" (?:remains?|persists?){END}", "", sentence, flags=I)
    sentence = re.sub(r"\bcontinues? to be\b|\bremains\b(?=.)(?![,;.])", "is", sentence, flags=I)
    sentence = re.sub(r"\bremain\b(?=.)(?![,;.])", "are", sentence, flags=I)
    if NO_MORE.search(sentence):
        return sentence
    if DENIES.search(sentence.partition(",")[0]):           # "no edema, unchanged effusion" must not become "no edema, effusion"
        sentence = MEANWHILE.sub("; ", sentence)
    article = lambda found: found[1] and found[1][0] + "n" * (found[2].lower() in "aeio") + " " or ""
    cut = re.sub(r"\binterval(?:ly)? (?=\w)", "", ADVERBS.sub(article, sentence), flags=I)
    if re.search(r"\b(?:stable|unchanged)\b", sentence, I) and not facts(sentence):
        return ""                                                           # "stable heart size"
    return cut if re.search(r"[^\W\d_]{2}", cut) else ""
