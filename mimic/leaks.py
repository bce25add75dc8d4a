"""Who trains must not test: the guards against one patient, or one film, in two splits.

    splits = refuse_shared_patients(directory, info, rows)      # in one data set
    refuse_shared_pictures(directory, info, packed)
    refuse_other_splits({directory: (info, splits)})            # between sizes and tasks
    refuse_leak(root, und_size, gen_size)                       # before both tasks are trained

CheXGenBench's split has such patients: it pools MIMIC-CXR and deals it anew. There they are said.
"""
import hashlib
import shlex
from itertools import combinations

from common.cli import InputError
from common.columns import may_be_patients
from common.packed import Packed


def pooled(info):
    """Whether a data set follows CheXGenBench's split."""
    return info["task"] == "gen" and info["settings"].get("gen_split") == "chexgenbench"


# ---- one data set ----

def refuse_shared_patients(directory, info, rows):
    """InputError for a patient in two splits -> {patient: split}.

    A column of patients may have been packed as a label, so labels with such a name count too.
    """
    splits = {}
    for row in rows:
        labels = row.get("labels")
        labels = labels if isinstance(labels, dict) else {}
        others = [(name, str(labels[name])) for name in labels if may_be_patients(name)]
        for patient in [("subject", row["subject"]), *others]:
            splits.setdefault(patient, set()).add(row["split"])
    shared = [patient for patient, names in splits.items() if len(names) > 1]
    if shared and not pooled(info):
        column, patient = shared[0]
        number = sum(name == column for name, _ in shared)
        option = shlex.quote(f"subject={column}")
        known = "" if column == "subject" else f" by '{column}' (--columns {option})"
        raise InputError(f"{directory}: {number} patients are in more than one split, the first is "
                         f"{patient}: prepare it anew with one split a patient{known}.")
    if shared:
        print(f"{directory}: {len(shared)} patients are in more than one split, as CheXGenBench "
              "has it")
    return {patient: min(names) for (column, patient), names in splits.items()
            if column == "subject"}


def refuse_shared_pictures(directory, info, packed):
    """InputError for one film in two splits, under two names and maybe of two patients.

    The same pixels were packed to the same bytes. In the splits of others, MIMIC-CXR's and
    CheXGenBench's, they are said and not refused: they have what they have.
    """
    seen = {}
    shared = []
    for i, row in enumerate(packed.rows):
        key = hashlib.sha256(packed.encoded(i)).digest()
        first = seen.setdefault(key, row)
        if first["split"] != row["split"]:
            shared.append(f"{first['id']} ({first['split']}) and {row['id']} ({row['split']})")
    if not shared:
        return
    told = (f"{directory}: {len(shared)} pictures are in more than one split, the first as "
            f"{shared[0]}")
    if info["settings"].get("dataset") != "mimic" and not pooled(info):
        raise InputError(f"{told}: take one of each out of the table, or give both one patient.")
    print(told)


# ---- several data sets ----

def refuse_other_splits(sets):
    """InputError for a patient whose split differs between two data sets of one folder: a network
    that goes on from one size to the next, or from one task to the other, would be tested on whom
    it has seen.

    sets: {directory: (info, {patient: split})}. The tasks of MIMIC-CXR may differ, by --test-ids.
    """
    for (first, (info, splits)), (second, (info_2, splits_2)) in combinations(sets.items(), 2):
        official = "mimic" in (info["settings"].get("dataset"), info_2["settings"].get("dataset"))
        if pooled(info) or pooled(info_2) or official and info["task"] != info_2["task"]:
            continue
        torn = [patient for patient in splits
                if splits_2.get(patient, splits[patient]) != splits[patient]]
        if torn:
            raise InputError(
                f"{len(torn)} patients are in one split in {first} and in another in {second}, "
                f"the first is {torn[0]}: {prepared_apart(first, second)}")


def prepared_apart(*directories):
    """What to do about data sets of one folder whose splits do not fit each other."""
    older = min(directories, key=lambda folder: (folder / "dataset.json").stat().st_mtime)
    return (f"they were prepared from different tables or splits. Delete {older}, which is older, "
            "or make all sizes and tasks anew in one run, with --overwrite.")


def refuse_leak(root, und_size, gen_size):
    """No patient whom one task trains on may be held out by the other.

    Training both tasks together would else see, in one, who tests the other.
    """
    und = Packed(root, "und", und_size)
    gen = Packed(root, "gen", gen_size)
    leaked = patients(und, training=True) & patients(gen, training=False)
    leaked |= patients(gen, training=True) & patients(und, training=False)
    if leaked:
        raise InputError(
            f"{len(leaked)} patients whom one task trains on are held out by the other in {root}; "
            "joint training needs one split for both: python prepare_mimic.py --gen-split "
            "official.")


def patients(packed, training):
    """Those who are in the training split, or those who are in another."""
    return {row["subject"] for row in packed.rows if (row["split"] == "train") == training}
