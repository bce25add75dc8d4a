"""One patient, or one film, in two splits: in a data set, between sizes and between tasks."""
import json
import os

import pytest
from PIL import Image

import prepare_mimic
from common.cli import InputError
from common.files import digest, write_json
from common.packed import Writer
from mimic import check
from mimic.leaks import refuse_leak
from mimic_tree import film, png, write_table


def pack(root, name, subjects, labels=None, films=None, **settings):
    """A data set <task>-<size> with one image a patient; subjects: {patient: split}."""
    task, size = name.split("-")
    with Writer(root / name, task, int(size), settings) as writer:
        for number, (id, split) in enumerate(subjects.items()):
            subject, _, study = id.partition(".")
            picture = film(number if films is None else films[number], int(size), int(size))
            writer.add(png(Image.fromarray(picture)), {
                "id": id, "subject": subject, "split": split, "report": f"Edema {study}.",
                "labels": {} if labels is None else labels[number]})
    info = json.loads((root / name / "dataset.json").read_text())
    files = (root / name).glob("0*")
    write_json(root / name / "dataset.json",
               {**info, "sha256": {path.name: digest(path) for path in files}})


# ---- --check ----

def refused(root, message):
    with pytest.raises(InputError, match=message):
        check.check(root)


def test_a_patient_in_two_splits_is_found_whatever_the_column(tmp_path):
    """Columns that nobody knew were packed as labels once."""
    ids = [{"patient_id": "7", "Edema": 1.0}, {"patient_id": "8"}, {"patient_id": "7"}]
    pack(tmp_path, "und-48", {"a": "train", "b": "val", "c": "val"}, ids)
    refused(tmp_path, "1 patients .* the first is 7: .*--columns subject=patient_id")
    ids[0]["patient_id"] = "9"
    pack(tmp_path, "und-48", {"a": "train", "b": "val", "c": "val"}, ids)
    assert check.check(tmp_path) == 0
    pack(tmp_path, "und-48", {"a.1": "train", "b": "val", "a.2": "val"})
    refused(tmp_path, "1 patients are in more than one split, the first is a")


def test_one_film_in_two_splits_is_found(tmp_path, capsys):
    """Under two names, of two patients; the official split has what it has."""
    splits = {"a": "train", "b": "train", "c": "test"}
    pack(tmp_path, "und-48", splits, films=[1, 1, 2])
    assert check.check(tmp_path) == 0
    pack(tmp_path, "und-48", splits, films=[1, 2, 1])
    refused(tmp_path, r"1 pictures .* the first as a \(train\) and c \(test\)")
    pack(tmp_path, "und-48", splits, films=[1, 2, 1], dataset="mimic")
    assert check.check(tmp_path) == 0 and "1 pictures are" in capsys.readouterr().out


@pytest.mark.parametrize("old, new, dataset, leaks", [
    ("und-32", "und-48", "table", True), ("gen-48", "und-48", "table", True),
    ("und-32", "und-48", "mimic", True), ("gen-48", "und-48", "mimic", False),
])
def test_an_old_size_whose_patients_were_split_otherwise_is_found(tmp_path, old, new, dataset,
                                                                  leaks):
    pack(tmp_path, old, {"a": "train", "b": "test"}, dataset=dataset)
    pack(tmp_path, new, {"a": "train", "b": "train", "c": "test"}, dataset=dataset)
    os.utime(tmp_path / old / "dataset.json", (1, 1))
    if leaks:
        refused(tmp_path, f"1 patients are in one split .* the first is b: .*Delete .*{old}, which "
                          "is older, or make all .* --overwrite")
    else:
        assert check.check(tmp_path) == 0
    assert check.check(tmp_path / new) == 0


def test_a_table_whose_split_changed_between_two_sizes(tmp_path, capsys):
    """The whole way: the second run makes another size only, and --check tells."""
    for n in range(8):
        Image.fromarray(film(n, 80, 80)).save(tmp_path / f"{n}.png")
    for size, splits in ((48, ["train"] * 6 + ["val", "test"]), (64, ["val"] * 4 + ["train"] * 4)):
        rows = [(f"{n}.png", n, split, f"Edema {n}.") for n, split in enumerate(splits)]
        write_table(tmp_path / "mine.csv", ("image", "patient", "split", "report"), rows)
        line = f"--dataset table --task und --und-sizes {size} --workers 1".split()
        assert prepare_mimic.main([*line, "--reports", str(tmp_path / "mine.csv"),
                                   "--out", str(tmp_path / "out")]) == 0
    with pytest.raises(InputError, match="6 patients are in one split .*und-48, which is older"):
        prepare_mimic.main(["--check", str(tmp_path / "out")])


# ---- joint training, and CheXGenBench's split ----

@pytest.mark.parametrize("und, gen, leaks", [
    ({"a": "train", "b": "test"}, {"a": "train", "b": "train"}, True),
    ({"a": "train", "b": "train"}, {"a": "train", "b": "val"}, True),
    ({"a": "train", "b": "test", "c": "val"}, {"a": "train", "b": "val", "d": "train"}, False),
])
def test_a_patient_whom_one_task_holds_out_may_not_train_the_other(tmp_path, und, gen, leaks):
    pack(tmp_path, "und-48", und)
    pack(tmp_path, "gen-48", gen)
    if leaks:
        with pytest.raises(InputError, match="1 patients whom one task trains on"):
            refuse_leak(tmp_path, 48, 48)
    else:
        refuse_leak(tmp_path, 48, 48)


def test_chexgenbench_may_have_patients_in_two_splits_to_draw_but_not_to_read(tmp_path, capsys):
    pack(tmp_path, "gen-48", {"a.1": "train", "a.2": "test"}, gen_split="chexgenbench")
    assert check.check(tmp_path) == 0
    assert "1 patients are in more than one split, as" in capsys.readouterr().out
    pack(tmp_path, "und-48", {"a.1": "train", "a.2": "test"}, gen_split="chexgenbench")
    with pytest.raises(InputError, match="1 patients are in more than one split"):
        check.check(tmp_path / "und-48")
