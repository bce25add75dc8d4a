"""Reports to draw, from a file of any kind, and what the pictures of them are called.

    prompts = read_prompts("prompts.csv", failures)             # [Prompt(id, report)]
    paths = picture_paths("out.png", prompts, num=2)            # out-<id>-0.png, out-<id>-1.png, …
"""
import re
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from common.cli import InputError
from common.columns import known_value, name_of, not_text, refuse_missing, understand
from common.files import text_lines
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
        return [Prompt("", line) for line in text_lines(path)]

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
