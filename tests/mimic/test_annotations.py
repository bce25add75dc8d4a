"""The files of others: CheXpert's labels, LLaVA-Rad's texts, CheXGenBench's split, lists of ids."""
import json

import pytest

from common.cli import InputError
from mimic import annotations
from mimic.annotations import FINDINGS
from mimic_tree import write_table

GPT4 = {"image": "mimic/p10/x.jpg", "generate_method": "gpt4", "impression": "Same."}


def entry(text, **changes):
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": text}]
    return {**GPT4, "conversations": turns, **changes}


def read(folder, content):
    if isinstance(content, str):
        content = content.encode()
    (folder / "chat_train_MIMIC_CXR_all.json").write_bytes(content)
    return annotations.llava_rad(folder)


def test_llava_rad(tmp_path, monkeypatch):
    """Entries come in pieces of any length, with NaN; of an image and method the first counts."""
    entries = [entry("Edema."), entry("Other."), entry(" By rule. ", generate_method="rule-based"),
               entry("Half \ud800.", image="mimic/y.jpg", impression=None, view=float("nan"))]
    for piece in (1, 7, 1 << 20):
        monkeypatch.setattr(annotations, "PIECE", piece)
        assert read(tmp_path, json.dumps(entries, indent=1)) == {
            "rule-based": {"x": (" By rule. ", "Same.", "llava-rad:rule-based")},
            "gpt4": {"x": ("Edema.", "Same.", "llava-rad:gpt4"),
                     "y": ("Half \ufffd.", None, "llava-rad:gpt4")}}


@pytest.mark.parametrize("value", [None, 5, " ", float("nan")])
def test_llava_rad_says_nothing_in_many_ways(tmp_path, value):
    entries = [entry(value), {**GPT4, "conversations": []}]
    assert read(tmp_path, json.dumps(entries)) == {"rule-based": {}, "gpt4": {}}


@pytest.mark.parametrize("content, message", [
    ("1", "damaged"), ("[null]", "damaged"), ("{}", "damaged"), ("", "damaged"),
    ('[{"image": "a"', "cut short"), ("[" * 50_000, "damaged"),
    ("[" + '{"a":' * 50_000, "damaged"), ('[{"image": ' + "1" * 5000 + "}]", "damaged"),
    ('[{"image": "Sj\u00f6gren"}]'.encode("latin-1"), "damaged"), ("[{}]", "entry 1"),
    (json.dumps([entry("x", image=None)]), "entry 1"),
    (json.dumps([entry("x", generate_method=["gpt4"])]), "entry 1"),
    (json.dumps([entry("x"), entry("x", conversations=[{"from": "gpt"}])]), "entry 2"),
    (json.dumps([entry("x", conversations=3)]), "entry 1"),
    (json.dumps([entry("x", conversations=[None])]), "entry 1"),
], ids=lambda value: str(value)[:30])
def test_llava_rad_of_another_form_is_one_sentence(tmp_path, content, message):
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, content)
    assert "gren" not in str(error.value)


def test_a_folder_without_llava_rad(tmp_path):
    with pytest.raises(InputError, match="--llava-rad wants the folder"):
        annotations.llava_rad(tmp_path)


def test_chexpert_labels(tmp_path):
    """Blanks are left out; studies labelled alike share one dictionary."""
    values = ["1.0", "0.0", "-1.0", *[""] * 11]
    header = ("subject_id", "study_id", *FINDINGS)
    write_table(tmp_path / "a.csv", header, [(1, 7, *values), (1, 8, *values)])
    labels = annotations.chexpert_labels(tmp_path / "a.csv")
    assert labels["s7"] == {FINDINGS[0]: 1.0, FINDINGS[1]: 0.0, FINDINGS[2]: -1.0}
    assert labels["s7"] is labels["s8"]
    write_table(tmp_path / "b.csv", header, [(1, 7, "2.0", *values[1:])])
    with pytest.raises(InputError, match="label that is none of"):
        annotations.chexpert_labels(tmp_path / "b.csv")


def test_chexgenbench_paths_of_another_form(tmp_path):
    write_table(tmp_path / "LLAVARAD_ANNOTATIONS_TRAIN.csv", ("path", "annotated_prompt"),
                [("images/1.jpg", "Edema.")])
    with pytest.raises(InputError, match="is it the right file"):
        list(annotations.chexgenbench(tmp_path))


@pytest.mark.parametrize("content", [
    "a-1\nb.png\n", '[{"images": ["files/p10/a-1.jpg"]}, {"images": ["files/b.png"]}]',
    "id,split\na-1,test\nb.png,test\n", "\ufeffa-1 b.png",
])
def test_ids_in_any_kind_of_list(tmp_path, content):
    (tmp_path / "ids").write_text(content, encoding="utf-8")
    assert annotations.read_ids(tmp_path / "ids", {"a-1", "b.png", "c"}) == {"a-1", "b.png"}


@pytest.mark.parametrize("content, message", [(b"x\ny\n", "no image"), (b"Sj\xf6gren", "UTF-8")])
def test_lists_that_name_nothing(tmp_path, content, message):
    (tmp_path / "ids").write_bytes(content)
    with pytest.raises(InputError, match=message):
        annotations.read_ids(tmp_path / "ids", {"a"})
