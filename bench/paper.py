"""What a micro-step would take on a GPU, on paper: its kernels, bytes and operations, priced.

    python -m bench.paper       # stage 2 on an H100 and an H200, without one: a minute on a CPU

torch's compiler traces one layer of each kind at real sizes and decides what is kept for the
backward pass; nothing is computed. Two rules make kernels of its graphs:

- A product and an attention are a kernel each, and so is a sum over tokens (the gradients of gains
  and biases).
- Everything else between two of these fuses, as far as it hangs together: such a kernel reads what
  comes from outside and writes what others read.

Around the layers nothing is compiled: there every operation is a kernel (the VAE, the ends of the
networks, the addition of gradients to those of other micro-steps). A kernel takes the time of its
bytes or that of its operations, whichever is longer, and at least LAUNCH. The host is left out.
"""
from dataclasses import dataclass, replace
from math import prod

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

import model as network
import vision
from attention import join
from bench.gpu import INNER, REPORT, Case, batch_of
from bench.measuring import tell
from common.cli import cli, override
from model import UniX, UniXConfig
from repa import Projector
from train_gen import GenStep, TrainConfig
from vae import VAE, VAEConfig
from vision import RAD_DINO, ViT, ViTConfig

# bytes and operations a second as kernels reach them, of 3.35 and 4.8 TB/s in the data sheets
MEMORY = {"H100": 2.6e12, "H200": 3.7e12}
RATES = {"product": 680e12, "attention": 330e12, "convolution": 150e12}     # bf16, bf16, TF32
FULL_PRECISION = 0.08       # of the rate of products, for those in fp32
LAUNCH = 2e-6               # seconds; no kernel is shorter

LAYERS, BLOCKS = 24, 12     # of UniX, of RAD-DINO
CASES = [Case(2, 8, 16, compile=True), Case(2, 32, 16, compile=True),
         Case(2, 32, 16, compile=True, stored=True)]

# what looks at memory in another way, or takes some without writing it
NO_KERNEL = {
    "view", "_unsafe_view", "reshape", "t", "transpose", "permute", "expand", "slice", "select",
    "split", "split_with_sizes", "unbind", "alias", "detach", "unsqueeze", "squeeze", "as_strided",
    "empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided", "_reshape_alias",
    "lift_fresh", "promote_types", "getitem"}
PRODUCTS = {"mm", "addmm", "bmm", "baddbmm"}


@dataclass(eq=False)
class Kernel:
    kind: str                   # product, attention, convolution or other
    bytes: float = 0.0          # read and written
    flops: float = 0.0
    half: bool = True           # a product of bf16

    def seconds(self, gpu):
        time = self.bytes / MEMORY[gpu]
        if self.flops:
            rate = RATES[self.kind] * (1 if self.half else FULL_PRECISION)
            time = max(time, self.flops / rate)
        return max(time, LAUNCH)


def of_operation(function, args, kwargs, out):
    """The kernel of an operation, its bytes left to others; None where it needs none."""
    name = name_of(function)
    if name in NO_KERNEL:
        return None
    if "attention" in name:
        backward = "backward" in name
        q, k = args[1:3] if backward else args[:2]
        return Kernel("attention", flops=(10 if backward else 4) * q.numel() * k.size(2))
    if name in PRODUCTS or "convolution" in name:
        kind = "product" if name in PRODUCTS else "convolution"
        flops = flop_registry[function.overloadpacket](*args, **kwargs, out_val=out)
        half = kind == "convolution" or out.dtype == torch.bfloat16
        return Kernel(kind, flops=flops, half=half)
    return Kernel("other")


def name_of(function):
    """mm of aten.mm.default; the name of a Python function."""
    if isinstance(function, torch._ops.OpOverload):
        function = function.overloadpacket
    return function.__name__


def size(tensors):
    """Bytes of all tensors in a tree; numbers that are repeated by their stride count once."""
    total = 0
    for x in tree_leaves(tensors):
        if torch.is_tensor(x):
            total += x.element_size() * prod(
                n for n, stride in zip(x.shape, x.stride()) if stride != 0)
    return total


def fused_attention(q, keys, values, bias, causal=False):
    """`attention.attend` as on CUDA, on any device: one kernel."""
    y = F.scaled_dot_product_attention(q.to(keys[0].dtype), join(keys, 2), join(values, 2),
                                       attn_mask=bias, is_causal=causal and bias is None)
    return y.transpose(1, 2).to(q.dtype)


# ---- what is compiled: one layer of each kind ----

def of_graph(graph):
    """The kernels of a graph that torch's compiler made."""
    memory = {}                 # node -> the node whose memory it shows
    depth = {}                  # node -> kernels that fuse with nothing, on the longest way to it
    first = {}                  # fusing node -> another one of the same kernel, or itself
    alone = {}                  # node that fuses with nothing -> its kernel
    for node in graph.nodes:
        sources = [memory[n] for n in node.all_input_nodes]
        depth[node] = max((depth[n] + (n in alone) for n in sources), default=0)
        memory[node] = node
        if node.op != "call_function":
            continue
        kernel = of_operation(node.target, values(node.args), values(node.kwargs), values(node))
        if kernel is None and sources:
            memory[node] = sources[0]
        elif kernel is not None and (kernel.kind != "other" or sums_tokens(node)):
            alone[node] = kernel
        elif kernel is not None:
            first[node] = node
            for n in sources:
                if n in first and depth[n] == depth[node]:
                    first[root(first, n)] = node

    # a kernel reads what comes from outside, and writes what others or the caller read
    kernels = dict(alone)
    for node in first:
        if first[node] is node:
            kernels[node] = Kernel("other")
    moved = set()
    for node in graph.nodes:
        if memory[node] is not node:
            continue                    # a view; who uses it is counted instead
        reader = root(first, node) if node in first else node
        for n in node.all_input_nodes:
            source = memory[n]
            maker = root(first, source) if source in first else source
            if maker is reader:
                continue
            if reader in kernels and (reader, n) not in moved:
                kernels[reader].bytes += size(values(n))
            if maker in kernels and source not in moved:
                kernels[maker].bytes += size(values(source))
            moved.update([(reader, n), source])
    return list(kernels.values())


def root(first, node):
    while first[node] is not node:
        node = first[node]
    return node


def values(tree):
    """The tensors without content that stand for nodes."""
    return tree_map_only(torch.fx.Node, lambda node: node.meta.get("val"), tree)


def sums_tokens(node):
    """Whether a sum runs along the rows: compilers give it a kernel of its own."""
    return name_of(node.target) == "sum" and -1 not in node.args[1] and (
        node.args[0].meta["val"].ndim - 1 not in node.args[1])


class Compiler:
    """A backend of torch.compile that keeps the kernels of its graphs and computes nothing."""

    def __init__(self):
        self.kernels = []
        self.backend = aot_autograd(
            fw_compiler=self.keep, bw_compiler=self.keep, inference_compiler=self.keep,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table)

    def keep(self, module, inputs):
        self.kernels += of_graph(module.graph)
        results = values(next(iter(reversed(module.graph.nodes))).args[0])

        def compute(*inputs):
            return [torch.empty_strided(x.shape, x.stride(), dtype=x.dtype)
                    if torch.is_tensor(x) else x for x in results]
        return make_boxed_func(compute)

    def take(self, block):
        """Have a block compiled here when it runs."""
        torch._dynamo.reset()           # nothing of another size is known
        block.compile(backend=self.backend, dynamic=False)


def unix_of(layers):
    """A UniX at full width with a branch to train and one that is frozen in bf16, as in stage 2."""
    tower = ViTConfig(image_size=32, n_layer=1, n_head=1, n_embd=32, n_inner=32)
    unix = UniX(UniXConfig(n_layer=layers, repa_layer=1, vocab_size=1024, vision=tower,
                           bos=0, eos=1, soi=2, eoi=3))
    unix.freeze("u")
    in_half(unix)
    return unix


def in_half(module):
    """As training/frozen.py does on CUDA."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            for name, p in list(layer.named_parameters()):      # fake tensors cannot change theirs
                setattr(layer, name, nn.Parameter(p.detach().bfloat16(), requires_grad=False))


def encoder_of(case, blocks):
    """RAD-DINO with so many blocks, in the size that the case gives it."""
    cfg = replace(RAD_DINO, n_layer=blocks, image_size=224 if case.stored else RAD_DINO.image_size)
    encoder = ViT(cfg).requires_grad_(False)
    in_half(encoder)
    return encoder


def compiled(case):
    """Kernels of all layers of UniX and all blocks of RAD-DINO, forward and backward."""
    unix, encoder = unix_of(1), encoder_of(case, 1)
    layer, block = Compiler(), Compiler()
    layer.take(unix.layers[0])
    block.take(encoder.blocks[0])
    tokens = torch.empty(case.images, encoder.cfg.grid ** 2 + 1, encoder.cfg.n_embd)
    with torch.autocast("cpu", torch.bfloat16):
        with torch.no_grad():
            _, cache = unix.prefill_text(torch.zeros(case.images, REPORT, dtype=torch.long))
            encoder.blocks[0](tokens)
        v = unix.velocity(torch.empty(case.images, 16, case.grid, case.grid),
                          torch.zeros(case.images), cache)
    v.sum().backward()
    return layer.kernels * LAYERS + block.kernels * BLOCKS


# ---- what is not: every operation is a kernel ----

class Eager(TorchDispatchMode):
    """Notes the kernel of every operation."""

    def __init__(self):
        super().__init__()
        self.kernels = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = {} if kwargs is None else kwargs
        out = function(*args, **kwargs)
        kernel = of_operation(function, args, kwargs, out)
        if kernel is not None and function.namespace == "aten":
            kernel.bytes = size((args, kwargs)) + size(out)
            self.kernels.append(kernel)
        return out


def eager(case, layers):
    """Kernels of a whole micro-step with so many layers, nothing of it compiled."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        projector = Projector(UniXConfig().n_embd, INNER, RAD_DINO.n_embd)
        module = GenStep(unix_of(layers), VAE(VAEConfig()), encoder_of(case, layers), projector,
                         TrainConfig(repa_size=224 if case.stored else 0))
        module.unix.cfg.repa_layer = 1
        notes = Eager()
        with notes:
            with torch.autocast("cpu", torch.bfloat16):
                mse, align = module(batch_of(case))
            (mse + 0.5 * align).mean().backward()
    return notes.kernels


def account(case):
    """A micro-step -> {part: (kernels, GB, ms on each GPU)}."""
    parts = {"layers": totals(compiled(case))}
    # what does not grow with the layers is what stands around them
    one, two = totals(eager(case, 1)), totals(eager(case, 2))
    parts["around them"] = tuple(2 * a - b for a, b in zip(one, two))
    # gradients of layers are added to those of other micro-steps: two are read, one written
    trained = sum(p.numel() for p in unix_of(1).layers.parameters() if p.requires_grad)
    added = [Kernel("other", 12 * trained)] * LAYERS
    parts["gradients added"] = totals(added)
    parts["all"] = tuple(map(sum, zip(*parts.values())))
    return parts


def totals(kernels):
    """How many kernels, their gigabytes, and the milliseconds that they take on each GPU."""
    gigabytes = sum(kernel.bytes for kernel in kernels) / 1e9
    times = [1e3 * sum(kernel.seconds(gpu) for kernel in kernels) for gpu in MEMORY]
    return len(kernels), gigabytes, *times


# ---- the command ----

@dataclass
class PaperConfig:
    json: bool = False          # print the line of JSON alone


def show(figures):
    """The figures as a table."""
    print(f"forward and backward, texts of {REPORT} tokens; the host is left out")
    for name, parts in figures.items():
        print(name)
        for part, (count, gigabytes, *times) in parts.items():
            told = ", ".join(f"{ms:6.1f} ms on an {gpu}" for gpu, ms in zip(MEMORY, times))
            print(f"    {part:<16}{count:6.0f} kernels {gigabytes:6.1f} GB {told}")


def main(argv):
    cfg = override(PaperConfig(), argv, __doc__)
    network.attend = vision.attend = fused_attention
    tell({str(case): account(case) for case in CASES}, cfg.json, show)


if __name__ == "__main__":
    cli(main)
