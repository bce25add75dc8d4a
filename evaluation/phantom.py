"""`evaluate.py phantom`: a phantom model on phantoms it has never seen. Toys, not radiographs; nothing here is for clinical use.

The facts of a phantom are known, and `phantom.facts.report_to_facts` reads a report back into facts, exactly. So:

    report F1    image -> report: facts of the written report against the facts drawn
    cycle F1     report -> image -> report: facts read off the generated image against the facts of the report
    VAE ceiling  real phantom -> VAE -> report: what reading loses when the picture has only passed the autoencoder
    all normal   the score of a report without findings

F1 is over (finding, side or zone, degree) triples, exact match, "normal" statements not counted: micro over all triples, macro
as the mean over findings. FD to coverage are those of `evaluation/image_metrics.py` with the checkpoint's own vision tower as the network of
features: of generated phantoms, of real ones that passed the VAE, and of as many other real ones, which is what no model beats.
Writes <out>.json and <out>.png (drawn beside generated, over the reports); with --sweep also the curves, <out>-sweep.png.
"""
import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from common import processes as common
from evaluation import features
from evaluation import image_metrics as metrics
from common import packed as pack
import sample
from evaluation import scoring
from evaluation import tables
import weights
from evaluation.reading import chosen
from evaluation.settings import combinations, swept
from common.images import NOTICE, captioned, save_png
from phantom.prepare import Settings, held_out
from evaluation.worklist import chunks


@dataclass
class EvalConfig:
    checkpoint: str = str(Path(__file__).parents[1] / "demo")   # what to score
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
    sweep: list[str] = field(default_factory=list)      # e.g. steps=4,8,16 cfg=1,2,3: score every combination instead
    bootstrap: int = 100            # draws of the intervals of FD to coverage, ten times as many of F1; 0: none
    batch: int = 32                 # images at once
    device: str = "auto"            # auto, cpu, cuda
    dtype: str = "bfloat16"         # or float32

    def __post_init__(self):
        sample.SampleConfig(**chosen(self, *DRAWING, "size"))          # checks them
        assert self.num > 0 and self.show > 0, "--num and --show must be at least 1."
        assert not self.sweep or self.num >= 6, "--num must be 6 or more for a sweep: neighbours are the fifth."
        assert self.bootstrap >= 0, "--bootstrap must be 0 or more."
        swept(self.sweep)


DRAWING = ("seed", "steps", "solver", "shift", "cfg", "batch")


def resized(pictures, size):
    return [np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BICUBIC)) for picture in pictures]


class Scorer:
    """A phantom model, `num` held-out phantoms, and everything that can be asked of the two."""

    def __init__(self, cfg):
        self.cfg, device = cfg, common.setup(cfg.device).device
        model, vae, self.tokenizer = weights.load(cfg.checkpoint, dtype=common.torch_dtype(cfg.dtype))
        self.model, self.vae = model.to(device), vae and vae.to(device)
        self.size, self.encoder, self.facts = model.cfg.vision.image_size, features.tower(model), scoring.Facts()
        self.drawn = cfg.size or self.size                      # pixels of what is generated
        rows, self.pictures = self.phantoms(range(cfg.num))
        self.wanted, self.reports = [frozenset(map(tuple, row["labels"])) for row in rows], [row["report"] for row in rows]

    def phantoms(self, which):
        return zip(*(held_out(Settings(seed=self.cfg.data_seed, size=self.size), i) for i in which))

    def read(self, pictures):
        pictures = np.stack(resized(pictures, self.size))
        return sample.generate_reports(self.model, self.tokenizer, pictures, batch=self.cfg.batch)

    def f1(self, texts):
        """-> {"micro", "macro", "exact", finding: F1} and their 95 % intervals."""
        at = self.facts.scores(self.wanted, self.facts(texts))
        draws = 10 * self.cfg.bootstrap
        return {**at(), **({"intervals": metrics.bootstrap(at, len(texts), draws)} if draws else {})}

    def draw(self, **changes):
        """One image of each report: image number i of report i, so that the noise differs from phantom to phantom."""
        sampling = sample.Sampling(size=self.drawn, **chosen(self.cfg, *DRAWING) | changes)
        return sample.generate_images(self.model, self.vae, self.tokenizer, self.reports, sampling,
                                      numbers=range(self.cfg.num))[:, 0]

    @torch.inference_mode()
    def through_vae(self):
        """Encode (posterior mean) and decode the real phantoms -> the same, as the VAE shows them."""
        p, out = next(self.vae.parameters()), []
        for part in chunks(resized(self.pictures, self.drawn), self.cfg.batch):
            x = torch.as_tensor(np.stack(part)).to(p.device)[:, None].expand(-1, 3, -1, -1) / 127.5 - 1
            out.append(self.vae.pictures(self.vae.encode(x.to(p.dtype)).to(p.dtype)).cpu())
        return torch.cat(out).numpy()

    def look(self, pictures):
        """Features (N, C) of grey pictures, as the vision tower sees them."""
        return np.concatenate([self.encoder(torch.stack([self.encoder.prepare(Image.fromarray(x)) for x in part]))
                               for part in chunks(list(pictures), self.cfg.batch)])


def phantom(cfg):
    it = Scorer(cfg)
    written = it.read(it.pictures)
    scores = {"report": it.f1(written), "all_normal": it.f1([""] * cfg.num)}
    settings, images = {**vars(cfg), "checkpoint": Path(cfg.checkpoint).name}, {}
    if it.vae is not None:      # else it is a checkpoint of stage 1, which only reads
        drawn, passed = it.draw(), it.through_vae()
        again = it.read(drawn)
        scores["cycle"], scores["vae_ceiling"] = it.f1(again), it.f1(it.read(passed))
        scores["cycle_of_ceiling"] = scores["cycle"]["micro"] / max(1e-9, scores["vae_ceiling"]["micro"])
        if cfg.num >= 2 * 6:    # neighbours are the fifth, and intervals take halves
            _, others = it.phantoms(range(cfg.num, 2 * cfg.num))
            real = it.look(it.pictures)
            for name, these in (("generated", drawn), ("vae_ceiling", passed), ("other_real", others)):
                images[name] = scoring.images(real, it.look(these), replicates=cfg.bootstrap, paired=name != "other_real")["1"]
        shown = sorted(range(cfg.num), key=lambda i: -len(it.wanted[i]))[:cfg.show]     # those with most to look at
        pairs = [picture for i in shown for picture in (it.pictures[i], resized([drawn[i]], it.size)[0])]
        captions = [text for i in shown for text in
                    ("drawn by formula: " + it.reports[i], "generated from it, then read: " + again[i])]
        save_png(captioned(pairs, captions, columns=4), Path(f"{cfg.out}.png"), settings=settings)
    save(cfg, {"scores": scores, "images": images, "settings": settings, "notice": NOTICE})
    print(f"{'':14} {'micro-F1':>9} {'macro-F1':>9} {'exact':>7}   ({cfg.num} held-out phantoms)")
    for name in ("report", "cycle", "vae_ceiling", "all_normal"):
        if name in scores:
            print(f"{name:14} {scores[name]['micro']:9.3f} {scores[name]['macro']:9.3f} {scores[name]['exact']:7.3f}")
    if it.vae is not None:
        print(f"cycle / ceiling {scores['cycle_of_ceiling']:.3f}; pictures in {cfg.out}.png")
    if images:
        print(tables.table(["features: vision tower", *metrics.NAMES],
                           [[name, *(tables.shown(part[key]) for key in metrics.NAMES)] for name, part in images.items()]))
    print(f"details in {cfg.out}.json")


def sweep(cfg):
    """Cycle F1 and FD of every combination of the swept settings, on the same phantoms with the same noise."""
    it, rows = Scorer(cfg), []
    sample.latent_side(it.model, it.vae, it.drawn)        # a checkpoint that cannot draw is told so
    real = it.look(it.pictures)
    for point in combinations(cfg.sweep):
        drawn = it.draw(**point)
        cycle, _ = scoring.labelled(it.facts, it.read(drawn), it.reports, 10 * cfg.bootstrap)
        fd = scoring.images(real, it.look(drawn), replicates=cfg.bootstrap)["1"]["fd"]
        row = {"steps": cfg.steps, "cfg": cfg.cfg, **point, "cycle_F1": cycle["micro"], "fd": fd}
        rows.append(row)
        print(f"{row['steps']} steps, guidance {row['cfg']:g}: cycle F1 {tables.shown(cycle['micro'])}, FD {tables.shown(fd)}")
    save(cfg, {"sweep": rows, "settings": {**vars(cfg), "checkpoint": Path(cfg.checkpoint).name}, "notice": NOTICE})
    for sentence in tables.plots_left_out():
        print(sentence)
    if not tables.plots_left_out():
        tables.curves(f"{cfg.out}-sweep.png", rows)
    print(f"details in {cfg.out}.json")


def save(cfg, result):
    pack.write(Path(f"{cfg.out}.json"), json.dumps(result, indent=1).encode())


def main(argv, doc=__doc__):
    cfg = common.override(EvalConfig(), argv, doc)
    Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
    sweep(cfg) if cfg.sweep else phantom(cfg)
