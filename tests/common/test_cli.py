"""common/cli.py: settings from the command line, one sentence for bad input, exit codes."""
import os
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest

import flow
import prepare_mimic
import sample
import train_gen
import train_und
from common.cli import InputError, cli, differences, help_text, override
from common.files import replacing
from helpers import ROOT
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
    ("--preset=", "preset", ""),
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
    ("--steps 1.5", "--steps wants a whole number, got '1.5'"),
    ("--learning-rate nan", "wants a number"),
    ("--interval 0 inf", "wants a number"),
    ("--sizes 1 b", "wants a whole number"),
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
                     "--solver who integrates {euler, heun} [heun]", "--tasks what {read, draw}"):
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


def test_help_of_the_autoencoder_has_no_option_that_does_nothing_there():
    options = help_text(train_vae.TrainConfig(), "", {})
    for name in ("eval-every", "sample-every", "workers", "recompute"):
        assert f"--{name} " not in options
        assert f"--{name} " in help_text(train_gen.TrainConfig(), "", {})


def test_help_lists_every_solver_of_flow():
    help_lines = help_text(sample.SampleConfig(), "", {}).splitlines()
    solver, = [line for line in help_lines if line.startswith("  --solver ")]
    assert f" {{{', '.join(flow.SOLVERS)}}} [ab2]" in solver


def test_differences_of_two_runs():
    """One side may come from JSON, in which a tuple is a list; what one side lacks is None."""
    theirs = {"interval": [0, 1], "steps": 5, "gone": 1}
    ours = {"interval": (0, 1), "steps": 6, "new": 2}
    assert differences(theirs, ours, free=("steps",)) == {"gone": (1, None), "new": (None, 2)}


# ---- home, letters, pipes ----

@pytest.mark.parametrize("line", ["--image=", "--out=", "--checkpoint=", "--image=a --image="])
def test_an_empty_word_is_no_path(line):
    """A shell's variable that was never set: "" would be the folder one stands in."""
    with pytest.raises(InputError, match=r"--\w+ is empty; .*variable"):
        override(sample.SampleConfig(), line.split())
    assert override(train_und.TrainConfig(), ["--init="]).init == "", "it means something here"


def test_a_home_is_found_or_missed_in_a_sentence(monkeypatch):
    """A shell leaves --out=~/run as it is. A text is no path."""
    monkeypatch.setenv("HOME", "/home/ann")
    assert parse("--out=~/run").out == "/home/ann/run"
    assert parse("--out run~/x").out == "run~/x"
    with pytest.raises(InputError, match="--out ~nobody-here/run: there is no home directory"):
        parse("--out ~nobody-here/run")
    assert override(sample.SampleConfig(), ["--report", "~/ 3"]).report == ["~/ 3"]


@pytest.mark.parametrize("name", ["--report", "--prompt"])
def test_a_text_that_is_no_utf8_is_a_sentence(name):
    with pytest.raises(InputError, match=f"{name} holds the byte 0xff, which is no UTF-8"):
        override(sample.SampleConfig(), [name, os.fsdecode(b"small \xff effusion")])
    assert override(sample.SampleConfig(), [name, "é…"])
    # what Python makes of it where the system's encoding is ASCII
    ascii = "é…".encode().decode("ascii", "surrogateescape")
    assert "é…" in vars(override(sample.SampleConfig(), [name, ascii]))[name[2:]]
    assert override(sample.SampleConfig(), ["--image", os.fsdecode(b"\xff.png")])


PRINTS = """
import os, sys
from common.cli import InputError, cli

def main(argv):
    print(argv[0], "é…", os.fsdecode(b"film-\\xff.png"))
    for word in argv[1:]:
        print(word * 100_000)
    print("the end")
    raise InputError("no \\u2026 way")

cli(main)"""


def printed(*words, redirect="", **environ):
    """What a script in a process of its own prints -> stdout, stderr, exit code. In a shell."""
    line = f'{shlex.quote(sys.executable)} -c "$PROGRAM" {shlex.join(words)} {redirect}'
    done = subprocess.run(["bash", "-c", line + "; exit ${PIPESTATUS[0]}"], cwd=ROOT,
                          capture_output=True, env={**os.environ, "PROGRAM": PRINTS, **environ})
    return done.stdout, done.stderr, done.returncode


@pytest.mark.parametrize("encoding, line", [
    ("ascii", rb"x \xe9\u2026 film-\udcff.png"),
    ("latin-1", b"x \xe9\\u2026 film-\\udcff.png"),
    ("cp1252", b"x \xe9\x85 film-\\udcff.png"), ("utf-8", "x é… film-\\udcff.png".encode())])
def test_anything_can_be_printed_in_any_encoding(encoding, line):
    """A character that is not there is written by its number, and what follows is not lost."""
    out, err, code = printed("x", PYTHONIOENCODING=encoding)
    assert out.splitlines() == [line, b"the end"]
    assert err.startswith(b"error: no ") and err.count(b"\n") == 1 and code == 2


@pytest.mark.parametrize("redirect, code, out, err", [
    ("| head -1", 141, b"x ", b""),
    ("2>&1 | true", 141, b"", b""),
    ("> /dev/full", 2, b"", b"error: a file could not be read or written: No space left"),
    ("2> /dev/full", 2, b"x ", b""),
    (">&- 2>&-", 2, b"", b""),
    (">&-", 2, b"", b"error: no "),
])
def test_output_that_nobody_takes(redirect, code, out, err):
    """`| head` ends a script as it ends other programs: at once, without a word."""
    printed_out, printed_err, exit_code = printed("x", "long", redirect=redirect)
    assert printed_out.startswith(out) and (printed_out.count(b"\n") <= 1 or "2>" in redirect)
    assert printed_err.startswith(err) and printed_err.count(b"\n") == bool(err)
    assert exit_code == code


def test_what_is_printed_never_goes_into_a_file_that_is_opened_later(tmp_path):
    """A closed standard output leaves its number to the next file."""
    program = ("import os\nfrom common.cli import cli\n"
               "def main(argv):\n"
               "    with open(argv[0], 'w') as file:\n"
               "        os.system('echo a word')\n"
               "        file.write('content')\ncli(main)")
    line = f'{shlex.quote(sys.executable)} -c "$PROGRAM" {tmp_path / "file"} >&-'
    subprocess.run(["bash", "-c", line], cwd=ROOT, check=True,
                   env={**os.environ, "PROGRAM": program})
    assert (tmp_path / "file").read_text() == "content"


def test_checks_that_python_was_told_to_leave_out():
    """`python -O` runs no assert: settings would go unchecked."""
    out, err, code = printed("x", PYTHONOPTIMIZE="1")
    assert code == 2 and out == b""
    assert err.startswith(b"error: python -O") and err.count(b"\n") == 1


def test_help_that_nobody_reads_to_its_end():
    line = f"{shlex.quote(sys.executable)} sample.py --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True)
    assert done.stderr == b"" and done.returncode in (0, 141)


# ---- the end of a script ----

def bad_input(argv):
    raise InputError("the picture is missing.")


def missing_folder(argv):
    open("nowhere/x", "w")


def error_file_is_gone(argv):
    os.environ["TORCHELASTIC_ERROR_FILE"] = "nowhere/error.json"
    raise InputError("the film is missing.")


def folder_in_the_way(argv):
    with replacing(ROOT / "common") as temporary:
        temporary.touch()


def interrupted(argv):
    raise KeyboardInterrupt


def reader_has_gone(argv):
    raise BrokenPipeError(32, "Broken pipe")


def one_of_two_failed(argv):
    return 1


@pytest.mark.parametrize("main, code, words", [
    (bad_input, 2, "error: the picture is missing.\n"),
    (missing_folder, 2, "error: nowhere/x could not be read or written: No such file or "
                        "directory.\n"),
    (folder_in_the_way, 2, f"error: {ROOT / 'common'} could not be read or written: Is a "
                           "directory.\n"),
    (error_file_is_gone, 2, "error: the film is missing.\n"),
    (interrupted, 130, ""),
    (reader_has_gone, 141, ""),
    (one_of_two_failed, 1, ""),
    (lambda argv: None, None, "")])
def test_exit_codes(capsys, monkeypatch, main, code, words):
    monkeypatch.setattr(os, "environ", {**os.environ})
    with pytest.raises(SystemExit) as end:
        cli(main)
    assert end.value.code == code and capsys.readouterr().err == words


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        cli(lambda argv: 1 / 0)
