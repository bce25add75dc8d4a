"""common/spellings.py: names that users of other software type, in every script that has what they
mean.
"""
import dataclasses
import typing
from collections import Counter

import pytest

import sample
import train_gen
import train_und
from bench import table5
from common.cli import InputError, help_text, override
from common.spellings import FLAGS, INSTEAD, SPELLINGS, VALUES, others
from evaluation import compare, gen, phantom, privacy, und
from phantom import prepare as phantom_prepare
from phantom import train_vae

TRAIN = train_gen.TrainConfig
DRAW = sample.SampleConfig
CONFIGS = (TRAIN, train_und.TrainConfig, train_vae.TrainConfig, table5.Table5Config, DRAW,
           gen.GenConfig, und.UndConfig, phantom.PhantomConfig, compare.CompareConfig,
           compare.FeaturesConfig, privacy.PrivacyConfig, phantom_prepare.Settings)


@pytest.mark.parametrize("config, line, setting, value", [
    (DRAW, "--guidance-scale 3", "cfg", 3.0),
    (DRAW, "--num_inference_steps=8", "steps", 8),
    (DRAW, "--num-images-per-prompt 4", "num", 4),
    (DRAW, "--max-new-tokens 20", "max_tokens", 20),
    (DRAW, "--model-path demo", "checkpoint", "demo"),
    (DRAW, "--output-dir x.png", "out", "x.png"),
    (DRAW, "--prompt why", "prompt", "why"),                # its own name goes before
    (DRAW, "--images a.png b.png --image c.png", "image", ["a.png", "b.png", "c.png"]),
    (DRAW, "--bf16", "dtype", "bfloat16"),
    (DRAW, "--dtype fp32", "dtype", "float32"),
    (DRAW, "--device gpu", "device", "cuda"),
    (TRAIN, "--learning-rate 1e-4", "lr", 1e-4),
    (TRAIN, "--gradient-checkpointing", "recompute", True),
    (TRAIN, "--gradient_checkpointing True", "recompute", True),
    (TRAIN, "--no-gradient-checkpointing", "recompute", False),
    (TRAIN, "--torch-compile=False", "compile", False),
    (TRAIN, "--train-batch-size 64", "batch_size", 64),
    (TRAIN, "--per-device-train-batch-size 4", "micro_batch", 4),
    (TRAIN, "--max-train-steps 7", "steps", 7),
    (TRAIN, "--lr-warmup-steps 7", "warmup", 7),
    (TRAIN, "--mixed-precision no", "dtype", "float32"),
    (TRAIN, "--bf16 True", "dtype", "bfloat16"),
    (TRAIN, "--report-to none", "boards", ""),
    (TRAIN, "--pretrained-model-name-or-path x", "init", "x"),
    (train_und.TrainConfig, "--image-size 128", "image_size", 128),     # no other name of a size
    (phantom.PhantomConfig, "--batch-size 4", "batch", 4),
])
def test_other_names_are_understood(config, line, setting, value):
    settings = override(config(), line.split(), presets={"paper": {}})
    assert getattr(settings, setting) == value
    changed = {name for name in vars(settings) if vars(settings)[name] != vars(config())[name]}
    assert changed <= {setting}


@pytest.mark.parametrize("config, line, words", [
    (TRAIN, "--gradient-accumulation-steps 4", "--micro-batch times processes times accumulation"),
    (TRAIN, "--num-train-epochs 3", "epochs times images divided by --batch-size"),
    (TRAIN, "--resume-from-checkpoint x", "goes on by itself"),
    (TRAIN, "--num-inference-steps 4", "unknown option --num-inference-steps; --help lists all."),
    (TRAIN, "--guidance-scale 4", "--help lists all"),
    (TRAIN, "--bf16 False", "unknown option --bf16"),
    (DRAW, "--height 512", "square"),
    (DRAW, "--negative-prompt x", "guidance"),
    (DRAW, "--learning-rate 1", "--help lists all"),
    (DRAW, "--guidence-scale 2", "the nearest is --cfg"),
    (DRAW, "--reprot x", "the nearest is --report"),
    (TRAIN, "--micro-bacth 2", "the nearest is --micro-batch"),
    (TRAIN, "--num-layers 2", "--help lists all"),
    (TRAIN, "--input x", "--help lists all")])
def test_what_has_no_setting_gets_a_sentence(config, line, words):
    with pytest.raises(InputError) as error:
        override(config(), line.split(), presets={"paper": {}})
    assert words in str(error.value)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__module__)
def test_help_shows_them_beside_what_they_stand_for(config):
    text = " ".join(help_text(config(), "", {}).split())
    options = text.split(" --")
    for name, setting in others(typing.get_type_hints(config)).items():
        assert f"--{name.replace('_', '-')}" in text
        assert any(part.startswith(setting.replace("_", "-") + " ") for part in options)


def test_the_table_names_settings_that_exist_and_no_name_twice():
    settings = {field.name for config in CONFIGS for field in dataclasses.fields(config)}
    for group in SPELLINGS.values():
        assert not group.keys() - settings
        names = Counter(name for names in group.values() for name in names.split())
        assert set(names.values()) == {1}
    assert not VALUES.keys() - settings
    assert not {setting for setting, _ in FLAGS.values()} - settings
    assert not {setting for setting, *_ in INSTEAD} - settings
