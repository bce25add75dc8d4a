"""abilities/likelihood.py: against the loss of stage 1, one by one and in batches."""
import numpy as np
import pytest
import torch

import weights
from abilities.likelihood import token_scores
from evaluation.phantom import PhantomConfig, held_out_phantoms
from helpers import ROOT, close
from sample import generate_reports


@pytest.fixture(scope="module")
def demo():
    return weights.load(ROOT / "demo")


@pytest.fixture(scope="module")
def phantoms():
    return held_out_phantoms(PhantomConfig(), 128, range(5))


@torch.no_grad()
def test_it_is_what_decoding_sees(demo, phantoms):
    """Token after token with one more of the report before it, instead of all at once."""
    model, _, tokenizer = demo
    images, report = np.stack(phantoms.pictures[:1]), "No nodule. Pulmonary edema."
    [scores] = token_scores(model, tokenizer, images, [report])
    from vision import normalize
    pixels = normalize(torch.as_tensor(images)[:, None].float() / 255, model.cfg.vision)
    _, image = model.prefill_image(pixels)
    before = [*tokenizer.prompt("Describe the findings in this chest X-ray.")]
    block = tokenizer.answers([report])[0].tolist()
    _, prompt = model.prefill_text(torch.tensor([before]), cache=image)
    for n in range(1, len(block)):
        hidden, _ = model.prefill_text(torch.tensor([block[:n]]), cache=prompt)
        log_p = model.logits(hidden[:, -1]).log_softmax(-1)[0, block[n]]
        assert scores.ids[n - 1] == block[n]
        assert float(scores.log_p[n - 1]) == pytest.approx(float(log_p), abs=1e-4)


def test_batches_and_single_reports_agree(demo, phantoms):
    model, _, tokenizer = demo
    images = np.stack(phantoms.pictures)
    alone = token_scores(model, tokenizer, images, phantoms.reports, batch=1)
    for images_given in (images, None):
        alone = token_scores(model, tokenizer, images_given, phantoms.reports, batch=1)
        together = token_scores(model, tokenizer, images_given, phantoms.reports, batch=3)
        for one, other in zip(alone, together):
            assert one.ids == other.ids and one.ids[-1] == tokenizer.eos
            close(one.log_p, other.log_p, 1e-4)
    assert alone[0].total == pytest.approx(alone[0].mean * len(alone[0].ids), rel=1e-5)


def test_a_report_fits_its_own_picture_best(demo, phantoms):
    """Better than without a picture, and better than with that of another phantom."""
    model, _, tokenizer = demo
    images = np.stack(phantoms.pictures)
    own = token_scores(model, tokenizer, images, phantoms.reports)
    none = token_scores(model, tokenizer, None, phantoms.reports)
    others = token_scores(model, tokenizer, np.roll(images, 1, axis=0), phantoms.reports)
    for a, b, c in zip(own, none, others):
        assert a.total > b.total and a.total > c.total


def test_what_the_model_writes_is_likely(demo, phantoms):
    """A greedy report takes the likeliest token each time: none is below 1 of the vocabulary."""
    model, _, tokenizer = demo
    images = np.stack(phantoms.pictures[:2])
    reports = generate_reports(model, tokenizer, images, progress=False)
    for scores in token_scores(model, tokenizer, images, reports):
        assert scores.log_p.min() > -2.5
