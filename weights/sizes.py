"""The configuration of a checkpoint of others: sizes are read off its tensors.

Tensors cannot lie about their shapes, so they come first. config.json is asked for the few numbers
that no shape tells (heads, the epsilon of a norm); where it contradicts the tensors, the checkpoint
is refused.
"""
from contextlib import contextmanager
from pathlib import Path

from common.cli import InputError
from model import UniXConfig
from vae import VAEConfig
from vision import ViTConfig
from weights.checkpoint import read_config
from weights.layouts import UNIX


class Sizes:
    """Answers questions about the tensors of a file, asked by our names of them."""

    def __init__(self, source, layout):
        self.source = source
        self.layout = layout

    def shape(self, ours):
        """The shape of a tensor; of one that is joined from several, that of the first. KeyError
        where the file has no such tensor."""
        return self.source[self.layout.theirs(ours)[0]].shape

    def count(self, ours):
        """How many layers there are: `ours` is a name with {} for the layer's number."""
        n_layers = 0
        while self.layout.theirs(ours.format(n_layers))[0] in self.source:
            n_layers += 1
        return n_layers


@contextmanager
def reading_sizes(path, title):
    """`with reading_sizes(path, "RAD-DINO"):` an error inside becomes the InputError that the file
    at `path` is not RAD-DINO."""
    # a missing tensor, a shape with too few axes, a width of 0, sizes that no configuration takes
    try:
        yield
    except (LookupError, TypeError, ValueError, ZeroDivisionError, AssertionError) as error:
        raise InputError(f"{path} is not {title}: its sizes cannot be read ({error}).") from None


# ---- config.json ----

def config_section(directory, *keys):
    """The first of these sections of a directory's config.json that is there, {} if there is none.

    The key "" means the file as a whole. InputError if numbers that we use are no numbers.
    """
    path = Path(directory) / "config.json"
    if not path.exists():
        return {}
    config = read_config(directory)

    # the same section has had several names, in the release and in ports of Janus
    section = {}
    for key in keys:
        candidate = config if key == "" else config.get(key)
        if candidate:
            section = candidate
            break

    if not isinstance(section, dict):
        raise InputError(f"{path}: {' or '.join(keys)} is no table of settings.")
    # True is an int in Python, so the type is compared and not asked for by isinstance
    for key in ("num_attention_heads", "num_key_value_heads", "rms_norm_eps", "rope_theta"):
        value = section.get(key, 1)
        if type(value) not in (int, float) or not value > 0:
            raise InputError(f"{path}: {key} is {value!r}, not a positive number.")
    return section


# a key of their config.json -> the field of our configuration that must have the same value
SAME_VALUE = {
    "hidden_size": "n_embd",
    "intermediate_size": "n_inner",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_head",
    "rope_theta": "rope_theta",
    "vocab_size": "vocab_size",
    "image_size": "image_size",
    "patch_size": "patch_size",
    "max_latent_size": "max_latent_size",
    "z_channels": "latent_channels",
}
# what is fixed in a UniX and no field of its configuration: a token per latent pixel, and latents
# of a sixteenth of the picture's side
ALWAYS = {"latent_patch_size": 1, "downsample": 16}
CONNECTOR_GELU = {"tanh": "gelu_pytorch_tanh", "none": "gelu"}      # our name -> theirs


def refuse_contradictions(cfg, settings, path):
    """InputError if a section of config.json contradicts the configuration read off the tensors.

    cfg: UniXConfig or ViTConfig. Settings that it has no field for are passed over.
    """
    expected = {**ALWAYS}
    for key, field in SAME_VALUE.items():
        if field in vars(cfg):
            expected[key] = vars(cfg)[field]
    if "connector_gelu" in vars(cfg):
        expected["connector_act"] = CONNECTOR_GELU[cfg.connector_gelu]

    for key, value in settings.items():
        if key in expected and value != expected[key]:
            raise InputError(f"{path}: config.json says {key} {value}, "
                             f"the tensors and their use say {expected[key]}.")


# ---- configurations ----

def tower_config(sizes, settings, prefix=""):
    """ViTConfig of a vision tower whose tensors are called prefix + ... on our side.

    settings: the section of config.json about it, for what the tensors do not tell.
    """
    n_embd, _, patch_size, _ = sizes.shape(prefix + "patch.weight")     # a convolution (C, 3, p, p)
    choices = sizes.layout.vision

    # the table has a row a patch of a square image, and one for the class token
    positions = sizes.shape(prefix + "positions")[-2]
    if choices.get("class_token"):
        positions -= 1
    grid = int(positions ** 0.5)

    # heads leave no trace in a shape; in DINOv2 and in the SigLIP-L of Janus they are 64 wide
    return ViTConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        n_layer=sizes.count(prefix + "blocks.{}.norm1.weight"),
        n_head=settings.get("num_attention_heads", max(1, n_embd // 64)),
        n_embd=n_embd,
        n_inner=sizes.shape(prefix + "blocks.0.fc1.weight")[0],
        norm_eps=settings.get("layer_norm_eps", 1e-6),
        **choices,
    )


def unix_config(source, layout, path):
    """UniXConfig of a released UniX or Janus-Pro: what our export wrote into config.json, else what
    the tensors say."""
    # an export of ours: nothing has to be guessed
    if "open_unix" in config_section(path, ""):
        return UniXConfig(**config_section(path, "open_unix"))

    # the vision tower
    sizes = Sizes(source, layout)
    settings = config_section(path, "vision_config", "vit_config")
    vision = tower_config(sizes, settings, "vision.")
    refuse_contradictions(vision, settings, path)

    # the language model; where nothing tells how many heads, LLaMA's are 128 wide
    text = config_section(path, "language_config", "llm_config", "text_config")
    vocab_size, n_embd = sizes.shape("embed.weight")
    n_layer = sizes.count("layers.{}.u.norm1.weight")
    # repa_layer is a setting of training, and a smaller model may have fewer than the paper's 8
    fields = dict(
        n_layer=n_layer,
        n_head=text.get("num_attention_heads", max(1, n_embd // 128)),
        n_embd=n_embd,
        n_inner=sizes.shape("layers.0.u.mlp.gate.weight")[0],
        vocab_size=vocab_size,
        norm_eps=text.get("rms_norm_eps", 1e-6),
        vision=vision,
        generation=layout is UNIX,
        repa_layer=min(8, n_layer),
        **layout.model,
    )

    # the release tells more: the norm of its queries is as wide as a head, its position table has
    # a row a latent of the largest picture
    if layout is UNIX:
        head_width = sizes.shape("layers.0.u.heads.q_norm.weight")[0]
        table_rows = source["latent_pos_embed.pos_embed"].shape[0]
        fields["n_head"] = n_embd // head_width
        fields["latent_channels"] = sizes.shape("latent_in.weight")[1]
        fields["max_latent_size"] = int(table_rows ** 0.5)

    # what config.json says about the network must be what has just been read
    cfg = UniXConfig(**fields)
    for settings in (text, config_section(path, ""), config_section(path, "vae_config")):
        refuse_contradictions(cfg, settings, path)
    return cfg


def vae_config(sizes):
    """VAEConfig read off the tensors: channels of the levels, residual blocks, latent channels."""
    n_levels = sizes.count("encoder.down.{}.block.0.conv1.weight")
    channels = [sizes.shape(f"encoder.down.{i}.block.0.conv1.weight")[0] for i in range(n_levels)]
    ch, in_channels = sizes.shape("encoder.conv_in.weight")[:2]         # (ch, 3, 3, 3)
    return VAEConfig(
        ch=ch,
        ch_mult=tuple(n // ch for n in channels),
        n_res=sizes.count("encoder.down.0.block.{}.conv1.weight"),
        z_channels=sizes.shape("decoder.conv_in.weight")[1],
        embed_dim=sizes.shape("post_quant_conv.weight")[1],
        in_channels=in_channels,
    )
