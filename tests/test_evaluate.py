"""evaluate.py: says which tables there are and starts them; bad input ends in one sentence."""
import re
import sys

import pytest

import evaluate
from common.cli import cli


def ended(monkeypatch, *words):
    """Run the command line -> exit code."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *words])
    with pytest.raises(SystemExit) as end:
        cli(evaluate.main)
    return end.value.code


def test_bare_it_teaches(monkeypatch, capsys):
    assert ended(monkeypatch) == 0
    page = capsys.readouterr().out
    assert all(f"python evaluate.py {command}" in page for command in evaluate.COMMANDS)
    assert "not for clinical use" in page and "docs/evaluation.md" in page


@pytest.mark.parametrize("command", evaluate.COMMANDS)
def test_every_command_lists_its_settings(monkeypatch, capsys, command):
    assert ended(monkeypatch, command, "--help") == 0
    page = capsys.readouterr().out
    assert "--out" in page and "clinical use" in page
    for line in page.split("options:")[1].strip().splitlines():
        if line.lstrip().startswith("--"):
            assert len(line.split("[")[0].split()) > 2, f"an option without a word about it: {line}"


@pytest.mark.parametrize("words, sentence", [
    (["ung"], "no table 'ung'; .* one of phantom, und, gen, .* The nearest is und"),
    (["phantom", "--nun", "3"], "the nearest is --num"),
])
def test_bad_input_is_one_sentence_and_exit_code_2(monkeypatch, capsys, words, sentence):
    assert ended(monkeypatch, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(sentence, error)
