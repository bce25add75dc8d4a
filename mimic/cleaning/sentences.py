"""A report cut into sentences, and what is left of a sentence made whole again."""
import re

from mimic.cleaning.words import I


def has_words(text):
    """More than blanks and punctuation."""
    return bool(re.search(r"[^\W\d_]{2}", text))


def sentences(text):
    """Cut after . ! ? but not in decimals or after titles.

    >>> sentences("Nodule of 1.5 cm. Seen by Dr. ___ today. Clear.")
    ['Nodule of 1.5 cm.', 'Seen by Dr. ___ today.', 'Clear.']
    """
    found, parts = [], []
    for piece in re.split(r"(?<=[.!?])\s+", text.strip()):
        parts += [piece] * bool(piece)
        if not re.search(r"\b(?:Drs?|Mrs?|Ms|Prof|vs|approx|e\.g|i\.e|[ap]\.m)\.$", piece[-8:], I):
            found.extend([" ".join(parts)] * bool(parts))
            parts = []
    return found + [" ".join(parts)] * bool(parts)


def ended(text):
    """A cut sentence gets its full stop back; without words nothing is left."""
    text = text.strip(" ,;:-")
    return text + "." if has_words(text) and text[-1] not in ".!?" else text if has_words(text) else ""


def tidy(sentence):
    """
    >>> tidy("small effusion , stable  . .")
    'Small effusion, stable.'
    """
    sentence = re.sub(r" ([,.;:)])", r"\1", " ".join(sentence.split()))
    sentence = re.sub(r"([,;:])(?: ?[,;:])+", r"\1", sentence)
    sentence = re.sub(r"[,;:]\.|\.(?: ?\.)+", ".", sentence).strip(" ,;:-")
    return sentence[:1].upper() + sentence[1:]
