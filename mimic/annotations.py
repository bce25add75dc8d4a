"""Texts and splits that others made for MIMIC-CXR: the LLaVA-Rad annotations (JSON) and CheXGenBench's tables (CSV).

Both are credentialed, and are read from the user's own copies. docs/data.md says where they come from.
"""
import json
import re
from pathlib import Path

from common.processes import InputError
from mimic.tables import open_text, read_table, whole_characters

# The fourteen findings of CheXpert, by the names and in the order of the columns of MIMIC-CXR-JPG's
# mimic-cxr-2.0.0-chexpert.csv: alphabetical, as in the paper's Table 4. "No Finding" is one of them.
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum", "Fracture",
    "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other", "Pneumonia",
    "Pneumothorax", "Support Devices",
)

PIECE, LONGEST = 1 << 20, 1 << 24       # characters read at a time; of one object


def json_objects(path):
    """The objects of a JSON list, one by one: the LLaVA-Rad files would fill the memory otherwise. Bare NaN is read."""
    decoder, held, begun = json.JSONDecoder(), "", False
    wrong = InputError(f"{path} is cut short, damaged or no JSON list of objects; download it again.")
    try:
        with open_text(path) as file:
            while piece := file.read(PIECE):
                held = (held + piece).lstrip(", \n\r\t")
                if not begun and held.startswith("["):
                    held, begun = held[1:].lstrip(), True
                while held.startswith("{"):
                    try:
                        value, end = decoder.raw_decode(held)
                    except json.JSONDecodeError:
                        break                               # an object that goes on in the next piece
                    yield whole_characters(value)
                    held = held[end:].lstrip(", \n\r\t")
                if held and (held[0] not in "{]" or not begun) or len(held) > LONGEST:
                    break
    except (ValueError, RecursionError):                    # not UTF-8, numbers without end, nests without end
        raise wrong from None
    if held.strip() != "]":
        raise wrong


def findings_of(entry):
    """One LLaVA-Rad entry -> (dicom id, method, findings or None, impression or None); None if it is of another form."""
    try:
        turns = [turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"]
        dicom, method = Path(entry["image"]).stem, entry["generate_method"]
    except (KeyError, TypeError):
        return None
    texts = [text if isinstance(text, str) and text.strip() else None for text in ((turns or [None])[0], entry.get("impression"))]
    return (dicom, method, *texts) if method in ("rule-based", "gpt4") else None


def llava_rad(folder):
    """LLaVA-Rad annotations -> {method: {dicom id: (findings, impression, source)}}, first row of a pair wins."""
    texts, files = {"rule-based": {}, "gpt4": {}}, sorted(Path(folder).expanduser().glob("**/chat_*MIMIC_CXR*.json"))
    if not files:
        raise InputError(f"no chat_*_MIMIC_CXR_*.json in {folder}: --llava-rad wants the folder of the LLaVA-Rad annotations.")
    for path in files:
        for number, entry in enumerate(json_objects(path), 1):
            known = findings_of(entry)
            if not known:
                raise InputError(f"{path}, entry {number}: wanted an object with image, generate_method (rule-based or gpt4) and "
                                 "conversations; is it the right file?")
            dicom, method, findings, impression = known
            if findings:
                texts[method].setdefault(dicom, (findings, impression, f"llava-rad:{method}"))
    return texts


def chexpert_labels(path):
    """chexpert.csv -> {study: {label: 1.0, 0.0 or -1.0}}, without the blanks. One dictionary for all studies labelled alike."""
    alike, labels = {}, {}
    for study, *values in read_table(path, ("study_id", *FINDINGS)):
        if not set(values) <= {"", "1.0", "0.0", "-1.0", "1", "0", "-1"}:
            raise InputError(f"{path} has a label that is none of 1.0, 0.0, -1.0 or blank.")
        labels["s" + study] = alike.setdefault(tuple(values), {n: float(v) for n, v in zip(FINDINGS, values) if v})
    return labels


def read_ids(path, known):
    """The image ids of the official test JSON (its paths end in them), of a list with one id a line, or of our ids.csv."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path} is not a text file in UTF-8; --test-ids wants the official JSON or a list of ids.") from None
    ids = {part for part in re.findall(r"[\w.-]+", text) if part in known or part.rpartition(".")[0] in known}
    ids = {part if part in known else part.rpartition(".")[0] for part in ids}
    if not ids:
        raise InputError(f"{path} names no image that is here.")
    return ids
