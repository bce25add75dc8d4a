"""The promises of the house: who imports whom, how dense a line may be, few dependencies, no hidden
failures.
"""
import ast
import sys
from functools import cache

import pytest

from helpers import ROOT

ROOMS = ("common", "weights", "training", "mimic", "phantom", "evaluation", "abilities", "bench")
FILES = sorted(
    str(path.relative_to(ROOT))
    for place in (".", *ROOMS)
    for path in (ROOT.glob("*.py") if place == "." else ROOT.glob(f"{place}/**/*.py"))
)
TESTS = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob("tests/**/*.py"))


def text(name):
    return (ROOT / name).read_text(encoding="utf-8")


@cache
def tree(name):
    """The syntax tree of a file, in which every node knows its parent."""
    root = ast.parse(text(name))
    for parent in ast.walk(root):
        for child in ast.iter_child_nodes(parent):
            child.parent = parent
    return root


# ---- density: what a reader stumbles over ----

def is_boolean(node):
    """Whether an expression can only be a truth value, as far as its form tells."""
    if isinstance(node, ast.Compare):
        return True
    if isinstance(node, ast.UnaryOp):
        return isinstance(node.op, ast.Not)
    if isinstance(node, ast.BoolOp):
        return all(is_boolean(value) for value in node.values)
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool)
    return isinstance(node, ast.Call) and called(node) in BOOLEAN_CALLS


# calls that give a truth value, by the last name of what is called
BOOLEAN_CALLS = {
    "bool", "any", "all", "isinstance", "issubclass", "callable", "hasattr", "startswith",
    "endswith", "isdigit", "isspace", "isupper", "islower", "isalpha", "isalnum", "isidentifier",
    "isfinite", "isnan", "isdisjoint", "issubset", "exists", "is_file", "is_dir", "is_absolute",
    "is_available", "is_initialized", "is_tensor", "is_floating_point", "is_grad_enabled",
    "is_alive", "is_condition", "every", "done", "allclose",
}


def called(node):
    """The last name of what is called: `path.exists()` -> "exists"."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else ""


def is_condition(node):
    """Whether the value of an expression only decides something, as in `if` and `while`."""
    parent = node.parent
    if isinstance(parent, (ast.If, ast.While, ast.Assert, ast.IfExp)) and parent.test is node:
        return True
    if isinstance(parent, ast.comprehension) and node in parent.ifs:
        return True
    if isinstance(parent, ast.UnaryOp) and isinstance(parent.op, ast.Not):
        return True
    if isinstance(parent, ast.Call) and called(parent) in ("bool", "any", "all"):
        return True
    if isinstance(parent, (ast.GeneratorExp, ast.ListComp)) and parent.elt is node:
        return is_condition(parent)
    return isinstance(parent, ast.BoolOp) and is_condition(parent)


def picks_a_value(node):
    """`a or b` where a value is wanted.

    Flags may be combined: the last operand must be a truth value by its form, the others may be
    names.
    """
    if is_condition(node) or isinstance(node.parent, ast.BoolOp):
        return False
    flags = (ast.Name, ast.Attribute)
    return not is_boolean(node.values[-1]) or not all(
        is_boolean(value) or isinstance(value, flags) for value in node.values[:-1])


def dense(name):
    """All places of a file that the gate refuses: (line, what is wrong)."""
    for number, line in enumerate(text(name).splitlines(), 1):
        if len(line) > 100:
            yield number, f"{len(line)} columns, at most 100"
    for node in ast.walk(tree(name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = node.end_lineno - node.lineno + 1
            if length > 60:
                yield node.lineno, f"{node.name} has {length} lines, at most 60"
        if isinstance(node, (ast.Assign, ast.AnnAssign, ast.NamedExpr)):
            if isinstance(node.value, ast.Lambda):
                yield node.lineno, "a lambda with a name: write def"
        if isinstance(node, ast.IfExp):
            inner = [part for part in ast.walk(node) if isinstance(part, ast.IfExp)]
            if len(inner) > 1:
                yield node.lineno, "a conditional expression inside another"
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            if is_boolean(node.left) or is_boolean(node.right):
                yield node.lineno, "something times a truth value: write if"
        if isinstance(node, ast.Expr):
            if isinstance(node.value, (ast.Tuple, ast.IfExp, ast.BoolOp)):
                yield node.lineno, "a tuple, a conditional or and/or as a statement"
        if isinstance(node, ast.BoolOp) and picks_a_value(node):
            yield node.lineno, f"and/or picks a value: {ast.unparse(node)[:60]}"


@pytest.mark.parametrize("name", [*FILES, *TESTS])
def test_a_reader_meets_one_thought_a_line(name):
    places = [f"{name}:{number}: {what}" for number, what in sorted(dense(name))]
    assert not places, "\n".join(places)


@pytest.mark.parametrize("name", FILES)
def test_a_file_fits_a_sitting(name):
    assert len(text(name).splitlines()) <= 400


def test_what_was_asked_for_stays_small():
    """The network, its training loops, both directions, the story of the data: about 2,000 lines.
    """
    files = (*sorted(NETWORK), "train_und", "train_gen", "sample", "prepare_mimic")
    lines = {name: len(text(f"{name}.py").splitlines()) for name in files}
    assert sum(lines.values()) <= 2400, lines


# ---- who imports whom ----

def is_command(node):
    """Whether a statement is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


NETWORK = {"model", "attention", "vision", "vae", "flow", "repa", "tokenizer"}
# a room or file on top -> what it may import besides itself
BELOW = {"network", "common", "weights"}
TRAINS = BELOW | {"training", "sample"}
MAY = {
    "network": {"network"},
    "common": set(),
    "weights": {"network", "common"},
    "sample": BELOW,
    "training": TRAINS,
    "train_und": TRAINS,
    "train_gen": TRAINS,
    "phantom": TRAINS,
    "mimic": {"common", "vision"},
    "prepare_mimic": {"common", "vision", "mimic"},
    "abilities": BELOW | {"sample", "phantom"},
    "evaluation": TRAINS | {"mimic", "phantom", "abilities"},
    "evaluate": TRAINS | {"mimic", "phantom", "abilities", "evaluation"},
}
ANYTHING = ("bench", "app")


def imported(name):
    """Names of every import of a file, wherever it stands: `from common.cli import x` -> "common".

    Without those below `if __name__ == "__main__":`, which belong to the command alone.
    """
    code = [part for part in tree(name).body if not is_command(part)]
    for node in (node for part in code for node in ast.walk(part)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: imports are absolute from the root"
            yield node.module.split(".")[0]


def room_of(name):
    top = name.split("/")[0].removesuffix(".py")
    return "network" if top in NETWORK else top


@pytest.mark.parametrize("name", FILES)
def test_imports_point_one_way(name):
    room = room_of(name)
    if room in ANYTHING:
        return
    ours = {room_of(file) for file in FILES} | NETWORK
    others = {other for other in set(imported(name)) & ours if room_of(other) != room}
    wrong = {other for other in others if not {other, room_of(other)} & MAY[room]}
    assert not wrong, f"{name} may not import {', '.join(sorted(wrong))}"


CORE = {"torch", "numpy", "safetensors", "tokenizers", "PIL", "tqdm"}
# what one file needs beyond the core, asked for when it is used
MORE = {
    "common/dicom.py": {"pydicom"},
    "training/log.py": {"wandb"},
    "training/curves.py": {"matplotlib"},
    "evaluation/tables.py": {"matplotlib"},
    "evaluation/text_metrics.py": {"nltk", "rouge_score"},
    "app.py": {"gradio"},
    "evaluation/scoring.py": {"nltk"},
    "evaluation/utility.py": {"sklearn"},
    "bench/metrics.py": {"torchmetrics", "prdc"},
    "bench/replication.py": {"matplotlib"},
}


@pytest.mark.parametrize("name", FILES)
def test_few_dependencies(name):
    ours = {file.split("/")[0].removesuffix(".py") for file in FILES} | {"mimic_tree"}
    foreign = set(imported(name)) - ours - sys.stdlib_module_names
    wrong = foreign - CORE - MORE.get(name, set())
    assert not wrong, f"{name} needs {', '.join(sorted(wrong))}"


# ---- nothing fails in silence ----

# the library `tokenizers` raises nothing finer for a damaged file
PLAIN = """except Exception as error:
    raise InputError(f'{path} is no tokenizer: {error}.') from None"""


@pytest.mark.parametrize("name", FILES)
def test_nothing_fails_silently(name):
    """No bare or all-embracing except, no strict=False, no pickle that runs code, no getattr with a
    default.
    """
    for node in ast.walk(tree(name)):
        where = f"{name}:{node.lineno}" if hasattr(node, "lineno") else name
        if isinstance(node, ast.ExceptHandler):
            caught = {"everything"}
            if node.type:
                caught = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)}
            all_embracing = caught & {"everything", "Exception", "BaseException"}
            assert not all_embracing or ast.unparse(node) in PLAIN, f"{where} catches {caught}"
            passes = all(isinstance(line, ast.Pass) for line in node.body)
            assert not passes, f"{where} swallows an error"
        if not isinstance(node, ast.Call):
            continue
        constants = [k for k in node.keywords if isinstance(k.value, ast.Constant)]
        keywords = {k.arg: k.value.value for k in constants}
        if called(node) != "zip":
            assert keywords.get("strict") is not False, f"{where} loads with strict=False"
        if called(node) == "getattr":
            assert len(node.args) < 3, f"{where} hides a missing field behind a default"
        if isinstance(node.func, ast.Attribute):
            assert called(node) != "cuda", f"{where} calls .cuda(); devices come from inputs"
            if ast.unparse(node.func) == "torch.load":
                assert keywords.get("weights_only") is True, f"{where} unpickles"


# ---- every file says what it is ----

def runs_as_a_script(name):
    """Whether a file ends with `if __name__ == "__main__":`."""
    return is_command(tree(name).body[-1])


@pytest.mark.parametrize("name", [*FILES, *TESTS])
def test_every_file_says_what_it_is(name):
    doc = ast.get_docstring(tree(name))
    assert doc, f"{name} has no docstring"
    assert len(doc.splitlines()[0]) > 20
    room, _, file = name.removesuffix(".py").rpartition("/")
    if file == "__init__":
        code = [node for node in tree(name).body if not isinstance(node, ast.Expr)]
        assert not code or room == "weights", f"{name} is the room's map: a docstring, no code"
    elif runs_as_a_script(name) and name not in TESTS:
        command = f"{file}.py" if not room else f"python -m {room.replace('/', '.')}.{file}"
        assert command in doc, f"{name}: its header says how to run it: {command}"


def test_the_network_knows_no_files_and_no_processes():
    for name in ("attention", "model", "vae", "flow", "repa"):
        assert not set(imported(f"{name}.py")) & {"os", "sys", "pathlib", "json", "safetensors"}
        assert "torch.distributed" not in text(f"{name}.py")
