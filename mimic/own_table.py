"""A table of your own as a collection: CSV or JSON lines, a row an image.

    image root, items = table(cfg, left_out)        # prepare_mimic.py --dataset table
"""
import os
from pathlib import Path

from common.cli import InputError
from common.files import read_jsonl
from common.tables import read_header, read_table, whole_characters
from mimic.headings import divided
from mimic.items import Item, hashed_split


def table(cfg, left_out):
    """Your own CSV or JSONL: `image, report[, split, id, subject, study, view]`.

    Any other column is a label. Without `id` the image's name is it, without `subject` every image
    is a patient of its own.
    """
    path = Path(cfg.reports).expanduser()
    if not path.is_file():
        raise InputError("--dataset table wants --reports FILE.csv or .jsonl with columns image, "
                         f"report; {path} is no file.")
    # the validation split goes by many names
    spellings = {"validate": "val", "valid": "val", "validation": "val"}
    columns = ("image", "report", "split", "id", "subject", "study", "view")
    items = []
    for number, row in enumerate(own_rows(path), 1):
        # an empty cell and a null say nothing, as if the column were not there
        row = {key: value for key, value in row.items() if value not in (None, "")}
        split = str(row.get("split", ""))
        split = spellings.get(split, split)
        if "image" not in row or split not in ("", "train", "val", "test"):
            raise InputError(f"{path}, entry {number}: wanted an image, and train, val or test "
                             "where there is a split.")
        name = str(row.get("id", row["image"]))
        subject = str(row.get("subject", name))
        items.append(Item(
            id=name,
            subject=subject,
            study=str(row.get("study", name)),
            split=split if split else hashed_split(subject),
            view=str(row.get("view", "")),
            image=os.path.normpath(str(row["image"])),      # "./a.png" and "a.png" are one file
            text=divided(str(row.get("report", ""))),
            labels={key: value for key, value in row.items() if key not in columns}))
    return Path(cfg.images if cfg.images else path.parent).expanduser(), items


def own_rows(path):
    """The rows of a CSV or JSONL file as dictionaries."""
    if path.suffix not in (".jsonl", ".json"):
        # a table must have these two columns; all others are optional
        others = [column for column in read_header(path) if column not in ("image", "report")]
        columns = ("image", "report", *others)
        for values in read_table(path, columns):
            yield dict(zip(columns, values))
        return
    try:
        rows = [whole_characters(row) for row in read_jsonl(path)]
    except RecursionError:
        raise InputError(f"{path} is nested too deeply to be JSON lines.") from None
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not {"image", "report"} <= row.keys():
            raise InputError(f"{path}, entry {number}: wanted one JSON object a line with image "
                             "and report.")
        yield row
