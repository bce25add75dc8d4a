"""What a run tells: log.jsonl and, if asked for, TensorBoard or Weights & Biases; how fast it is.

    {"step": 10, "loss": 3.2, "lr": 0.0001, "norm": 1.1, "img_s": 41.5, "wait": 0.01, "mfu": 0.2}

is a line of training in <out>/log.jsonl; a line of validation has "val_loss" or "val_mse" instead.
`python -m training.curves RUN...` draws them.
"""
import importlib.util
import math
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

from common.cli import InputError, until_the_end
from common.files import append_jsonl, cut_torn_line, read_jsonl, write_jsonl

# fields of a line that differ between two equal runs, because they speak of time
TIMED = ("img_s", "u_tok_s", "g_tok_s", "wait", "mfu")


class Log:
    """log.jsonl, one JSON object a line. On resuming at `step`, lines of later steps go."""

    def __init__(self, path, step, boards=()):
        """boards: functions write(step, {name: number}), see open_boards."""
        self.path = Path(path)
        self.boards = boards
        if self.path.exists():
            cut_torn_line(self.path)
            lines = read_jsonl(self.path)
            write_jsonl(self.path, [line for line in lines if line["step"] <= step])

    def write(self, **fields):
        """Add a line. `step` must be among the fields; numbers that are not finite become null."""
        # opened for each line, so that `tail -f` and a kill find whole lines
        line = {name: finite(value) for name, value in fields.items()}
        try:
            append_jsonl(self.path, [line])
        except OSError as error:        # it does not say which file
            raise InputError(f"{self.path} could not be written ({error.strerror}). Free some "
                             "space and start the same command.") from None
        # boards draw numbers; lists and names stay in the file
        numbers = {name: value for name, value in line.items() if isinstance(value, float)}
        for board in self.boards:
            board(fields["step"], numbers)


def finite(value):
    """A value as JSON has it, which knows neither NaN nor infinity."""
    if isinstance(value, list):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# ---- boards ----

def refuse_missing_boards(names):
    """InputError if --boards, names separated by commas, has one that is none or lacks its package.
    """
    for name in named(names):
        if name not in BOARDS:
            raise InputError(f"--boards {name} is none of {', '.join(BOARDS)}.")
        if importlib.util.find_spec(name) is None:      # packages are called like their boards
            raise InputError(f"--boards {name} needs a package: pip install {name}.")


def open_boards(names, run, settings):
    """The boards that --boards names -> functions write(step, numbers). They are closed at the end
    of the script.
    """
    return [BOARDS[name](Path(run), settings) for name in named(names)]


def named(names):
    return [name for name in names.split(",") if name]


def tensorboard(run, settings):
    """Numbers for `tensorboard --logdir out`."""
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(run / "tensorboard")
    until_the_end.callback(writer.close)

    def write(step, numbers):
        for name, value in numbers.items():
            writer.add_scalar(name, value, step)
    return write


def wandb(run, settings):
    """Numbers for Weights & Biases, in the project "unix"."""
    import wandb
    run.mkdir(parents=True, exist_ok=True)
    try:
        board = wandb.init(project="unix", name=run.name, dir=run, config=settings)
    except wandb.Error as error:                # nobody has logged in, say
        raise InputError(f"--boards wandb: {error}") from None
    until_the_end.callback(board.finish)

    def write(step, numbers):
        board.log(numbers, step=step)
    return write


BOARDS = {"tensorboard": tensorboard, "wandb": wandb}


# ---- speed ----

class Meter:
    """Throughput since the last log line.

    Per-second rates of `counts` over all devices (img_s, u_tok_s, ...), the share of the time spent
    waiting for data, and MFU: the operations counted in counts["flops"] against the peak of the
    device, where that is known.
    """

    def __init__(self, peak=None, devices=1):
        """peak: FLOP/s of one device, or None. devices: how many work alike; this one counts."""
        self.peak = peak
        self.devices = devices
        self.reset()

    def reset(self):
        self.began = time.perf_counter()
        self.waited = 0.0
        self.counts = Counter()

    def take(self, batches, n):
        """The next n micro-batches of an iterator; what it takes to get them is waiting."""
        asked = time.perf_counter()
        taken = [next(batches) for _ in range(n)]
        self.waited += time.perf_counter() - asked
        return taken

    @contextmanager
    def paused(self):
        """Validation, samples and checkpoints are no training time."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def rates(self):
        """The numbers of a log line; counting starts anew."""
        # this process counts what it did itself; all devices do the same
        seconds = time.perf_counter() - self.began
        flops = self.counts.pop("flops", 0)
        rates = {f"{name}_s": n * self.devices / seconds for name, n in self.counts.items()}
        rates["wait"] = self.waited / seconds
        if self.peak and flops:
            rates["mfu"] = flops / seconds / self.peak
        self.reset()
        return rates
