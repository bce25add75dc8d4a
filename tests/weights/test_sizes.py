"""weights/sizes.py: tensors tell the sizes, and a config.json that contradicts them is refused."""
import json

import pytest

import weights
from common.cli import InputError

SECTIONS = {
    "language_config": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 100_600,
        "num_attention_heads": 4, "num_key_value_heads": 4, "rope_theta": 1e4,
    },
    "vit_config": {"image_size": 32, "patch_size": 16},
    "vae_config": {"downsample": 16, "z_channels": 16},
    "latent_patch_size": 1, "max_latent_size": 4, "connector_act": "gelu_pytorch_tanh",
    "timestep_shift": 1.0,
}


def test_sizes_are_read_off_the_tensors(release, altered):
    """With all that config.json may say, and without a word of it."""
    expected = release[0].cfg
    directory = altered(release[2], {"config.json": json.dumps(SECTIONS)})
    assert weights.load_unix(directory).cfg == expected
    (directory / "config.json").write_text("{}")
    assert weights.load_unix(directory).cfg == expected


@pytest.mark.parametrize("section, key, value", [
    ("language_config", "hidden_size", 65),
    ("language_config", "intermediate_size", 5),
    ("language_config", "num_hidden_layers", 3),
    ("language_config", "vocab_size", 9),
    ("language_config", "num_attention_heads", 2),
    ("language_config", "num_key_value_heads", 2),
    ("language_config", "rope_theta", 5e5),
    ("llm_config", "hidden_size", 65),
    ("vit_config", "image_size", 64),
    ("vit_config", "patch_size", 8),
    ("vae_config", "downsample", 8),
    ("vae_config", "z_channels", 4),
    ("whole", "latent_patch_size", 2),
    ("whole", "max_latent_size", 8),
    ("whole", "connector_act", "gelu"),
    ("language_config", "num_attention_heads", "4"),        # not even a number
    ("language_config", "rms_norm_eps", 0),
    ("whole", "vit_config", "x"),
])
def test_a_config_that_contradicts_the_tensors_is_refused(release, altered, section, key, value):
    config = json.loads(json.dumps(SECTIONS))
    if section == "llm_config":             # another name of the same section
        config["llm_config"] = config.pop("language_config")
    (config if section == "whole" else config[section])[key] = value
    directory = altered(release[2], {"config.json": json.dumps(config)})
    refusals = (f"config.json says {key} {value}, the tensors and their use say|"
                f"{key} is {value!r}, not a positive number|{key} is no table of settings")
    with pytest.raises(InputError, match=refusals):
        weights.load_unix(directory)
