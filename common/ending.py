"""How the processes of one run end together: one of them says why, and none waits for another.

A script ends by way of `common.cli.cli`, which uses this. Without torchrun there is one process.
"""
import json
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import contextmanager

import torch.distributed as dist


def rank_given():
    """The number of this process that torchrun has set; 0 without torchrun."""
    rank = os.environ.get("RANK", "0")
    return int(rank) if rank.isdigit() else 0       # processes.setup refuses what is no number


def speaks_for_all():
    """Whether this process prints an error that all processes may hit: the first that gets here
    does.

    It is the first to reach the store that the processes share. Before they have met there is none:
    then the others wait a little, and torchrun ends them when the first has failed.
    """
    if dist.is_initialized():
        # `add` is atomic and gives the sum, so exactly one process gets 1
        try:
            return dist.distributed_c10d._get_default_store().add("errors", 1) == 1
        except dist.DistError:          # the process that keeps the store has spoken and ended
            return False
    time.sleep(min(3 * rank_given(), 10))
    return True


def say(sentence):
    """Print an error, if this process speaks for all, and have torchrun repeat it below its own
    forty lines.
    """
    if not speaks_for_all():
        return
    try:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
        if "TORCHELASTIC_ERROR_FILE" in os.environ:
            # the form of torch.distributed.elastic.multiprocessing.errors
            about = {"message": sentence, "extraInfo": {"timestamp": str(int(time.time()))}}
            with open(os.environ["TORCHELASTIC_ERROR_FILE"], "w", encoding="utf-8") as file:
                file.write(json.dumps({"message": about}))
    except OSError:                     # one of them is full or gone: the exit code says it
        return


def lost_a_process(error):
    """Whether a RuntimeError says that another process of the run is gone."""
    # gloo raises nothing finer, nor does DDP in the backward pass
    signs = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistError) or any(sign in str(error) for sign in signs)


@contextmanager
def terminable():
    """SIGTERM, by which clusters end a job, ends a script as Ctrl-C does: what it holds is given
    back. Exit code 143.

    Not under torchrun: a process that waits for others in an exchange would not hear of it.
    """
    in_charge = threading.current_thread() is threading.main_thread()
    if "RANK" in os.environ or not in_charge:
        yield
        return
    process = os.getpid()

    def end(number, frame):
        if os.getpid() != process:      # a worker that was forked has nothing to give back
            os._exit(143)
        sys.exit(143)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave_at_once(code):
    """End this process without taking its group apart.

    That could take for ever. The last reference to a gloo group may go with the frames of an
    exception, or of `main`; its destructor then holds Python's lock and waits for gloo's thread,
    which may want the lock to let go of the tensors of the last exchange. And leaving a group of
    NCCL in good order is a conversation, for which a rank that gives up may find nobody.
    """
    if isinstance(sys.exception(), Exception):
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if code is None else code)
