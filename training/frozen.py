"""Networks on a GPU: frozen matrices in bf16, in which autocast's products take them anyway."""
import torch
import torch.nn as nn


def in_bfloat16(module, device, dtype, keep=False):
    """Turn frozen linear layers to bf16 -> {name: parameter as it was, on the CPU}, if to be kept.

    Autocast casts them to the same bits, but at every use: it remembers only what it has cast of
    trained parameters. Nothing is changed where products are not in bf16, or not on CUDA.
    """
    originals = {}
    if device.type != "cuda" or dtype != "bfloat16":
        return originals
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear) and not layer.weight.requires_grad:
            for part, parameter in layer.named_parameters():
                if keep:
                    originals[f"{name}.{part}"] = parameter.detach().cpu()
            layer.to(torch.bfloat16)
    return originals


def to_device(module, run):
    """Put a step module of drawing where it runs, in the formats that are fast there.

    -> the frozen parameters of its UniX that have changed for it, as a checkpoint holds them.
    """
    # checkpoints of LoRA leave out what is frozen
    keep = run.master and not run.cfg.lora
    originals = in_bfloat16(module.unix, run.device, run.cfg.dtype, keep=keep)
    if module.encoder is not None:      # it may be the vision tower of the model: kept by now
        in_bfloat16(module.encoder, run.device, run.cfg.dtype)
    module.to(run.device)               # as small as it has become
    if run.device.type == "cuda":
        module.vae.to(memory_format=torch.channels_last)        # convolutions like it
    return originals
