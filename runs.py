"""What happens to a run: its log, signals that ask it to stop, steps whose loss is no number."""
import json
import math
import signal
import time
from pathlib import Path

import torch
import torch.distributed as dist

from common import InputError, all_sum


class Log:
    """log.jsonl: one JSON object a line. On resuming at `step`, lines of later steps are cut off."""

    def __init__(self, path, step):
        self.path = Path(path)
        if self.path.exists():
            whole = self.path.read_text().rpartition("\n")[0]     # a kill may have torn the last line
            kept = [s for s in whole.splitlines() if json.loads(s)["step"] <= step]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(s + "\n" for s in kept))
            temporary.rename(self.path)

    def write(self, **fields):
        fields = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in fields.items()}   # JSON has no NaN
        try:
            with open(self.path, "a") as file:
                file.write(json.dumps(fields) + "\n")
        except OSError as error:        # it does not say which file
            raise InputError(f"{self.path} could not be written ({error.strerror}). Free some space and start the same "
                             "command.") from None


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

    def bad(self, norm, losses, indices, rows):
        """Whether this step must be skipped: {} or {"skipped": ids of its bad micro-batches' samples, on any process}."""
        if math.isfinite(norm):
            self.in_a_row = 0
            return {}
        self.in_a_row += 1
        ids = [rows[i]["id"] for loss, index in zip(losses, indices) if not torch.isfinite(loss).all() for i in index.tolist()]
        gathered = [ids]
        if dist.is_initialized():
            gathered = [None] * dist.get_world_size()
            dist.all_gather_object(gathered, ids)
        ids = sum(gathered, []) or ["none: the losses are numbers, the gradient is not"]
        if self.in_a_row >= self.most:
            raise InputError(f"the gradient was no number {self.in_a_row} steps in a row; the samples of the last: "
                             f"{', '.join(ids)}; the weights of the last checkpoint are from before.")
        return {"skipped": ids}
