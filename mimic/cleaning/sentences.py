"""A text is cut into sentences and clauses, and what a rule has left of one is made whole again."""
import re

# The full stop of these does not end a sentence.
ABBREVIATION = re.compile(
    r"\b(?:Drs?|Mrs?|Ms|Prof|vs|approx|e\.g|i\.e|[ap]\.m)\.$", re.IGNORECASE)


# What hung on words that a rule has cut: at the end "Heart is enlarged{ but}", "Opacities{,
# consistent with the patient's}", "Sutures{ are likewise}"; at the beginning "{And }no edema".
HANGING = "|".join((
    "and|but|or|nor|although|though|however|while|whereas|which|that|for which|this|these",
    "of|in|with|for|to|from|by|at|on|as|since|than|beyond|due to|secondary to",
    "(?:in keeping|consistent|compatible)(?: with)?", "an?|the|(?:the |this )?patient's|his|her",
    "is|are|was|were|has been|have been|appears?|remains?|also|likewise|again"))
DANGLING = re.compile(rf"(?:[ ,;]|\b(?:{HANGING})(?= |$)){{1,8}}$", re.IGNORECASE)
DANGLING_START = re.compile(
    r"^(?:(?:and|but|or|although|however|while|whereas)\b[ ,]*|[,;] ?)+", re.IGNORECASE)


def without_dangling(text):
    """A clause that was cut, without the small words that are left hanging at its ends.

    >>> without_dangling("Heart is mildly enlarged but.")
    'Heart is mildly enlarged.'
    """
    mark = text[-1] if text.endswith((".", "!", "?")) else ""
    return DANGLING_START.sub("", DANGLING.sub("", text.rstrip(" .!?"))) + mark


def has_words(text):
    """Whether there is more than blanks, digits and punctuation: two letters in a row."""
    return bool(re.search(r"[^\W\d_]{2}", text))


def sentences(text):
    """Cut after . ! ? but not in decimals, nor after abbreviations.

    >>> sentences("Nodule of 1.5 cm. Seen by Dr. ___ today. Clear.")
    ['Nodule of 1.5 cm.', 'Seen by Dr. ___ today.', 'Clear.']
    """
    complete = []
    begun = []                                      # pieces of a sentence that is not yet complete
    # a blank must follow: the point of "1.5 cm" ends nothing
    for piece in re.split(r"(?<=[.!?])\s+", text.strip()):
        if piece:
            begun.append(piece)
        if begun and not ABBREVIATION.search(piece):
            complete.append(" ".join(begun))
            begun = []
    if begun:
        complete.append(" ".join(begun))
    return complete


def clauses(sentence):
    """The parts of a sentence that stand apart by a semicolon. Each rule looks at one of them.

    >>> clauses("Small effusion; no edema.")
    ['Small effusion', 'no edema.']
    """
    # not at commas, which also stand in lists: "no edema, effusion or mass"
    return sentence.split("; ")


def ended(text):
    """A sentence that was cut gets its full stop back; of one without words nothing is left.

    >>> ended("Small effusion, ") + ended(" ;")
    'Small effusion.'
    """
    text = without_dangling(text.strip(" ,;:-"))
    if not has_words(text):
        return ""
    if text[-1] in ".!?":
        return text
    return text + "."


def tidy(sentence):
    """Mend blanks and punctuation where something was cut out; begin with a capital.

    >>> tidy("small effusion , stable  . .")
    'Small effusion, stable.'
    """
    sentence = " ".join(sentence.split())
    sentence = re.sub(r" ([,.;:)])", r"\1", sentence)               # "effusion ," -> "effusion,"
    sentence = re.sub(r"([,;:])(?: ?[,;:])+", r"\1", sentence)      # ", ;" -> ","
    sentence = re.sub(r"[,;:]\.|\.(?: ?\.)+", ".", sentence)        # ",." and ". ." -> "."
    sentence = sentence.strip(" ,;:-")
    return sentence[:1].upper() + sentence[1:]
