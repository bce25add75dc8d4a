"""What is in the checkpoints of others, name by name: the released UniX, Janus-Pro, kl-f16, RAD-DINO, SigLIP, CheXbert.

One table a layout: our name -> theirs, what of theirs is dropped and why, what is new with us, and which choices of the
configuration belong to those weights. At the end, how a file is read and renamed by a table; `weights/load.py` makes models of
it. docs/weights.md says where to get the files.
"""
import json
import pickle
import re
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from common.processes import InputError
from model import position_table
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


# ---- reading files ----

FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
         "diffusion_pytorch_model.safetensors", "kl-f16d16.ckpt")


class Nothing:
    """Stands for a class that checkpoints of Lightning name beside the weights; none of its code is here, none is run."""


INERT = [(Nothing, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def read_tensors(path):
    """{name: tensor} of a safetensors file or torch state dict, both memory-mapped, or of a directory with one of FILES."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).exists()]
        if not found:
            raise InputError(f"{path} holds no weights, none of {', '.join(FILES)}.")
        path = found[0]
    try:
        if path.suffix == ".json":
            return read_shards(path, json.loads(path.read_text(encoding="utf-8"))["weight_map"])
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(INERT):
            # files of torch before 1.6 are no zip archives and cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise InputError(f"there are no weights at {path}; docs/weights.md says where to get them.") from None
    except pickle.UnpicklingError:
        raise InputError(f"{path} asks to run code when it is read, or is no torch file; refused.") from None
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is damaged or cut short ({error}).") from None
    if isinstance(content, dict):
        content = next((content[key] for key in ("state_dict", "model_state_dict") if key in content), content)
    if not isinstance(content, dict) or not all(isinstance(k, str) and torch.is_tensor(v) for k, v in content.items()):
        raise InputError(f"{path} holds something else than named tensors.")
    return content


def read_shards(index, places):
    """The tensors of the shards beside an index {name: file}; both must say the same."""
    if not isinstance(places, dict) or not all(isinstance(v, str) and Path(v).name == v != "" for v in places.values()):
        raise InputError(f"{index} does not say which file beside it holds which tensor.")
    lacking = [name for name in sorted(set(places.values())) if not (index.parent / name).exists()]
    if lacking:
        raise InputError(f"{index} names {', '.join(lacking)}, not there; download again what is missing.")
    tensors, found = {}, {}
    for name in sorted(set(places.values())):
        shard = read_tensors(index.parent / name)
        found |= {(k, name): v for k, v in shard.items()}
        tensors |= shard
    if found.keys() != set(places.items()):
        raise InputError(f"{index} and its shards differ in {few({k for k, _ in found.keys() ^ set(places.items())})}.")
    return tensors


def few(names):
    names = sorted(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def translate(shapes, source, layout, keep=False):
    """Tensors of a foreign file under our names. shapes {our name: shape} says what is wanted.

    What the layout drops is left out, or kept as `unused.*`; what it does not know keeps its name, so that `fill` objects.
    """
    tensors, left = {}, dict(source)
    for ours, shape in shapes.items():
        theirs = layout.theirs(ours)
        if not theirs:
            tensors[ours] = torch.full(shape, next(value for end, value in layout.new.items() if ours.endswith(end)))
        elif all(name in left for name in theirs):
            parts = [left.pop(name) for name in theirs]
            if len({(part.dtype, part.shape) for part in parts}) > 1:
                raise InputError(f"{', '.join(theirs)} belong together and differ in shape or type.")
            tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
            # a table (N, C) that is (1, N, C) here, a linear layer that is a 1x1 convolution here: the same numbers
            same = [n for n in tensor.shape if n != 1] == [n for n in shape if n != 1]
            tensors[ours] = tensor.reshape(shape) if same else tensor
    unused = {k: left.pop(k) for k in list(left) if k.startswith(tuple(layout.dropped))}
    left = {f"{k} (our name, not theirs)" if k in shapes or k.startswith("unused.") else k: v for k, v in left.items()}
    return {**tensors, **left, **({"unused." + k: v for k, v in unused.items()} if keep else {})}


# ---- what an export adds ----

def unused_from_nothing(cfg):
    """The tensors that UNIX drops, for a model that never met a release."""
    W, inner, pool = cfg.vision.n_embd, cfg.vision.n_inner, "vit_model.vision_tower.attn_pool."
    shapes = {"latent": (1, 1, W), "q.weight": (W, W), "q.bias": (W,), "kv.weight": (2 * W, W), "kv.bias": (2 * W,),
              "proj.weight": (W, W), "proj.bias": (W,), "norm.weight": (W,), "norm.bias": (W,),
              "mlp.fc1.weight": (inner, W), "mlp.fc1.bias": (inner,), "mlp.fc2.weight": (W, inner), "mlp.fc2.bias": (W,)}
    return {**{pool + k: torch.zeros(s) for k, s in shapes.items()},
            "latent_pos_embed.pos_embed": position_table(cfg.max_latent_size, cfg.n_embd),
            "vit_pos_embed.pos_embed": position_table(cfg.vision.grid, cfg.n_embd)}


def ldm_config(vae):
    """What latent-diffusion's code builds the autoencoder from; it wants a loss to build, too, and never calls it."""
    cfg = vae.cfg
    sizes = dict(double_z=True, z_channels=cfg.z_channels, resolution=256, in_channels=cfg.in_channels,
                 out_ch=cfg.in_channels, ch=cfg.ch, ch_mult=list(cfg.ch_mult), num_res_blocks=cfg.n_res,
                 attn_resolutions=[256 // vae.factor], dropout=0.0)
    return {"target": "ldm.models.autoencoder.AutoencoderKL", "params": {
        "embed_dim": cfg.embed_dim, "monitor": "val/rec_loss", "ddconfig": sizes, "lossconfig": {"target": "torch.nn.Identity"}}}
