"""bench/sampling.py and bench/full_size.py: they measure what they say, on networks of no size."""
import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import full_size, int8, sampling
from bench.measuring import medians, random_decoder
from helpers import ROOT, randomise, some_tokenizer, tiny_config, tiny_vae
from model import UniX
from tokenizer import Tokenizer
from training.cost import velocity_flops


def test_calls_take_turns():
    """Two warm-ups, then the measurements."""
    order = []
    calls = dict(a=lambda: order.append("a"), b=lambda: order.append("b"))
    seconds = medians(3, torch.device("cpu"), **calls)
    assert order == ["a", "b"] * 5 and seconds.keys() == {"a", "b"}


def test_the_operations_of_a_velocity_are_those_that_torch_counts():
    model = random_decoder(n_embd=64, n_layer=2, n_head=2, n_inner=96, grid=4)
    _, cache = model.prefill_text(torch.randint(4, 1024, (1, 16)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.velocity(torch.randn(1, 16, 4, 4), torch.rand(1), cache)
    assert velocity_flops(model.cfg, 16, 16) == counter.get_total_flops()


TINY = "--n-embd 64 --n-layer 1 --n-head 2 --n-inner 96 --grid 2 --text 8 --cached 16 --repeats 1"


def test_speed_is_told_in_ratios(capsys):
    sampling.main([*TINY.split(), "--device", "cpu", "--dtype", "float32"])
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == [
        "guided velocity, 1 image(s)", "guided velocity, 8 image(s)", "decoding after 2 tokens",
        "decoding after 16 tokens"]
    assert "of a matrix product" in lines[1] and "MB of weights once" in lines[3]
    machine = json.loads(last)["machine"]
    assert machine["cores"] >= 1 and machine["processor"] and machine["torch"] == torch.__version__
    assert json.loads(last)["figures"]["velocity"]["1"]["share"] > 0


def test_int8_is_compared_with_float(capsys):
    """Two phantoms and a network of no size: rounding moves every picture a little, none far."""
    int8.main("--num 2 --n-embd 64 --n-layer 1 --n-head 2 --n-inner 96 --vocab-size 1024 --grid 2 "
              "--text 8 --repeats 1 --threads 1".split())
    *lines, last = capsys.readouterr().out.splitlines()
    figures = json.loads(last)["figures"]
    rounded = figures["changes"]["int8, products in fp32"]
    assert rounded["other_facts"] == 0 and 35 < rounded["psnr_lowest"] < 70
    assert all(f["token_ms"] > 0 and f["velocity_ms"] > 0 for f in figures["speed"].values())
    assert len(figures["speed"]) == 4 and len(lines) == 9


def test_the_distance_of_pictures():
    """One grey value everywhere is 48.1 dB: 20 log10 of 255."""
    grey = torch.full((4, 4), 100, dtype=torch.uint8).numpy()
    assert int8.psnr(grey + 1, grey) == pytest.approx(48.13, abs=0.01)
    assert int8.psnr(grey, grey) == float("inf")


@pytest.mark.slow
def test_few_steps_come_near_the_converged_solution(capsys):
    """The order that docs/results.md shows: ab2 before Heun before Euler at sixteen velocities."""
    sampling.main("--solvers --reports 1 --device cpu --dtype float32 --json".split())
    figures = json.loads(capsys.readouterr().out)["figures"]
    distance = {name: f["distance"] for name, f in figures.items()}
    ab2, heun, euler = (distance[f"{name}, shift 1"] for name in
                        ("ab2 16 steps", "heun 8 steps", "euler 16 steps"))
    assert ab2 < heun < euler


def test_a_release_is_measured_in_both_directions(tmp_path):
    """On a network of no size, whose report may be too short to tell the time of a token."""
    path = tmp_path / "tokenizer.json"
    path.write_text(some_tokenizer(64))
    cfg = tiny_config(latent_channels=4)
    model = randomise(UniX(cfg)).eval()
    tokenizer = Tokenizer(path, cfg.bos, cfg.eos, cfg.soi, cfg.eoi)
    figures = full_size.measure(model, tiny_vae(), tokenizer, text=8, grid=2, steps=1,
                                tokens=4)
    assert len(figures) == 8
    assert figures["seconds a guided step"] > 0 and figures["seconds before the first token"] > 0
    assert figures["peak memory in GB"] > 0.1


@pytest.mark.slow
def test_weights_that_are_there_are_measured_by_a_process_of_its_own(capfd):
    """The demo's, in place of 6.6 GB."""
    full_size.main(f"--out {ROOT / 'demo'} --grid 8 --text 20 --threads 1 --dtype float32".split())
    *lines, _ = capfd.readouterr().out.splitlines()
    assert lines[0].startswith("seconds to load") and len(lines) == 9
