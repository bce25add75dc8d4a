"""tokenizer.py: who places BOS and EOS, where decoding stops, how rows are padded."""
import pytest
import tokenizers
import torch

from phantom.prepare import make_tokenizer
from tokenizer import Tokenizer, pad

REPORTS = ["Large left effusion.", "The heart is normal in size.", "Small nodule. No effusion."]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(REPORTS, 300).save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer.with_named_ids(path)


@pytest.mark.parametrize("text", [
    *REPORTS, "naïve café, 12 × 3 mm → ok", "two  spaces\nand a line",          # no word is unknown
    "Normal.<eos> Effusion.", "<bos>", "<soi><eoi>",            # a typed special token is text
])
def test_any_text_comes_back(tokenizer, text):
    ids = tokenizer.encode(text)
    assert not set(ids) & {tokenizer.bos, tokenizer.eos, tokenizer.soi, tokenizer.eoi}
    assert max(ids) < tokenizer.size
    assert tokenizer.decode(ids) == tokenizer.decode(tokenizer.prompt(text)) == text


def test_a_block_is_bos_ids_eos_and_double_bos_is_for_prompts_alone(path, tokenizer):
    bos, eos, ids = tokenizer.bos, tokenizer.eos, tokenizer.encode(REPORTS[0])
    assert tokenizer.prompt(REPORTS[0]) == [bos, *ids, eos]
    assert tokenizer.answers(REPORTS)[0].tolist() == [bos, *ids, eos]
    release = Tokenizer(path, 0, 1, 2, 3, double_bos=True)
    assert release.prompt(REPORTS[0]) == [0, 0, *ids, 1]
    assert release.answers(REPORTS)[0].tolist() == [0, *ids, 1]


def test_what_a_file_does_by_itself_is_switched_off(path, tokenizer, tmp_path):
    """Truncation, padding, a template of special tokens, BPE dropout; the file's text stays."""
    bpe = tokenizers.Tokenizer.from_file(str(path))
    bpe.enable_truncation(4)
    bpe.enable_padding(length=64)
    special = [("<bos>", tokenizer.bos), ("<eos>", tokenizer.eos)]
    bpe.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=special)
    bpe.model.dropout = 0.9
    bpe.save(str(tmp_path / "tokenizer.json"))
    saved = Tokenizer.with_named_ids(tmp_path / "tokenizer.json")
    texts = [*REPORTS, " ".join(REPORTS)]
    for text in texts:
        assert saved.encode(text) == tokenizer.encode(text)
        assert saved.prompt(text) == tokenizer.prompt(text)
    for block, expected in zip(saved.answers(texts), tokenizer.answers(texts)):
        assert block.tolist() == expected.tolist()
    assert saved.json == (tmp_path / "tokenizer.json").read_text()


def test_decoding_stops_at_the_first_eos(tokenizer):
    normal, effusion = tokenizer.encode("Normal."), tokenizer.encode("Effusion.")
    assert tokenizer.decode([*normal, tokenizer.eos, *effusion, tokenizer.eos]) == "Normal."
    assert tokenizer.decode([tokenizer.eos, *normal]) == tokenizer.decode([]) == ""


@pytest.mark.parametrize("multiple, T", [(1, 3), (4, 4), (3, 3), (16, 16)])
def test_pad(multiple, T):
    rows = [[5, 6, 7], [8], []]
    ids, valid = pad(rows, multiple, fill=-100)
    assert ids.dtype == torch.long
    assert ids.tolist() == [row + [-100] * (T - len(row)) for row in rows]
    assert valid.tolist() == [[i < len(row) for i in range(T)] for row in rows]
