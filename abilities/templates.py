"""Labels of a table -> the text of a report that states them.

    report = text_of({"Edema": 1, "Pneumothorax": 0})
    # "There is pulmonary edema. No pneumothorax."

The sentences are ours: the plain ones that reports use most, without side, size or place, which a
label does not say. A label that is blank is not mentioned.
"""
from common import columns
from common.cli import InputError

# the 14 labels of CheXpert -> what states it, what denies it, in the order in which reports go
SENTENCES = {
    "Support Devices": ("A support device is in place.", "No support devices."),
    "Enlarged Cardiomediastinum": ("There is mediastinal widening.", "No mediastinal widening."),
    "Cardiomegaly": ("The heart is enlarged.", "No cardiomegaly."),
    "Edema": ("There is pulmonary edema.", "No pulmonary edema."),
    "Consolidation": ("There is a consolidation.", "No consolidation."),
    "Pneumonia": ("There is an opacity concerning for pneumonia.", "No evidence of pneumonia."),
    "Atelectasis": ("There is atelectasis.", "No atelectasis."),
    "Lung Opacity": ("There is a lung opacity.", "No lung opacity."),
    "Lung Lesion": ("There is a lung nodule.", "No lung nodule or mass."),
    "Pleural Effusion": ("There is a pleural effusion.", "No pleural effusion."),
    "Pneumothorax": ("There is a pneumothorax.", "No pneumothorax."),
    "Pleural Other": ("There is pleural thickening.", "No pleural thickening."),
    "Fracture": ("There is a rib fracture.", "No fracture."),
    "No Finding": ("No acute cardiopulmonary abnormality.", ""),
}
VALUES = {"1": 1, "1.0": 1, "0": 0, "0.0": 0}


def label_columns(names):
    """Names of columns -> {one of the 14 labels: the column that holds it}."""
    labels = {columns.plain(label): label for label in SENTENCES}
    return {labels[columns.plain(name)]: name for name in names if columns.plain(name) in labels}


def labels_of(row, labels, where):
    """A row's labels {name: 1 or 0}, without those that are blank. InputError for other values.

    labels: of `label_columns`; where: the file and row, for the message.
    """
    values = {}
    for label, column in labels.items():
        value = columns.known_value(row, column)
        if value is None:
            continue
        if str(value) not in VALUES:
            raise InputError(f"{where}: {column} is {value}; a label is 1 (there), 0 (not there) "
                             "or blank (not mentioned).")
        values[label] = VALUES[str(value)]
    return values


def text_of(labels):
    """{label: 1 or 0} -> the sentences that say so; "" where nothing is said."""
    sentences = []
    for label, (present, absent) in SENTENCES.items():
        if label in labels:
            sentences.append(present if labels[label] else absent)
    return " ".join(sentence for sentence in sentences if sentence)
