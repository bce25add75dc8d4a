"""The paper's two findings about training, made again small: Table 5, and REPA in stage 2. On the phantom, after demo.sh.

    bash demo.sh && python -m bench.replication        # hours on two cores; started again, it goes on where it was

(a) From the same stage-2 weights, 300 steps of each of Table 5's rows. (b) Stage 2 from stage 1, with and without REPA.
Each with several seeds, which choose the samples and their noise (and REPA's projector). Scores are those of
evaluate.py phantom at 64 px, on phantoms that no run has seen. Toys, not radiographs; nothing here is for clinical use.
"""
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from weights import checkpoint
from common import processes as common
from common.processes import InputError


@dataclass
class FindingsConfig:
    out: str = "out/phantom"        # where demo.sh left und, vae and gen64, and where the runs go
    seeds: int = 3                  # runs of each kind
    joint_steps: int = 300          # of each row of Table 5
    repa_steps: int = 600           # of stage 2 with and without REPA
    every: int = 150                # steps between the checkpoints of (b) that are scored
    num: int = 200                  # held-out phantoms of a score
    threads: int = 1                # CPU threads of a run
    jobs: int = 2                   # runs at once


ROWS = ("0:1-frozen", "1:1", "1:2", "1:4", "0:1")       # understanding : generation samples, as the presets are called
REPA = ("0.5", "0")             # its weight


def scripts(jobs, at_once):
    """Run command lines, some at once; the first that fails ends all of it."""
    waiting, running = list(jobs), []
    while waiting or running:
        while waiting and len(running) < at_once:
            print(" ".join(map(str, waiting[0])), flush=True)
            script, *words = map(str, waiting.pop(0))
            line = [sys.executable, Path(__file__).parents[1] / script, *words]
            running.append(subprocess.Popen(line, stdout=subprocess.DEVNULL))
        done = running.pop(0)
        if done.wait():
            for other in running:
                other.terminate()
            raise InputError(f"{' '.join(map(str, done.args[1:]))} ended with {done.returncode}; its message is above.")


def runs_of(cfg):
    """-> {(kind, seed): (directory, command line)}."""
    out, found = Path(cfg.out), {}
    for seed in range(cfg.seeds):
        same = ["--seed", seed, "--threads", cfg.threads, "--eval-every", 50]
        for row in ROWS:
            place = out / f"table5-{row}" / str(seed)
            found[row, seed] = place, ["train_gen.py", "--preset", f"phantom-table5-{row}", "--init", out / "gen64",
                                       "--out", place, "--steps", cfg.joint_steps, "--save-every", cfg.joint_steps, *same]
        for repa in REPA:
            place = out / f"repa-{repa}" / str(seed)
            found[repa, seed] = place, ["train_gen.py", "--preset", "phantom", "--repa", repa, "--init", out / "und",
                                        "--vae", out / "vae", "--out", place, "--steps", cfg.repa_steps,
                                        "--save-every", cfg.every, "--keep", cfg.repa_steps // cfg.every, *same]
    return found


def score_file(place):
    return place.with_name(f"score-{place.name}.json")


def score(cfg, place):
    """The command line that scores a checkpoint; the file that it writes lies beside the checkpoint."""
    return ["evaluate.py", "phantom", "--size", 64, "--checkpoint", place, "--num", cfg.num, "--bootstrap", 0,
            "--out", score_file(place).with_suffix("")]


def deviation(numbers):
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def spread(numbers):
    return f"{statistics.mean(numbers):.3f} ± {deviation(numbers):.3f}"


def scores(place):
    found = json.loads(score_file(place).read_text())["scores"]
    return found["report"]["micro"], found["cycle"]["micro"]


def losses(run):
    """{step: validation error} of a run."""
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return {row["step"]: row["val_mse"] for row in rows if "val_mse" in row}


def plot(Figure, path, before, joint, repa):
    """joint {row: (report F1s, cycle F1s)}, repa {(weight, step): (errors, cycle F1s)}; bars and whiskers over seeds."""
    middle, width = ((lambda rows, f=f: [f(row) for row in rows]) for f in (statistics.mean, deviation))
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for n, what in enumerate(("report F1", "cycle F1")):
        values = [found[n] for found in joint.values()]
        left.bar([k + 0.4 * n - 0.2 for k in range(len(values))], middle(values), 0.38, yerr=width(values), label=what)
        left.axhline(before[n], color=f"C{n}", linewidth=0.8, linestyle=":")
    left.set_xticks(range(len(joint)), joint), left.legend(loc="lower right", fontsize=8)
    left.set_title("(a) from stage 2 by each row of Table 5 (dotted: before)", fontsize=9)
    for weight, name in zip(REPA, ("with REPA", "without")):
        steps = [step for w, step in repa if w == weight]
        cycles = [repa[weight, step][1] for step in steps]
        right.errorbar(steps, middle(cycles), width(cycles), marker="o", capsize=3, label=name)
    right.set_title("(b) stage 2: cycle F1 against steps", fontsize=9), right.legend(fontsize=8)
    figure.savefig(path, dpi=90)


def main(argv):
    cfg = common.override(FindingsConfig(), argv, __doc__)
    try:                                        # now, not after the hours
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError("the plot needs matplotlib: pip install -r requirements-eval.txt.") from None
    for name in ("gen64", "und", "vae"):
        if not (Path(cfg.out) / name).exists():
            raise InputError(f"there is no {cfg.out}/{name}; demo.sh makes it.")
    runs = runs_of(cfg)
    scripts([line for _, line in runs.values()], cfg.jobs)
    start = checkpoint.newest(Path(cfg.out) / "gen64")
    marks = range(cfg.every, cfg.repa_steps + 1, cfg.every)
    at = lambda kind, seed, step: runs[kind, seed][0] / f"{step:08d}"
    wanted = {start, *(at(kind, seed, step) for kind, seed in runs for step in (marks if kind in REPA else [cfg.joint_steps]))}
    scripts([score(cfg, place) for place in sorted(wanted) if not score_file(place).exists()], cfg.jobs)

    print(f"\n(a) Table 5, {cfg.joint_steps} steps each, {cfg.seeds} seeds\n")
    print("| understanding : generation | report F1 | cycle F1 | validation error |\n|---|---|---|---|")
    print(f"| before | {scores(start)[0]:.3f} | {scores(start)[1]:.3f} | |")
    joint, drawn = {}, {}
    for row in ROWS:
        report, cycle = zip(*(scores(at(row, seed, cfg.joint_steps)) for seed in range(cfg.seeds)))
        error = [losses(runs[row, seed][0])[cfg.joint_steps] for seed in range(cfg.seeds)]
        joint[row] = report, cycle
        print(f"| {row} | {spread(report)} | {spread(cycle)} | {spread(error)} |")
    print(f"\n(b) stage 2, {cfg.seeds} seeds\n")
    print("| steps | error, REPA | error, without | cycle F1, REPA | cycle F1, without |\n|---|---|---|---|---|")
    for step in marks:
        cells = [[losses(runs[repa, seed][0])[step] for seed in range(cfg.seeds)] for repa in REPA]
        cells += [[scores(at(repa, seed, step))[1] for seed in range(cfg.seeds)] for repa in REPA]
        print(f"| {step} | " + " | ".join(map(spread, cells)) + " |")
        drawn.update({(repa, step): (cells[n], cells[n + 2]) for n, repa in enumerate(REPA)})
    plot(Figure, Path(cfg.out) / "findings.png", scores(start), joint, drawn)
    print(f"\nplotted in {cfg.out}/findings.png")


if __name__ == "__main__":
    common.cli(main)
