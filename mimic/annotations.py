"""What others wrote down about the images and reports of MIMIC-CXR, in files of their own.

    CheXpert       which of fourteen findings a report names         (mimic-cxr-2.0.0-chexpert.csv)
    LLaVA-Rad      findings cut out of the reports, by rules or GPT-4      (chat_*_MIMIC_CXR_*.json)
    CheXGenBench   another split, and texts to draw from            (LLAVARAD_ANNOTATIONS_*.csv)
    --test-ids     which images are the understanding test

All are read from the user's own copies; docs/data.md says where they come from. This file only
reads. mimic/splits.py decides what is done with them.
"""
import json
import re
from pathlib import Path

from common.cli import InputError
from common.files import read_text
from common.tables import find, open_text, read_table, whole_characters

# The fourteen findings of CheXpert, by the names and in the order of the columns of MIMIC-CXR-JPG's
# mimic-cxr-2.0.0-chexpert.csv: alphabetical, as in the paper's Table 4. "No Finding" is one.
FINDINGS = (
    "Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Enlarged Cardiomediastinum",
    "Fracture", "Lung Lesion", "Lung Opacity", "No Finding", "Pleural Effusion", "Pleural Other",
    "Pneumonia", "Pneumothorax", "Support Devices",
)

METHODS = ("rule-based", "gpt4")        # how LLaVA-Rad cut the findings out of a report
# for json_objects, which reads lists that are too long for the memory
DECODER = json.JSONDecoder()
SEPARATORS = re.compile(r"[, \n\r\t]*")
PIECE = 1 << 20                         # characters of a JSON list that are read at a time
LONGEST = 1 << 24                       # characters of one object, at most


# ---- CheXpert ----

def chexpert_labels(path):
    """chexpert.csv -> {study: {finding: 1.0, 0.0 or -1.0}}, without those that are not mentioned.

    1 says that the report affirms the finding, 0 that it denies it, -1 that it is in doubt. Studies
    with the same labels share one dictionary: there are 227,827 studies and far fewer patterns.
    """
    labels = {}
    dictionaries = {}
    for study, *values in read_table(path, ("study_id", *FINDINGS)):
        if not set(values) <= {"", "1.0", "0.0", "-1.0", "1", "0", "-1"}:
            raise InputError(f"{path} has a label that is none of 1.0, 0.0, -1.0 or blank.")
        # a blank cell says that the report does not mention the finding: it gets no label
        pattern = tuple(values)
        if pattern not in dictionaries:
            pairs = zip(FINDINGS, values)
            dictionaries[pattern] = {finding: float(value) for finding, value in pairs if value}
        labels["s" + study] = dictionaries[pattern]
    return labels


# ---- LLaVA-Rad ----

def llava_rad(folder):
    """LLaVA-Rad annotations -> {method: {dicom id: (findings, impression or None, source)}}.

    An image may occur several times, for instance once for each method. Of the same method the
    first entry with findings counts.
    """
    texts = {method: {} for method in METHODS}
    files = sorted(Path(folder).glob("**/chat_*MIMIC_CXR*.json"))
    if not files:
        raise InputError(f"no chat_*_MIMIC_CXR_*.json in {folder}: --llava-rad wants the folder of "
                         "the LLaVA-Rad annotations.")
    # sorted by name above, so that "the first entry" is the same one on every machine
    for path in files:
        for number, entry in enumerate(json_objects(path), 1):
            try:
                dicom, method, findings, impression = read_entry(entry)
            except (KeyError, TypeError, ValueError):
                raise InputError(
                    f"{path}, entry {number}: wanted an object with image, generate_method "
                    "(rule-based or gpt4) and conversations; is it the right file?") from None
            # entries without findings stay out: splits.py leaves their images out with a reason
            if findings:
                text = findings, impression, f"llava-rad:{method}"
                texts[method].setdefault(dicom, text)
    return texts


def read_entry(entry):
    """One LLaVA-Rad entry -> (dicom id, method, findings or None, impression or None).

    The entry is a conversation in which a human asks for the findings and "gpt" gives them.
    Raises KeyError, TypeError or ValueError for an entry of another form.
    """
    answers = [turn["value"] for turn in entry["conversations"] if turn["from"] == "gpt"]
    dicom = Path(entry["image"]).stem
    method = entry["generate_method"]
    if method not in METHODS:
        raise ValueError(method)
    findings = answers[0] if answers else None
    return dicom, method, text_or_none(findings), text_or_none(entry.get("impression"))


def text_or_none(value):
    """LLaVA-Rad says "nothing" in several ways: null, NaN, or a blank text."""
    return value if isinstance(value, str) and value.strip() else None


def json_objects(path):
    """The objects of a JSON list, one by one. Bare NaN, which is no JSON, is read as well.

    The LLaVA-Rad files hold 240,000 entries and would fill the memory as one list. So the text is
    read in pieces; what is complete is decoded and given on, the rest waits for the next piece.
    """
    damaged = InputError(f"{path} is cut short, damaged or no JSON list of objects; download it "
                         "again.")
    text = ""                           # what has been read and not decoded yet
    in_list = False                     # whether the "[" has been passed
    try:
        with open_text(path) as file:
            for piece in iter(lambda: file.read(PIECE), ""):
                text = (text + piece).lstrip()
                if not in_list and text:
                    if text[0] != "[":
                        raise damaged
                    text = text[1:]
                    in_list = True
                values, text = decode_objects(text)
                yield from values
                if text[:1] not in ("", "{", "]") or len(text) > LONGEST:
                    raise damaged
    except (ValueError, RecursionError):        # not UTF-8, endless numbers, nested too deeply
        raise damaged from None
    if text.strip() != "]":
        raise damaged


def decode_objects(text):
    """The complete JSON objects at the start of a text, and what is left of the text."""
    # raw_decode tells where an object ends, which json.loads does not
    values = []
    start = SEPARATORS.match(text).end()
    while text.startswith("{", start):
        try:
            value, end = DECODER.raw_decode(text, start)
        except json.JSONDecodeError:            # the object goes on in the next piece
            break
        values.append(whole_characters(value))
        start = SEPARATORS.match(text, end).end()
    return values, text[start:]


# ---- CheXGenBench ----

def chexgenbench(folder):
    """The rows of CheXGenBench's two tables: (split, subject, study, dicom id, path, text).

    split is "train" or "test" as CheXGenBench has it, which is not the official split. The text is
    the findings (`annotated_prompt`).
    """
    for split in ("train", "test"):
        path = find(folder, f"LLAVARAD_ANNOTATIONS_{split.upper()}.csv",
                    "--chexgenbench wants the folder of CheXGenBench's CSV files.")
        for image, text in read_table(path, ("path", "annotated_prompt")):
            # the table has no ids of its own: they are read off the path of the image
            match = re.fullmatch(r"files/p1\d/p(\d{8})/(s\d{8})/([0-9a-f-]{44})\.jpg", image)
            if not match:
                raise InputError(f"{path} has a path that is not like files/p10/p1.../s5.../"
                                 "<id>.jpg; is it the right file?")
            subject, study, dicom = match.groups()
            yield split, subject, study, dicom, image, text


# ---- --test-ids ----

def read_ids(path, known):
    """The ids in the set `known` that a text file names.

    The file may be UniX's official test JSON, whose image paths end in the ids; a list with one id
    a line; or the und-ids.csv of an earlier run.
    """
    path = Path(path)
    ids = set()
    # words of any text: whatever is not the id of an image here is passed over
    for word in re.findall(r"[\w.-]+", read_text(path)):
        without_ending = word.rpartition(".")[0]            # "<id>.jpg"
        if word in known:
            ids.add(word)
        elif without_ending in known:
            ids.add(without_ending)
    if not ids:
        raise InputError(f"{path} names no image that is here.")
    return ids
