"""weights/knowledge.py: what weights were trained on, from data to export; words never met."""
import json
from types import SimpleNamespace

import pytest

import train_gen
import train_und
import weights
from common.images import NOTICE
from common.packed import Packed
from helpers import ROOT
from tiny_runs import gen, und
from weights import checkpoint, export, knowledge

PHANTOMS = knowledge.TRAINED_ON["phantom"]


@pytest.fixture(scope="module")
def demo():
    return weights.load(ROOT / "demo")


def config(directory):
    return checkpoint.read_config(checkpoint.newest(directory))


def test_it_goes_from_the_data_through_both_stages_into_an_export(phantom, vae_run, tmp_path):
    train_und.main(und(phantom, tmp_path / "und", "--steps", 1))
    train_gen.main(gen(phantom, tmp_path / "gen", tmp_path / "und", "--vae", vae_run, "--steps", 1,
                       "--repa", 0))
    export.shrink(tmp_path / "gen", tmp_path / "small")
    rows = Packed(phantom, "und", 64, "train").rows
    for name in ("und", "gen", "small"):
        about = config(tmp_path / name)
        assert about["knows"] == PHANTOMS
        assert {"effusion", "Describe"} <= {piece.lstrip("Ġ") for piece in about["words"].split()}
    model, _, tokenizer = weights.load(tmp_path / "small")
    texts = [row["report"] for row in rows]
    assert knowledge.unknown_words(model, tokenizer, texts) == {}
    assert PHANTOMS in knowledge.notice(model)


def test_what_is_learned_later_comes_second(demo):
    """A pretrained tokenizer has met every word, so none are kept."""
    _, _, tokenizer = demo
    films = SimpleNamespace(rows=[{"source": "findings", "prompt": "", "report": "Clavicle"}],
                            info={"settings": {"dataset": "openi"}})
    about = knowledge.learned({"knows": PHANTOMS}, films, tokenizer)
    assert about["knows"] == f"{PHANTOMS}; then {knowledge.TRAINED_ON['openi']}"
    assert knowledge.learned(about, films, tokenizer) == about
    assert about["words"] == "Clavicle"
    large = SimpleNamespace(bpe=SimpleNamespace(token_to_id=lambda token: None), bos=100000)
    assert "words" not in knowledge.learned({}, films, large)
    films.info["settings"] = {}                 # of an unknown kind
    assert knowledge.learned({}, films, large) == {}


def test_the_words_that_the_demo_has_never_met(demo, capsys):
    model, _, tokenizer = demo
    text = "severe cardiomegaly. Displaced clavicle fracture, LARGE left effusion. café 3 cm."
    assert knowledge.unknown_words(model, tokenizer, [text]) == {
        "severe": 'but "Severe"', "Displaced": "", "clavicle": "", "fracture": "",
        "LARGE": 'but "large"', "café": "", "3": "", "cm": ""}
    assert knowledge.unknown_words(model, tokenizer, ["cardiomegaly"]) == {
        "cardiomegaly": "but inside of a text"}
    knowledge.tell_unknown(model, tokenizer, ["A rib fracture.", "Large left pleural effusion."])
    assert capsys.readouterr().err == (
        "unknown to these weights, and without meaning to them: A, fracture, rib.\n"
        .replace("A,", 'A (but inside of a text),'))
    knowledge.tell_unknown(model, tokenizer, ["Large left pleural effusion."])
    assert capsys.readouterr().err == ""


def test_checkpoints_of_before_say_what_their_settings_tell():
    old = {"settings": {"preset": "phantom", "data": "datasets/phantom40k"}}
    assert knowledge.recorded(old) == {"knows": PHANTOMS}
    assert knowledge.recorded({"settings": {"preset": "phantom", "data": "mine"}}) == {}
    assert knowledge.recorded({}) == {}
    silent = SimpleNamespace(about={})
    assert knowledge.notice(silent) == NOTICE
    assert knowledge.unknown_words(silent, None, ["anything"]) == {}


def test_the_demo_says_that_it_knows_toys_alone(demo):
    model, _, _ = demo
    assert model.about["knows"] == PHANTOMS and "phantoms" in knowledge.notice(model)
    raw = json.loads((ROOT / "demo" / "config.json").read_text(encoding="utf-8"))
    assert raw["words"] == model.about["words"]
