"""What the tables look like: JSON, Markdown with the paper's rows beside ours, plots.

The rows are those of the paper's Tables 2, 3 and 4. Peers are as printed there, and most of those
were quoted from elsewhere and not run again. All of them are over MIMIC-CXR: beside numbers of
other data they say nothing.
"""
import importlib.util
from pathlib import Path

from common.cli import InputError, report_failures
from common.files import read_json, refuse_unwritable, write_json, write_text
from common.images import NOTICE
from evaluation.text_metrics import POLICIES
from mimic.annotations import FINDINGS

# Table 2, CheXbert F1 in percent: uncertain as negative, then uncertain as positive
F1 = ("micro_f1", "micro_f1_top5", "macro_f1", "macro_f1_top5")         # the columns of each half
NOT_PRINTED = (None, None, None, None)
TABLE2 = {
    "UniX 1.5B": ((53.6, 56.6, 33.2, 47.3), (52.6, 57.9, 35.5, 49.8)),
    "LLaVA-Rad 7B": ((57.3, 57.4, 39.5, 47.7), (57.3, 60.2, 44.0, 53.3)),
    "Med-PaLM M 84B": ((53.6, 57.9, 39.8, 51.6), NOT_PRINTED),
    "HealthGPT 3.8B": ((24.2, 25.1, 14.6, 18.5), (25.5, 28.2, 17.5, 22.6)),
    "LLM-CXR 12B": (NOT_PRINTED, (36.0, None, 21.1, None)),
    "RGRG": ((38.9, 47.2, 23.7, 40.8), (37.4, 49.0, 24.4, 42.7)),
    "GPT-4V": ((35.5, 25.8, 20.4, 19.6), (35.6, 33.3, 25.3, 29.6)),
}

# Table 3; FD to coverage are means over four blocks of the list there
GENERATION = ("fd", "kd", "alignment", "precision", "recall", "density", "coverage")
TABLE3 = {
    "UniX, 512": (54.022, 0.024, 0.635, 0.736, 0.479, 0.536, 0.550),
    "UniX, 256": (65.208, 0.051, 0.251, 0.675, 0.243, 0.366, 0.419),
    "Sana (fine-tuned), 512": (54.225, 0.016, 0.695, 0.674, 0.614, 0.520, 0.548),
    "PixArt Sigma (fine-tuned), 512": (60.154, 0.023, 0.697, 0.666, 0.522, 0.506, 0.506),
    "RadEdit, 512": (69.695, 0.033, 0.677, 0.397, 0.544, 0.150, 0.285),
    "LLM-CXR, 256": (71.243, 0.061, 0.319, 0.782, 0.041, 0.671, 0.459),
}

# Table 4, FD of each finding in the order of FINDINGS, all its images at once. Sana's 88.52 of
# pneumonia is 99.52 in the benchmark's own table.
TABLE4 = {
    "UniX, 512": (52.19, 51.70, 122.84, 64.36, 142.23, 176.35, 156.81,
                  49.15, 45.71, 48.06, 191.65, 99.31, 135.48, 47.04),
    "UniX, 256": (63.34, 63.39, 129.32, 73.88, 150.25, 177.68, 165.88,
                  58.31, 60.58, 58.55, 201.53, 105.96, 141.63, 57.61),
    "Sana": (51.03, 54.68, 127.46, 67.84, 147.00, 172.32, 163.14,
             49.23, 44.60, 49.80, 199.45, 88.52, 141.99, 46.51),
    "LLM-CXR": (71.57, 71.37, 136.65, 83.18, 148.28, 168.50, 163.22,
                66.93, 64.62, 67.83, 200.84, 108.04, 147.52, 67.54),
}


# ---- numbers: {"value", "interval", "n"} ----

def numbers(values, intervals, n):
    """{name: value} and {name: [low, high]} over n items -> {name: {"value", "interval", "n"}}."""
    return {name: {"value": value, "interval": intervals.get(name), "n": n}
            for name, value in values.items()}


def shown(number, digits=3, scale=1):
    """A number as text, 0.512 [0.498, 0.525], or a dash if there is none."""
    if number is None or number["value"] is None:
        return "–"

    def rounded(value):
        return f"{round(value * scale, digits) + 0.0:.{digits}f}"       # + 0.0: no -0.000

    text = rounded(number["value"])
    if number["interval"]:
        low, high = number["interval"]
        text += f" [{rounded(low)}, {rounded(high)}]"
    return text


# ---- Markdown ----

def table(head, rows):
    """A Markdown table: the words of its head, then rows of cells."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines)


def paper_rows(rows, digits):
    """{name: values} of the paper -> rows of cells; what was not printed is a dash."""
    return [[f"{name} (paper)", *("–" if value is None else f"{value:.{digits}f}" for value in row)]
            for name, row in rows.items()]


def of_rad_dino(encoder):
    """Whether the paper's rows may stand beside FD to coverage of these features at all.

    The FD of another encoder is on another scale.
    """
    return encoder.startswith("rad-dino")


def other_features(encoder):
    """[] or [why the paper's FD to coverage cannot be compared with numbers of these features]."""
    if encoder.startswith("rad-dino, benchmark"):
        return []
    return [f"The features are those of '{encoder}', the paper's of RAD-DINO by the benchmark's "
            "way: FD to coverage cannot be compared with its rows."]


def understanding(scores):
    """Table 2, and the scores that only the paper's supplement has -> blocks of Markdown."""
    blocks = []
    if "uncertain_as_negative_micro_f1" in scores:
        # TABLE2 has its halves in the order of POLICIES
        for half, policy in enumerate(POLICIES):
            ours = [shown(scores[f"{policy}_{column}"], 1, 100) for column in F1]
            theirs = paper_rows({name: row[half] for name, row in TABLE2.items()}, 1)
            blocks += [
                f"CheXbert F1 in percent, {policy.replace('_', ' ')} (Table 2):",
                table(["", "micro, 14", "micro, 5", "macro, 14", "macro, 5"],
                      [["**this model**", *ours], *theirs])]
    # what the paper printed elsewhere or not at all has a table without peers
    others = [[name, shown(number), number["n"]] for name, number in scores.items()
              if not name.startswith("uncertain")]
    if others:
        blocks.append(table(["score", "this model", "reports"], others))
    return blocks


def generation(scores, encoder):
    """Table 3: a row of ours for each number of blocks (1, and 4 as published)."""
    ours = []
    # 4 blocks is how the paper counts, 1 is the plain definition
    for blocks, row in scores.items():
        noun = "block" if blocks == "1" else "blocks"
        ours.append([f"**this model**, {blocks} {noun}", *(shown(row.get(c)) for c in GENERATION)])
    n = next(iter(scores.values()))["fd"]["n"]
    lead = f"Features: {encoder}. {n} images."
    theirs = []
    # peers of another scale beside ours would be read as a ranking
    if of_rad_dino(encoder):
        theirs = paper_rows(TABLE3, 3)
        lead += (" The paper's FD to coverage (Table 3) are means over 4 blocks, by the "
                 "benchmark's way into RAD-DINO.")
    return [lead, table(["", *GENERATION], ours + theirs)]


def findings(scores, encoder):
    """Table 4: FD of each finding's images, with counts."""
    peers = TABLE4 if of_rad_dino(encoder) else {}
    rows = []
    for name, row in scores.items():
        fd = shown(row["fd"], 2)
        if row["few"]:
            fd += " (†)"
        # a phantom's finding is not in the paper: a dash
        theirs = [f"{paper_fd(peer, name):.2f}" if name in FINDINGS else "–" for peer in peers]
        rows.append([name, row["n_real"], row["n_generated"], fd, *theirs])
    head = ["finding", "real", "generated", "FD, this model"]
    head += [f"{peer} (paper)" for peer in peers]
    return ["FD of each finding (Table 4; one block):", table(head, rows),
            "† fewer images than the features have numbers: mostly the bias of a small sample; "
            "compare at equal counts alone."]


def paper_fd(peer, finding):
    """One number of Table 4."""
    return TABLE4[peer][FINDINGS.index(finding)]


def sweep(scores):
    """The points of a sweep: a list of {"steps", "cfg", name: number}."""
    rows = [[shown(cell) if isinstance(cell, dict) else f"{cell:g}" for cell in point.values()]
            for point in scores]
    return [table(list(scores[0]), rows)]


def paired(scores):
    """Two systems beside each other: {name: {"a", "b", "difference"}} of evaluation/paired.py."""
    rows = []
    for name, row in scores.items():
        p = row["difference"]["p"]
        rows.append([name, *map(shown, row.values()), "–" if p is None else f"{p:.4f}",
                     row["difference"]["n"]])
    return [table(["score", "A", "B", "B − A", "p", "n"], rows),
            "p: in which share of random swaps of the two systems' outputs the difference was as "
            "large as it is (paired randomisation test, two-sided). Of twenty scores, one has a p "
            "below 0.05 by chance."]


def plain(scores):
    """Any {name: number}."""
    rows = [[name, shown(number), number["n"]] for name, number in scores.items()]
    return [table(["", "value", "n"], rows)]


def section(name, scores, encoder):
    """One part of a result's scores -> blocks of Markdown."""
    if name == "understanding":
        return understanding(scores)
    if name == "generation":
        return generation(scores, encoder)
    if name == "findings":
        return findings(scores, encoder)
    if name == "sweep":
        return sweep(scores)
    if name.startswith("paired"):
        return paired(scores)
    return plain(scores)


def named(failures):
    """{id: what is wrong with it} -> a sentence each."""
    return [f"{name}: {why}" for name, why in failures.items()]


def markdown(result):
    """A result, as `write` puts it together, as a page of Markdown."""
    blocks = [f"# {result['title']}",
              f"*{result['notice']} Intervals are 95 %; docs/evaluation.md says of what.*"]
    for name, scores in result["scores"].items():
        blocks.append(f"## {name.replace('_', ' ')}")
        blocks += section(name, scores, result.get("encoder"))
    # what is missing stands on the same page as the numbers
    failures = named(result["failures"])
    for title, sentences in (
            ("Left out", result["left_out"]), ("Mind", result.get("warnings")),
            (f"Failed: {len(failures)}, not scored", failures)):
        if sentences:
            blocks += [f"## {title}", "\n".join(f"- {sentence}" for sentence in sentences)]
    # settings that say nothing are left out of the line
    settings = [f"{key} {value}" for key, value in result["settings"].items()
                if value not in ("", [])]
    return "\n\n".join([*blocks, f"Settings: {', '.join(settings)}."]) + "\n"


# ---- files ----

def begin(out, endings):
    """Before the work: <out>.json and the files beside it can be written, and are no file of others
    that would be replaced. InputError otherwise.

    endings: of the other files, as ".md".
    """
    paths = [Path(f"{out}{ending}") for ending in (".json", *endings)]
    refuse_unwritable(*paths)
    there = [path for path in paths if path.exists()]
    if not there:
        return
    # our results have a notice, and what lies beside one belongs to it
    result = read_json(paths[0]) if paths[0].exists() else None
    if not isinstance(result, dict) or "notice" not in result:
        raise InputError(f"{there[0]} is no result of ours, and would be replaced; choose another "
                         "--out.")


def write(path, title, scores, settings, left_out=(), failures=(), **more):
    """Write <path>.json and <path>.md -> the Markdown.

    more: what else belongs into the JSON file; of it, `notice`, `encoder` and `warnings` are shown.
    """
    result = {"title": title, "scores": scores, "settings": settings, "left_out": list(left_out),
              "failures": dict(failures), "notice": NOTICE, **more}
    text = markdown(result)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path.with_name(f"{path.name}.json"), result)
    write_text(path.with_name(f"{path.name}.md"), text)
    return text


def publish(out, title, scores, cfg, left_out, failures, **more):
    """Write result.json and result.md into a directory and print the result -> exit code."""
    settings = public_settings(cfg)
    print(write(out / "result", title, scores, settings, left_out, failures, **more))
    print(f"written: {out}/result.json, {out}/result.md")
    return report_failures(named(failures), results=1)


def public_settings(cfg):
    """A config as a table for result files; of the checkpoint only its name."""
    # a result may be published, and a path can hold the name of a user
    return {**vars(cfg), "checkpoint": Path(cfg.checkpoint).name}


# ---- plots ----

def plots_left_out():
    """[] or [why there are none]."""
    if importlib.util.find_spec("matplotlib"):
        return []
    return ["plots are left out (no matplotlib): pip install -r requirements-eval.txt."]


def probe_left_out():
    """[] or [why there is no linear probe]."""
    if importlib.util.find_spec("sklearn"):
        return []
    return ["the linear probe needs scikit-learn: pip install -r requirements-eval.txt."]


def new_figure(size):
    """An empty figure. It needs no display: nothing of pyplot is used."""
    # imported here, since matplotlib is optional and slow to load
    from matplotlib.figure import Figure
    return Figure(figsize=size, layout="constrained")


def save_figure(figure, path):
    """Write a figure as a small PNG that says what it is."""
    figure.savefig(path, dpi=110, metadata={"Description": NOTICE})


def bars(scores, encoder):
    """FD of each finding as bars, beside the paper's if the features are RAD-DINO's -> figure."""
    names = list(scores)
    heights = {"this model": [scores[name]["fd"]["value"] for name in names]}
    if of_rad_dino(encoder) and set(names) <= set(FINDINGS):    # phantoms have other findings
        for peer in ("UniX, 512", "Sana"):
            heights[f"{peer} (paper)"] = [paper_fd(peer, name) for name in names]

    figure = new_figure((9, 4.5))
    axes = figure.subplots()
    # the bars of one finding stand side by side around its tick
    middle = (len(heights) - 1) / 2
    for n, (label, values) in enumerate(heights.items()):
        axes.bar([k + 0.27 * (n - middle) for k in range(len(names))], values, 0.25, label=label)
    ticks = [f"{name}\nn = {scores[name]['n_real']}" for name in names]
    axes.set_xticks(range(len(names)), ticks, rotation=60, ha="right", fontsize=7)
    axes.set_ylabel("FD")
    axes.legend(fontsize=7)
    return figure


def curves(points):
    """A sweep against the number of steps: a panel a metric, a line a guidance scale -> figure."""
    names = [name for name in points[0] if name not in ("steps", "cfg")]
    # steps double from point to point as a rule: a logarithmic axis, labelled at the points
    steps = sorted({point["steps"] for point in points})
    figure = new_figure((3 * len(names), 3))
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        for cfg in sorted({point["cfg"] for point in points}):
            line = sorted((point["steps"], point[name]["value"]) for point in points
                          if point["cfg"] == cfg)
            axes.plot(*zip(*line), marker="o", markersize=3, label=f"guidance {cfg:g}")
        axes.set_xscale("log", base=2)
        axes.set_xticks(steps, steps)
        axes.set_xlabel("steps")
        axes.set_title(name.replace("_", " "), fontsize=9)
    axes.legend(fontsize=7)
    return figure
