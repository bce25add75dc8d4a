"""What a layer asks of a GPU at full size: operations and bytes, by tensors without content.

The bounds are what the code needs today. Who adds a cast or a copy to every layer finds out here
and not on the GPU; who removes one lowers the bound. Views cost nothing and are not counted; a
norm counts as its five operations, which a GPU has in one kernel.
"""
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import model as network
from attention import join
from model import UniX, UniXConfig
from vision import ViTConfig

TOWER = ViTConfig(image_size=32, n_layer=1, n_head=1, n_embd=32, n_inner=32)
VIEWS = {
    "view", "_unsafe_view", "t", "transpose", "expand", "slice", "select", "split", "alias",
    "split_with_sizes", "detach", "unsqueeze", "squeeze", "empty", "empty_like", "as_strided",
    "new_empty", "empty_strided", "_reshape_alias", "lift_fresh", "promote_types"}


class Account(TorchDispatchMode):
    """Counts operations, and the bytes of what they read and write."""

    def __init__(self):
        super().__init__()
        self.operations = 0
        self.bytes = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **({} if kwargs is None else kwargs))
        if function.namespace == "aten" and function.overloadpacket.__name__ not in VIEWS:
            self.operations += 1
            tensors, _ = torch.utils._pytree.tree_flatten((args, kwargs, out))
            self.bytes += sum(x.nbytes for x in tensors if torch.is_tensor(x))
        return out


def fused(q, keys, values, bias, causal=False):
    """Attention as on CUDA: one kernel."""
    y = F.scaled_dot_product_attention(q.to(keys[0].dtype), join(keys, 2), join(values, 2),
                                       attn_mask=bias, is_causal=causal and bias is None)
    return y.transpose(1, 2).to(q.dtype)


def account(part):
    """One layer of stage 2 in bf16: 8 texts of 256 tokens, or behind them 256 latents."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        unix = UniX(UniXConfig(n_layer=1, repa_layer=1, vocab_size=1024, bos=0, eos=1, soi=2, eoi=3,
                               vision=TOWER))
        unix.freeze("u")
        for layer in unix.modules():            # as training/frozen.py does
            if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
                for name, p in list(layer.named_parameters()):
                    setattr(layer, name, nn.Parameter(p.detach().bfloat16(), requires_grad=False))
        ids, x_t = torch.zeros(8, 256, dtype=torch.long), torch.zeros(8, 16, 16, 16)
        texts, latents, backward = Account(), Account(), Account()
        with torch.autocast("cpu", torch.bfloat16):
            with texts, torch.no_grad():
                _, cache = unix.prefill_text(ids)
            with latents:
                v = unix.velocity(x_t, torch.zeros(8), cache)
        with backward:
            v.float().sum().backward()
    return {"text": texts, "latents": latents, "backward": backward}[part]


@pytest.mark.parametrize("part, operations, gigabytes", [
    ("text", 81, 2.88), ("latents", 193, 5.86), ("backward", 164, 9.74)])
def test_a_layer_asks_for_no_more(part, operations, gigabytes, monkeypatch):
    monkeypatch.setattr(network, "attend", fused)
    found = account(part)
    assert found.operations <= operations and found.bytes <= 1.001e9 * gigabytes


def test_no_masked_attention_has_keys_that_cudnn_fails_at(monkeypatch):
    """64 modulo 128 of them, with a gradient: its backward pass gives NaN (pytorch#196678).

    With the sizes of the paper, whatever the length of the text and whatever is trained.
    """
    seen = set()

    def attend(q, keys, values, bias, causal=False):
        seen.add((sum(k.size(2) for k in keys), bias is not None))
        return fused(q, keys, values, bias, causal)
    monkeypatch.setattr(network, "attend", attend)
    tower = ViTConfig(n_layer=1, n_head=1, n_embd=16, n_inner=16)
    with torch.device("meta"):
        unix = UniX(UniXConfig(n_layer=1, n_head=1, n_embd=32, n_inner=16, repa_layer=1,
                               vision=tower, vocab_size=16, bos=0, eos=1, soi=2, eoi=3))
        for T in (16, 64, 96, 192, 320, 448, 512):
            ids = torch.zeros(1, T, dtype=torch.long)
            _, image = unix.prefill_image(torch.zeros(1, 3, 384, 384))
            unix.prefill_text(ids, cache=image)                                 # stage 1
            _, text = unix.prefill_text(ids)
            for side in (16, 32):                                               # stages 2 and 3
                unix.velocity(torch.zeros(1, 16, side, side), torch.zeros(1), text)
    assert {keys for keys, masked in seen if not masked} >= {64, 192, 320, 448}
    assert not [keys for keys, masked in seen if masked and keys % 128 == 64]
