"""`evaluate.py features` and `compare`: other people's images and reports, from their files."""
import json

import numpy as np
import pytest

from common.cli import InputError
from evaluation import chexbert, compare, features, image_metrics, text_metrics


@pytest.fixture
def compared(tmp_path):
    """compared(a, b, *more words) -> (exit code, what the JSON file says)."""
    def run(*words):
        words = [*words, "--out", tmp_path / "new" / "out", "--bootstrap", 0]
        code = compare.main([str(word) for word in words])
        return code, json.loads((tmp_path / "new" / "out.json").read_text())
    return run


@pytest.fixture
def train(feature_files):
    """The features of the training images."""
    return features.load(feature_files / "train.safetensors")


# ---- images ----

def test_a_feature_file_and_the_folder_of_its_images(
        feature_files, vision_encoder, train, compared):
    """Both give the metrics of their rows, in one block and in two."""
    made = features.load(feature_files / "made.safetensors")
    code, by_file = compared(feature_files / "train.safetensors",
                             feature_files / "made.safetensors", "--shards", 1, 2)
    _, by_folder = compared(feature_files / "train.safetensors",
                            feature_files / "made", "--shards", 1, 2, *vision_encoder)
    assert code == 0 and not by_file["paired"]
    for blocks in (1, 2):
        wanted = image_metrics.sharded(train.x, made.x, blocks)
        for page in (by_file, by_folder):
            numbers = page["scores"]["generation"][str(blocks)]
            values = {name: number["value"] for name, number in numbers.items()}
            assert values == pytest.approx(wanted)


def test_the_same_names_are_pairs_in_any_order(feature_files, train, tmp_path, compared):
    """Blocks are cut in the order of the first file: equal features are at distance 0 in each."""
    order = np.random.default_rng(0).permutation(len(train.ids))
    shuffled = features.Features([train.ids[i] for i in order], train.x[order], train.encoder)
    features.save(tmp_path / "b.safetensors", shuffled)
    _, page = compared(feature_files / "train.safetensors", tmp_path / "b.safetensors")
    assert page["paired"] and page["scores"]["generation"]["4"]["fd"]["value"] == 0


def test_what_failed_on_one_side_is_left_out_on_both(feature_files, train, tmp_path, compared):
    *others, lost = train.ids
    path = tmp_path / "b.safetensors"
    files = feature_files / "train.safetensors", path, "--shards", 1
    features.save(path, features.Features(others, train.x[:-1], train.encoder, "", {lost: "why"}))
    code, page = compared(*files)
    assert code == 1 and page["failures"] == {lost: "why"} and page["paired"]
    fd = page["scores"]["generation"]["1"]["fd"]
    assert fd["n"] == 23 and fd["value"] == pytest.approx(0, abs=1e-9)

    # if it is only missing, and nobody says that it failed, they are two sets
    features.save(path, features.Features(others, train.x[:-1], train.encoder))
    code, page = compared(*files)
    assert code == 0 and not page["paired"]
    assert "23 of 24 and 23 names are in both sets" in page["warnings"][1]


def test_what_failed_is_named_even_where_too_few_images_are_left(train, tmp_path, capsys):
    lost = {"lost": "it is damaged"}
    few = features.Features(train.ids[:3], train.x[:3], train.encoder, "", lost)
    features.save(tmp_path / "few.safetensors", few)
    with pytest.raises(InputError, match="features of 6 or more images are needed, these are 3 x "):
        compare.main([str(tmp_path / "few.safetensors")] * 2 + ["--out", str(tmp_path / "out")])
    assert capsys.readouterr().err == "error: lost: it is damaged\n"


def test_few_images_of_other_names(feature_files, train, tmp_path, compared):
    """They are compared as two sets, and without the blocks that they are too few for."""
    names = [f"theirs {name}" for name in train.ids[:20]]
    features.save(tmp_path / "b.safetensors",
                  features.Features(names, train.x[:20], train.encoder))
    code, page = compared(feature_files / "train.safetensors", tmp_path / "b.safetensors")
    assert code == 0 and list(page["scores"]["generation"]) == ["1"]
    _, sets, blocks = page["warnings"]
    assert sets.startswith("0 of 24 and 20 names are in both sets: they are compared as two sets")
    assert "4 blocks" in blocks and "need 24 images or more, there are 20" in blocks


# ---- reports ----

def write(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    return path


def test_two_files_of_reports(compared, chexbert_folder, tmp_path):
    """In any order; a report may hold what Unicode calls the end of a line."""
    references = ["The lungs are clear.", "Small effusion.", "Normal heart."]
    predictions = ["Clear lungs.", "Small left\u2028 effusion.", ""]
    rows = [{"id": i, "report": text} for i, text in enumerate([*references, "No effusion."])]
    reports = [{"id": i, "report": text} for i, text in enumerate(predictions)]
    reports = [{"id": 3, "error": "no memory"}, *reports[::-1]]
    files = write(tmp_path / "a.jsonl", rows), write(tmp_path / "b.jsonl", reports)
    code, page = compared(*files, "--chexbert", chexbert_folder, "--python", tmp_path / "no")
    assert code == 1 and page["failures"] == {"3": "no memory"}
    assert any("RadGraph F1 is left out (--python" in sentence for sentence in page["left_out"])
    numbers = page["scores"]["understanding"]
    model = chexbert.load(chexbert_folder)
    codes = [model.label(texts, progress=False) for texts in (references, predictions)]
    wanted = text_metrics.chexbert_scores(*codes)
    assert {name: numbers[name]["value"] for name in wanted} == pytest.approx(wanted)
    assert page["details"].keys() == text_metrics.POLICIES.keys()
    pytest.importorskip("rouge_score")
    rouge = text_metrics.rouge_l(predictions, references).mean()
    assert numbers["ROUGE_L"]["n"] == 3 and numbers["ROUGE_L"]["value"] == pytest.approx(rouge)


def test_two_systems_of_reports_have_a_p(compared, tmp_path):
    """B is the references in another order of lines; what fails in A counts for no side."""
    pytest.importorskip("rouge_score")
    references = [{"id": i, "report": f"Nodule {i} in the left lung."} for i in range(8)]
    a = [{"id": i, "report": "Clear."} for i in range(7)] + [{"id": 7, "error": "torn"}]
    files = [write(tmp_path / f"{name}.jsonl", rows)
             for name, rows in (("r", references), ("a", a), ("b", references[::-1]))]
    code, page = compared(*files, "--python", tmp_path / "no", "--chexbert", tmp_path / "no")
    assert code == 1 and page["failures"] == {"7": "torn"}
    row = page["scores"]["paired reports"]["ROUGE_L"]
    assert (row["a"]["value"], row["b"]["value"], row["b"]["n"]) == (0, 1, 7)
    assert 1 / 1001 <= row["difference"]["p"] < 0.05, "2 of 2^7 swaps are as far apart"


def test_two_systems_of_images_have_a_p(feature_files, train, tmp_path, compared):
    """By name, in any order of the rows; A is shifted, B is not."""
    order = np.random.default_rng(0).permutation(len(train.ids))
    ids = [train.ids[i] for i in order]
    for name, shift in (("a", 1), ("b", 0.01)):
        features.save(tmp_path / f"{name}.safetensors",
                      features.Features(ids, train.x[order] + np.float32(shift), train.encoder))
    files = [feature_files / "train.safetensors",
             *(tmp_path / f"{name}.safetensors" for name in "ab")]
    code, page = compared(*files, "--shards", 1, "--swaps", 30)
    row = page["scores"]["paired images, blocks: 1"]["fd"]
    C = train.x.shape[1]
    assert code == 0 and page["paired"]
    assert row["a"]["value"] == pytest.approx(C) and row["b"]["value"] == pytest.approx(C / 1e4)
    assert row["difference"]["p"] == 1 / 31


# ---- bad input ----

FILES = {                               # what stands in the files of reports below
    "a": '{"id": "a", "report": "Clear."}\n{"id": "x", "report": "Clear."}\n',
    "other": '{"id": "a", "report": "Clear."}\n{"id": "y", "report": "Clear."}\n',
    "short": '{"id": "a", "report": "Clear."}\n',
    "none": '{"id": "a", "report": null}\n{"id": "x", "report": "Clear."}\n',
    "twice": '{"id": "a", "report": "x"}\n{"id": "a", "report": "y"}\n',
    "lists": '{"id": ["a"], "report": "x"}\n',
    "failed": '{"id": "a", "error": "why"}\n',
}


@pytest.mark.parametrize("words, sentence", [
    ("", "say what to compare"),
    ("a.jsonl {made}.safetensors", "is no .jsonl file"),
    ("a.jsonl other.jsonl", "without a report: x; without a reference: y"),
    ("a.jsonl none.jsonl", "row a has no 'report' that is text"),
    ("a.jsonl lists.jsonl", "every line should be like"),
    ("twice.jsonl short.jsonl", "the id a stands there twice"),
    ("failed.jsonl short.jsonl", "there is no report to score"),
    ("a.jsonl a.jsonl --chexbert chexbert", "chexbert"),
    ("a.jsonl a.jsonl other.jsonl", "without a report: x; without a reference: y"),
    ("a.jsonl a.jsonl {made}", "is no .jsonl file"),
    ("{made}.safetensors {made}.safetensors {held}.safetensors",
     "share 0 of 14 and 4 names: a paired test needs two images of each prompt"),
    ("{made}.safetensors {made}.safetensors --swaps -1", "--bootstrap and --swaps must be 0 or"),
    ("{made}.safetensors other.safetensors", "features of two encoders cannot be compared"),
    ("{made}.safetensors {made}.safetensors --shards 4", "4: 14 and 14 images are too few"),
    ("{made}.safetensors {made}.safetensors --k 0", "--shards, --k and --batch must be at least 1"),
])
def test_bad_input_is_one_sentence_and_nothing_is_written(
        feature_files, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "chexbert").mkdir()
    made = features.load(feature_files / "made.safetensors")
    features.save("other.safetensors", features.Features(made.ids, made.x, "rad-dino, straight, 0"))
    words = words.format(made=feature_files / "made", held=feature_files / "held").split()
    with pytest.raises(InputError, match=sentence) as error:
        compare.main([*words, "--bootstrap", "0"] if words else [])
    assert "\n" not in str(error.value) and not list(tmp_path.glob("compare*"))


@pytest.mark.parametrize("words, sentence", [
    ("", "say which images"),
    ("--images {made} --route x --rad-dino {made}", "--route x is none of"),
    ("--images {made} --rad-dino {made}/no", "there are no weights at"),
    ("--images {tmp}", "holds no image"),
])
def test_bad_input_of_features_is_one_sentence(feature_files, tmp_path, words, sentence):
    words = words.format(made=feature_files / "made", tmp=tmp_path).split()
    with pytest.raises(InputError, match=sentence):
        compare.extract_features(words)
