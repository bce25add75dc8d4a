"""weights/layouts.py: which name of ours is which name of theirs."""
import json

import pytest
import torch

from helpers import GOLDEN, needs_golden
from vae import VAE, VAEConfig
from vision import ViTConfig
from weights import layouts
from weights.layouts import Layout, under


@pytest.mark.parametrize("ours, theirs", [
    ("positions", ("pos_embed",)),                                      # a tensor by its whole name
    ("embed.weight", ("model.tokens.weight",)),                         # a module keeps its leaf
    ("layers.11.u.norm.bias", ("model.layers.11.ln.bias",)),            # numbers are handed on
    ("layers.3.attn.4.q.weight", ("model.l3.a4.query.weight",)),
    ("connector.0.weight", ("aligner.first.weight",)),                  # a number in a key
    ("layers.2.qkv.weight", tuple(f"l.2.{x}.weight" for x in "qkv")),   # several, in their order
    ("layers.2.u.gain", ()),                                            # they have none
])
def test_theirs(ours, theirs):
    layout = Layout("a toy", new={".gain": 1.0}, names={
        "positions": "pos_embed",
        "embed": "model.tokens",
        "layers.{}.u.norm": "model.layers.{}.ln",
        "layers.{}.attn.{}.q": "model.l{}.a{}.query",
        "layers.{}.qkv": ["l.{}.q", "l.{}.k", "l.{}.v"],
        "connector.0": "aligner.first",
    })
    assert layout.theirs(ours) == theirs


def test_a_name_that_no_table_knows_is_an_error():
    with pytest.raises(KeyError, match="layers.0.u.norm3.weight"):
        layouts.UNIX.theirs("layers.0.u.norm3.weight")


def test_under_puts_prefixes_on_both_sides_and_a_mark_into_theirs():
    table = {"mlp.up": "mlp@.up_proj", "qkv": ["q@", "k@"]}
    assert under("g.", "x.", table, "_gen") == {
        "g.mlp.up": "x.mlp_gen.up_proj",
        "g.qkv": ["x.q_gen", "x.k_gen"],
    }


@needs_golden
def test_every_name_and_shape_of_a_full_size_kl_f16_is_in_the_table():
    shapes = json.loads((GOLDEN / "key_shapes_full.json").read_text())["vae_kl_f16"]
    with torch.device("meta"):
        state = VAE(VAEConfig()).state_dict()
    ours = {layouts.LDM.theirs(name)[0]: list(tensor.shape) for name, tensor in state.items()}
    assert ours == shapes


@pytest.mark.parametrize("layout, mean, std, pad", [
    (layouts.UNIX, 0.555895, 0.336385, 141),
    (layouts.JANUS, 0.5, 0.5, 127),
    (layouts.JANUS_HF, 0.5, 0.5, 127),
    (layouts.DINO, 0.5307, 0.2583, 0),
], ids=lambda value: value.title if isinstance(value, Layout) else "")
def test_pixels_belong_to_the_weights(layout, mean, std, pad):
    """No comparison of networks would show these."""
    cfg = ViTConfig(image_size=64, patch_size=16, **layout.vision)
    assert cfg.mean == (mean,) * 3
    assert cfg.std == (std,) * 3
    assert cfg.pad == pad
    assert cfg.gelu == "none"


def test_choices_of_the_release_and_of_janus():
    assert layouts.UNIX.model == {"double_bos": True, "connector_gelu": "tanh"}
    assert layouts.JANUS.model == layouts.JANUS_HF.model == {"connector_gelu": "none"}
