"""Numbers that are none, NaN and infinity: found before a picture or a report is made of them."""
import torch

ADVICE = ("weights that training has ruined do this, and numbers too large for their format, which "
          "--dtype float32 rules out.")


class Watch:
    """Tensors on their way, each with the name of its place: `watch("the velocity at step 3", v)`.

    Whether a tensor is finite is computed where it lies, and asked for at the end alone: a GPU
    would have to stop for each answer.
    """

    def __init__(self):
        self.places = []
        self.finite = []                # a truth value each, still on the device

    def __call__(self, place, tensor):
        """-> the same tensor."""
        self.places.append(place)
        self.finite.append(torch.isfinite(tensor).all())
        return tensor

    def check(self):
        """FloatingPointError with the first place where a number was not finite."""
        if not self.finite:
            return
        for place, finite in zip(self.places, torch.stack(self.finite).tolist()):
            if not finite:
                raise FloatingPointError(f"{place} is not finite: {ADVICE}")


def refuse_non_finite(place, tensor):
    """FloatingPointError if a tensor holds NaN or infinity."""
    watch = Watch()
    watch(place, tensor)
    watch.check()
