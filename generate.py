"""Report -> images, images -> reports: batched functions over a loaded model. sample.py is the command line over them.

Drawing walks the velocity from noise to an image on top of the report's keys and values, computed once; reading decodes
one token at a time on top of the image's and the prompt's. For research, not for clinical use.
"""
from functools import partial

import torch
from tqdm import tqdm

import flow
from attention import DecodeCache
from common.processes import InputError, generator
from common.cpu import decoding
from common.images import NOTICE, captioned, save_png
from tokenizer import pad
from vision import normalize

PROMPT = "Describe the findings in this chest X-ray."


def guided(model, blocks, cfg, cfg_interval, renorm):
    """velocity(x_t (B, z, h, w), t (B,)) given reports (token ids), guided: the report and nothing are rows of one batch."""
    device, dtype, B = model.embed.weight.device, model.embed.weight.dtype, len(blocks)
    ids, valid = pad(blocks)
    _, cache = model.prefill_text(ids.to(device), valid.to(device))
    twice = torch.arange(2 * B, device=device)
    both = cache.rows(twice % B).drop(twice >= B)

    def velocity(x, t):
        x, t = x.to(dtype), t.to(x.device)
        if cfg == 1 or not cfg_interval[0] < float(t[0]) <= cfg_interval[1]:
            return model.velocity(x, t, cache).float()
        v_cond, v_uncond = model.velocity(x.repeat(2, 1, 1, 1), t.repeat(2), both).float().chunk(2)
        return flow.guide(v_cond, v_uncond, cfg, renorm)

    return velocity


@torch.inference_mode()
def generate_images(model, vae, tokenizer, reports, num=1, seed=0, steps=16, solver="ab2", shift=1.0, cfg=2.0,
                    cfg_interval=(0.4, 1.0), renorm="global", size=0, batch=16, numbers=None, progress=True):
    """Draw `num` images of each report -> uint8 (len(reports), num, size, size) grey. The noise of image k depends on
    (seed, k) alone; `numbers` gives the reports' first k when it shall differ."""
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    side, blocks = latent_side(model, vae, size), [tokenizer.prompt(report) for report in reports]
    jobs = [(i, k + (numbers[i] if numbers else 0)) for i in range(len(reports)) for k in range(num)]
    solve, times, pictures = flow.SOLVERS[solver][0], flow.schedule(steps, shift), []
    for at in range(0, len(jobs), batch):
        chunk = jobs[at:at + batch]
        velocity = guided(model, [blocks[i] for i, _ in chunk], cfg, cfg_interval, renorm)
        bar = partial(tqdm, desc=f"drawing {at + 1}/{len(jobs)}", unit="step", disable=not progress, leave=False)
        noise = torch.stack([torch.randn(vae.cfg.embed_dim, side, side, generator=generator(seed, k)) for _, k in chunk])
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
    drawn = generate_images(model, vae, tokenizer, reports, size=data.size, numbers=range(len(reports)), progress=False)[:, 0]
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
