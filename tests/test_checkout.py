"""What git hands out is the same on every machine, and git leaves alone what the commands write."""
import dataclasses
import hashlib
import importlib
import shutil
import subprocess

import pytest

from helpers import ROOT, SCRIPTS

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git work tree")


def git(*words, folder=ROOT):
    """What git prints, as bytes."""
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, check=True).stdout


def test_a_checkout_on_windows_has_the_same_bytes(tmp_path):
    """Git for Windows sets core.autocrlf, which writes "\\r\\n" at the end of each line of a text:
    demo/tokenizer.json then has another hash than its checkpoint says.
    """
    clone = tmp_path / "clone"
    git("clone", "-q", "-c", "core.autocrlf=true", str(ROOT), str(clone))
    for entry in git("ls-tree", "-r", "-z", "HEAD", folder=clone).split(b"\0")[:-1]:
        about, name = entry.split(b"\t")
        content = (clone / name.decode()).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        assert blob == about.split()[2].decode(), f"{name.decode()} was changed by the checkout"


def ignored(path):
    """Whether git leaves alone a file of this folder."""
    line = ["git", "check-ignore", "-q", path]
    return subprocess.run(line, cwd=ROOT, capture_output=True).returncode == 0


def default_outputs():
    """What the scripts write when --out is not given: a file, a beginning of names, or a folder."""
    commands = [f"evaluation.{path.stem}" for path in ROOT.glob("evaluation/[a-z]*.py")]
    for name in sorted({*SCRIPTS, *commands}):
        for thing in vars(importlib.import_module(name)).values():
            # a dataclass of settings, or a table of presets
            if dataclasses.is_dataclass(thing) and isinstance(thing, type):
                yield from (f.default for f in dataclasses.fields(thing) if f.name == "out")
            elif isinstance(thing, dict):
                presets = [preset for preset in thing.values() if isinstance(preset, dict)]
                yield from (preset["out"] for preset in presets if "out" in preset)


def test_git_ignores_what_the_commands_write():
    outputs = {out for out in default_outputs() if isinstance(out, str) and out}
    assert {"sample.png", "compare", "out/und", "datasets/phantom", "curves.png"} <= outputs
    # the default of prepare_mimic.py is made of --dataset, and some names are fixed
    outputs |= {"datasets/mimic", "datasets/table", "contact-sheet.png", "phantom.png",
                "sample-000.png", "reports.jsonl", "a.safetensors", "sweep.json", "wandb/x"}
    for out in sorted(outputs):
        endings = [""] if "." in out else [".json", ".md", ".png", "/any"]
        if "/" in out:
            endings = ["/any"]
        for ending in endings:
            assert ignored(out + ending), f"{out}{ending} would be committed by git add ."


def test_git_ignores_nothing_that_it_keeps():
    assert git("ls-files", "-ci", "--exclude-standard") == b""
