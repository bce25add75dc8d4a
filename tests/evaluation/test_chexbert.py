"""evaluation/chexbert.py: the labels are those of transformers' BERT; other files are refused."""
import shutil

import numpy as np
import pytest
import torch

from common.cli import InputError
from evaluation import chexbert
from helpers import CHEXBERT_WORDS, random_chexbert, write_chexbert

REPORTS = [
    "Small left effusion. No pneumothorax.",
    "The heart is NORMAL,\nlungs clear",
    "effusion",
    "",
    "effusion " * 40 + "pneumothorax",          # longer than the 16 tokens that this BERT reads
]


@pytest.fixture(scope="module")
def bert_and_heads():
    return random_chexbert()


@pytest.fixture(scope="module")
def folder(bert_and_heads, tmp_path_factory):
    return write_chexbert(tmp_path_factory.mktemp("chexbert"), *bert_and_heads)


@pytest.fixture(scope="module")
def labeller(folder):
    return chexbert.load(folder)


def test_logits_are_those_of_transformers(bert_and_heads, labeller):
    bert, heads = bert_and_heads
    ids = torch.randint(0, len(CHEXBERT_WORDS), (3, 16))
    valid = torch.arange(16) < torch.tensor([[16], [5], [1]])
    with torch.no_grad():
        first = bert(ids, attention_mask=valid.long()).last_hidden_state[:, 0]
        logits = labeller(ids, valid)
    for head, finding in zip(heads, logits, strict=True):
        assert finding.shape == (3, head.out_features)
        assert (head(first) - finding).abs().max() < 1e-5


def test_labels_are_those_of_transformers(bert_and_heads, labeller, folder):
    """Word pieces too; a long report keeps its [SEP]; a batch is its reports one by one."""
    from transformers import BertTokenizer
    bert, heads = bert_and_heads
    tokenizer = BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True)
    codes = labeller.label(REPORTS, progress=False)
    assert len(np.unique(codes, axis=0)) >= 3, "random weights tell these reports apart"
    for text, row in zip(REPORTS, codes):
        ids = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            first = bert(ids).last_hidden_state[:, 0]
        assert [int(head(first).argmax()) for head in heads] == row.tolist()
        assert labeller.label([text], progress=False).tolist() == [row.tolist()]


def test_the_official_cut_is_in_characters_and_comes_first(labeller):
    assert chexbert.one_line("  left\n\nbase  clear .  ") == "left  base  clear ."
    assert chexbert.one_line("x" * 600) == "x" * 600
    assert chexbert.one_line(" " * 500 + "y" * 100, chexbert.CUT) == "y" * 12
    cut = labeller.label(["small ... effusion"], cut=9, progress=False)
    assert (cut == labeller.label(["small ..."], progress=False)).all()


def test_the_network_has_the_size_of_the_published_one():
    bert_base, pooler = 109_482_240, 590_592
    with torch.device("meta"):
        model = chexbert.CheXbert(chexbert.BertConfig(), tokenizer=None)
    size = sum(p.numel() for p in model.parameters())
    assert size == bert_base - pooler + (13 * 4 + 2) * 769


HEAD = "module.linear_heads"
WORDS = "module.bert.embeddings.word_embeddings"
LAYER = "module.bert.encoder.layer.0"


@pytest.mark.parametrize("changes, sentence", [
    ({f"{HEAD}.0.weight": torch.ones(3, 128)}, r"heads.0.weight has shape \(3, 128\)"),
    ({f"{HEAD}.13.weight": None, f"{HEAD}.13.bias": None}, "missing there: heads.13"),
    ({"module.more": torch.ones(2)}, "unknown to us: more"),
    ({f"{WORDS}.weight": None}, "is not CheXbert"),
    ({f"{WORDS}.weight": torch.ones(21, 32)}, "a width of 32 is not 64 a head"),
    ({f"{LAYER}.intermediate.dense.weight": None}, "is not CheXbert"),
])
def test_other_weights_are_refused(bert_and_heads, tmp_path, changes, sentence):
    write_chexbert(tmp_path, *bert_and_heads, **changes)
    with pytest.raises(InputError, match=sentence):
        chexbert.load(tmp_path)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_other_files_are_refused(folder, tmp_path):
    with pytest.raises(InputError, match="no CheXbert at .*hf download"):
        chexbert.load(tmp_path / "nowhere")
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "vocab.txt").write_text("\n".join(CHEXBERT_WORDS[:-1]) + "\n")
    with pytest.raises(InputError, match="20 word pieces, chexbert.pth 21"):
        chexbert.load(copy)
    (copy / "vocab.txt").unlink()
    with pytest.raises(InputError, match="lacks vocab.txt"):
        chexbert.load(copy)
    (copy / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="is no tokenizer"):
        chexbert.load(copy)
    torch.save({"x": Code()}, copy / "chexbert.pth")
    with pytest.raises(InputError, match="asks to run code"):
        chexbert.load(copy)


def test_the_command_prints_a_line_of_codes_a_report(labeller, folder, tmp_path, capsys):
    reports = tmp_path / "reports.txt"
    reports.write_text("effusion\n\nno effusion\n")
    chexbert.main([str(folder), str(reports)])
    lines = capsys.readouterr().out.splitlines()
    codes = labeller.label(["effusion", "no effusion"], progress=False)
    assert lines == [",".join(map(str, row)) for row in codes]
    with pytest.raises(InputError, match="say which weights"):
        chexbert.main([])
    reports.write_text("\n")
    with pytest.raises(InputError, match="holds no report"):
        chexbert.main([str(folder), str(reports)])
