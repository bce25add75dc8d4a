"""Cleaning rules about change: comparisons with earlier films, what was removed, "no new".

One image shows no change. Each rule takes one clause and returns what is left of it, or "".
Statements about change that also tell how things are today are the business of now.py. All examples
are invented.
"""
import re

from mimic.cleaning.sentences import ended
from mimic.cleaning.words import (
    BLANK, CLAUSE_END, CLAUSE_END_OR_COMMA, COMPARATIVE, COMPARED_TO, DEVICE, EARLIER,
    EARLIER_STUDY, FINDING, HOW_MUCH, IN_COMPARISON, MERE_CHANGE, NEGATION, SAME, SEVERITY, VERB,
    either, facts, pattern)


def cut_unless_facts(phrase, clause, instead=""):
    """Cut what the pattern `phrase` matches, but leave every match that holds a fact of today.

    >>> cut_unless_facts(pattern(" since.*"), "Effusion since ___")
    'Effusion'
    >>> cut_unless_facts(pattern(" since.*"), "Effusion since the small one of ___")
    'Effusion since the small one of ___'
    """
    def replacement(match):
        if facts(MERE_CHANGE.sub("", match[0])):
            return match[0]
        return instead

    return phrase.sub(replacement, clause)


# ---- comparisons ----

# At the beginning: "As compared to the prior study of ___, ", "Since ___ there is"
LEADING_COMPARISON = pattern("^", either(
    f"(?:{COMPARED_TO}|in the interval since|(?:new )?since|from) {EARLIER_STUDY}"
    "(?:[,:] ?| (?=there |the |an? |no ))",
    either(
        f"(?:{COMPARED_TO}|(?:in the interval )?since (?:the )?{EARLIER}) [^,;:]*",
        "in the interval|as before",
        f"from {BLANK}[^,;:]*") + "[,:] ?"))

# At the beginning: "There is no significant change in the size of the ", before a finding
QUANTITY = "(?:position|size|extent|appearance|degree|severity)"
NO_CHANGE_IN = pattern(
    "^",
    either(
        f"{HOW_MUCH}(?:unchanged|stable) (?={QUANTITY} of)",
        "(?:there (?:is|has been|are) )?(?:no|little|minimal|without) "
        f"{HOW_MUCH}changes? (?:in|of) "),
    f"(?:the )?(?:{QUANTITY} of (?:the )?)?")

# In the middle: "The effusion {is unchanged, and }there is no edema." These are two statements;
# "Heart size is stable and normal" is one, for now.py.
UNCHANGED_AND = pattern(
    f"(?: {VERB}|,|,? (?:but|yet)) {SAME}{IN_COMPARISON},? and ",
    r"(?=(?:there|the|an?|no|right|left|bilateral|it)\b)")

# At the end of a statement: "which is unchanged", "and stable since the prior exam", ", similar"
# A remark between two commas takes both along if the verb of the sentence follows.
UNCHANGED = pattern(either(
    f",? (?:which )?{VERB} {SAME}{IN_COMPARISON}{CLAUSE_END}",
    f",? (?:and|but|yet|though|although) (?:{VERB} )?{SAME}{IN_COMPARISON}{CLAUSE_END}",
    f",? {SAME}{IN_COMPARISON}{CLAUSE_END_OR_COMMA}"))

# What is normal or not, but only said not to have changed: "Cardiomegaly{, stable hilar contours}"
STRUCTURE = ("(?:(?:(?:cardio)?mediastinal|hilar|cardiac|heart|and|the),? ){1,6}"
             "(?:contours?|silhouettes?|size|structures?)")
STABLE_STRUCTURE = pattern(either(
    f"(?:,|,? and) (?:stable|unchanged) {STRUCTURE}{CLAUSE_END}",
    f"(?:,|,? and) {STRUCTURE} {VERB} {SAME}{IN_COMPARISON}{CLAUSE_END}"))

# At the end of a statement: "compared to ___", "since the prior exam", "than on the previous
# study". "Since the study of ___, when ..." is left alone: what was seen then would remain.
TRAILING_COMPARISON = pattern(
    f",? (?:{COMPARED_TO} [^,;]*|",
    f"(?:since|from|as (?:seen )?on|than(?: on| in| at)?) {EARLIER_STUDY})",
    f"(?!, (?:when|where|at which|in which)){CLAUSE_END}")

# "The right is clear, and the left is unchanged": nothing would be left but the side
SIDE_ALONE = pattern(r"(?:^|, |\band )the (?:left|right|other)[.]?$")

SPEAKS_OF_CHANGE = pattern(
    r"\b(?:change|unchanged|stable|similar|as before|compar\w+|interval|prior|previous|unaltered|",
    r"(?:no|without) new)\b")


def drop_comparisons(clause):
    """What is said of change goes; the finding that it is said of stays.

    >>> drop_comparisons("Compared with ___, no change.")
    ''
    >>> drop_comparisons("As compared to the prior study, there is a small left effusion.")
    'there is a small left effusion.'
    >>> drop_comparisons("Small left effusion is unchanged since ___.")
    'Small left effusion.'
    >>> drop_comparisons("No significant change in the small left effusion.")
    'small left effusion.'
    >>> drop_comparisons("Left effusion is unchanged and there is no edema.")
    'Left effusion; there is no edema.'
    >>> drop_comparisons("Heart is large and unchanged.")
    'Heart is large.'
    """
    # at the beginning; "no relevant change" says nothing else
    left = cut_unless_facts(LEADING_COMPARISON, clause)
    if SPEAKS_OF_CHANGE.search(left) and not facts(MERE_CHANGE.sub("", left)):
        return ""

    # around the finding
    left = NO_CHANGE_IN.sub("", left)
    left = cut_unless_facts(STABLE_STRUCTURE, left)
    left = cut_unless_facts(UNCHANGED_AND, left, instead="; ")
    left = cut_unless_facts(UNCHANGED, left)
    # twice: "larger than on ___" is bare once its end is cut, "increased since ___" no more
    left = drop_comparatives(left)
    left = cut_unless_facts(TRAILING_COMPARISON, left)
    left = drop_comparatives(left)
    if left == clause or SIDE_ALONE.search(ended(left)):
        return clause
    return ended(left)


# " is slightly larger", ", new since ___". If "now" follows, now.py makes a statement of it.
# "Increased" alone is a finding of one film: "Heart size is increased."
IS_LARGER = pattern(
    r"(?:,?(?: which)? (?:is|are|remains?|appears?)|,) ",
    either(
        f"{HOW_MUCH}(?:new|{COMPARATIVE}|improved|worsened){IN_COMPARISON}{CLAUSE_END_OR_COMMA}",
        f"{HOW_MUCH}(?:in|de)creased(?: in size)?"
        f" (?:{COMPARED_TO}|from|since) {EARLIER_STUDY}{CLAUSE_END}"),
    r"(?!,? (?:and )?(?:now|currently)\b)")
# Where there are two, the one may be larger than the other, and not than before.
TWO = pattern(r"\b(?:bilateral|both|two|one|other|each|than)\b")


def drop_comparatives(clause):
    """A finding that is new, larger or better than before is there.

    >>> drop_comparatives("The left effusion is slightly larger.")
    'The left effusion.'
    >>> drop_comparatives("Bilateral effusions, the left is larger.")
    'Bilateral effusions, the left is larger.'
    """
    comparative = IS_LARGER.search(clause)
    if comparative is None:
        return clause
    before = clause[:comparative.start()]
    subject = before.rpartition(", ")[2]
    if not FINDING.search(subject) or TWO.search(clause) or NEGATION.search(before):
        return clause
    return cut_unless_facts(IS_LARGER, clause)


# ---- what was removed ----

REMOVAL = pattern(
    r"(?:there (?:has been|is) )?(?:an? )?(?:interval )?(?:removal of|extubation)\b")

# Where a clause about a removal may go on with something else. The first group holds the word that
# says so plainly; after a mere comma the list of what was removed may go on.
BESIDES = pattern(
    "(?:,|,? (with|without|but)|,? and",
    f"(?= (?:new|interval|placement|insertion|increased|decreased|{SEVERITY}|there|no)",
    r"\b)) ")
IN_PLACE = pattern(
    r"\b(?:is|are|unchanged|stable|remain\w*|in place|ends?|tip|terminat\w*|new|plac\w+|",
    r"insert\w+)\b")


def drop_removals(clause):
    """What has been taken out is not to be seen; what is found besides is.

    >>> drop_removals("Interval removal of the left tube.")
    ''
    >>> drop_removals("Interval removal of a tube without pneumothorax.")
    'No pneumothorax.'
    >>> drop_removals("Interval removal of left PICC, right catheter is unchanged.")
    'right catheter is unchanged.'
    """
    statement = cut_unless_facts(LEADING_COMPARISON, clause)
    removal = REMOVAL.match(statement)
    if removal is None:
        return clause
    clause = statement
    for joint in BESIDES.finditer(clause, removal.end()):
        joining_word = joint[1]
        rest = clause[joint.end():]
        statement = rest
        if not joining_word and not IN_PLACE.search(rest):
            statement = without_devices(rest)           # "tube, PICC and drain": all were removed
        if not FINDING.search(statement):
            continue
        if joining_word and joining_word.lower() == "without":
            return "No " + rest
        return rest
    if FINDING.search(without_devices(clause)):
        return clause
    return ""


def without_devices(text):
    """
    >>> without_devices("left tube, edema")
    'left , edema'
    """
    return re.sub(DEVICE, "", text, flags=re.IGNORECASE)


# ---- "no new" ----

# Different words for a denser lung: what is called new may be more of an old one by another name.
DENSER_LUNG = pattern(
    "opaci|consolidat|infiltrat|airspace|pneumonia|densit|atelecta|collapse")
NO_NEW = pattern(
    r"\b(no|without|nor|any)((?: (?:definite|evidence of|appreciable|suspicious))?) new",
    r"(?: (?:or|and)(?= \w))?\b")
DENIAL = pattern(
    r"^(?:there (?:is|are) )?(?:no|without)\b(?!.*\b(?:but|with|however|although|except|other)\b)")


def affirmed(clause):
    """The findings that a clause does not merely deny, as a set; every denser lung is "lung".

    >>> sorted(affirmed("Left effusion and opacity.")), affirmed("No effusion or edema.")
    (['effusion', 'lung'], set())
    """
    if DENIAL.match(clause):
        return set()
    findings = {word for word in facts(clause) if FINDING.match(word)}
    findings = {"lung" if DENSER_LUNG.match(word) else word for word in findings}
    return findings - {"normal", "clear"}


def no_new_to_no(clause, known=frozenset()):
    """"No new" becomes "no" where the rest of the report affirms none of it.

    `known` are the findings that the rest affirms. Where it knows one, an old one may be there, and
    the clause stays as it is.

    >>> no_new_to_no("No new consolidation or effusion.")
    'No consolidation or effusion.'
    >>> no_new_to_no("No new effusion or edema.", known={"effusion"})
    'No new effusion or edema.'
    """
    match = NO_NEW.search(clause)
    if match is None:
        return clause
    denied, _, rest = clause[match.end():].partition(",")
    if not affirmed(denied):
        # "no new abnormality" only compares, unless the clause affirms something besides
        return clause if affirmed(clause) else ""
    if affirmed(denied) & (known | affirmed(rest)):
        return clause
    return NO_NEW.sub(r"\1\2", clause)
