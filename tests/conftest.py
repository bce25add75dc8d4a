"""The fixtures that all tests share: tiny models and data sets, scripts in processes of their own."""
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import harness
from helpers import GOLDEN, ROOT, randomise, tiny_config


@pytest.fixture(scope="session")
def golden():
    return load_file(GOLDEN / "unix_tiny_io.safetensors")


@pytest.fixture
def tiny():
    from model import UniX
    torch.manual_seed(0)
    return randomise(UniX(tiny_config())).eval()


@pytest.fixture(scope="session")
def phantom(tmp_path_factory):
    """The root of a packed phantom: und-64, gen-32, gen-64 with 24 pictures to train on, and its tokenizer."""
    from phantom import prepare as prepare_phantom
    root = tmp_path_factory.mktemp("phantom")
    prepare_phantom.main(f"--out {root} --size 64 --train 24 --val 4 --test 2 --workers 1 --vocab-size 400".split())
    return root


@pytest.fixture(scope="session")
def packed_mimic(tmp_path_factory):
    """A made-up MIMIC-CXR of 80 studies, packed in shards of 32 images (tests/mimic_tree.py).

    .out, .und and .gen are what was packed, .rows the rows of und by id, .skipped {id: reason},
    .printed what the run said.
    """
    import mimic_tree
    return mimic_tree.make_packed(tmp_path_factory.mktemp("mimic"))


@pytest.fixture(scope="session")
def vae_run(tmp_path_factory):
    """A run directory like that of phantom/train_vae.py."""
    from weights import checkpoint
    import weights
    from helpers import tiny_vae
    vae, run = tiny_vae(), tmp_path_factory.mktemp("vae")
    checkpoint.save(run, 1, config=weights.describe(vae=vae), tensors={"vae": vae.state_dict()})
    return run


@pytest.fixture(scope="session")
def uneven(phantom, tmp_path_factory):
    """The root of data sets for training whose reports have 5 to 162 tokens, with 22 images to train on: no
    batch size that the tests use divides them, so an epoch ends in the middle of a batch."""
    from training.batches import Packed
    from common.packed import Writer
    root = tmp_path_factory.mktemp("uneven")
    shutil.copy(phantom / "tokenizer.json", root)
    for task, size in (("und", 64), ("gen", 32)):
        old = Packed(phantom, task, size)
        with Writer(root / f"{task}-{size}", task, size, {}, shard_size=10) as new:
            for i, (row, (shard, _, start, length)) in enumerate(zip(old.rows, old.places)):
                report = [row["report"].split(".")[0] + ".", row["report"], " ".join([row["report"]] * 4)][i % 3]
                if row["id"] not in ("train-000022", "train-000023"):
                    content = old.shards[shard].with_suffix(".bin").read_bytes()[start:start + length]
                    new.add(content, {**row, "report": report})
    return root


# ---- scripts in processes of their own ----

def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.fixture(scope="session")
def fork(tmp_path_factory):
    """fork(script, line, processes=1, **environment) -> Forked: the script in one process, or in several that find each
    other as those under torchrun do; what stands in the environment tells tests/harness.py what to do to them.

    Importing torch takes longer than most runs here, so they are forked from a server that has done it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["train_und", "train_gen", "harness", "torch._dynamo"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1"), patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{ROOT / 'tests'}")
        forkserver.ensure_running()
    return lambda script, line, processes=1, **environment: Forked(context, tmp_path_factory.mktemp("said"), script, line,
                                                                   processes, environment)


class Forked:
    """One script in one or more processes -> .pids; `finish` waits for the end -> stdout, stderr of all."""

    def __init__(self, context, directory, script, line, n, environment):
        self.directory, port, self.processes = directory, free_port(), []
        for rank in range(n):
            torchrun = dict(RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=n, MASTER_ADDR="127.0.0.1", MASTER_PORT=port) if n > 1 else {}
            environ = {k: str(v) for k, v in {**torchrun, **environment}.items()}
            said = [str(self.directory / f"{name}{rank}") for name in ("out", "err")]
            words = str(ROOT / script), [*map(str, line)], environ, *said
            self.processes.append(context.Process(target=harness.child, args=words, daemon=True))
            self.processes[-1].start()

    @property
    def pids(self):
        return [process.pid for process in self.processes]

    def finish(self, code=0, seconds=120):
        """code: the exit status that all must have; None: any but 0."""
        end = time.time() + seconds
        for process in self.processes:
            process.join(max(0, end - time.time()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill(), process.join()
        out, err = ("".join(p.read_text() for p in sorted(self.directory.glob(f"{name}*"))) for name in ("out", "err"))
        assert not late, f"not finished after {seconds} s: {err[-3000:]}"
        codes = [process.exitcode for process in self.processes]
        assert all(codes) if code is None else set(codes) == {code}, f"exit status {codes}: {err[-3000:]}"
        return out, err


@pytest.fixture
def torchrun(tmp_path):
    """torchrun(script, line, *options of torchrun, **environment) -> Torchrun. Nothing of it outlives the test."""
    started = []
    yield lambda *words, **environment: started.append(Torchrun(tmp_path, *words, **environment)) or started[-1]
    for run in started:
        run.kill()


class Torchrun:
    """The script on two processes under torchrun; the environment tells tests/harness.py what to do to it."""

    def __init__(self, directory, script, line, *options, **environment):
        words = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}", *options,
                 ROOT / "tests" / "harness.py", ROOT / script, *line]
        self.out, self.err = directory / "out", directory / "err"
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **{k: str(v) for k, v in environment.items()}}
        with open(self.out, "w") as out, open(self.err, "w") as err:
            self.agent = subprocess.Popen([sys.executable, *map(str, words)], stdout=out, stderr=err, env=environment)

    @property
    def ranks(self):
        """Their process numbers; they are in sessions of their own."""
        said = subprocess.run(["pgrep", "-P", str(self.agent.pid)], capture_output=True, text=True).stdout
        return [int(pid) for pid in said.split()]

    def finish(self, seconds=180):
        """Wait for the end -> exit status, stdout, stderr. From the first `error:` to the end of all are at most 20 s."""
        end, ranks = time.time() + seconds, self.ranks
        while self.agent.poll() is None and time.time() < end:
            if "error: " in self.err.read_text():
                end = min(end, time.time() + 20)
            ranks, _ = self.ranks or ranks, time.sleep(0.1)
        late = [pid for pid in [self.agent.pid, *ranks] if alive(pid)]
        self.kill(late)
        status = self.agent.wait(20)
        out, err = self.out.read_text(), self.err.read_text()
        assert not late, f"torchrun {self.agent.pid} or its ranks {ranks} did not end: {err[-3000:]}"
        return status, out, err

    def kill(self, ranks=()):
        for pid in {self.agent.pid, *self.ranks, *ranks}:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
