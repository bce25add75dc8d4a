"""evaluation/runs.py: two finished runs of und, or of gen, are compared from what they left."""
import json
import shutil

import numpy as np
import pytest

from common import worklist
from common.cli import InputError
from evaluation import compare, features, gen, paired, runs, scoring


@pytest.fixture
def side_by_side(tmp_path):
    """side_by_side(a, b, *options) -> (exit code, what the JSON file says)."""
    def run(a, b, *options):
        words = [a, b, "--out", tmp_path / "both", "--bootstrap", 2, "--swaps", 20, *options]
        code = compare.main([str(word) for word in words])
        return code, json.loads((tmp_path / "both.json").read_text())
    return run


def rewrite(path, change):
    """Write each row of a file of JSON lines again, as change(n, row)."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(n, row)) + "\n" for n, row in enumerate(rows)))


def test_two_runs_of_und(phantom, und_run, tmp_path, side_by_side, capsys):
    """B writes the references themselves, and fails at one image, which then counts for none."""
    b = shutil.copytree(und_run, tmp_path / "b")
    data = features.PackedImages(phantom / "und-64", "train")

    def reference(n, row):
        if n == 3:
            return {"id": row["id"], "error": "torn"}
        return {"id": row["id"], "report": data.rows[row["id"]]["report"]}
    rewrite(b / "reports.jsonl", reference)
    code, page = side_by_side(und_run, b)
    assert code == 1 and list(page["failures"].values()) == ["torn"]
    table = page["scores"]["paired reports"]
    assert table["micro"]["b"]["value"] == 1 and table["micro"]["a"]["n"] == 11

    kept = {name: row for name, row in worklist.read_rows(und_run / "reports.jsonl").items()
            if name not in page["failures"]}
    references = [data.rows[name]["report"] for name in kept]
    wanted, _ = paired.reports([row["report"] for row in kept.values()], references, references,
                               scoring.PhantomLabels(), 20, 200)
    assert table["micro"]["difference"] == wanted["micro"]["difference"]
    text = (tmp_path / "both.md").read_text()
    assert "| score | A | B | B − A | p | n |" in text and f"A: {und_run}, B: {b}" in text
    assert f"| {table['micro']['difference']['p']:.4f} | 11 |" in text and "by chance" in text
    assert "torn" in capsys.readouterr().err


def test_two_runs_of_gen(words, gen_run, tmp_path, side_by_side):
    """FD to coverage of both, and the cycle score; the same run twice has p = 1 everywhere."""
    b = tmp_path / "b"
    assert gen.main(words("gen", b, "--steps", 1)) == 0
    code, page = side_by_side(gen_run, b, "--shards", 1)
    assert code == 0 and {"paired images, blocks: 1", "paired cycle"} == page["scores"].keys()
    assert any("alignment" in sentence for sentence in page["left_out"])
    real = features.load(gen_run / "real.safetensors")
    drawn = [features.load(run / "generated.safetensors").pick(real.ids) for run in (gen_run, b)]
    wanted = paired.images(real.x, *drawn, (1,), 5, 2, 20, paired=True)["1"]
    assert page["scores"]["paired images, blocks: 1"] == wanted
    assert wanted["fd"]["a"]["value"] != wanted["fd"]["b"]["value"]

    _, page = side_by_side(gen_run, shutil.copytree(gen_run, tmp_path / "twin"), "--shards", 1)
    for table in page["scores"].values():
        assert {row["difference"]["p"] for row in table.values()} <= {1, None}


def test_features_of_another_encoder_are_left_out(gen_run, tmp_path, side_by_side):
    b = shutil.copytree(gen_run, tmp_path / "b")
    for name in ("real", "generated"):
        path = b / f"{name}.safetensors"
        x = features.load(path)
        x.encoder = "rad-dino, straight, 00"
        features.save(path, x)
    _, page = side_by_side(gen_run, b)
    assert list(page["scores"]) == ["paired cycle"]
    assert any("a difference needs the same references" in text for text in page["left_out"])
    (b / "real.safetensors").unlink()
    _, page = side_by_side(gen_run, b)
    assert any("both runs need generated.safetensors" in text for text in page["left_out"])


def test_alignment_is_swapped_too(phantom, gen_run, tmp_path, monkeypatch):
    """One cosine an image: B's are higher by 0.1."""
    a, b = runs.load(gen_run), runs.load(shutil.copytree(gen_run, tmp_path / "b"))
    asked = []

    def cosines(jobs, python):
        asked.extend(jobs)
        return list(np.linspace(0, 0.5, 12)) + list(np.linspace(0.1, 0.6, 12)), []
    monkeypatch.setattr(runs.radgraph_biovil, "alignment", cosines)
    prompts = runs.prompts_of(features.PackedImages(phantom / "gen-32", "train"))
    cfg = compare.CompareConfig(bootstrap=2, swaps=20)
    table = runs.alignment_scores(cfg, a, b, prompts)[0]["paired alignment"]["alignment"]
    assert table["difference"]["value"] == pytest.approx(0.1) and table["difference"]["p"] < 0.05
    assert asked[0][0].parent == gen_run / "images" and asked[12][0].parent == b.path / "images"
    assert asked[0][1] == asked[12][1]


def change_settings(path, **changes):
    settings = json.loads((path / "settings.json").read_text())
    (path / "settings.json").write_text(json.dumps({**settings, **changes}))


@pytest.mark.parametrize("damage, sentence", [
    (lambda b: (b / "result.json").unlink(), "was begun and not finished"),
    (lambda b: change_settings(b, solver="ab2"), "two commands|not finished"),
    (lambda b: change_settings(b, split="val"), "not about the same items .split: train, val"),
    (lambda b: rewrite(b / "reports.jsonl", lambda n, row: {**row, "id": f"x{n}"}),
     "is over 12 items and .* over 12, not the same; run both with one --limit"),
    (lambda b: rewrite(b / "reports.jsonl", lambda n, row: {"id": row["id"], "error": "torn"}),
     "have no item that went well in both"),
])
def test_runs_that_cannot_be_compared(und_run, tmp_path, side_by_side, damage, sentence):
    b = shutil.copytree(und_run, tmp_path / "b")
    damage(b)
    with pytest.raises(InputError, match=sentence) as error:
        side_by_side(und_run, b)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("both*"))


def test_und_and_gen_are_two_commands(und_run, gen_run, side_by_side):
    with pytest.raises(InputError, match="one reads images, the other draws reports"):
        side_by_side(und_run, gen_run)
