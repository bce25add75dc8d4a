"""Score a phantom model on phantoms it has never seen. Toys, not radiographs; nothing here is for clinical use.

    python evaluate.py phantom                                    # demo/, 500 held-out phantoms
    python evaluate.py phantom --checkpoint out/phantom/gen128 --out out/phantom/score

The facts of a phantom are known, and `prepare_phantom.report_to_facts` reads a report back into facts, exactly. So:

    report F1    image -> report: facts of the written report against the facts drawn
    cycle F1     report -> image -> report: facts read off the generated image against the facts of the report
    VAE ceiling  real phantom -> VAE -> report: what reading loses when the picture has only passed the autoencoder
    all normal   the score of a report without findings

F1 is over (finding, side or zone, degree) triples, exact match, "normal" statements not counted: micro over all
triples, macro as the mean over findings. Writes <out>.json and <out>.png (drawn beside generated, over the reports).
"""
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import common
import sample
import weights
from common import InputError
from images import NOTICE, captioned, save_png
from prepare_phantom import FINDINGS, Settings, held_out, report_to_facts


@dataclass
class EvalConfig:
    checkpoint: str = str(Path(__file__).parent / "demo")   # what to score
    out: str = "phantom_score"      # writes <out>.json and <out>.png
    num: int = 500                  # held-out phantoms
    data_seed: int = 0              # seed of the phantoms; they come from the test split of that seed
    size: int = 0                   # pixels of the generated pictures, enlarged to be read; 0: as many as the reader takes
    show: int = 8                   # pairs in the picture
    seed: int = 0                   # of the images' noise: image of phantom i is image number i
    steps: int = sample.SampleConfig.steps      # solver steps
    solver: str = sample.SampleConfig.solver    # euler, heun, ab2
    shift: float = sample.SampleConfig.shift    # time shift of the schedule
    cfg: float = sample.SampleConfig.cfg        # guidance scale
    batch: int = 32                 # images at once
    device: str = "auto"            # auto, cpu, cuda
    dtype: str = "bfloat16"         # or float32

    def __post_init__(self):
        assert self.num > 0 and 0 < self.show, "--num and --show must be at least 1."


def f1(wanted, found):
    """Lists of fact sets -> {"micro": F1 over all triples, "macro": mean over findings, finding: F1, "exact": share}."""
    hits, misses, extras = Counter(), Counter(), Counter()
    for want, got in zip(wanted, found):
        for counter, facts in ((hits, want & got), (misses, want - got), (extras, got - want)):
            counter.update(finding for finding, _, _ in facts)
    score = lambda tp, fn, fp: 2 * tp / max(1, 2 * tp + fn + fp)
    each = {name: score(hits[name], misses[name], extras[name]) for name in FINDINGS}
    return {"micro": score(hits.total(), misses.total(), extras.total()), "macro": float(np.mean(list(each.values()))),
            "exact": float(np.mean([a == b for a, b in zip(wanted, found)])), **each}


def phantom(cfg):
    device = common.setup(cfg.device).device
    model, vae, tokenizer = weights.load(cfg.checkpoint, dtype=common.torch_dtype(cfg.dtype))
    model, vae, size = model.to(device), vae and vae.to(device), model.cfg.vision.image_size
    rows, pictures = zip(*(held_out(Settings(seed=cfg.data_seed, size=size), i) for i in range(cfg.num)))
    wanted, reports = [frozenset(map(tuple, row["labels"])) for row in rows], [row["report"] for row in rows]
    resized = lambda images, to: [np.asarray(Image.fromarray(image).resize((to, to), Image.BICUBIC)) for image in images]
    read = lambda images: sample.generate_reports(model, tokenizer, np.stack(resized(images, size)), batch=cfg.batch)
    facts = lambda texts: [report_to_facts(text) for text in texts]

    written = read(pictures)
    scores = {"report": f1(wanted, facts(written)), "all_normal": f1(wanted, [frozenset()] * cfg.num)}
    settings = {**vars(cfg), "checkpoint": Path(cfg.checkpoint).name}
    if vae is not None:         # else it is a checkpoint of stage 1, which only reads
        # one image of each report: image number i of report i, so that the noise differs from phantom to phantom
        drawn = sample.generate_images(model, vae, tokenizer, reports, seed=cfg.seed, steps=cfg.steps, solver=cfg.solver,
                                       shift=cfg.shift, cfg=cfg.cfg, size=cfg.size or size, batch=cfg.batch,
                                       numbers=range(cfg.num))[:, 0]
        again = read(drawn)
        scores["cycle"] = f1(wanted, facts(again))
        scores["vae_ceiling"] = f1(wanted, facts(read(through(vae, resized(pictures, cfg.size or size), cfg.batch))))
        scores["cycle_of_ceiling"] = scores["cycle"]["micro"] / max(1e-9, scores["vae_ceiling"]["micro"])
        shown = sorted(range(cfg.num), key=lambda i: -len(wanted[i]))[:cfg.show]        # those with most to look at
        pairs = [picture for i in shown for picture in (pictures[i], resized([drawn[i]], size)[0])]
        captions = [text for i in shown for text in
                    ("drawn by formula: " + reports[i], "generated from it, then read: " + again[i])]
        save_png(captioned(pairs, captions, columns=4), Path(f"{cfg.out}.png"), settings=settings)
    result = {"scores": scores, "settings": settings, "notice": NOTICE}
    Path(f"{cfg.out}.json").write_text(json.dumps(result, indent=1))
    print(f"{'':14} {'micro-F1':>9} {'macro-F1':>9} {'exact':>7}   ({cfg.num} held-out phantoms)")
    for name in ("report", "cycle", "vae_ceiling", "all_normal"):
        if name in scores:
            print(f"{name:14} {scores[name]['micro']:9.3f} {scores[name]['macro']:9.3f} {scores[name]['exact']:7.3f}")
    if vae is not None:
        print(f"cycle / ceiling {scores['cycle_of_ceiling']:.3f}; pictures in {cfg.out}.png")
    print(f"details in {cfg.out}.json")


@torch.inference_mode()
def through(vae, pictures, batch):
    """Encode (posterior mean) and decode grey pictures (N, S, S) uint8 -> the same, as the VAE shows them."""
    p, out = next(vae.parameters()), []
    for at in range(0, len(pictures), batch):
        x = torch.as_tensor(np.stack(pictures[at:at + batch])).to(p.device)[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
        out.append(vae.pictures(vae.encode(x.to(p.dtype)).to(p.dtype)).cpu())
    return torch.cat(out).numpy()


def main(argv):
    if argv[:1] != ["phantom"] and "--help" not in argv:
        raise InputError("say what to evaluate: `python evaluate.py phantom`.")
    phantom(common.override(EvalConfig(), argv[1:] if argv[:1] == ["phantom"] else argv, __doc__))


if __name__ == "__main__":
    common.cli(main)
