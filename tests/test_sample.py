"""sample.py on a tiny random checkpoint: noise by (seed, k), batches that do not matter, and every way to ask wrongly."""
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from weights import checkpoint
import flow
import sample
import weights
from common.cli import InputError
from common.processes import generator
from helpers import ROOT, randomise, tiny_config, tiny_vae
from common.images import NOTICE
from model import UniX
from tokenizer import Tokenizer
from vision import normalize

REPORTS = ["Large left pleural effusion.", "No effusion.", "The heart is mildly enlarged. A small nodule is in the right upper zone."]


def parts(phantom):
    tokenizer = Tokenizer.with_named_ids(phantom / "tokenizer.json")
    ids = dict(bos=tokenizer.bos, eos=tokenizer.eos, soi=tokenizer.soi, eoi=tokenizer.eoi)
    model = randomise(UniX(tiny_config(vocab_size=tokenizer.size, latent_channels=4, max_latent_size=4, **ids)))
    vae = tiny_vae()
    vae.decoder.conv_out.weight.data *= 5           # a picture with contrast
    return model, vae, tokenizer


def write(run, model, vae, tokenizer, **changes):
    """A checkpoint; changes: name of a model tensor -> another tensor, or None to leave it out."""
    tensors = {**weights.model_tensors(model), **changes}
    checkpoint.save(run, 1, config=weights.describe(model, vae), tokenizer=tokenizer.json, tensors={
        "model": {k: v for k, v in tensors.items() if v is not None}, "vae": vae.state_dict()})
    return run / "00000001"


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory):
    out = tmp_path_factory.mktemp("sample")
    write(out, *parts(phantom))
    return out


@pytest.fixture(scope="module")
def loaded(run):
    return weights.load(run)


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + 8 * i, 48), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"film{i}.png")
    return folder


# ---- drawing ----

def test_noise_is_of_seed_and_number_alone(loaded, monkeypatch):
    drawn = []
    monkeypatch.setitem(flow.SOLVERS, "probe", (lambda velocity, noise, times, progress: drawn.append(noise) or noise, 1))

    def noise(reports, num=1, numbers=None, **settings):
        drawn.clear()
        sampling = sample.Sampling(solver="probe", **settings)
        sample.generate_images(*loaded, reports, sampling, num, numbers, progress=False)
        return torch.cat(drawn).unflatten(0, (len(reports), -1))

    four = noise(REPORTS[:1], num=4, seed=5)[0]
    for k in range(4):
        assert torch.equal(four[k], torch.randn(4, 4, 4, generator=generator(5, k)))
    assert len(four.flatten(1).unique(dim=0)) == 4
    for reports, kw in ((REPORTS, dict(batch=2)), (REPORTS[::-1], dict(batch=5)), (REPORTS[1:2], dict(batch=1))):
        assert all(torch.equal(row, four) for row in noise(reports, num=4, seed=5, **kw))
    assert torch.equal(noise(REPORTS[:2], numbers=[3, 1], seed=5)[:, 0], four[[3, 1]])
    assert not torch.equal(noise(REPORTS[:1], num=4, seed=6)[0], four)


def test_batches_do_not_matter(loaded):
    images = {b: sample.generate_images(*loaded, REPORTS, sample.Sampling(steps=4, batch=b), num=3, progress=False) for b in (1, 3, 7)}
    assert images[1].shape == (3, 3, 32, 32) and images[1].dtype == np.uint8 and images[1].std() > 5
    for b in (3, 7):
        assert np.abs(images[b].astype(int) - images[1]).max() <= 1
    flat = images[1].reshape(9, -1)
    assert len(np.unique(flat, axis=0)) == 9, "every report and every number has its own picture"


def test_batches_in_bfloat16(run):
    model, vae, tokenizer = weights.load(run, dtype=torch.bfloat16)
    images = [sample.generate_images(model, vae, tokenizer, REPORTS, sample.Sampling(steps=4, batch=b), num=2,
                                     progress=False).astype(float) for b in (1, 4)]
    error = ((images[0] - images[1]) ** 2).mean()
    assert error == 0 or 10 * math.log10(255 ** 2 / error) >= 40


@pytest.mark.parametrize("solver", flow.SOLVERS)
def test_one_image_by_hand(loaded, solver):
    """Two separate contexts, guidance only inside the interval, one image: no batch, no rows, no drop."""
    model, vae, tokenizer = loaded
    calls = []

    @torch.no_grad()
    def velocity(x, t):
        cond = model.velocity(x, t, model.prefill_text(torch.tensor([tokenizer.prompt(REPORTS[0])]))[1])
        calls.append(bool(0.3 < t <= 0.9))
        return flow.guide(cond, model.velocity(x, t), 3.0, "channel") if calls[-1] else cond

    noise = torch.randn(1, 4, 4, 4, generator=generator(2, 0))
    with torch.no_grad():
        pixels = vae.decode(flow.SOLVERS[solver][0](velocity, noise, flow.schedule(5, 2.0))).mean(1)
    want = (pixels.clamp(-1, 1) * 127.5 + 127.5).round().byte().numpy()
    sampling = sample.Sampling(seed=2, steps=5, solver=solver, shift=2.0, cfg=3.0, cfg_interval=(0.3, 0.9), renorm="channel")
    got = sample.generate_images(*loaded, REPORTS[:1], sampling, progress=False)[0]
    assert np.abs(got.astype(int) - want).max() <= 1 and True in calls and False in calls


def test_size(loaded):
    assert sample.generate_images(*loaded, REPORTS[:1], sample.Sampling(steps=1, size=16), progress=False).shape == (1, 1, 16, 16)
    for size in (12, 40, 64):
        with pytest.raises(InputError, match="multiples of 8 up to 32"):
            sample.generate_images(*loaded, REPORTS[:1], sample.Sampling(steps=1, size=size), progress=False)


# ---- reading ----

class Raw:
    """The tokenizer with another end of sequence, whose `decode` gives the bare ids up to it."""

    def __init__(self, tokenizer, eos):
        self.bos, self.eos, self.prompt = tokenizer.bos, eos, tokenizer.prompt

    def decode(self, ids):
        return ids[:ids.index(self.eos)] if self.eos in ids else ids


def pictures(n=7):
    return torch.randint(0, 256, (n, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@torch.no_grad()
def slow_report(model, tokenizer, image, most):
    """Greedy, everything from the start for every token."""
    ids = [tokenizer.bos]
    while len(ids) <= most:
        _, cache = model.prefill_image(normalize(image[None, None].float() / 255, model.cfg.vision))
        _, cache = model.prefill_text(torch.tensor([tokenizer.prompt("Describe.")]), cache=cache)
        hidden, _ = model.prefill_text(torch.tensor([ids]), cache=cache)
        ids.append(int(model.logits(hidden[0, -1]).argmax()))
        if ids[-1] == tokenizer.eos:
            break
    return [i for i in ids[1:] if i != tokenizer.eos]


def test_reports_token_by_token(loaded):
    """Batches of 1, 3, 7 and the slow way agree, although some reports end early."""
    model, _, tokenizer = loaded
    read = lambda eos, b: sample.generate_reports(model, Raw(tokenizer, eos), pictures(), "Describe.", max_tokens=16, batch=b,
                                                  progress=False)
    endless = read(-1, 7)
    assert {len(ids) for ids in endless} == {16}
    shared = [t for t in endless[0][2:12] if any(t not in ids for ids in endless[1:]) or True][0]
    reports = read(shared, 1)
    assert len({len(ids) for ids in reports}) > 1
    assert read(shared, 3) == reports and read(shared, 7) == reports
    raw = Raw(tokenizer, shared)
    assert [slow_report(model, raw, image, 16) for image in pictures()] == reports


def test_sampled_reports_depend_on_seed_and_image_number(loaded):
    model, _, tokenizer = loaded
    read = lambda b, seed: sample.generate_reports(model, Raw(tokenizer, -1), pictures(), "Describe.", temperature=1.0, top_p=0.9,
                                                   max_tokens=8, batch=b, seed=seed, progress=False)
    assert read(1, 0) == read(3, 0) == read(7, 0) != read(7, 1)
    assert len(set(map(tuple, sample.generate_reports(model, Raw(tokenizer, -1), pictures(1).repeat(4, 1, 1), temperature=1.0,
                                                      max_tokens=8, progress=False)))) > 1


def test_choose():
    logits = torch.tensor([[0.0, 5.0, 1.0], [3.0, 2.9, -9.0]])
    rngs = lambda n: [generator(n, i) for i in range(2)]
    assert sample.choose(logits, 0, 1.0, rngs(0)).tolist() == [[1], [0]]
    assert all(sample.choose(logits, 1.0, 0.3, rngs(n)).tolist() == [[1], [0]] for n in range(20))     # nucleus of one
    drawn = torch.cat([sample.choose(logits, 1.0, 1.0, rngs(n)) for n in range(400)], 1)
    assert abs((drawn[1] == 0).float().mean() - torch.tensor([3.0, 2.9, -9.0]).softmax(-1)[0]) < 0.08
    drawn = torch.cat([sample.choose(logits, 1.0, 0.9, rngs(n)) for n in range(100)], 1)
    assert set(drawn[1].tolist()) == {0, 1} and set(drawn[0].tolist()) == {1}


# ---- the command line ----

def main(run, *argv):
    return sample.main(["--checkpoint", str(run), "--device", "cpu", *map(str, argv)])


def test_picture_with_its_settings(run, tmp_path, capsys):
    out = tmp_path / "x.png"
    assert main(run, "--report", REPORTS[0], "--out", out, "--steps", 3, "--seed", 4) == 0
    image = Image.open(out)
    assert image.size == (32, 32) and image.mode == "L" and [p.name for p in tmp_path.iterdir()] == ["x.png"]
    assert image.text["notice"] == NOTICE and image.text["reports"] == REPORTS[0]
    settings = {k: json.loads(image.text[k]) for k in ("seed", "steps", "cfg", "size", "image", "cfg_interval")}
    assert settings == {"seed": 4, "steps": 3, "cfg": 2.0, "size": 32, "image": 0, "cfg_interval": [0.4, 1.0]}
    captured = capsys.readouterr()
    assert captured.out == f"{out}: {REPORTS[0]}\n" and NOTICE in captured.err


def test_names_of_several(run, tmp_path, capsys):
    main(run, "--report", *REPORTS[:2], "--num", 2, "--out", tmp_path / "x.png", "--steps", 1, "--json")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"x-00{n}.png" for n in range(4)]
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["report"], row["image"]) for row in rows] == [(r, k) for r in REPORTS[:2] for k in (0, 1)]
    for row in rows:
        assert Image.open(row["file"]).text["reports"] == row["report"]


def test_reports_from_a_file_and_a_grid(run, tmp_path, capsys):
    (tmp_path / "r.txt").write_text(f"{REPORTS[0]}\n\n  \n{REPORTS[1]}\n")
    main(run, "--reports", tmp_path / "r.txt", "--num", 3, "--grid", "--out", tmp_path / "g.png", "--steps", 1)
    image = Image.open(tmp_path / "g.png")
    assert image.width > 3 * 64 and json.loads(image.text["reports"]) == REPORTS[:2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.png", "r.txt"]


def test_reading_a_folder(run, films, capsys):
    assert main(run, "--image", films, "--max-tokens", 6, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == [str(films / f"film{i}.png") for i in range(3)]
    assert all(row["notice"] == NOTICE for row in rows)
    main(run, "--image", films / "film1.png", "--max-tokens", 6)
    assert capsys.readouterr().out.strip() == rows[1]["report"]


def test_one_bad_of_three(run, films, tmp_path, capsys):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    files = [films / "film0.png", tmp_path / "bad.png", films / "film2.png"]
    assert main(run, "--image", *files, "--max-tokens", 4, "--json") == 1
    captured = capsys.readouterr()
    assert [json.loads(line)["file"] for line in captured.out.splitlines()] == [str(files[0]), str(files[2])]
    assert captured.err.count("error: ") == 1 and "bad.png" in captured.err
    assert main(run, "--report", REPORTS[0], " ", "--out", tmp_path / "x.png", "--steps", 1) == 1
    assert (tmp_path / "x.png").exists()


def test_a_good_image_beside_an_empty_report(run, films, tmp_path, capsys):
    line = ["--image", films / "film1.png", "--max-tokens", 4, "--out", tmp_path / "x.png"]
    assert main(run, *line) == 0
    alone = capsys.readouterr().out
    assert main(run, *line, "--report", " ") == 1
    captured = capsys.readouterr()
    assert captured.out == alone and not list(tmp_path.iterdir())
    assert captured.err.count("error: ") == 1 and "report 1 is empty" in captured.err


@pytest.mark.parametrize("argv, words", [      # one word an error
    (["--report", " "], ["report 1 is empty"]), (["--report", "effusion " * 200], ["shorten"]),
    (["--image", "missing.png"], ["missing.png cannot be read"]), (["--image", "TMP"], ["holds no image"]),
    (["--report", " ", "--image", "missing.png", "TMP"], ["holds no image", "report 1 is empty", "missing.png cannot be read"])])
def test_nothing_that_can_be_done(run, tmp_path, argv, words, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(run, *(str(tmp_path) if word == "TMP" else word for word in argv)) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == len(words) and all(word in line for word, line in zip(words, errors))
    assert captured.out == "" and not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv, words", [
    ([], "nothing to do"), (["--reprot", "x"], "--report"),
    (["--reports", "missing.txt"], "missing.txt is missing"), (["--reports", "TMP"], "not a text file"),
    (["--report", "x", "--out", "missing/x.png"], "cannot be written"), (["--report", "x", "--out", "TMP"], "cannot be written"),
    (["--report", "x", "--out", "x.jpg"], ".png"), (["--report", "x", "--size", "100"], "multiples of 8"),
    (["--report", "x", "--solver", "rk4"], "euler, heun, ab2"), (["--report", "x", "--num", "0"], "at least 1"),
    (["--report", "x", "--steps", "-1"], "at least 1"), (["--report", "x", "--top-p", "2"], "top-p"),
    (["--report", "x", "--dtype", "float16"], "float32, bfloat16"), (["--report", "x", "--device", "tpu"], "cpu, cuda"),
    (["--report", "x", "--preset", "best"], "release"), (["--image", "FILM", "--prompt", "what " * 200], "prompt"),
    (["--report", "x", "--steps", "nan"], "int"), (["--report", "x", "--cfg", "nan"], "cfg"),
    (["--report", "x", "--shift", "inf"], "shift")])
def test_asked_wrongly(run, films, tmp_path, argv, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    argv = [{"TMP": str(tmp_path), "FILM": str(films / "film0.png")}.get(word, word) for word in argv]
    with pytest.raises(InputError) as error:
        main(run, *argv)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_reports_that_are_no_text(run, tmp_path):
    (tmp_path / "r.txt").write_bytes(b"\xff\xfe\x00broken\xff")
    with pytest.raises(InputError):
        main(run, "--reports", tmp_path / "r.txt", "--out", tmp_path / "x.png")
    (tmp_path / "r.txt").write_text("\n \n")
    with pytest.raises(InputError):
        main(run, "--reports", tmp_path / "r.txt", "--out", tmp_path / "x.png")


def edit_config(directory, change):
    config = json.loads((directory / "config.json").read_text())
    change(config)
    (directory / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("changes, words", [
    ({"layers.1.g.mlp.up.weight": None}, "missing there: layers.1.g.mlp.up.weight"),
    ({"layers.1.g.mlp.up.weight": torch.zeros(5, 64)}, "layers.1.g.mlp.up.weight has shape"),
    ({"layers.7.extra": torch.zeros(2)}, "unknown to us: layers.7.extra"),
    ({"norm_u.weight": torch.ones(64, dtype=torch.int64)}, "floating-point")])
def test_a_checkpoint_that_does_not_fit(phantom, tmp_path, changes, words):
    write(tmp_path, *parts(phantom), **changes)
    with pytest.raises(InputError, match=words) as error:
        main(tmp_path, "--report", "x", "--out", tmp_path / "x.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("harm", [
    lambda d: (d / "vae.safetensors").unlink(), lambda d: (d / "tokenizer.json").unlink(),
    lambda d: (d / "model.safetensors").write_bytes((d / "model.safetensors").read_bytes()[:-7]),
    lambda d: (d / "tokenizer.json").write_bytes((d / "tokenizer.json").read_bytes()[:-7]),
    lambda d: edit_config(d, lambda c: c.update(format="other")), lambda d: edit_config(d, lambda c: c.pop("model")),
    lambda d: edit_config(d, lambda c: c.pop("vae")), lambda d: edit_config(d, lambda c: c["model"].update(n_widgets=3)),
    lambda d: edit_config(d, lambda c: c["model"].update(n_head=5))],
    ids=["no vae", "no tokenizer", "cut", "tokenizer cut", "other format", "no model", "vae not listed", "unknown field",
         "sizes that do not fit"])
def test_a_damaged_checkpoint(phantom, tmp_path, harm):
    harm(write(tmp_path, *parts(phantom)))
    with pytest.raises(InputError) as error:
        main(tmp_path, "--report", "x", "--out", tmp_path / "x.png")
    assert "\n" not in str(error.value)


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at"):
        main(tmp_path / "none", "--report", "x")


@pytest.mark.parametrize("argv, code", [(["--report", " "], 2), (["--image", "missing.png"], 2)])
def test_from_outside(run, argv, code, tmp_path):
    done = subprocess.run([sys.executable, ROOT / "sample.py", "--checkpoint", run, *argv], capture_output=True, text=True,
                          cwd=tmp_path)
    assert done.returncode == code and done.stdout == "" and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if line != NOTICE] == [s for s in done.stderr.splitlines() if
                                                                             s.startswith("error: ")]
