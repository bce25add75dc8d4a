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
    (folder / "chat_train_MIMIC_CXR_all.json").write_text(content, encoding="latin-1")
    return annotations.llava_rad(folder)


def test_of_an_image_and_a_method_the_first_text_of_llava_rad_counts(tmp_path, monkeypatch):
    """The file is read in pieces of any length. It says "nothing" in several ways, NaN included."""
    entries = [entry(nothing) for nothing in (None, 5, " ", float("nan"))]
    entries += [entry("Edema."), entry("Other."), {**GPT4, "conversations": []},
                entry(" By rule. ", generate_method="rule-based"),
                entry("Half \ud800.", image="mimic/y.jpg", impression=None, view=float("nan"))]
    for piece in (1, 7, 1 << 20):
        monkeypatch.setattr(annotations, "PIECE", piece)
        assert read(tmp_path, json.dumps(entries, indent=1)) == {
            "rule-based": {"x": (" By rule. ", "Same.", "llava-rad:rule-based")},
            "gpt4": {"x": ("Edema.", "Same.", "llava-rad:gpt4"),
                     "y": ("Half \ufffd.", None, "llava-rad:gpt4")}}


@pytest.mark.parametrize("content, message", [
    ("", "damaged"), ("{}", "damaged"), ("[null]", "damaged"), ('[{"image": "a"', "cut short"),
    ("[" + '{"a":' * 50_000, "damaged"), ('[{"image": ' + "1" * 5000 + "}]", "damaged"),
    ('[{"image": "Sj\u00f6gren"}]', "damaged"), ("[{}]", "entry 1"),
    (json.dumps([entry("x", generate_method=["gpt4"])]), "entry 1"),
    (json.dumps([entry("x"), entry("x", conversations=[None])]), "entry 2"),
], ids=lambda value: str(value)[:30])
def test_llava_rad_of_another_form_is_one_sentence(tmp_path, content, message):
    with pytest.raises(InputError, match="--llava-rad wants the folder"):
        annotations.llava_rad(tmp_path)
    with pytest.raises(InputError, match=message) as error:
        read(tmp_path, content)
    assert "gren" not in str(error.value)


def test_chexpert_labels_leave_out_what_is_not_mentioned(tmp_path):
    values = ["1.0", "0.0", "-1.0", *[""] * 11]
    header = ("subject_id", "study_id", *FINDINGS)
    write_table(tmp_path / "a.csv", header, [(1, 7, *values), (1, 8, *values)])
    labels = annotations.chexpert_labels(tmp_path / "a.csv")
    assert labels["s7"] == {FINDINGS[0]: 1.0, FINDINGS[1]: 0.0, FINDINGS[2]: -1.0}
    assert labels["s7"] is labels["s8"]                     # memory: few patterns, many studies
    write_table(tmp_path / "b.csv", header, [(1, 7, "2.0", *values[1:])])
    with pytest.raises(InputError, match="label that is none of"):
        annotations.chexpert_labels(tmp_path / "b.csv")


def test_chexgenbench_paths_of_another_form(tmp_path):
    write_table(tmp_path / "LLAVARAD_ANNOTATIONS_TRAIN.csv", ("path", "annotated_prompt"),
                [("images/1.jpg", "Edema.")])
    with pytest.raises(InputError, match="is it the right file"):
        list(annotations.chexgenbench(tmp_path))


@pytest.mark.parametrize("content, expected", [
    ("\ufeffa-1\nb.png\n", {"a-1", "b.png"}),
    ('[{"images": ["files/p10/a-1.jpg"]}, {"images": ["files/b.png"]}]', {"a-1", "b.png"}),
    ("id,split\na-1,test\n", {"a-1"}), ("x\ny\n", "names no image"), ("Sj\udcf6gren", "UTF-8"),
])
def test_ids_in_any_kind_of_list(tmp_path, content, expected):
    (tmp_path / "ids").write_text(content, encoding="utf-8", errors="surrogateescape")
    if isinstance(expected, set):
        assert annotations.read_ids(tmp_path / "ids", {"a-1", "b.png", "c"}) == expected
    else:
        with pytest.raises(InputError, match=expected):
            annotations.read_ids(tmp_path / "ids", {"a"})
