"""sample.py on a tiny random checkpoint: noise by (seed, k), batches that do not matter, and every
way to ask wrongly."""
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

import flow
import sample
import weights
from common.cli import InputError
from common.images import NOTICE
from common.packed import Packed
from common.processes import generator
from helpers import randomise, tiny_config, tiny_vae
from model import UniX
from sample import Sampling
from tokenizer import Tokenizer
from vision import normalize
from weights import checkpoint

REPORTS = ["Large left effusion.", "No effusion.", "The heart is enlarged. There is a nodule."]


@pytest.fixture(scope="module")
def run(phantom, tmp_path_factory):
    """A checkpoint of a random network that draws and reads 32 pixels."""
    tokenizer = Tokenizer.with_named_ids(phantom / "tokenizer.json")
    ids = dict(bos=tokenizer.bos, eos=tokenizer.eos, soi=tokenizer.soi, eoi=tokenizer.eoi)
    sizes = dict(vocab_size=tokenizer.size, latent_channels=4, max_latent_size=4)
    model, vae = randomise(UniX(tiny_config(**sizes, **ids))), tiny_vae()
    vae.decoder.conv_out.weight.data *= 5                   # a picture with contrast
    tensors = {"model": weights.model_tensors(model), "vae": vae.state_dict()}
    out = tmp_path_factory.mktemp("sample")
    checkpoint.save(out, 1, config=weights.describe(model, vae), tensors=tensors,
                    tokenizer=tokenizer.json)
    return out


@pytest.fixture(scope="module")
def loaded(run):
    return weights.load(run)


def images(loaded, reports=REPORTS, num=1, numbers=None, **settings):
    sampling = Sampling(**{"steps": 4, **settings})
    return sample.generate_images(*loaded, reports, sampling, num, numbers, progress=False)


# ---- report -> image ----

def test_noise_is_of_seed_and_number_alone(loaded, monkeypatch):
    batches = []

    def probe(velocity, noise, times, progress):
        batches.append(noise)
        return noise

    monkeypatch.setitem(flow.SOLVERS, "probe", (probe, 1))

    def noise(reports, **settings):
        batches.clear()
        images(loaded, reports, solver="probe", **settings)
        return torch.cat(batches).unflatten(0, (len(reports), -1))

    four = torch.stack([torch.randn(4, 4, 4, generator=generator(5, k)) for k in range(4)])
    assert torch.equal(noise(REPORTS[:1], num=4, seed=5)[0], four)
    for reports, batch in ((REPORTS, 2), (REPORTS[::-1], 5), (REPORTS[1:2], 1)):
        for row in noise(reports, num=4, seed=5, batch=batch):
            assert torch.equal(row, four)
    assert torch.equal(noise(REPORTS[:2], numbers=[3, 1], seed=5)[:, 0], four[[3, 1]])
    assert not torch.equal(noise(REPORTS[:1], num=4, seed=6)[0], four)


def test_batches_do_not_matter(loaded):
    """One by one, three or seven at once; every report and every number has its own picture."""
    alone = images(loaded, num=3, batch=1)
    assert alone.shape == (3, 3, 32, 32)
    assert alone.dtype == np.uint8
    assert alone.std() > 5
    assert len(np.unique(alone.reshape(9, -1), axis=0)) == 9
    for batch in (3, 7):
        together = images(loaded, num=3, batch=batch)
        assert np.abs(together.astype(int) - alone).max() <= 1


def test_batches_hardly_matter_in_bfloat16(run):
    loaded = weights.load(run, dtype=torch.bfloat16)
    alone, together = (images(loaded, num=2, batch=batch).astype(float) for batch in (1, 4))
    error = ((alone - together) ** 2).mean()
    assert error == 0 or 10 * math.log10(255 ** 2 / error) >= 40        # decibel


@torch.no_grad()
@pytest.mark.parametrize("solver", flow.SOLVERS)
def test_one_image_by_hand(loaded, solver):
    """Two contexts apart, guidance only inside the interval: no batch, no rows, no drop."""
    model, vae, tokenizer = loaded
    _, cache = model.prefill_text(torch.tensor([tokenizer.prompt(REPORTS[0])]))
    guided = []

    def velocity(x, t):
        guided.append(bool(0.3 < t <= 0.9))
        v = model.velocity(x, t, cache)
        return flow.guide(v, model.velocity(x, t), 3.0, "channel") if guided[-1] else v

    solve, _ = flow.SOLVERS[solver]
    noise = torch.randn(1, 4, 4, 4, generator=generator(2, 0))
    reference = vae.pictures(solve(velocity, noise, flow.schedule(5, 2.0)))
    picture = images(loaded, REPORTS[:1], seed=2, steps=5, solver=solver, shift=2.0, cfg=3.0,
                     cfg_interval=(0.3, 0.9), renorm="channel")[0]
    assert np.abs(picture.astype(int) - reference.numpy()).max() <= 1
    assert set(guided) == {True, False}


def test_sizes_that_a_checkpoint_draws(loaded):
    assert images(loaded, REPORTS[:1], size=16).shape == (1, 1, 16, 16)
    for size in (12, 40, 64):
        with pytest.raises(InputError, match="multiples of 8 up to 32"):
            images(loaded, size=size)
    model, _, tokenizer = loaded
    with pytest.raises(InputError, match="cannot draw"):
        images((model, None, tokenizer))


# ---- image -> report ----

class Raw:
    """The tokenizer with another end of sequence, whose `decode` gives the ids up to it."""

    def __init__(self, tokenizer, eos):
        self.bos = tokenizer.bos
        self.eos = eos
        self.prompt = tokenizer.prompt

    def decode(self, ids):
        return ids[:ids.index(self.eos)] if self.eos in ids else ids


def films(n=7):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n, 32, 32), dtype=np.uint8))


def written(loaded, eos, pictures=films(), **settings):
    model, _, tokenizer = loaded
    return sample.generate_reports(model, Raw(tokenizer, eos), pictures, "Describe.",
                                   progress=False, **settings)


@torch.no_grad()
def slow_report(model, tokenizer, image, eos, longest):
    """Greedy, everything from the start for every token."""
    ids = [tokenizer.bos]
    while len(ids) <= longest and ids[-1] != eos:
        pixels = normalize(image[None, None].float() / 255, model.cfg.vision)
        _, cache = model.prefill_image(pixels)
        _, cache = model.prefill_text(torch.tensor([tokenizer.prompt("Describe.")]), cache=cache)
        hidden, _ = model.prefill_text(torch.tensor([ids]), cache=cache)
        ids.append(int(model.logits(hidden[0, -1]).argmax()))
    return [i for i in ids[1:] if i != eos]


def test_reports_token_by_token(loaded):
    """Batches of 1, 3 and 7 and the slow way agree, although some reports end early."""
    model, _, tokenizer = loaded
    endless = written(loaded, eos=-1, max_tokens=16)
    assert {len(ids) for ids in endless} == {16}
    eos = endless[0][2]
    reports = written(loaded, eos, max_tokens=16, batch=1)
    assert len({len(ids) for ids in reports}) > 1
    for batch in (3, 7):
        assert written(loaded, eos, max_tokens=16, batch=batch) == reports
    assert [slow_report(model, tokenizer, image, eos, 16) for image in films()] == reports


def test_drawn_words_depend_on_seed_and_image_number(loaded):
    draw = dict(eos=-1, temperature=1.0, top_p=0.9, max_tokens=8)
    alone = written(loaded, batch=1, **draw)
    assert written(loaded, batch=3, **draw) == alone
    assert written(loaded, batch=7, seed=1, **draw) != alone
    same_film = written(loaded, pictures=films(1).repeat(4, 1, 1), **draw)
    assert len(set(map(tuple, same_film))) > 1


def test_choose():
    logits = torch.tensor([[0.0, 5.0, 1.0], [3.0, 2.9, -9.0]])

    def draws(n, temperature, top_p):
        rows = [sample.choose(logits, temperature, top_p, [generator(i, 0), generator(i, 1)])
                for i in range(n)]
        return torch.cat(rows, dim=1)

    assert draws(1, 0, 1.0).tolist() == [[1], [0]], "the most likely"
    assert draws(20, 1.0, 0.3).unique(dim=1).tolist() == [[1], [0]], "a nucleus of one"
    assert draws(100, 1.0, 0.9)[1].unique().tolist() == [0, 1], "a nucleus of two"
    share = (draws(400, 1.0, 1.0)[1] == 0).float().mean()
    assert abs(share - logits[1].softmax(-1)[0]) < 0.08


def test_something_to_look_at_while_training(loaded, phantom, tmp_path):
    data = Packed(phantom, "gen", 32, "val")
    sample.show_drawn(*loaded, data, tmp_path / "samples" / "1.png", n=2)
    assert Image.open(tmp_path / "samples" / "1.png").text["notice"] == NOTICE
    model, _, tokenizer = loaded
    sample.show_written(model, tokenizer, data, tmp_path / "samples" / "1.txt", n=2)
    text = (tmp_path / "samples" / "1.txt").read_text()
    assert text.count("given ") == text.count("written ") == 2
    assert data.rows[1]["report"] in text
    assert text.endswith(NOTICE + "\n")


# ---- the command line ----

@pytest.fixture
def main(run, tmp_path, monkeypatch):
    """The script with the tiny checkpoint, in a directory that holds inputs/, good and bad."""
    monkeypatch.chdir(tmp_path)
    inputs = tmp_path / "inputs"
    (inputs / "films").mkdir(parents=True)
    (inputs / "empty").mkdir()
    for i, film in enumerate(films(3)):
        Image.fromarray(film.numpy()).save(inputs / "films" / f"film{i}.png")
    (inputs / "bad.png").write_bytes(b"no picture")
    (inputs / "reports.txt").write_text(f"{REPORTS[0]}\n\n  \n{REPORTS[1]}\n")
    (inputs / "blank.txt").write_text("\n \n")
    (inputs / "binary.txt").write_bytes(b"\xff\xfe\x00broken\xff")

    def main(*words):
        return sample.main(["--checkpoint", str(run), "--device", "cpu", *map(str, words)])

    return main


def pngs(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".png")


def test_a_picture_carries_its_settings(main, tmp_path, capsys):
    assert main("--report", REPORTS[0], "--out", "x.png", "--steps", 3, "--seed", 4) == 0
    image = Image.open("x.png")
    assert (image.size, image.mode, pngs(tmp_path)) == ((32, 32), "L", ["x.png"])
    assert image.text["notice"] == NOTICE
    assert image.text["reports"] == REPORTS[0]
    settings = {"seed": "4", "steps": "3", "cfg_interval": "[0.4, 1.0]", "size": "32", "image": "0"}
    assert settings.items() <= image.text.items()
    printed = capsys.readouterr()
    assert printed.out == f"x.png: {REPORTS[0]}\n"
    assert NOTICE in printed.err


def test_several_pictures_are_numbered(main, tmp_path, capsys):
    main("--report", *REPORTS[:2], "--num", 2, "--out", "x.png", "--steps", 1, "--json")
    assert pngs(tmp_path) == [f"x-00{n}.png" for n in range(4)]
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pairs = [(report, k) for report in REPORTS[:2] for k in range(2)]
    assert [(row["report"], row["image"]) for row in rows] == pairs
    for row in rows:
        assert Image.open(row["file"]).text["reports"] == row["report"]


def test_a_grid_of_reports_from_a_file(main, tmp_path):
    main("--reports", "inputs/reports.txt", "--num", 3, "--grid", "--out", "x.png", "--steps", 1)
    assert pngs(tmp_path) == ["x.png"]
    image = Image.open("x.png")
    assert image.width > 3 * 64
    assert json.loads(image.text["reports"]) == REPORTS[:2]


def test_a_folder_is_read(main, capsys):
    assert main("--image", "inputs/films", "--max-tokens", 6, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == [f"inputs/films/film{i}.png" for i in range(3)]
    assert all(row["notice"] == NOTICE for row in rows)
    main("--image", "inputs/films/film1.png", "--max-tokens", 6)
    assert capsys.readouterr().out.strip() == rows[1]["report"]


def test_what_is_bad_is_named_and_the_rest_is_done(main, tmp_path, capsys):
    """Exit code 1, and the same results as without it."""
    good = ["inputs/films/film0.png", "inputs/films/film2.png"]
    line = ["--max-tokens", 4, "--json", "--out", "x.png", "--steps", 1]
    assert main("--image", *good, "--report", REPORTS[0], *line) == 0
    expected = capsys.readouterr().out
    more = ["--image", good[0], "inputs/bad.png", good[1], "inputs/empty", "missing.png"]
    assert main(*more, "--report", REPORTS[0], " ", *line) == 1
    printed = capsys.readouterr()
    assert printed.out == expected
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 4
    for word in ("bad.png", "inputs/empty holds no image", "missing.png", "report 2 is empty"):
        assert word in printed.err


def test_nothing_that_can_be_done(main, tmp_path, capsys):
    """Exit code 2, and a sentence about each."""
    long_report = "effusion " * 200
    assert main("--report", " ", long_report, "--image", "missing.png", "inputs/empty") == 2
    printed = capsys.readouterr()
    _, *errors = printed.err.splitlines()                   # after the notice
    sentences = ["holds no image", "no image at missing.png", "report 1 is empty", "shorten it"]
    assert len(errors) == len(sentences)
    assert all(sentence in error for sentence, error in zip(sentences, errors))
    assert (printed.out, pngs(tmp_path)) == ("", [])


@pytest.mark.parametrize("line, words", [
    ("", "nothing to do"),
    ("--reports missing.txt", "missing.txt is missing"),
    ("--reports inputs", "not a text file"),
    ("--reports inputs/binary.txt", "not a text file"),
    ("--reports inputs/blank.txt", "nothing to do"),
    ("--report x --out missing/x.png", "cannot be written"),
    ("--report x --out inputs", "cannot be written"),
    ("--report x --out x.jpg", "name a .png file"),
    ("--report x --checkpoint nowhere", "no checkpoint at nowhere"),
    ("--report x --size 100", "multiples of 8"),
    ("--report x --solver rk4", "euler, heun, ab2"),
    ("--report x --renorm local", "global, channel, none"),
    ("--report x --cfg-interval 1 0", "below the second"),
    ("--report x --num 0", "--num must be at least 1"),
    ("--report x --batch 0", "--batch must be at least 1"),
    ("--report x --steps -1", "--steps must be at least 1"),
    ("--report x --shift 0", "--shift must be positive"),
    ("--image inputs/films --top-p 2", "--top-p"),
    ("--image inputs/films --temperature -1", "--temperature"),
    ("--image inputs/films --max-tokens -1", "--max-tokens"),
    ("--image inputs/films --prompt=" + "what," * 200, "--prompt is longer"),
])
def test_asked_wrongly(main, tmp_path, line, words):
    """One sentence, before anything is written."""
    with pytest.raises(InputError) as error:
        main(*line.split())
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert pngs(tmp_path) == []
