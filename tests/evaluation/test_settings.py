"""evaluation/settings.py: a sweep is a grid of copies of the settings."""
import pytest

from evaluation.gen import GenConfig
from evaluation.settings import Sweep, sampling_of


def test_a_sweep_is_every_combination_and_keeps_the_rest():
    cfg = GenConfig(sweep=["steps=4,8", "cfg=1,2.5"], seed=7, limit=3)
    points = cfg.points()
    swept = [(point.steps, point.cfg) for point in points]
    assert swept == [(4, 1.0), (4, 2.5), (8, 1.0), (8, 2.5)]
    assert all(point.seed == 7 and point.limit == 3 for point in points)
    assert GenConfig().points() == []
    alone, = Sweep(sweep=["cfg=3"], steps=5).points()
    assert (alone.steps, alone.cfg) == (5, 3.0)


@pytest.mark.parametrize("sweep", [
    ["steps=a"], ["steps=0"], ["steps=4,"], ["cfg=1..2"], ["cfg=-1"], ["shift=2"],
    ["steps=1", "steps=2"]])
def test_other_sweeps_are_refused(sweep):
    with pytest.raises(AssertionError, match="--sweep"):
        Sweep(sweep=sweep)


def test_the_sampling_settings_of_a_config_are_those_of_sampling():
    settings = sampling_of(GenConfig(steps=3))
    assert settings["steps"] == 3 and "limit" not in settings and "sweep" not in settings
