"""Report -> image, image -> report. For research, not for clinical use.

    python sample.py --report "Large left pleural effusion."     # -> sample.png
    python sample.py --image chest.png                           # -> the report, on standard output
    python sample.py --reports prompts.txt --num 4 --grid        # -> a captioned grid of pictures
    python sample.py --image films/ --json > reports.jsonl       # -> a line of JSON per image

What only a model of both directions can do is in abilities/, with options of its own:

    python sample.py --image chest.png --explain                 # where each finding is
    python sample.py --table prompts.csv --out synth/            # a data set; more: --table --help
    python sample.py --edit chest.png --change "No effusion."    # one finding changed
    python sample.py --grid --report "{Small,Large} {left,right} effusion."     # the words compared

Without --checkpoint it uses the phantom model in demo/: toy chest X-rays only. From Python:

    model, vae, tokenizer = weights.load("demo")
    pictures = generate_images(model, vae, tokenizer, ["No effusion."], Sampling(seed=3))
    reports = generate_reports(model, tokenizer, images)         # images: vision.preprocess
"""
import json
import os
import sys
from dataclasses import dataclass, field, fields, replace
from functools import partial
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import Literal

import torch
from tqdm import tqdm

import flow
import weights
from attention import DecodeCache
from common.cli import InputError, Text, cli, override, report_failures
from common.finite import Watch, refuse_non_finite
from common.images import checked, image_files, read_image
from common.processes import (DTYPES, Recorded, decoding, generator, number_format, setup,
                              torch_dtype)
from common.prompts import Pictures, Prompt, read_prompts
from tokenizer import pad
from vision import normalize, preprocess
from weights.int8 import MATRICES
from weights.knowledge import notice, tell_unknown

PROMPT = "Describe the findings in this chest X-ray."


@dataclass
class Sampling:
    """How pictures are drawn: inherited, with the checks, by every command that draws."""
    seed: int = 0               # the noise of image k of a report depends on (seed, k) alone
    steps: int = 16             # solver steps; Heun evaluates the velocity twice in each
    solver: Literal[*flow.SOLVERS] = "ab2"      # how the velocity is integrated; flow.py
    shift: float = 1.0          # time shift of the schedule; above 1: more steps near the noise
    cfg: float = 2.0            # guidance scale: higher follows the report more closely; 1 is none
    cfg_interval: tuple[float, float] = (0.4, 1.0)      # guidance only where low < t <= high
    renorm: Literal[*flow.RENORMS] = "global"   # over what guidance keeps the norm; flow.guide
    size: int = 0               # pixels a side; 0: the largest that the checkpoint draws
    batch: int = 16             # images or reports at once

    def __post_init__(self):
        low, high = self.cfg_interval
        solvers = ", ".join(flow.SOLVERS)
        assert self.solver in flow.SOLVERS, f"--solver {self.solver} is none of {solvers}."
        assert low < high, "--cfg-interval: the first value must be below the second."
        assert self.steps > 0, "--steps must be at least 1."
        assert self.batch > 0, "--batch must be at least 1."
        assert self.shift > 0, "--shift must be positive."
        assert self.size >= 0, "--size must be 0 or more."


@dataclass
class SampleConfig(Sampling):
    report: list[Text] = field(default_factory=list)    # report to draw, or several
    reports: str = ""           # file of reports to draw: text, one a line; or CSV, JSON lines
    image: list[str] = field(default_factory=list)      # image files or folders to report on
    prompt: Text = PROMPT        # what is asked about an image
    checkpoint: str = str(Path(__file__).resolve().parent / "demo")   # checkpoint directory or run
    preset: str = ""            # "release": the sampling settings of the released UniX
    out: str = "sample.png"     # picture to write; several become sample-000.png and so on
    grid: bool = False          # one picture of all pictures, with their reports underneath
    json: bool = False          # print results as lines of JSON
    num: int = 1                # pictures of each report
    temperature: float = 0.0    # 0: always the most likely token; higher: more varied
    top_p: float = 1.0          # draw from the most likely tokens that hold this much probability
    max_tokens: int = 0         # longest report; 0: as long as the checkpoint can
    device: str = "auto"        # auto, cpu, cuda, mps
    dtype: Literal[*DTYPES] = "auto"    # number format of the weights; auto: the fastest here
    weights: Literal[*MATRICES] = "float"       # int8: large matrices as 8-bit integers
    threads: int = 0            # CPU threads; 0: a fair share of the cores; 1 is best beside others
    raw: bool = False           # the raw weights of a training run instead of the averaged ones

    def __post_init__(self):
        super().__post_init__()
        assert self.num > 0, "--num must be at least 1."
        assert self.temperature == 0 or self.temperature >= 1e-3, \
            "--temperature must be 0, or 0.001 or more."
        assert 0 < self.top_p <= 1, "--top-p must be above 0 and at most 1."
        assert self.max_tokens >= 0, "--max-tokens must be 0 or more."


PRESETS = {
    "release": dict(steps=49, solver="euler", shift=3.0, cfg=2.0, cfg_interval=(0.4, 1.0),
                    renorm="global"),
}


# an option that leads to a room with a command line of its own
ABILITIES = {"--explain": "abilities.explain", "--table": "abilities.table",
             "--edit": "abilities.edit"}


def preset_for(model, cfg, argv, doc):
    """The settings of a command line, now that the model is known."""
    if model.cfg.double_bos and not cfg.preset:
        # Released weights: options that were not given take the release's values.
        return override(type(cfg)(), ["--preset=release", *argv], doc, PRESETS)
    return cfg


# ---- report -> image ----

def guided(model, blocks, sampling):
    """The velocity of B pictures given their reports, with guidance: velocity(x_t, t).

    blocks: B lists of token ids; x_t (B, z, h, w), t (B,), the same for all. The keys and values
    of the reports are computed here, once. Guidance needs a second velocity, without the report:
    it is a second row of the same batch, whose context is emptied.
    """
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    B = len(blocks)
    ids, valid = pad(blocks)
    _, cache = model.prefill_text(ids.to(device), valid.to(device))
    row = torch.arange(2 * B, device=device)
    with_and_without = cache.rows(row % B).drop(row >= B)
    low, high = sampling.cfg_interval

    def with_report(x, t):
        return model.velocity(x.to(dtype), t, cache).float()

    def with_guidance(x, t):
        x = x.to(dtype).repeat(2, 1, 1, 1)
        v_cond, v_uncond = model.velocity(x, t.repeat(2), with_and_without).float().chunk(2)
        return flow.guide(v_cond, v_uncond, sampling.cfg, sampling.renorm)

    plain, with_both = Recorded(with_report, device), Recorded(with_guidance, device)

    def velocity(x, t):
        inside = low < float(t[0]) <= high          # times come from the host, which need not wait
        chosen = with_both if inside and sampling.cfg != 1 else plain
        return chosen(x, t.to(x.device, non_blocking=True))

    return velocity


@torch.inference_mode()
def generate_images(model, vae, tokenizer, reports, sampling=Sampling(), num=1, numbers=None,
                    progress=True):
    """Draw `num` pictures of each report -> uint8 (len(reports), num, size, size), grey.

    The noise of picture k of a report depends on (seed, k) alone, whatever the batch. numbers: the
    k of each report's first picture, if not 0. Raises InputError for a checkpoint that cannot draw,
    or not this size, FloatingPointError for NaN.
    """
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    side = latent_side(model, vae, sampling.size)
    solver, evaluations = flow.SOLVERS[sampling.solver]
    times = flow.schedule(sampling.steps, sampling.shift)
    if numbers is None:
        numbers = [0] * len(reports)

    # one row per picture: the tokens of its report, and its number
    rows = []
    for report, first in zip(reports, numbers):
        block = tokenizer.prompt(report)
        rows += [(block, first + k) for k in range(num)]

    pictures = []
    for start in range(0, len(rows), sampling.batch):
        batch = rows[start:start + sampling.batch]
        velocity = guided(model, [block for block, _ in batch], sampling)
        watch = Watch()
        def watched(x, t):
            step = 1 + len(watch.places) // evaluations
            return watch(f"the velocity at step {step} of {sampling.steps}", velocity(x, t))

        shape = (vae.cfg.embed_dim, side, side)
        noise = [torch.randn(shape, generator=generator(sampling.seed, k)) for _, k in batch]
        bar = partial(tqdm, desc=f"drawing {start + 1}/{len(rows)}", unit="step",
                      disable=not progress, leave=False)
        latents = solver(watched, torch.stack(noise).to(device), times, bar)
        watch.check()                                                       # CPU-GPU sync
        pictures.append(vae.pictures(latents.to(dtype)).cpu())
    return torch.cat(pictures).unflatten(0, (len(reports), num)).numpy()


def latent_side(model, vae, size):
    """Rows of the latent of a picture of `size` pixels (0: the largest), or InputError."""
    if vae is None or not model.cfg.generation:
        raise InputError("this checkpoint cannot draw: it has no generation branch or no VAE "
                         "(train_gen.py makes one).")
    largest = model.cfg.max_latent_size * vae.factor
    if size == 0:
        size = largest
    if size % vae.factor or size > largest:
        raise InputError(f"size {size}: this checkpoint draws pictures of multiples of "
                         f"{vae.factor} up to {largest} pixels a side.")
    return size // vae.factor


def check_report(name, report, model, tokenizer):
    """InputError if the model cannot draw this report, called `name`: it is empty or too long."""
    tokens, longest = len(tokenizer.prompt(report)), model.cfg.max_text
    if not report.strip():
        raise InputError(f"{name} is empty; write what the picture should show.")
    if tokens > longest:
        raise InputError(
            f"{name} has {tokens} tokens, this checkpoint reads {longest}; shorten it.")


# ---- image -> report ----

@torch.inference_mode()
def generate_reports(model, tokenizer, images, prompt=PROMPT, temperature=0.0, top_p=1.0,
                     max_tokens=0, seed=0, batch=16, progress=True, title="reading", first=0):
    """Report on images (N, S, S) uint8, `vision.preprocess`ed to the tower's size -> N strings.

    temperature 0 is greedy; otherwise the draws for image i depend on (seed, i) alone, counted from
    `first`. max_tokens 0: the longest text that the model reads. title: what the progress bar says.
    """
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    room = model.cfg.max_text - 1                       # BOS takes one
    if max_tokens > 0:
        room = min(room, max_tokens)
    prompt_ids = torch.tensor(tokenizer.prompt(prompt), device=device)
    # asking a GPU whether all rows are done is waiting for it; free slots are read in vain
    ask_every, room_at_once = (1, 64) if device.type == "cpu" else (16, 256)

    reports = []
    starts = range(0, len(images), batch)
    for start in tqdm(starts, desc=title, unit="batch", disable=not progress, leave=False):
        # the image block, and the prompt on top of it
        grey = torch.as_tensor(images[start:start + batch]).to(device)                # (B, S, S)
        B = len(grey)
        pixels = normalize(grey[:, None].float() / 255, model.cfg.vision)             # (B, 3, S, S)
        _, cache = model.prefill_image(pixels.to(dtype))
        _, cache = model.prefill_text(prompt_ids.expand(B, -1), cache=cache)

        # then BOS and token after token, until every row has met its EOS
        token = torch.full((B, 1), tokenizer.bos, device=device)
        answers = torch.full((B, room), tokenizer.eos, device=device)
        rngs = [generator(seed, first + start + i) for i in range(B)]
        done = torch.zeros(B, dtype=torch.bool, device=device)

        def next_logits(token):
            hidden, _ = model.prefill_text(token, cache=cache)
            return model.logits(hidden[:, -1]).float()                                # (B, V)

        watch = Watch()
        with decoding(B, device):
            for n in range(room):
                if n % room_at_once == 0:
                    cache = DecodeCache(cache, min(room_at_once, room - n))
                    step = Recorded(next_logits, device)
                logits = step(token)
                watch(f"a logit of token {n + 1}", logits)
                token = choose(logits, temperature, top_p, rngs)
                answers[:, n] = token[:, 0]
                done |= token[:, 0] == tokenizer.eos
                if (n + 1) % ask_every == 0 and done.all():
                    break
        watch.check()

        # what a row says after its EOS, while others go on, is cut off by `decode`
        reports += [tokenizer.decode(ids) for ids in answers.tolist()]
    return reports


def choose(logits, temperature, top_p, rngs):
    """Next token (B, 1) from logits (B, V): the most likely, or a draw, one generator a row.

    A draw is from the nucleus: the most likely tokens, as many as it takes to hold top_p.
    """
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    p, order = (logits / temperature).softmax(-1).sort(descending=True)
    before = p.cumsum(-1) - p                           # what the more likely ones hold already
    p = p.masked_fill(before >= top_p, 0).cpu()
    refuse_non_finite("the probability of a token", p)
    drawn = [torch.multinomial(row, 1, generator=rng) for row, rng in zip(p, rngs)]
    return order.gather(1, torch.stack(drawn).to(order.device))


# ---- the command line ----

def draw(cfg, model, vae, tokenizer, prompts, failures):
    """--report: write the pictures and say where they are -> how many there are.

    What is wrong with a report becomes a sentence in `failures`, and the others are drawn.
    """
    def fits(name, prompt):
        check_report(name, prompt.report, model, tokenizer)
        return prompt

    numbered = [(f"report {prompt.id if prompt.id else i}", prompt)
                for i, prompt in enumerate(prompts, start=1)]
    prompts = [prompt for _, prompt in checked(numbered, fits, failures)]
    pictures = Pictures(cfg.out, prompts, cfg.num, cfg.grid, cfg.json)
    about = {setting.name: getattr(cfg, setting.name) for setting in fields(Sampling)}
    about |= {"checkpoint": Path(cfg.checkpoint).name, "dtype": cfg.dtype, "weights": cfg.weights,
              "num": cfg.num, "size": latent_side(model, vae, cfg.size) * vae.factor,
              "notice": notice(model)}

    # every picture is written before the next batch is drawn, and carries its settings
    for start in range(0, len(pictures.rows), cfg.batch):
        batch = pictures.rows[start:start + cfg.batch]
        reports, numbers = [prompt.report for prompt, _ in batch], [k for _, k in batch]
        drawn = generate_images(model, vae, tokenizer, reports, cfg, numbers=numbers)
        pictures.add(drawn[:, 0], about)
    pictures.finish()
    return len(pictures.rows)


def read(cfg, model, tokenizer, files, failures):
    """--image: print the reports -> how many there are. Unreadable files: `failures`."""
    if len(tokenizer.prompt(cfg.prompt)) > model.cfg.max_text:
        raise InputError(f"--prompt is longer than the {model.cfg.max_text} tokens that this "
                         "checkpoint reads; shorten it.")

    def load(name, path):
        return preprocess(read_image(path), model.cfg.vision.image_size, model.cfg.vision.pad)

    # the reports of a batch are printed before the next images are read
    images = chain.from_iterable(checked([file], load, failures) for file in files)
    done = 0
    while batch := list(islice(images, cfg.batch)):
        reports = generate_reports(
            model, tokenizer, torch.stack([image for _, image in batch]), cfg.prompt,
            cfg.temperature, cfg.top_p, cfg.max_tokens, cfg.seed, cfg.batch, first=done,
            title=f"reading {done + 1}/{len(files)}")
        for (name, _), report in zip(batch, reports):
            line = {"file": name, "report": report, "notice": notice(model)}
            text = report if len(files) == 1 else f"{name}: {report}"
            print(json.dumps(line) if cfg.json else text, flush=True)
        done += len(batch)
    return done


def main(argv):
    for option in (word.split("=")[0] for word in argv):
        if option in ABILITIES:
            return import_module(ABILITIES[option]).main(argv)
    cfg = override(SampleConfig(), argv, __doc__, PRESETS)
    if any(brace in " ".join(cfg.report) for brace in "{}"):
        return import_module("abilities.grid").main(argv)
    failures = []                       # sentences about inputs that are left out
    prompts = [Prompt("", report) for report in cfg.report]
    if cfg.reports:
        prompts += read_prompts(cfg.reports, failures)
    files = image_files(cfg.image, failures)

    # what cannot end well is said before the weights are loaded
    if not prompts and not cfg.image and not failures:
        raise InputError('nothing to do: give --report "Large left pleural effusion." or '
                         "--image chest.png (--help lists all options).")
    out = Path(cfg.out)
    unfit = out.suffix.lower() != ".png" or out.is_dir() or not os.access(out.parent, os.W_OK)
    missing = [name for name, path in files if not os.path.exists(path)]
    if not prompts and len(missing) == len(files):
        failures += [f"there is no image at {name}." for name in missing]
        return report_failures(failures, results=0)
    if prompts and unfit:
        raise InputError(f"--out {out} cannot be written; name a .png file in a folder that exists "
                         "and is yours.")

    device = setup(cfg.device, cfg.threads).device
    dtype = number_format(cfg.dtype, device)
    model, vae, tokenizer = weights.load(
        cfg.checkpoint, not cfg.raw, torch_dtype(dtype), device, cfg.weights)
    cfg = replace(preset_for(model, cfg, argv, __doc__), dtype=dtype)

    # draw and read, and say what was left out
    print(notice(model), file=sys.stderr)
    tell_unknown(model, tokenizer, [cfg.prompt, *(prompt.report for prompt in prompts)])
    results = draw(cfg, model, vae, tokenizer, prompts, failures) if prompts else 0
    if files:
        results += read(cfg, model, tokenizer, files, failures)
    return report_failures(failures, results)


if __name__ == "__main__":
    cli(main)
