"""`evaluate.py gen`: each wording is drawn once from its own noise, judged, and read again."""
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import sample
import weights
from common import worklist
from common.cli import InputError
from evaluation import (
    chexbert, drawing, features, gen, image_metrics, radgraph_biovil, text_metrics)


@pytest.fixture
def again(words, gen_run, tmp_path, result):
    """again(*options) -> (exit code, result.json) of a copy of gen_run that is scored again."""
    out = shutil.copytree(gen_run, tmp_path / "again")

    def score(*options):
        code = gen.main(words("gen", out, *options))
        return code, result(out)
    return score


# ---- the images ----

def test_each_wording_is_drawn_once_from_the_noise_of_its_number(phantom, run, gen_run):
    rows = worklist.read_rows(gen_run / "images.jsonl")
    data = features.PackedImages(phantom / "gen-32", "train").rows
    wordings = list(dict.fromkeys(row["report"] for row in data.values()))
    assert [data[name]["report"] for name in rows] == wordings[:12]

    # number 5 is the second of its batch
    model, vae, tokenizer = weights.load(run)
    alone = sample.generate_images(model, vae, tokenizer, [wordings[5]], sample.Sampling(steps=2),
                                   numbers=[5], progress=False)[0, 0]
    drawn = Image.open(gen_run / "images" / list(rows.values())[5]["file"])
    assert np.abs(np.array(drawn).astype(int) - alone).max() <= 1
    assert drawn.text["reports"] == wordings[5] and drawn.text["number"] == "5"
    assert drawn.text["steps"] == "2" and "not for clinical use" in drawn.text["notice"]


def test_two_ids_must_not_share_a_file():
    rows = {"a/b": {"report": "Clear."}, "a:b": {"report": "Edema."}}
    with pytest.raises(InputError, match="differ only in characters that no file name can hold"):
        drawing.prompts_of(SimpleNamespace(rows=rows))


def test_released_weights_are_drawn_with_the_settings_of_the_release(monkeypatch):
    def settings(double_bos, *argv):
        model = SimpleNamespace(cfg=SimpleNamespace(double_bos=double_bos))
        cfg = gen.GenConfig(preset="release" if "--preset=release" in argv else "")
        cfg = sample.preset_for(model, cfg, argv, "")
        return cfg.steps, cfg.solver, cfg.shift

    assert settings(True) == (49, "euler", 3.0)
    assert settings(True, "--steps=8") == (8, "euler", 3.0), "what is given stays"
    assert settings(False) == (16, "ab2", 1.0)

    # and the command asks for it: its size comes from the preset
    def latent_side(model, vae, size):
        raise InputError(f"size {size}")
    model = SimpleNamespace(cfg=SimpleNamespace(double_bos=True))
    monkeypatch.setattr(weights, "load", lambda *args, **options: (model, None, None))
    monkeypatch.setattr(sample, "latent_side", latent_side)
    monkeypatch.setitem(sample.PRESETS, "release", {"size": 24})
    with pytest.raises(InputError, match="size 24"):
        gen.main(["--device", "cpu"])


# ---- the scores ----

def test_fd_to_coverage_are_those_of_the_two_feature_files(phantom, gen_run, result):
    real = features.load(gen_run / "real.safetensors")
    drawn = features.load(gen_run / "generated.safetensors")
    assert real.ids == drawn.ids == list(worklist.read_rows(gen_run / "images.jsonl"))
    page = result(gen_run)
    for name, value in image_metrics.distribution(real.x, drawn.x).items():
        score = page["scores"]["generation"]["1"][name]["value"]
        assert score == pytest.approx(value, abs=1e-9)

    # the page says what its numbers cannot be compared with
    features_differ, *_, few_images = page["warnings"]
    assert "the paper's of RAD-DINO" in features_differ
    text = (gen_run / "result.md").read_text()
    assert features_differ in text and "Features: vision tower" in text
    data = features.PackedImages(phantom / "gen-32", "train").rows
    for finding, row in page["scores"]["findings"].items():
        ids = [i for i in real.ids if finding in [fact[0] for fact in data[i]["labels"]]]
        assert row["n_real"] == len(ids) and row["few"]
        assert f"{finding} ({len(ids)})" in few_images
        wanted = image_metrics.fd(real.pick(ids), drawn.pick(ids))
        assert row["fd"]["value"] == pytest.approx(wanted)
    assert any("alignment score is left out" in sentence for sentence in page["left_out"])


def test_a_sweep_scores_every_combination(again, gen_run, tmp_path, result):
    points = gen.GenConfig(sweep=["steps=4,8", "cfg=1,2.5"], seed=7, limit=3).points()
    swept = [(point.steps, point.cfg) for point in points]
    assert swept == [(4, 1.0), (4, 2.5), (8, 1.0), (8, 2.5)]
    assert all((point.seed, point.limit) == (7, 3) for point in points)
    assert gen.GenConfig().points() == []

    _, page = again("--sweep", "steps=1,2", "--sweep-num", 6)
    sweep = page["scores"]["sweep"]
    assert [(row["steps"], row["cfg"]) for row in sweep] == [(1, 2.0), (2, 2.0)]
    assert all(row["cycle_F1"]["interval"] and row["fd"]["n"] == 6 for row in sweep)
    assert page["scores"]["generation"] == result(gen_run)["scores"]["generation"]
    assert len(list((tmp_path / "again/sweep/steps1-cfg2/images").iterdir())) == 6


def test_radiographs_have_chexpert_labels_and_chexbert(
        words, altered, chexbert_folder, tmp_path, result):
    """As MIMIC's rows are: findings by their true names with 1, 0 or -1."""
    def change(n, row):
        row["source"] = "rule-based"
        row["labels"] = {"Support Devices": 1.0, "Edema": (1.0, 0.0, -1.0)[n % 3]}
    root, out = altered("gen-32", change), tmp_path / "out"
    assert gen.main(words("gen", out, "--chexbert", chexbert_folder, data=root)) == 0
    scores = result(out)["scores"]
    data = features.PackedImages(root / "gen-32", "train").rows
    read = worklist.read_rows(out / "again.jsonl")
    edema = [name for name in read if data[name]["labels"]["Edema"] == 1]
    counts = [(name, row["n_real"]) for name, row in scores["findings"].items()]
    assert counts == [("Edema", len(edema)), ("Support Devices", len(read))], "Table 4's order"

    model = chexbert.load(chexbert_folder)
    references = model.label([data[name]["report"] for name in read], progress=False)
    predictions = model.label([row["report"] for row in read.values()], progress=False)
    for name, value in text_metrics.chexbert_scores(references, predictions).items():
        assert scores["cycle"][name]["value"] == pytest.approx(value)


def test_alignment_stands_beside_fd_or_alone(again, tmp_path, monkeypatch):
    monkeypatch.setattr(radgraph_biovil, "alignment",
                        lambda jobs, python: ([0.1234] * len(jobs), []))
    _, page = again()
    rounded = page["scores"]["generation"]["1"]["alignment"]["value"]
    assert rounded == 0.123 and "alignment" not in page["scores"]

    # without RAD-DINO there is no FD, and a sentence says how to get it
    _, page = again("--encoder", "rad-dino", "--rad-dino", tmp_path / "no")
    assert page["scores"]["alignment"]["alignment"]["value"] == rounded
    assert "generation" not in page["scores"] and "cycle" in page["scores"]
    assert any(sentence.startswith("FD, KD, precision") and "microsoft/rad-dino" in sentence
               for sentence in page["left_out"])


# ---- what fails, and the real images ----

def test_what_cannot_be_drawn_or_read_is_named_and_takes_part_in_no_score(
        words, altered, damaged, tmp_path, result):
    def change(n, row):
        row["report"] = {0: "No effusion. " * 100, 1: " "}.get(n, row["report"])
    assert gen.main(words("gen", tmp_path / "a", data=altered("gen-32", change))) == 1
    failures = result(tmp_path / "a")["failures"]
    assert list(failures) == ["train-000000", "train-000001"]
    assert "tokens, this checkpoint reads 64" in failures["train-000000"]
    assert failures["train-000001"].startswith("the report is empty")
    assert not list((tmp_path / "a" / "images").glob("train-00000[01]*"))

    # a real image that cannot be read
    root, name = damaged("gen-32", 0)
    assert gen.main(words("gen", tmp_path / "b", data=root)) == 1
    page = result(tmp_path / "b")
    assert list(page["failures"]) == [name]
    assert page["scores"]["generation"]["1"]["fd"]["n"] == 11
    assert (tmp_path / "b" / "pairs.png").exists(), "the picture shows the others"


def test_real_images_may_come_from_a_folder_or_a_feature_file(phantom, again, gen_run, tmp_path):
    # the original films instead of the packed ones, matched by name
    images = features.PackedImages(phantom / "gen-64", "train")
    films = tmp_path / "films" / "p10"
    films.mkdir(parents=True)
    for name in images.ids:
        images.read(name).save(films / f"{name}.png")
    assert again("--real", films.parent)[0] == 0
    real, packed = (features.load(path / "real.safetensors")
                    for path in (tmp_path / "again", gen_run))
    assert real.source == str(films.parent.resolve()) and real.ids == packed.ids
    assert not np.array_equal(real.x, packed.x)

    # a file lacks one of them, is of another encoder, or says that one could not be read
    real = features.load(gen_run / "real.safetensors")
    first, *others = real.ids
    path = tmp_path / "few.safetensors"

    def save(failures, encoder=real.encoder):
        features.save(path, features.Features(others, real.x[1:], encoder, "", failures))

    save({})
    with pytest.raises(InputError, match="few.safetensors lacks 1 of 12 real images, the first is"):
        again("--real", path)
    save({}, "rad-dino, straight, 00")
    with pytest.raises(InputError, match="extract both with one"):
        again("--real", path)
    save({first: "broken", "another": "broken"})
    code, page = again("--real", path)
    assert code == 1 and page["failures"] == {first: "broken"}, "of the reports of this run alone"
    assert page["scores"]["generation"]["1"]["fd"]["n"] == 11


# ---- what is refused before the hours of drawing ----

@pytest.mark.parametrize("options, sentence", [
    ("--limit 20 --shards 4", "--shards 4 needs 24 reports or more, there are 20; --shards 1 "
                              "needs 6"),
    ("--limit 4 --shards 1", "--shards 1 needs 6 reports or more, there are 4; take more of them"),
    ("--sweep steps=1 --sweep-num 5", "--sweep-num must be 6 or more"),
    ("--sweep steps=1 --encoder rad-dino --rad-dino no", "--sweep has nothing to measure"),
    ("--sweep steps=0", "is not like steps=4,8"),
    ("--sweep steps=1 steps=2", "each setting once"),
    ("--encoder dino", "--encoder dino is none of rad-dino, vision"),
    ("--show 0", "--shards, --show and --sweep-num must be at least 1"),
])
def test_a_run_that_cannot_end_well_is_refused_at_once(
        words, altered, tmp_path, monkeypatch, options, sentence):
    def no_phantom(n, row):
        row["source"] = "openi"
    monkeypatch.setattr(sample, "generate_images", None)
    with pytest.raises(InputError, match=sentence):
        gen.main(words("gen", tmp_path / "out", *options.split(),
                       data=altered("gen-32", no_phantom)))
