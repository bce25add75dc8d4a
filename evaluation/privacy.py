"""Is the nearest training image too near? For research, not for clinical use.

    python evaluate.py privacy --generated A --train B --held-out C     # three feature files

The distance of each generated image to its nearest training image, in feature space, is compared
with the distances of real images that were not trained on. It can show copies as the features see
them. It cannot show that there are none, and it is no proof of anonymity: see docs/evaluation.md.
"""
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common import locks
from common.cli import InputError, override
from common.images import captioned, save_png
from evaluation import features, image_metrics, scoring, tables

QUANTILES = (0, .01, .05, .25, .5, .75, .95, .99, 1)        # of the distances, for the JSON file
SIDE = 160                                                  # pixels of a picture on the sheet


@dataclass
class PrivacyConfig:
    generated: str = ""             # feature file of generated images
    train: str = ""                 # feature file of the images that the model was trained on
    held_out: str = ""              # feature file of real images that it was not trained on
    out: str = "privacy"            # writes <out>.json, <out>.md and <out>.png, the closest pairs
    show: int = 12                  # pairs in the picture
    bootstrap: int = 1000           # resamplings for the intervals; 0: none

    def __post_init__(self):
        assert self.show > 0, "--show must be at least 1."
        assert self.bootstrap >= 0, "--bootstrap must be 0 or more."


def main(argv):
    cfg = override(PrivacyConfig(), argv, __doc__)
    tables.begin(cfg.out, [".md", ".png"])
    locks.take_files(cfg.out)
    generated, train, held_out = load_sets(cfg)
    # looked for now: the closest pairs are shown at the end
    pictures = features.open_images(generated.source), features.open_images(train.source)

    distances, rows = image_metrics.nearest(generated.x, train.x)
    # the yardstick: how near do images come that the model has never seen?
    reference, _ = image_metrics.nearest(held_out.x, train.x)
    scores = score(distances, reference, cfg.bootstrap)
    # the closest pairs first: a person has to look at them, no number can judge a copy
    pairs = [
        {
            "generated": generated.ids[n],
            "train": train.ids[rows[n]],
            "distance": float(distances[n]),
            "held_out_nearer": float((reference < distances[n]).mean()),
        }
        for n in np.argsort(distances)[:cfg.show]
    ]
    quantiles = {
        "at": QUANTILES,
        "generated": np.quantile(distances, QUANTILES).tolist(),
        "held_out": np.quantile(reference, QUANTILES).tolist(),
    }
    print(tables.write(
        Path(cfg.out), "Nearest training images", {"privacy": scores}, vars(cfg),
        closest=pairs, quantiles=quantiles, encoder=train.encoder))

    # the sheet shows images of the training set, hence the warning
    save_png(closest_pairs(pairs, *pictures), Path(f"{cfg.out}.png"))
    print(f"the closest pairs are in {cfg.out}.png; it may show real patients: treat it as the "
          "data itself")


def load_sets(cfg):
    """Features of generated, training and held-out images, which one encoder must have made."""
    paths = (cfg.generated, cfg.train, cfg.held_out)
    if not all(paths):
        raise InputError("three feature files are needed: --generated, --train, --held-out "
                         "(`evaluate.py features` writes them).")
    generated, train, held_out = (features.load(path) for path in paths)
    # a distance means something in one feature space only
    features.same_encoder(train, generated, (cfg.train, cfg.generated))
    features.same_encoder(train, held_out, (cfg.train, cfg.held_out))
    shared = sorted(set(train.ids) & set(held_out.ids))
    if shared:
        raise InputError(f"{len(shared)} images are in --train and in --held-out, the first is "
                         f"{shared[0]}; held-out means not trained on.")
    return generated, train, held_out


def score(distances, reference, replicates):
    """Distances of generated and of held-out images to their nearest training image -> numbers.

    below_5 is the share of generated images that are nearer to a training image than 95 % of the
    held-out ones are: 0.05 where both behave alike, more where the model repeats what it has seen.
    below_1 is the same with 99 %.
    """
    scores = {}
    for percent in (1, 5):
        # the distance that so many per cent of the held-out images fall below
        limit = np.quantile(reference, percent / 100)
        nearer = (distances < limit).astype(float)
        scores |= scoring.mean_of(f"below_{percent}", nearer, replicates)
    scores |= median_of("generated_median", distances, replicates)
    scores |= median_of("held_out_median", reference, replicates)

    # a smallest value has no bootstrap interval: no draw has a smaller one
    for name, values in (("generated", distances), ("held_out", reference)):
        scores |= tables.numbers({f"{name}_smallest": float(values.min())}, {}, len(values))
    return scores


def median_of(name, values, replicates):
    """The median of an array as a number with an interval -> {name: number}."""
    def median_at(rows=slice(None)):
        return {name: float(np.median(values[rows]))}
    return scoring.with_bootstrap(median_at, len(values), replicates)


def closest_pairs(pairs, generated, train):
    """The closest pairs, two images a pair over what is known of them -> contact sheet.

    generated, train: where the images lie, with read(id).
    """
    pictures, captions = [], []
    for pair in pairs:
        for source, name in ((generated, pair["generated"]), (train, pair["train"])):
            # all pictures of a sheet have one size
            small = source.read(name).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            pictures.append(np.array(small))
        share = 1 - pair["held_out_nearer"]
        captions.append(f"generated {pair['generated']}")
        captions.append(f"nearest in training: {pair['train']}, distance {pair['distance']:.3g}; "
                        f"nearer than {share:.0%} of the held-out")
    return captioned(pictures, captions, columns=4, scale=1)
