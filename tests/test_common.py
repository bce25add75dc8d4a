"""common.py: the command line, the learning rate, random numbers by key, the average, the log."""
import json
import math
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch
from safetensors.torch import save_file

import common
from common import InputError, override
from conftest import ROOT


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


@pytest.mark.parametrize("script", ["train_und.py", "train_gen.py", "train_vae.py", "sample.py", "prepare_phantom.py"])
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


def test_learning_rate():
    assert [common.lr_at(s, 1.0, 4, 100) for s in (0, 1, 3, 4, 99)] == [0.25, 0.5, 1, 1, 1]
    assert common.lr_at(0, 2e-4, 0, 10) == 2e-4
    cosine = [common.lr_at(s, 1.0, 10, 110, "cosine") for s in (9, 10, 35, 60, 109, 110)]
    assert cosine == pytest.approx([1, 1, (1 + math.sqrt(0.5)) / 2, 0.5, (1 + math.cos(math.pi * 0.99)) / 2, 0], abs=1e-9)


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


def test_average_in_closed_form():
    module = torch.nn.Linear(2, 1, bias=False).double()
    values = [torch.randn(1, 2, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    module.weight.data = values[0].double()
    ema, want = common.EMA(module, 0.7), values[0]
    for n, value in enumerate(values[1:], 1):
        module.weight.data = value.double()
        ema.live["weight"] = module.weight
        ema.update()
        decay = min(0.7, (1 + n) / (10 + n))
        want = decay * want + (1 - decay) * value
    assert torch.allclose(ema.shadow["weight"], want, atol=1e-6) and ema.shadow["weight"].dtype == torch.float32


def test_average_follows_the_live_weights_of_an_optimizer():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    module[0].requires_grad_(False)
    ema = common.EMA(module, 0.9)
    assert ema.shadow.keys() == {"1.weight", "1.bias"}          # trained parameters only
    optimizer = common.adamw(module, 0.1)
    before = module[1].weight.detach().clone()
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    ema.update()
    decay = 2 / 11
    assert torch.allclose(ema.shadow["1.weight"], decay * before + (1 - decay) * module[1].weight, atol=1e-6)
    live, average = module[1].weight.detach().clone(), ema.shadow["1.weight"].clone()
    ema.swap()
    assert torch.equal(module[1].weight, average) and torch.equal(ema.shadow["1.weight"], live)
    ema.swap()
    assert torch.equal(module[1].weight, live) and torch.equal(ema.shadow["1.weight"], average)


def test_optimizer_takes_what_is_trained(capsys):
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    module[0].requires_grad_(False)
    optimizer = common.adamw(module, 1e-3)
    assert sum(p.numel() for g in optimizer.param_groups for p in g["params"]) == 8
    group = optimizer.param_groups[0]
    assert group["betas"] == (0.9, 0.95) and group["eps"] == 1e-15 and group["weight_decay"] == 0
    assert "trained 8 parameters" in capsys.readouterr().out


def test_state_and_resume(tmp_path):
    def run(module):
        return common.adamw(module, 0.01), common.EMA(module, 0.9)

    def step(module, optimizer, ema, x):
        module(x).square().sum().backward()
        optimizer.step(), optimizer.zero_grad(), ema.update()

    torch.manual_seed(0)
    one, x = torch.nn.Linear(3, 3), torch.randn(6, 2, 3)
    optimizer, ema = run(one)
    for i in range(3):
        step(one, optimizer, ema, x[i])
    torch.save(common.state(optimizer, ema), tmp_path / "state.pt")
    save_file(ema.shadow, tmp_path / "ema.safetensors")
    (tmp_path / "config.json").write_text('{"step": 3}')
    two = torch.nn.Linear(3, 3)
    two.load_state_dict(one.state_dict())
    optimizer_2, ema_2 = run(two)
    assert common.resume(tmp_path, optimizer_2, ema_2) == 3
    for i in range(3, 6):
        step(one, optimizer, ema, x[i]), step(two, optimizer_2, ema_2, x[i])
    assert torch.equal(one.weight, two.weight) and torch.equal(ema.shadow["weight"], ema_2.shadow["weight"])


def test_log_is_cut_on_resume(tmp_path):
    path = tmp_path / "log.jsonl"
    log = common.Log(path, 0)
    for step in range(1, 6):
        log.write(step=step, loss=1 / step)
    log.write(step=5, val_loss=0.5)
    common.Log(path, 3).write(step=4, loss=7)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4] and rows[-1]["loss"] == 7


def test_log_with_a_torn_last_line(tmp_path):
    """A kill in the middle of a write leaves half a line; resuming must not fail over it."""
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo')
    common.Log(path, 1).write(step=2, loss=1)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
