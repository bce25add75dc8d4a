"""Every number of the paper's Tables 2, 3 and 4, and the phantom's own. For research, not for clinical use.

    python evaluate.py phantom                                         # demo/, 500 held-out phantoms
    torchrun --nproc_per_node=8 evaluate.py und --checkpoint out/und          # reports of the test images, scored (Table 2)
    torchrun --nproc_per_node=8 evaluate.py gen --checkpoint out/gen512       # images of the test reports (Tables 3 and 4)
    python evaluate.py features --images DIR --out a.safetensors       # RAD-DINO features of any folder of images
    python evaluate.py compare A B                                     # real and generated: feature files, or folders of images;
                                                                       # or references and reports: JSON lines {"id", "report"}
    python evaluate.py privacy --generated A --train B --held-out C    # is the nearest training image too near?

`python evaluate.py gen --help` lists the settings of a command. Under torchrun the work is shared out; interrupted, it goes on
where it was. Results: JSON, a Markdown table with the paper's rows beside ours, plots. docs/evaluation.md defines every number.
"""
from common import processes as common
from evaluation import compare
from evaluation import gen as eval_gen
from evaluation import phantom as eval_phantom
from evaluation import privacy
from evaluation import und as eval_und
from common.processes import InputError


COMMANDS = {"phantom": eval_phantom.main, "und": eval_und.main, "gen": eval_gen.main, "features": compare.extract, "compare": compare.compare,
            "privacy": privacy.privacy}


def main(argv):
    if argv[:1] in (["--help"], ["-h"]):
        return print(__doc__.strip())
    if not argv or argv[0] not in COMMANDS:
        raise InputError(f"say what to evaluate, one of {', '.join(COMMANDS)}: `python evaluate.py phantom`.")
    return COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    common.cli(main)
