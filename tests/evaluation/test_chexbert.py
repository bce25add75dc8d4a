"""evaluation/chexbert.py against transformers' BERT on a random chexbert.pth of its layout; text, truncation, and what is refused."""
import shutil

import numpy as np
import pytest
import torch

from evaluation import chexbert
from common import processes as common
from common.processes import InputError
from evaluation.text_metrics import LABELS
from helpers import CHEXBERT_WORDS as WORDS, random_chexbert, write_chexbert

REPORTS = ["Small left effusion. No pneumothorax.", "The heart is NORMAL,\nlungs clear", "effusion", ""]


class Code:
    def __reduce__(self):
        return print, ("run",)


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    bert, heads = random_chexbert()
    folder = write_chexbert(tmp_path_factory.mktemp("chexbert") / "x", bert, heads)
    return bert, heads, folder


def test_logits_are_those_of_transformers(parts):
    bert, heads, folder = parts
    model = chexbert.load(folder, heads=4)
    ids = torch.randint(0, len(WORDS), (3, 16))
    valid = torch.arange(16) < torch.tensor([[16], [5], [1]])
    with torch.no_grad():
        first = bert(ids, attention_mask=valid.long()).last_hidden_state[:, 0]
        ours = model(ids, valid)
    for head, logits in zip(heads, ours):
        assert (head(first) - logits).abs().max() < 1e-5
    assert [logits.shape[1] for logits in ours] == [4] * 13 + [2]


def test_labels(parts):
    """Word pieces as transformers cuts them; labels one by one are those of a batch; long reports lose their end, not [SEP]."""
    from transformers import BertTokenizer
    bert, heads, folder = parts
    model, theirs = chexbert.load(folder, heads=4), BertTokenizer(str(folder / "vocab.txt"), do_lower_case=True)
    long = "effusion " * 40 + "pneumothorax"
    got = model.label([*REPORTS, long], progress=False)
    assert got.shape == (5, 14) and got[:, -1].max() <= 1
    for text, row in zip([*REPORTS, long], got):
        ids = theirs(text)["input_ids"]
        ids = ids if len(ids) <= 16 else ids[:15] + [WORDS.index("[SEP]")]
        with torch.no_grad():
            first = bert(torch.tensor([ids])).last_hidden_state[:, 0]
        assert [int(head(first).argmax()) for head in heads] == row.tolist()
        assert (model.label([text], progress=False)[0] == row).all()
    assert len(np.unique(got, axis=0)) >= 3, "random weights tell these reports apart"


def test_text_before_the_model():
    assert chexbert.prepare("  left\n\nbase  clear .  ") == "left  base  clear ."
    assert len(chexbert.prepare("x" * 600, chexbert.CUT)) == 512 and len(chexbert.prepare("x" * 600)) == 600
    assert chexbert.prepare(" " * 500 + "y" * 100, chexbert.CUT) == "y" * 12, "cut first, then strip"


def test_the_cut_changes_labels(parts):
    model = chexbert.load(parts[2], heads=4)
    text = "small " + "." * 3 + " effusion"
    assert (model.label([text], cut=9, progress=False) == model.label(["small ..."], progress=False)).all()


def test_the_size_of_the_published_checkpoint():
    with torch.device("meta"):
        model = chexbert.CheXbert(chexbert.BertConfig())
    assert sum(p.numel() for p in model.parameters()) == 109_482_240 - 590_592 + 13 * 4 * 769 + 2 * 769     # less the pooler
    assert LABELS[13] == "no_finding" and model.heads[13].out_features == 2


BAD = {
    "a head of three": ({"module.linear_heads.0.weight": torch.ones(3, 32)}, r"heads.0.weight has shape \(3, 32\)"),
    "thirteen heads": ({"module.linear_heads.13.weight": None, "module.linear_heads.13.bias": None}, "missing there: heads.13"),
    "another tensor": ({"module.more": torch.ones(2)}, "unknown to us: more"),
    "no embedding": ({"module.bert.embeddings.word_embeddings.weight": None}, "is not CheXbert"),
    "no layers": ({"module.bert.encoder.layer.0.intermediate.dense.weight": None}, "is not CheXbert"),
}


@pytest.mark.parametrize("name", BAD)
def test_wrong_weights(parts, tmp_path, name, capsys):
    changes, sentence = BAD[name]
    write_chexbert(tmp_path, *parts[:2], **changes)
    with pytest.raises(InputError, match=sentence):
        chexbert.load(tmp_path, heads=4)
    (tmp_path / "reports.txt").write_text("effusion\n")
    with pytest.raises(SystemExit) as ended:
        common.cli(lambda argv: chexbert.main([str(tmp_path), str(tmp_path / "reports.txt")]))
    assert ended.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def test_wrong_files(parts, tmp_path):
    with pytest.raises(InputError, match="no CheXbert at .*hf download"):
        chexbert.load(tmp_path / "nowhere")
    folder = shutil.copytree(parts[2], tmp_path / "copy")
    (folder / "vocab.txt").write_text("\n".join(WORDS[:-1]) + "\n")
    with pytest.raises(InputError, match="20 word pieces, chexbert.pth 21"):
        chexbert.load(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(InputError, match="lacks vocab.txt"):
        chexbert.load(folder)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match="is no tokenizer"):
        chexbert.load(folder)
    torch.save({"x": Code()}, folder / "chexbert.pth")
    with pytest.raises(InputError, match="asks to run code"):
        chexbert.load(folder)


def test_command_line(parts, tmp_path, capsys, monkeypatch):
    load = chexbert.load
    monkeypatch.setattr(chexbert, "load", lambda path: load(path, heads=4))
    (tmp_path / "reports.txt").write_text("\n\n".join(r.replace("\n", " ") for r in REPORTS[:3]) + "\n")
    chexbert.main([str(parts[2]), str(tmp_path / "reports.txt")])
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 3 and all(len(line.split(",")) == 14 for line in out)
    with pytest.raises(InputError, match="say which weights"):
        chexbert.main([])
    (tmp_path / "reports.txt").write_text("\n")
    with pytest.raises(InputError, match="holds no report"):
        chexbert.main([str(parts[2]), str(tmp_path / "reports.txt")])
