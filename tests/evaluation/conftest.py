"""What the tests of evaluation/ share: reference values of the metrics."""
import json

import pytest

from helpers import GOLDEN


@pytest.fixture(scope="session")
def golden_metrics():
    """What the official code and packages gave for every metric, and the texts and labels."""
    if not GOLDEN.exists():
        pytest.skip("reference values are not here")
    return json.loads((GOLDEN / "metrics.json").read_text())
