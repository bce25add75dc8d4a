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
    SPOIL=step              the loss of that report batch is a number on rank 1, its gradient not
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

    def happened():
        nonlocal count
        count += 1
        if count == int(n):
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name, args):
        if name == event and args and part in str(args[0]):
            happened()

    if event == "step":
        from torch.optim.optimizer import register_optimizer_step_post_hook
        register_optimizer_step_post_hook(lambda *_: happened())
    else:
        sys.addaudithook(audit)


def record_gradients(path):
    """Append hashes of gradients and weights to a file before every optimizer step."""
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    def digest(tensors):
        total = hashlib.sha256()
        for tensor in tensors:
            total.update(b"none" if tensor is None else tensor.detach().numpy().tobytes())
        return total.hexdigest()

    def hook(optimizer, *_):
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters]
        with open(path, "a") as file:
            file.write(f"{digest(gradients)} {digest(parameters)}\n")
    register_optimizer_step_pre_hook(hook)


def slow_down(seconds):
    from torch.optim.optimizer import register_optimizer_step_pre_hook
    register_optimizer_step_pre_hook(lambda *_: time.sleep(seconds))


def spoil(step):
    """Make the gradient of one report batch infinite, and leave its loss."""
    import model
    real = model.UniX.report_loss
    count = 0

    def report_loss(self, hidden, labels, *more):
        nonlocal count
        count += 1
        loss = real(self, hidden, labels, *more)
        if count == step:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss
    model.UniX.report_loss = report_loss


def main(script, words):
    environ = os.environ
    rank = int(environ.get("RANK", 0))
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))        # for scripts in rooms, too
    restarted = int(environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    to_be_killed = rank == int(environ.get("KILL_RANK", 0)) and not restarted
    if "KILL" in environ and to_be_killed:
        kill(*environ["KILL"].split(":"))
    if "SLOW" in environ:
        slow_down(float(environ["SLOW"]))
    if "FILE_LIMIT" in environ:         # Python ignores SIGXFSZ, so writing fails
        limit = int(environ["FILE_LIMIT"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    if "GRADIENTS" in environ:
        record_gradients(Path(environ["GRADIENTS"]) / f"rank{rank}")
    if rank == 1:
        words = words + environ.get("RANK_1", "").split()
        if "SPOIL" in environ:
            spoil(int(environ["SPOIL"]))
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


def child(script, words, environment, out, err):
    """The same in a process that was forked from one that has imported torch (conftest.fork)."""
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    main(script, words)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
