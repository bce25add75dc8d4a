"""Curves of training runs in one picture: a panel a quantity, a colour a run.

    python -m training.curves out/und out/gen256 [--out curves.png]      # needs matplotlib

Each run directory holds a log.jsonl, also while the run goes on. The thin line is what was logged,
the thick one its running mean.
"""
import json
import math
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from common.cli import InputError, cli, override
from common.files import lines_of, replacing

# the order of panels; quantities that are not named here follow by the alphabet
ORDER = ("loss", "val_loss", "mse", "val_mse", "val_mse_bins", "repa", "ce", "norm", "lr", "img_s",
         "u_tok_s", "g_tok_s", "mfu", "wait")


@dataclass
class CurvesConfig:
    out: str = "curves.png"             # the picture


def read(run):
    """The log of a run -> {quantity: (steps (N,), values (N,) or (N, bins))}.

    A value that was no number is NaN. A last line that is still being written is left out.
    """
    path = Path(run) / "log.jsonl"
    if not path.exists():
        raise InputError(f"{run} has no log.jsonl; give directories that training wrote (--out).")
    written, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    points = {}                         # quantity: [(step, value)]
    for number, line in enumerate(lines_of(written), 1):
        try:
            fields = json.loads(line)
            step = fields.pop("step")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"line {number} of {path} is broken; repair or remove it.") from None
        for name, value in fields.items():
            if value is None or isinstance(value, (int, float)) or name.endswith("_bins"):
                points.setdefault(name, []).append((step, value))
    if not points:
        raise InputError(f"{path} is empty: the run has logged nothing yet.")
    log = {}
    for name, pairs in points.items():
        steps, values = zip(*pairs)
        log[name] = np.array(steps), np.array(values, dtype=float)
    return log


def smooth(values, window):
    """Running mean over `window` neighbours, fewer at the ends. NaN does not count."""
    known = np.isfinite(values)
    before = (window - 1) // 2

    def window_sum(x):
        return np.convolve(x, np.ones(window))[before:before + len(x)]

    total = window_sum(np.where(known, values, 0.0))
    return total / np.maximum(window_sum(known.astype(float)), 1e-9)


def wants_log(quantity, series):
    """A logarithmic axis is for losses and norms that are positive and span a factor above 4."""
    if not any(word in quantity for word in ("loss", "mse", "norm")):
        return False
    values = np.concatenate([values[np.isfinite(values)] for values in series])
    return bool(len(values) and values.min() > 0 and values.max() > 4 * values.min())


def names_of(runs):
    """{path: name}: as many of the last parts of each path as tell the runs apart."""
    paths = {Path(run).resolve() for run in runs}
    length = 1
    while len({path.parts[-length:] for path in paths}) < len(paths):
        length += 1
    ordered = dict.fromkeys(Path(run).resolve() for run in runs)
    return {path: "/".join(path.parts[-length:]) for path in ordered}


def draw_panel(panel, quantity, curves):
    """One quantity of all runs that have it. curves: [(name, colour, steps, values)]."""
    for name, colour, steps, values in curves:
        if values.ndim == 2:            # bins of t: from pale (near the data) to full (near noise)
            bins = values.shape[1]
            for b in range(bins):
                label = name if b + 1 == bins else None
                panel.plot(steps, values[:, b], color=colour, alpha=(b + 1) / bins, label=label)
            continue
        # with few points the line itself is smooth enough
        window = max(1, len(values) // 40)
        thin = dict(color=colour, linewidth=0.8, marker="" if len(values) > 1 else "o")
        if window == 1:
            panel.plot(steps, values, label=name, **thin)
        else:
            panel.plot(steps, values, alpha=0.25, **thin)
            panel.plot(steps, smooth(values, window), color=colour, label=name)

    title = quantity
    if quantity.endswith("_bins"):
        title += ", pale: t near 0"
    panel.set(title=title, xlabel="step")
    if wants_log(quantity, [values.ravel() for *_, values in curves]):
        from matplotlib.ticker import LogLocator, NullFormatter
        panel.set_yscale("log")
        panel.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}",
                        minor_formatter=NullFormatter())
    panel.grid(alpha=0.3, which="both")
    panel.legend(fontsize="small")


def draw(runs, out):
    """Write the curves of some run directories to the PNG `out` -> the quantities drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install matplotlib.") from None
    logs = {name: read(path) for path, name in names_of(runs).items()}
    logged = {quantity for log in logs.values() for quantity in log}
    quantities = [quantity for quantity in ORDER if quantity in logged]
    quantities += sorted(logged - set(ORDER))

    # a panel each, three in a row; what is left of the grid is taken away
    columns = min(3, len(quantities))
    rows = math.ceil(len(quantities) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, quantity in zip(panels, quantities):
        curves = []
        for number, (name, log) in enumerate(logs.items()):
            if quantity in log:
                curves.append((name, f"C{number % 10}", *log[quantity]))
        draw_panel(panel, quantity, curves)
    for panel in panels[len(quantities):]:
        panel.remove()
    with replacing(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return quantities


def main(argv):
    runs = list(takewhile(lambda word: not word.startswith("-"), argv))
    cfg = override(CurvesConfig(), argv[len(runs):], __doc__)
    if not runs:
        raise InputError("name the directories of the runs: `python -m training.curves RUN...`.")
    quantities = draw(runs, cfg.out)
    print(f"{cfg.out}: {', '.join(quantities)} of {len(runs)} run(s)")


if __name__ == "__main__":
    cli(main)
