"""Run a training script as it is, with a hand on its process: `python tests/harness.py train_und.py --key value ...`.

What is done to it stands in the environment:

    KILL=event:part:n     SIGKILL to rank 0 at the n-th audit event of that name whose first argument holds `part`
                          (docs.python.org/3/library/audit_events.html); step::n is after the optimizer's n-th step
    KILL_RANK=1           to that rank instead; one that torchrun started again is left alone
    SLOW=seconds          every step waits so long
    FILE_LIMIT=bytes      no file may grow beyond, as on a disk that is full
    GRADIENTS=directory   the file rank<r> there gets one line a step: hashes of all gradients and weights the optimizer is given
    RANK_1="words"        more words of the command line, on rank 1 alone
    SPOIL=step            the loss of that report batch is a number on rank 1, its gradient is not
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
    seen = [0]

    def count(*_):
        seen[0] += 1
        if seen[0] == int(n):
            os.kill(os.getpid(), signal.SIGKILL)
    if event == "step":
        from torch.optim.optimizer import register_optimizer_step_post_hook
        register_optimizer_step_post_hook(count)
    else:
        sys.addaudithook(lambda name, args: count() if name == event and args and part in str(args[0]) else None)


def gradients(path):
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    def digest(tensors):
        total = hashlib.sha256()
        for tensor in tensors:
            total.update(b"none" if tensor is None else tensor.detach().numpy().tobytes())
        return total.hexdigest()

    def hook(optimizer, *_):
        held = [p for group in optimizer.param_groups for p in group["params"]]
        with open(path, "a") as file:
            file.write(f"{digest(p.grad for p in held)} {digest(held)}\n")
    register_optimizer_step_pre_hook(hook)


def spoil(step):
    import model
    count, real = [0], model.UniX.report_loss

    def report_loss(self, hidden, labels, *more):
        loss, count[0] = real(self, hidden, labels, *more), count[0] + 1
        if count[0] == step:
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss
    model.UniX.report_loss = report_loss


def main(script, words):
    rank = int(os.environ.get("RANK", 0))
    sys.path.insert(0, str(Path(script).parent))
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if "KILL" in os.environ and rank == int(os.environ.get("KILL_RANK", 0)) and not restarted:
        kill(*os.environ["KILL"].split(":"))
    if "SLOW" in os.environ:
        from torch.optim.optimizer import register_optimizer_step_pre_hook
        register_optimizer_step_pre_hook(lambda *_: time.sleep(float(os.environ["SLOW"])))
    if "FILE_LIMIT" in os.environ:
        resource.setrlimit(resource.RLIMIT_FSIZE, 2 * (int(os.environ["FILE_LIMIT"]),))     # Python ignores SIGXFSZ: writes fail
    if "GRADIENTS" in os.environ:
        gradients(Path(os.environ["GRADIENTS"]) / f"rank{rank}")
    if rank == 1:
        words = words + os.environ.get("RANK_1", "").split()
        if "SPOIL" in os.environ:
            spoil(int(os.environ["SPOIL"]))
    sys.argv = [script, *words]
    runpy.run_path(script, run_name="__main__")


def child(script, words, environment, out, err):
    """The same in a process that is forked from one that has imported torch already (conftest.fork)."""
    os.environ.update(environment)
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    main(script, words)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
