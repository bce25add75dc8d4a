"""What a checkpoint of ours holds and says about itself: tensors, config.json, hash of a VAE."""
import hashlib
from dataclasses import asdict


def model_tensors(model):
    """{name: tensor} of everything in a UniX that is saved.

    What came with a released UniX and we do not use is called `unused.*`.
    """
    unused = {f"unused.{name}": tensor for name, tensor in model.unused.items()}
    return {**model.state_dict(), **unused}


def describe(model=None, vae=None):
    """The part of config.json that says which networks the tensors belong to, and what they know.
    """
    about = {"format": "open-unix"}
    if model is not None:
        about |= {"model": asdict(model.cfg), **model.about}
    if vae is not None:
        about["vae"] = asdict(vae.cfg)
    return about


def vae_hash(vae):
    """16 hexadecimal digits of a network's weights, to tell which VAE stored latents come from."""
    # in fp32, so that a VAE loaded in half precision from an fp16 file has the same hash as in fp32
    total = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        total.update(name.encode() + tensor.detach().float().cpu().numpy().tobytes())
    return total.hexdigest()[:16]
