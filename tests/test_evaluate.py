"""evaluate.py end to end on a packed phantom, with a tiny random checkpoint and with demo/; resuming, two processes, bad input."""
import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

from weights import checkpoint
from evaluation import chexbert
from common import processes as common
from evaluation import gen as eval_gen
from evaluation import phantom as eval_phantom
from evaluation import und as eval_und
import evaluate
from evaluation import features
from evaluation import radgraph_biovil as foreign
from evaluation import image_metrics as metrics
import sample
from evaluation import scoring
from evaluation import tables
import weights
from evaluation import worklist
from common.processes import InputError
from helpers import ROOT, randomise, random_chexbert, tiny_config, tiny_vae, write_chexbert
from common.images import NOTICE
from model import UniX
from phantom.facts import FINDINGS
from phantom.prepare import Settings, held_out
from tokenizer import Tokenizer
from vision import ViTConfig

PUNKT_SENTENCES = ("BLEU", "ROUGE", "RadGraph", "alignment", "plots")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As the processes that are compared with this one: another number of threads sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory):
    """A random model that reads 64 px and draws 32, written like a run of train_gen.py."""
    out, tokenizer = tmp_path_factory.mktemp("run"), Tokenizer.with_named_ids(phantom / "tokenizer.json")
    ids = dict(bos=tokenizer.bos, eos=tokenizer.eos, soi=tokenizer.soi, eoi=tokenizer.eoi)
    vision = ViTConfig(image_size=64, patch_size=16, n_layer=1, n_head=2, n_embd=16, n_inner=32, pad=0)
    model = randomise(UniX(tiny_config(vocab_size=tokenizer.size, latent_channels=4, max_latent_size=4, vision=vision, **ids)))
    vae = tiny_vae()
    vae.decoder.conv_out.weight.data *= 5           # a picture with contrast
    checkpoint.save(out, 1, config=weights.describe(model, vae), tokenizer=tokenizer.json,
                    tensors={"model": weights.model_tensors(model), "vae": vae.state_dict()})
    return out


def und(phantom, run, out, *more):
    return ["--checkpoint", str(run), "--data", str(phantom), "--split", "train", "--out", str(out), "--device", "cpu",
            *"--max-tokens 12 --batch 4 --bootstrap 20".split(), *map(str, more)]


def gen(phantom, run, out, *more):
    return [*und(phantom, run, out), *"--encoder vision --steps 2 --shards 1 --bootstrap 3 --show 2".split(), *map(str, more)]


def content(folder):
    """What a run leaves, apart from where it lies."""
    result = json.loads((folder / "result.json").read_text())
    result["settings"].pop("out")
    vectors = [features.load(path) for path in sorted(folder.rglob("*.safetensors"))]
    return [result, {p.name: p.read_text() for p in sorted(folder.rglob("*.jsonl"))},
            {p.name: np.array(Image.open(p)).tobytes() for p in sorted(folder.glob("images/*.png"))},
            [(one.ids, one.x.tobytes(), one.encoder, one.failures) for one in vectors]]


def same(a, b):
    return all(one == other for one, other in zip(content(a), content(b)))


def two(command, argv):
    return subprocess.run([sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port", str(27500 + os.getpid() % 500),
                           str(ROOT / "evaluate.py"), command, *argv], capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})


# ---- und ----

@pytest.fixture(scope="module")
def und_run(phantom, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("und") / "a"
    assert eval_und.main(und(phantom, run, out)) == 0
    return out


def test_und(phantom, run, und_run):
    result = json.loads((und_run / "result.json").read_text())
    rows = worklist.read_rows(und_run / "reports.jsonl")
    data = features.PackedImages(phantom / "und-64", "train")
    assert rows.keys() == data.rows.keys() and len(rows) == 24
    model, _, tokenizer = weights.load(run)
    name = data.ids[7]
    alone = sample.generate_reports(model, tokenizer, np.array(data.read(name))[None], data.rows[name]["prompt"], max_tokens=12, progress=False)
    assert rows[name]["report"] == alone[0], "the row's own question, greedy"
    numbers = result["scores"]["understanding"]
    assert {"micro", "macro", "exact", *FINDINGS} <= numbers.keys() and numbers["micro"]["n"] == 24
    assert all(number["interval"][0] <= number["value"] <= number["interval"][1] for number in numbers.values())
    assert not [s for s in result["left_out"] if not s.startswith(PUNKT_SENTENCES)] and result["notice"] == NOTICE
    text = (und_run / "result.md").read_text()
    assert "RadGraph F1 is left out" in text and NOTICE in text


def test_und_in_two_processes_and_after_an_interruption(phantom, run, und_run, tmp_path, monkeypatch, capsys):
    done = two("und", und(phantom, run, tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "two", und_run)

    calls, read = [], sample.generate_reports
    monkeypatch.setattr(sample, "generate_reports", lambda *a, **k: calls.append(1) or (read(*a, **k) if len(calls) < 4 else 1 / 0))
    with pytest.raises(ZeroDivisionError):
        eval_und.main(und(phantom, run, tmp_path / "cut"))
    part = tmp_path / "cut" / "reports.part0.jsonl"
    before = part.read_text()
    assert before.count("\n") >= 3 and not (tmp_path / "cut" / "reports.jsonl").exists()
    part.write_text(before + '{"id": "torn')
    with pytest.raises(InputError, match="begun with other settings .max_tokens"):
        eval_und.main(und(phantom, run, tmp_path / "cut", "--max-tokens", "11"))
    calls.clear()
    monkeypatch.setattr(sample, "generate_reports", lambda *a, **k: calls.append(len(a[2])) or read(*a, **k))
    assert eval_und.main(und(phantom, run, tmp_path / "cut")) == 0
    assert sum(calls) <= 24 - before.count("\n") and same(tmp_path / "cut", und_run)
    calls.clear()
    assert eval_und.main(und(phantom, run, tmp_path / "cut")) == 0 and not calls, "a finished run is only scored"


def damage(data, n):
    """Zeros instead of image number n of a packed data set."""
    shard, _, offset, length = data.data.places[n]
    with open(data.data.shards[shard].with_suffix(".bin"), "r+b") as file:
        file.seek(offset)
        file.write(bytes(length))


def test_a_picture_that_cannot_be_read_is_named_and_not_scored(phantom, run, und_run, tmp_path, capsys):
    root = shutil.copytree(phantom, tmp_path / "data")
    data = features.PackedImages(root / "und-64", "train")
    damage(data, 5)
    assert eval_und.main(und(root, run, tmp_path / "out")) == 1
    result, name = json.loads((tmp_path / "out" / "result.json").read_text()), data.ids[5]
    assert list(result["failures"]) == [name] and result["scores"]["understanding"]["micro"]["n"] == 23
    rows, before = worklist.read_rows(tmp_path / "out" / "reports.jsonl"), worklist.read_rows(und_run / "reports.jsonl")
    assert "cannot be read" in rows[name]["error"] and "report" not in rows[name]
    assert all(rows[i] == before[i] for i in rows if i != name)
    assert f"error: {name}" in capsys.readouterr().err and "Failed: 1, not scored" in (tmp_path / "out" / "result.md").read_text()


# ---- gen ----

@pytest.fixture(scope="module")
def gen_run(phantom, run, tmp_path_factory):
    out = tmp_path_factory.mktemp("gen") / "a"
    assert eval_gen.main(gen(phantom, run, out, "--sweep", "steps=1,2", "cfg=1", "--sweep-num", "12")) == 0
    return out


def test_gen(phantom, run, gen_run):
    result = json.loads((gen_run / "result.json").read_text())
    rows = worklist.read_rows(gen_run / "images.jsonl")
    data = features.PackedImages(phantom / "gen-32", "train")
    captions = [row["report"] for row in data.rows.values()]
    assert len(rows) == len(set(captions)), "each wording once"
    name = list(rows)[3]
    model, vae, tokenizer = weights.load(run)
    number = list(dict.fromkeys(captions)).index(data.rows[name]["report"])
    alone = sample.generate_images(model, vae, tokenizer, [data.rows[name]["report"]], sample.Sampling(steps=2), numbers=[number], progress=False)[0, 0]
    drawn = np.array(Image.open(gen_run / "images" / rows[name]["file"]))
    assert np.abs(drawn.astype(int) - alone).max() <= 1, "seeded by (seed, number of the report)"

    real, made = features.load(gen_run / "real.safetensors"), features.load(gen_run / "generated.safetensors")
    assert real.ids == made.ids == list(rows) and real.encoder == made.encoder
    want, got = metrics.distribution(real.x, made.x), result["scores"]["generation"]["1"]
    assert all(got[key]["value"] == pytest.approx(want[key], abs=1e-9) for key in metrics.NAMES)
    for finding, row in result["scores"]["findings"].items():
        have = [i for i in real.ids if any(f == finding for f, _, _ in data.rows[i]["labels"])]
        assert row["n_real"] == len(have) and row["few"]
        assert row["fd"]["value"] == pytest.approx(metrics.fd(real.pick(have), made.pick(have)))
    assert "micro" in result["scores"]["cycle"] and result["scores"]["cycle"]["micro"]["n"] == len(rows)
    assert [(row["steps"], row["cfg"]) for row in result["scores"]["sweep"]] == [(1, 1.0), (2, 1.0)]
    assert all(row["cycle_F1"]["interval"] for row in result["scores"]["sweep"])
    first, second = result["warnings"]
    assert "the paper's of RAD-DINO" in first and "fewer than 768 images each: mostly the bias" in second and first in (gen_run / "result.md").read_text()
    assert all(f"{name} ({row['n_real']})" in second for name, row in result["scores"]["findings"].items())
    assert any("alignment score is left out" in sentence and "hi-ml-multimodal" in sentence for sentence in result["left_out"])
    text = (gen_run / "result.md").read_text()
    assert "(paper)" not in text and "Features: vision tower" in text, "another encoder's FD is on another scale"
    assert (gen_run / "pairs.png").exists()


def test_gen_in_two_processes_and_after_an_interruption(phantom, run, gen_run, tmp_path, monkeypatch, capsys):
    more = ["--sweep", "steps=1,2", "cfg=1", "--sweep-num", "12"]
    done = two("gen", gen(phantom, run, tmp_path / "two", *more))
    assert done.returncode == 0, done.stderr
    assert same(tmp_path / "two", gen_run)
    calls, draw = [], sample.generate_images
    monkeypatch.setattr(sample, "generate_images", lambda *a, **k: calls.append(1) or (draw(*a, **k) if len(calls) < 3 else 1 / 0))
    with pytest.raises(ZeroDivisionError):
        eval_gen.main(gen(phantom, run, tmp_path / "cut", *more))
    assert len(list((tmp_path / "cut" / "images").iterdir())) == 8
    monkeypatch.setattr(sample, "generate_images", draw)
    assert eval_gen.main(gen(phantom, run, tmp_path / "cut", *more)) == 0
    assert same(tmp_path / "cut", gen_run)


def test_gen_without_rad_dino_says_so(phantom, run, tmp_path, capsys):
    assert eval_gen.main(gen(phantom, run, tmp_path / "x", "--encoder", "rad-dino", "--rad-dino", tmp_path / "no", "--limit", 4)) == 0
    result = json.loads((tmp_path / "x" / "result.json").read_text())
    assert "generation" not in result["scores"] and "cycle" in result["scores"]
    assert any(s.startswith("FD, KD, precision") and "microsoft/rad-dino" in s for s in result["left_out"])


def test_a_report_that_is_too_long_is_named(phantom, run, tmp_path, capsys):
    root = shutil.copytree(phantom, tmp_path / "data")
    path = root / "gen-32" / "00000.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    bad = next(row for row in rows if row["split"] == "train")
    bad["report"] = "No effusion. " * 100
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert eval_gen.main(gen(root, run, tmp_path / "x")) == 1
    result = json.loads((tmp_path / "x" / "result.json").read_text())
    assert list(result["failures"]) == [bad["id"]] and "tokens, this checkpoint reads 64" in result["failures"][bad["id"]]
    assert not list((tmp_path / "x" / "images").glob(f"{bad['id']}*"))


def test_a_real_picture_that_cannot_be_read_is_left_out_on_both_sides(phantom, run, gen_run, tmp_path, capsys):
    root = shutil.copytree(phantom, tmp_path / "data")
    data = features.PackedImages(root / "gen-32", "train")
    damage(data, 0)
    assert eval_gen.main(gen(root, run, tmp_path / "x")) == 1
    result, name = json.loads((tmp_path / "x" / "result.json").read_text()), data.ids[0]
    before = json.loads((gen_run / "result.json").read_text())["scores"]["generation"]["1"]["fd"]
    assert list(result["failures"]) == [name] and result["scores"]["generation"]["1"]["fd"]["n"] == before["n"] - 1
    assert (tmp_path / "x" / "pairs.png").exists(), "the picture shows the others"


def test_what_cannot_end_well_is_refused_before_the_work(phantom, run, gen_run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "generate_images", None)
    for more, sentence in {
            ("--limit", 20, "--shards", 4): "--shards 4 needs 24 reports or more, there are 20",
            ("--sweep", "steps=1", "--sweep-num", 5): "--sweep-num must be 6 or more"}.items():
        with pytest.raises(InputError, match=sentence):
            eval_gen.main(gen(phantom, run, tmp_path / "x", *more))
    root = shutil.copytree(phantom, tmp_path / "data")
    path = root / "gen-32" / "00000.jsonl"
    path.write_text(path.read_text().replace('"source": "phantom"', '"source": "openi"'))
    with pytest.raises(InputError, match="--sweep has nothing to measure"):
        eval_gen.main(gen(root, run, tmp_path / "x", "--sweep", "steps=1", "--encoder", "rad-dino", "--rad-dino", tmp_path / "no",
                          "--chexbert", tmp_path / "no"))


def test_a_run_is_not_continued_with_other_texts(phantom, run, und_run, gen_run, tmp_path):
    """The data set was prepared anew, in the same place."""
    for before, main, argv, task, field in ((und_run, eval_und.main, und, "und-64", "prompt"), (gen_run, eval_gen.main, gen, "gen-32", "report")):
        out, root = shutil.copytree(before, tmp_path / task), tmp_path / f"data-{task}"
        shutil.copytree(phantom, root)
        settings = json.loads((out / "settings.json").read_text())
        settings["data"] = settings["data"].replace(str(phantom), str(root))
        (out / "settings.json").write_text(json.dumps(settings))
        path = root / task / "00000.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        next(row for row in rows if row["split"] == "train")[field] += " Once more."
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        with pytest.raises(InputError, match=r"begun with other settings \((captions|questions)\)"):
            main(argv(root, run, out))


def test_a_file_of_real_features_must_hold_all(phantom, run, gen_run, tmp_path, capsys):
    out, real = shutil.copytree(gen_run, tmp_path / "x"), features.load(gen_run / "real.safetensors")
    few = lambda **failures: features.save(tmp_path / "few.safetensors", features.Features(
        real.ids[1:], real.x[1:], real.encoder, real.source, failures))
    few()
    with pytest.raises(InputError, match=f"few.safetensors lacks 1 of {len(real.ids)} real images, the first is {real.ids[0]}"):
        eval_gen.main(gen(phantom, run, out, "--real", tmp_path / "few.safetensors"))
    few(**{real.ids[0]: "broken", "another": "broken"})
    assert eval_gen.main(gen(phantom, run, out, "--real", tmp_path / "few.safetensors")) == 1
    result = json.loads((out / "result.json").read_text())
    assert result["failures"] == {real.ids[0]: "broken"} and result["scores"]["generation"]["1"]["fd"]["n"] == len(real.ids) - 1


def test_alignment_stands_beside_the_other_numbers(phantom, run, gen_run, tmp_path, monkeypatch, capsys):
    out = shutil.copytree(gen_run, tmp_path / "x")
    monkeypatch.setattr(foreign, "alignment", lambda jobs, python: ([0.1234] * len(jobs), []))
    assert eval_gen.main(gen(phantom, run, out)) == 0
    scores = json.loads((out / "result.json").read_text())["scores"]
    assert scores["generation"]["1"]["alignment"]["value"] == 0.123 and "alignment" not in scores


def test_real_images_of_a_folder(phantom, run, gen_run, tmp_path, capsys):
    """Original films instead of the packed ones: matched by name; one that is missing stops the run."""
    data, films = features.PackedImages(phantom / "gen-64", "train"), tmp_path / "films" / "p10"
    films.mkdir(parents=True)
    for name in data.ids:
        data.read(name).save(films / f"{name}.png")
    out = shutil.copytree(gen_run, tmp_path / "x")
    assert eval_gen.main(gen(phantom, run, out, "--real", films.parent)) == 0
    real = features.load(out / "real.safetensors")
    assert real.source == str(films.parent.resolve()) and real.ids == features.load(gen_run / "real.safetensors").ids
    assert not np.array_equal(real.x, features.load(gen_run / "real.safetensors").x)
    assert eval_gen.main(gen(phantom, run, out, "--real", out / "real.safetensors")) == 0
    (films / f"{data.ids[0]}.png").unlink()
    with pytest.raises(InputError, match="lacks 1 of .* real images, the first is train-000000"):
        eval_gen.main(gen(phantom, run, out, "--real", films.parent))


# ---- features, compare, privacy ----

@pytest.fixture(scope="module")
def three(phantom, run, tmp_path_factory):
    """Feature files of three sets: train, a folder of drawn ones, and held-out ones."""
    out = tmp_path_factory.mktemp("three")
    encoder = ["--encoder", "vision", "--checkpoint", str(run), "--device", "cpu"]
    (out / "made").mkdir()
    for i in range(14):
        Image.fromarray(held_out(Settings(seed=5, size=64), i)[1]).save(out / "made" / f"m{i:02d}.png")
    evaluate.main(["features", "--images", str(phantom / "gen-64"), "--split", "train", "--out", str(out / "train.safetensors"), *encoder])
    evaluate.main(["features", "--images", str(phantom / "gen-64"), "--split", "val", "--out", str(out / "held.safetensors"), *encoder])
    evaluate.main(["features", "--images", str(out / "made"), "--out", str(out / "made.safetensors"), *encoder])
    return out, encoder


def test_features_and_compare(three, tmp_path, capsys):
    out, encoder = three
    assert evaluate.main(["compare", str(out / "train.safetensors"), str(out / "made.safetensors"), "--out", str(tmp_path / "c"), "--shards", "1",
                          "2", "--bootstrap", "5"]) == 0
    result = json.loads((tmp_path / "c.json").read_text())
    a, b = features.load(out / "train.safetensors"), features.load(out / "made.safetensors")
    assert len(a.ids) == 24 and b.ids == [f"m{i:02d}" for i in range(14)] and not result["paired"]
    want = metrics.distribution(a.x, b.x)
    assert {k: v["value"] for k, v in result["scores"]["generation"]["1"].items()} == pytest.approx(want)
    assert {k: v["value"] for k, v in result["scores"]["generation"]["2"].items()} == pytest.approx(metrics.sharded(a.x, b.x, 2))
    # folders of images are the same as their files of features
    evaluate.main(["compare", str(out / "train.safetensors"), str(out / "made"), "--out", str(tmp_path / "d"), "--shards", "1", "--bootstrap", "0", *encoder])
    again = json.loads((tmp_path / "d.json").read_text())["scores"]["generation"]["1"]
    assert {k: v["value"] for k, v in again.items()} == pytest.approx(want)


def test_compare_pairs_by_name(three, tmp_path, capsys):
    """The same names in another order are the same images: blocks are cut in the order of the first."""
    out, _ = three
    a = features.load(out / "train.safetensors")
    order = np.random.default_rng(0).permutation(len(a.ids))
    features.save(tmp_path / "b.safetensors", features.Features([a.ids[i] for i in order], a.x[order], a.encoder))
    evaluate.main(["compare", str(out / "train.safetensors"), str(tmp_path / "b.safetensors"), "--out", str(tmp_path / "c"), "--bootstrap", "0"])
    result = json.loads((tmp_path / "c.json").read_text())
    assert result["paired"] and result["scores"]["generation"]["4"]["fd"]["value"] == 0


def test_compare_leaves_out_on_both_sides_what_failed_on_one(three, tmp_path, capsys):
    out, _ = three
    a = features.load(out / "train.safetensors")
    order = np.random.default_rng(0).permutation(len(a.ids) - 1)        # the last one could not be read
    features.save(tmp_path / "b.safetensors", features.Features([a.ids[i] for i in order], a.x[order], a.encoder, "", {a.ids[-1]: "why"}))
    argv = ["compare", str(out / "train.safetensors"), str(tmp_path / "b.safetensors"), "--out", str(tmp_path / "new" / "c"),
            "--bootstrap", "0", "--shards", "1", "2"]
    assert evaluate.main(argv) == 1
    result = json.loads((tmp_path / "new" / "c.json").read_text())
    assert result["paired"] and len(result["warnings"]) == 1 and result["failures"] == {a.ids[-1]: "why"}
    assert all(part["fd"]["value"] == pytest.approx(0, abs=1e-9) and part["fd"]["n"] == 23 for part in result["scores"]["generation"].values())
    features.save(tmp_path / "b.safetensors", features.Features([a.ids[i] for i in order], a.x[order], a.encoder))
    assert evaluate.main(argv) == 0
    assert "23 of 24 and 23 names are in both sets" in (tmp_path / "new" / "c.md").read_text(), "nothing failed: they are two sets"


def test_unreadable_images_are_counted_and_listed(three, tmp_path, capsys):
    out, encoder = three
    folder = shutil.copytree(out / "made", tmp_path / "made")
    (folder / "m03.png").write_bytes((folder / "m03.png").read_bytes()[:60])
    (folder / "m05.png").write_bytes(b"")
    assert evaluate.main(["features", "--images", str(folder), "--out", str(tmp_path / "x.safetensors"), *encoder]) == 1
    said = capsys.readouterr()
    got, before = features.load(tmp_path / "x.safetensors"), features.load(out / "made.safetensors")
    assert sorted(got.failures) == ["m03", "m05"] and "2 could not be read" in said.out and said.err.count("error: ") == 2
    assert np.abs(got.x - before.pick(got.ids)).max() < 1e-5 and len(got.ids) == 12, "no black squares"


def test_privacy(three, tmp_path, capsys):
    out, _ = three
    made, train = features.load(out / "made.safetensors"), features.load(out / "train.safetensors")
    copied = features.Features(made.ids, made.x.copy(), made.encoder, made.source)
    copied.x[4] = train.x[17] + 1e-3            # one generated image is a training image
    features.save(tmp_path / "copied.safetensors", copied)
    argv = ["privacy", "--generated", str(tmp_path / "copied.safetensors"), "--train", str(out / "train.safetensors"),
            "--held-out", str(out / "held.safetensors"), "--out", str(tmp_path / "p"), "--show", "3", "--bootstrap", "50"]
    evaluate.main(argv)
    result = json.loads((tmp_path / "p.json").read_text())
    assert result["closest"][0]["generated"] == "m04" and result["closest"][0]["train"] == train.ids[17]
    assert result["closest"][0]["held_out_nearer"] == 0 and result["scores"]["privacy"]["below_5"]["value"] >= 1 / 14
    assert Image.open(tmp_path / "p.png").text["notice"] == NOTICE
    with pytest.raises(InputError, match="24 images are in --train and in --held-out"):
        evaluate.main([*argv[:5], *argv[3:5][:0], "--held-out", str(out / "train.safetensors"), "--out", str(tmp_path / "p")])


def reports(path, **rows):
    path.write_text("".join(json.dumps({"id": k, **(v if isinstance(v, dict) else {"report": v})}) + "\n" for k, v in rows.items()))
    return str(path)


def test_compare_reports(tmp_path, capsys):
    there = reports(tmp_path / "there.jsonl", a="The lungs are clear.", b="Small effusion.", c="No effusion.")
    said = reports(tmp_path / "said.jsonl", b="Small effusion.", a="Clear lungs.", c={"error": "out of memory"})
    assert evaluate.main(["compare", there, said, "--out", str(tmp_path / "x"), "--bootstrap", "2"]) == 1
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["failures"] == {"c": "out of memory"}
    assert any("CheXbert F1" in s and "chexbert.pth" in s for s in result["left_out"])
    pytest.importorskip("rouge_score")
    number = result["scores"]["understanding"]["ROUGE_L"]
    assert number["n"] == 2 and number["value"] == pytest.approx((4 / 6 * 0 + 1 + scoring.text_metrics.rouge_l(["Clear lungs."], ["The lungs are clear."])[0]) / 2)


def test_reports_without_a_last_line_end_and_with_odd_ones(tmp_path, capsys):
    """Files that others wrote: no row is lost at the end, and what Unicode calls a line end may stand in a report."""
    for name in "ab":
        (tmp_path / f"{name}.jsonl").write_text('{"id": "a", "report": "no\u2028 effusion"}\n{"id": "b", "report": "clear"}')
    argv = ["compare", *(str(tmp_path / f"{name}.jsonl") for name in "ab"), "--out", str(tmp_path / "x"), "--bootstrap", "0"]
    assert evaluate.main([*argv, "--python", str(tmp_path / "nowhere")]) == 0
    result = json.loads((tmp_path / "x.json").read_text())
    assert any("RadGraph F1 is left out (--python" in sentence for sentence in result["left_out"])
    pytest.importorskip("rouge_score")
    assert result["scores"]["understanding"]["ROUGE_L"]["n"] == 2


# ---- with a CheXbert (tiny, random) ----

@pytest.fixture(scope="module")
def labels_folder(tmp_path_factory):
    return write_chexbert(tmp_path_factory.mktemp("chexbert") / "x", *random_chexbert())


def test_compare_reports_with_chexbert(labels_folder, tmp_path, capsys):
    texts = {"a": ("The lungs are clear.", "Clear lungs."), "b": ("Small effusion.", "Small left effusion."), "c": ("Normal heart.", "")}
    there, said = (reports(tmp_path / f"{n}.jsonl", **{k: v[n] for k, v in texts.items()}) for n in (0, 1))
    assert evaluate.main(["compare", there, said, "--out", str(tmp_path / "x"), "--bootstrap", "2", "--chexbert", str(labels_folder)]) == 0
    result, model = json.loads((tmp_path / "x.json").read_text()), chexbert.load(labels_folder)
    codes = [model.label([pair[n] for pair in texts.values()], progress=False) for n in (0, 1)]
    want = scoring.text_metrics.chexbert_scores(*codes)
    numbers = result["scores"]["understanding"]
    assert len(want) == 8 and {k: numbers[k]["value"] for k in want} == pytest.approx(want)
    assert {"uncertain_as_negative", "uncertain_as_positive"} == result["details"].keys()
    assert "uncertain as positive (Table 2)" in (tmp_path / "x.md").read_text()
    assert not any("CheXbert" in sentence for sentence in result["left_out"])


def test_gen_of_data_with_chexpert_labels(phantom, run, labels_folder, tmp_path, capsys):
    """As MIMIC's rows are: findings by their true names, 1, 0 or -1; cycle score through CheXbert."""
    root = shutil.copytree(phantom, tmp_path / "data")
    path = root / "gen-32" / "00000.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for n, row in enumerate(rows):
        row |= {"source": "rule-based", "labels": {"Support Devices": 1.0, "Edema": (1.0, 0.0, -1.0)[n % 3]}}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert eval_gen.main(gen(root, run, tmp_path / "x", "--chexbert", labels_folder)) == 0
    result = json.loads((tmp_path / "x" / "result.json").read_text())
    names = {row["id"]: row for row in rows}
    drawn = worklist.read_rows(tmp_path / "x" / "images.jsonl")
    edema = [i for i in drawn if names[i]["labels"]["Edema"] == 1]
    assert {k: row["n_real"] for k, row in result["scores"]["findings"].items()} == {"Edema": len(edema), "Support Devices": len(drawn)}
    assert list(result["scores"]["findings"]) == ["Edema", "Support Devices"] and 0 < len(edema) < len(drawn)
    again, model = worklist.read_rows(tmp_path / "x" / "again.jsonl"), chexbert.load(labels_folder)
    codes = [model.label(texts, progress=False) for texts in ([names[i]["report"] for i in drawn], [again[i]["report"] for i in drawn])]
    want = scoring.text_metrics.chexbert_scores(*codes)
    assert {k: result["scores"]["cycle"][k]["value"] for k in want} == pytest.approx(want)
    assert "| Edema |" in (tmp_path / "x" / "result.md").read_text()


# ---- the packages that run elsewhere ----

def test_foreign_packages(tmp_path):
    """An interpreter with the package answers; one without is one sentence."""
    fake = tmp_path / "site"
    (fake / "radgraph").mkdir(parents=True)
    (fake / "radgraph" / "__init__.py").write_text(
        "print('loading')\nclass RadGraph:\n    def __init__(self, model_type): assert model_type == 'radgraph'\n"
        "    def __call__(self, texts): return {str(i): {'entities': {'1': {'tokens': t, 'label': 'OBS-DP', 'relations': []}}} "
        "for i, t in enumerate(texts)}\n")
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nPYTHONPATH={fake} exec {sys.executable} \"$@\"\n")
    python.chmod(0o755)
    found, sentences = foreign.radgraph(["one", " ", "two"], str(python))
    assert not sentences and [list(part["entities"].values()) for part in found][1] == []
    assert [part["entities"]["1"]["tokens"] for part in found if part["entities"]] == ["one", "two"]
    assert scoring.text_metrics.radgraph_rewards(found[:1], found[2:])[0, 0] == 0
    found, sentences = foreign.radgraph(["one"])
    assert found is None and "RadGraph F1 is left out" in sentences[0] and "\n" not in sentences[0]
    found, sentences = foreign.alignment([(tmp_path, "one")])
    assert found is None and "the alignment score is left out" in sentences[0]


# ---- tables ----

def test_the_paper_s_rows():
    assert all(len(row) == len(tables.GENERATION) for row in tables.TABLE3.values())
    assert all(len(row) == len(tables.FINDINGS) == 14 for row in tables.TABLE4.values())
    assert all(len(half) == len(tables.F1) for row in tables.TABLE2.values() for half in row)
    assert (71.243 - tables.TABLE3["UniX, 512"][0]) / 71.243 == pytest.approx(0.242, abs=1e-3)      # what the abstract says
    assert tables.TABLE2["UniX 1.5B"][1][0] / 36.0 == pytest.approx(1.461, abs=1e-3)
    assert tables.TABLE4["UniX, 512"][tables.FINDINGS.index("Enlarged Cardiomediastinum")] == 142.23


def test_table_2_in_markdown():
    """Percent, our row first, a dash where the paper has none."""
    codes = np.eye(14, dtype=int)[:5]
    values = tables.numbers(scoring.text_metrics.chexbert_scores(codes, codes), {"uncertain_as_negative_micro_f1": [0.5, 1.0]}, 5)
    text = "\n".join(tables.understanding(values))
    assert "**this model** | 100.0 [50.0, 100.0]" in text and "| LLM-CXR 12B (paper) | 36.0 | – | 21.1 | – |" in text
    assert "| UniX 1.5B (paper) | 53.6 | 56.6 | 33.2 | 47.3 |" in text


def test_tables_3_and_4_in_markdown():
    number = {"value": 50.1234, "interval": [40, 60], "n": 4352}
    rows = {"1": dict.fromkeys(metrics.NAMES, number), "4": dict.fromkeys(tables.GENERATION, number)}
    text = "\n".join(tables.generation(rows, "rad-dino, benchmark, 00"))
    assert "| **this model**, 4 blocks | 50.123 [40.000, 60.000] |" in text and "| UniX, 512 (paper) | 54.022 | 0.024 | 0.635 |" in text
    row = {"fd": number, "n_real": 700, "n_generated": 699, "few": True}
    text = "\n".join(tables.findings({"Edema": row, "Nodule": row}, "rad-dino, benchmark, 00"))
    assert "| Edema | 700 | 699 | 50.12 [40.00, 60.00] (†) | 64.36 | 73.88 | 67.84 | 83.18 |" in text and "| Nodule | 700 | 699 |" in text
    assert "(paper)" not in "\n".join(tables.findings({"Edema": row}, "vision tower, 00"))


def test_no_minus_nothing():
    number = {"value": -1e-5, "interval": [-2e-5, 0.1], "n": 5}
    assert tables.shown(number) == "0.000 [0.000, 0.100]"


def test_plots(tmp_path, monkeypatch):
    matplotlib = pytest.importorskip("matplotlib.figure") and sys.modules["matplotlib"]
    number = {"value": 50.0, "interval": None, "n": 9}
    tables.bars(tmp_path / "bars.png", {"Edema": {"fd": number, "n_real": 9}, "No Finding": {"fd": number, "n_real": 9}}, "rad-dino")
    labels = []
    for names in (["Edema", "No Finding"], ["effusion"]):       # the paper knows nothing of a phantom's findings
        monkeypatch.setattr(tables, "figure", lambda path, draw, size: draw(fig := matplotlib.figure.Figure()) or labels.append(
            [text.get_text() for text in fig.axes[0].get_legend().get_texts()]))
        tables.bars("", {name: {"fd": number, "n_real": 9} for name in names}, "rad-dino, benchmark, 00")
    assert labels == [["this model", "UniX, 512 (paper)", "Sana (paper)"], ["this model"]]
    monkeypatch.undo()
    tables.curves(tmp_path / "curves.png", [{"steps": s, "cfg": c, "fd": {"value": 1 / s}, "cycle_F1": {"value": 1}} for s in (1, 2, 4) for c in (1.0, 2.0)])
    for name in ("bars", "curves"):
        assert np.array(Image.open(tmp_path / f"{name}.png").convert("L")).std() > 5


# ---- the phantom with the weights of demo/ ----

def test_phantom(tmp_path, capsys):
    out = tmp_path / "score"
    eval_phantom.main(["--num", "14", "--steps", "4", "--out", str(out), "--bootstrap", "2", "--show", "2", "--device", "cpu"])
    result = json.loads((tmp_path / "score.json").read_text())
    assert result["scores"]["report"]["micro"] > 0.95 and result["scores"]["all_normal"]["micro"] == 0
    assert result["scores"]["cycle"]["micro"] > 0.8 and (tmp_path / "score.png").exists()
    fd = {name: part["fd"]["value"] for name, part in result["images"].items()}
    assert 0 < fd["vae_ceiling"] < fd["generated"] and fd["vae_ceiling"] < fd["other_real"]
    assert "cycle / ceiling" in capsys.readouterr().out


def test_phantom_sweep(tmp_path, capsys):
    eval_phantom.main(["--num", "12", "--out", str(tmp_path / "x"), "--sweep", "steps=1,3", "--bootstrap", "0", "--device", "cpu"])
    rows = json.loads((tmp_path / "x.json").read_text())["sweep"]
    assert [(row["steps"], row["cfg"]) for row in rows] == [(1, 2.0), (3, 2.0)] and rows[0]["fd"]["value"] > rows[1]["fd"]["value"]


# ---- bad input: one sentence, exit code 2 ----

def bad_header(path, three):
    features.save(path, features.Features(["a"] * 3, np.zeros((2, 4)), "x"))


BAD = {
    "no command": ([], "say what to evaluate, one of phantom, und, gen"),
    "unknown command": (["ung"], "say what to evaluate"),
    "unknown option": (["phantom", "--nun", "3"], "the nearest is --num"),
    "a sweep of nothing": (["phantom", "--sweep", "steps=a"], "--sweep steps=a is not like"),
    "an odd guidance": (["phantom", "--sweep", "cfg=1..2"], "is not like"),
    "unknown route": (["features", "--images", "{three}/made", "--route", "x", "--rad-dino", "{three}"], "--route x is none of"),
    "no rad-dino": (["features", "--images", "{three}/made", "--rad-dino", "{three}/none"], "there are no weights at"),
    "no images": (["features"], "say which images"),
    "an empty folder": (["features", "--images", "{tmp}"], "holds no image"),
    "no folder": (["features", "--images", "{tmp}/no"], "no folder of images"),
    "one to compare": (["compare", "a.safetensors"], "stands alone"),
    "nothing to compare": (["compare"], "say what to compare"),
    "no features": (["compare", "{tmp}/a.safetensors", "{tmp}/b.safetensors"], "no features at"),
    "other tensors": (["compare", "{demo}/vae.safetensors", "{demo}/vae.safetensors"], "is no file of features of ours"),
    "damaged features": (["compare", "{tmp}/junk.safetensors", "{three}/made.safetensors"], "is damaged"),
    "another encoder": (["compare", "{three}/made.safetensors", "{tmp}/other.safetensors"], "features of two encoders cannot be compared"),
    "features that are not finite": (["compare", "{three}/made.safetensors", "{tmp}/nan.safetensors"], "1 of 14 rows of features are not finite"),
    "no features in it": (["compare", "{three}/made.safetensors", "{tmp}/none.safetensors"], "6 or more rows|2 or more rows|too few"),
    "fewer than k+1": (["compare", "{three}/made.safetensors", "{three}/held.safetensors", "--shards", "1"], "6 or more rows"),
    "blocks too small": (["compare", "{three}/made.safetensors", "{three}/made.safetensors"], "--shards 4: 14 and 14 images are too few"),
    "names and rows differ": (["compare", "{three}/made.safetensors", "{tmp}/names.safetensors"], "names 3 images"),
    "other ids": (["compare", "{tmp}/a.jsonl", "{tmp}/b.jsonl"], "without a report: x; without a reference: y"),
    "other length": (["compare", "{tmp}/a.jsonl", "{tmp}/c.jsonl"], "2 references and 1 reports"),
    "a report that is no text": (["compare", "{tmp}/a.jsonl", "{tmp}/d.jsonl"], "row a has no .report. that is text"),
    "no reports": (["compare", "{tmp}/a.jsonl", "{tmp}/no.jsonl"], "there are no reports at"),
    "lines that are no JSON": (["compare", "{tmp}/a.jsonl", "{tmp}/e.jsonl"], "is damaged: lines of JSON"),
    "two privacy files": (["privacy", "--generated", "x", "--train", "y"], "three feature files are needed"),
    "no data": (["und", "--checkpoint", "{demo}", "--data", "{tmp}"], "there is no packed data set"),
    "no checkpoint": (["und", "--checkpoint", "{tmp}/no"], "no checkpoint|there is no"),
    "ids twice": (["compare", "{tmp}/twice.jsonl", "{tmp}/c.jsonl"], "2 rows and 1 different ids"),
    "a line that ends in the middle": (["compare", "{tmp}/c.jsonl", "{tmp}/torn.jsonl"], "is damaged: lines of JSON"),
    "reports that are not UTF-8": (["compare", "{tmp}/c.jsonl", "{tmp}/latin.jsonl"], "is damaged: lines of JSON"),
    "ids that are numbers": (["compare", "{tmp}/a.jsonl", "{tmp}/numbers.jsonl"], "without a reference: 1"),
    "reports against features": (["compare", "{tmp}/a.jsonl", "{three}/made.safetensors"], "is no .jsonl file"),
    "features that name no images": (["compare", "{three}/made.safetensors", "{tmp}/a_number.safetensors"], "does not say which images"),
    "ids that are lists": (["compare", "{three}/made.safetensors", "{tmp}/lists.safetensors"], "does not say which images"),
    "failures without names": (["compare", "{three}/made.safetensors", "{tmp}/failures.safetensors"], "does not say which images"),
    "features that are whole numbers": (["compare", "{three}/made.safetensors", "{tmp}/int.safetensors"], "features in int64; float32"),
    "an image twice": (["compare", "{three}/made.safetensors", "{tmp}/id_twice.safetensors"], "names a twice"),
    "features of another width": (["privacy", "--generated", "{tmp}/wide.safetensors", "--train", "{three}/train.safetensors",
                                   "--held-out", "{three}/held.safetensors"], "extract both anew"),
    "images that are gone": (["privacy", "--generated", "{tmp}/elsewhere.safetensors", "--train", "{three}/train.safetensors",
                              "--held-out", "{three}/held.safetensors"], "no folder of images at .*gone"),
    "an unknown solver": (["phantom", "--num", "2", "--solver", "foo"], "--solver foo is none of"),
    "a batch of none": (["phantom", "--num", "2", "--batch", "0"], "--batch must be at least 1"),
    "a sweep of few": (["phantom", "--num", "3", "--sweep", "steps=1"], "--num must be 6 or more"),
    "a sweep of one thing twice": (["phantom", "--sweep", "steps=1", "steps=2"], "each setting once"),
    "a chexbert of another shape": (["compare", "{tmp}/a.jsonl", "{tmp}/a.jsonl", "--chexbert", "{tmp}/chexbert"], "is not CheXbert"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name, three, tmp_path, capsys, monkeypatch):
    argv, sentence = BAD[name]
    out, _ = three
    made = features.load(out / "made.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"junk" * 30)
    save = lambda name, **changes: features.save(tmp_path / f"{name}.safetensors", features.Features(**{**vars(made), **changes}))
    nan = made.x.copy()
    nan[3, 1] = np.nan
    save("other", encoder="rad-dino, straight, 00")
    save("nan", x=nan)
    save("none", ids=[], x=made.x[:0])
    save("names", ids=["a", "b", "c"])
    reports(tmp_path / "a.jsonl", a="Clear.", x="Clear.")
    reports(tmp_path / "b.jsonl", a="Clear.", y="Clear.")
    reports(tmp_path / "c.jsonl", a="Clear.")
    reports(tmp_path / "d.jsonl", a={"report": None}, x="Clear.")

    for name, text in {"twice": '{"id": "a", "report": "x"}\n{"id": "a", "report": "y"}\n', "torn": '{"id": "a", "rep',
                       "numbers": '{"id": 1, "report": "x"}\n'}.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    (tmp_path / "latin.jsonl").write_bytes('{"id": "a", "report": "é"}\n'.encode("latin-1"))
    header = {"format": features.FORMAT, "encoder": made.encoder, "source": "", "ids": json.dumps(made.ids), "failures": "{}"}
    for name, change, x in (("a_number", {"ids": "5"}, made.x), ("lists", {"ids": json.dumps([["a"]] * 14)}, made.x),
                            ("failures", {"failures": "[1]"}, made.x), ("int", {}, made.x.astype(int))):
        save_file({"features": x}, tmp_path / f"{name}.safetensors", header | change)
    save("id_twice", ids=["a", "a", *made.ids[2:]])
    save("wide", x=np.ones((14, 3)))
    save("elsewhere", source=str(tmp_path / "gone"))
    (tmp_path / "e.jsonl").write_text("Clear.\nClear.\n")
    (tmp_path / "chexbert").mkdir()
    torch.save({"model_state_dict": {"x": torch.ones(2)}}, tmp_path / "chexbert" / "chexbert.pth")
    monkeypatch.chdir(tmp_path)
    if name == "an empty folder":
        (tmp_path / "empty").mkdir()
        argv = ["features", "--images", str(tmp_path / "empty")]
    places = {"three": out, "tmp": tmp_path, "demo": ROOT / "demo"}
    argv = [part.format(**places) for part in argv]
    if argv[:1] == ["compare"]:
        argv += ["--bootstrap", "0"]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *argv])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        common.cli(evaluate.main)
    said = capsys.readouterr().err
    assert ended.value.code == 2, said
    assert said.startswith("error: ") and said.count("\n") == 1 and re.search(sentence, said), said
    assert not [*tmp_path.glob("compare*"), *tmp_path.glob("privacy*")], "nothing half written"
