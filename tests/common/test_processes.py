"""common/processes.py: the command line, processes, random numbers by key, the log."""
import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch

from common import processes as common
from common.cli import InputError, override
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
    ("--steps 5", "steps", 5), ("--steps=5", "steps", 5),
    ("--learning-rate 1", "learning_rate", 1.0), ("--learning_rate=2e-4", "learning_rate", 2e-4),
    ("--learning-rate -1", "learning_rate", -1.0),
    ("--overwrite", "overwrite", True), ("--no-overwrite", "overwrite", False), ("--no-shuffle", "shuffle", False),
    ("--shuffle=false", "shuffle", False), ("--overwrite=True", "overwrite", True),
    ("--out a=b", "out", "a=b"), ("--out=a=b", "out", "a=b"), ("--out=", "out", ""),
    ("--image a b --steps 5", "image", ["a", "b"]), ("--image a --image b c", "image", ["a", "b", "c"]),
    ("--sizes 1 2 --sizes=3", "sizes", [1, 2, 3]),
    ("--interval 0 0.5", "interval", (0.0, 0.5)), ("--interval=0,0.5", "interval", (0.0, 0.5)),
    ("--interval 0 1 --interval 0.1 0.2", "interval", (0.1, 0.2)), ("--steps 5 --steps 6", "steps", 6)])
def test_every_kind_of_field(line, name, value):
    got = getattr(parse(line), name)
    assert got == value and type(got) is type(value)
    untouched = set(vars(Settings())) - {name, "steps"}
    assert all(getattr(parse(line), k) == getattr(Settings(), k) for k in untouched)


def test_spaces_stay_in_one_word():
    assert override(Settings(), ["--image", "a b", "c"]).image == ["a b", "c"]


def test_precedence():
    """Command line, preset, default; wherever --preset stands."""
    assert parse("") == Settings()
    assert parse("--preset small") == Settings("small", "small", 3, 0.5)
    for line in ("--preset small --steps 7", "--steps 7 --preset small"):
        assert parse(line) == Settings("small", "small", 7, 0.5)


def test_preset_need_not_be_a_field():
    @dataclass
    class Plain:
        steps: int = 1      # steps

    assert override(Plain(), ["--preset", "small"], presets={"small": {"steps": 5}}).steps == 5
    assert override(Plain(), [], presets={"small": {"steps": 5}}).steps == 1


@pytest.mark.parametrize("line, words", [
    ("--stepz 5", "--steps"), ("--learningrate 5", "--learning-rate"), ("--no-steps", "unknown"),
    ("--steps five", "int"), ("--steps 1.5", "int"), ("--learning-rate fast", "float"), ("--sizes 1 b", "int"),
    ("--learning-rate nan", "float"), ("--interval 0 inf", "float"),
    ("--steps", "needs a value"), ("--steps --overwrite", "needs a value"), ("--overwrite=5", "flag"),
    ("--interval 1", "2 values"), ("--interval 1 2 3", "2 values"), ("steps", "stands alone"), ("--overwrite yes", "stands alone"),
    ("--preset huge", "small, large"), ("--steps 0", "must be positive"), ("-x", "stands alone")])
def test_one_sentence_for_bad_input(line, words):
    with pytest.raises(InputError) as error:
        parse(line)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_help_lists_every_field(capsys):
    with pytest.raises(SystemExit) as end:
        parse("--steps 5 --help")
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.startswith("What it does.")
    for name, comment, default in (("--steps", "how many steps", "10"), ("--learning-rate", "how fast", "0.001"),
                                   ("--overwrite", "start anew", "False"), ("--image", "pictures", None),
                                   ("--interval", "from and to", "0.4, 1.0"), ("--out", "where things go", "out")):
        line, = [s for s in out.splitlines() if s.strip().startswith(name + " ")]
        assert comment in line and (default is None or f"[{default}]" in line.replace("(", "").replace(")", ""))
    assert "preset small: steps=3" in out


@pytest.mark.parametrize("script", ["train_und.py", "train_gen.py", "phantom/train_vae.py", "sample.py", "phantom/prepare.py"])
def test_every_setting_of_every_script_has_a_comment(script):
    import ast
    import re
    source = (ROOT / script).read_text()
    cls, = [n for n in ast.parse(source).body if isinstance(n, ast.ClassDef) and n.name.endswith(("Config", "Settings"))]
    for item in cls.body:
        if isinstance(item, ast.AnnAssign):
            line = source.splitlines()[item.lineno - 1]
            assert re.search(r"\s#\s*\S", line), f"{script}: {line.strip()} has no comment for --help"


def test_cli_exit_codes(monkeypatch, capsys):
    def failing(argv):
        raise InputError("the picture is missing.")

    def stopped(argv):
        raise KeyboardInterrupt

    for main, code in ((failing, 2), (stopped, 130), (lambda argv: 1, 1), (lambda argv: None, None)):
        with pytest.raises(SystemExit) as end:
            common.cli(main)
        assert end.value.code == code
    assert capsys.readouterr().err == "error: the picture is missing.\n"


def test_an_error_of_the_system_is_one_sentence(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        common.cli(lambda argv: open(tmp_path / "none" / "x", "w"))
    said = capsys.readouterr().err
    assert end.value.code == 2 and said.startswith("error: ") and len(said.splitlines()) == 1 and "none" in said


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        common.cli(lambda argv: 1 / 0)


def test_script_from_outside():
    done = subprocess.run([sys.executable, ROOT / "train_und.py", "--stepz", "5"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1 and "--steps" in done.stderr


def test_setup(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    process = common.setup("cpu")
    assert process.master and process.world == 1 and process.device.type == "cpu"
    with pytest.raises(InputError, match="auto, cpu, cuda"):
        common.setup("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InputError, match="no CUDA"):
            common.setup("cuda")
    with pytest.raises(InputError, match="float16"):
        common.autocast(torch.device("cpu"), "float16")


def test_generator_depends_on_its_key_alone():
    draw = lambda *key: torch.randn(4, generator=common.generator(*key))
    first = draw(0, 5, 7)
    torch.manual_seed(99), torch.randn(3)
    assert torch.equal(draw(0, 5, 7), first)
    others = [(0, 5, 8), (0, 7, 5), (1, 5, 7), (0, 5), (0, -1, 7), (5, 0, 7)]
    drawn = [first] + [draw(*key) for key in others]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_generator_tells_keys_of_other_length_apart():
    """(seed, epoch) orders an epoch, (seed, step, 0) is the first sample of a step: two streams, not one."""
    assert common.generator(0, 5).initial_seed() != common.generator(0, 5, 0).initial_seed()


def test_neighbouring_keys_are_independent():
    """One number of each of 4,000 neighbouring keys: standard normal, without correlation to the next."""
    x = torch.stack([torch.randn((), generator=common.generator(0, s, i)) for s in range(40) for i in range(100)])
    assert abs(x.mean()) < 0.06 and abs(x.std() - 1) < 0.05
    assert abs((x[1:] * x[:-1]).mean()) < 0.06 and abs((x[100:] * x[:-100]).mean()) < 0.06
