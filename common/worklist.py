"""Long lists of items, done in batches by several processes, and continued after an interruption.

    rows = worklist.run(out / "reports.jsonl", blocks, work, process)

`work` takes a block of ids and gives a row {"id": ..., ...} for each. The rows end up in one file
of JSON lines, in the order of the list.

The blocks say which items share a batch: not the number of processes, and not what is done already.
A network's last digits depend on the batch that an item is in. With fixed blocks, two processes, or
a run that was cut short and started again, write exactly what one uninterrupted process writes.

Each process appends whole blocks to a file of its own, reports.part0.jsonl and so on. When all are
through, the first process joins these files.
"""
import functools
from datetime import timedelta

import torch.distributed as dist
from tqdm import tqdm

from common import locks, processes
from common.cli import InputError, differences
from common.files import (
    append_jsonl, cut_torn_line, read_json, read_jsonl, write_json, write_jsonl)
from common.processes import on_first


# ---- processes that wait for each other ----

@functools.cache
def patient_group():
    """A group that waits a day for its slowest process: NCCL's own gives up after ten minutes."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=1))


def meet():
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier(patient_group())


# ---- blocks ----

def chunks(items, size):
    """Consecutive pieces of at most `size` items."""
    return [items[start:start + size] for start in range(0, len(items), size)]


def grouped(items, key, size):
    """Blocks of at most `size` items with the same key, in the order in which the keys appear."""
    # a dict keeps the order in which keys were first seen
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return [block for group in groups.values() for block in chunks(group, size)]


# ---- the output directory ----

# what the commands with such lists leave in their directory, besides images/ and sweep/
LISTS = ("reports.jsonl", "images.jsonl", "again.jsonl", "drawn.jsonl")
RESULTS = ("generated.safetensors", "real.safetensors", "result.json", "result.md", "pairs.png",
           "findings.png", "sweep.png", "manifest.csv", "suspicious.csv", "suspicious.png")


def claim(places, overwrite, process):
    """Make output directories that belong to these settings, and to this command until its end.

    places: {directory: settings}. InputError if one belongs to others: to another process, to rows
    that were made with other settings (half of the reports would come from another model), or to
    whoever keeps files of his own there. `--overwrite` throws rows of other settings away, when all
    directories have been looked at.
    """
    def begin():
        for directory, settings in places.items():
            locks.refuse_taken(directory)
            refuse_others(directory, settings, overwrite)
        for directory, settings in places.items():
            locks.take(directory)
            if overwrite:
                remove_results(directory)
            write_json(directory / "settings.json", settings)
    meet()                                      # the slowest may take longer than the first waits
    on_first(process, begin)


def refuse_others(directory, settings, overwrite):
    """InputError for a directory that holds what these settings did not make."""
    if not directory.exists():
        return
    others = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    if not others:
        return
    path = directory / "settings.json"
    theirs = read_json(path) if path.exists() else None
    # a data set has a settings.json too
    if not isinstance(theirs, dict) or "checkpoint" not in theirs:
        raise InputError(f"{directory} holds files and no results of ours ({others[0]}): choose "
                         "another --out, so that nothing of yours is replaced.")
    # those that draw have a solver, data sets a table: nothing of hours is replaced by other things
    if any((mark in theirs) != (mark in settings) for mark in ("solver", "table")):
        raise InputError(f"{directory} holds the results of another command; choose another --out.")
    changed = differences(theirs, settings)
    if changed and not overwrite:
        raise InputError(
            f"{directory} was begun with other settings ({', '.join(changed)}); choose "
            "another --out, or --overwrite it.")


def remove_results(directory):
    """Delete what an earlier run left, by name. Images are drawn over."""
    for name in LISTS:
        for path in (directory / name, *parts_of(directory / name)):
            path.unlink(missing_ok=True)
    for name in RESULTS:
        (directory / name).unlink(missing_ok=True)


def number_format(directory, cfg, process):
    """What --dtype means for this output directory: rows that are continued keep their format."""
    path = directory / "settings.json"
    begun = None
    if path.exists() and not cfg.overwrite:
        settings = read_json(path)
        if isinstance(settings, dict):          # else `claim` refuses the directory
            begun = settings.get("dtype")
    chosen = processes.number_format(cfg.dtype, process.device, begun)
    return processes.gather(chosen)[0]          # that of the first process, on all machines


# ---- the work ----

def run(path, blocks, work, process, title="working"):
    """Do all blocks that are not done yet -> {id: row} of all items, in the order of the list.

    work: a function from the ids of a block to one row {"id": ...} for each, or to rows with an
    "error" for items that failed. process: our `Process`.
    """
    if process.master:
        for part in parts_of(path):
            cut_torn_line(part)
    meet()                                      # nobody reads before that
    done = collect(path)
    # a block that is half done is done again whole, or its items would share another batch
    todo = [block for block in blocks if not all(name in done for name in block)]
    meet()                                      # nobody writes before all have read

    # every process takes its share of the blocks, and shows a bar if it is the first
    share = todo[process.rank::process.world]
    own = path.with_name(f"{path.stem}.part{process.rank}.jsonl")
    quiet = not process.master or not share
    with tqdm(total=sum(map(len, share)), desc=title, unit="image", disable=quiet) as bar:
        for block in share:
            append_jsonl(own, work(block))
            bar.update(len(block))
    meet()

    # the first process joins the parts; a kill may have come before it did so last time
    ids = [name for block in blocks for name in block]
    if process.master and parts_of(path):
        done = collect(path)
        write_jsonl(path, [done[name] for name in ids])
        for part in parts_of(path):
            part.unlink()
    meet()
    done = read_rows(path)
    return {name: done[name] for name in ids}


def parts_of(path):
    """The files of single processes: of this run, and of one that was cut short."""
    return sorted(path.parent.glob(f"{path.stem}.part*.jsonl"))


def collect(path):
    """{id: row} of everything that is done, joined already or not."""
    done = {}
    # parts come after what was joined: they are newer
    for file in (path, *parts_of(path)):
        done |= read_rows(file)
    return done


def read_rows(path):
    """{id: row} of a file that `run` wrote; empty if there is none.

    A block that was cut short is done again, so an item may stand there twice: the last row counts.
    """
    if not path.exists():
        return {}
    try:
        return {row["id"]: row for row in read_jsonl(path)}
    except (InputError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: every line should be JSON with an id; delete it to "
                         "start anew.") from None


def split(rows, key):
    """{id: row} -> ({id: row[key]} of what went well, {id: sentence} of what failed).

    A failure is never a result: an image that could not be read has no empty report.
    """
    results = {name: row[key] for name, row in rows.items() if "error" not in row}
    failures = {name: row["error"] for name, row in rows.items() if "error" in row}
    return results, failures
