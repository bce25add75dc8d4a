"""Change one finding of a picture and leave the rest as it is. For research, not for clinical use.

    python sample.py --edit chest.png --change "Large left pleural effusion."       # -> edit.png
    python sample.py --edit chest.png --report "The whole report that it should have afterwards."
    python sample.py --edit chest.png --change "No nodule." --mask where.png --grid

--report is the whole wanted report: what it does not mention may go. --change is one statement: it
takes the place of all that the picture's report says about the same finding, on either side, or is
added to it (abilities/wording.py); "Small right pleural effusion." therefore moves an effusion from
the left to the right.

How it works (FlowEdit, Kulikov et al., arXiv 2412.08629, Algorithm 1): drawing follows a velocity
from noise to a picture, and the velocity depends on the report. Here the picture x_0 is there
already, with its own report, the source, which the model reads off the picture. At each time t the
same noise is put on x_0 and on the picture as changed so far, x. The difference of the velocities,

    x_t = (1 - t) x_0 + t noise
    v = velocity(x_t + (x - x_0), t, wanted report) - velocity(x_t, t, source)

is what the wanted report asks for and the source does not. It is near zero wherever the reports
agree. x follows it from t = strength down to 0, with new noise at each step, and is free of noise
all the way. Nothing is inverted, so nothing is lost by inverting.
"""
import json
import sys
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tqdm import tqdm

import flow
import weights
from abilities.wording import with_statement
from common.cli import InputError, Text, override
from common.files import refuse_replacing, refuse_unwritable
from common.finite import Watch
from common.images import captioned, read_image, save_png
from common.processes import DTYPES, generator, number_format, setup, torch_dtype
from sample import SampleConfig, Sampling, check_report, generate_reports, guided, latent_side
from vision import preprocess
from weights.int8 import MATRICES
from weights.knowledge import notice, tell_unknown


@dataclass
class Editing:
    """How pictures are changed."""
    strength: float = 0.9       # time from which editing starts, above 0 to 1; 1 changes the most
    steps: int = 16             # steps from there to 0
    cfg: float = 2.0            # guidance towards the wanted report; 1 is none
    seed: int = 0               # the noise of picture k depends on (seed, k) alone
    detail: bool = True         # give the film its grain back where nothing has changed
    batch: int = 16             # pictures at once

    def __post_init__(self):
        assert 0 < self.strength <= 1, "--strength must be above 0 and at most 1."
        assert self.steps > 0, "--steps must be at least 1."
        assert self.batch > 0, "--batch must be at least 1."


@dataclass
class EditConfig(Editing):
    edit: str = ""              # the picture to change, an image file
    report: Text = ""           # the whole report that it should have afterwards
    change: Text = ""           # or one statement, which replaces what the source says about it
    source: Text = ""           # the report that it has; the model reads it off the picture
    mask: str = ""              # image of the same size, white where the picture may change
    out: str = "edit.png"       # picture to write
    grid: bool = False          # the film, the result and their difference in one picture
    json: bool = False          # print the result as a line of JSON
    checkpoint: str = SampleConfig.checkpoint   # checkpoint directory or run
    device: str = "auto"        # auto, cpu, cuda, mps
    dtype: Literal[*DTYPES] = "auto"    # number format of the weights; auto: the fastest here
    weights: Literal[*MATRICES] = "float"       # int8: large matrices as 8-bit integers
    threads: int = 0            # CPU threads; 0: a fair share of the cores
    raw: bool = False           # the raw weights of a training run instead of the averaged ones


DETAIL_ENDS = 16        # grey values of 255: so much change, and nothing is left of a film's detail


# ---- the algorithm ----

def editing_velocity(source, target, x_0, noise, free=None):
    """The velocity of a picture that is being changed: velocity(x, t), for a solver of flow.py.

    source, target: the velocities given the report that the latents x_0 (B, z, h, w) have, and
    given the wanted one. noise: called for new noise (B, z, h, w) at each step. free (B, 1, h, w):
    1 where x may change, 0 where it keeps to x_0.
    """
    def velocity(x, t):
        x_t, _ = flow.interpolate(x_0, noise(), t)
        v = target(x_t + (x - x_0), t) - source(x_t, t)
        if free is not None:
            v = v * free
        return v
    return velocity


@torch.inference_mode()
def edit_latents(model, vae, tokenizer, films, sources, reports, editing, masks=None, numbers=None,
                 progress=True, title="editing"):
    """One batch of `edit_images` -> latents before and after (B, z, h, w), in fp32."""
    device = model.embed.weight.device
    x_0 = encode(vae, films)                                         # (B, z, h, w)
    given = [tokenizer.prompt(report) for report in sources]
    wanted = [tokenizer.prompt(report) for report in reports]
    numbers = range(len(films)) if numbers is None else numbers
    rngs = [generator(editing.seed, k) for k in numbers]
    free = None if masks is None else free_latents(masks, vae.factor).to(device)

    def noise():
        drawn = [torch.randn(x_0.shape[1:], generator=rng) for rng in rngs]
        return torch.stack(drawn).to(device)

    # guidance pulls towards the wanted report alone; the picture agrees with its own already
    velocity = editing_velocity(
        guided(model, given, Sampling(cfg=1)),
        guided(model, wanted, Sampling(cfg=editing.cfg, cfg_interval=(0, 1))),
        x_0, noise, free)
    watch = Watch()

    def watched(x, t):
        step = 1 + len(watch.places)
        return watch(f"the velocity at step {step} of {editing.steps}", velocity(x, t))

    times = editing.strength * flow.schedule(editing.steps)
    bar = partial(tqdm, desc=title, unit="step", disable=not progress, leave=False)
    x = flow.euler(watched, x_0, times, bar)
    watch.check()
    return x_0, x


@torch.inference_mode()
def edit_images(model, vae, tokenizer, films, sources, reports, editing=Editing(), masks=None,
                numbers=None, progress=True):
    """Change films (N, S, S) uint8 with these reports into films with those -> (N, S, S) uint8.

    masks (N, S, S) bool: True where a film may change; elsewhere its pixels come out as they went
    in. The noise of film k depends on (seed, k) alone; numbers: the k of each, if they do not count
    from 0. Raises InputError for a checkpoint that cannot draw, or not this size,
    FloatingPointError for NaN.
    """
    latent_side(model, vae, films.shape[-1])
    numbers = range(len(films)) if numbers is None else numbers
    edited = []
    for start in range(0, len(films), editing.batch):
        batch = slice(start, start + editing.batch)
        x_0, x = edit_latents(
            model, vae, tokenizer, films[batch], sources[batch], reports[batch], editing,
            None if masks is None else masks[batch], numbers[batch], progress,
            title=f"editing {start + 1}/{len(films)}")
        edited.append(finish(vae, films[batch], x_0, x, editing.detail))
    edited = np.concatenate(edited)
    if masks is not None:
        edited = np.where(masks, edited, films)
    return edited


def encode(vae, films):
    """Films (B, S, S) uint8 -> the means of their latents (B, z, h, w) in fp32."""
    parameter = next(vae.parameters())
    grey = torch.as_tensor(films).to(parameter.device)
    pixels = grey[:, None].expand(-1, 3, -1, -1) / 127.5 - 1                # (B, 3, S, S)
    return vae.encode(pixels.to(parameter.dtype)).float()


def free_latents(masks, factor):
    """Masks (B, S, S) bool -> (B, 1, h, w): 1 for a latent with a pixel that may change."""
    pixels = torch.as_tensor(masks)[:, None].float()
    return F.max_pool2d(pixels, factor)


@torch.inference_mode()
def finish(vae, films, x_0, x, detail):
    """Changed latents -> films (B, S, S) uint8.

    The autoencoder smooths grain and fine vessels. With `detail`, what it lost of the film is added
    again: all of it where nothing has changed, nothing where DETAIL_ENDS grey values or more have,
    since the film's detail belongs to what was there before.
    """
    dtype = next(vae.parameters()).dtype
    after = vae.pictures(x.to(dtype)).cpu().numpy()
    if not detail:
        return after
    before = vae.pictures(x_0.to(dtype)).cpu().numpy().astype(int)
    same = (1 - np.abs(after - before) / DETAIL_ENDS).clip(0)
    pictures = after + same * (films - before)
    return pictures.round().clip(0, 255).astype(np.uint8)


# ---- the command line ----

def read_mask(cfg, film):
    """--mask -> (1, S, S) bool, or None without one."""
    if not cfg.mask:
        return None
    mask = read_image(cfg.mask)
    if mask.size != film.size:
        sizes = [" x ".join(map(str, image.size)) for image in (mask, film)]
        raise InputError(f"the mask {cfg.mask} has {sizes[0]} pixels and {cfg.edit} has "
                         f"{sizes[1]}; make both the same.")
    free = np.asarray(mask)[None] >= 128
    if not free.any():
        raise InputError(f"the mask {cfg.mask} is black or dark, so nothing may change; paint "
                         "white what may.")
    return free


def check_film(name, film, model, vae):
    """InputError if a picture cannot be changed as it is: not square, or not of a size that the
    checkpoint draws.
    """
    latent_side(model, vae, 0)
    width, height = film.size
    largest = model.cfg.max_latent_size * vae.factor
    if width != height or width % vae.factor or width > largest:
        raise InputError(f"{name} has {width} x {height} pixels; this checkpoint changes square "
                         f"pictures of {largest}, or of a smaller multiple of {vae.factor}: cut "
                         "and scale it first.")


def main(argv):
    cfg = override(EditConfig(), argv, __doc__)
    if not cfg.edit:
        raise InputError("name the picture to change: --edit chest.png.")
    if bool(cfg.report.strip()) == bool(cfg.change.strip()):
        raise InputError("say what the picture should show, with one of --report (the whole "
                         "report) and --change (one statement).")
    if Path(cfg.out).suffix.lower() != ".png":
        raise InputError(f"--out {cfg.out} cannot be written; name a .png file.")
    refuse_replacing(cfg.out, cfg.edit, cfg.mask)
    film = read_image(cfg.edit)
    mask = read_mask(cfg, film)
    refuse_unwritable(cfg.out)

    device = setup(cfg.device, cfg.threads).device
    cfg = replace(cfg, dtype=number_format(cfg.dtype, device))
    model, vae, tokenizer = weights.load(
        cfg.checkpoint, not cfg.raw, torch_dtype(cfg.dtype), device, cfg.weights)
    check_film(cfg.edit, film, model, vae)
    print(notice(model), file=sys.stderr)
    tell_unknown(model, tokenizer, [cfg.report, cfg.change, cfg.source])

    def read(picture):
        grey = preprocess(picture, model.cfg.vision.image_size, model.cfg.vision.pad)
        return generate_reports(model, tokenizer, grey[None])[0]

    # the report that the picture has, and the one that it should have
    source = cfg.source if cfg.source else read(film)
    check_report("the report of the picture", source, model, tokenizer)
    wanted = cfg.report if cfg.report else with_statement(source, cfg.change)
    check_report("the wanted report", wanted, model, tokenizer)

    films = np.array(film)[None]
    edited = edit_images(model, vae, tokenizer, films, [source], [wanted], cfg, mask)[0]
    again = read(Image.fromarray(edited))
    write(cfg, films[0], edited, {"source": source, "wanted": wanted, "read": again}, model)


def write(cfg, film, edited, reports, model):
    """Write --out, with the settings inside, and print the three reports."""
    picture = Image.fromarray(edited)
    if cfg.grid:
        # grey where nothing has changed
        difference = (128 + edited.astype(int) - film).clip(0, 255).astype(np.uint8)
        captions = [f"before, read: {reports['source']}", f"after, read: {reports['read']}",
                    f"after less before; wanted: {reports['wanted']}"]
        picture = captioned([film, edited, difference], captions, columns=3)
    about = {setting.name: getattr(cfg, setting.name) for setting in fields(Editing)}
    about |= {"checkpoint": Path(cfg.checkpoint).name, "dtype": cfg.dtype, "weights": cfg.weights,
              "mask": Path(cfg.mask).name, "notice": notice(model)}
    save_png(picture, Path(cfg.out), **reports, **about)
    if cfg.json:
        print(json.dumps({"file": cfg.out, **reports, "notice": notice(model)}))
        return
    print(f"before: {reports['source']}\nwanted: {reports['wanted']}\n"
          f"after:  {reports['read']}\n{cfg.out}: written")
