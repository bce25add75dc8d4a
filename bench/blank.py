"""A UniX of the released size that has learned nothing: something to try a run at full size on.

    python -m bench.blank out/blank     # 6.4 GB in bf16; tokenizer and autoencoder are demo/'s

Texts are then those of the phantom, so that its data sets fit (docs/results.md has such a run).
"""
from dataclasses import replace

import torch

import weights
from common import locks
from common.cli import InputError, cli
from common.processes import setup
from model import UniX, UniXConfig
from weights.about import describe, model_tensors
from weights.checkpoint import write
from weights.export import refuse_files_in


def released(known):
    """UniXConfig of the released sizes for the vocabulary of another one."""
    same = ("vocab_size", "bos", "eos", "soi", "eoi", "max_text", "latent_channels")
    return replace(UniXConfig(), **{name: vars(known)[name] for name in same})


def main(argv):
    if len(argv) != 1 or argv[0].startswith("-"):
        raise InputError("say where to write it: `python -m bench.blank out/blank`.")
    directory, = argv
    with locks.take_files(directory):
        refuse_files_in(directory)
        small, vae, tokenizer = weights.load("demo")
        torch.manual_seed(0)
        with setup().device:
            model = UniX(released(small.cfg))
        tensors = {name: tensor.bfloat16().cpu() for name, tensor in model_tensors(model).items()}
        write(directory, config=describe(model, vae), tokenizer=tokenizer.json,
              tensors={"model": tensors, "vae": vae.state_dict()})


if __name__ == "__main__":
    cli(main, __doc__)
