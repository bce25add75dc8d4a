"""Scores of written reports: CheXbert F1, BLEU, ROUGE-L, RadGraph F1. Which images have a finding.

All scores are fractions from 0 to 1, and higher is better. Nothing here needs a network: the input
is label codes (from evaluation/chexbert.py), lists of tokens, or RadGraph's annotations (from
evaluation/radgraph_biovil.py). The definitions are those of the evaluation code behind the paper's
Table 2 and its supplement; docs/evaluation.md says where they are unusual.

Lists are parallel: prediction i and reference i are reports of the same image.
"""
import numpy as np

from common.cli import InputError
from mimic.annotations import FINDINGS
from weights.files import few

# the fourteen findings in the order of CheXbert's heads, which is not that of FINDINGS
HEADS = (4, 1, 7, 6, 3, 2, 11, 0, 12, 9, 10, 5, 13, 8)
LABELS = [FINDINGS[number].lower().replace(" ", "_") for number in HEADS]

# the columns of the five findings that the "top 5" scores are over
FIVE = [LABELS.index(name) for name in (
    "atelectasis", "cardiomegaly", "edema", "consolidation", "pleural_effusion")]

POLICIES = {                            # which of CheXbert's codes count as present
    "uncertain_as_negative": (1,),      # positive
    "uncertain_as_positive": (1, 3),    # positive, uncertain
}
BLEU_WEIGHTS = {                        # of 1-grams to 4-grams; BLEU-3's sum to 0.99, as published
    "BLEU1": (1, 0, 0, 0),
    "BLEU2": (.5, .5, 0, 0),
    "BLEU3": (.33, .33, .33, 0),
    "BLEU4": (.25, .25, .25, .25),
}
LEVELS = ("simple", "partial", "complete")      # of RadGraph F1; "partial" is the published one


def same_items(predictions, references):
    """Two {id: text} -> (ids, predictions, references) in the order of the references.

    InputError if they are not about the same ids, or if there are none.
    """
    # a missing report must not go unnoticed: without it the mean would be over fewer images
    unanswered = references.keys() - predictions.keys()
    unasked = predictions.keys() - references.keys()
    if unanswered or unasked:
        raise InputError(
            f"{len(references)} references and {len(predictions)} reports are not about the same "
            f"images: without a report: {few(map(str, unanswered))}; "
            f"without a reference: {few(map(str, unasked))}.")
    if not references:
        raise InputError("there is no report to score.")
    ids = list(references)
    return ids, [predictions[name] for name in ids], [references[name] for name in ids]


# ---- CheXbert F1 ----
#
# Codes (N, 14), a row a report, columns as LABELS: 0 blank, 1 positive, 2 negative, 3 uncertain;
# of No Finding 0 or 1.

def f1(hits, extras, misses):
    """F1 = 2 hits / (2 hits + extras + misses); 0 where nothing is present on either side."""
    # the denominator is 0 only if the numerator is, so any positive value gives 0
    return 2 * hits / np.maximum(2 * hits + extras + misses, 1)


def compared(reference, prediction, codes):
    """Which findings are hits, extras (false positives) and misses, as three booleans (N, 14)."""
    wanted = np.isin(reference, codes)
    given = np.isin(prediction, codes)
    return wanted & given, ~wanted & given, wanted & ~given


def chexbert_scores(reference, prediction, rows=slice(None)):
    """Table 2's eight numbers, {"uncertain_as_negative_micro_f1": ...}, over `rows` of the codes.

    Micro-F1 counts all findings of all reports together; macro-F1 is the mean of the findings' F1.
    No Finding is an ordinary 14th class. A finding that neither side has scores 0 in that mean.
    """
    scores = {}
    for policy, codes in POLICIES.items():
        outcomes = compared(reference, prediction, codes)
        counts = np.array([outcome[rows].sum(0) for outcome in outcomes])           # (3, 14)
        for ending, columns in (("", slice(None)), ("_top5", FIVE)):
            chosen = counts[:, columns]
            scores[f"{policy}_micro_f1{ending}"] = float(f1(*chosen.sum(1)))
            scores[f"{policy}_macro_f1{ending}"] = float(f1(*chosen).mean())
    return scores


def chexbert_details(reference, prediction):
    """{policy: {"findings": {label: scores}, "examples": means of the reports' own scores}}."""
    details = {}
    for policy, codes in POLICIES.items():
        outcomes = compared(reference, prediction, codes)
        details[policy] = {
            "findings": scores_by_finding(*outcomes),
            "examples": scores_by_report(*outcomes),
        }
    return details


def scores_by_finding(hits, extras, misses):
    """Booleans (N, 14) -> {label: {"f1", "support", "hits", "extras", "misses"}}."""
    scores = {}
    for column, label in enumerate(LABELS):
        counts = [int(outcome[:, column].sum()) for outcome in (hits, extras, misses)]
        scores[label] = {
            "f1": float(f1(*counts)),
            "support": counts[0] + counts[2],
            "hits": counts[0],
            "extras": counts[1],
            "misses": counts[2],
        }
    return scores


def scores_by_report(hits, extras, misses):
    """Booleans (N, 14) -> means over reports {"precision", "recall", "f1"}; 0 / 0 counts as 0."""
    hits, extras, misses = (outcome.sum(1) for outcome in (hits, extras, misses))
    return {
        "precision": float((hits / np.maximum(hits + extras, 1)).mean()),
        "recall": float((hits / np.maximum(hits + misses, 1)).mean()),
        "f1": float(f1(hits, extras, misses).mean()),
    }


# ---- BLEU and ROUGE-L ----

def tokens(texts):
    """Texts -> lists of words as the official code has them: Punkt's sentences, Treebank's words.

    Case is kept. If the text were not split into sentences, full stops would stay glued to words.
    """
    from nltk.tokenize import word_tokenize
    return [word_tokenize(text) for text in texts]


def bleu(predictions, references):
    """Token lists -> (N, 4): BLEU-1 to 4 of each report, NLTK's sentence BLEU, smoothing method 4.

    A prediction without a token scores nan: the official mean leaves it out.
    """
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    smoothing = SmoothingFunction().method4
    # nan until scored; the caller drops what stays nan
    scores = np.full((len(predictions), len(BLEU_WEIGHTS)), np.nan)
    for row, prediction, reference in zip(scores, predictions, references):
        if prediction:
            row[:] = [sentence_bleu([reference], prediction, weights, smoothing_function=smoothing)
                      for weights in BLEU_WEIGHTS.values()]
    return scores


def rouge_l(predictions, references):
    """Texts -> (N,): F-measure of the longest common subsequence of lower-case words, not stemmed.

    The official number is a median of 500 unseeded bootstrap means, which is the mean up to noise.
    """
    from rouge_score.rouge_scorer import RougeScorer
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return np.array([scorer.score(reference, prediction)["rougeL"].fmeasure
                     for prediction, reference in zip(predictions, references)])


# ---- RadGraph F1 ----

def statements(entities, level):
    """The set that two reports are compared by; entities are {key: {tokens, label, relations}}.

    simple      (tokens, label) of each entity
    partial     the same, and whether the entity has a relation
    complete    each relation with its kind and target; (tokens, label) of entities without any
    """
    result = set()
    for entity in entities.values():
        words, label = entity["tokens"], entity["label"]
        if level == "simple" or not entity["relations"]:
            result.add((words, label))
        elif level == "partial":
            result.add((words, label, True))
        else:
            for kind, target in entity["relations"]:
                other = entities[target]
                # the official code ignores case here and nowhere else
                result.add((words.lower(), label, kind, other["tokens"].lower(), other["label"]))
    return result


def radgraph_rewards(predictions, references, level="partial"):
    """Annotations {"entities": {...}} -> (N, 3): F1, precision, recall of each report's statements.

    They are 0 where a side has no entity. The three differ from the exact ratios by the official
    code's 1e-10 in the denominators.
    """
    rewards = []
    for prediction, reference in zip(predictions, references):
        given = statements(prediction["entities"], level)
        wanted = statements(reference["entities"], level)
        hits = len(given & wanted)
        # 1e-10 as officially: it avoids 0 / 0 and moves the last digits
        precision = hits / (len(given) + 1e-10)
        recall = hits / (len(wanted) + 1e-10)
        f1_score = 2 * precision * recall / (precision + recall + 1e-10)
        rewards.append((f1_score, precision, recall))
    return np.array(rewards)


# ---- which images belong to a finding (the columns of Table 4) ----

def unique_captions(rows):
    """Numbers of the rows {"caption": ...} whose caption has not come before, in order."""
    seen = set()
    numbers = []
    for number, row in enumerate(rows):
        if row["caption"] not in seen:
            seen.add(row["caption"])
            numbers.append(number)
    return numbers


def select(real, generated, finding):
    """Numbers of the real rows with a finding, and of the generated rows with the same captions.

    Real rows {"caption", "labels"} are made unique by caption first, keeping the first of each. Of
    these, the ones with a label of exactly 1 have the finding: 0, -1 (uncertain) and blank do not.
    Generated rows {"caption"} are not made unique.
    """
    chosen = [n for n in unique_captions(real) if real[n]["labels"].get(finding) == 1]
    # generated images are matched by caption: they have no labels of their own
    captions = {real[n]["caption"] for n in chosen}
    matching = [n for n, row in enumerate(generated) if row["caption"] in captions]
    return chosen, matching


# ---- alignment of images and prompts ----

def alignment_mean(cosines):
    """Mean cosine, -1 to 1, higher is better; each is rounded to 3 decimals, then their mean is."""
    return round(float(np.mean([round(float(cosine), 3) for cosine in cosines])), 3)
