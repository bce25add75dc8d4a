"""Report -> image, image -> report. For research, not for clinical use.

    python sample.py --report "Large left pleural effusion."     # -> sample.png
    python sample.py --image chest.png                           # -> the report on standard output
    python sample.py --reports prompts.txt --num 4 --grid        # a captioned grid

Without --checkpoint the phantom model in demo/ is used, which knows toy chest X-rays only.
"""
import json
import os
import sys
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

import flow
import weights
from attention import DecodeCache
from common import processes as common
from common.processes import decoding
from common.images import NOTICE, captioned, checked, image_files, read_image, save_png, text_lines
from common.processes import InputError, generator
from tokenizer import pad
from vision import normalize, preprocess

PROMPT = "Describe the findings in this chest X-ray."


@dataclass
class Sampling:
    """How pictures are drawn. Every command that draws inherits these settings and their checks."""
    seed: int = 0                       # the noise of image k of a report depends on (seed, k) alone
    steps: int = 16                     # solver steps; Heun evaluates the velocity twice in each
    solver: str = "ab2"                 # euler, heun, ab2 (second-order Adams-Bashforth)
    shift: float = 1.0                  # time shift of the schedule; more than 1 spends more steps near noise
    cfg: float = 2.0                    # guidance scale; 1 is no guidance
    cfg_interval: tuple[float, float] = (0.4, 1.0)      # guidance only where low < t <= high
    renorm: str = "global"              # rescaling of the guided velocity: global, channel, none
    size: int = 0                       # pixels a side; 0: the largest that the checkpoint draws
    batch: int = 16                     # images or reports at once

    def __post_init__(self):
        assert self.solver in flow.SOLVERS, f"--solver {self.solver} is none of {', '.join(flow.SOLVERS)}."
        assert self.renorm in ("global", "channel", "none"), f"--renorm {self.renorm} is none of global, channel, none."
        assert self.cfg_interval[0] < self.cfg_interval[1], "--cfg-interval: the first value must be below the second."
        assert self.steps > 0 and self.batch > 0, "--steps and --batch must be at least 1."
        assert self.shift > 0, "--shift must be positive."
        assert self.size >= 0, "--size must be 0 or more."


@dataclass
class SampleConfig(Sampling):
    report: list[str] = field(default_factory=list)     # text to draw; may be repeated
    reports: str = ""                   # or a text file with one report a line (blank lines are ignored)
    image: list[str] = field(default_factory=list)      # image files or folders to report on
    prompt: str = PROMPT                # what is asked about an image
    checkpoint: str = str(Path(__file__).parent / "demo")       # checkpoint directory or run
    preset: str = ""                    # "release": the sampling settings of the released UniX
    out: str = "sample.png"             # picture to write; several become sample-000.png, sample-001.png, …
    grid: bool = False                  # write all pictures into one, with their reports underneath
    json: bool = False                  # print results as JSON lines
    num: int = 1                        # images per report
    temperature: float = 0.0            # of report sampling; 0 is greedy
    top_p: float = 1.0                  # sample from the most likely tokens that hold this much probability
    max_tokens: int = 0                 # longest report; 0: the limit of the checkpoint
    device: str = "auto"                # auto, cpu, cuda
    dtype: str = "float32"              # or bfloat16: half the memory, faster on most machines
    raw: bool = False                   # use the raw weights although averaged ones are there

    def __post_init__(self):
        super().__post_init__()
        assert self.num > 0, "--num must be at least 1."
        assert 0 < self.top_p <= 1, "--top-p must be in (0, 1]."
        assert min(self.temperature, self.max_tokens) >= 0, "--temperature and --max-tokens must be 0 or more."


PRESETS = {"release": dict(steps=49, solver="euler", shift=3.0, cfg=2.0, cfg_interval=(0.4, 1.0), renorm="global")}


def guided(model, blocks, sampling):
    """velocity(x_t (B, z, h, w), t (B,)) given reports (token ids), guided: the report and nothing are rows of one batch."""
    device, dtype, B = model.embed.weight.device, model.embed.weight.dtype, len(blocks)
    ids, valid = pad(blocks)
    _, cache = model.prefill_text(ids.to(device), valid.to(device))
    twice = torch.arange(2 * B, device=device)
    both = cache.rows(twice % B).drop(twice >= B)

    def velocity(x, t):
        x, t = x.to(dtype), t.to(x.device)
        low, high = sampling.cfg_interval
        if sampling.cfg == 1 or not low < float(t[0]) <= high:
            return model.velocity(x, t, cache).float()
        v_cond, v_uncond = model.velocity(x.repeat(2, 1, 1, 1), t.repeat(2), both).float().chunk(2)
        return flow.guide(v_cond, v_uncond, sampling.cfg, sampling.renorm)

    return velocity


@torch.inference_mode()
def generate_images(model, vae, tokenizer, reports, sampling=Sampling(), num=1, numbers=None, progress=True):
    """Draw `num` images of each report -> uint8 (len(reports), num, size, size) grey. The noise of image k depends on
    (seed, k) alone; `numbers` gives the reports' first k when it shall differ."""
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    side, blocks = latent_side(model, vae, sampling.size), [tokenizer.prompt(report) for report in reports]
    jobs = [(i, k + (numbers[i] if numbers else 0)) for i in range(len(reports)) for k in range(num)]
    solve, times, pictures = flow.SOLVERS[sampling.solver][0], flow.schedule(sampling.steps, sampling.shift), []
    for at in range(0, len(jobs), sampling.batch):
        chunk = jobs[at:at + sampling.batch]
        velocity = guided(model, [blocks[i] for i, _ in chunk], sampling)
        bar = partial(tqdm, desc=f"drawing {at + 1}/{len(jobs)}", unit="step", disable=not progress, leave=False)
        noise = torch.stack([torch.randn(vae.cfg.embed_dim, side, side, generator=generator(sampling.seed, k)) for _, k in chunk])
        latents = solve(velocity, noise.to(device), times, bar)
        pictures.append(vae.pictures(latents.to(dtype)).cpu())
    return torch.cat(pictures).unflatten(0, (len(reports), num)).numpy()


def latent_side(model, vae, size):
    """Rows of the latent of a picture of `size` pixels (0: the largest)."""
    if vae is None or not model.cfg.generation:
        raise InputError("this checkpoint cannot draw: it has no generation branch or no VAE (train_gen.py makes one).")
    most = model.cfg.max_latent_size * vae.factor
    size = size or most
    if size % vae.factor or size > most:
        raise InputError(f"--size {size}: this checkpoint draws multiples of {vae.factor} up to {most} pixels.")
    return size // vae.factor


@torch.inference_mode()
def generate_reports(model, tokenizer, images, prompt=PROMPT, temperature=0.0, top_p=1.0, max_tokens=0,
                     seed=0, batch=16, progress=True):
    """Report on images (N, S, S) uint8, already `vision.preprocess`ed to the tower's size -> N strings."""
    device, dtype, reports = model.embed.weight.device, model.embed.weight.dtype, []
    room = min(max_tokens or model.cfg.max_text, model.cfg.max_text - 1)                # BOS takes one
    block = torch.tensor(tokenizer.prompt(prompt), device=device)
    for at in tqdm(range(0, len(images), batch), desc="reading", unit="batch", disable=not progress, leave=False):
        B = len(part := images[at:at + batch])
        pixels = normalize(torch.as_tensor(part).to(device)[:, None].float() / 255, model.cfg.vision)
        _, cache = model.prefill_image(pixels.to(dtype))
        _, cache = model.prefill_text(block.expand(B, -1), cache=cache)
        cache, token, answers = DecodeCache(cache, room), torch.full((B, 1), tokenizer.bos, device=device), []
        rngs = [generator(seed, at + i) for i in range(B)]
        done = torch.zeros(B, dtype=torch.bool, device=device)
        with decoding(B, device):
            while len(answers) < room and not done.all():
                hidden, cache = model.prefill_text(token, cache=cache)
                token = choose(model.logits(hidden[:, -1]).float(), temperature, top_p, rngs)
                done |= token[:, 0] == tokenizer.eos
                answers.append(token)
        reports += [tokenizer.decode(row) for row in torch.cat(answers, dim=1).tolist()]
    return reports


def choose(logits, temperature, top_p, rngs):
    """Next token (B, 1) from logits (B, V): the most likely one, or a draw from the nucleus, one generator a row."""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    p, order = (logits / temperature).softmax(-1).sort(descending=True)
    p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0).cpu()
    drawn = torch.stack([torch.multinomial(row, 1, generator=rng) for row, rng in zip(p, rngs)])
    return order.gather(1, drawn.to(order.device))


def show_drawn(model, vae, tokenizer, data, path, n=8):
    """A picture to look at: the first n images of a data set, each beside one drawn from its report with fixed noise."""
    reports = [row["report"] for row in data.rows[:n]]
    drawn = generate_images(model, vae, tokenizer, reports, Sampling(size=data.size), numbers=range(len(reports)), progress=False)[:, 0]
    pairs = [picture for i, image in enumerate(drawn) for picture in (data.image(i).numpy(), image)]
    path.parent.mkdir(exist_ok=True)
    captions = [text for report in reports for text in ("given: " + report, "drawn from the report")]
    save_png(captioned(pairs, captions, columns=4), path)


def show_written(model, tokenizer, data, path, n=8):
    """Something to read: the first n reports of a data set, and what the model writes about their images."""
    n = min(n, len(data))
    written = generate_reports(model, tokenizer, torch.stack([data.image(i) for i in range(n)]), progress=False)
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(f"{data.rows[i]['id']}\n  given    {data.rows[i]['report']}\n  written  {text}\n"
                              for i, text in enumerate(written)) + NOTICE + "\n", encoding="utf-8")


def draw(cfg, model, vae, tokenizer, reports, failures):
    """The command line's --report: write the pictures, say where they are -> how many."""
    def check(name, text):
        n, most = len(tokenizer.prompt(text)), model.cfg.max_text
        if not text.strip() or n > most:
            raise InputError(f"{name} has {n} tokens, this checkpoint reads {most}; shorten it." if n > most else
                             f"{name} is empty; write what the picture should show.")
        return text

    reports = checked([(f"report {i + 1}", text) for i, text in enumerate(reports)], check, failures)
    settings = {f.name: getattr(cfg, f.name) for f in fields(Sampling)}
    reports = [text for _, text in reports]
    if not reports:
        return 0
    pictures = generate_images(model, vae, tokenizer, reports, cfg, cfg.num)
    out, jobs = Path(cfg.out), [(i, k) for i in range(len(reports)) for k in range(cfg.num)]
    about = {"checkpoint": Path(cfg.checkpoint).name, "dtype": cfg.dtype, "num": cfg.num, **settings, "size": pictures.shape[-1]}
    if cfg.grid:
        sheet = captioned(pictures.reshape(-1, *pictures.shape[2:]), [reports[i] for i, _ in jobs])
        save_png(sheet, out, reports=reports, **about)
    for n, (i, k) in enumerate(jobs):
        path = out if cfg.grid or len(jobs) == 1 else out.with_name(f"{out.stem}-{n:03d}.png")
        if not cfg.grid:
            save_png(Image.fromarray(pictures[i, k]), path, reports=reports[i], image=k, **about)
        print(json.dumps({"file": str(path), "report": reports[i], "image": k}) if cfg.json else f"{path}: {reports[i]}")
    return len(jobs)


def read(cfg, model, tokenizer, files, failures):
    """The command line's --image: print the reports -> how many."""
    vision = model.cfg.vision
    if len(tokenizer.prompt(cfg.prompt)) > model.cfg.max_text:
        raise InputError(f"--prompt is longer than the {model.cfg.max_text} tokens that this checkpoint reads; shorten it.")
    good = checked(files, lambda _, path: preprocess(read_image(path), vision.image_size, vision.pad), failures)
    if not good:
        return 0
    reports = generate_reports(model, tokenizer, torch.stack([image for _, image in good]), cfg.prompt, cfg.temperature,
                               cfg.top_p, cfg.max_tokens, cfg.seed, cfg.batch)
    for (name, _), report in zip(good, reports):
        print(json.dumps({"file": name, "report": report, "notice": NOTICE}) if cfg.json else
              report if len(files) == 1 else f"{name}: {report}")
    return len(good)


def main(argv):
    cfg = common.override(SampleConfig(), argv, __doc__, PRESETS)
    reports, failures, out = list(cfg.report), [], Path(cfg.out)
    reports += text_lines(cfg.reports) if cfg.reports else []
    files = image_files(cfg.image, failures)
    if not reports and not cfg.image:
        raise InputError('nothing to do: give --report "Large left pleural effusion." or --image chest.png (see --help).')
    if reports and (not os.access(out.parent, os.W_OK) or out.is_dir() or out.suffix.lower() != ".png"):
        raise InputError(f"--out {out} cannot be written; name a .png file in a folder that exists and is yours.")
    device = common.setup(cfg.device).device
    model, vae, tokenizer = weights.load(cfg.checkpoint, ema=not cfg.raw, dtype=common.torch_dtype(cfg.dtype))
    if model.cfg.double_bos and not cfg.preset:     # the released UniX: what is not asked for is done as the release does it
        cfg = common.override(SampleConfig(), ["--preset=release", *argv], __doc__, PRESETS)
    model, vae = model.to(device), vae and vae.to(device)
    print(NOTICE, file=sys.stderr)
    done = (draw(cfg, model, vae, tokenizer, reports, failures) if reports else 0) + \
        (read(cfg, model, tokenizer, files, failures) if files else 0)
    print("".join(f"error: {sentence}\n" for sentence in failures), end="", file=sys.stderr)
    return (1 if done else 2) if failures else 0


if __name__ == "__main__":
    common.cli(main)
