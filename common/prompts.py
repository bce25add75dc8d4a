"""Reports to draw, from a file of any kind, and the pictures of them, written as they are drawn.

    prompts = read_prompts("prompts.csv", failures)             # [Prompt(id, report)]
    paths = picture_paths("out.png", prompts, num=2)            # out-<id>-0.png, out-<id>-1.png, …
    pictures = Pictures("out.png", prompts, num=2)
"""
import json
import re
import sys
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from common.cli import InputError
from common.columns import known_value, name_of, not_text, refuse_missing, understand
from common.files import text_lines
from common.images import captioned, save_png
from common.tables import own_table

TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")


class Prompt(NamedTuple):
    """A report to draw."""
    id: str                     # "" for a line of a text file, or of the command line
    report: str


def read_prompts(path, failures):
    """The reports of a file: text, one a line; or a table, CSV or JSON lines, with columns `report`
    and `id`, or what else they are usually called (common/columns.py).

    Without an id, the name of the image is it, or the row's number. Rows that cannot be used are
    counted in sentences of `failures`.
    """
    path = Path(path).expanduser()
    if not any(suffix.lower() in TABLES for suffix in path.suffixes[-2:]):
        lines = text_lines(path)
        if not lines:
            raise InputError(f"{path} holds no report; write one a line.")
        return [Prompt("", line) for line in lines]

    columns, rows = own_table(path)
    known = understand(path, columns)
    refuse_missing(path, columns, known, ("report", "findings"))
    text = known["report"] if "report" in known else known["findings"]
    prompts, reasons, names = [], [], set()
    for number, row in enumerate(rows, 1):
        report = known_value(row, text)
        prompt = Prompt(id_of(row, known, number), report)
        # ids that differ in signs alone would be one file
        name = short_name(prompt.id).lower()
        if report is None:
            reasons.append("are blank")
        elif not_text(report):
            reasons.append(f"are no text but {not_text(report)}")
        elif name in names:
            reasons.append("have the id of another one")
        else:
            prompts.append(prompt)
            names.add(name)
    failures += [f"{number} of {len(rows)} reports in {path} {reason}: left out."
                 for reason, number in Counter(reasons).items()]
    return prompts


def id_of(row, known, number):
    """A row's id, or its image without the ending, or its number."""
    id, image = (name_of(known_value(row, known.get(what))) for what in ("id", "image"))
    if id is not None:
        return id
    if image is not None:
        return str(PurePosixPath(image.replace("\\", "/")).with_suffix(""))
    return f"row-{number}"


def file_name(id):
    """An id as the name of a file: what no file name may hold becomes "_"."""
    return re.sub(r"[^\w.-]", "_", id)


def short_name(id):
    """The same, cut: a file's name may have 255 bytes, endings and numbers among them."""
    return file_name(id)[:60]


def picture_paths(out, prompts, num):
    """Where the `num` pictures of each prompt go, beside `out`: <out>-<id>.png, or <out>-000.png
    and so on without an id; `out` itself if it is the only one.
    """
    out = Path(out)
    several = len(prompts) * num > 1
    paths = []
    for prompt in prompts:
        for k in range(num):
            if prompt.id:
                name = short_name(prompt.id) + (f"-{k}" if num > 1 else "")
            else:
                name = f"{len(paths):03d}" if several else ""
            paths.append(out.with_name(f"{out.stem}-{name}.png") if name else out)
    twice = [path for path, number in Counter(paths).items() if number > 1]
    if twice:
        raise InputError(f"two pictures would be called {twice[0]}; draw them in two runs.")
    return paths


class Pictures:
    """The pictures of prompts: a file each, written with its batch, or one sheet at the end.

    rows: (prompt, number of its picture) in the order in which they are drawn. A line about each
    goes to standard output, of text or of JSON.
    """

    def __init__(self, out, prompts, num=1, grid=False, as_json=False):
        self.out = out
        self.prompts = prompts
        self.grid = grid
        self.as_json = as_json
        self.rows = [(prompt, k) for prompt in prompts for k in range(num)]
        self.paths = picture_paths(out, prompts, num)
        self.drawn = []

    def add(self, pictures, about):
        """The next pictures (N, S, S) uint8. about: the settings that each one carries."""
        self.about = about
        for picture in pictures:
            n = len(self.drawn)
            self.drawn.append(picture if self.grid else None)
            if not self.grid:
                prompt, k = self.rows[n]
                save_png(Image.fromarray(picture), self.paths[n], reports=prompt.report, image=k,
                         **about)
                self.tell(n, self.paths[n])

    def finish(self):
        """Write the sheet, if one is wanted, or say how to get it where pictures are small."""
        if not self.drawn:
            return
        if self.grid:
            sheet = captioned(self.drawn, [prompt.report for prompt, _ in self.rows])
            reports = [prompt.report for prompt in self.prompts]
            save_png(sheet, self.out, reports=reports, **self.about)
            for n in range(len(self.rows)):
                self.tell(n, self.out)
        elif self.about["size"] < 256:
            print(f"{self.about['size']} x {self.about['size']} pixels a picture; with --grid a "
                  "sheet of them, enlarged, over the reports.", file=sys.stderr)

    def tell(self, n, path):
        """The line about a picture."""
        prompt, k = self.rows[n]
        result = {"id": prompt.id} if prompt.id else {}
        result |= {"file": str(path), "report": prompt.report, "image": k,
                   "notice": self.about["notice"]}
        print(json.dumps(result) if self.as_json else f"{path}: {prompt.report}", flush=True)
