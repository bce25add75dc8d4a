"""weights/sizes.py: tensors tell the sizes, and a config.json that contradicts them is refused."""
import json

import pytest

import weights
from common.cli import InputError

SECTIONS = {
    "language_config": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 100_600,
        "num_attention_heads": 4, "num_key_value_heads": 4, "rope_theta": 1e4},
    "vit_config": {"image_size": 32, "patch_size": 16},
    "vae_config": {"downsample": 16, "z_channels": 16},
    "latent_patch_size": 1, "max_latent_size": 4, "connector_act": "gelu_pytorch_tanh",
    "timestep_shift": 1.0,
}


@pytest.mark.parametrize("config", [SECTIONS, {}], ids=["all", "nothing"])
def test_sizes_are_read_off_the_tensors_whatever_config_json_says(release, altered, config):
    directory = altered(release[2], {"config.json": json.dumps(config)})
    assert weights.load_unix(directory).cfg == release[0].cfg


@pytest.mark.parametrize("section, wrong", [
    ("language_config", {"hidden_size": 65, "intermediate_size": 5, "num_hidden_layers": 3,
                         "vocab_size": 9, "num_attention_heads": 2, "num_key_value_heads": 2,
                         "rope_theta": 5e5, "rms_norm_eps": 0}),
    ("llm_config", {"hidden_size": 65, "num_attention_heads": "4"}),
    ("vit_config", {"image_size": 64, "patch_size": 8}),
    ("vae_config", {"downsample": 8, "z_channels": 4}),
    ("whole", {"latent_patch_size": 2, "max_latent_size": 8, "connector_act": "gelu",
               "vit_config": "x"}),
])
def test_a_config_that_contradicts_the_tensors_is_refused(release, altered, section, wrong):
    directory = altered(release[2], {"config.json": "{}"})
    for key, value in wrong.items():
        config = json.loads(json.dumps(SECTIONS))
        if section == "llm_config":             # another name of the same section
            config["llm_config"] = config.pop("language_config")
        table = config if section == "whole" else config[section]
        table[key] = value
        (directory / "config.json").write_text(json.dumps(config))
        refusals = (f"config.json says {key} {value}, the tensors and their use say|"
                    f"{key} is {value!r}, not a positive number|{key} is no table of settings")
        with pytest.raises(InputError, match=refusals):
            weights.load_unix(directory)
