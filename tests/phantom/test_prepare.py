"""The phantom: reports read back exactly, pictures repeat exactly, every finding can be seen."""
import functools
import hashlib
import json
import os
import sys
import time

import numpy as np
import pytest

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
from common import processes as common
from phantom import prepare as P

P.conflict = functools.lru_cache(maxsize=None)(P.conflict)         # tens of thousands of draws below; 625 pairs


def rng(*key):
    return np.random.default_rng(key)


def test_reports_read_back_exactly():
    seen = set()
    for i in range(20_000):
        dice = rng(i)
        facts = P.sample_facts(dice)
        report = P.facts_to_report(facts, dice)
        assert P.report_to_facts(report) == facts, report
        assert 3 <= report.count(".") <= 6, report
        seen |= facts
    assert seen == set(P.FACTS)


def test_any_set_of_facts_reads_back_even_contradicting_ones():
    for i in range(3000):
        dice = rng(1, i)
        facts = frozenset(P.FACTS[k] for k in dice.choice(len(P.FACTS), dice.integers(0, 9), replace=False))
        assert P.report_to_facts(P.facts_to_report(facts, dice)) == facts


@pytest.mark.parametrize("text, facts", [
    ("Large left pleural effusion.", {("effusion", "left", "large")}),
    ("LARGE LEFT EFFUSION", {("effusion", "left", "large")}),
    ("Bilateral small effusions", {("effusion", "left", "small"), ("effusion", "right", "small")}),
    ("small left and large right effusions, no pneumothorax", {("effusion", "left", "small"), ("effusion", "right", "large")}),
    ("Mild cardiomegaly.", {("cardiomegaly", "", "mild")}),
    ("The heart is severely enlarged and there is edema", {("cardiomegaly", "", "severe"), ("edema", "", "")}),
    ("The heart is not enlarged. The heart is normal in size.", set()),
    ("No effusion.", set()),
    ("No effusion, edema, or pneumothorax.", set()),
    ("No left effusion or right pneumothorax.", set()),
    ("No pneumothorax but a small right effusion", {("effusion", "right", "small")}),
    ("No pneumothorax, severe cardiomegaly", {("cardiomegaly", "", "severe")}),
    ("Right pneumothorax without effusion or edema", {("pneumothorax", "right", "")}),
    ("Large left effusion with right upper zone nodule", {("effusion", "left", "large"), ("nodule", "right upper", "")}),
    ("opacities in the right upper and left lower zones and edema",
     {("opacity", "right upper", ""), ("opacity", "left lower", ""), ("edema", "", "")}),
    ("right upper and lower zone nodules", {("nodule", "right upper", ""), ("nodule", "right lower", "")}),
    ("Right PICC", {("catheter", "right", "")}),
    ("left effusion. nodule. Small to moderate left effusion.", set()),       # incomplete or unclear: no facts
    ("", set()), ("the the zone <eos> Ġ 12 left left", set()), (" and , or no with but . ;", set()),
])
def test_natural_phrases(text, facts):
    assert P.report_to_facts(text) == facts


def test_shuffled_words_never_raise():
    words = " ".join(sum(P.POSITIVE.values(), []) + sum(P.NEGATIVE.values(), []) + ["and", "or", ",", "but"]).split()
    for i in range(3000):
        found = P.report_to_facts(" ".join(rng(2, i).choice(words, 20)))
        assert found <= set(P.FACTS)


def test_frequencies():
    drawn = [P.sample_facts(rng(3, i)) for i in range(4000)]
    assert 0.17 < np.mean([not facts for facts in drawn]) < 0.23 and max(map(len, drawn)) == 4
    for finding in P.FINDINGS:
        assert np.mean([any(fact[0] == finding for fact in facts) for facts in drawn]) > 0.12, finding
    for facts in drawn:
        assert not any(P.conflict(a, b) for a in facts for b in facts if a != b)


@pytest.mark.parametrize("a, b", [
    (("effusion", "left", "large"), ("nodule", "left lower", "")), (("effusion", "left", "large"), ("opacity", "left upper", "")),
    (("effusion", "left", "small"), ("effusion", "left", "large")), (("effusion", "left", "large"), ("effusion", "right", "large")),
    (("effusion", "left", "small"), ("pneumothorax", "left", "")), (("opacity", "left mid", ""), ("nodule", "left mid", "")),
    (("cardiomegaly", "", "mild"), ("cardiomegaly", "", "severe")), (("cardiomegaly", "", "severe"), ("effusion", "left", "small")),
    (("opacity", "left mid", ""), ("opacity", "left lower", "")), (("pneumothorax", "left", ""), ("edema", "", "")),
])
def test_conflicts(a, b):
    assert P.conflict(a, b) and P.conflict(b, a)


def test_no_conflict_across_sides():
    assert not P.conflict(("effusion", "left", "large"), ("nodule", "right lower", ""))
    assert not P.conflict(("opacity", "left upper", ""), ("opacity", "left lower", ""))
    assert not P.conflict(("effusion", "left", "small"), ("pneumothorax", "right", ""))


def test_same_dice_same_picture():
    facts = frozenset({("effusion", "left", "small"), ("nodule", "right upper", "")})
    assert (P.draw(facts, rng(4)) == P.draw(facts, rng(4))).all()
    assert (P.draw(facts, rng(4)) != P.draw(facts, rng(5))).mean() > 0.5


def shrink(picture):
    return picture.reshape(len(picture) // 2, 2, -1, 2).mean((1, 3))


@pytest.mark.parametrize("fact", P.FACTS, ids=" ".join)
def test_every_finding_shows_on_its_side(fact):
    for seed in range(6):
        healthy, ill = (P.draw(facts, rng(6, seed)).astype(float) for facts in (frozenset(), frozenset({fact})))
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
        pairs = [[P.draw(facts, rng(7, seed)).astype(float) for facts in (frozenset(), frozenset({(finding, place, degree)}))]
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
                a, b = (P.draw(facts, rng(8, seed)).astype(float) for facts in (frozenset(), {(finding, f"right {zone}", "")}))
                weight = np.abs(b - a).sum(1)
                heights.append((weight * np.arange(128)).sum() / weight.sum())
            rows.append((min(heights), max(heights)))
        assert rows[0][1] + 5 < rows[1][0] and rows[1][1] + 5 < rows[2][0], rows


def test_sizes_agree():
    for seed in range(4):
        facts = P.sample_facts(rng(9, seed))
        small, medium, large = (P.draw(facts, rng(10, seed), size).astype(float) for size in (64, 128, 256))
        assert small.shape == (64, 64) and large.shape == (256, 256) and P.draw(facts, rng(10, seed)).dtype == np.uint8
        assert np.abs(shrink(medium) - small).mean() < 4 and np.abs(shrink(large) - medium).mean() < 4


def test_drawing_is_fast():
    jobs = [(P.sample_facts(rng(i)), rng(i)) for i in range(30)]
    times = []
    for facts, dice in jobs:
        start = time.perf_counter()
        P.draw(facts, dice)
        times.append(time.perf_counter() - start)
    assert np.median(times) < 0.03                                # about 5 ms on a free core


def test_tokenizer():
    reports = [P.facts_to_report(P.sample_facts(rng(i)), rng(i)) for i in range(2000)]
    tokenizer = P.make_tokenizer(reports, 512)
    assert [tokenizer.token_to_id(t) for t in ("<bos>", "<eos>", "<soi>", "<eoi>")] == [0, 1, 2, 3]
    lengths = [len(tokenizer.encode(report).ids) for report in reports]
    assert np.mean(lengths) < 45 and max(lengths) <= 64 and tokenizer.get_vocab_size() <= 512
    for text in [*reports[:50], "Ärger 42 µm, \n 肺?"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.to_str() == P.make_tokenizer(reports, 512).to_str()


def pack_all(out, *options):
    return P.main(["--out", str(out), "--train", "20", "--val", "6", "--test", "6", "--size", "64", *options])


def digest(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.*"))}


def test_data_set(tmp_path, capsys):
    from training import batches as data
    pack_all(tmp_path / "a", "--workers", "1")
    pack_all(tmp_path / "b", "--workers", "3")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")

    # the same numbers in another split, or with another seed, are other phantoms; more pictures leave the first as they were
    sets = {split: data.Packed(tmp_path / "a", "und", 64, split) for split in P.SPLITS}
    assert {split: len(packed) for split, packed in sets.items()} == {"train": 20, "val": 6, "test": 6}
    pictures = [packed.image(i).numpy().tobytes() for packed in sets.values() for i in range(len(packed))]
    assert len(set(pictures)) == 32 and len({row["id"] for packed in sets.values() for row in packed.rows}) == 32
    cfg = P.Settings(size=64, seed=1)
    assert P.pack((cfg, "train", 0))[1] != P.pack((P.Settings(size=64), "train", 0))[1]
    assert P.pack((P.Settings(size=64, train=999), "train", 3))[0] == sets["train"].rows[3]

    # rows say what is in the picture; the half-size picture is the mean of four pixels
    for i, row in enumerate(sets["train"].rows):
        assert P.report_to_facts(row["report"]) == frozenset(map(tuple, row["labels"])) and row["prompt"] in P.PROMPTS
        full, half = (packed.image(i).numpy().astype(float) for packed in (sets["train"], data.Packed(tmp_path / "a", "gen", 32, "train")))
        assert np.abs(shrink(full) - half).max() <= 0.5
    assert json.loads((tmp_path / "a" / "tokenizer.json").read_text())["added_tokens"][0]["content"] == "<bos>"

    # again: nothing to do; other settings: refused, unless told to overwrite
    before = digest(tmp_path / "a")
    capsys.readouterr()
    pack_all(tmp_path / "a")
    assert "already" in capsys.readouterr().out and digest(tmp_path / "a") == before
    with pytest.raises(common.InputError, match="overwrite"):
        pack_all(tmp_path / "a", "--seed", "1")
    # a run that was killed between two sets goes on with the same command
    (tmp_path / "a" / "phantom.json").unlink(), (tmp_path / "a" / "gen-64" / "dataset.json").unlink()
    pack_all(tmp_path / "a")
    assert digest(tmp_path / "a") == before
    pack_all(tmp_path / "a", "--seed", "1", "--overwrite")
    assert digest(tmp_path / "a") != before


def test_held_out_is_the_test_split():
    row, picture = P.held_out(P.Settings(size=64), 2)
    assert row == P.pack((P.Settings(size=64), "test", 2))[0] and picture.shape == (64, 64) and picture.dtype == np.uint8


def test_bad_sizes_are_refused():
    for options in (["--size", "63"], ["--size", "0"], ["--train", "0"], ["--seed", "-1"]):
        with pytest.raises(common.InputError):
            P.main(options)


def test_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    P.main(["--show", "3"])
    assert os.listdir(tmp_path) == ["phantom.png"]
