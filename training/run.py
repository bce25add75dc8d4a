"""What happens to a run, whatever it trains: its intervals and machine, its log, signals that ask it to stop, steps
whose loss is no number.
"""
import json
import math
import signal
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.distributed as dist

from common.processes import InputError, all_sum


@dataclass
class RunConfig:
    """Settings that every training has; the scripts add their own (--help lists those first)."""
    overwrite: bool = False             # start anew although the run's directory holds checkpoints
    save_every: int = 500               # steps between checkpoints
    eval_every: int = 500               # steps between validation losses
    sample_every: int = 1000            # steps between samples, drawn or written, in <out>/samples; 0: none
    log_every: int = 10                 # steps between lines of log.jsonl
    boards: str = ""                    # also log to: tensorboard, wandb, or both with a comma
    keep: int = 2                       # newest checkpoints to keep
    keep_every: int = 0                 # and all those whose step is a multiple of this; 0: none
    max_skipped: int = 20               # steps in a row without a finite gradient until the run gives up
    optimizer: str = "adamw"            # or "muon" for the matrices, which learns faster from nothing
    decay: str = "constant"             # learning rate after warm-up; or "cosine", down to 0
    weight_decay: float = 0.0           # of AdamW
    clip: float = 1.0                   # largest norm of the gradient
    ema: float = 0.9999                 # decay of the averaged weights
    seed: int = 0                       # of everything random
    device: str = "auto"                # auto, cpu, cuda
    dtype: str = "bfloat16"             # of matrix products; parameters stay float32
    threads: int = 0                    # CPU threads; 0 leaves it to torch
    workers: int = -1                   # threads that read data ahead; -1: four with a GPU, else none
    shard: bool = False                 # spread the optimizer's state over the processes (ZeRO 1)
    recompute: bool = False             # forget what layers compute and compute it again going backward: less memory
    compile: bool = False               # torch.compile the step: slow to start, then faster
    deterministic: bool = False         # the same bits in every run, on CUDA too; slower

    def __post_init__(self):
        for names, least in ((("batch_size", "micro_batch", "steps", "save_every", "eval_every", "log_every", "keep",
                               "max_skipped"), 1),
                             (("sample_every", "keep_every", "warmup", "lr", "weight_decay", "ema", "threads"), 0)):
            for name in names:
                assert vars(self)[name] >= least, f"--{name.replace('_', '-')} {vars(self)[name]} must be {least} or more."
        assert self.ema <= 1, f"--ema {self.ema}: the decay of an average is at most 1."
        assert self.clip > 0, f"--clip {self.clip} would leave no gradient; a large number, as 1e9, clips nothing."
        for name, choices in (("optimizer", ("adamw", "muon")), ("decay", ("constant", "cosine")),
                              ("dtype", ("float32", "bfloat16"))):
            assert vars(self)[name] in choices, f"--{name} {vars(self)[name]} is none of {', '.join(choices)}."


def agree(process, cfg, free=("device", "threads", "workers")):
    """All processes must have the same settings, but for what a machine may have of its own; else all of them stop."""
    if process.world == 1:
        return
    everyone = [None] * process.world
    dist.all_gather_object(everyone, asdict(cfg))
    said = {key: [str(theirs[key]) for theirs in everyone] for key in asdict(cfg) if key not in free}
    different = [f"{key}: {', '.join(values)}" for key, values in said.items() if len(set(values)) > 1]
    if different:
        raise InputError(f"ranks disagree about their settings ({'; '.join(different)}); give the same command on every machine.")


TIMED = ("img_s", "u_tok_s", "g_tok_s", "wait", "mfu")       # fields of the log that two equal runs may differ in


class Meter:
    """How fast a run is since the last look: what all devices did a second (img_s, u_tok_s, ...), as far as one of them
    counts it in `counts`; the share of the time that it waited for data; model FLOP utilisation, when the peak of a
    device in FLOP/s is known. A log line holds these fields, which two equal runs may differ in, and no others of time."""

    def __init__(self, peak=None, devices=1):
        self.peak, self.devices = peak, devices
        self.reset()

    def reset(self):
        self.began, self.waited, self.counts = time.perf_counter(), 0.0, Counter()

    def fetch(self, batches, n):
        """The next n micro-batches."""
        asked = time.perf_counter()
        parts = [next(batches) for _ in range(n)]
        self.waited += time.perf_counter() - asked
        return parts

    @contextmanager
    def paused(self):
        """Evaluating and saving are no training time."""
        began = time.perf_counter()
        yield
        self.began += time.perf_counter() - began

    def rates(self):
        seconds, flops = time.perf_counter() - self.began, self.counts.pop("flops", 0)
        rates = {f"{name}_s": count * self.devices / seconds for name, count in self.counts.items()}
        rates["wait"] = self.waited / seconds
        rates |= {"mfu": flops / seconds / self.peak} if self.peak and flops else {}
        self.reset()
        return rates


def tensorboard(run, settings):
    """A function that writes numbers for TensorBoard: `tensorboard --logdir out`."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--boards tensorboard needs a package: pip install tensorboard.") from None
    writer = SummaryWriter(run / "tensorboard")
    return lambda step, numbers: [writer.add_scalar(name, value, step) for name, value in numbers.items()]


def wandb(run, settings):
    """A function that writes numbers to Weights & Biases."""
    try:
        import wandb
    except ImportError:
        raise InputError("--boards wandb needs a package: pip install wandb.") from None
    board = wandb.init(project="unix", name=run.name, dir=run, config=settings)
    return lambda step, numbers: board.log(numbers, step=step)


BOARDS = {"tensorboard": tensorboard, "wandb": wandb}


class Log:
    """log.jsonl: one JSON object a line. On resuming at `step`, lines of later steps are cut off."""

    def __init__(self, path, step, boards="", settings=None):
        self.path = Path(path)
        if unknown := [name for name in boards.split(",") if name and name not in BOARDS]:
            raise InputError(f"--boards {unknown[0]} is none of {', '.join(BOARDS)}.")
        self.boards = [BOARDS[name](self.path.parent, settings) for name in boards.split(",") if name]
        if self.path.exists():
            whole = self.path.read_text().rpartition("\n")[0]     # a kill may have torn the last line
            kept = [s for s in whole.splitlines() if json.loads(s)["step"] <= step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(s + "\n" for s in kept))
            temporary.rename(self.path)

    def write(self, **fields):
        finite = lambda v: None if isinstance(v, float) and not math.isfinite(v) else v                  # JSON has no NaN
        fields = {k: [finite(x) for x in v] if isinstance(v, list) else finite(v) for k, v in fields.items()}
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(fields) + "\n")
        except OSError as error:        # it does not say which file
            raise InputError(f"{self.path} could not be written ({error.strerror}). Free some space and start the same "
                             "command.") from None
        for board in self.boards:
            board(fields["step"], {k: v for k, v in fields.items() if isinstance(v, float)})


class Stop:
    """SIGTERM and SIGINT ask for a checkpoint and an end; one more, three seconds later or more, ends at once. (A cluster
    signals torchrun and the ranks, and torchrun hands it on: that is one request.)

    A signal reaches processes at different moments, so all of them call `agree` after every step; `now` is the answer.
    """

    def __init__(self):
        self.asked, self.now = 0.0, False       # asked: when, in seconds of the clock
        self.before = {number: signal.signal(number, self.ask) for number in (signal.SIGTERM, signal.SIGINT)}

    def ask(self, number, frame):
        if self.asked and time.monotonic() - self.asked > 3:
            raise KeyboardInterrupt
        self.asked = self.asked or time.monotonic()

    def agree(self, device):
        self.now = bool(all_sum(torch.tensor(bool(self.asked), dtype=torch.int, device=device)))
        return self.now

    def release(self):
        """Signals mean again what they meant before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Skipped:
    """Steps whose gradient is no number: weights, optimizer and average stay as they are, and the run goes on, up to
    `most` in a row. The gradient is the same on all processes, so they all skip together."""

    def __init__(self, most, in_a_row):
        self.most, self.in_a_row = most, in_a_row

    def bad(self, norm, losses, ids_of):
        """Whether this step must be skipped: {} or {"skipped": ids of its bad micro-batches' samples, on any process}.

        losses: one tensor a micro-step of this process; ids_of(i): the samples of micro-step i.
        """
        if math.isfinite(norm):
            self.in_a_row = 0
            return {}
        self.in_a_row += 1
        ids = [name for i, loss in enumerate(losses) if not torch.isfinite(loss).all() for name in ids_of(i)]
        gathered = [ids]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, ids)
        ids = sum(gathered, []) or ["none: the losses are numbers, the gradient is not"]
        if self.in_a_row >= self.most:
            raise InputError(f"the gradient was no number {self.in_a_row} steps in a row; the samples of the last: "
                             f"{', '.join(ids)}; the weights of the last checkpoint are from before.")
        return {"skipped": ids}
