"""Settings that several tables share. A table's own config inherits the groups that it needs.

    class GenConfig(Sweep, FeatureNetwork, ReportNetworks): ...
"""
import dataclasses
import itertools
import re
from dataclasses import dataclass, field
from typing import Literal

from evaluation import features
from sample import Sampling


@dataclass
class FeatureNetwork:
    """Whose features FD to coverage compare."""
    encoder: Literal["rad-dino", "vision"] = "rad-dino"     # vision: the checkpoint's own tower
    rad_dino: str = "pretrained/rad-dino"       # folder of RAD-DINO
    route: Literal[*features.ROUTES] = "benchmark"      # to RAD-DINO; benchmark: via 299 px


@dataclass
class ReportNetworks:
    """Other people's networks that score reports."""
    chexbert: str = "pretrained/chexbert"   # folder with chexbert.pth and vocab.txt
    cut: bool = False               # CheXbert sees 512 characters only, as in the official code
    python: str = ""                # interpreter that has RadGraph and BioViL-T; default: this one


# steps=4,8 with whole numbers from 1, or cfg=1,2.5
SWEPT = re.compile(r"steps=[1-9]\d*(,[1-9]\d*)*|cfg=\d+(\.\d+)?(,\d+(\.\d+)?)*")


@dataclass
class Sweep(Sampling):
    """Sampling settings, and a grid over two of them: number of steps and guidance scale."""
    seed: int = 0                   # report number i is drawn from the noise (seed, i)
    sweep: list[str] = field(default_factory=list)      # score a grid, as steps=4,8 cfg=1,2

    def __post_init__(self):
        super().__post_init__()
        for axis in self.sweep:
            assert SWEPT.fullmatch(axis), f"--sweep {axis} is not like steps=4,8 or cfg=1,2.5."
        names = [axis.split("=")[0] for axis in self.sweep]
        assert len(set(names)) == len(names), "--sweep: each setting once, as steps=4,8 cfg=1,2.5."

    def points(self):
        """The points of the grid: copies of these settings, of which only the swept ones differ.

        `--sweep steps=4,8 cfg=1,2` has four points; a setting that is not swept keeps its value.
        """
        # without this the product of no axes would be one point, the settings themselves
        if not self.sweep:
            return []
        # numbers arrive as text: steps are counted, a guidance scale may have decimals
        kinds = {"steps": int, "cfg": float}
        grid = {}
        for axis in self.sweep:
            name, values = axis.split("=")
            grid[name] = [kinds[name](value) for value in values.split(",")]
        return [dataclasses.replace(self, **dict(zip(grid, values)))
                for values in itertools.product(*grid.values())]


def sampling_of(cfg):
    """The sampling settings alone of a config that inherits them, as {name: value}."""
    return {field.name: getattr(cfg, field.name) for field in dataclasses.fields(Sampling)}
