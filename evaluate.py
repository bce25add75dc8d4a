"""Every number of the paper's Tables 2, 3 and 4, and the phantom's own scores.

    python evaluate.py phantom                      # the model in demo/ on 500 held-out phantoms
    python evaluate.py und --checkpoint out/und     # Table 2: reports of the test images
    python evaluate.py gen --checkpoint out/gen512  # Tables 3 and 4: images of the test reports
    python evaluate.py features --images DIR --out a.safetensors    # of any folder of images
    python evaluate.py compare A B                  # two feature files, folders, files of reports
    python evaluate.py compare REFERENCES A B       # two systems, with a p value for each score
    python evaluate.py match --data datasets/mine   # reports that do not belong to their films
    python evaluate.py utility                      # does it help to train on drawn images?
    python evaluate.py explain                      # does a statement's heat lie on its finding?
    python evaluate.py edit                         # one finding of a phantom changed
    python evaluate.py severity                     # does a finding grow with its word?
    python evaluate.py privacy --generated A --train B --held-out C     # training images too near?

For research, not for clinical use. `python evaluate.py gen --help` lists the settings of a command.
Under `torchrun --nproc_per_node=8` instead of `python`, `und`, `gen` and `features` share the work
out; interrupted, `und` and `gen` go on where they were. They write JSON, a Markdown table with the
paper's rows beside ours, and plots. docs/evaluation.md defines every number.
"""
import difflib

from common.cli import InputError, cli
from evaluation import (
    compare, edits, gen, match, phantom, places, privacy, severity, und, utility)

# a command is a function from the words behind its name to an exit code; None is 0, too
COMMANDS = {
    "phantom": phantom.main,
    "und": und.main,
    "gen": gen.main,
    "features": compare.extract_features,
    "compare": compare.main,
    "utility": utility.main,
    "match": match.main,
    "explain": places.main,
    "edit": edits.main,
    "severity": severity.main,
    "privacy": privacy.main,
}


def main(argv):
    if not argv or argv[0] in ("--help", "-h"):
        print(__doc__.strip())
        return 0
    command, *settings = argv
    if command not in COMMANDS:
        nearest = difflib.get_close_matches(command, COMMANDS, n=1)
        raise InputError(f"there is no table '{command}'; say what to evaluate, one of "
                         f"{', '.join(COMMANDS)}." + "".join(f" The nearest is {name}."
                                                             for name in nearest))
    return COMMANDS[command](settings)


if __name__ == "__main__":
    cli(main)
