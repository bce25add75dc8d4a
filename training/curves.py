"""Curves of training runs in one PNG, for `python -m bench.sampling plot RUN...`: a panel a quantity, a colour a run.

Each run directory holds a log.jsonl (training/run.py). The thin line is what was logged, the thick one its running mean.
"""
import json
import math
from pathlib import Path

import numpy as np

from common.processes import InputError

FIRST = ("loss", "val_loss", "mse", "val_mse", "val_mse_bins", "repa", "ce", "norm", "lr", "img_s", "u_tok_s", "g_tok_s", "mfu",
         "wait")                                                                                        # the order of panels


def read(run):
    """The log of a run -> {quantity: (steps (N,), values (N,) or (N, bins))}. A last line still being written is left out."""
    path = Path(run) / "log.jsonl"
    if not path.exists():
        raise InputError(f"{run} has no log.jsonl; give directories that a train_*.py wrote to (--out).")
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").rpartition("\n")[0].splitlines(), 1):
        try:
            fields = json.loads(line)
            step = fields.pop("step")
        except (ValueError, KeyError, AttributeError, TypeError):
            raise InputError(f"line {number} of {path} is broken; repair or remove it.") from None
        for name, value in fields.items():
            if isinstance(value, (int, float)) or name.endswith("_bins") or value is None:       # None: it was no number
                found.setdefault(name, ([], []))
                found[name][0].append(step), found[name][1].append(value)
    if not found:
        raise InputError(f"{path} is empty: the run has logged nothing yet.")
    return {name: (np.array(steps), np.array(values, dtype=float)) for name, (steps, values) in found.items()}


def smooth(values, window):
    """Running mean over `window` neighbours, fewer at the ends; what is no number does not count."""
    there, box = np.isfinite(values), np.ones(window)
    mean = lambda x: np.convolve(x, box)[(window - 1) // 2:][:len(x)]
    return mean(np.where(there, values, 0.0)) / np.maximum(mean(there.astype(float)), 1e-9)


def wants_log(quantity, series):
    """A logarithmic axis for losses and norms that are positive and span more than a factor of 4."""
    values = np.concatenate([v[np.isfinite(v)] for v in series])
    falls = any(word in quantity for word in ("loss", "mse", "norm"))
    return bool(falls and len(values) and values.min() > 0 and values.max() > 4 * values.min())


def names_of(runs):
    """The last part of each path, or as much of it as tells them apart."""
    paths = [Path(run).resolve() for run in dict.fromkeys(runs)]
    parts = next(n for n in range(1, 100) if len({path.parts[-n:] for path in paths}) == len(set(paths)))
    return {path: "/".join(path.parts[-parts:]) for path in paths}


def draw(runs, out):
    """Write the curves of the runs to the PNG `out` -> the quantities drawn."""
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import LogLocator, NullFormatter
    except ImportError:
        raise InputError("drawing needs matplotlib: pip install matplotlib.") from None
    logs = {name: read(path) for path, name in names_of(runs).items()}
    found = {quantity for log in logs.values() for quantity in log}
    quantities = [q for q in FIRST if q in found] + sorted(found - set(FIRST))
    columns = min(3, len(quantities))
    rows = math.ceil(len(quantities) / columns)
    figure = Figure(figsize=(5.5 * columns, 3.4 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, quantity in zip(panels, quantities):
        having = {name: log[quantity] for name, log in logs.items() if quantity in log}
        for name, (steps, values) in having.items():
            colour = f"C{list(logs).index(name) % 10}"
            if values.ndim == 2:                            # bins of t: from pale (data) to full colour (noise)
                n = values.shape[1]
                for b in range(n):
                    panel.plot(steps, values[:, b], color=colour, alpha=(b + 1) / n, label=name if b + 1 == n else None)
                continue
            window = max(1, len(values) // 40)
            panel.plot(steps, values, color=colour, alpha=0.25 if window > 1 else 1.0, linewidth=0.8,
                       marker="" if len(values) > 1 else "o", label=None if window > 1 else name)
            if window > 1:
                panel.plot(steps, smooth(values, window), color=colour, label=name)
        logarithmic = wants_log(quantity, [values.ravel() for _, values in having.values()])
        panel.set(title=quantity + (", pale: t near 0" if quantity.endswith("_bins") else ""), xlabel="step",
                  yscale="log" if logarithmic else "linear")
        if logarithmic:
            panel.yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_formatter=NullFormatter())
        panel.grid(alpha=0.3, which="both"), panel.legend(fontsize="small")
    for panel in panels[len(quantities):]:
        panel.remove()
    temporary = Path(out).with_name(f".tmp-{Path(out).name}")
    figure.savefig(temporary, format="png", dpi=110)
    temporary.rename(out)
    return quantities
