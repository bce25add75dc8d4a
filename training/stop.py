"""How a run learns that it should end: signals, on which all processes agree."""
import signal
import time

import torch

from common.processes import all_sum


class Stop:
    """SIGTERM and SIGINT ask for a checkpoint and an end.

    One more signal, three seconds later or more, ends at once. (A cluster signals torchrun and all
    processes, and torchrun forwards its signal, so several within three seconds count as one.) A
    signal reaches processes at different moments, so all of them add up `asking` in every step, and
    all get the same answer; it is read with the norm of the gradient, before the update.
    """

    def __init__(self):
        self.asked = 0.0                # when, in seconds of the clock; 0: not yet
        self.before = {}                # handlers that were there
        for number in (signal.SIGTERM, signal.SIGINT):
            self.before[number] = signal.signal(number, self.ask)

    def ask(self, number, frame):
        if self.asked and time.monotonic() - self.asked > 3:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked = time.monotonic()

    def asking(self, device):
        """How many processes were asked to stop, as a tensor on the device."""
        return all_sum(torch.full((), float(self.asked > 0), device=device))

    def release(self):
        """Signals mean again what they meant before."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
