"""RadGraph and BioViL-T through their authors' packages, which want old libraries: each runs in a process of its own.

`--python` names the interpreter of an environment where they are installed; the default is the one that runs us. What does
not work there is left out of the tables with one sentence; nothing of theirs is imported here. Both packages fetch their
weights themselves. Commands for such an environment are in docs/evaluation.md; they were not run by us with real weights.
"""
import json
import subprocess
import sys

RADGRAPH = """
import json, sys
texts = json.load(sys.stdin)
out, sys.stdout = sys.stdout, sys.stderr
from radgraph import RadGraph
model = RadGraph(model_type="radgraph")
full = [i for i, text in enumerate(texts) if text.strip()]
found = model([texts[i] for i in full]) if full else {}
annotations = [{"entities": {}} for _ in texts]
for n, i in enumerate(full):
    annotations[i] = {"entities": found[str(n)]["entities"]}
json.dump(annotations, out)
"""

BIOVIL = """
import json, sys
from pathlib import Path
jobs = json.load(sys.stdin)
out, sys.stdout = sys.stdout, sys.stderr
from health_multimodal.image.utils import ImageModelType, get_image_inference
from health_multimodal.text.utils import BertEncoderType, get_bert_inference
from health_multimodal.vlp.inference_engine import ImageTextInferenceEngine
engine = ImageTextInferenceEngine(get_image_inference(ImageModelType.BIOVIL_T), get_bert_inference(BertEncoderType.BIOVIL_T_BERT))
json.dump([float(engine.get_similarity_score_from_raw_data(Path(path), prompt)) for path, prompt in jobs], out)
"""


def ask(code, content, python=""):
    """Run `code` with JSON on its standard input -> (its answer, "") or (None, the last line of what went wrong)."""
    try:
        done = subprocess.run([python or sys.executable, "-c", code], input=json.dumps(content), text=True, capture_output=True)
    except OSError as error:
        return None, f"--python {python}: {error.strerror}"
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["no word"])[-1]
    return json.loads(done.stdout), ""


def radgraph(texts, python=""):
    """-> (annotations, []) or (None, [why RadGraph F1 is left out])."""
    answer, error = ask(RADGRAPH, texts, python)
    return answer, [f"RadGraph F1 is left out ({error}): pip install radgraph==0.1.18 'transformers<5' in an environment of its "
                    "own, and name its interpreter with --python."] if error else []


def alignment(jobs, python=""):
    """[(image path, prompt)] -> (cosines, []) or (None, [why the alignment score is left out])."""
    answer, error = ask(BIOVIL, [(str(path), prompt) for path, prompt in jobs], python)
    return answer, [f"the alignment score is left out ({error}): pip install hi-ml-multimodal==0.2.2 'transformers<5' in an "
                    "environment of its own, and name its interpreter with --python."] if error else []
