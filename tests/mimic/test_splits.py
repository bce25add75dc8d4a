"""Who trains, validates and tests: protocols, pinned tests, no leak from reading to drawing."""
from mimic import splits
from mimic.items import Item, LeftOut, hashed_split
from mimic_tree import dicom_id, write_table
from prepare_mimic import Settings


def item(name, split="train", subject=None, study=None, view="PA"):
    subject = name if subject is None else subject
    study = name if study is None else study
    return Item(name, subject, study, split, view, f"{name}.jpg")


def ids(items):
    return [item.id for item in items]


def ids_and_splits(items):
    return [(item.id, item.split) for item in items]


def test_both_tasks_follow_the_official_split():
    items = [item("a"), item("b", "val"), item("c", "test")]
    chosen, test = splits.assign(Settings(), items, LeftOut())
    assert chosen == {"und": items, "gen": items} and test == {"c"}


def test_one_image_a_study_is_the_first_pa_or_the_first_ap():
    p, q = (dict(subject=name) for name in "pq")
    items = [item("a", study="1", view="AP", **p), item("b", study="1", **p),
             item("c", study="1", **p), item("d", study="2", view="AP", **p),
             item("e", study="2", view="AP", **p), item("f", study="1", **q)]
    left_out = LeftOut()
    assert ids(splits.one_per_study(items, left_out)) == ["b", "d", "f"]
    assert {reason for _, _, reason in left_out} == {"another image of the study is kept"}


def test_a_pinned_test_takes_its_patients_from_the_other_splits(tmp_path):
    """--test-ids names the images of the test, one of which validated before."""
    items = [item("a"), item("b", "val", "p"), item("c", "val", "p"), item("d", "test"),
             item("e", "test")]
    (tmp_path / "ids.txt").write_text("b.jpg\nd\n")
    left_out = LeftOut()
    cfg = Settings(test_ids=str(tmp_path / "ids.txt"))
    chosen, test = splits.assign(cfg, items, left_out)
    assert ids_and_splits(chosen["und"]) == [("a", "train"), ("b", "test"), ("d", "test")]
    assert {(name, reason) for name, _, reason in left_out} == {
        ("c", "patient of a test image"), ("e", "not in --test-ids"),
        ("b", "understanding test, not to be trained on")}
    assert test == {"b", "d", "e"} and ids(chosen["gen"]) == ["a", "c", "d", "e"]


def test_chexgenbench_never_trains_on_the_understanding_test(tmp_path):
    """Its split pools the official one: it trains on official validation and test images."""
    a, b, c, d, e, f = (dicom_id(name) for name in "abcdef")
    items = [item(a), item(b, "val"), item(c, "test"), item(d), item(e, "test")]

    def write(split, texts):
        rows = [(f"files/p10/p10000000/s50000000/{name}.jpg", text) for name, text in texts]
        path = tmp_path / f"LLAVARAD_ANNOTATIONS_{split}.csv"
        write_table(path, ("path", "annotated_prompt"), rows)
    write("TRAIN", [(a, "Edema."), (b, "Clear."), (c, "Clear."), (a, "Other."), (f, " ")])
    write("TEST", [(d, "Clear."), (e, "Clear.")])
    cfg = Settings(gen_split="chexgenbench", chexgenbench=str(tmp_path))
    left_out = LeftOut()
    chosen, _ = splits.assign(cfg, items, left_out)
    assert ids_and_splits(chosen["gen"]) == [(a, "train"), (b, "val"), (d, "test"), (e, "test")]
    assert chosen["gen"][0].text == ("Edema.", None, "chexgenbench") and chosen["und"] == items
    assert [reason for _, _, reason in left_out] == [
        "duplicate row", "no text", "understanding test, not to be trained on"]


def test_llava_rads_tests_are_parsed_by_rules_and_gpt4s_text_is_for_drawing(monkeypatch):
    texts = {"rule-based": {"a": ("rule a", None, "r"), "c": ("rule c", None, "r")},
             "gpt4": {name: (f"gpt {name}", None, "g") for name in "abc"}}
    monkeypatch.setattr(splits.annotations, "llava_rad", lambda folder: texts)
    left_out = LeftOut()
    items = [item("a"), item("b"), item("c", "test"), item("d")]
    chosen, _ = splits.assign(Settings(llava_rad="folder"), items, left_out)
    assert [item.text[0] for item in chosen["und"]] == ["rule a", "rule c"]
    assert [item.text[0] for item in chosen["gen"]] == ["gpt a", "gpt b", "rule c"]
    assert {reason for _, _, reason in left_out} == {"no findings in the LLaVA-Rad annotations"}


def test_one_job_an_image_for_both_tasks():
    """Of rows that name one image, or have one id, the first counts; --limit counts the rest."""
    left_out = LeftOut()
    a, b = item("a"), item("b")
    same_image, same_id = item("c"), item("b")
    same_image.image, same_id.image = a.image, "other.jpg"
    jobs = splits.by_image({"und": [a, b, same_image, same_id], "gen": [a]}, left_out)
    assert jobs == [(a.image, [("und", a), ("gen", a)]), (b.image, [("und", b)])]
    assert splits.limited(jobs, 0, left_out) == jobs
    assert splits.limited(jobs, 1, left_out) == jobs[:1]
    assert left_out == [("c", "a.jpg", "another row has this image"),
                        ("b", "other.jpg", "duplicate row"), ("b", "b.jpg", "beyond --limit")]


def test_splits_by_hash_do_not_change():
    """Open-I has no official split: whoever prepared it earlier must get the same one."""
    names = [hashed_split(f"CXR{n}") for n in range(3955)]
    assert [names.count(split) for split in ("train", "val", "test")] == [2735, 412, 808]
