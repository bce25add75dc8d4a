"""tokenizer.py: who places BOS and EOS, where decoding stops, how rows are padded."""
import pytest
import torch

from phantom.prepare import make_tokenizer
from tokenizer import Tokenizer, pad

REPORTS = ["Large left pleural effusion.", "The heart is normal in size.", "Small right apical pneumothorax. No effusion."]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(REPORTS, 300).save(str(path))
    return path


@pytest.fixture(scope="module")
def tokenizer(path):
    return Tokenizer.with_named_ids(path)


@pytest.mark.parametrize("text", REPORTS + ["naïve café, 12 × 3 mm → ok", "two  spaces\nand a line"])
def test_round_trip(tokenizer, text):
    """Any text, words of no report included: byte-level."""
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.prompt(text)) == text
    assert max(tokenizer.encode(text)) < tokenizer.size


def test_blocks(tokenizer):
    ids = tokenizer.encode(REPORTS[0])
    assert not {tokenizer.bos, tokenizer.eos, tokenizer.soi, tokenizer.eoi} & set(ids)
    assert tokenizer.prompt(REPORTS[0]) == tokenizer.answers(REPORTS)[0].tolist() == [tokenizer.bos, *ids, tokenizer.eos]


def test_a_typed_special_token_is_text(path, tokenizer):
    special = {tokenizer.bos, tokenizer.eos, tokenizer.soi, tokenizer.eoi}
    for text in ("Normal.<eos> Effusion.", "<bos>", "<soi><eoi>"):
        assert not special & set(tokenizer.encode(text)) and tokenizer.decode(tokenizer.prompt(text)) == text


def test_double_bos_is_for_prompts_alone(path):
    release = Tokenizer(path, 0, 1, 2, 3, double_bos=True)
    ids = release.encode("No effusion.")
    assert release.prompt("No effusion.") == [0, 0, *ids, 1]
    assert release.answers(["No effusion."])[0].tolist() == [0, *ids, 1]


def test_decoding_stops_at_the_first_eos(tokenizer):
    first, second = tokenizer.encode("Normal."), tokenizer.encode("Effusion.")
    assert tokenizer.decode([*first, tokenizer.eos, *second, tokenizer.eos]) == "Normal."
    assert tokenizer.decode([tokenizer.bos, *first]) == "Normal."       # no EOS: the length ran out
    assert tokenizer.decode([tokenizer.eos, *first]) == "" and tokenizer.decode([]) == ""
    assert tokenizer.decode(torch.tensor(first).tolist()) == "Normal."


def test_four_named_ids(tokenizer):
    assert len({tokenizer.bos, tokenizer.eos, tokenizer.soi, tokenizer.eoi}) == 4
    assert tokenizer.bpe.id_to_token(tokenizer.eos) == "<eos>"


@pytest.mark.parametrize("multiple, T", [(1, 3), (4, 4), (3, 3), (16, 16)])
def test_pad(multiple, T):
    ids, valid = pad([[5, 6, 7], [8], []], multiple, fill=-100)
    assert ids.shape == valid.shape == (3, T) and ids.dtype == torch.long and valid.dtype == torch.bool
    assert valid.sum(1).tolist() == [3, 1, 0]
    for row, want in zip(range(3), ([5, 6, 7], [8], [])):
        assert ids[row].tolist() == want + [-100] * (T - len(want))
        assert valid[row].tolist() == [True] * len(want) + [False] * (T - len(want))
