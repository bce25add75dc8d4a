"""Where is it? The part of a film that a statement of its report accounts for.

    python sample.py --image chest.png --explain                    # of the model's own report
    python sample.py --image chest.png --report "…" --explain       # of a given one
    python sample.py --report "Large left pleural effusion." --explain      # of a drawn picture

For every statement the drawing branch is asked twice what a noised film should become: given the
whole report, and given the report without that statement. With z the film's latent, t a time, ε a
noise and v the velocity,

    x_t = (1 - t) z + t ε,        ẑ(report) = x_t - t v(x_t, t, report),

and the heat is |D(ẑ(report)) - D(ẑ(report without it))|, D the autoencoder's decoder, averaged
over some times and noises. It is in grey values of the picture, at its full resolution; on the
latent grid, a sixteenth of it, small findings lie between two cells (docs/abilities.md).

Two baselines that people expect stand beside it: attention of the statement's words to the image
patches, and the gradient of their likelihood in the pixels. Writes a sheet and a JSON file with the
maps. For research, not for clinical use.
"""
import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import flow
import sample
import weights
from abilities.wording import sentences
from common.cli import InputError, Text, override
from common.files import refuse_replacing, refuse_unwritable, write_json
from common.images import captioned, read_image, save_png
from common.processes import DTYPES, generator, number_format, setup, torch_dtype
from phantom.facts import NEGATIONS, report_to_facts
from tokenizer import pad
from vision import normalize, preprocess
from weights.int8 import MATRICES
from weights.knowledge import notice, tell_unknown


@dataclass
class Explaining:
    """How heat maps are made. The defaults were chosen on validation phantoms (docs/abilities.md).
    """
    times: tuple[float, float] = (0.5, 0.9)     # times at which the film is noised; 1 is noise
    noises: int = 4             # noises at each time
    batch: int = 16             # pictures at once

    def __post_init__(self):
        assert all(0 < time < 1 for time in self.times), "--times lie between 0 and 1."
        assert min(self.noises, self.batch) > 0, "--noises and --batch must be at least 1."


@dataclass
class ExplainConfig(Explaining):
    explain: bool = True        # what leads here
    image: str = ""             # the film, an image file; "": a picture of --report is drawn
    report: Text = ""           # its report; "": what the model reads off the film
    baselines: bool = False     # attention and gradient beside the heat
    out: str = "explain.png"    # sheet to write; the maps go into a .json beside it
    seed: int = 0               # of a picture that is drawn
    checkpoint: str = sample.SampleConfig.checkpoint    # checkpoint directory or run
    device: str = "auto"        # auto, cpu, cuda, mps
    dtype: Literal[*DTYPES] = "auto"    # number format of the weights; auto: the fastest here
    weights: Literal[*MATRICES] = "float"       # int8: large matrices as 8-bit integers
    threads: int = 0            # CPU threads; 0: a fair share of the cores
    raw: bool = False           # the raw weights of a training run instead of the averaged ones


# ---- statements ----

NOTHING_THERE = NEGATIONS | {"unremarkable", "intact"}


def statements(report):
    """The sentences of a report that say that something is there.

    One that states a finding of phantom.facts is, and any other with words, none of which says that
    nothing is there. What is said twice counts once.
    """
    found = []
    for sentence in sentences(report):
        words = set(re.findall(r"[^\W\d_]+", sentence.lower()))
        if report_to_facts(sentence) or words and not words & NOTHING_THERE:
            found.append(sentence)
    return list(dict.fromkeys(found))


def without(report, statement):
    """The report without one of its sentences."""
    return " ".join(sentence for sentence in sentences(report) if sentence != statement)


# ---- what the statement accounts for ----

@torch.inference_mode()
def heat_maps(model, vae, tokenizer, films, reports, said, how=Explaining(), grid=False):
    """Heat (N, S, S) float32 of N films (N, S, S) uint8: the part that `said` of each report
    accounts for, in grey values.

    grid: the size of the difference of the velocities instead, (N, h, w) on the latent grid.
    """
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    heat = []
    for start in range(0, len(films), how.batch):
        rows = slice(start, start + how.batch)
        grey = torch.as_tensor(np.array(films[rows]), device=device)            # (B, S, S)
        pixels = grey[:, None].expand(-1, 3, -1, -1) / 127.5 - 1                # (B, 3, S, S)
        z = vae.encode(pixels.to(dtype)).float()                                # (B, z, h, w)
        whole, rest = (context(model, tokenizer, texts) for texts in (
            reports[rows], list(map(without, reports[rows], said[rows]))))
        total = 0
        for k in range(how.noises):
            noise = torch.randn(z.shape[1:], generator=generator(0, k)).to(device)
            for time in how.times:
                t = torch.full((len(z),), time, device=device)
                x_t, _ = flow.interpolate(z, noise.expand_as(z), t)
                v = [model.velocity(x_t.to(dtype), t, cache).float() for cache in (whole, rest)]
                if grid:
                    total = total + (v[0] - v[1]).square().sum(1).sqrt()        # (B, h, w)
                    continue
                clean = [vae.decode((x_t - time * v_i).to(dtype)).float().mean(1) for v_i in v]
                total = total + 127.5 * (clean[0] - clean[1])                   # (B, S, S)
        heat.append((total / (how.noises * len(how.times))).abs().cpu())
    return torch.cat(heat).numpy()


def context(model, tokenizer, reports):
    """The cache of some reports."""
    ids, valid = pad([tokenizer.prompt(report) for report in reports])
    device = model.embed.weight.device
    return model.prefill_text(ids.to(device), valid.to(device))[1]


# ---- baselines ----

def places_of(tokenizer, report, statement):
    """Where the tokens of a statement lie in the block of its report -> slice."""
    before = report[:report.index(statement)]
    start = 1 + len(tokenizer.encode(before.rstrip()))          # behind BOS
    return slice(start, 1 + len(tokenizer.encode(before + statement)))


def reading(model, tokenizer, film):
    """A film (S, S) uint8 of the tower's size -> its pixels, the cache of image and prompt."""
    weight = model.embed.weight
    grey = torch.as_tensor(np.array(film), device=weight.device)[None, None]
    pixels = normalize(grey.float() / 255, model.cfg.vision).to(weight.dtype)   # (1, 3, S, S)
    return pixels, torch.tensor([tokenizer.prompt(sample.PROMPT)], device=weight.device)


@torch.inference_mode()
def attention_maps(model, tokenizer, film, report, statement):
    """How much the words of a statement attend to each image patch -> (layers, heads, n, n).

    The softmax runs over the patches alone, without SOI, EOI and text. Queries are caught by a hook
    on each layer, keys lie in the cache: the network has nothing to do with it.
    """
    pixels, prompt = reading(model, tokenizer, film)
    _, cache = model.prefill_image(pixels)
    n = model.cfg.vision.grid
    patches = [keys[0, :, 1:1 + n * n] for keys in cache.keys]                  # SOI is slot 0
    _, cache = model.prefill_text(prompt, cache=cache)

    queries = []
    hooks = [layer.u.heads.register_forward_hook(lambda *call: queries.append(call[2][0][0]))
             for layer in model.layers]
    block = tokenizer.answers([report])[0].astype(np.int64)
    model.prefill_text(torch.tensor(block[None], device=pixels.device), cache=cache)
    for hook in hooks:
        hook.remove()

    places = places_of(tokenizer, report, statement)
    maps = []
    for q, k in zip(queries, patches):                                          # (H, T, D)
        scores = q[:, places].float() @ k.float().transpose(1, 2) * q.size(-1) ** -0.5
        maps.append(scores.softmax(-1).mean(1).unflatten(-1, (n, n)))           # (H, n, n)
    return torch.stack(maps).cpu().numpy()


def gradient_map(model, tokenizer, film, report, statement):
    """|Gradient| of the statement's log-likelihood in the pixels of the film -> (S, S)."""
    pixels, prompt = reading(model, tokenizer, film)
    pixels.requires_grad_(True)
    with torch.enable_grad():
        _, cache = model.prefill_image(pixels)
        _, cache = model.prefill_text(prompt, cache=cache)
        block = torch.tensor(tokenizer.answers([report])[0].astype(np.int64)[None],
                             device=pixels.device)
        hidden, _ = model.prefill_text(block, cache=cache)
        places = places_of(tokenizer, report, statement)
        # the state at a token foretells the next one
        said = slice(places.start - 1, places.stop - 1)
        log_p = model.logits(hidden[:, said]).float().log_softmax(-1)
        likelihood = log_p.gather(2, block[:, places, None]).sum()
        gradient, = torch.autograd.grad(likelihood, pixels)                     # (1, 3, S, S)
    return gradient[0].float().abs().sum(0).cpu().numpy()


# ---- pictures ----

def enlarged(heat, side):
    """A map (h, w) at the size of a picture (side, side), bilinearly."""
    return F.interpolate(torch.as_tensor(heat, dtype=torch.float32)[None, None], (side, side),
                         mode="bilinear")[0, 0].numpy()


def overlay(film, heat):
    """A film (S, S) uint8 with heat (S, S) in red over it -> (S, S, 3) uint8."""
    share = (heat / max(heat.max(), 1e-9))[..., None] * 0.8
    red = np.array([255.0, 40.0, 0.0])
    return (film[..., None] * (1 - share) + red * share).round().astype(np.uint8)


def prepare(cfg, model, vae, tokenizer):
    """-> film (S, S) uint8 of the size that is drawn, the same for the tower, its report."""
    vision = model.cfg.vision
    side = sample.latent_side(model, vae, 0) * vae.factor
    if not cfg.image:
        sample.check_report("the report", cfg.report, model, tokenizer)
        drawing = sample.preset_for(model, sample.SampleConfig(), [], __doc__)
        drawing = replace(drawing, seed=cfg.seed)
        film = sample.generate_images(model, vae, tokenizer, [cfg.report], drawing)[0, 0]
        picture = Image.fromarray(film)
    else:
        picture = read_image(cfg.image)
        film = preprocess(picture, side, 0).numpy()
    small = preprocess(picture, vision.image_size, vision.pad).numpy()
    report = cfg.report
    if not report:
        report = sample.generate_reports(model, tokenizer, small[None])[0]
    sample.check_report("the report", report, model, tokenizer)
    return film, small, report


def main(argv):
    cfg = override(ExplainConfig(), argv, __doc__)
    if not cfg.image and not cfg.report.strip():
        raise InputError("name a film, --image chest.png, or a report to draw, --report \"…\".")
    out = Path(cfg.out)
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {cfg.out} cannot be written; name a .png file.")
    refuse_replacing(out, cfg.image)
    refuse_unwritable(out, out.with_suffix(".json"))
    device = setup(cfg.device, cfg.threads).device
    cfg = replace(cfg, dtype=number_format(cfg.dtype, device))
    model, vae, tokenizer = weights.load(
        cfg.checkpoint, not cfg.raw, torch_dtype(cfg.dtype), device, cfg.weights)
    print(notice(model), file=sys.stderr)
    tell_unknown(model, tokenizer, [cfg.report])
    film, small, report = prepare(cfg, model, vae, tokenizer)

    said = statements(report)
    if not said:
        raise InputError(f"there is nothing to look for: the report says of nothing that it is "
                         f"there ({report})")
    heat = heat_maps(model, vae, tokenizer, [film] * len(said), [report] * len(said), said, cfg)
    plain = overlay(film, np.zeros_like(heat[0]))
    pictures, captions, maps = [], [], []
    for statement, of_it in zip(said, heat):
        if cfg.baselines or not pictures:           # beside each row of maps, else once
            pictures.append(plain)
            captions.append(report)
        y, x = np.unravel_index(of_it.argmax(), of_it.shape)
        pictures.append(overlay(film, of_it))
        captions.append(f"{statement}\nat most {of_it.max():.0f} grey values, at {x}, {y}")
        maps.append({"statement": statement, "maximum": [int(x), int(y)],
                     "heat": of_it.astype(float).round(1).tolist()})
        if cfg.baselines:
            found = attention_maps(model, tokenizer, small, report, statement).mean((0, 1))
            gradient = gradient_map(model, tokenizer, small, report, statement)
            for name, other in (("attention, all layers", found), ("gradient", gradient)):
                pictures.append(overlay(film, enlarged(other, len(film))))
                captions.append(f"{name}: {statement}")
    columns = 4 if cfg.baselines else 0
    save_png(captioned(pictures, captions, columns), out, report=report, notice=notice(model))
    write_json(out.with_suffix(".json"), {"report": report, "statements": maps,
                                          "notice": notice(model)})
    for statement in said:
        print(statement)
    print(f"{out}: where each of these is; {out.with_suffix('.json')}: the maps")
