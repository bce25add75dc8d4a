"""Scores of written reports: CheXbert F1, BLEU, ROUGE-L, RadGraph F1; and the choice of images by finding and caption.

The core takes label codes, token lists and annotations, so that it needs no model: `evaluation/chexbert.py` makes codes, `nltk` tokens,
the `radgraph` package annotations. Definitions are those of the paper's evaluation code (docs/evaluation.md); fractions, not
percent. Lists are parallel: prediction i is about the same image as reference i.
"""
import numpy as np

from common.processes import InputError

LABELS = ("enlarged_cardiomediastinum cardiomegaly lung_opacity lung_lesion edema consolidation pneumonia atelectasis "
          "pneumothorax pleural_effusion pleural_other fracture support_devices no_finding").split()    # CheXbert's order
FIVE = [7, 1, 4, 5, 9]          # atelectasis, cardiomegaly, edema, consolidation, pleural effusion
POLICIES = {"uncertain_as_negative": (1,), "uncertain_as_positive": (1, 3)}     # codes that count as "there"
BLEU_WEIGHTS = {"BLEU1": (1, 0, 0, 0), "BLEU2": (.5, .5, 0, 0), "BLEU3": (.33, .33, .33, 0), "BLEU4": (.25,) * 4}   # sic
LEVELS = ("simple", "partial", "complete")


def same_items(prediction, reference):
    """Two {id: text} about the same ids -> (ids, predictions, references), in the reference's order."""
    lost, more = reference.keys() - prediction.keys(), prediction.keys() - reference.keys()
    if lost or more:
        raise InputError(f"{len(reference)} references and {len(prediction)} reports are not about the same images: without a "
                         f"report: {few(lost)}; without a reference: {few(more)}.")
    if not reference:
        raise InputError("there is no report to score.")
    return list(reference), [prediction[i] for i in reference], list(reference.values())


def few(names):
    names = sorted(map(str, names))
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "none"


# ---- CheXbert F1 ----

def codes(labels, name):
    """Label codes (N, 14) as integers: 0 blank, 1 positive, 2 negative, 3 uncertain; of No Finding 0 or 1."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(LABELS) or not len(labels):
        raise InputError(f"{name} has shape {labels.shape}; label codes are a table of reports and {len(LABELS)} findings.")
    if not np.isin(labels, (0, 1, 2, 3)).all() or (labels[:, -1] > 1).any():
        raise InputError(f"{name} holds other codes than 0, 1, 2, 3 (No Finding: 0, 1).")
    return labels


def f1(tp, fp, fn):
    """2 tp / (2 tp + fp + fn), and 0 where nothing is positive on either side."""
    return 2 * tp / np.maximum(2 * tp + fp + fn, 1)


def counts(reference, prediction, positive):
    """Hits, extras, misses as (N, 14) booleans."""
    there, said = np.isin(reference, positive), np.isin(prediction, positive)
    return there & said, ~there & said, there & ~said


def chexbert_scores(reference, prediction, rows=slice(None)):
    """The eight numbers of Table 2, {"uncertain_as_negative_micro_f1": …}. No Finding is an ordinary 14th class, and a class
    without positives on either side scores 0 and stays in the macro mean."""
    scores = {}
    for policy, positive in POLICIES.items():
        tallies = [part[rows].sum(0) for part in counts(reference, prediction, positive)]
        for end, classes in (("", slice(None)), ("_top5", FIVE)):
            some = [part[classes] for part in tallies]
            scores[f"{policy}_micro_f1{end}"] = float(f1(*(part.sum() for part in some)))
            scores[f"{policy}_macro_f1{end}"] = float(f1(*some).mean())
    return scores


def chexbert_details(reference, prediction):
    """Per policy: F1, support, hits, extras and misses of each finding; precision, recall, F1 a report, averaged."""
    details = {}
    for policy, positive in POLICIES.items():
        hits, extras, misses = counts(reference, prediction, positive)
        tp, fp, fn = (part.sum(0) for part in (hits, extras, misses))
        row = lambda part: part.sum(1).astype(float)
        precision, recall = (row(hits) / np.maximum(row(hits) + row(other), 1) for other in (extras, misses))
        details[policy] = {
            "findings": {name: dict(f1=float(f1(tp[c], fp[c], fn[c])), support=int(tp[c] + fn[c]), hits=int(tp[c]),
                                    extras=int(fp[c]), misses=int(fn[c])) for c, name in enumerate(LABELS)},
            "examples": dict(precision=float(precision.mean()), recall=float(recall.mean()),
                             f1=float(f1(row(hits), row(extras), row(misses)).mean()))}
    return details


# ---- BLEU and ROUGE-L ----

def tokens(texts):
    """The official tokens: sentences by Punkt, then Treebank words, case kept."""
    from nltk.tokenize import word_tokenize
    return [word_tokenize(text) for text in texts]


def bleu(prediction, reference):
    """Token lists -> (N, 4): NLTK's sentence BLEU-1..4 with smoothing method 4; nan where the prediction has no token, which
    the official mean leaves out. (The weights of BLEU-3 sum to .99, as there.)"""
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
    smooth = SmoothingFunction().method4
    score = lambda said, there, weights: sentence_bleu([there], said, weights, smoothing_function=smooth)
    return np.array([[score(said, there, w) if said else np.nan for w in BLEU_WEIGHTS.values()]
                     for said, there in zip(prediction, reference)])


def rouge_l(prediction, reference):
    """Texts -> (N,) F-measure of the longest common subsequence, lower case, no stemming. The official code reports the
    median of 500 unseeded bootstrap means; the plain mean is the same up to that noise."""
    from rouge_score.rouge_scorer import RougeScorer
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    return np.array([scorer.score(there, said)["rougeL"].fmeasure for said, there in zip(prediction, reference)])


# ---- RadGraph F1 ----

def facts(entities, level):
    """The set that a report is compared by, from its RadGraph entities {key: {tokens, label, relations}}."""
    found = set()
    for entity in entities.values():
        this = entity["tokens"], entity["label"]
        if level == "simple" or not entity["relations"]:
            found.add(this)
        elif level == "partial":
            found.add((*this, True))                    # only whether there is a relation
        else:                                           # one for each relation, with its target; lower case here alone
            found |= {(this[0].lower(), this[1], kind, entities[target]["tokens"].lower(), entities[target]["label"])
                      for kind, target in entity["relations"]}
    return found


def radgraph_rewards(prediction, reference, level="partial"):
    """Annotations, lists of {"entities": {…}} -> (N, 3): F1, precision, recall a report; 0 where a side has no entity.
    "partial" is the published one."""
    rewards = []
    for said, there in zip(prediction, reference):
        said, there = facts(said["entities"], level), facts(there["entities"], level)
        both, tiny = len(said & there), 1e-10
        precision, recall = both / (len(said) + tiny), both / (len(there) + tiny)
        rewards.append((2 * precision * recall / (precision + recall + tiny), precision, recall))
    return np.array(rewards)


# ---- which images belong to a finding ----

def unique_captions(rows):
    """Numbers of the rows whose "caption" has not come before."""
    first = {}
    for n, row in enumerate(rows):
        first.setdefault(row["caption"], n)
    return sorted(first.values())


def select(real, generated, finding):
    """Numbers of the real rows of a finding, and of the generated ones with the same captions.

    Real rows {"caption", "labels"}: unique captions, the first kept, *then* those whose label is exactly 1 (0, -1 for
    uncertain and nothing drop out). Generated rows {"caption"} are not made unique.
    """
    kept = [n for n in unique_captions(real) if real[n]["labels"].get(finding) == 1]
    captions = {real[n]["caption"] for n in kept}
    return kept, [n for n, row in enumerate(generated) if row["caption"] in captions]


# ---- alignment of image and prompt ----

def alignment_mean(scores):
    """Each cosine is rounded to 3 decimals before the mean is, as published."""
    return round(float(np.mean([round(float(score), 3) for score in scores])), 3)
