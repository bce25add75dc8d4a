"""common/cli.py: settings from the command line, one sentence for bad input, exit codes."""
from dataclasses import dataclass, field
from typing import Literal

import pytest

import flow
import prepare_mimic
import sample
import train_gen
import train_und
from common.cli import InputError, cli, differences, help_text, override
from phantom import prepare, train_vae


@dataclass
class Settings:
    preset: str = ""                    # a row of the table
    out: str = "out"                    # where things go
    steps: int = 10                     # how many steps
    learning_rate: float = 1e-3         # how fast
    shuffle: bool = True                # mix the samples
    sizes: list[int] = field(default_factory=list)      # numbers
    interval: tuple[float, float] = (0.4, 1.0)          # from and to
    solver: Literal["euler", "heun"] = "heun"           # who integrates
    tasks: list[Literal["read", "draw"]] = field(default_factory=list)      # what

    def __post_init__(self):
        if self.steps <= 0:             # pytest would rewrite an assert's message
            raise AssertionError("--steps must be positive.")


PRESETS = {"small": dict(steps=3, out="small", learning_rate=0.5), "large": dict(steps=300)}


def parse(line):
    return override(Settings(), line.split(), "What it does.", PRESETS)


@pytest.mark.parametrize("line, name, value", [
    ("--steps 5", "steps", 5),
    ("--steps 6 --steps=5", "steps", 5),
    ("--learning-rate -1", "learning_rate", -1.0),
    ("--learning_rate=2e-4", "learning_rate", 2e-4),
    ("--no-shuffle --shuffle", "shuffle", True),
    ("--no-shuffle", "shuffle", False),
    ("--shuffle=False", "shuffle", False),
    ("--out=a=b", "out", "a=b"),
    ("--out=", "out", ""),
    ("--sizes 1 2 --steps 5 --sizes=3", "sizes", [1, 2, 3]),
    ("--solver euler", "solver", "euler"),
    ("--tasks draw read", "tasks", ["draw", "read"]),
    ("--interval 0 0.5", "interval", (0.0, 0.5)),
    ("--interval 0 1 --interval=0,0.5", "interval", (0.0, 0.5))])
def test_every_kind_of_field(line, name, value):
    settings = parse(line)
    assert getattr(settings, name) == value and type(getattr(settings, name)) is type(value)
    for other in vars(Settings()).keys() - {name, "steps"}:
        assert getattr(settings, other) == getattr(Settings(), other)


def test_the_command_line_goes_before_the_preset_and_the_preset_before_the_default():
    assert parse("") == Settings()
    assert parse("--preset small") == Settings("small", "small", 3, 0.5)
    assert parse("--steps 7 --preset small") == Settings("small", "small", 7, 0.5)

    @dataclass
    class WithoutField:
        steps: int = 1

    assert override(WithoutField(), ["--preset", "large"], presets=PRESETS) == WithoutField(300)
    assert override(WithoutField(), [], presets=PRESETS) == WithoutField(1)


@pytest.mark.parametrize("line, words", [
    ("--learningrate 5", "unknown option --learningrate; the nearest is --learning-rate"),
    ("--no-steps", "unknown"),
    ("--steps 1.5", "--steps wants int, got '1.5'"),
    ("--learning-rate nan", "float"),
    ("--interval 0 inf", "float"),
    ("--sizes 1 b", "int"),
    ("--steps --shuffle", "--steps needs a value"),
    ("--shuffle=5", "flag"),
    ("--shuffle yes", "'yes' stands alone"),
    ("-x", "stands alone"),
    ("--interval 1", "takes 2 values, got 1"),
    ("--preset huge", "small, large"),
    ("--solver rk4", "--solver rk4 is none of euler, heun."),
    ("--tasks read dance", "--tasks dance is none of read, draw."),
    ("--steps 0", "must be positive")])
def test_one_sentence_for_bad_input(line, words):
    with pytest.raises(InputError) as error:
        parse(line)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_help_lists_every_field_with_comment_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--steps 5 --help")
    lines = capsys.readouterr().out.splitlines()
    assert end.value.code == 0 and lines[0] == "What it does."
    words = [" ".join(line.split()) for line in lines]
    for expected in ("--learning-rate how fast [0.001]",
                     "--shuffle mix the samples [on; --no-shuffle turns it off]",
                     "--sizes numbers", "--interval from and to [0.4 1.0]",
                     "--solver who integrates: euler, heun [heun]", "--tasks what: read, draw"):
        assert expected in words
    assert words[-2] == "preset small: steps=3, out=small, learning_rate=0.5"


@pytest.mark.parametrize("config", [
    train_und.TrainConfig, train_gen.TrainConfig, train_vae.TrainConfig, sample.SampleConfig,
    prepare.Settings, prepare_mimic.Settings])
def test_every_setting_of_every_script_has_a_comment(config):
    for line in help_text(config(), "", {}).splitlines():
        if line.startswith("  --"):
            name, _, comment = line.strip().partition(" ")
            assert comment.split("[")[0].strip(), f"{name} has no comment"


def test_help_lists_every_solver_of_flow():
    help_lines = help_text(sample.SampleConfig(), "", {}).splitlines()
    solver, = [line for line in help_lines if line.startswith("  --solver ")]
    assert f": {', '.join(flow.SOLVERS)} [ab2]" in solver


def test_differences_of_two_runs():
    """One side may come from JSON, in which a tuple is a list; what one side lacks is None."""
    theirs = {"interval": [0, 1], "steps": 5, "gone": 1}
    ours = {"interval": (0, 1), "steps": 6, "new": 2}
    assert differences(theirs, ours, free=("steps",)) == {"gone": (1, None), "new": (None, 2)}


# ---- the end of a script ----

def bad_input(argv):
    raise InputError("the picture is missing.")


def missing_folder(argv):
    open("nowhere/x", "w")


def interrupted(argv):
    raise KeyboardInterrupt


def one_of_two_failed(argv):
    return 1


@pytest.mark.parametrize("main, code, words", [
    (bad_input, 2, "error: the picture is missing.\n"),
    (missing_folder, 2, "error: nowhere/x could not be read or written: No such file or "
                        "directory.\n"),
    (interrupted, 130, ""),
    (one_of_two_failed, 1, ""),
    (lambda argv: None, None, "")])
def test_exit_codes(capsys, main, code, words):
    with pytest.raises(SystemExit) as end:
        cli(main)
    assert end.value.code == code and capsys.readouterr().err == words


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli(lambda argv: 1 / 0)
