"""What evaluate.py writes: JSON, a Markdown table with the paper's rows beside ours, plots.

The rows are those of the paper's Tables 2, 3 and 4 (peers as printed there, most of them quoted from elsewhere and not rerun).
They are over MIMIC-CXR: beside other data they say nothing.
"""
import importlib.util
import json

from common import packed as pack
from common.images import NOTICE
from evaluation.text_metrics import POLICIES

FINDINGS = ("Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,"
            "No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices").split(",")     # as Table 4
F1 = ("micro_f1", "micro_f1_top5", "macro_f1", "macro_f1_top5")
TABLE2 = {      # CheXbert F1 in percent: uncertain as negative, uncertain as positive; columns as F1
    "UniX 1.5B": ((53.6, 56.6, 33.2, 47.3), (52.6, 57.9, 35.5, 49.8)),
    "LLaVA-Rad 7B": ((57.3, 57.4, 39.5, 47.7), (57.3, 60.2, 44.0, 53.3)),
    "Med-PaLM M 84B": ((53.6, 57.9, 39.8, 51.6), (None,) * 4),
    "HealthGPT 3.8B": ((24.2, 25.1, 14.6, 18.5), (25.5, 28.2, 17.5, 22.6)),
    "LLM-CXR 12B": ((None,) * 4, (36.0, None, 21.1, None)),
    "RGRG": ((38.9, 47.2, 23.7, 40.8), (37.4, 49.0, 24.4, 42.7)),
    "GPT-4V": ((35.5, 25.8, 20.4, 19.6), (35.6, 33.3, 25.3, 29.6)),
}
GENERATION = ("fd", "kd", "alignment", "precision", "recall", "density", "coverage")
TABLE3 = {      # columns as GENERATION; FD to coverage are means over four blocks there
    "UniX, 512": (54.022, 0.024, 0.635, 0.736, 0.479, 0.536, 0.550),
    "UniX, 256": (65.208, 0.051, 0.251, 0.675, 0.243, 0.366, 0.419),
    "Sana (fine-tuned), 512": (54.225, 0.016, 0.695, 0.674, 0.614, 0.520, 0.548),
    "PixArt Sigma (fine-tuned), 512": (60.154, 0.023, 0.697, 0.666, 0.522, 0.506, 0.506),
    "RadEdit, 512": (69.695, 0.033, 0.677, 0.397, 0.544, 0.150, 0.285),
    "LLM-CXR, 256": (71.243, 0.061, 0.319, 0.782, 0.041, 0.671, 0.459),
}
TABLE4 = {      # FD a finding, all its images at once; order as FINDINGS. Sana's 88.52 is 99.52 in the benchmark's own table
    "UniX, 512": (52.19, 51.70, 122.84, 64.36, 142.23, 176.35, 156.81, 49.15, 45.71, 48.06, 191.65, 99.31, 135.48, 47.04),
    "UniX, 256": (63.34, 63.39, 129.32, 73.88, 150.25, 177.68, 165.88, 58.31, 60.58, 58.55, 201.53, 105.96, 141.63, 57.61),
    "Sana": (51.03, 54.68, 127.46, 67.84, 147.00, 172.32, 163.14, 49.23, 44.60, 49.80, 199.45, 88.52, 141.99, 46.51),
    "LLM-CXR": (71.57, 71.37, 136.65, 83.18, 148.28, 168.50, 163.22, 66.93, 64.62, 67.83, 200.84, 108.04, 147.52, 67.54),
}


# ---- numbers: {"value", "interval", "n"} ----

def numbers(values, intervals=None, n=None):
    """{name: value} and {name: [low, high]} -> {name: {"value", "interval", "n"}}."""
    return {name: {"value": value, "interval": (intervals or {}).get(name), "n": n} for name, value in values.items()}


def shown(number, digits=3, scale=1):
    """0.512 [0.498, 0.525], or a dash."""
    if number is None or number["value"] is None:
        return "–"
    rounded = lambda x: f"{round(x * scale, digits) + 0.0:.{digits}f}"         # + 0.0: no -0.000
    return rounded(number["value"]) + (f" [{', '.join(map(rounded, number['interval']))}]" if number["interval"] else "")


def table(head, rows):
    line = lambda cells: "| " + " | ".join(map(str, cells)) + " |"
    return "\n".join([line(head), "|" + "---|" * len(head), *map(line, rows)])


def paper(rows, digits):
    return [[name + " (paper)", *("–" if v is None else f"{v:.{digits}f}" for v in row)] for name, row in rows.items()]


def other_features(encoder):
    """[] or why the paper's FD to coverage are no measure for these."""
    return [] if encoder.startswith("rad-dino, benchmark") else [
        f"The features are those of '{encoder}', the paper's of RAD-DINO by the benchmark's way: FD to coverage cannot be "
        "compared with its rows."]


# ---- Markdown, part by part of a result ----

def understanding(part):
    """Table 2, and the scores that the paper has in its supplement alone."""
    lines = []
    for n, policy in enumerate(POLICIES if "uncertain_as_negative_micro_f1" in part else ()):
        ours = ["**this model**", *(shown(part[f"{policy}_{column}"], 1, 100) for column in F1)]
        lines += [f"CheXbert F1 in percent, {policy.replace('_', ' ')} (Table 2):",
                  table(["", "micro, 14", "micro, 5", "macro, 14", "macro, 5"],
                        [ours, *paper({name: row[n] for name, row in TABLE2.items()}, 1)])]
    rest = {name: number for name, number in part.items() if not name.startswith("uncertain")}
    return lines + ([table(["score", "this model", "reports"], [[k, shown(v), v["n"]] for k, v in rest.items()])] if rest else [])


def generation(part, encoder=""):
    """Table 3: one row of ours for each way of cutting the list (1, and 4 as published). The paper's rows stand beside numbers of
    RAD-DINO alone: those of another encoder are on another scale."""
    ours = [[f"**this model**, {shards} block{'s' * (shards != '1')}", *(shown(row.get(column)) for column in GENERATION)]
            for shards, row in part.items()]
    lines = [f"Features: {encoder}. {next(iter(part.values()))['fd']['n']} images."]
    if beside(encoder):
        lines[0] += " The paper's FD to coverage (Table 3) are means over 4 blocks, by the benchmark's way into RAD-DINO."
    return [*lines, table(["", *GENERATION], ours + (paper(TABLE3, 3) if beside(encoder) else []))]


def beside(encoder):
    return encoder.startswith("rad-dino")


def findings(part, encoder=""):
    """Table 4: FD of each finding's images, with counts."""
    peers = TABLE4 if beside(encoder) else {}
    rows = [[name, row["n_real"], row["n_generated"], shown(row["fd"], 2) + (" (†)" if row["few"] else ""),
             *(f"{TABLE4[peer][FINDINGS.index(name)]:.2f}" if name in FINDINGS else "–" for peer in peers)]
            for name, row in part.items()]
    return ["FD of each finding (Table 4; one block):",
            table(["finding", "real", "generated", "FD, this model", *(f"{peer} (paper)" for peer in peers)], rows),
            "† fewer images than the features have numbers: mostly the bias of a small sample; compare at equal counts alone."]


def plain(part):
    """Any {name: number}."""
    return [table(["", "value", "n"], [[name, shown(number), number["n"] or ""] for name, number in part.items()])]


def swept(part):
    """A list of {"steps", "cfg", name: number}."""
    return [table(list(part[0]), [[shown(v) if isinstance(v, dict) else f"{v:g}" for v in row.values()] for row in part])]


PARTS = {"understanding": understanding, "sweep": swept}
OF_FEATURES = {"generation": generation, "findings": findings}


def markdown(result):
    text = [f"# {result['title']}", f"*{NOTICE} Intervals are 95 %; docs/evaluation.md says of what.*"]
    for name, part in result["scores"].items():
        lines = OF_FEATURES[name](part, result["encoder"]) if name in OF_FEATURES else PARTS.get(name, plain)(part)
        text += [f"## {name.replace('_', ' ')}", *lines]
    if result["left_out"]:
        text += ["## Left out", "\n".join(f"- {sentence}" for sentence in result["left_out"])]
    if result.get("warnings"):
        text += ["## Mind", "\n".join(f"- {sentence}" for sentence in result["warnings"])]
    if failed := result["failures"]:
        text += [f"## Failed: {len(failed)}, not scored", "\n".join(f"- {name}: {why}" for name, why in failed.items())]
    settings = ", ".join(f"{k} {v}" for k, v in result["settings"].items() if v not in ("", []))
    return "\n\n".join([*text, f"Settings: {settings}."]) + "\n"


def write(path, title, scores, settings, left_out=(), failures=(), **more):
    """<path>.json and <path>.md -> the Markdown. Plots are separate: they need matplotlib."""
    result = {"title": title, "scores": scores, "settings": settings, "left_out": list(left_out), "failures": dict(failures),
              "notice": NOTICE, **more}
    text = markdown(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    for suffix, content in ((".json", json.dumps(result, indent=1)), (".md", text)):
        pack.write(path.with_name(path.name + suffix), content.encode())
    return text


# ---- plots ----

def plots_left_out():
    """[] or why there are none."""
    return [] if importlib.util.find_spec("matplotlib") else \
        ["plots are left out (no matplotlib): pip install -r requirements-eval.txt."]


def figure(path, draw, size=(7, 3.5)):
    """Make an empty figure, let draw(figure) fill it, write a small PNG."""
    from matplotlib.figure import Figure
    fig = Figure(figsize=size, layout="constrained")
    draw(fig)
    fig.savefig(path, dpi=110, metadata={"Description": NOTICE})


def bars(path, part, encoder):
    """FD a finding, beside the paper's rows where the features are RAD-DINO's."""
    def draw(fig):
        ax, names = fig.subplots(), list(part)
        ours = {"this model": [part[name]["fd"]["value"] for name in names]}
        known = beside(encoder) and set(names) <= set(FINDINGS)         # phantoms have findings of their own
        theirs = {f"{row} (paper)": [TABLE4[row][FINDINGS.index(name)] for name in names] for row in ("UniX, 512", "Sana")} \
            if known else {}
        for n, (row, heights) in enumerate({**ours, **theirs}.items()):
            ax.bar([k + 0.27 * (n - len(theirs) / 2) for k in range(len(names))], heights, 0.25, label=row)
        labels = [f"{name}\nn = {part[name]['n_real']}" for name in names]
        ax.set_xticks(range(len(names)), labels, rotation=60, ha="right", fontsize=7)
        ax.set_ylabel("FD")
        ax.legend(fontsize=7)
    figure(path, draw, (9, 4.5))


def curves(path, rows):
    """One panel a metric of the sweep: against the number of steps, a line for each guidance scale."""
    names = [name for name in rows[0] if name not in ("steps", "cfg")]

    def draw(fig):
        for ax, name in zip(fig.subplots(1, len(names), squeeze=False)[0], names):
            for cfg in sorted({row["cfg"] for row in rows}):
                points = sorted((row["steps"], row[name]["value"]) for row in rows if row["cfg"] == cfg)
                ax.plot(*zip(*points), marker="o", markersize=3, label=f"guidance {cfg:g}")
            ax.set_xscale("log", base=2)
            ax.set_xticks(*[sorted({row["steps"] for row in rows})] * 2)
            ax.set_xlabel("steps")
            ax.set_title(name.replace("_", " "), fontsize=9)
        ax.legend(fontsize=7)
    figure(path, draw, (3 * len(names), 3))
