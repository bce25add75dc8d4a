"""Cleaning rules about what was before: comparisons, words of change, earlier sizes, "no new". One image shows no change.

Each rule takes a clause and gives what is left of it, or "". What a rule may take away without loss is in `HARMLESS`;
mimic/cleaning/rules.py puts everything else under guard. All examples are invented.
"""
import re

from mimic.cleaning.sentences import ended
from mimic.cleaning.words import (
    BLANK, COMPARED, DENIES, DEVICES, EARLIER, END, FINDING, HARMLESS, I, IS, MUCH, OTHER,
    PRIOR, SAME, SEVERITY, THAN, facts)

LEADING = re.compile(rf"^(?:(?:{COMPARED}|in the interval since|(?:new )?since|from) {PRIOR}(?:[,:] ?| (?=there |the |an? |no ))|"
                     rf"(?:(?:{COMPARED}|(?:in the interval )?since (?:the )?{EARLIER}) [^,;:]*|in the interval|as before|"
                     rf"from {BLANK}[^,;:]*)[,:] ?)", I)
NO_CHANGE = re.compile(rf"^(?:(?:unchanged|stable) (?=(?:position|size|extent|appearance|degree|severity) of)|"
                       rf"(?:there (?:is|has been|are) )?(?:no|little|minimal|without) (?:{MUCH} ){{0,4}}changes? (?:in|of) )"
                       r"(?:the )?(?:(?:size|extent|appearance|position|degree|severity) of (?:the )?)?", I)
PREDICATE = re.compile(rf",? (?:which )?{IS} {SAME}{THAN}{END}|,? and (?:{IS} )?{SAME}{THAN}{END}|"
                       rf",? {SAME}{THAN}(?:,(?= (?:is|are|was|were|has|have)\b)|{END})", I)
# "the effusion is unchanged and there is no edema": two statements; "is stable and normal": one, ADVERBS' business
AND_SO_ON = re.compile(rf"(?: {IS}|,) {SAME}{THAN},? and (?=(?:there|the|an?|no|right|left|bilateral|it)\b)", I)
TAIL = re.compile(rf",? (?:{COMPARED} [^,;]*|(?:since|from|as (?:seen )?on|than(?: on| in| at)?) {PRIOR})"
                  rf"(?!, (?:when|where|at which|in which)){END}", I)
ONLY_CHANGE = re.compile(r"\b(?:change|unchanged|stable|similar|as before|compar\w+|interval|prior|previous|unaltered|"
                         r"(?:no|without) new)\b", I)
IS_OTHER = re.compile(r"(?:,?(?: which)? (?:is|are|remains?|appears?)|,) "
                      rf"(?:{MUCH} ){{0,4}}(?:new|{OTHER}|improved|worsened){THAN}{END}"
                      r"(?!,? (?:and )?(?:now|currently)\b)", I)
TWO = re.compile(r"\b(?:bilateral|both|two|one|other|each|than)\b", I)       # "the left one is larger": not than before


def keep_facts(pattern, sentence, instead=""):
    """Cut what `pattern` finds, but no piece that holds a finding, a side, a size, a negation or a doubt."""
    return pattern.sub(lambda found: found[0] if facts(HARMLESS.sub("", found[0])) else instead, sentence)


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
    >>> comparisons("The left effusion is larger.") + " " + comparisons("Small right effusion, new since ___.")
    'The left effusion. Small right effusion.'
    >>> comparisons("Heart is large and unchanged.")
    'Heart is large.'
    """
    cut = keep_facts(LEADING, sentence)
    if ONLY_CHANGE.search(cut) and not facts(HARMLESS.sub("", cut)):
        return ""
    cut = keep_facts(AND_SO_ON, NO_CHANGE.sub("", cut), "; ")
    cut = keep_facts(TAIL, keep_facts(PREDICATE, cut))
    other = IS_OTHER.search(cut)
    subject = cut[:other.start()].rpartition(", ")[2] if other else ""
    if FINDING.search(subject) and not TWO.search(cut) and not DENIES.search(cut[:other.start()]):
        cut = keep_facts(IS_OTHER, cut)
    return ended(cut) if cut != sentence else sentence


REMOVED = re.compile(r"(?:there has been )?(?:interval )?(?:removal of|extubation)\b", I)
BESIDES = re.compile(rf"(?:,|,? (with|without|but)|,? and(?= (?:new|interval|placement|insertion|increased|decreased|"
                     rf"{SEVERITY}|there|no)\b)) ", I)
IN_PLACE = re.compile(r"\b(?:is|are|unchanged|stable|remain\w*|in place|ends?|tip|terminat\w*|new|plac\w+|insert\w+)\b", I)


def removals(sentence):
    """What has been taken out is not to be seen; what is found besides is.

    >>> removals("Interval removal of the left tube.")
    ''
    >>> removals("Interval removal of a tube without pneumothorax.")
    'No pneumothorax.'
    """
    start = REMOVED.match(sentence)
    if not start:
        return sentence
    for then in BESIDES.finditer(sentence, start.end()):
        rest = sentence[then.end():]
        if FINDING.search(rest if then[1] or IN_PLACE.search(rest) else re.sub(DEVICES, "", rest, flags=I)):
            return "No " * ((then[1] or "").lower() == "without") + rest
    return sentence if FINDING.search(re.sub(DEVICES, "", sentence, flags=I)) else ""


# synonyms: what is new may be more of an old one by another name
LUNG = re.compile(r"opaci|consolidat|infiltrat|airspace|pneumonia|densit|atelecta|collapse", I)
NO_NEW = re.compile(r"\b(no|without|nor|any)((?: (?:definite|evidence of|appreciable|suspicious))?) new"
                    r"(?: (?:or|and)(?= \w))?\b", I)
DENIAL = re.compile(r"^(?:there (?:is|are) )?(?:no|without)\b(?!.*\b(?:but|with|however|although|except|other)\b)", I)


def affirmed(clause):
    """The findings that a clause does not merely deny."""
    words = {"lung" if LUNG.match(word) else word for word in facts(clause) if FINDING.match(word)} - {"normal", "clear"}
    return set() if DENIAL.match(clause) else words


def no_new(clause, known=frozenset()):
    """"No new" is "no" where the rest of the report knows none of it (`known`); else it stays: an old one may be there.

    >>> no_new("No new consolidation or effusion.")
    'No consolidation or effusion.'
    >>> no_new("No new effusion or edema.", known={"effusion"})
    'No new effusion or edema.'
    """
    found = NO_NEW.search(clause)
    if not found:
        return clause
    denied, _, rest = clause[found.end():].partition(",")
    if not affirmed(denied):
        return clause if affirmed(clause) else ""       # "no new abnormality" only compares
    return clause if affirmed(denied) & (known | affirmed(rest)) else NO_NEW.sub(r"\1\2", clause)
