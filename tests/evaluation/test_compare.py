"""`evaluate.py features` and `compare`: other people's images and reports, from their files."""
import json
import shutil

import numpy as np
import pytest

from common.cli import InputError
from evaluation import chexbert, compare, features, image_metrics, text_metrics


@pytest.fixture
def compared(tmp_path):
    """compared(a, b, *options) -> (exit code, what the JSON file says)."""
    def run(a, b, *options):
        words = [str(a), str(b), "--out", str(tmp_path / "new" / "out"), "--bootstrap", "0"]
        code = compare.main([*words, *map(str, options)])
        return code, json.loads((tmp_path / "new" / "out.json").read_text())
    return run


@pytest.fixture
def reports(tmp_path):
    """reports(name, a="text", b={...}) -> the path of a file of JSON lines."""
    def write(name, **rows):
        path = tmp_path / f"{name}.jsonl"
        lines = []
        for key, row in rows.items():
            row = row if isinstance(row, dict) else {"report": row}
            lines.append(json.dumps({"id": key, **row}) + "\n")
        path.write_text("".join(lines))
        return path
    return write


# ---- images ----

def test_two_feature_files(feature_files, compared):
    code, page = compared(feature_files / "train.safetensors", feature_files / "made.safetensors",
                          "--shards", 1, 2, "--bootstrap", 3)
    train = features.load(feature_files / "train.safetensors")
    made = features.load(feature_files / "made.safetensors")
    assert len(train.ids) == 24 and made.ids == [f"m{i:02d}" for i in range(14)]
    assert code == 0 and not page["paired"]
    for blocks in (1, 2):
        numbers = page["scores"]["generation"][str(blocks)]
        wanted = image_metrics.sharded(train.x, made.x, blocks)
        assert {name: number["value"] for name, number in numbers.items()} == pytest.approx(wanted)
    assert page["scores"]["generation"]["1"]["fd"]["interval"]


def test_a_folder_is_the_same_as_its_feature_file(feature_files, vision_encoder, compared):
    train = feature_files / "train.safetensors"
    _, by_file = compared(train, feature_files / "made.safetensors", "--shards", 1)
    _, by_folder = compared(train, feature_files / "made", "--shards", 1, *vision_encoder)
    for name, number in by_file["scores"]["generation"]["1"].items():
        assert by_folder["scores"]["generation"]["1"][name]["value"] == pytest.approx(
            number["value"])


def test_the_same_names_are_pairs_in_any_order(feature_files, tmp_path, compared):
    """Blocks are cut in the order of the first file: equal features are at distance 0 in each."""
    train = features.load(feature_files / "train.safetensors")
    order = np.random.default_rng(0).permutation(len(train.ids))
    shuffled = features.Features([train.ids[i] for i in order], train.x[order], train.encoder)
    features.save(tmp_path / "b.safetensors", shuffled)
    _, page = compared(feature_files / "train.safetensors", tmp_path / "b.safetensors")
    assert page["paired"] and page["scores"]["generation"]["4"]["fd"]["value"] == 0


def test_what_failed_on_one_side_is_left_out_on_both(feature_files, tmp_path, compared):
    train = features.load(feature_files / "train.safetensors")
    *others, lost = train.ids
    path = tmp_path / "b.safetensors"
    files = feature_files / "train.safetensors", path
    features.save(path, features.Features(others, train.x[:-1], train.encoder, "", {lost: "why"}))
    code, page = compared(*files, "--shards", 1, 2)
    assert code == 1 and page["failures"] == {lost: "why"} and page["paired"]
    for numbers in page["scores"]["generation"].values():
        assert numbers["fd"]["value"] == pytest.approx(0, abs=1e-9) and numbers["fd"]["n"] == 23

    # if it is only missing, and nobody says that it failed, they are two sets
    features.save(path, features.Features(others, train.x[:-1], train.encoder))
    code, page = compared(*files, "--shards", 1)
    assert code == 0 and not page["paired"]
    assert "23 of 24 and 23 names are in both sets" in page["warnings"][1]


def test_images_that_cannot_be_read_are_named_and_counted(
        feature_files, vision_encoder, tmp_path, capsys):
    folder = shutil.copytree(feature_files / "made", tmp_path / "made")
    (folder / "m03.png").write_bytes((folder / "m03.png").read_bytes()[:60])
    (folder / "m05.png").write_bytes(b"")
    path = str(tmp_path / "x.safetensors")
    words = ["--images", str(folder), "--out", path, *vision_encoder]
    assert compare.extract_features(words) == 1
    printed = capsys.readouterr()
    assert "2 could not be read" in printed.out and printed.err.count("error: ") == 2
    extracted, before = features.load(path), features.load(feature_files / "made.safetensors")
    assert sorted(extracted.failures) == ["m03", "m05"] and len(extracted.ids) == 12
    assert np.abs(extracted.x - before.pick(extracted.ids)).max() < 1e-5


# ---- reports ----

def test_two_files_of_reports(reports, compared):
    references = reports("there", a="The lungs are clear.", b="Small effusion.", c="No effusion.")
    predictions = reports("said", b="Small effusion.", a="Clear lungs.", c={"error": "no memory"})
    code, page = compared(references, predictions)
    assert code == 1 and page["failures"] == {"c": "no memory"}
    assert any("CheXbert F1" in sentence and "chexbert.pth" in sentence
               for sentence in page["left_out"])
    pytest.importorskip("rouge_score")
    number = page["scores"]["understanding"]["ROUGE_L"]
    other = text_metrics.rouge_l(["Clear lungs."], ["The lungs are clear."])[0]
    assert number["n"] == 2 and number["value"] == pytest.approx((1 + other) / 2)


def test_reports_by_chexbert(reports, compared, chexbert_folder, tmp_path):
    references = ["The lungs are clear.", "Small effusion.", "Normal heart."]
    predictions = ["Clear lungs.", "Small left effusion.", ""]
    there = reports("there", **dict(zip("abc", references)))
    said = reports("said", **dict(zip("abc", predictions)))
    code, page = compared(there, said, "--chexbert", chexbert_folder)
    model = chexbert.load(chexbert_folder)
    wanted = text_metrics.chexbert_scores(model.label(references, progress=False),
                                          model.label(predictions, progress=False))
    numbers = page["scores"]["understanding"]
    assert code == 0 and len(wanted) == 8
    assert {name: numbers[name]["value"] for name in wanted} == pytest.approx(wanted)
    assert page["details"].keys() == text_metrics.POLICIES.keys()
    assert not any("CheXbert" in sentence for sentence in page["left_out"])
    assert "uncertain as positive (Table 2)" in (tmp_path / "new" / "out.md").read_text()


def test_files_that_others_wrote(tmp_path, compared):
    """The last line may lack its end, and a report may hold what Unicode calls one."""
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text(
            '{"id": "a", "report": "no\u2028 effusion"}\n{"id": "b", "report": "clear"}')
    nowhere = tmp_path / "nowhere"
    code, page = compared(tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--python", nowhere)
    assert code == 0
    assert any("RadGraph F1 is left out (--python" in sentence for sentence in page["left_out"])
    pytest.importorskip("rouge_score")
    assert page["scores"]["understanding"]["ROUGE_L"]["n"] == 2


# ---- bad input ----

FILES = {                               # what stands in the files of reports below
    "a": '{"id": "a", "report": "Clear."}\n{"id": "x", "report": "Clear."}\n',
    "other": '{"id": "a", "report": "Clear."}\n{"id": "y", "report": "Clear."}\n',
    "short": '{"id": "a", "report": "Clear."}\n',
    "none": '{"id": "a", "report": null}\n{"id": "x", "report": "Clear."}\n',
    "text": "Clear.\nClear.\n",
    "torn": '{"id": "a", "rep',
    "twice": '{"id": "a", "report": "x"}\n{"id": "a", "report": "y"}\n',
    "numbers": '{"id": 1, "report": "x"}\n',
    "lists": '{"id": ["a"], "report": "x"}\n',
    "failed": '{"id": "a", "error": "why"}\n',
}


@pytest.mark.parametrize("words, sentence", [
    ("", "say what to compare"),
    ("a.safetensors", "stands alone"),
    ("a.jsonl {made}.safetensors", "is no .jsonl file"),
    ("a.jsonl other.jsonl", "without a report: x; without a reference: y"),
    ("a.jsonl short.jsonl", "2 references and 1 reports"),
    ("a.jsonl numbers.jsonl", "without a reference: 1"),
    ("a.jsonl none.jsonl", "row a has no 'report' that is text"),
    ("a.jsonl no.jsonl", "no.jsonl"),
    ("a.jsonl text.jsonl", "line 1 of text.jsonl is not JSON"),
    ("a.jsonl torn.jsonl", "line 1 of torn.jsonl is not JSON"),
    ("a.jsonl lists.jsonl", "every line should be like"),
    ("a.jsonl latin.jsonl", "latin.jsonl is .*not a text file in UTF-8"),
    ("twice.jsonl short.jsonl", "the id a stands there twice"),
    ("failed.jsonl short.jsonl", "there is no report to score"),
    ("a.jsonl a.jsonl --chexbert chexbert", "chexbert"),
    ("no.safetensors no.safetensors", "no features at"),
    ("{made}.safetensors other.safetensors", "features of two encoders cannot be compared"),
    ("{made}.safetensors nan.safetensors", "1 of 14 rows of features are not finite"),
    ("{made}.safetensors {made}.safetensors", "--shards 4: 14 and 14 images are too few"),
    ("{made}.safetensors {held}.safetensors --shards 1", "6 or more rows"),
    ("{made}.safetensors {made}.safetensors --k 0", "--shards, --k and --batch must be at least 1"),
])
def test_bad_input_is_one_sentence_and_nothing_is_written(
        feature_files, tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "latin.jsonl").write_bytes('{"id": "é"}'.encode("latin-1"))
    (tmp_path / "chexbert").mkdir()
    made = features.load(feature_files / "made.safetensors")
    features.save("other.safetensors", features.Features(made.ids, made.x, "rad-dino, straight, 0"))
    made.x[3, 1] = np.nan
    features.save("nan.safetensors", made)
    words = words.format(made=feature_files / "made", held=feature_files / "held").split()
    with pytest.raises(InputError, match=sentence) as error:
        compare.main([*words, "--bootstrap", "0"] if words else [])
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("compare*"))


@pytest.mark.parametrize("words, sentence", [
    ("", "say which images"),
    ("--images {made} --route x --rad-dino {made}", "--route x is none of"),
    ("--images {made} --rad-dino {made}/no", "there are no weights at"),
    ("--images {made} --encoder dino", "--encoder dino is none of rad-dino, vision"),
    ("--images {made} --batch 0", "--batch must be at least 1"),
    ("--images {tmp}", "holds no image"),
    ("--images {tmp}/no", "no folder of images"),
])
def test_bad_input_of_features_is_one_sentence(feature_files, tmp_path, words, sentence):
    words = words.format(made=feature_files / "made", tmp=tmp_path).split()
    with pytest.raises(InputError, match=sentence):
        compare.extract_features(words)
