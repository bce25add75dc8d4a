"""What the tests of evaluation/ share: reference values of the metrics, a small CheXbert."""
import json

import pytest
import torch

from helpers import GOLDEN

WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] . , small large left right effusion no pneumothorax "
    "heart lung ##s is clear normal the"
).split()


@pytest.fixture(scope="session")
def golden_metrics():
    """What the official code and packages gave for every metric, and the texts and labels."""
    if not GOLDEN.exists():
        pytest.skip("reference values are not here")
    return json.loads((GOLDEN / "metrics.json").read_text())


@pytest.fixture(scope="session")
def small_bert():
    """transformers' BertModel and 14 linear heads, as CheXbert's authors put them together."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    bert = transformers.BertModel(transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=16, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in bert.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    heads = [torch.nn.Linear(32, 4) for _ in range(13)] + [torch.nn.Linear(32, 2)]
    return bert, heads


@pytest.fixture(scope="session")
def chexbert_folder(small_bert, tmp_path_factory):
    """A folder with chexbert.pth in the authors' layout, of the small BERT, and its vocab.txt."""
    bert, heads = small_bert
    folder = tmp_path_factory.mktemp("chexbert")
    tensors = {f"module.bert.{name}": tensor for name, tensor in bert.state_dict().items()}
    tensors["module.bert.embeddings.position_ids"] = torch.arange(16)[None]
    for number, head in enumerate(heads):
        tensors[f"module.linear_heads.{number}.weight"] = head.weight.data
        tensors[f"module.linear_heads.{number}.bias"] = head.bias.data
    checkpoint = {"epoch": 8, "model_state_dict": tensors, "loss": 0.1}
    torch.save(checkpoint, folder / "chexbert.pth")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder
