"""What is in the checkpoints of others, name by name: the released UniX, Janus-Pro, kl-f16, RAD-DINO, SigLIP, CheXbert.

One table a layout: our name -> theirs, what of theirs is dropped and why, what is new with us, and which choices of the
configuration belong to those weights. `weights/files.py` reads and renames by a table, `weights/load.py` makes models of it.
docs/weights.md says where to get the files.
"""
import re
from dataclasses import dataclass, field

from vision import RAD_DINO


@dataclass
class Layout:
    title: str
    names: dict                                     # our module or tensor, {} a number -> theirs (several: joined in order)
    dropped: dict = field(default_factory=dict)     # how their name begins -> why we do without
    new: dict = field(default_factory=dict)         # how our name ends -> the value it starts at: they have none
    model: dict = field(default_factory=dict)       # fields of UniXConfig that go with these weights
    vision: dict = field(default_factory=dict)      # fields of ViTConfig: pixels and activation

    def theirs(self, ours):
        """Our tensor's name -> their names of it, () where it is new; KeyError where the table has no entry.

        A key is a whole name ("vision.positions") or a module's ("layers.{}.u.norm1"), to which the leaf is added.
        """
        if ours.endswith(tuple(self.new)):
            return ()
        numbers, template = re.findall(r"\.(\d+)(?=\.)", ours), re.sub(r"\.\d+(?=\.)", ".{}", ours)
        for name in (ours, template):
            module, _, leaf = name.rpartition(".")
            for key, end in ((name, ""), (module, "." + leaf)):
                if key in self.names:
                    parts = self.names[key]
                    return tuple(part.format(*numbers) + end for part in ([parts] if isinstance(parts, str) else parts))
        raise KeyError(ours)


def under(ours, theirs, table, mark="@"):
    """A table with prefixes before both sides; @ in their names becomes the mark:
    under("g.", "x.", {"mlp.up": "mlp@.up_proj"}, "_gen") is {"g.mlp.up": "x.mlp_gen.up_proj"}."""
    put = lambda name: theirs + name.replace("@", mark)
    return {ours + k: put(v) if isinstance(v, str) else [put(x) for x in v] for k, v in table.items()}


LLAMA = {       # one layer; the release marks the generation set with `_moe_gen` behind the module's name
    "norm1": "input_layernorm@", "norm2": "post_attention_layernorm@",
    "heads.q": "self_attn.q_proj@", "heads.k": "self_attn.k_proj@", "heads.v": "self_attn.v_proj@",
    "heads.o": "self_attn.o_proj@", "heads.q_norm": "self_attn.q_norm@", "heads.k_norm": "self_attn.k_norm@",
    "mlp.gate": "mlp@.gate_proj", "mlp.up": "mlp@.up_proj", "mlp.down": "mlp@.down_proj",
}
TIMM = {        # SigLIP as timm has it, in Janus-Pro and the release
    "patch": "patch_embed.proj", "positions": "pos_embed", "norm": "norm",
    "blocks.{}.norm1": "blocks.{}.norm1", "blocks.{}.norm2": "blocks.{}.norm2", "blocks.{}.qkv": "blocks.{}.attn.qkv",
    "blocks.{}.proj": "blocks.{}.attn.proj", "blocks.{}.fc1": "blocks.{}.mlp.fc1", "blocks.{}.fc2": "blocks.{}.mlp.fc2",
}
SIGLIP_HF = {   # SigLIP as transformers has it; @ is the output projection, which Janus' port calls otherwise
    "patch": "embeddings.patch_embedding", "positions": "embeddings.position_embedding.weight", "norm": "post_layernorm",
    **under("blocks.{}.", "encoder.layers.{}.", {
        "norm1": "layer_norm1", "norm2": "layer_norm2", "qkv": [f"self_attn.{x}_proj" for x in "qkv"],
        "proj": "self_attn.@", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}),
}
POOL = "the pooling head: reports are written from the patches"
QK_NEW = {".q.bias": 0.0, ".k.bias": 0.0, ".v.bias": 0.0, ".q_norm.weight": 1.0, ".k_norm.weight": 1.0}
JANUS_PIXELS = dict(mean=(0.5,) * 3, std=(0.5,) * 3, pad=127)

UNIX = Layout("the released UniX", {
    "embed": "language_model.model.embed_tokens", "lm_head": "language_model.lm_head",
    "norm_u": "language_model.model.norm", "norm_g": "language_model.model.norm_moe_gen",
    **under("layers.{}.u.", "language_model.model.layers.{}.", LLAMA, ""),
    **under("layers.{}.g.", "language_model.model.layers.{}.", LLAMA, "_moe_gen"),
    **under("vision.", "vit_model.vision_tower.", TIMM),
    "connector.0": "connector.layers.0", "connector.2": "connector.layers.2",
    "time_embed.0": "time_embedder.mlp.0", "time_embed.2": "time_embedder.mlp.2",
    "latent_in": "vae2llm", "latent_out": "llm2vae"}, {
    "vit_model.vision_tower.attn_pool.": POOL,
    "latent_pos_embed.pos_embed": "a formula: model.position_table",
    "vit_pos_embed.pos_embed": "never read by the release's code"},
    model=dict(double_bos=True, connector_gelu="tanh"))

JANUS = Layout("Janus-Pro", {
    "embed": "language_model.model.embed_tokens", "lm_head": "language_model.lm_head", "norm_u": "language_model.model.norm",
    **under("layers.{}.u.", "language_model.model.layers.{}.", LLAMA, ""), **under("vision.", "vision_model.vision_tower.", TIMM),
    "connector.0": "aligner.layers.0", "connector.2": "aligner.layers.2"}, {
    "vision_model.vision_tower.attn_pool.": POOL,
    "gen_": "Janus draws with discrete tokens of a VQ model; UniX draws by flow matching"},
    QK_NEW, dict(connector_gelu="none"), JANUS_PIXELS)

JANUS_HF = Layout("the Hugging Face port of Janus-Pro", {
    "embed": "model.language_model.embed_tokens", "lm_head": "lm_head", "norm_u": "model.language_model.norm",
    **under("layers.{}.u.", "model.language_model.layers.{}.", LLAMA, ""),
    **under("vision.", "model.vision_model.", SIGLIP_HF, "projection_layer"),
    "connector.0": "model.aligner.fc1", "connector.2": "model.aligner.hidden_layers.0"}, {
    "model.vqmodel.": "Janus draws with discrete tokens of a VQ model", "model.generation_": "and predicts them with these"},
    QK_NEW, dict(connector_gelu="none"), JANUS_PIXELS)

SIGLIP = Layout("a SigLIP vision model", under("", "", SIGLIP_HF, "out_proj"), {
    "head.": POOL, "text_model.": "the text half of SigLIP", "logit_": "the scale of SigLIP's loss"},
    vision=dict(mean=(0.5,) * 3, std=(0.5,) * 3, pad=127, gelu="tanh"))

DINO = Layout("RAD-DINO", {
    "patch": "embeddings.patch_embeddings.projection", "cls": "embeddings.cls_token",
    "positions": "embeddings.position_embeddings", "norm": "layernorm",
    **under("blocks.{}.", "encoder.layer.{}.", {
        "norm1": "norm1", "norm2": "norm2", "qkv": [f"attention.attention.{x}" for x in ("query", "key", "value")],
        "proj": "attention.output.dense", "scale1": "layer_scale1.lambda1", "scale2": "layer_scale2.lambda1",
        "fc1": "mlp.fc1", "fc2": "mlp.fc2"})}, {
    "embeddings.mask_token": "for its training"},
    vision=dict(class_token=True, layer_scale=True, mean=RAD_DINO.mean, std=RAD_DINO.std, pad=RAD_DINO.pad))

CHEXBERT = Layout("CheXbert", {
    "words": "bert.embeddings.word_embeddings", "positions": "bert.embeddings.position_embeddings",
    "types": "bert.embeddings.token_type_embeddings", "norm": "bert.embeddings.LayerNorm", "heads.{}": "linear_heads.{}",
    **under("blocks.{}.", "bert.encoder.layer.{}.", {
        "qkv": [f"attention.self.{x}" for x in ("query", "key", "value")], "proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm", "norm2": "output.LayerNorm", "fc1": "intermediate.dense",
        "fc2": "output.dense"})}, {
    "bert.pooler.": "the heads read the first token as it is", "bert.embeddings.position_ids": "they count 0, 1, 2, …"})

RESNET = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "conv_shortcut"}
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def autoencoder_rows():
    """Our names, which are latent-diffusion's -> those of diffusers' AutoencoderKL."""
    rows = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    for coder, blocks, resize in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        ours, theirs = f"{coder}.{blocks}.{{}}.", f"{coder}.{blocks}_blocks.{{}}."
        rows |= {
            **{f"{coder}.{x}": f"{coder}.{x}" for x in ("conv_in", "conv_out")}, f"{coder}.norm_out": f"{coder}.conv_norm_out",
            **under(ours + "block.{}.", theirs + "resnets.{}.", RESNET),
            **under(ours + "attn.{}.", theirs + "attentions.{}.", ATTENTION),
            f"{ours}{resize}.conv": f"{theirs}{resize}rs.0.conv",
            **under(f"{coder}.mid.block_1.", f"{coder}.mid_block.resnets.0.", RESNET),
            **under(f"{coder}.mid.block_2.", f"{coder}.mid_block.resnets.1.", RESNET),
            **under(f"{coder}.mid.attn_1.", f"{coder}.mid_block.attentions.0.", ATTENTION)}
    return rows


LDM = Layout("kl-f16 as latent-diffusion has it", {ours: ours for ours in autoencoder_rows()},
             {"loss.": "LPIPS and the discriminator of its training"})
# decoder.up counts from the other end there: load_vae turns it
DIFFUSERS = Layout("a KL autoencoder of diffusers", autoencoder_rows())
