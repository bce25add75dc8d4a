"""The paper's two findings about training, made again small: Table 5, and REPA in stage 2.

    bash demo.sh && python -m bench.replication     # hours on two cores; started again, it goes on

(a) From the same stage-2 weights, 300 steps of each of Table 5's rows (bench/table5.py).
(b) Stage 2 from stage 1, with REPA and without.

Each with several seeds, which choose the samples and their noise, and REPA's projector. Scores are
those of `python evaluate.py phantom` at 64 px, on phantoms that no run has seen. Toys, not
radiographs; nothing here is for clinical use.
"""
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from bench.table5 import ROWS
from common import locks
from common.cli import InputError, cli, override
from common.files import read_json, replacing
from common.platforms import safe_name
from training import curves
from weights import checkpoint

ROOT = Path(__file__).resolve().parents[1]
REPA = ("0.5", "0")                 # weights of its loss: with, without


@dataclass
class ReplicationConfig:
    out: str = "out/phantom"        # where demo.sh left und, vae and gen64, and where the runs go
    seeds: int = 3                  # runs of each kind
    joint_steps: int = 300          # of a row of Table 5
    repa_steps: int = 600           # of stage 2
    every: int = 150                # steps between scores of stage 2
    num: int = 200                  # held-out phantoms of a score
    threads: int = 1                # CPU threads of a run
    jobs: int = 2                   # runs at once


# ---- what is run ----

def runs_of(cfg):
    """-> {(row of Table 5 or weight of REPA, seed): (directory, command line)}."""
    out = Path(cfg.out)
    runs = {}
    for seed in range(cfg.seeds):
        same = ["--seed", seed, "--threads", cfg.threads, "--eval-every", 50]
        for row in ROWS:
            run = out / safe_name(f"table5-{row}") / str(seed)
            runs[row, seed] = run, [
                "-m", "bench.table5", "--preset", f"phantom-table5-{row}",
                "--init", out / "gen64", "--out", run,
                "--steps", cfg.joint_steps, "--save-every", cfg.joint_steps, *same]
        for repa in REPA:
            run = out / f"repa-{repa}" / str(seed)
            runs[repa, seed] = run, [
                ROOT / "train_gen.py", "--preset", "phantom", "--repa", repa,
                "--init", out / "und", "--vae", out / "vae", "--out", run,
                "--steps", cfg.repa_steps, "--save-every", cfg.every,
                "--keep", cfg.repa_steps // cfg.every, *same]
    return runs


def score_file(directory):
    """Where the scores of a checkpoint lie: beside it, since a checkpoint is never changed."""
    return directory.with_name(f"score-{directory.name}.json")


def score_line(cfg, directory):
    """The command line that scores a checkpoint."""
    return [ROOT / "evaluate.py", "phantom", "--size", 64, "--checkpoint", directory,
            "--num", cfg.num, "--bootstrap", 0, "--out", score_file(directory).with_suffix("")]


def execute(lines, at_once):
    """Run Python with these command lines, some at once. The first that fails ends all of it."""
    waiting, running = list(lines), []
    while waiting or running:
        while waiting and len(running) < at_once:
            words = [str(word) for word in waiting.pop(0)]
            print("python", *words, flush=True)
            running.append(subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL))
        oldest = running.pop(0)
        if oldest.wait():
            for other in running:
                other.terminate()
            raise InputError(f"{' '.join(oldest.args[1:])} ended with {oldest.returncode}; its "
                             "message is above.")


# ---- what came out ----

def f1_of(directory):
    """Micro-F1 of a checkpoint: of written reports, of reports read back from drawn pictures."""
    scores = read_json(score_file(directory))["scores"]
    return scores["report"]["micro"], scores["cycle"]["micro"]


def error_of(run, step):
    """The validation error of a run at a step."""
    steps, errors = curves.read(run)["val_mse"]
    return float(errors[steps.tolist().index(step)])


def deviation(numbers):
    return statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def spread(numbers):
    """Mean and standard deviation over seeds, for a table."""
    return f"{statistics.mean(numbers):.3f} ± {deviation(numbers):.3f}"


def show_table5(cfg, runs, start):
    """Print table (a) -> {row: (report F1s, cycle F1s)}."""
    print(f"\n(a) Table 5, {cfg.joint_steps} steps each, {cfg.seeds} seeds\n")
    print("| understanding : generation | report F1 | cycle F1 | validation error |")
    print("|---|---|---|---|")
    report, cycle = f1_of(start)
    print(f"| before | {report:.3f} | {cycle:.3f} | |")
    table = {}
    for row in ROWS:
        directories = [runs[row, seed][0] for seed in range(cfg.seeds)]
        f1 = [f1_of(run / f"{cfg.joint_steps:08d}") for run in directories]
        reports, cycles = zip(*f1)
        errors = [error_of(run, cfg.joint_steps) for run in directories]
        table[row] = reports, cycles
        print(f"| {row} | {spread(reports)} | {spread(cycles)} | {spread(errors)} |")
    return table


def show_repa(cfg, runs, marks):
    """Print table (b) -> {(weight of REPA, step): cycle F1s}."""
    print(f"\n(b) stage 2, {cfg.seeds} seeds\n")
    print("| steps | error, REPA | error, without | cycle F1, REPA | cycle F1, without |")
    print("|---|---|---|---|---|")
    table = {}
    for step in marks:
        errors = []
        for repa in REPA:
            directories = [runs[repa, seed][0] for seed in range(cfg.seeds)]
            errors.append([error_of(run, step) for run in directories])
            table[repa, step] = [f1_of(run / f"{step:08d}")[1] for run in directories]
        cells = [*errors, *(table[repa, step] for repa in REPA)]
        print(f"| {step} | {' | '.join(map(spread, cells))} |")
    return table


def plot(figure, start, joint, repa, marks):
    """Bars and whiskers over seeds. start: report and cycle F1 before; the rest as shown above."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for n, name in enumerate(("report F1", "cycle F1")):
        values = [f1[n] for f1 in joint.values()]
        places = [k + 0.4 * n - 0.2 for k in range(len(values))]
        left.bar(places, list(map(statistics.mean, values)), 0.38,
                 yerr=list(map(deviation, values)), label=name)
        left.axhline(start[n], color=f"C{n}", linewidth=0.8, linestyle=":")
    left.set_xticks(range(len(joint)), joint)
    left.legend(loc="lower right", fontsize=8)
    left.set_title("(a) from stage 2 by each row of Table 5 (dotted: before)", fontsize=9)

    for weight, name in zip(REPA, ("with REPA", "without")):
        cycles = [repa[weight, step] for step in marks]
        right.errorbar(list(marks), list(map(statistics.mean, cycles)),
                       list(map(deviation, cycles)), marker="o", capsize=3, label=name)
    right.set_title("(b) stage 2: cycle F1 against steps", fontsize=9)
    right.legend(fontsize=8)


def main(argv):
    cfg = override(ReplicationConfig(), argv, __doc__)
    try:                                        # now, not after the hours
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(
            "the plot needs matplotlib: pip install -r requirements-eval.txt.") from None
    for name in ("gen64", "und", "vae"):
        if not (Path(cfg.out) / name).exists():
            raise InputError(f"there is no {cfg.out}/{name}; demo.sh makes it.")

    # train; runs that are complete end at once
    locks.take(cfg.out, "replication")
    runs = runs_of(cfg)
    execute([line for _, line in runs.values()], cfg.jobs)

    # score what has no score yet
    start = checkpoint.newest(Path(cfg.out) / "gen64")
    marks = range(cfg.every, cfg.repa_steps + 1, cfg.every)
    to_score = {start}
    for (kind, _), (run, _) in runs.items():
        for step in marks if kind in REPA else [cfg.joint_steps]:
            to_score.add(run / f"{step:08d}")
    missing = [directory for directory in sorted(to_score) if not score_file(directory).exists()]
    execute([score_line(cfg, directory) for directory in missing], cfg.jobs)

    # show
    joint = show_table5(cfg, runs, start)
    repa = show_repa(cfg, runs, marks)
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    plot(figure, f1_of(start), joint, repa, marks)
    picture = Path(cfg.out) / "replication.png"
    with replacing(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=90)
    print(f"\nplotted in {picture}")


if __name__ == "__main__":
    cli(main)
