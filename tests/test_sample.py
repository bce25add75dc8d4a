"""sample.py on a tiny random checkpoint: by hand, in batches, and asked wrongly."""
import copy
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import flow
import sample
import weights
from common.cli import InputError, cli
from common.images import NOTICE
from common.processes import generator
from helpers import dicom_file, randomise, tiny_config, tiny_vae
from model import UniX
from sample import Sampling
from tokenizer import Tokenizer
from vae import VAE
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
        images(loaded, reports, solver="probe", seed=5, **settings)
        return torch.cat(batches).unflatten(0, (len(reports), -1))

    four = torch.stack([torch.randn(4, 4, 4, generator=generator(5, k)) for k in range(4)])
    for reports, batch in ((REPORTS, 2), (REPORTS[::-1], 5), (REPORTS[1:2], 1)):
        for row in noise(reports, num=4, batch=batch):
            assert torch.equal(row, four)
    assert torch.equal(noise(REPORTS[:2], numbers=[3, 1])[:, 0], four[[3, 1]])


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 0.1), (torch.bfloat16, 2.55)])
def test_batches_do_not_matter(run, dtype, tolerance):
    """Root mean square of the difference in grey levels: 2.55 is 40 dB."""
    loaded = weights.load(run, dtype=dtype)
    alone = images(loaded, num=2, batch=1)
    assert alone.shape == (3, 2, 32, 32) and alone.dtype == np.uint8
    assert len(np.unique(alone.reshape(6, -1), axis=0)) == 6, "every picture is another"
    difference = images(loaded, num=2, batch=4) - alone.astype(float)
    assert (difference ** 2).mean() ** 0.5 <= tolerance


@torch.no_grad()
def test_one_image_by_hand(loaded):
    """Two contexts apart, guidance only inside the interval: no batch, no rows, no drop."""
    model, vae, tokenizer = loaded
    _, cache = model.prefill_text(torch.tensor([tokenizer.prompt(REPORTS[0])]))
    guided = []

    def velocity(x, t):
        guided.append(bool(0.3 < t <= 0.7))
        v = model.velocity(x, t, cache)
        return flow.guide(v, model.velocity(x, t), 3.0, "channel") if guided[-1] else v

    noise = torch.randn(1, 4, 4, 4, generator=generator(2, 0))
    reference = vae.pictures(flow.heun(velocity, noise, flow.schedule(5, 2.0)))
    picture = images(loaded, REPORTS[:1], seed=2, steps=5, solver="heun", shift=2.0, cfg=3.0,
                     cfg_interval=(0.3, 0.7), renorm="channel")[0]
    assert reference.float().std() > 5
    assert np.abs(picture.astype(int) - reference.numpy()).max() <= 1
    assert set(guided) == {True, False}


def test_what_a_checkpoint_draws(loaded):
    model, _, tokenizer = loaded
    assert images(loaded, REPORTS[:1], size=16).shape == (1, 1, 16, 16)
    for parts, size, sentence in (
        (loaded, 12, "multiples of 8 up to 32"),
        (loaded, 40, "multiples of 8 up to 32"),
        ((model, None, tokenizer), 32, "cannot draw"),
    ):
        with pytest.raises(InputError, match=sentence):
            images(parts, size=size)


# ---- image -> report ----

def films(n=7):
    rng = np.random.default_rng(0)
    return torch.from_numpy(rng.integers(0, 256, (n, 32, 32), dtype=np.uint8))


def written(loaded, pictures=films(), **settings):
    model, _, tokenizer = loaded
    return sample.generate_reports(model, tokenizer, pictures, "Describe.", max_tokens=8,
                                   progress=False, **settings)


@torch.no_grad()
def slow_ids(model, tokenizer, image):
    """Eight greedy tokens, everything from the start for each of them."""
    ids = [tokenizer.bos]
    for _ in range(8):
        pixels = normalize(image[None, None].float() / 255, model.cfg.vision)
        _, cache = model.prefill_image(pixels)
        _, cache = model.prefill_text(torch.tensor([tokenizer.prompt("Describe.")]), cache=cache)
        hidden, _ = model.prefill_text(torch.tensor([ids]), cache=cache)
        ids.append(int(model.logits(hidden[0, -1]).argmax()))
    return ids[1:]


def test_reports_are_greedy_and_batches_do_not_matter(loaded):
    """Also where some reports of a batch end before the others."""
    model, vae, tokenizer = loaded
    ids = [slow_ids(model, tokenizer, image) for image in films()]
    early = copy.copy(tokenizer)                # a word of the first report ends reports
    early.eos = ids[0][2]
    early.prompt = tokenizer.prompt
    assert {early.eos in row for row in ids} == {True, False}
    for batch in (1, 3):
        reports = written((model, vae, early), batch=batch)
        assert reports == [early.decode(row) for row in ids]


@torch.no_grad()
def test_a_long_report_is_that_of_the_growing_cache(loaded, monkeypatch):
    """One longer than the 64 slots for tokens that a decode cache has on a CPU."""
    model, vae, tokenizer = loaded
    monkeypatch.setattr(model.cfg, "max_text", 200)
    image, ids = films(1), [tokenizer.bos]
    _, cache = model.prefill_image(normalize(image[:, None].float() / 255, model.cfg.vision))
    _, cache = model.prefill_text(torch.tensor([tokenizer.prompt("Describe.")]), cache=cache)
    for _ in range(150):
        hidden, cache = model.prefill_text(torch.tensor([ids[-1:]]), cache=cache)
        ids.append(int(model.logits(hidden[0, -1]).argmax()))
    endless = copy.copy(tokenizer)              # no word ends a report
    endless.eos = -1
    endless.prompt = tokenizer.prompt
    endless.decode = list
    report, = sample.generate_reports(
        model, endless, image, "Describe.", max_tokens=150, progress=False)
    assert report == ids[1:]


def test_drawn_words_depend_on_seed_and_image_number(loaded):
    draw = dict(temperature=1.0, top_p=0.9)
    alone = written(loaded, batch=1, **draw)
    assert written(loaded, batch=3, **draw) == alone
    assert written(loaded, seed=1, **draw) != alone
    assert len(set(written(loaded, films(1).repeat(4, 1, 1), **draw))) > 1, "one film four times"


def test_choose():
    logits = torch.tensor([[0.0, 5.0, 1.0], [3.0, 2.9, -9.0]])

    def draws(n, temperature, top_p):
        rows = [sample.choose(logits, temperature, top_p, [generator(i, 0), generator(i, 1)])
                for i in range(n)]
        return torch.cat(rows, dim=1)

    assert draws(1, 0, 1.0).tolist() == [[1], [0]], "the most likely"
    assert draws(20, 1.0, 0.3).unique(dim=1).tolist() == [[1], [0]], "a nucleus of one"
    assert draws(100, 1.0, 0.9)[1].unique().tolist() == [0, 1], "a nucleus of two"
    for temperature in (0.05, 1.0):
        share = (draws(400, temperature, 1.0)[1] == 0).float().mean()
        assert abs(share - (logits[1] / temperature).softmax(-1)[0]) < 0.08


# ---- numbers that are none ----

def failing(monkeypatch, kind, name, nth, value):
    """Call number `nth` of a network's method, counted from 1, has one number that is none."""
    real = vars(kind)[name]
    calls = []

    def method(self, *args):
        result = real(self, *args)
        calls.append(name)
        if len(calls) == nth:
            result[-1, -1] = value
        return result
    monkeypatch.setattr(kind, name, method)


@pytest.mark.parametrize("solver, nth, place", [
    ("ab2", 3, "the velocity at step 3 of 4"), ("heun", 5, "the velocity at step 3 of 4")])
def test_no_picture_is_made_of_a_velocity_without_numbers(loaded, monkeypatch, solver, nth, place):
    failing(monkeypatch, UniX, "velocity", nth, torch.nan)
    with pytest.raises(FloatingPointError, match=place):
        images(loaded, solver=solver)


def test_no_picture_is_made_of_pixels_without_numbers(loaded, monkeypatch):
    failing(monkeypatch, VAE, "decode", 1, torch.inf)
    with pytest.raises(FloatingPointError, match="decoded is not finite"):
        images(loaded)


@pytest.mark.parametrize("temperature, place", [(0.0, "a logit of token 2"), (1.0, "probability")])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_no_report_is_made_of_logits_without_numbers(
        loaded, monkeypatch, temperature, place, value):
    model = loaded[0]
    real = model.logits
    calls = []

    def logits(hidden):
        calls.append(1)
        return torch.full_like(real(hidden), value) if len(calls) == 2 else real(hidden)
    monkeypatch.setattr(model, "logits", logits)
    with pytest.raises(FloatingPointError, match=place):
        written(loaded, temperature=temperature)


# ---- the command line ----

@pytest.fixture
def main(run, tmp_path, monkeypatch):
    """The script with the tiny checkpoint, in a directory with inputs/films/film0.png to film2."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "inputs" / "films"
    folder.mkdir(parents=True)
    for i, film in enumerate(films(3)):
        Image.fromarray(film.numpy()).save(folder / f"film{i}.png")

    def main(*words):
        return sample.main(["--checkpoint", str(run), "--device", "cpu", *map(str, words)])

    return main


def pngs(folder):
    return sorted(path.name for path in folder.iterdir() if path.suffix == ".png")


def test_threads_may_be_few(main):
    """Beside other work, threads that wait for each other cost more than they give."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    assert main("--report", REPORTS[0], "--steps", 1, "--threads", 1) == 0
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)


def test_numbers_that_are_none_end_in_a_sentence(main, tmp_path, monkeypatch, capsys):
    failing(monkeypatch, UniX, "velocity", 2, torch.nan)
    monkeypatch.setattr("sys.argv", ["sample.py"])
    with pytest.raises(SystemExit) as end:
        cli(lambda argv: main("--report", REPORTS[0], "--steps", 3, *argv))
    assert end.value.code == 2 and not pngs(tmp_path)
    assert "error: the velocity at step 2 of 3 is not finite" in capsys.readouterr().err


def test_a_picture_carries_its_settings(main, tmp_path, capsys):
    assert main("--report", REPORTS[0], "--out", "x.png", "--steps", 3, "--seed", 4) == 0
    image = Image.open("x.png")
    assert (image.size, image.mode, pngs(tmp_path)) == ((32, 32), "L", ["x.png"])
    settings = {"seed": "4", "steps": "3", "cfg_interval": "[0.4, 1.0]", "size": "32", "image": "0"}
    assert {**settings, "notice": NOTICE, "reports": REPORTS[0]}.items() <= image.text.items()
    printed = capsys.readouterr()
    assert printed.out == f"x.png: {REPORTS[0]}\n"
    assert NOTICE in printed.err
    assert "32 x 32 pixels a picture; with --grid a sheet" in printed.err, "it is small"


def test_several_pictures_are_numbered_or_share_a_grid(main, tmp_path, capsys):
    main("--report", *REPORTS[:2], "--num", 2, "--out", "x.png", "--steps", 1, "--json")
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    pairs = [(report, k) for report in REPORTS[:2] for k in range(2)]
    assert [(row["report"], row["image"]) for row in rows] == pairs
    assert [row["file"] for row in rows] == pngs(tmp_path) == [f"x-00{n}.png" for n in range(4)]
    assert all(Image.open(row["file"]).text["reports"] == row["report"] for row in rows)

    (tmp_path / "reports.txt").write_text(f"{REPORTS[0]}\n\n  \n{REPORTS[1]}\n")
    main("--reports", "reports.txt", "--num", 3, "--grid", "--out", "y.png", "--steps", 1)
    assert pngs(tmp_path)[4:] == ["y.png"] and "--grid" not in capsys.readouterr().err
    assert Image.open("y.png").width > 3 * 64
    assert json.loads(Image.open("y.png").text["reports"]) == REPORTS[:2]


def test_reports_of_a_table_give_pictures_their_ids(main, tmp_path, capsys):
    """No picture of the header; what is no text is counted, and the others are drawn."""
    (tmp_path / "small.csv").write_text(
        f"Image ID,findings,age\na/1,{REPORTS[0]},50\nb,nan,60\nc,3.5,70\n2,{REPORTS[1]},80\n")
    line = ["--out", "x.png", "--steps", 1, "--json"]
    assert main("--reports", "small.csv", *line) == 1
    printed = capsys.readouterr()
    rows = [json.loads(row) for row in printed.out.splitlines()]
    assert [(row["id"], row["file"], row["report"]) for row in rows] == [
        ("a/1", "x-a_1.png", REPORTS[0]), ("2", "x-2.png", REPORTS[1])]
    assert pngs(tmp_path) == ["x-2.png", "x-a_1.png"]
    assert "1 of 4 reports in small.csv are blank" in printed.err and "a number" in printed.err
    main("--report", *REPORTS[:2], *line)
    assert Image.open("x-001.png").tobytes() == Image.open("x-2.png").tobytes()


def test_a_stop_loses_the_batch_in_flight_alone(main, tmp_path, monkeypatch, capsys):
    draw, batches = sample.generate_images, []

    def stopped(*args, **kwargs):
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return draw(*args, **kwargs)

    monkeypatch.setattr(sample, "generate_images", stopped)
    with pytest.raises(KeyboardInterrupt):
        main("--report", *REPORTS, "--num", 2, "--batch", 2, "--out", "x.png", "--steps", 1)
    assert pngs(tmp_path) == [f"x-00{n}.png" for n in range(4)]
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_a_stop_loses_the_reports_of_the_batch_in_flight_alone(main, tmp_path, monkeypatch, capsys):
    """And they are what one large batch writes, drawn words too, whatever lies between them."""
    (tmp_path / "inputs" / "films" / "film00.png").write_bytes(b"no image")
    line = "--image inputs/films --temperature 1 --max-tokens 8 --dtype float32".split()
    assert main(*line) == 1
    whole = capsys.readouterr().out.splitlines()
    assert main(*line, "--batch", 1) == 1
    assert capsys.readouterr().out.splitlines() == whole and len(whole) == 3

    write, batches = sample.generate_reports, []

    def stopped(*args, **kwargs):
        batches.append(1)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return write(*args, **kwargs)

    monkeypatch.setattr(sample, "generate_reports", stopped)
    with pytest.raises(KeyboardInterrupt):
        main(*line, "--batch", 1)
    assert capsys.readouterr().out.splitlines() == whole[:2]


def test_a_folder_is_read(main, capsys):
    assert main("--image", "inputs/films", "--max-tokens", 6, "--json") == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == [f"inputs/films/film{i}.png" for i in range(3)]
    assert all(row["notice"] == NOTICE for row in rows)
    main("--image", "inputs/films/film1.png", "--max-tokens", 6)
    assert capsys.readouterr().out.strip() == rows[1]["report"]


def test_a_model_of_stage_1_reads(stage1, tmp_path, capsys):
    """It has neither a VAE nor a branch to draw with."""
    Image.fromarray(films(1)[0].numpy()).save(tmp_path / "film.png")
    line = ["--checkpoint", str(stage1), "--device", "cpu", "--max-tokens", "4", "--image"]
    assert sample.main([*line, str(tmp_path / "film.png")]) == 0
    assert capsys.readouterr().out.strip()


def test_a_folder_of_dicom_and_others_is_read_without_what_is_damaged(
        main, tmp_path, capsys, monkeypatch):
    films = tmp_path / "mixed"
    (films / "series").mkdir(parents=True)
    Image.new("L", (40, 40), 90).save(films / "a.png")
    (films / "series" / "IM00001").write_bytes(dicom_file(np.arange(1600).reshape(40, 40)))
    (films / "series" / "b.dcm").write_bytes(dicom_file(np.arange(1600).reshape(40, 40))[:400])
    (films / "notes.txt").write_bytes(b"")
    assert main("--image", "mixed", "--max-tokens", 2) == 1
    printed = capsys.readouterr()
    assert [line.split(":")[0] for line in printed.out.splitlines()] == [
        "mixed/a.png", "mixed/series/IM00001"]
    assert printed.err.count("error: ") == 1 and "series/b.dcm cannot be read" in printed.err
    assert "3 images in 2 folders; passed over 1 other file (.txt 1)." in printed.err

    monkeypatch.setitem(sys.modules, "pydicom", None)
    assert main("--image", "mixed/series/IM00001") == 2
    assert "a DICOM file needs pydicom 3 (pip install pydicom)" in capsys.readouterr().err


def test_what_is_bad_is_named_and_the_rest_is_done(main, tmp_path, capsys):
    """Exit code 1 and the same results as without it; 2 if nothing is left to do."""
    good = ["inputs/films/film0.png", "inputs/films/film2.png"]
    line = ["--max-tokens", 4, "--json", "--out", "x.png", "--steps", 1]
    assert main("--image", *good, "--report", REPORTS[0], *line) == 0
    expected = capsys.readouterr().out

    (tmp_path / "bad.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    bad = ["bad.png", "empty", "missing.png"]
    reports = [" ", "effusion " * 200]
    for pictures, texts, code, output, failures in (
        ([good[0], *bad, good[1]], [REPORTS[0], *reports], 1, expected, 5),
        (bad, ["", *reports], 2, "", 6),
    ):
        assert main("--image", *pictures, "--report", *texts, *line) == code
        printed = capsys.readouterr()
        assert printed.out == output and printed.err.count("error: ") == failures
        for words in ("bad.png cannot be read", "empty holds no image",
                      "missing.png cannot be read", "report 2 is empty", "report 3 has",
                      "shorten it"):
            assert words in printed.err


@pytest.mark.parametrize("line, words", [
    ("", "nothing to do"),
    ("--reports missing.txt", "missing.txt is missing"),
    ("--report x --out missing/x.png", "cannot be written"),
    ("--report x --out inputs.png", "cannot be written"),
    ("--report x --out x.jpg", "name a .png file"),
    ("--report x --checkpoint nowhere", "no checkpoint at nowhere"),
    ("--image inputs/films --prompt=" + "what," * 200, "--prompt is longer"),
    *[(f"--report x {option}", option.split()[0]) for option in (
        "--solver rk4", "--renorm local", "--weights int4", "--cfg-interval 1 0", "--num 0",
        "--batch 0", "--steps -1", "--shift 0", "--top-p 2", "--temperature -1",
        "--max-tokens -1")],
])
def test_asked_wrongly(main, tmp_path, line, words):
    """One sentence, before anything is written."""
    (tmp_path / "inputs.png").mkdir()
    with pytest.raises(InputError) as error:
        main(*line.split())
    assert words in str(error.value) and "\n" not in str(error.value)
    assert pngs(tmp_path) == ["inputs.png"]
