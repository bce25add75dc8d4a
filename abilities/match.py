"""Do a report and a film belong together? And how likely is a single finding?

    matches = compare(model, tokenizer, images, reports)    # the lowest .score: most suspicious
    p = chances(model, tokenizer, images, texts, "effusion")        # of each film

The reader says how likely every token of a report is, given the film (abilities/likelihood.py). But
a likelihood alone also measures how unusual the wording is. So a pair is judged by

    score = (log p(report | film) of a token) - (log p(own | film) of a token),

where `own` is what the model itself writes about the film. At 0 the report is as likely as that; a
report about another film is far below. `gain` is the likelihood over that without any film, which
one would think of first. It tells less, because the model has never read without a film
(docs/results.md).

A finding is judged by rival sentences in the place that it has in the model's own report: all that
state it, with every side and size, against the one that denies it. For research, not for clinical
use.
"""
from dataclasses import dataclass

import numpy as np
import torch

import flow
from abilities.likelihood import token_scores
from abilities.wording import with_statement
from common.processes import generator
from phantom.facts import FACTS, TABLE
from sample import PROMPT, generate_reports
from tokenizer import pad


# ---- pairs ----

@dataclass
class Match:
    """How well a report fits a film. Logarithms are natural ones, of a token on average."""
    own: str                    # what the model writes about the film
    score: float                # likelihood of the report over that of `own`
    log_p: float                # likelihood of the report
    gain: float                 # likelihood of the report over that without the film
    least: list                 # [(word, log p)] of its least likely words, the least first


def compare(model, tokenizer, images, reports, prompt=PROMPT, batch=16):
    """[Match] of N films (N, S, S) uint8, `vision.preprocess`ed, and their reports."""
    own = generate_reports(model, tokenizer, images, prompt, batch=batch, progress=False)
    given = token_scores(model, tokenizer, images, reports, prompt, batch)
    blind = token_scores(model, tokenizer, None, reports, prompt, batch)
    best = token_scores(model, tokenizer, images, own, prompt, batch)
    return [Match(text, a.mean - c.mean, a.mean, a.mean - b.mean, least_words(tokenizer, a))
            for text, a, b, c in zip(own, given, blind, best)]


def least_words(tokenizer, scores, number=3):
    """The least likely words of a report -> [(word, log p)], the least first.

    A word is as likely as its tokens together; one begins where a token begins with a space.
    """
    words = []
    for id, log_p in zip(scores.ids[:-1], scores.log_p.tolist()):       # the last is the EOS
        piece = tokenizer.bpe.decode([id])
        if words and not piece.startswith(" "):
            text, before = words.pop()
            words.append((text + piece, before + log_p))
        else:
            words.append((piece.strip(), log_p))
    return sorted(words, key=lambda word: word[1])[:number]


# ---- single findings ----

def rivals(report, finding):
    """Reports that differ in what they say of a finding -> (those that state it, the one that
    denies it). Every side, zone and degree is stated once, in the first of its wordings.
    """
    stating = []
    for fact in FACTS:
        if fact.finding == finding:
            text = TABLE[finding].present[0].format(
                side=fact.side, zone=fact.zone, degree=fact.degree, adverb=f"{fact.degree}ly")
            stating.append(with_statement(report, text[0].upper() + text[1:]))
    return stating, with_statement(report, TABLE[finding].absent[0])


def chances(model, tokenizer, images, texts, finding, batch=16):
    """How probable a finding is on each film, by its report -> (N,) from 0 to 1.

    texts: what the model writes about the films; the rivals take the finding's place in them.
    """
    rows, films = [], []
    for image, text in zip(images, texts):
        stating, denying = rivals(text, finding)
        rows += [*stating, denying]
        films += [image] * (len(stating) + 1)
    scores = token_scores(model, tokenizer, np.stack(films), rows, batch=batch)
    totals = torch.tensor([score.total for score in scores]).view(len(texts), -1)       # (N, R + 1)
    return totals.softmax(1)[:, :-1].sum(1).numpy()


@torch.inference_mode()
def flow_errors(model, vae, tokenizer, images, reports, times=(0.5, 0.7), noises=2, batch=16):
    """How badly the drawing branch foretells films from reports: the drawer as a judge -> (N,).

    images (N, S, S) uint8 of a size that is drawn. The squared error of the velocity (Eq. 2), mean
    over some times and noises; the noise depends on its number alone, so that reports of one film
    are compared with the same.
    """
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    errors = torch.zeros(len(reports))
    for start in range(0, len(reports), batch):
        rows = slice(start, start + batch)
        grey = torch.as_tensor(np.array(images[rows]), device=device)           # (B, S, S)
        pixels = grey[:, None].expand(-1, 3, -1, -1) / 127.5 - 1                # (B, 3, S, S)
        x_0 = vae.encode(pixels.to(dtype)).float()                              # (B, z, h, w)
        ids, valid = pad([tokenizer.prompt(report) for report in reports[rows]])
        _, cache = model.prefill_text(ids.to(device), valid.to(device))
        for k in range(noises):
            noise = torch.randn(x_0.shape[1:], generator=generator(0, k)).to(device)
            for time in times:
                t = torch.full((len(x_0),), time, device=device)
                x_t, target = flow.interpolate(x_0, noise.expand_as(x_0), t)
                v = model.velocity(x_t.to(dtype), t, cache).float()
                errors[rows] += flow.flow_loss(v, target).cpu()
    return (errors / (noises * len(times))).numpy()
