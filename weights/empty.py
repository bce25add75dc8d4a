"""Networks without storage: shapes, and no values until the tensors of a file are put in."""
import torch
import torch.nn as nn
from torch.overrides import TorchFunctionMode

# what torch's layers and ours fill their weights with at first
RANDOM = (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_)


class WithoutStorage(TorchFunctionMode):
    """A network that is built in `with WithoutStorage():` has weights without memory or values.

    The obvious `with torch.device("meta")` draws random numbers on that device, and for them torch
    imports its whole compiler, which takes seconds. Here only `torch.empty`, from which layers make
    their weights, goes to the meta device, and no random numbers are drawn. What is computed, such
    as the position table of a UniX, has its values.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if kwargs is None:
            kwargs = {}
        if function in RANDOM:
            return kwargs["tensor"]             # not filled
        if function is torch.empty:
            kwargs = {**kwargs, "device": "meta"}
        return function(*args, **kwargs)


def without_storage(network, cfg):
    """A network whose weights have shapes and no values yet."""
    with WithoutStorage():
        return network(cfg)
