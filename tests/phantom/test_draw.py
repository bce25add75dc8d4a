"""The pictures of phantoms: they repeat exactly, and every finding shows where it should be."""
import time

import numpy as np
import pytest

from phantom.draw import draw
from phantom.facts import FACTS, TABLE, ZONES, sample_facts

HEALTHY = frozenset()


def rng(*key):
    return np.random.default_rng(key)


def halved(picture):
    return picture.reshape(len(picture) // 2, 2, -1, 2).mean((1, 3))


def change(fact, *key):
    """How much a fact changes a healthy picture, (128, 128); the grain is the same in both."""
    healthy = draw(HEALTHY, rng(*key)).astype(float)
    return np.abs(draw({fact}, rng(*key)) - healthy)


def test_the_same_dice_draw_the_same_picture():
    facts = {("effusion", "left", "small"), ("nodule", "right upper", "")}
    assert (draw(facts, rng(4)) == draw(facts, rng(4))).all()
    assert (draw(facts, rng(4)) != draw(facts, rng(5))).mean() > 0.5


def test_pictures_stay_as_they_are():
    """Data sets, the weights in demo/ and all scores in docs/results.md rest on these pixels.

    Another processor may round a few of them differently; a tone that changes by 0.01 shows here.
    """
    brightness = sum(draw({fact}, rng(11, i), 64).mean() for i, fact in enumerate(FACTS))
    assert abs(brightness - 3267.576) < 0.01


@pytest.mark.parametrize("fact", FACTS, ids=" ".join)
def test_every_finding_shows_and_on_its_side(fact):
    for seed in range(3):
        difference = halved(change(fact, 6, seed))
        strongest = np.sort(difference.ravel())[-40:]       # a nodule covers 50 of 64 x 64 cells
        assert strongest.mean() > 15, seed
        if fact.side and fact.finding != "catheter":        # a catheter always ends on the right
            on_the_left = difference[:, 32:].sum() / difference.sum()
            shares = {"left": on_the_left, "right": 1 - on_the_left}
            assert shares[fact.side] > 0.9, "the patient's left is on the right of the picture"


@pytest.mark.parametrize("finding", [name for name in TABLE if len(TABLE[name].degrees) > 1])
def test_degrees_are_apart(finding):
    """Every picture of one degree changes clearly less area than every picture of the next."""
    place = TABLE[finding].places[0]
    areas = []
    for degree in TABLE[finding].degrees:
        changes = [change((finding, place, degree), 7, seed) for seed in range(12)]
        areas.append([(halved(difference) > 10).mean() for difference in changes])
    for smaller, larger in zip(areas, areas[1:]):
        assert 1.2 * max(smaller) < min(larger)


@pytest.mark.parametrize("finding", ["nodule", "opacity"])
def test_zones_are_apart(finding):
    """The lowest patch of a zone lies clearly above the highest one of the next."""
    heights = []
    for zone in ZONES:
        weights = [change((finding, f"right {zone}", ""), 8, seed).sum(1) for seed in range(10)]
        heights.append([(weight * np.arange(128)).sum() / weight.sum() for weight in weights])
    for upper, lower in zip(heights, heights[1:]):
        assert max(upper) + 5 < min(lower)


def test_the_same_phantom_at_every_size():
    for seed in range(3):
        facts = sample_facts(rng(9, seed))
        small, medium, large = (draw(facts, rng(10, seed), size) for size in (64, 128, 256))
        assert small.shape == (64, 64) and small.dtype == np.uint8
        assert np.abs(halved(medium.astype(float)) - small).mean() < 4
        assert np.abs(halved(large.astype(float)) - medium).mean() < 4


def test_drawing_is_fast():
    """About 5 ms at 128 px on a free core."""
    times = []
    for i in range(15):
        facts = sample_facts(rng(i))
        start = time.thread_time()                          # others may use this core too
        draw(facts, rng(i))
        times.append(time.thread_time() - start)
    assert np.median(times) < 0.03
