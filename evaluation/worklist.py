"""Long lists of items done in batches, over processes, and continued after an interruption: a line of JSON an item.

    rows = worklist.run(out / "reports.jsonl", blocks, do, process)       # do([id, …]) -> [{"id": …, …}, …]

Which items share a batch is fixed by `blocks`, not by the number of processes or by what is done already: so two processes,
or a run that was cut short and started again, write what one process writes. Each process appends to a file of its own, a
batch at a time; when all are through, the first joins them in the order of the list.
"""
import functools
import json
from datetime import timedelta

import torch.distributed as dist
from tqdm import tqdm

from common.processes import InputError
from common.packed import write


@functools.cache
def everyone():
    """A group that waits a day for the slowest: NCCL's own gives up after ten minutes."""
    return dist.new_group(backend="gloo", timeout=timedelta(days=1))


def meet():
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier(everyone())


def gather(part):
    """What each process has -> a list of all of them, on each."""
    if not dist.is_initialized():
        return [part]
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, part, everyone())
    return parts


def chunks(items, size):
    return [items[at:at + size] for at in range(0, len(items), size)]


def grouped(items, key, size):
    """Blocks of at most `size` items with the same key, in order of first appearance."""
    groups = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return [block for group in groups.values() for block in chunks(group, size)]


def read_rows(path, ours=True):
    """{id: row} of a file of JSON lines. ours: of `run`, where a kill may have torn the last line, which does not count, and a
    row may stand twice."""
    whole = path.read_bytes() if path.exists() or not ours else b""
    whole = whole.rpartition(b"\n")[0] if ours else whole
    try:        # no splitlines: a report may hold what else ends lines in Unicode
        rows = [json.loads(line) for line in whole.decode().split("\n") if line.strip()]
        found = {row["id"]: row for row in rows}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: lines of JSON with an id each are wanted"
                         + ("; delete it to start anew." if ours else ".")) from None
    if len(found) < len(rows) and not ours:
        raise InputError(f"{path} has {len(rows)} rows and {len(found)} different ids; every id may stand there once.")
    return found


def write_rows(path, rows):
    write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def agree(directory, settings, overwrite, process):
    """A directory belongs to one choice of settings: whoever comes back with others is told, unless --overwrite."""
    path = directory / "settings.json"
    settings = json.loads(json.dumps(settings))
    before = json.loads(path.read_text()) if path.exists() else None
    other = sorted(k for k in settings.keys() | (before or {}).keys() if before and settings.get(k) != before.get(k))
    if other and not overwrite:
        raise InputError(f"{directory} was begun with other settings ({', '.join(other)}); choose another --out, or --overwrite "
                         "it.")
    meet()
    if process.master:
        directory.mkdir(parents=True, exist_ok=True)
        if overwrite:
            for old in (*directory.glob("*.jsonl"), *directory.glob("*.safetensors")):
                old.unlink()
        write(path, json.dumps(settings, indent=1).encode())
    meet()


def run(path, blocks, do, process, name="working"):
    """Do all blocks of ids that are not done -> {id: row} in the order of the list."""
    ids = [i for block in blocks for i in block]
    parts = lambda: sorted(path.parent.glob(f"{path.stem}.part*.jsonl"))
    done = {i: row for file in (path, *parts()) for i, row in read_rows(file).items()}
    todo = [block for block in blocks if not all(i in done for i in block)]
    meet()                                   # nobody writes before all have read
    part = path.with_name(f"{path.stem}.part{process.rank}.jsonl")
    if todo:
        write_rows(part, read_rows(part).values())
        with open(part, "a", encoding="utf-8") as file:
            for block in tqdm(todo[process.rank::process.world], desc=name, unit="batch", disable=not process.master):
                rows = do(block)
                file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
                file.flush()
    meet()
    if process.master and (todo or parts()):        # parts alone: a kill came before they were joined
        done = {i: row for file in (path, *parts()) for i, row in read_rows(file).items()}
        write_rows(path, (done[i] for i in ids))
        for file in parts():
            file.unlink()
    meet()
    rows = read_rows(path)
    return {i: rows[i] for i in ids}


def split(rows, key):
    """{id: row} -> {id: row[key]} of what went well, {id: sentence} of what failed. A failure is never a result."""
    good = {i: row[key] for i, row in rows.items() if "error" not in row}
    return good, {i: row["error"] for i, row in rows.items() if "error" in row}
