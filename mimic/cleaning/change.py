"""Cleaning rules about what was before: comparisons, words of change, earlier sizes, "no new". One image shows no change.

Each rule takes a clause and gives what is left of it, or "". What a rule may take away without loss is in `HARMLESS`;
mimic/cleaning/rules.py puts everything else under guard. All examples are invented.
"""
import re

from mimic.cleaning.words import BLANK, DATE, DENIES, DEVICES, EARLIER, FINDING, PRIOR, SEVERITY, SIZE, TIME, I, ended, facts

MUCH = (r"(?:significant|relevant|interval|major|appreciable|substantial|important|definite|notable|short-interval|radiographic|"
        r"essentially|largely|grossly|relatively|overall|otherwise|(?:not )?(?:significantly|substantially|"
        r"appreciably)|not|slightly|markedly|mildly|moderately|somewhat|quite|very|further)")
SAME = rf"(?:{MUCH} ){{0,4}}(?:unchanged|stable|similar|unaltered|changed|as before|the same)"
COMPARED = rf"(?:as |when )?(?:compared|in comparison|comparison is made|relative|comparing|allowing for) (?:to|with)"
THAN = (rf"(?: (?:(?:{COMPARED}|from|since|to|as on|over) {PRIOR}|in (?:the )?(?:position|appearance|size|"
        r"extent|severity|degree|interval)(?: and (?:position|appearance|size|extent))?|as before|overall)){0,3}")
END = r"(?=[,;.]|$)"
LEADING = re.compile(rf"^(?:(?:{COMPARED}|in the interval since|(?:new )?since|from) {PRIOR}(?:[,:] ?| (?=there |the |an? |no ))|"
                     rf"(?:(?:{COMPARED}|(?:in the interval )?since (?:the )?{EARLIER}) [^,;:]*|in the interval|as before|"
                     rf"from {BLANK}[^,;:]*)[,:] ?)", I)
NO_CHANGE = re.compile(rf"^(?:(?:unchanged|stable) (?=(?:position|size|extent|appearance|degree|severity) of)|"
                       rf"(?:there (?:is|has been|are) )?(?:no|little|minimal|without) (?:{MUCH} ){{0,4}}changes? (?:in|of) )"
                       r"(?:the )?(?:(?:size|extent|appearance|position|degree|severity) of (?:the )?)?", I)
IS = r"(?:is|are|remains?|appears?|has been|have been|has|have)"
PREDICATE = re.compile(rf",? (?:which )?{IS} {SAME}{THAN}{END}|,? and (?:{IS} )?{SAME}{THAN}{END}|"
                       rf",? {SAME}{THAN}(?:,(?= (?:is|are|was|were|has|have)\b)|{END})", I)
# "the effusion is unchanged and there is no edema": two statements; "is stable and normal": one, ADVERBS' business
AND_SO_ON = re.compile(rf"(?: {IS}|,) {SAME}{THAN},? and (?=(?:there|the|an?|no|right|left|bilateral|it)\b)", I)
TAIL = re.compile(rf",? (?:{COMPARED} [^,;]*|(?:since|from|as (?:seen )?on|than(?: on| in| at)?) {PRIOR})"
                  rf"(?!, (?:when|where|at which|in which)){END}", I)
ONLY_CHANGE = re.compile(r"\b(?:change|unchanged|stable|similar|as before|compar\w+|interval|prior|previous|unaltered|"
                         r"(?:no|without) new)\b", I)
WORSE = r"(?:increased|decreased|improved|worsened|progressed|enlarged|grown|diminished)"
HAS_CHANGED = re.compile(rf",? (?:has|have) (?:{MUCH} ){{0,4}}{WORSE}(?: in (?:size|extent))?{END}", I)
OTHER = "(?:larger|bigger|smaller|worse|better)"
IS_OTHER = re.compile(r"(?:,?(?: which)? (?:is|are|remains?|appears?)|,) "
                      rf"(?:{MUCH} ){{0,4}}(?:new|{OTHER}|improved|worsened){THAN}{END}"
                      r"(?!,? (?:and )?(?:now|currently)\b)", I)
TWO = re.compile(r"\b(?:bilateral|both|two|one|other|each|than)\b", I)       # "the left one is larger": not than before
HARMLESS = re.compile(rf"\b(?:stable|unchanged) to {SEVERITY} {WORSE}\b|"
                      rf"\b(?:no|not|little|without|{SEVERITY}) (?:{MUCH} ){{0,4}}changed?s?\b|"
                      rf"\bnot (?:{MUCH} ){{0,4}}(?!enlarged){WORSE}\b|"
                      rf"\b(?:has|have) (?:{MUCH} ){{0,4}}{WORSE}\b|\b{SAME}\b", I)


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


BEFORE = re.compile(rf", (?:previously|formerly) {SEVERITY}{END}|"
                    r"[ ,(]{0,3}\b(?:previously|formerly|prior(?:ly)?|versus|vs\.?|compared (?:to|with)) "
                    rf"(?:measur(?:ed|ing) )?(?:approximately )?{SIZE}(?: previously| before| on {BLANK})?\)?"
                    rf"(?= ?(?:[.,;)]|$))| ?\(was {SIZE}\)|(?<=[cm]m), was {SIZE}{END}", I)
THEN = re.compile(rf"(?:^|,? (?:and |but |while |whereas )?)(?:on|in) (?:(?:the )?(?:{EARLIER} ){{1,3}}(?:(?:of|from|dated) )?)?"
                  rf"(?:{BLANK}|{DATE}),? there (?:was|were)\b[^,;.]*[.]?", I)         # speaks of another image
WHEN = re.compile(rf"[ ,(]{{0,3}}(?:\b(?:on|at|from|dated|of|since|obtained|performed|the) ){{0,4}}(?:{DATE}|{TIME})\)?", I)


def dates(sentence):
    """Current measures stay, and so does the verb "may".

    >>> dates("Nodule of 15 mm, previously 12 mm.")
    'Nodule of 15 mm.'
    >>> dates("Tube placed on 3/4/2150 at 14:05.")
    'Tube placed.'
    >>> dates("Small left effusion, on ___ there was none.")
    'Small left effusion.'
    """
    rest = THEN.sub("", sentence)
    if rest != sentence and (FINDING.search(rest) or not facts(rest)):
        return dates(ended(rest))
    return WHEN.sub(lambda found: found[0] if found[0].strip(" ,(").startswith("may ") else "", BEFORE.sub("", sentence)).strip()
