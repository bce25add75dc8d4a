"""The pictures of phantoms: they repeat exactly, every finding can be seen."""
import time

import numpy as np
import pytest

from phantom import draw, facts as P


def rng(*key):
    return np.random.default_rng(key)


def shrink(picture):
    return picture.reshape(len(picture) // 2, 2, -1, 2).mean((1, 3))


def test_same_dice_same_picture():
    facts = frozenset({("effusion", "left", "small"), ("nodule", "right upper", "")})
    assert (draw.draw(facts, rng(4)) == draw.draw(facts, rng(4))).all()
    assert (draw.draw(facts, rng(4)) != draw.draw(facts, rng(5))).mean() > 0.5


@pytest.mark.parametrize("fact", P.FACTS, ids=" ".join)
def test_every_finding_shows_on_its_side(fact):
    for seed in range(6):
        healthy, ill = (draw.draw(facts, rng(6, seed)).astype(float) for facts in (frozenset(), frozenset({fact})))
        change = shrink(np.abs(ill - healthy))                    # the grain is the same in both
        strongest = np.sort(change.ravel())[::-1][:40]            # a nodule covers about 50 of the 64 x 64 cells
        assert strongest.mean() > 15, (fact, seed, strongest.mean())
        if fact[1] and fact[0] != "catheter":                     # patient's left is on the right of the picture
            left_share = change[:, 32:].sum() / change.sum()
            assert (left_share > 0.9) == fact[1].startswith("left") and (left_share < 0.1) == fact[1].startswith("right")


@pytest.mark.parametrize("finding, degrees", P.DEGREES.items())
def test_degrees_are_apart(finding, degrees):
    """Every picture of one degree changes clearly less area than every picture of the next."""
    place = P.WHERE.get(finding, ("",))[0]
    areas = []
    for degree in degrees:
        pairs = [[draw.draw(facts, rng(7, seed)).astype(float) for facts in (frozenset(), frozenset({(finding, place, degree)}))]
                 for seed in range(25)]
        areas.append([(shrink(np.abs(b - a)) > 10).mean() for a, b in pairs])
    for smaller, larger in zip(areas, areas[1:]):
        assert 1.2 * max(smaller) < min(larger), (finding, max(smaller), min(larger))


def test_nodules_and_opacities_keep_to_their_zone():
    for finding in ("nodule", "opacity"):
        rows = []
        for zone in P.ZONES:
            heights = []
            for seed in range(20):
                a, b = (draw.draw(facts, rng(8, seed)).astype(float) for facts in (frozenset(), {(finding, f"right {zone}", "")}))
                weight = np.abs(b - a).sum(1)
                heights.append((weight * np.arange(128)).sum() / weight.sum())
            rows.append((min(heights), max(heights)))
        assert rows[0][1] + 5 < rows[1][0] and rows[1][1] + 5 < rows[2][0], rows


def test_sizes_agree():
    for seed in range(4):
        facts = P.sample_facts(rng(9, seed))
        small, medium, large = (draw.draw(facts, rng(10, seed), size).astype(float) for size in (64, 128, 256))
        assert small.shape == (64, 64) and large.shape == (256, 256) and draw.draw(facts, rng(10, seed)).dtype == np.uint8
        assert np.abs(shrink(medium) - small).mean() < 4 and np.abs(shrink(large) - medium).mean() < 4


def test_drawing_is_fast():
    jobs = [(P.sample_facts(rng(i)), rng(i)) for i in range(30)]
    times = []
    for facts, dice in jobs:
        start = time.perf_counter()
        draw.draw(facts, dice)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.03                                # about 5 ms on a free core
