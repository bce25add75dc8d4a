"""evaluation/radgraph_biovil.py: packages elsewhere answer, or one sentence says why not."""
import sys

import pytest

from evaluation import radgraph_biovil

# stand-ins for the two packages; as the real ones do, they print while they load
RADGRAPH = """
print("loading")
class RadGraph:
    def __init__(self, model_type):
        assert model_type == "radgraph"
    def __call__(self, texts):
        return {str(n): {"entities": {"1": text}} for n, text in enumerate(texts)}
"""
BIOVIL = """
print("loading")
class Kind:
    BIOVIL_T = BIOVIL_T_BERT = "BioViL-T"
ImageModelType = BertEncoderType = Kind
get_image_inference = get_bert_inference = str
class ImageTextInferenceEngine:
    def __init__(self, image, text):
        assert image == text == "BioViL-T"
    def get_similarity_score_from_raw_data(self, path, prompt):
        return len(path.name) / len(prompt)
"""
MODULES = {"radgraph": RADGRAPH, "health_multimodal/image/utils": BIOVIL,
           "health_multimodal/text/utils": BIOVIL, "health_multimodal/vlp/inference_engine": BIOVIL}


@pytest.fixture
def python(tmp_path):
    """An interpreter in whose environment both packages are."""
    site = tmp_path / "site"
    for name, code in MODULES.items():
        path = site / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\nPYTHONPATH={site} exec {sys.executable} \"$@\"\n")
    interpreter.chmod(0o755)
    return str(interpreter)


def test_the_packages_answer_for_each_item(python):
    """A report without text has no entities, and the others keep their places."""
    annotations, left_out = radgraph_biovil.radgraph(["one", " ", "two"], python)
    assert annotations == [{"entities": {"1": "one"}}, {"entities": {}}, {"entities": {"1": "two"}}]
    assert not left_out
    pairs = [("a/b.png", "ten letter"), ("c", "four")]
    assert radgraph_biovil.alignment(pairs, python) == ([0.5, 0.25], [])


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
        assert "--python." in sentence and "\n" not in sentence
