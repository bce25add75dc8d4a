"""The fixtures that all tests share: tiny models, data sets and runs, scripts in processes."""
import multiprocessing
import os
import shutil
from multiprocessing import forkserver

import pytest
import torch
from safetensors.torch import load_file

import mimic_tree
import train_gen
import train_und
import weights
from common.packed import Packed, Writer
from helpers import GOLDEN, ROOT, randomise, tiny_config, tiny_vae
from model import UniX
from phantom import prepare
from scripts import Forked, Torchrun
from tiny_runs import gen, und
from weights import checkpoint


# tests that run two at a time (-n 2) have a core each, and so have the processes that they start
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden():
    """Inputs and outputs of the reference network."""
    return load_file(GOLDEN / "unix_tiny_io.safetensors")


@pytest.fixture
def tiny():
    """A small UniX with both branches and random values everywhere."""
    torch.manual_seed(0)
    return randomise(UniX(tiny_config())).eval()


# ---- data sets and runs that tests start from ----

@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """The root of a packed phantom: und-64, gen-32, gen-64 with 24 training images, a tokenizer."""
    root = tmp_path_factory.mktemp("phantom")
    line = "--size 64 --train 24 --val 4 --test 2 --workers 1 --vocab-size 400"
    prepare.main(["--out", str(root), *line.split()])
    return root


@pytest.fixture(scope="session")
def packed_mimic(tmp_path_factory):
    """A made-up MIMIC-CXR of 80 studies, packed in shards of 32 images (tests/mimic_tree.py).

    .out, .und and .gen are what was packed, .rows the rows of und by id, .skipped {id: reason},
    .printed what the run said.
    """
    return mimic_tree.make_packed(tmp_path_factory.mktemp("mimic"))


@pytest.fixture(scope="session")
def uneven(phantom, tmp_path_factory):
    """The root of data sets whose reports have 5 to 162 tokens, with 22 images to train on.

    No batch size that the tests use divides 22, so an epoch ends in the middle of a batch.
    """
    root = tmp_path_factory.mktemp("uneven")
    shutil.copy(phantom / "tokenizer.json", root)
    for task, size in (("und", 64), ("gen", 32)):
        old = Packed(phantom, task, size)
        with Writer(root / f"{task}-{size}", task, size, {}, shard_size=10) as new:
            for i, row in enumerate(old.rows):
                if row["id"] in ("train-000022", "train-000023"):
                    continue
                whole = row["report"]
                first_sentence = whole.split(".")[0] + "."
                four_times = " ".join([whole] * 4)
                report = [first_sentence, whole, four_times][i % 3]
                new.add(old.encoded(i), {**row, "report": report})
    return root


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory):
    """A run directory like that of phantom.train_vae."""
    run = tmp_path_factory.mktemp("vae")
    vae = tiny_vae()
    checkpoint.save(run, 1, config=weights.describe(vae=vae), tensors={"vae": vae.state_dict()})
    return run


@pytest.fixture(scope="session")
def stage1(phantom, tmp_path_factory):
    """Thirty steps of stage 1."""
    out = tmp_path_factory.mktemp("und")
    train_und.main(und(phantom, out, "--steps", 30))
    return out


@pytest.fixture(scope="session")
def stage2(phantom, stage1, vae_run, tmp_path_factory):
    """Thirty steps of stage 2 from there, with REPA."""
    out = tmp_path_factory.mktemp("gen32")
    more = ("--steps", 30, "--batch-size", 8, "--micro-batch", 8, "--eval-every", 1)
    train_gen.main(gen(phantom, out, stage1, "--vae", vae_run, *more))
    return out


# ---- scripts in processes of their own ----

@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    """fork(script, line, ranks=1, **environment) -> Forked.

    Importing torch takes longer than most runs here, so the processes are forked from a server that
    has done it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_und", "train_gen", "harness", "torch._dynamo"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        forkserver.ensure_running()

    def fork(script, line, ranks=1, **environment):
        directory = tmp_path_factory.mktemp("output")
        return Forked(context, directory, script, line, ranks, environment)
    return fork


@pytest.fixture
def torchrun(tmp_path):
    """torchrun(script, line, *options, **environment) -> Torchrun; it does not outlive the test."""
    started = []

    def torchrun(*words, **environment):
        started.append(Torchrun(tmp_path, *words, **environment))
        return started[-1]
    yield torchrun
    for run in started:
        run.kill()
