"""What is in the checkpoints of others, name by name: the rename tables.

One table a layout: the released UniX, Janus-Pro (its authors' form and the port of Hugging Face),
RAD-DINO, CheXbert, kl-f16 (latent-diffusion's form and that of diffusers). Each says which name of
ours is which name of theirs, what of theirs is dropped and why, what only we have, and which
choices of the configuration belong to those weights.

`weights/files.py` reads a file and renames it by a table; `weights/load.py` makes a model of it.
docs/weights.md says where to get the files.
"""
import re
from dataclasses import dataclass, field

from vision import RAD_DINO


@dataclass
class Layout:
    """The names in one kind of checkpoint.

    A key of `names` is the whole name of a tensor of ours ("vision.positions") or that of a module
    ("layers.{}.u.norm1"), whose weight and bias then keep these two endings. {} stands for a
    number. Where a value is a list, those tensors are joined in this order along their first axis.
    """
    title: str                                      # for messages: "PATH is not TITLE"
    names: dict                                     # our name -> theirs
    dropped: dict = field(default_factory=dict)     # how a name of theirs begins -> why we drop it
    new: dict = field(default_factory=dict)         # ending of a name only we have -> first value
    model: dict = field(default_factory=dict)       # fields of UniXConfig that go with the weights
    vision: dict = field(default_factory=dict)      # fields of ViTConfig: pixels, kind of network

    def theirs(self, ours):
        """Our name of a tensor -> a tuple of their names for it, () where the tensor is new.

        KeyError where the table has no entry.
        """
        if ours.endswith(tuple(self.new)):
            return ()

        # our numbers fill the {} of theirs in the same order:
        # "layers.3.u.norm1.weight" -> "layers.{}.u.norm1.weight" and the number 3
        numbers = re.findall(r"\.(\d+)(?=\.)", ours)
        template = re.sub(r"\.\d+(?=\.)", ".{}", ours)

        # look for the whole name, then for its module; first with its numbers, since a key may hold
        # one ("connector.0"), then with {} in their place
        for name in (ours, template):
            module, _, leaf = name.rpartition(".")
            for key, ending in ((name, ""), (module, f".{leaf}")):
                if key in self.names:
                    value = self.names[key]
                    values = [value] if isinstance(value, str) else value
                    return tuple(text.format(*numbers) + ending for text in values)
        raise KeyError(ours)


def under(ours, theirs, table, mark=""):
    """A table with a prefix on both sides. An @ in their names is replaced by the mark.

    under("g.", "x.", {"mlp.up": "mlp@.up_proj"}, "_gen") is {"g.mlp.up": "x.mlp_gen.up_proj"}.
    """
    longer = {}
    for name, value in table.items():
        if isinstance(value, str):
            longer[ours + name] = theirs + value.replace("@", mark)
        else:
            longer[ours + name] = [theirs + text.replace("@", mark) for text in value]
    return longer


# ---- parts that several layouts share ----

LLAMA = {       # one layer; the release marks the generation set by `_moe_gen` where the @ stands
    "norm1": "input_layernorm@",
    "norm2": "post_attention_layernorm@",
    "heads.q": "self_attn.q_proj@",
    "heads.k": "self_attn.k_proj@",
    "heads.v": "self_attn.v_proj@",
    "heads.o": "self_attn.o_proj@",
    "heads.q_norm": "self_attn.q_norm@",
    "heads.k_norm": "self_attn.k_norm@",
    "mlp.gate": "mlp@.gate_proj",
    "mlp.up": "mlp@.up_proj",
    "mlp.down": "mlp@.down_proj",
}
TIMM = {        # the vision tower, SigLIP, as timm has it; so in Janus-Pro and in the release
    "patch": "patch_embed.proj",
    "positions": "pos_embed",
    "norm": "norm",
    "blocks.{}.norm1": "blocks.{}.norm1",
    "blocks.{}.norm2": "blocks.{}.norm2",
    "blocks.{}.qkv": "blocks.{}.attn.qkv",
    "blocks.{}.proj": "blocks.{}.attn.proj",
    "blocks.{}.fc1": "blocks.{}.mlp.fc1",
    "blocks.{}.fc2": "blocks.{}.mlp.fc2",
}
PORT_BLOCK = {  # one block of the same tower in transformers, which does not join q, k and v
    "norm1": "layer_norm1",
    "norm2": "layer_norm2",
    "qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "proj": "self_attn.projection_layer",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
POOL = "the pooling head: reports are written from the patches"

# Janus-Pro has neither the biases of q, k and v nor the norms of q and k. Biases start at 0 and
# change nothing. Gains start at 1, but the norms do change the network: stage 1 has to heal that
NEW_SINCE_JANUS = {
    ".q.bias": 0.0, ".k.bias": 0.0, ".v.bias": 0.0, ".q_norm.weight": 1.0, ".k_norm.weight": 1.0,
}
# its images are in [-1, 1], padded with grey to a square
JANUS_PIXELS = dict(mean=(0.5,) * 3, std=(0.5,) * 3, pad=127)


# ---- UniX, and Janus-Pro, which it begins from ----

UNIX = Layout(
    "the released UniX",
    names={
        "embed": "language_model.model.embed_tokens",
        "lm_head": "language_model.lm_head",
        "norm_u": "language_model.model.norm",
        "norm_g": "language_model.model.norm_moe_gen",
        **under("layers.{}.u.", "language_model.model.layers.{}.", LLAMA),
        **under("layers.{}.g.", "language_model.model.layers.{}.", LLAMA, "_moe_gen"),
        **under("vision.", "vit_model.vision_tower.", TIMM),
        "connector.0": "connector.layers.0",
        "connector.2": "connector.layers.2",
        "time_embed.0": "time_embedder.mlp.0",
        "time_embed.2": "time_embedder.mlp.2",
        "latent_in": "vae2llm",
        "latent_out": "llm2vae",
    },
    dropped={
        "vit_model.vision_tower.attn_pool.": POOL,
        "latent_pos_embed.pos_embed": "a formula: model.position_table",
        "vit_pos_embed.pos_embed": "never read by the release's code",
    },
    model=dict(double_bos=True, connector_gelu="tanh"),
)

JANUS = Layout(
    "Janus-Pro",
    names={
        "embed": "language_model.model.embed_tokens",
        "lm_head": "language_model.lm_head",
        "norm_u": "language_model.model.norm",
        **under("layers.{}.u.", "language_model.model.layers.{}.", LLAMA),
        **under("vision.", "vision_model.vision_tower.", TIMM),
        "connector.0": "aligner.layers.0",
        "connector.2": "aligner.layers.2",
    },
    dropped={
        "vision_model.vision_tower.attn_pool.": POOL,
        "gen_": "Janus draws with discrete tokens of a VQ model; UniX draws by flow matching",
    },
    new=NEW_SINCE_JANUS,
    model=dict(connector_gelu="none"),
    vision=JANUS_PIXELS,
)

JANUS_HF = Layout(
    "the Hugging Face port of Janus-Pro",
    names={
        "embed": "model.language_model.embed_tokens",
        "lm_head": "lm_head",
        "norm_u": "model.language_model.norm",
        **under("layers.{}.u.", "model.language_model.layers.{}.", LLAMA),
        "vision.patch": "model.vision_model.embeddings.patch_embedding",
        "vision.positions": "model.vision_model.embeddings.position_embedding.weight",
        "vision.norm": "model.vision_model.post_layernorm",
        **under("vision.blocks.{}.", "model.vision_model.encoder.layers.{}.", PORT_BLOCK),
        "connector.0": "model.aligner.fc1",
        "connector.2": "model.aligner.hidden_layers.0",
    },
    dropped={
        "model.vqmodel.": "Janus draws with discrete tokens of a VQ model",
        "model.generation_": "and predicts them with these",
    },
    new=NEW_SINCE_JANUS,
    model=dict(connector_gelu="none"),
    vision=JANUS_PIXELS,
)


# ---- encoders: RAD-DINO for REPA and for metrics, CheXbert for metrics ----

DINO_BLOCK = {
    "norm1": "norm1",
    "norm2": "norm2",
    "qkv": [f"attention.attention.{name}" for name in ("query", "key", "value")],
    "proj": "attention.output.dense",
    "scale1": "layer_scale1.lambda1",
    "scale2": "layer_scale2.lambda1",
    "fc1": "mlp.fc1",
    "fc2": "mlp.fc2",
}
DINO = Layout(
    "RAD-DINO",
    names={
        "patch": "embeddings.patch_embeddings.projection",
        "cls": "embeddings.cls_token",
        "positions": "embeddings.position_embeddings",
        "norm": "layernorm",
        **under("blocks.{}.", "encoder.layer.{}.", DINO_BLOCK),
    },
    dropped={"embeddings.mask_token": "in place of hidden patches, in its training alone"},
    vision=dict(class_token=True, layer_scale=True,
                mean=RAD_DINO.mean, std=RAD_DINO.std, pad=RAD_DINO.pad),
)

BERT_BLOCK = {
    "qkv": [f"attention.self.{name}" for name in ("query", "key", "value")],
    "proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "norm2": "output.LayerNorm",
    "fc1": "intermediate.dense",
    "fc2": "output.dense",
}
CHEXBERT = Layout(
    "CheXbert",
    names={
        "words": "bert.embeddings.word_embeddings",
        "positions": "bert.embeddings.position_embeddings",
        "types": "bert.embeddings.token_type_embeddings",
        "norm": "bert.embeddings.LayerNorm",
        "heads.{}": "linear_heads.{}",
        **under("blocks.{}.", "bert.encoder.layer.{}.", BERT_BLOCK),
    },
    dropped={
        "bert.pooler.": "the heads read the first token as it is",
        "bert.embeddings.position_ids": "they count 0, 1, 2, …",
    },
)


# ---- the autoencoder: ours has latent-diffusion's names, so only those of diffusers differ ----

RESNET = {
    "norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2",
    "nin_shortcut": "conv_shortcut",
}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}

LEVEL = {       # what the encoder and the decoder have at each resolution
    **under("block.{}.", "resnets.{}.", RESNET),
    **under("attn.{}.", "attentions.{}.", ATTENTION),
}
CODER = {       # what both have once
    "conv_in": "conv_in",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
    **under("mid.block_1.", "mid_block.resnets.0.", RESNET),
    **under("mid.attn_1.", "mid_block.attentions.0.", ATTENTION),
    **under("mid.block_2.", "mid_block.resnets.1.", RESNET),
}
AUTOENCODER = {
    "quant_conv": "quant_conv",
    "post_quant_conv": "post_quant_conv",
    **under("encoder.", "encoder.", CODER),
    **under("encoder.down.{}.", "encoder.down_blocks.{}.", LEVEL),
    "encoder.down.{}.downsample.conv": "encoder.down_blocks.{}.downsamplers.0.conv",
    **under("decoder.", "decoder.", CODER),
    # diffusers counts the decoder's levels from the other end: `load.mirrored` turns them
    **under("decoder.up.{}.", "decoder.up_blocks.{}.", LEVEL),
    "decoder.up.{}.upsample.conv": "decoder.up_blocks.{}.upsamplers.0.conv",
}

LDM = Layout(
    "kl-f16 as latent-diffusion has it",
    names={ours: ours for ours in AUTOENCODER},
    dropped={"loss.": "LPIPS and the discriminator, of its training alone"},
)
# the same network under other names; its levels have to be turned first, see above
DIFFUSERS = Layout("a KL autoencoder of diffusers", names=AUTOENCODER)
