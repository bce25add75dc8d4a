"""common/finite.py: the first place where a number is none is named, and all else passes."""
import math

import pytest
import torch

from common.finite import Watch, refuse_non_finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_first_place_is_named(value):
    watch = Watch()
    for step in range(5):
        x = torch.ones(2, 3)
        if step >= 2:
            x[1, 2] = value
        assert watch(f"step {step}", x) is x
    with pytest.raises(FloatingPointError, match="^step 2 is not finite"):
        watch.check()
    with pytest.raises(FloatingPointError, match="^it is not finite"):
        refuse_non_finite("it", x)


def test_numbers_pass():
    watch = Watch()
    watch.check()
    watch("large", torch.full((2,), 3e38))
    watch.check()
