"""Training scripts in processes of their own, one or two ranks, forked or under torchrun.

What is done to them stands in their environment, see tests/harness.py.
"""
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import harness
from helpers import ROOT


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


class Forked:
    """One script in one or more processes, forked from a server that has imported torch."""

    def __init__(self, context, directory, script, line, ranks, environment):
        """context: of multiprocessing's forkserver. directory: where the output goes."""
        self.directory = directory
        self.processes = []
        port = free_port()
        for rank in range(ranks):
            environ = {name: str(value) for name, value in environment.items()}
            if ranks > 1:               # what torchrun sets
                environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(ranks),
                               MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            words = [str(word) for word in line]
            output = [str(directory / f"{name}{rank}") for name in ("out", "err")]
            process = context.Process(
                target=harness.child, args=(str(ROOT / script), words, environ, *output),
                daemon=True)
            process.start()
            self.processes.append(process)

    @property
    def pids(self):
        return [process.pid for process in self.processes]

    def output(self, name):
        """What all ranks have written to "out" or "err"."""
        return "".join(path.read_text() for path in sorted(self.directory.glob(f"{name}*")))

    def finish(self, code=0, seconds=120):
        """Wait for the end -> stdout, stderr. code: the exit status of all; None: any but 0."""
        end = time.time() + seconds
        for process in self.processes:
            process.join(max(0, end - time.time()))
        late = [process for process in self.processes if process.is_alive()]
        for process in late:
            process.kill()
            process.join()
        out, err = self.output("out"), self.output("err")
        assert not late, f"not finished after {seconds} s: {err[-3000:]}"
        codes = [process.exitcode for process in self.processes]
        if code is None:
            assert all(codes), f"exit status {codes}: {err[-3000:]}"
        else:
            assert set(codes) == {code}, f"exit status {codes}: {err[-3000:]}"
        return out, err


class Torchrun:
    """A script on two processes under torchrun."""

    def __init__(self, directory, script, line, *options, **environment):
        """options: of torchrun itself."""
        self.out, self.err = directory / "out", directory / "err"
        words = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
                 f"--master_port={free_port()}", *options,
                 ROOT / "tests" / "harness.py", ROOT / script, *line]
        environment = {name: str(value) for name, value in environment.items()}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        with open(self.out, "w") as out, open(self.err, "w") as err:
            self.agent = subprocess.Popen(
                [str(word) for word in words], stdout=out, stderr=err, env=environment)

    @property
    def ranks(self):
        """The process numbers of the ranks, which are in sessions of their own."""
        line = ["pgrep", "-P", str(self.agent.pid)]
        children = subprocess.run(line, capture_output=True, text=True)
        return [int(pid) for pid in children.stdout.split()]

    def finish(self, seconds=180):
        """Wait for the end -> exit status, stdout, stderr.

        From the first `error:` to the end of all are at most 20 s.
        """
        end = time.time() + seconds
        ranks = self.ranks
        while self.agent.poll() is None and time.time() < end:
            if "error: " in self.err.read_text():
                end = min(end, time.time() + 20)
            if self.ranks:
                ranks = self.ranks
            time.sleep(0.1)
        late = [pid for pid in [self.agent.pid, *ranks] if alive(pid)]
        self.kill(late)
        status = self.agent.wait(20)
        out, err = self.out.read_text(), self.err.read_text()
        assert not late, f"torchrun or its ranks did not end: {err[-3000:]}"
        return status, out, err

    def kill(self, ranks=()):
        """End whatever of it is still there."""
        for pid in {self.agent.pid, *self.ranks, *ranks}:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
