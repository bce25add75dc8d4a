"""Settings that several tables share: `--sweep steps=4,8 cfg=1,2` for every combination of them."""
import itertools
import re


def swept(parts):
    assert len({part.split("=")[0] for part in parts}) == len(parts), "--sweep: each setting once, as steps=4,8 cfg=1,2.5."
    for part in parts:
        good = re.fullmatch(r"steps=[1-9]\d*(,[1-9]\d*)*|cfg=\d+(\.\d+)?(,\d+(\.\d+)?)*", part)
        assert good, f"--sweep {part} is not like steps=4,8 or cfg=1,2.5."


def combinations(sweep):
    """["steps=4,8", "cfg=1,2"] -> [{"steps": 4, "cfg": 1.0}, …]; what is not swept keeps its setting."""
    kinds = {"steps": int, "cfg": float}
    axes = {key: [kinds[key](x) for x in values.split(",")] for key, values in (part.split("=") for part in sweep)}
    return [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
