"""weights/layouts.py: which name of ours is which name of theirs.

All 996 names of the released size are compared in test_golden.py.
"""
import json

import pytest
import torch

from helpers import GOLDEN, needs_golden
from vae import VAE, VAEConfig
from vision import ViTConfig
from weights.layouts import DIFFUSERS, DINO, JANUS, JANUS_HF, LDM, UNIX, Layout


def title(value):
    return value.title if isinstance(value, Layout) else None


TOWER_BLOCK = "model.vision_model.encoder.layers.7.self_attn."


@pytest.mark.parametrize("layout, ours, theirs", [
    # a tensor by its whole name; a module keeps its leaf, also where its key holds a number
    (DINO, "positions", ["embeddings.position_embeddings"]),
    (UNIX, "connector.0.weight", ["connector.layers.0.weight"]),
    # numbers are handed on, and the mark of the generation set is where the release has it
    (UNIX, "layers.9.g.mlp.up.weight",
     ["language_model.model.layers.9.mlp_moe_gen.up_proj.weight"]),
    (DIFFUSERS, "encoder.down.2.block.1.nin_shortcut.bias",
     ["encoder.down_blocks.2.resnets.1.conv_shortcut.bias"]),
    # several, in their order; and none where only we have it
    (JANUS_HF, "vision.blocks.7.qkv.bias", [f"{TOWER_BLOCK}{x}_proj.bias" for x in "qkv"]),
    (JANUS, "layers.0.u.heads.q.bias", []),
], ids=title)
def test_theirs(layout, ours, theirs):
    assert layout.theirs(ours) == tuple(theirs)
    with pytest.raises(KeyError, match="layers.0.u.norm3.weight"):
        layout.theirs("layers.0.u.norm3.weight")


@needs_golden
def test_every_name_and_shape_of_a_full_size_kl_f16_is_in_the_table():
    shapes = json.loads((GOLDEN / "key_shapes_full.json").read_text())["vae_kl_f16"]
    with torch.device("meta"):
        state = VAE(VAEConfig()).state_dict()
    assert {LDM.theirs(name)[0]: list(tensor.shape) for name, tensor in state.items()} == shapes


@pytest.mark.parametrize("layout, mean, std, pad, choices", [
    (UNIX, 0.555895, 0.336385, 141, {"double_bos": True, "connector_gelu": "tanh"}),
    (JANUS, 0.5, 0.5, 127, {"connector_gelu": "none"}),
    (JANUS_HF, 0.5, 0.5, 127, {"connector_gelu": "none"}),
    (DINO, 0.5307, 0.2583, 0, {}),
], ids=title)
def test_pixels_and_choices_belong_to_the_weights(layout, mean, std, pad, choices):
    """No comparison of networks would show these."""
    cfg = ViTConfig(image_size=64, patch_size=16, **layout.vision)
    assert (cfg.mean, cfg.std, cfg.pad, cfg.gelu) == ((mean,) * 3, (std,) * 3, pad, "none")
    assert layout.model == choices
