"""demo.sh: the commands that it gives, by an interpreter that only writes them down."""
import shutil
import subprocess
import sys

import pytest

import train_gen
import train_und
from common.cli import override
from helpers import ROOT
from phantom import prepare, train_vae
from training import latents

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="no bash")


def demo(folder, *words):
    """Run demo.sh through a link, in a folder with blanks -> (exit code, output, commands)."""
    repository = folder / "open UniX"
    repository.mkdir()
    shutil.copy(ROOT / "demo.sh", repository)
    (folder / "link.sh").symlink_to(repository / "demo.sh")
    python = folder / "my pythons" / "python"
    python.parent.mkdir()
    notes = f'echo "$@" >> "{folder}/commands"\necho "$PWD" > "{folder}/place"\n'
    python.write_text("#!/bin/sh\n" + notes)
    python.chmod(0o755)
    done = subprocess.run(["bash", str(folder / "link.sh"), *words], cwd=folder, text=True,
                          capture_output=True, env={"PATH": "/usr/bin:/bin", "PYTHON": str(python)})
    commands = folder / "commands"
    if not commands.exists():
        return done.returncode, done.stdout + done.stderr, []
    assert (folder / "place").read_text() == f"{repository}\n"
    return done.returncode, done.stdout, commands.read_text().splitlines()


def settings(command):
    """What a script makes of its command."""
    words = command.split()
    words = words[2:] if words[0] == "-m" else words[1:]
    if "phantom.prepare" in command:
        return override(prepare.Settings(), words)
    if "train_vae" in command:
        return override(train_vae.TrainConfig(), words, presets=train_vae.PRESETS)
    if "train_und" in command:
        return override(train_und.TrainConfig(), words, presets=train_und.PRESETS)
    if "latents" in command:
        return override(latents.LatentsConfig(), words, presets=latents.PRESETS)
    return train_gen.settings(words)


def test_the_long_way_is_that_of_the_presets(tmp_path):
    code, printed, commands = demo(tmp_path)
    assert code == 0 and "== score after" in printed and len(commands) == 7
    prepared, = [command for command in commands if "phantom.prepare" in command]
    assert settings(prepared) == prepare.Settings()
    und, = [command for command in commands if "train_und" in command]
    assert settings(und) == override(train_und.TrainConfig(), ["--preset", "phantom", "--threads",
                                     "1"], presets=train_und.PRESETS)


def test_the_short_way_says_so_and_stays_apart(tmp_path):
    code, printed, commands = demo(tmp_path, "short")
    assert code == 0 and "not meant to be good" in printed and len(commands) == 7
    assert "out/phantom-short/gen128" in commands[-1]
    for command in commands[:-1]:
        assert "phantom-short" in vars(settings(command)).get("out", "phantom-short")


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_the_head_of_the_script(tmp_path, word):
    code, printed, commands = demo(tmp_path, word)
    assert code == 0 and not commands and "PYTHON=" in printed
    assert printed.startswith("The laptop run: ") and "\n    bash demo.sh short " in printed


def test_another_word_is_a_sentence(tmp_path):
    code, printed, commands = demo(tmp_path, "shrot")
    assert code == 2 and printed == "error: demo.sh knows 'short' and --help, got 'shrot'.\n"
    assert not commands
