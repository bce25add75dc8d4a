"""Packing phantoms: the same bytes from the same settings, nothing lost on the way, a tokenizer, a contact sheet."""
import hashlib
import json
import os

import numpy as np
import pytest

from common import processes as common
from phantom import facts as F
from phantom import prepare as P


def rng(*key):
    return np.random.default_rng(key)


def shrink(picture):
    return picture.reshape(len(picture) // 2, 2, -1, 2).mean((1, 3))


def test_tokenizer():
    reports = [F.facts_to_report(F.sample_facts(rng(i)), rng(i)) for i in range(2000)]
    tokenizer = P.make_tokenizer(reports, 512)
    assert [tokenizer.token_to_id(t) for t in ("<bos>", "<eos>", "<soi>", "<eoi>")] == [0, 1, 2, 3]
    lengths = [len(tokenizer.encode(report).ids) for report in reports]
    assert np.mean(lengths) < 45 and max(lengths) <= 64 and tokenizer.get_vocab_size() <= 512
    for text in [*reports[:50], "Ärger 42 µm, \n 肺?"]:
        assert tokenizer.decode(tokenizer.encode(text).ids) == text
    assert tokenizer.to_str() == P.make_tokenizer(reports, 512).to_str()


def pack_all(out, *options):
    return P.main(["--out", str(out), "--train", "20", "--val", "6", "--test", "6", "--size", "64", *options])


def digest(folder):
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*.*"))}


def test_data_set(tmp_path, capsys):
    from training import batches as data
    pack_all(tmp_path / "a", "--workers", "1")
    pack_all(tmp_path / "b", "--workers", "3")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")

    # the same numbers in another split, or with another seed, are other phantoms; more pictures leave the first as they were
    sets = {split: data.Packed(tmp_path / "a", "und", 64, split) for split in P.SPLITS}
    assert {split: len(packed) for split, packed in sets.items()} == {"train": 20, "val": 6, "test": 6}
    pictures = [packed.image(i).numpy().tobytes() for packed in sets.values() for i in range(len(packed))]
    assert len(set(pictures)) == 32 and len({row["id"] for packed in sets.values() for row in packed.rows}) == 32
    cfg = P.Settings(size=64, seed=1)
    assert P.pack((cfg, "train", 0))[1] != P.pack((P.Settings(size=64), "train", 0))[1]
    assert P.pack((P.Settings(size=64, train=999), "train", 3))[0] == sets["train"].rows[3]

    # rows say what is in the picture; the half-size picture is the mean of four pixels
    for i, row in enumerate(sets["train"].rows):
        assert F.report_to_facts(row["report"]) == frozenset(map(tuple, row["labels"])) and row["prompt"] in P.PROMPTS
        full, half = (packed.image(i).numpy().astype(float) for packed in (sets["train"], data.Packed(tmp_path / "a", "gen", 32, "train")))
        assert np.abs(shrink(full) - half).max() <= 0.5
    assert json.loads((tmp_path / "a" / "tokenizer.json").read_text())["added_tokens"][0]["content"] == "<bos>"

    # again: nothing to do; other settings: refused, unless told to overwrite
    before = digest(tmp_path / "a")
    capsys.readouterr()
    pack_all(tmp_path / "a")
    assert "already" in capsys.readouterr().out and digest(tmp_path / "a") == before
    with pytest.raises(common.InputError, match="overwrite"):
        pack_all(tmp_path / "a", "--seed", "1")
    # a run that was killed between two sets goes on with the same command
    (tmp_path / "a" / "phantom.json").unlink(), (tmp_path / "a" / "gen-64" / "dataset.json").unlink()
    pack_all(tmp_path / "a")
    assert digest(tmp_path / "a") == before
    pack_all(tmp_path / "a", "--seed", "1", "--overwrite")
    assert digest(tmp_path / "a") != before


def test_held_out_is_the_test_split():
    row, picture = P.held_out(P.Settings(size=64), 2)
    assert row == P.pack((P.Settings(size=64), "test", 2))[0] and picture.shape == (64, 64) and picture.dtype == np.uint8


def test_bad_sizes_are_refused():
    for options in (["--size", "63"], ["--size", "0"], ["--train", "0"], ["--seed", "-1"]):
        with pytest.raises(common.InputError):
            P.main(options)


def test_show(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    P.main(["--show", "3"])
    assert os.listdir(tmp_path) == ["phantom.png"]
