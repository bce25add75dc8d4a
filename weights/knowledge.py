"""What weights know: a sentence about what they were trained on, and the words of its texts.

A model carries both as `model.about`, and config.json as "knows" and "words". Training adds what it
reads to what the weights that it started from had read. The words are kept only where the tokenizer
was made from the same texts (phantom.prepare): a large one, of Janus-Pro, has met every word.
"""
import sys

from common.images import NOTICE
from weights.files import few

SPACE = "\u0120"           # how a byte-level tokenizer writes the space before a word

# what a model was trained on -> how a sentence names it
TRAINED_ON = {
    "phantom": "toy chest X-rays drawn by formula (phantoms) and no radiographs",
    "mimic": "frontal radiographs of MIMIC-CXR and their reports",
    "openi": "frontal radiographs of Open-I and their reports",
    "table": "the images and reports of a table of one's own",
    "release": "frontal radiographs of MIMIC-CXR and their reports, as its authors trained it",
    "janus": "pictures and texts of all kinds, as the authors of Janus-Pro trained it",
}


def recorded(config):
    """What a config.json of ours says -> {"knows": ..., "words": ...}, or what is there of it."""
    about = {name: config[name] for name in ("knows", "words") if name in config}
    # checkpoints from before this was recorded
    settings = config.get("settings", {})
    if not about and settings.get("preset") == "phantom" and "phantom" in settings.get("data", ""):
        about["knows"] = TRAINED_ON["phantom"]
    return about


def content(data):
    """What a packed data set holds, as part of a sentence; "" where it does not say."""
    if data.rows[0].get("source") == "phantom":
        return TRAINED_ON["phantom"]
    dataset = data.info["settings"].get("dataset")
    return TRAINED_ON[dataset] if dataset in TRAINED_ON else ""


def learned(about, data, tokenizer):
    """`about` of a model after training on a packed data set as well."""
    about = dict(about)
    new = content(data)
    known = about.get("knows", "")
    if new and new not in known:
        about["knows"] = f"{known}; then {new}" if known else new

    # a tokenizer of phantom.prepare has special tokens of these names
    if tokenizer.bpe.token_to_id("<bos>") == tokenizer.bos:
        met = set(about.get("words", "").split())
        for text in {row.get(column, "") for row in data.rows for column in ("prompt", "report")}:
            met |= {piece for piece, _ in pieces(tokenizer, text)}
        about["words"] = " ".join(sorted(met))
    return about


def pieces(tokenizer, text):
    """The words of a text as the tokenizer cuts them -> [(its name for it, as it stands there)].

    Its names tell apart where a word stands and how it is written: "Large" at the beginning of a
    text, " Large" and " large" inside (with a special sign for the space), as training does.
    """
    cut = tokenizer.bpe.pre_tokenizer.pre_tokenize_str(text)
    words = [(piece, text[start:end].strip()) for piece, (start, end) in cut]
    return [(piece, word) for piece, word in words if any(sign.isalnum() for sign in word)]


def unknown_words(model, tokenizer, texts):
    """Words of texts that training never met -> {word: how it met it, or ""}.

    Empty for weights that do not say which words they have met.
    """
    met = set(model.about.get("words", "").split())
    if not met:
        return {}
    # the same word in other letters, or inside of a text where this one begins it
    spellings = {piece.lower(): f'but "{piece.lstrip(SPACE)}"' for piece in sorted(met)}
    unknown = {}
    for text in texts:
        for piece, word in pieces(tokenizer, text):
            if piece not in met:
                inside = "but inside of a text" if (SPACE + piece).lower() in spellings else ""
                unknown[word] = spellings.get(piece.lower(), inside)
    return unknown


# ---- what people are told ----

def notice(model):
    """What goes with every picture and report: the warning, and what the weights know."""
    knows = model.about.get("knows", "")
    if not knows:
        return NOTICE
    return f"{NOTICE} The weights know {knows}; they take everything for that."


def tell_unknown(model, tokenizer, texts):
    """Name the words that mean nothing to the weights, in one sentence on standard error."""
    words = [f"{word} ({known})" if known else word
             for word, known in unknown_words(model, tokenizer, texts).items()]
    if words:
        print(f"unknown to these weights, and without meaning to them: {few(words)}.",
              file=sys.stderr)
