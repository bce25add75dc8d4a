"""Cleaning rules that turn a statement about change into one about now.

"The effusion has increased, now moderate" says that there is a moderate effusion today. Each rule
takes one clause and returns what is left of it, or "". All examples are invented.
"""
import re

from mimic.cleaning.sentences import has_words
from mimic.cleaning.words import (
    CHANGED, CLAUSE_END, COMPARATIVE, EARLIER_STUDY, FINDING, HOW_MUCH, NEGATION, SEVERITY, SIZE,
    either, pattern)

# ---- of two sizes or degrees the one of today ----

DEGREE = either(f"{SEVERITY}(?: in size)?", SIZE)

# What stands between a verb of change and the degree of today: ", and is now ", " from 9 mm to "
TO_NOW = "(?: in size| in extent)?" + either(
    "(?:,| and) (?:and )?(?:(?:is|are) )?(?:now|currently) ",
    f" from {DEGREE} to (?={DEGREE})")

# "{has increased, now }moderate", "{decreased from large to }small". The group holds the verb.
BECOMES = pattern(f" (?:(has|have|is|are) {HOW_MUCH})?(?:{CHANGED}|{COMPARATIVE}){TO_NOW}")
IS_NOW = pattern(" (is|are) (?:now|currently) ")

# Without the earlier degree: "Nodule{, previously 12 mm,} now 15 mm", "{ measured 8 mm, now }10 mm"
FORMERLY = pattern(
    f",? (?:(?:which|that) (?:was|were) )?(?:previously|formerly) {DEGREE},?(?: and)?",
    r"(?= (?:(?:is|are|measures|measuring) )?(?:now|currently|today)\b)")
WAS_AND_IS_NOW = pattern(
    f" (?:was|were|measured) {DEGREE},? (?:and |but )?(?:(?:is|are|measures) )?now ")

# An earlier degree in the subject: "{Moderate }effusion has decreased, now small"
EARLIER_DEGREE = pattern(rf"\b(?:(?:previously|formerly) {DEGREE}|{SEVERITY}) ")


def verb_of_today(match):
    """The verb for a match of BECOMES; a match without "has" or "is" is left as it is."""
    if not match[1]:
        return match[0]
    if match[1].lower() in ("have", "are"):
        return " are "
    return " is "


def state_now(clause):
    """Of two sizes or degrees the one of today stays.

    >>> state_now("The left effusion has increased, now moderate.")
    'The left effusion is moderate.'
    >>> state_now("Moderate effusion has decreased, now small.")
    'Effusion is small.'
    >>> state_now("Nodule, previously 12 mm, now 15 mm.")
    'Nodule now 15 mm.'
    >>> state_now("Nodule has increased from 9 mm to 12 mm.")
    'Nodule is 12 mm.'
    """
    clause = FORMERLY.sub("", clause)
    clause = WAS_AND_IS_NOW.sub(" is ", clause)
    verb = BECOMES.search(clause)
    if verb is None:
        verb = IS_NOW.search(clause)
    if verb is None:
        return clause
    subject = clause[:verb.start()]
    today = clause[verb.end():]

    # several statements, or no degree of today: the verb alone changes
    if re.search(r"[,;]| and ", subject) or not re.match(DEGREE, today, re.IGNORECASE):
        return BECOMES.sub(verb_of_today, clause)

    subject = EARLIER_DEGREE.sub("", subject)
    plural = subject.endswith(("effusions", "opacities", "nodules", "masses"))
    if verb[1] and verb[1].lower() in ("have", "are"):
        plural = True
    return f"{subject[:1].upper()}{subject[1:]} {'are' if plural else 'is'} {today}"


# ---- words of change ----

# Findings that can be "increased" only against an earlier film. "Increased opacity" and "increased
# markings", in contrast, are findings of one film; so are "decreased lung volumes".
COMPARED_FINDING = either(
    "effusions?", "edema", "pneumothora(?:x|ces)", "atelectas[ie]s", "congestion",
    "consolidations?", "cardiomegaly", "pneumonia")
# the adjectives that may stand before them
ADJECTIVES = "(?:" + either(
    "right|left|bilateral|bibasilar|basilar", "small|moderate|large|mild|severe|tiny|trace",
    "pleural|pulmonary|interstitial", "the") + " ){0,6}"

# "There is {a new} effusion": a word of change before what it belongs to. The first group holds its
# article, the second the next letter, by which a new article is chosen.
SLIGHTLY = "(?:slightly |markedly |mildly |significantly |substantially |somewhat |further )?"
LARGELY = "(?:grossly |largely |relatively |essentially )?"
CHANGE_WORD = pattern(
    r"(\ban? )?\b",
    either(
        # unchanged
        f"{LARGELY}(?:unchanged|stable) (?:to|or) (?:slightly |{SEVERITY} )?{CHANGED}",
        "(?:unchanged|stable)[ -]appearing",
        f"{LARGELY}unchanged|persistent|persisting|redemonstrated|{LARGELY}stable(?: and)?",
        "pre-?existing|once again|again",
        "previously (?:seen|noted|described|identified|demonstrated|visualized|reported)",
        # new; "no new" is the business of change.py
        "newly|(?<!no )(?<!without )(?<!any )new|now|currently",
        # better or worse; as an adjective, not in "has improved"
        "improving|worsening|enlarging|resolving",
        f"(?<!has )(?<!have )(?<!not )(?<!but ){SLIGHTLY}(?:improved|worsened)",
        f"{SLIGHTLY}(?:increasing|decreasing)",
        f"{SLIGHTLY}(?:increased|decreased)(?= {ADJECTIVES}{COMPARED_FINDING})"),
    # what it belongs to follows, and no small word: "improved but not resolved" stays
    r" (?=(\w))",
    "(?!(?:and|but|not|or|in|on|at|from|since|to|with|by|as|over|of|compared|relative|given|when|",
    r"for)\b)")

# At the beginning: "Again seen is a pacemaker", "New since ___ is a", "Interval increase in the"
AGAIN_SEEN = pattern(
    "^(?:once )?again,? ",
    "(?:seen|noted|observed|demonstrated|visualized|visualised|identified|present|redemonstrated) ",
    r"(is|are) ([^,;]*?)(\.?)$")
NEW_IS = pattern(f"^new(?: (?:since|from|compared to) {EARLIER_STUDY})? (is|are) ")
DEVELOPMENT_OF = pattern(
    "^(?:there (?:has been|is) )?(?:an? )?(?:significant |slight )?",
    "(?:interval |(?=(?:worsening|progression) of))",
    "(?:increase|decrease|improvement|worsening|development|progression|enlargement|placement|",
    "insertion)(?:/improvement)? (?:in|of) (?:the |an? )?(?:size of (?:the )?)?")
SEEN_AGAIN = pattern(
    "^(?:there is )?redemonstration (?:and (?:stable|unchanged) appearance )?of (?:the )?")

# "Stable, mild cardiomegaly": the word goes, or at least its comma
CHANGE_AND_COMMA = pattern(
    "^(?:unchanged|stable|persistent), |",
    f",(?= (?:unchanged|stable|persistent) {COMPARED_FINDING})")

# At the end of a statement: " has markedly decreased in size", " persists"
HAS_CHANGED = pattern(either(
    f",? (?:has|have) {HOW_MUCH}{CHANGED}(?: in (?:size|extent))?{CLAUSE_END}",
    f",? with {HOW_MUCH}(?:improvement|worsening|progression|regression){CLAUSE_END}"))
REMAINS_AT_END = pattern(f" (?:remains?|persists?){CLAUSE_END}")

# In the middle, these stand for "is" and "are".
CONTINUES_TO_BE = pattern(r"\bcontinues? to be\b|\bremains\b(?=.)(?![,;.])")
REMAIN = pattern(r"\bremain\b(?=.)(?![,;.])")

# "No worsening edema" does not say that there is none, and "not previously seen nodule" says that
# there is one: such a clause is left as it is.
DENIED_CHANGE = pattern(
    r"\b(?:no|not|without|nor|neither|any)\b[^,;.]{0,120}?\b",
    either(
        "newly|new|worsening|worsened|increas(?:ed|ing)|decreas(?:ed|ing)|enlarging",
        "improv(?:ed|ing)|resolving|previously (?:seen|noted|described)"),
    r" \w")

# "No edema, unchanged effusion" must not become "no edema, effusion": a semicolon takes the place
# of the comma.
COMMA_BEFORE_CHANGE = pattern(
    ", (?=(?:an? )?",
    r"(?:unchanged|stable|persist\w+|new|improv\w+|worsen\w+|increas\w+|decreas\w+|enlarging|",
    r"resolving) (?!or\b|and\b))")
INTERVAL = pattern(r"(\ban? )?\binterval(?:ly)? (?=(\w))")


def article_for_next_word(match):
    """What stays of a match of CHANGE_WORD: "a " or "an ", as the next letter wants it, or ""."""
    article, next_letter = match.groups()
    if not article:
        return ""
    letter_n = "n" if next_letter.lower() in "aeio" else ""
    return f"{article[0]}{letter_n} "


def drop_change_words(clause):
    """Words like "unchanged", "new" and "again" go; the finding that they belong to is there.

    >>> drop_change_words("unchanged mild cardiomegaly")
    'mild cardiomegaly'
    >>> drop_change_words("again seen is a pacemaker.")
    'a pacemaker is seen.'
    >>> drop_change_words("Significantly improved aeration.")
    'aeration.'
    >>> drop_change_words("improved edema") + ", " + drop_change_words("increased opacity")
    'edema, increased opacity'
    >>> drop_change_words("There continues to be a small effusion.")
    'There is a small effusion.'
    >>> drop_change_words("There is a new effusion.")
    'There is an effusion.'
    """
    # phrases at the beginning
    clause = NEW_IS.sub(r"there \1 ", clause)
    clause = AGAIN_SEEN.sub(r"\2 \1 seen\3", clause)
    clause = DEVELOPMENT_OF.sub("", clause)
    clause = SEEN_AGAIN.sub("", clause)
    clause = CHANGE_AND_COMMA.sub("", clause)

    # verbs; "no edema persists" is no "no edema"
    if FINDING.search(HAS_CHANGED.sub("", clause)):
        clause = HAS_CHANGED.sub("", clause)
    if not NEGATION.search(clause):
        clause = REMAINS_AT_END.sub("", clause)
    clause = CONTINUES_TO_BE.sub("is", clause)
    clause = REMAIN.sub("are", clause)

    # adjectives and adverbs
    if DENIED_CHANGE.search(clause):
        return clause
    if NEGATION.search(clause.partition(",")[0]):
        clause = COMMA_BEFORE_CHANGE.sub("; ", clause)
    left = CHANGE_WORD.sub(article_for_next_word, clause)
    left = INTERVAL.sub(article_for_next_word, left)
    return left if has_words(left) else ""
