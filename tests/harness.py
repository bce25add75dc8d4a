"""Run a training script as it is, with a hand on its process: `python tests/harness.py SCRIPT ...`.

What is done to it stands in the environment:

    KILL=event:part:n       SIGKILL to rank 0 at the n-th audit event of that name whose first
                            argument holds `part` (docs.python.org/3/library/audit_events.html);
                            step::n is after the optimizer's n-th step
    KILL_RANK=1             to that rank instead; one that torchrun started again is left alone
    SLOW=seconds            every step waits so long
    FILE_LIMIT=bytes        no file may grow beyond, as on a disk that is full
    GRADIENTS=directory     the file rank<r> there gets one line a step: hashes of all gradients and
                            weights that the optimizer is given
    RANK_1="words"          more words of the command line, on rank 1 alone
    SPOIL=what:first:last   on rank 1 the losses of these report batches, counted from 1, have no
                            number (what: loss), their gradients have none (gradient), they are
                            refused as bad input (error), find no memory (memory), or meet a
                            mistake of ours (bug)
    PEAK=file               gets the most bytes of memory that the process had
"""
import hashlib
import os
import resource
import runpy
import signal
import sys
import time
from pathlib import Path


def kill(event, part, n):
    """Install a SIGKILL at the n-th such event."""
    count = 0

    def happened(*_):
        nonlocal count
        count += 1
        if count == int(n):
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name, args):
        if name == event and args and part in str(args[0]):
            happened()

    if event == "step":
        from torch.optim.optimizer import register_optimizer_step_post_hook
        register_optimizer_step_post_hook(happened)
    else:
        sys.addaudithook(audit)


def before_every_step(function):
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    register_optimizer_step_pre_hook(lambda optimizer, *_: function(optimizer))


def record_gradients(path):
    """Append hashes of gradients and weights to a file before every optimizer step."""
    def digest(tensors):
        total = hashlib.sha256()
        for tensor in tensors:
            total.update(b"none" if tensor is None else tensor.detach().numpy().tobytes())
        return total.hexdigest()

    def record(optimizer):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters]
        with open(path, "a") as file:
            file.write(f"{digest(gradients)} {digest(parameters)}\n")
    before_every_step(record)


def spoil(what, first, last):
    """Spoil the loss or the gradient of some report batches, or refuse them."""
    import model
    from common.cli import InputError
    report_loss = model.UniX.report_loss
    count = 0

    def spoiled(self, *batch):
        nonlocal count
        count += 1
        loss = report_loss(self, *batch)
        if not int(first) <= count <= int(last):
            return loss
        if what == "bug":
            raise ZeroDivisionError("a mistake of ours")
        if what == "memory":
            loss.new_empty(10**15)
        if what == "error":
            raise InputError("a picture of rank 1 is damaged.")
        if what == "loss":
            return loss * float("nan")
        loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss
    model.UniX.report_loss = spoiled


def write_peak(path):
    """Not from getrusage: its maximum remembers what the process was before it became Python."""
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(line for line in status if line.startswith("VmHWM"))
    Path(path).write_text(str(int(peak.split()[1]) * 1024))


def main(script, words):
    environ = os.environ
    rank = int(environ.get("RANK", 0))
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))        # for scripts in rooms, too
    restarted = int(environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    to_be_killed = rank == int(environ.get("KILL_RANK", 0)) and not restarted
    if "KILL" in environ and to_be_killed:
        kill(*environ["KILL"].split(":"))
    if "SLOW" in environ:
        before_every_step(lambda optimizer: time.sleep(float(environ["SLOW"])))
    if "FILE_LIMIT" in environ:         # Python ignores SIGXFSZ, so writing fails
        limit = int(environ["FILE_LIMIT"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if "GRADIENTS" in environ:
        record_gradients(Path(environ["GRADIENTS"]) / f"rank{rank}")
    if rank == 1:
        words = words + environ.get("RANK_1", "").split()
        if "SPOIL" in environ:
            spoil(*environ["SPOIL"].split(":"))
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        if "PEAK" in environ:
            write_peak(environ["PEAK"])


def child(script, words, environment, out, err):
    """The same in a process that was forked from one that has imported torch (conftest.fork)."""
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    main(script, words)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
