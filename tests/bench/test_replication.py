"""bench/replication.py: every row with every seed, and what it prints from runs and scores."""
import json

import pytest

import train_gen
from bench import replication, table5
from bench.replication import ReplicationConfig
from common.cli import InputError, override


def test_what_is_missing_is_said_before_anything_is_run(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(InputError, match="gen64; demo.sh makes it"):
        replication.main(["--out", str(tmp_path)])


def test_every_row_is_run_with_every_seed():
    """By command lines that the scripts accept."""
    runs = replication.runs_of(ReplicationConfig(seeds=2))
    assert len(runs) == 2 * (5 + 2)
    assert len({directory for directory, _ in runs.values()}) == len(runs)
    for (kind, seed), (directory, line) in runs.items():
        words = [str(word) for word in line]
        if kind in table5.ROWS:
            assert words[:2] == ["-m", "bench.table5"]
            cfg = override(table5.Table5Config(), words[2:], "", table5.PRESETS)
        else:
            assert words[0].endswith("train_gen.py")
            cfg = train_gen.settings(words[1:])
        assert (cfg.out, cfg.seed) == (str(directory), seed)
        assert (cfg.size, cfg.data) == (64, "datasets/phantom")


def test_a_command_that_fails_ends_all_of_it():
    lines = [["-c", "raise SystemExit(3)"], ["-c", "import time; time.sleep(60)"]]
    with pytest.raises(InputError, match=r"SystemExit\(3\) ended with 3"):
        replication.execute(lines, at_once=2)


@pytest.fixture
def finished(tmp_path):
    """Runs of two seeds that are complete, with scores. Seed 1 is better by 0.2."""
    cfg = ReplicationConfig(out=str(tmp_path), seeds=2, repa_steps=300)
    start = tmp_path / "gen64" / "00001000"
    checkpoints = [(start, 0)]
    for (kind, seed), (run, _) in replication.runs_of(cfg).items():
        run.mkdir(parents=True)
        errors = [{"step": step, "val_mse": 1 - step / 1000} for step in (150, 300)]
        (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in errors))
        checkpoints += [(run / f"{step:08d}", seed) for step in (150, 300)]
    for directory, seed in checkpoints:
        directory.mkdir(parents=True)
        scores = {"report": {"micro": 0.6 + 0.2 * seed}, "cycle": {"micro": 0.5 + 0.2 * seed}}
        replication.score_file(directory).write_text(json.dumps({"scores": scores}))
    return cfg, start


def test_tables_and_plot_are_of_means_over_seeds(finished, capsys):
    matplotlib = pytest.importorskip("matplotlib.figure")
    cfg, start = finished
    runs = replication.runs_of(cfg)
    joint = replication.show_table5(cfg, runs, start)
    repa = replication.show_repa(cfg, runs, (150, 300))
    lines = capsys.readouterr().out.splitlines()
    assert "| before | 0.600 | 0.500 | |" in lines
    assert "| 1:2 | 0.700 ± 0.141 | 0.600 ± 0.141 | 0.700 ± 0.000 |" in lines
    assert "| 150 | 0.850 ± 0.000 | 0.850 ± 0.000 | 0.600 ± 0.141 | 0.600 ± 0.141 |" in lines

    figure = matplotlib.Figure()
    replication.plot(figure, replication.f1_of(start), joint, repa, (150, 300))
    assert [len(panel.get_legend().get_texts()) for panel in figure.axes] == [2, 2]
