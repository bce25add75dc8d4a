"""RadGraph's annotations of reports, and BioViL-T's cosines of images and prompts.

Both come from their authors' packages, which need old libraries. So each runs in a process of its
own, under the interpreter that `--python` names, in whose environment the package is installed (by
default the interpreter that runs us). JSON goes in and comes back; nothing of theirs is imported
here. The packages fetch their weights themselves. docs/evaluation.md says what such an environment
needs; with the real weights this path has not been run yet.

A package that does not work is no error: its score is left out of the tables, with one sentence.
"""
import json
import subprocess
import sys

# Both programs read JSON from standard input and write JSON to standard output. What the packages
# print while they load goes to standard error.
RADGRAPH = """
import json, sys
texts = json.load(sys.stdin)
answer, sys.stdout = sys.stdout, sys.stderr

from radgraph import RadGraph
model = RadGraph(model_type="radgraph")         # the first model, which the published score uses

# empty reports have no entities, and the model is not asked about them
annotations = [{"entities": {}} for _ in texts]
numbers = [number for number, text in enumerate(texts) if text.strip()]
if numbers:
    results = model([texts[number] for number in numbers])
    for n, number in enumerate(numbers):
        annotations[number] = {"entities": results[str(n)]["entities"]}
json.dump(annotations, answer)
"""

BIOVIL = """
import json, sys
from pathlib import Path
jobs = json.load(sys.stdin)
answer, sys.stdout = sys.stdout, sys.stderr

from health_multimodal.image.utils import ImageModelType, get_image_inference
from health_multimodal.text.utils import BertEncoderType, get_bert_inference
from health_multimodal.vlp.inference_engine import ImageTextInferenceEngine
engine = ImageTextInferenceEngine(
    get_image_inference(ImageModelType.BIOVIL_T),
    get_bert_inference(BertEncoderType.BIOVIL_T_BERT))

cosines = []
for path, prompt in jobs:
    cosines.append(float(engine.get_similarity_score_from_raw_data(Path(path), prompt)))
json.dump(cosines, answer)
"""


def ask(program, question, python):
    """Run a program with a question on standard input -> (its answer, "") or (None, why not)."""
    # the program is text, so that it runs where this repository is not installed
    interpreter = python if python else sys.executable
    try:
        process = subprocess.run([interpreter, "-c", program], input=json.dumps(question),
                                 text=True, capture_output=True)
    except OSError as error:
        return None, f"--python {python}: {error.strerror}"
    if process.returncode == 0:
        return json.loads(process.stdout), ""
    # the last line of a traceback names the exception, which is what the user can act on
    lines = process.stderr.strip().splitlines()
    return None, lines[-1] if lines else "no word"


def sentences(score, reason, package):
    """What the tables say about a score that is left out, as a list; none without a reason."""
    if not reason:
        return []
    return [f"{score} is left out ({reason}): pip install {package} 'transformers<5' in an "
            "environment of its own, and name its interpreter with --python."]


def radgraph(texts, python=""):
    """Reports -> (annotations {"entities": {...}} of each, []) or (None, [why there are none])."""
    annotations, reason = ask(RADGRAPH, texts, python)
    return annotations, sentences("RadGraph F1", reason, "radgraph==0.1.18")


def alignment(jobs, python=""):
    """(image path, prompt) pairs -> (cosines, one a pair, []) or (None, [why there are none])."""
    question = [(str(path), prompt) for path, prompt in jobs]
    cosines, reason = ask(BIOVIL, question, python)
    return cosines, sentences("the alignment score", reason, "hi-ml-multimodal==0.2.2")
