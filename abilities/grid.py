"""A sheet of reports that differ in a word, all drawn from the same noise (the paper's Figure 4).

    python sample.py --grid --report "{Small,Moderate,Large} {left,right} pleural effusion."

The words of the first braces make the rows of the sheet, those of the second the columns; a single
pair of braces makes columns. What differs between two pictures of a sheet is what the word asks
for, since all else is the same: the noise, the settings, the other words. With `--num 3` each row
is drawn from three noises. For research, not for clinical use.
"""
import json
import re
import sys
import textwrap
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import weights
from common.cli import InputError, override
from common.files import refuse_unwritable
from common.images import save_png
from common.processes import number_format, setup, torch_dtype
from sample import (PRESETS, SampleConfig, Sampling, check_report, generate_images, latent_side,
                    preset_for)
from weights.knowledge import notice, tell_unknown

BRACES = re.compile(r"\{([^{}]*)\}")


def has_braces(report):
    """Whether a report asks for a sheet of its variants."""
    return "{" in report or "}" in report


def variants(template):
    """A report with braces -> (words of the rows, words of the columns, reports[row][column]).

    One row, with the heading "", if there is one pair of braces. InputError for anything else than
    one or two pairs, each with two words or more that all differ.
    """
    lists = [[word.strip() for word in inside.split(",")] for inside in BRACES.findall(template)]
    rest = BRACES.sub("", template)
    if has_braces(rest) or not 1 <= len(lists) <= 2:
        raise InputError(f'"{template}": write one or two pairs of braces, as '
                         '"{Small,Large} {left,right} pleural effusion."')
    for words in lists:
        if len(words) < 2 or len(set(words)) < len(words):
            raise InputError(f'"{{{",".join(words)}}}": write two or more words between braces, '
                             "with commas, all of them different.")
    columns = lists[-1]
    rows = lists[0] if len(lists) == 2 else [""]

    # a function, since a word may hold a backslash, which `sub` would take for one of its own
    def filled(row, column):
        words = iter([row, column] if len(lists) == 2 else [column])
        return " ".join(BRACES.sub(lambda _: next(words), template).split())

    return rows, columns, [[filled(row, column) for column in columns] for row in rows]


def sheet(pictures, rows, columns, title="", scale=2, letters=18):
    """Pictures with headings -> PIL image.

    pictures (R, C, S, S) uint8, enlarged `scale` times; rows, columns: their headings. Those of the
    rows are wrapped after so many letters.
    """
    R, C, S, _ = pictures.shape
    side, font = S * scale, ImageFont.load_default(14)          # about 8 pixels a letter
    rows = [textwrap.wrap(text, letters) for text in rows]

    # room for the headings; a title longer than the sheet is wide is wrapped
    left = max(wide(line, font) for line in [*sum(rows, []), ""])
    left = left + 16 if left else 0
    cell = max(side, *(wide(text, font) + 8 for text in columns)) + 4
    width = left + C * cell
    lines = textwrap.wrap(title, max(width, 400) // 6)
    width = max(width, *(wide(line, font) + 16 for line in ["", *lines]))
    top = 28 + (6 + 18 * len(lines) if lines else 0)
    picture = Image.new("L", (width, top + R * (side + 4)), 255)

    draw = ImageDraw.Draw(picture)
    draw.text((8, 6), "\n".join(lines), fill=0, font=font)
    margin = (cell - 4 - side) // 2             # of a picture that its heading is wider than
    for c, text in enumerate(columns):
        place = (left + c * cell + margin + side / 2, top - 14)
        draw.text(place, text, fill=0, font=font, anchor="mm")
    for r, lines in enumerate(rows):
        y = top + r * (side + 4)
        place = (left - 8, y + side / 2)
        draw.text(place, "\n".join(lines), fill=0, font=font, anchor="rm", align="right")
        for c in range(C):
            one = Image.fromarray(pictures[r, c]).resize((side, side), Image.Resampling.BICUBIC)
            picture.paste(one, (left + c * cell + margin, y))
    return picture


def wide(text, font):
    """How many pixels a line of text takes."""
    return round(font.getlength(text))


def draw_variants(model, vae, tokenizer, reports, sampling, num=1, progress=True):
    """reports[row][column] -> (num, rows, columns, S, S) uint8, [k] all from the noise (seed, k).
    """
    flat = [report for row in reports for report in row]
    pictures = generate_images(model, vae, tokenizer, flat, sampling, num, progress=progress)
    pictures = pictures.reshape(len(reports), len(reports[0]), *pictures.shape[1:])
    return np.moveaxis(pictures, 2, 0)


def main(argv):
    """`sample.py --grid` with braces in its --report: the settings are those of sample.py."""
    cfg = override(SampleConfig(), argv, __doc__, PRESETS)
    if not cfg.grid:
        raise InputError("words in braces are for a sheet that compares them: add --grid, or leave "
                         "the braces out.")
    if len(cfg.report) != 1 or cfg.reports or cfg.image:
        raise InputError("a sheet with braces takes one --report, and no --reports or --image.")
    rows, columns, reports = variants(cfg.report[0])
    if Path(cfg.out).suffix.lower() != ".png":
        raise InputError(f"--out {cfg.out} cannot be written; name a .png file.")
    refuse_unwritable(cfg.out)

    device = setup(cfg.device, cfg.threads).device
    dtype = number_format(cfg.dtype, device)
    model, vae, tokenizer = weights.load(
        cfg.checkpoint, not cfg.raw, torch_dtype(dtype), device, cfg.weights)
    cfg = replace(preset_for(model, cfg, argv, __doc__), dtype=dtype)
    side = latent_side(model, vae, cfg.size) * vae.factor
    print(notice(model), file=sys.stderr)
    everything = [report for row in reports for report in row]
    tell_unknown(model, tokenizer, everything)
    for report in everything:
        check_report(f'"{report}"', report, model, tokenizer)
    pictures = draw_variants(model, vae, tokenizer, reports, cfg, cfg.num)

    # a block of rows for each noise
    headings = [row if cfg.num == 1 else f"{row} (noise {k})".strip()
                for k in range(cfg.num) for row in rows]
    picture = sheet(np.concatenate(pictures), headings, columns, cfg.report[0])
    about = {setting.name: getattr(cfg, setting.name) for setting in fields(Sampling)}
    about |= {"checkpoint": Path(cfg.checkpoint).name, "dtype": cfg.dtype, "weights": cfg.weights,
              "num": cfg.num, "size": side, "notice": notice(model)}
    save_png(picture, Path(cfg.out), reports=everything, **about)
    for report in everything:
        line = {"file": cfg.out, "report": report, "notice": notice(model)}
        print(json.dumps(line) if cfg.json else f"{cfg.out}: {report}", flush=True)
