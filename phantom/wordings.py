"""How reports are worded: by the sentences of `phantom.facts`, or by those of another hospital.

    python -m phantom.prepare --wording headings --exposure 2 --out datasets/shifted

Both state the same facts, and `phantom.facts.report_to_facts` reads both back exactly. A model that
has learned one has never written the other: fine-tuning is tried on that.

To add a wording, add an entry to `WORDINGS`. Its sentences hold to what report_to_facts knows: a
word of the finding's `pattern`; sides, zones, degrees, or words that are the `SAME_AS` these; one
of `NEGATIONS` where something is absent. tests/phantom/test_facts.py tries all of them.
"""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Wording:
    """Sentences of one hospital, with {side}, {zone}, {degree} and {adverb} to fill in.

    Of a finding that is in none of the tables the sentences are those of `phantom.facts.TABLE`.
    """
    present: dict = field(default_factory=dict)         # finding -> sentences that state it
    absent: dict = field(default_factory=dict)          # finding -> sentences that deny it
    bilateral: str = "{degree} bilateral pleural effusions."    # two of the same size
    neither: str = "No pleural effusion or pneumothorax."
    clear: str = "The lungs are clear."                 # nothing is in the lungs


# a report under headings
HEADINGS = Wording(
    present={
        "cardiomegaly": ("Heart: {degree} cardiomegaly.", "Heart: {adverb} enlarged."),
        "effusion": ("Pleura: {degree} effusion on the {side}.",
                     "Pleura: {side} effusion of {degree} size."),
        "pneumothorax": ("Pleura: pneumothorax on the {side}.", "Pleura: {side} pneumothorax."),
        "opacity": ("Lungs: opacity in the {zone} zone on the {side}.",
                    "Lungs: {zone} zone consolidation on the {side}."),
        "nodule": ("Lungs: nodule in the {zone} zone on the {side}.",
                   "Lungs: {zone} zone nodule on the {side}."),
        "edema": ("Lungs: edema.", "Lungs: edema on both sides."),
        "catheter": ("Lines: central venous catheter on the {side}.",
                     "Lines: {side} central line."),
    },
    absent={
        "cardiomegaly": ("Heart: normal in size.", "Heart: not enlarged."),
        "effusion": ("Pleura: no effusion.",),
        "pneumothorax": ("Pleura: no pneumothorax.",),
        "opacity": ("Lungs: no opacity.", "Lungs: no consolidation."),
        "nodule": ("Lungs: no nodule.",),
        "edema": ("Lungs: no edema.",),
        "catheter": ("Lines: none.",),
    },
    bilateral="Pleura: {degree} effusions on both sides.",
    neither="Pleura: no effusion or pneumothorax.",
    clear="Lungs: clear.",
)

WORDINGS = {"plain": Wording(), "headings": HEADINGS}
