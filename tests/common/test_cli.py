"""common/cli.py: settings from the command line, one sentence for bad input, exit codes."""
import ast
import re
import subprocess
import sys
from dataclasses import dataclass, field

import pytest

from common.cli import InputError, cli, differences, override
from helpers import ROOT


@dataclass
class Settings:
    preset: str = ""                    # a row of the table
    out: str = "out"                    # where things go
    steps: int = 10                     # how many steps
    learning_rate: float = 1e-3         # how fast
    overwrite: bool = False             # start anew
    shuffle: bool = True                # mix the samples
    image: list[str] = field(default_factory=list)      # pictures
    sizes: list[int] = field(default_factory=list)      # numbers
    interval: tuple[float, float] = (0.4, 1.0)          # from and to

    def __post_init__(self):
        if self.steps <= 0:             # pytest would rewrite an assert's message
            raise AssertionError("--steps must be positive.")


PRESETS = {"small": dict(steps=3, out="small", learning_rate=0.5), "large": dict(steps=300)}


def parse(line, presets=PRESETS):
    return override(Settings(), line.split(), "What it does.", presets)


@pytest.mark.parametrize("line, name, value", [
    ("--steps 5", "steps", 5),
    ("--steps=5", "steps", 5),
    ("--steps 5 --steps 6", "steps", 6),
    ("--learning-rate 1", "learning_rate", 1.0),
    ("--learning_rate=2e-4", "learning_rate", 2e-4),
    ("--learning-rate -1", "learning_rate", -1.0),
    ("--overwrite", "overwrite", True),
    ("--overwrite=True", "overwrite", True),
    ("--no-overwrite", "overwrite", False),
    ("--no-shuffle", "shuffle", False),
    ("--shuffle=false", "shuffle", False),
    ("--out a=b", "out", "a=b"),
    ("--out=a=b", "out", "a=b"),
    ("--out=", "out", ""),
    ("--image a b --steps 5", "image", ["a", "b"]),
    ("--image a --image b c", "image", ["a", "b", "c"]),
    ("--sizes 1 2 --sizes=3", "sizes", [1, 2, 3]),
    ("--interval 0 0.5", "interval", (0.0, 0.5)),
    ("--interval=0,0.5", "interval", (0.0, 0.5)),
    ("--interval 0 1 --interval 0.1 0.2", "interval", (0.1, 0.2))])
def test_every_kind_of_field(line, name, value):
    settings = parse(line)
    assert getattr(settings, name) == value
    assert type(getattr(settings, name)) is type(value)
    for other in set(vars(Settings())) - {name, "steps"}:
        assert getattr(settings, other) == getattr(Settings(), other)


def test_spaces_stay_in_one_word():
    assert override(Settings(), ["--image", "a b", "c"]).image == ["a b", "c"]


def test_the_command_line_goes_before_the_preset_and_the_preset_before_the_default():
    assert parse("") == Settings()
    assert parse("--preset small") == Settings("small", "small", 3, 0.5)
    for line in ("--preset small --steps 7", "--steps 7 --preset small"):
        assert parse(line) == Settings("small", "small", 7, 0.5)


def test_a_preset_need_not_be_a_field():
    @dataclass
    class Plain:
        steps: int = 1      # steps

    presets = {"small": {"steps": 5}}
    assert override(Plain(), ["--preset", "small"], presets=presets).steps == 5
    assert override(Plain(), [], presets=presets).steps == 1


@pytest.mark.parametrize("line, words", [
    ("--stepz 5", "--steps"),
    ("--learningrate 5", "--learning-rate"),
    ("--no-steps", "unknown"),
    ("--steps five", "int"),
    ("--steps 1.5", "int"),
    ("--learning-rate fast", "float"),
    ("--learning-rate nan", "float"),
    ("--interval 0 inf", "float"),
    ("--sizes 1 b", "int"),
    ("--steps", "needs a value"),
    ("--steps --overwrite", "needs a value"),
    ("--overwrite=5", "flag"),
    ("--overwrite yes", "stands alone"),
    ("--interval 1", "2 values"),
    ("--interval 1 2 3", "2 values"),
    ("steps", "stands alone"),
    ("-x", "stands alone"),
    ("--preset huge", "small, large"),
    ("--steps 0", "must be positive")])
def test_one_sentence_for_bad_input(line, words):
    with pytest.raises(InputError) as error:
        parse(line)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, comment, default", [
    ("--steps", "how many steps", "[10]"),
    ("--learning-rate", "how fast", "[0.001]"),
    ("--overwrite", "start anew", "[False]"),
    ("--image", "pictures", ""),
    ("--interval", "from and to", "[(0.4, 1.0)]"),
    ("--out", "where things go", "[out]")])
def test_help_lists_every_field_with_comment_and_default(capsys, name, comment, default):
    with pytest.raises(SystemExit) as end:
        parse("--steps 5 --help")
    text = capsys.readouterr().out
    assert end.value.code == 0
    assert text.startswith("What it does.")
    line, = [line for line in text.splitlines() if line.strip().startswith(name + " ")]
    assert line.split(None, 1)[1].strip() == f"{comment} {default}".strip()
    assert "preset small: steps=3" in text


SCRIPTS = ["train_und.py", "train_gen.py", "phantom/train_vae.py", "sample.py",
           "phantom/prepare.py", "prepare_mimic.py", "training/run.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_setting_of_every_script_has_a_comment(script):
    source = (ROOT / script).read_text(encoding="utf-8")
    lines = source.splitlines()
    classes = [node for node in ast.parse(source).body
               if isinstance(node, ast.ClassDef) and node.name.endswith(("Config", "Settings"))]
    assert classes
    for item in classes[0].body:
        if isinstance(item, ast.AnnAssign):
            line = lines[item.lineno - 1]
            assert re.search(r"\s#\s*\S", line), f"{script}: {line.strip()} has no comment"


def test_differences_of_two_runs():
    """One side may come from JSON, in which a tuple is a list; what one side lacks is None."""
    theirs = {"lr": 0.1, "interval": [0, 1], "steps": 5, "gone": 1}
    ours = {"lr": 0.2, "interval": (0, 1), "steps": 6, "new": 2}
    expected = {"lr": (0.1, 0.2), "gone": (1, None), "new": (None, 2)}
    assert differences(theirs, ours, free=("steps",)) == expected


def bad_input(argv):
    raise InputError("the picture is missing.")


def interrupted(argv):
    raise KeyboardInterrupt


def fine(argv):
    return None


def one_of_two_failed(argv):
    return 1


@pytest.mark.parametrize("main, code, words", [
    (bad_input, 2, "error: the picture is missing.\n"),
    (interrupted, 130, ""),
    (one_of_two_failed, 1, ""),
    (fine, None, "")])
def test_exit_codes(capsys, main, code, words):
    with pytest.raises(SystemExit) as end:
        cli(main)
    assert end.value.code == code
    assert capsys.readouterr().err == words


def test_an_error_of_the_system_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        cli(lambda argv: open(tmp_path / "none" / "x", "w"))
    sentence = capsys.readouterr().err
    assert end.value.code == 2
    assert sentence.startswith("error: ")
    assert len(sentence.splitlines()) == 1
    assert "none" in sentence


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli(lambda argv: 1 / 0)


@pytest.mark.slow
def test_a_script_from_outside():
    line = [sys.executable, ROOT / "train_und.py", "--stepz", "5"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert "--steps" in done.stderr
    assert len(done.stderr.splitlines()) == 1
