"""`evaluate.py severity`: the measures on pictures made by hand, and the demo's model at it."""
import json

import numpy as np
import pytest

from common.cli import InputError
from evaluation import severity
from evaluation.severity import NONE, Measured, SeverityConfig, series, spearman
from phantom.facts import Fact, report_to_facts


@pytest.mark.parametrize("rest, sentences", [("", 1), ("No nodule. No effusion. No edema.", 4)])
def test_reports_ask_for_one_fact_each(rest, sentences):
    texts = severity.reports(rest)
    asked = [fact for facts in series().values() for fact in facts]
    assert len(asked) == 20 and set(texts) == {*asked, *NONE}
    for key, text in texts.items():
        assert report_to_facts(text) == ({key} if key in asked else frozenset())
        assert text.count(".") <= sentences
    assert texts[Fact("effusion", "left", "large")].startswith(
        "Large left pleural effusion." if not rest else "No nodule. Large left pleural effusion.")


def test_rank_correlation():
    assert spearman([1, 2, 3], [10, 20, 90]) == pytest.approx(1)
    assert spearman([3, 2, 1], [10, 20, 90]) == pytest.approx(-1)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(3 ** 0.5 / 2)
    assert spearman([1, 1, 1], [1, 2, 3]) == 0
    assert severity.ranks([5, 7, 5]).tolist() == [0.5, 2, 0.5]


class Reader:
    """An examinee that says the same of every picture."""

    def __init__(self, text):
        self.text = text

    def read(self, pictures, which):
        return [self.text] * len(pictures)


def test_pictures_are_of_the_size_that_is_asked_for():
    pictures = severity.by_formula(SeverityConfig(num=1, size=64))
    assert {images.shape for images in pictures.values()} == {(1, 64, 64)}


def test_area_height_and_side_are_those_of_what_differs():
    without = np.full((2, 8, 8), 100)
    images = without.astype(np.uint8)
    images[0, 2:4, 6:] = 200                    # the patient's left
    images[0, 7, 0] = 113                       # something else
    images[1] += 12                             # too little
    facts = [Fact("nodule", "left upper"), Fact("nodule", "left mid")]
    text = "Nodule in the left mid zone. Large left effusion."
    read, right, area, height, same_side = severity.measure_step(
        SeverityConfig(), Reader(text), facts, facts[1], images, without)
    assert (read.tolist(), right.tolist(), area.tolist()) == ([2, 2], [True, True], [5, 0])
    assert height[0] == pytest.approx((2 * 2 + 2 * 3 + 7) / 5 / 8)
    assert same_side.tolist() == [0.8, 0]

    both = "Nodule in the left mid zone. Nodule in the left upper zone."
    assert not severity.measure_step(
        SeverityConfig(), Reader(both), facts, facts[1], images, without)[1].any()


def test_scores_of_a_series():
    area = np.array([[1, 2, 4], [1, 5, 4]])
    one = Measured(none=np.array([True, False]), read=np.array([[1, 2, 3], [1, 2, 2]]),
                   asked=np.array([1, 2, 3]), right=np.array([[1, 1, 1], [1, 1, 0]]), area=area,
                   height=area, same_side=np.array([[1, 1, 1], [0, 1, 1]]))
    scores = {name: numbers["value"]
              for name, numbers in severity.scores_of("effusion", [one, one], 0).items()}
    assert scores["none as asked"] == 0.5 and scores["read as asked"] == pytest.approx(5 / 6)
    assert scores["area in order"] == 0.5 and scores["area, rank"] == pytest.approx(0.75)
    assert scores["pixels, moderate"] == 3.5 and scores["same side"] == pytest.approx(5 / 6)
    assert 0.9 < scores["read, rank"] < 1
    assert severity.scores_of("nodule", [one], 0)["zones in order"]["value"] == 0.5


@pytest.mark.slow
def test_the_model_of_the_demo(tmp_path, capsys):
    line = "--num 2 --steps 3 --bootstrap 2 --device cpu --out".split()
    severity.main([*line, str(tmp_path / "score")])
    page = json.loads((tmp_path / "score.json").read_text())
    drawn = page["scores"]["effusion, drawn by the model"]
    truth = page["scores"]["effusion, drawn by formula"]
    assert drawn["area, rank"]["value"] > 0.9 and drawn["read as asked"]["value"] > 0.7
    assert truth["area in order"]["value"] == truth["same side"]["value"] == 1
    assert truth["pixels, small"]["value"] < truth["pixels, large"]["value"]
    assert "| cardiomegaly, drawn by formula |" in capsys.readouterr().out


def test_bad_input_is_one_sentence(tmp_path, stage1):
    for line, words in (("--num 0", "--num"), ("--least 0", "--least"), ("--steps 0", "--steps"),
                        ("--checkpoint nowhere", "nowhere"), ("--size 100", "size 100"),
                        (f"--checkpoint {stage1}", "cannot draw")):
        with pytest.raises(InputError, match=words):
            severity.main([*line.split(), "--device", "cpu", "--out", str(tmp_path / "score")])
    assert not list(tmp_path.glob("*.*"))
