"""evaluation/radgraph_biovil.py: packages in an environment of their own answer, or one sentence does."""
import sys

from evaluation import radgraph_biovil as foreign
from evaluation import scoring


def test_foreign_packages(tmp_path):
    """An interpreter with the package answers; one without is one sentence."""
    fake = tmp_path / "site"
    (fake / "radgraph").mkdir(parents=True)
    (fake / "radgraph" / "__init__.py").write_text(
        "print('loading')\nclass RadGraph:\n    def __init__(self, model_type): assert model_type == 'radgraph'\n"
        "    def __call__(self, texts): return {str(i): {'entities': {'1': {'tokens': t, 'label': 'OBS-DP', 'relations': []}}} "
        "for i, t in enumerate(texts)}\n")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nPYTHONPATH={fake} exec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    found, sentences = foreign.radgraph(["one", " ", "two"], str(python))
    assert not sentences and [list(part["entities"].values()) for part in found][1] == []
    assert [part["entities"]["1"]["tokens"] for part in found if part["entities"]] == ["one", "two"]
    assert scoring.text_metrics.radgraph_rewards(found[:1], found[2:])[0, 0] == 0
    found, sentences = foreign.radgraph(["one"])
    assert found is None and "RadGraph F1 is left out" in sentences[0] and "\n" not in sentences[0]
    found, sentences = foreign.alignment([(tmp_path, "one")])
    assert found is None and "the alignment score is left out" in sentences[0]
