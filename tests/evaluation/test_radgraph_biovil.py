"""evaluation/radgraph_biovil.py: packages elsewhere answer, or one sentence says why not."""
import sys

import pytest

from evaluation import radgraph_biovil

# stand-ins for the packages, which print while they load, as the real ones do
RADGRAPH = """
print("loading")
class RadGraph:
    def __init__(self, model_type):
        assert model_type == "radgraph"
    def __call__(self, texts):
        entities = [{"1": {"tokens": text, "label": "OBS-DP", "relations": []}} for text in texts]
        return {str(n): {"entities": found} for n, found in enumerate(entities)}
"""
BIOVIL = {
    "image/utils.py": """
get_image_inference = str
class ImageModelType:
    BIOVIL_T = "image"
""",
    "text/utils.py": """
get_bert_inference = str
class BertEncoderType:
    BIOVIL_T_BERT = "bert"
""",
    "vlp/inference_engine.py": """
print("loading")
class ImageTextInferenceEngine:
    def __init__(self, image, text):
        assert (image, text) == ("image", "bert")
    def get_similarity_score_from_raw_data(self, path, prompt):
        return len(path.name) / len(prompt)
""",
}


@pytest.fixture
def python(tmp_path):
    """An interpreter in whose environment both packages are."""
    site = tmp_path / "site"
    modules = {f"health_multimodal/{name}": code for name, code in BIOVIL.items()}
    for name, code in {**modules, "radgraph/__init__.py": RADGRAPH}.items():
        (site / name).parent.mkdir(parents=True)
        (site / name).write_text(code)
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} \"$@\"\n")
    interpreter.chmod(0o755)
    return str(interpreter)


def test_radgraph_answers_for_each_report(python):
    """A report without text has no entities, and the others keep their places."""
    annotations, left_out = radgraph_biovil.radgraph(["one", " ", "two"], python)
    assert not left_out
    words = [[entity["tokens"] for entity in annotation["entities"].values()]
             for annotation in annotations]
    assert words == [["one"], [], ["two"]]


def test_biovil_answers_for_each_pair(python):
    pairs = [("a/b.png", "ten letter"), ("c", "four")]
    cosines, left_out = radgraph_biovil.alignment(pairs, python)
    assert cosines == [0.5, 0.25]
    assert not left_out


@pytest.mark.parametrize("interpreter, reason", [
    ("", "ModuleNotFoundError: No module named '{package}'"),
    ("/nowhere/python", "--python /nowhere/python: No such file or directory"),
])
def test_what_does_not_work_is_one_sentence(interpreter, reason):
    for ask, package in ((radgraph_biovil.radgraph, "radgraph"),
                         (radgraph_biovil.alignment, "health_multimodal")):
        answer, (sentence,) = ask([("x", "one")], interpreter)
        assert answer is None
        assert f"is left out ({reason.format(package=package)})" in sentence
        assert "--python." in sentence
        assert "\n" not in sentence
