"""`evaluate.py gen`: each wording is drawn once from its own noise, judged, and read again."""
import shutil

import numpy as np
import pytest
from PIL import Image

import sample
import weights
from common.cli import InputError
from evaluation import chexbert, features, gen, image_metrics, radgraph_biovil, text_metrics
from evaluation import worklist


@pytest.fixture(scope="module")
def swept_run(words, tmp_path_factory):
    """What `evaluate.py gen` leaves with a sweep over two numbers of steps."""
    out = tmp_path_factory.mktemp("swept") / "out"
    options = "--sweep steps=1,2 cfg=1 --sweep-num 12".split()
    assert gen.main(words("gen", out, *options)) == 0
    return out


# ---- the images ----

def test_each_wording_is_drawn_once_from_the_noise_of_its_number(phantom, run, gen_run):
    rows = worklist.read_rows(gen_run / "images.jsonl")
    images = features.PackedImages(phantom / "gen-32", "train")
    captions = [row["report"] for row in images.rows.values()]
    wordings = list(dict.fromkeys(captions))
    assert [images.rows[name]["report"] for name in rows] == wordings

    name = list(rows)[3]
    model, vae, tokenizer = weights.load(run)
    alone = sample.generate_images(model, vae, tokenizer, [wordings[3]], sample.Sampling(steps=2),
                                   numbers=[3], progress=False)[0, 0]
    drawn = Image.open(gen_run / "images" / rows[name]["file"])
    assert np.abs(np.array(drawn).astype(int) - alone).max() <= 1
    assert drawn.text["reports"] == wordings[3] and drawn.text["number"] == "3"
    assert drawn.text["steps"] == "2" and "not for clinical use" in drawn.text["notice"]


def test_a_report_that_cannot_be_drawn_is_named(words, altered, tmp_path, result):
    def change(n, row):
        if n == 0:
            row["report"] = "No effusion. " * 100
        if n == 1:
            row["report"] = " "
    root = altered("gen-32", change)
    assert gen.main(words("gen", tmp_path / "out", data=root)) == 1
    failures = result(tmp_path / "out")["failures"]
    assert list(failures) == ["train-000000", "train-000001"]
    assert "tokens, this checkpoint reads 64" in failures["train-000000"]
    assert failures["train-000001"] == "the report is empty."
    assert not list((tmp_path / "out" / "images").glob("train-00000[01]*"))


def test_ids_that_no_file_name_tells_apart_are_refused(words, altered, tmp_path):
    def change(n, row):
        row["id"] = {0: "a/b", 1: "a:b"}.get(n, row["id"])
    with pytest.raises(InputError, match="differ only in characters that no file name can hold"):
        gen.main(words("gen", tmp_path / "out", data=altered("gen-32", change)))


# ---- the scores ----

def test_fd_to_coverage_are_those_of_the_two_feature_files(phantom, gen_run, result):
    real = features.load(gen_run / "real.safetensors")
    drawn = features.load(gen_run / "generated.safetensors")
    rows = worklist.read_rows(gen_run / "images.jsonl")
    assert real.ids == drawn.ids == list(rows) and real.encoder == drawn.encoder
    scores = result(gen_run)["scores"]
    wanted = image_metrics.distribution(real.x, drawn.x)
    for name in image_metrics.NAMES:
        assert scores["generation"]["1"][name]["value"] == pytest.approx(wanted[name], abs=1e-9)

    labels = features.PackedImages(phantom / "gen-32", "train").rows
    for finding, row in scores["findings"].items():
        ids = [name for name in real.ids
               if finding in [fact[0] for fact in labels[name]["labels"]]]
        assert row["n_real"] == len(ids) and row["few"]
        wanted = image_metrics.fd(real.pick(ids), drawn.pick(ids))
        assert row["fd"]["value"] == pytest.approx(wanted)


def test_the_result_says_what_its_numbers_cannot_be_compared_with(gen_run, result):
    page = result(gen_run)
    features_differ, few_images = page["warnings"]
    assert "the paper's of RAD-DINO" in features_differ
    assert "fewer than 768 images each: mostly the bias" in few_images
    for name, row in page["scores"]["findings"].items():
        assert f"{name} ({row['n_real']})" in few_images
    assert any("alignment score is left out" in sentence and "hi-ml-multimodal" in sentence
               for sentence in page["left_out"])
    text = (gen_run / "result.md").read_text()
    assert features_differ in text and "Features: vision tower" in text
    assert "(paper)" not in text, "FD of another encoder is on another scale"
    assert (gen_run / "pairs.png").exists()


def test_a_sweep_scores_every_combination(swept_run, gen_run, result):
    scores = result(swept_run)["scores"]
    assert [(row["steps"], row["cfg"]) for row in scores["sweep"]] == [(1, 1.0), (2, 1.0)]
    assert all(row["cycle_F1"]["interval"] and row["fd"]["n"] == 12 for row in scores["sweep"])
    assert scores["generation"] == result(gen_run)["scores"]["generation"]
    assert len(list((swept_run / "sweep" / "steps1-cfg1" / "images").iterdir())) == 12


def test_chexpert_labels_and_chexbert_serve_for_radiographs(
        words, altered, chexbert_folder, tmp_path, result):
    """As MIMIC's rows are: findings by their true names with 1, 0 or -1."""
    def change(n, row):
        row["source"] = "rule-based"
        row["labels"] = {"Support Devices": 1.0, "Edema": (1.0, 0.0, -1.0)[n % 3]}
    root, out = altered("gen-32", change), tmp_path / "out"
    assert gen.main(words("gen", out, "--chexbert", chexbert_folder, data=root)) == 0
    scores = result(out)["scores"]
    rows = features.PackedImages(root / "gen-32", "train").rows
    again = worklist.read_rows(out / "again.jsonl")
    with_edema = [name for name in again if rows[name]["labels"]["Edema"] == 1]
    assert 0 < len(with_edema) < len(again)
    counts = {name: row["n_real"] for name, row in scores["findings"].items()}
    assert counts == {"Edema": len(with_edema), "Support Devices": len(again)}
    assert list(counts) == ["Edema", "Support Devices"], "in the order of Table 4"
    assert "| Edema |" in (out / "result.md").read_text()

    model = chexbert.load(chexbert_folder)
    references = model.label([rows[name]["report"] for name in again], progress=False)
    predictions = model.label([row["report"] for row in again.values()], progress=False)
    for name, value in text_metrics.chexbert_scores(references, predictions).items():
        assert scores["cycle"][name]["value"] == pytest.approx(value)


def test_alignment_stands_beside_fd_or_alone(words, gen_run, tmp_path, monkeypatch, result):
    monkeypatch.setattr(radgraph_biovil, "alignment",
                        lambda jobs, python: ([0.1234] * len(jobs), []))
    out = shutil.copytree(gen_run, tmp_path / "out")
    assert gen.main(words("gen", out)) == 0
    scores = result(out)["scores"]
    assert scores["generation"]["1"]["alignment"]["value"] == 0.123, "each rounded to 3 decimals"
    assert "alignment" not in scores

    # without RAD-DINO there is no FD
    no_encoder = ["--encoder", "rad-dino", "--rad-dino", tmp_path / "no"]
    assert gen.main(words("gen", out, *no_encoder)) == 0
    page = result(out)
    assert page["scores"]["alignment"]["alignment"]["value"] == 0.123
    assert "generation" not in page["scores"] and "cycle" in page["scores"]
    assert any(sentence.startswith("FD, KD, precision") and "microsoft/rad-dino" in sentence
               for sentence in page["left_out"])


# ---- the real images ----

def test_a_real_image_that_cannot_be_read_is_left_out_on_both_sides(
        words, damaged, tmp_path, result):
    root, name = damaged("gen-32", 0)
    assert gen.main(words("gen", tmp_path / "out", data=root)) == 1
    page = result(tmp_path / "out")
    n = len(worklist.read_rows(tmp_path / "out" / "images.jsonl"))
    assert list(page["failures"]) == [name]
    assert page["scores"]["generation"]["1"]["fd"]["n"] == n - 1
    assert (tmp_path / "out" / "pairs.png").exists(), "the picture shows the others"


def test_real_images_may_come_from_a_folder(phantom, words, gen_run, tmp_path):
    """The original films instead of the packed ones, matched by name."""
    images = features.PackedImages(phantom / "gen-64", "train")
    films = tmp_path / "films" / "p10"
    films.mkdir(parents=True)
    for name in images.ids:
        images.read(name).save(films / f"{name}.png")
    out = shutil.copytree(gen_run, tmp_path / "out")
    assert gen.main(words("gen", out, "--real", films.parent)) == 0
    real, packed = (features.load(path / "real.safetensors") for path in (out, gen_run))
    assert real.source == str(films.parent.resolve()) and real.ids == packed.ids
    assert not np.array_equal(real.x, packed.x)

    (films / f"{images.ids[0]}.png").unlink()
    with pytest.raises(InputError, match="lacks 1 of .* real images, the first is train-000000"):
        gen.main(words("gen", out, "--real", films.parent))


def test_real_images_may_come_from_a_feature_file(words, gen_run, tmp_path, result):
    out = shutil.copytree(gen_run, tmp_path / "out")
    real = features.load(gen_run / "real.safetensors")
    first, *others = real.ids
    path = tmp_path / "few.safetensors"

    def save(failures):
        features.save(path, features.Features(
            others, real.x[1:], real.encoder, real.source, failures))

    save({})
    with pytest.raises(InputError, match=f"few.safetensors lacks 1 of {len(real.ids)} real images"):
        gen.main(words("gen", out, "--real", path))
    save({first: "broken", "another": "broken"})
    assert gen.main(words("gen", out, "--real", path)) == 1
    page = result(out)
    assert page["failures"] == {first: "broken"}, "of the reports of this run alone"
    assert page["scores"]["generation"]["1"]["fd"]["n"] == len(others)

    features.save(path, features.Features(real.ids, real.x, "rad-dino, straight, 00"))
    with pytest.raises(InputError, match="extract both with one"):
        gen.main(words("gen", out, "--real", path))


# ---- what is refused before the hours of drawing ----

@pytest.mark.parametrize("options, sentence", [
    (["--limit", "20", "--shards", "4"], "--shards 4 needs 24 reports or more, there are 20"),
    (["--sweep", "steps=1", "--sweep-num", "5"], "--sweep-num must be 6 or more"),
    (["--sweep", "steps=a"], "--sweep steps=a is not like"),
    (["--sweep", "cfg=1..2"], "--sweep cfg=1..2 is not like"),
    (["--sweep", "steps=1", "steps=2"], "each setting once"),
    (["--encoder", "dino"], "--encoder dino is none of rad-dino, vision"),
    (["--solver", "foo"], "--solver foo is none of"),
    (["--show", "0"], "--shards, --show and --sweep-num must be at least 1"),
    (["--preset", "realease"], "no preset 'realease'; there are: release"),
])
def test_a_run_that_cannot_end_well_is_refused_at_once(
        words, tmp_path, monkeypatch, options, sentence):
    monkeypatch.setattr(sample, "generate_images", None)
    with pytest.raises(InputError, match=sentence):
        gen.main(words("gen", tmp_path / "out", *options))


def test_a_sweep_without_anything_to_measure_is_refused(words, altered, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "generate_images", None)

    def no_phantom(n, row):
        row["source"] = "openi"
    options = ["--sweep", "steps=1", "--encoder", "rad-dino", "--rad-dino", tmp_path / "no",
               "--chexbert", tmp_path / "no"]
    with pytest.raises(InputError, match="--sweep has nothing to measure"):
        gen.main(words("gen", tmp_path / "out", *options, data=altered("gen-32", no_phantom)))
