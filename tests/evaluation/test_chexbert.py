"""evaluation/chexbert.py: the labels are those of transformers' BERT; other files are refused."""
import pytest
import torch

from common.cli import InputError
from evaluation import chexbert
from evaluation.text_metrics import LABELS

# of each report the codes that transformers' BertModel gives with the weights of conftest.py
CODES = {
    "Small left effusion. No pneumothorax.": "02130322111130",
    "The heart is NORMAL,\nlungs clear": "03312301231030",
    "effusion": "02130322010130",
    "": "03210322211030",
    "effusion " * 40 + "pneumothorax": "01130321112130",      # more than its 16 tokens
}


@pytest.fixture(scope="module")
def labeller(chexbert_folder):
    return chexbert.load(chexbert_folder)


def test_labels_are_those_of_transformers(labeller):
    """Word pieces too; a long report keeps its [SEP]; a batch is its reports one by one."""
    codes = labeller.label(list(CODES), progress=False)
    assert ["".join(map(str, row)) for row in codes] == list(CODES.values())
    for text, row in zip(CODES, codes):
        assert (labeller.label([text], progress=False)[0] == row).all()


@pytest.mark.slow
def test_logits_are_those_of_transformers(labeller, chexbert_folder):
    """The import of transformers takes longer than the fast tests of this room."""
    transformers = pytest.importorskip("transformers")
    content = torch.load(chexbert_folder / "chexbert.pth")["model_state_dict"]
    bert = transformers.BertModel(transformers.BertConfig(
        vocab_size=21, hidden_size=128, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=48, max_position_embeddings=16, attn_implementation="eager")).eval()
    bert.load_state_dict({name.removeprefix("module.bert."): value
                          for name, value in content.items()
                          if "linear_heads" not in name and "position_ids" not in name})
    tokenizer = transformers.BertTokenizer(str(chexbert_folder / "vocab.txt"), do_lower_case=True)
    ids = tokenizer(list(CODES), truncation=True, max_length=16, padding=True, return_tensors="pt")
    with torch.no_grad():
        first = bert(ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state[:, 0]
        ours = labeller(ids["input_ids"], ids["attention_mask"].bool())
    rows = []
    for n, logits in enumerate(ours):
        head = f"module.linear_heads.{n}"
        theirs = first @ content[f"{head}.weight"].T + content[f"{head}.bias"]
        assert (theirs - logits).abs().max() < 1e-5
        rows.append(theirs.argmax(1))
    codes = torch.stack(rows, 1).tolist()
    assert ["".join(map(str, row)) for row in codes] == list(CODES.values())


def test_the_official_cut_is_in_characters_and_comes_first(labeller):
    assert chexbert.one_line("  left\n\nbase  clear .  ") == "left  base  clear ."
    assert chexbert.one_line(" " * 500 + "y" * 100, chexbert.CUT) == "y" * 12
    cut = labeller.label(["small ... effusion"], cut=9, progress=False)
    assert (cut == labeller.label(["small ..."], progress=False)).all()


def test_the_network_has_the_size_of_the_published_one():
    bert_base, pooler = 109_482_240, 590_592
    with torch.device("meta"):
        model = chexbert.CheXbert(chexbert.BertConfig(), tokenizer=None)
    size = sum(p.numel() for p in model.parameters())
    assert size == bert_base - pooler + (13 * 4 + 2) * 769


@pytest.mark.parametrize("name, tensor, sentence", [
    ("linear_heads.0.weight", torch.ones(3, 128), r"heads.0.weight has shape \(3, 128\)"),
    ("linear_heads.13.bias", None, "missing there: heads.13"),
    ("more", torch.ones(2), "unknown to us: more"),
    ("bert.embeddings.word_embeddings.weight", None, "is not CheXbert"),
    ("bert.embeddings.word_embeddings.weight", torch.ones(21, 32), "width of 32 is not 64 a head"),
])
def test_other_weights_are_refused(write_chexbert, tmp_path, name, tensor, sentence):
    write_chexbert(tmp_path, **{f"module.{name}": tensor})
    with pytest.raises(InputError, match=sentence):
        chexbert.load(tmp_path)


class Code:
    def __reduce__(self):
        return print, ("run",)


def test_other_files_are_refused(write_chexbert, tmp_path):
    with pytest.raises(InputError, match="no CheXbert at .*hf download"):
        chexbert.load(tmp_path / "nowhere")
    folder = write_chexbert(tmp_path)
    words = (folder / "vocab.txt").read_text().splitlines()
    (folder / "vocab.txt").write_text("\n".join(words[:-1]) + "\n")
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


def test_the_command_prints_a_line_of_codes_a_report(chexbert_folder, tmp_path, capsys):
    reports = tmp_path / "reports.txt"
    reports.write_text("effusion\n\nEffusion\n")
    chexbert.main([str(chexbert_folder), str(reports)])
    printed = capsys.readouterr()
    assert printed.out == 2 * (",".join(CODES["effusion"]) + "\n")
    assert ", ".join(LABELS) in printed.err
    reports.write_text("\n")
    with pytest.raises(InputError, match="holds no report"):
        chexbert.main([str(chexbert_folder), str(reports)])
    with pytest.raises(InputError, match="say which weights"):
        chexbert.main([])
