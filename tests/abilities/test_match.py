"""abilities/match.py: pairs that belong together and pairs that do not, and single findings."""
import numpy as np
import pytest
import torch

import weights
from abilities import match
from abilities.likelihood import TokenScores, token_scores
from evaluation.phantom import PhantomConfig, held_out_phantoms
from helpers import ROOT
from phantom.facts import FINDINGS, report_to_facts


@pytest.fixture(scope="module")
def demo():
    return weights.load(ROOT / "demo")


@pytest.fixture(scope="module")
def phantoms():
    return held_out_phantoms(PhantomConfig(), 128, range(6))


def test_a_wrong_report_is_below_every_right_one(demo, phantoms):
    model, _, tokenizer = demo
    films = np.stack(phantoms.pictures)
    right = match.compare(model, tokenizer, films, phantoms.reports)
    others = phantoms.reports[1:] + phantoms.reports[:1]
    wrong = match.compare(model, tokenizer, films, others)
    assert min(pair.score for pair in right) > max(pair.score for pair in wrong)


def test_its_own_report_has_the_score_nought(demo, phantoms):
    model, _, tokenizer = demo
    films = np.stack(phantoms.pictures[:2])
    own = [pair.own for pair in match.compare(model, tokenizer, films, phantoms.reports[:2])]
    again = match.compare(model, tokenizer, films, own)
    assert [pair.score for pair in again] == [0.0, 0.0]
    blind = token_scores(model, tokenizer, None, own)
    assert again[0].gain == pytest.approx(again[0].log_p - blind[0].mean)


def test_the_wrong_words_are_named(demo, phantoms):
    """A pneumothorax on the other side: the least likely word is the side."""
    model, _, tokenizer = demo
    number = next(n for n, report in enumerate(phantoms.reports) if "Pneumothorax on the" in report)
    film, report = phantoms.pictures[number], phantoms.reports[number]
    flipped = report.replace("on the right", "on the left")
    assert flipped != report
    [pair] = match.compare(model, tokenizer, np.stack([film]), [flipped])
    assert pair.least[0][0].strip(".") == "left" and pair.least[0][1] < -4


def test_a_word_is_as_likely_as_its_tokens_together(demo):
    _, _, tokenizer = demo
    ids = tokenizer.encode("No pneumothorax.") + [tokenizer.eos]
    log_p = -torch.arange(1.0, len(ids) + 1)
    words = match.least_words(tokenizer, TokenScores(ids, log_p), number=9)
    assert {word for word, _ in words} == {"No", "pneumothorax."}
    assert sum(value for _, value in words) == pytest.approx(float(log_p[:-1].sum()))


@pytest.mark.parametrize("finding", FINDINGS)
def test_rivals_differ_in_one_finding_alone(finding):
    report = "Severe cardiomegaly. No pleural effusion or pneumothorax. No nodule. No edema."
    stating, denying = match.rivals(report, finding)
    others = {fact for fact in report_to_facts(report) if fact.finding != finding}
    assert report_to_facts(denying) == others
    facts = [report_to_facts(text) - others for text in stating]
    assert all(len(new) == 1 and next(iter(new)).finding == finding for new in facts)
    assert len(set(facts)) == len(stating)


def test_findings_that_are_there_are_probable(demo, phantoms):
    model, vae, tokenizer = demo
    films = np.stack(phantoms.pictures)
    texts = [pair.own for pair in match.compare(model, tokenizer, films, phantoms.reports)]
    for finding in ("effusion", "edema"):
        there = [any(fact[0] == finding for fact in facts) for facts in phantoms.facts]
        p = match.chances(model, tokenizer, films, texts, finding)
        assert ((p > 0.5) == there).all() and 0 <= p.min() <= p.max() <= 1


def test_the_drawing_branch_knows_a_report_from_another(demo, phantoms):
    """Its error is smaller under the right report; and the same however films are batched."""
    model, vae, tokenizer = demo
    films = np.stack(phantoms.pictures[:4])
    right = match.flow_errors(model, vae, tokenizer, films, phantoms.reports[:4])
    wrong = match.flow_errors(model, vae, tokenizer, films, phantoms.reports[1:5])
    assert (right < wrong).all()
    single = match.flow_errors(model, vae, tokenizer, films, phantoms.reports[:4], batch=1)
    assert np.allclose(right, single, rtol=1e-4)
