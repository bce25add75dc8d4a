"""`evaluate.py privacy`: is the nearest training image too near? For research, not for clinical use.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common import processes as common
from evaluation import features
from evaluation import scoring
from evaluation import tables
from common.processes import InputError
from common.images import captioned, save_png


@dataclass
class PrivacyConfig:
    generated: str = ""             # feature file of generated images
    train: str = ""                 # feature file of the images that the model was trained on
    held_out: str = ""              # feature file of real images that it was not trained on
    out: str = "privacy"            # writes <out>.json, <out>.md and <out>.png, the closest pairs
    show: int = 12                  # pairs in the picture
    bootstrap: int = 1000           # draws of the intervals; 0: none

    def __post_init__(self):
        assert self.show > 0 and self.bootstrap >= 0, "--show must be at least 1, --bootstrap 0 or more."


def privacy(argv):
    cfg = common.override(PrivacyConfig(), argv, __doc__)
    paths = cfg.generated, cfg.train, cfg.held_out
    if not all(paths):
        raise InputError("three feature files are needed: --generated, --train, --held-out (`evaluate.py features` writes them).")
    made, train, held = (features.load(path) for path in paths)
    for other, path in ((made, cfg.generated), (held, cfg.held_out)):
        features.same_encoder(train, other, (cfg.train, path))
    twice = set(train.ids) & set(held.ids)
    if twice:
        raise InputError(f"{len(twice)} images are in --train and in --held-out, the first is {sorted(twice)[0]}; held-out means "
                         "not trained on.")
    sources = features.open_images(made.source), features.open_images(train.source)     # first: the closest pairs are shown
    values, (distance, where), reference = scoring.privacy(made.x, held.x, train.x, cfg.bootstrap)
    closest = np.argsort(distance)[:cfg.show]
    pairs = [{"generated": made.ids[n], "train": train.ids[where[n]], "distance": float(distance[n]),
              "held_out_nearer": float((reference < distance[n]).mean())} for n in closest]
    at = [0, .01, .05, .25, .5, .75, .95, .99, 1]
    quantiles = {"at": at, **{k: np.quantile(d, at).tolist() for k, d in (("generated", distance), ("held_out", reference))}}
    more = dict(closest=pairs, quantiles=quantiles, encoder=train.encoder)
    print(tables.write(Path(cfg.out), "Nearest training images", {"privacy": values}, vars(cfg), **more))
    shown = []
    for pair in pairs:
        shown += [np.array(source.read(pair[key]).resize((160, 160), Image.Resampling.BICUBIC))
                  for source, key in zip(sources, ("generated", "train"))]
    texts = [text for pair in pairs for text in (
        f"generated {pair['generated']}", f"nearest in training: {pair['train']}, distance {pair['distance']:.3g}; nearer than "
        f"{1 - pair['held_out_nearer']:.0%} of the held-out")]
    save_png(captioned(shown, texts, columns=4, scale=1), Path(f"{cfg.out}.png"))
    print(f"the closest pairs are in {cfg.out}.png; it may show real patients: treat it as the data itself")
