"""How reports are worded: by the sentences of `phantom.facts`, or by those of another hospital.

    python -m phantom.prepare --wording formal --exposure 2 --out datasets/shifted

Both state the same facts, and `phantom.facts.report_to_facts` reads both back exactly. A model that
has learned one has never met most words of the other: fine-tuning is tried on that.

To add a wording, add an entry to `WORDINGS`. Its sentences hold to what report_to_facts knows: a
word of the finding's `pattern`; sides; zones and degrees, or words that are the `SAME_AS` these;
one of `NEGATIONS` where something is absent. tests/phantom/test_facts.py tries all of them.
"""
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Wording:
    """Sentences of one hospital, with {side}, {zone}, {degree} and {adverb} to fill in.

    Of a finding that is in none of the tables the sentences are those of `phantom.facts.TABLE`.
    """
    present: dict = field(default_factory=dict)         # finding -> sentences that state it
    absent: dict = field(default_factory=dict)          # finding -> sentences that deny it
    words: dict = field(default_factory=dict)           # degree or zone -> what it is called
    bilateral: str = "{degree} bilateral pleural effusions."    # two of the same size
    neither: str = "No pleural effusion or pneumothorax."
    clear: str = "The lungs are clear."                 # nothing is in the lungs

    def called(self, word):
        """What a degree or zone is called here."""
        return self.words.get(word, word)


FORMAL = Wording(
    present={
        "cardiomegaly": ("Cardiomegaly of {degree} extent.", "{degree} enlargement of the heart.",
                         "Heart shadow with {degree} enlargement."),
        "effusion": ("{degree} effusion in the {side} hemithorax.",
                     "Effusion of {degree} volume at the {side} base."),
        "pneumothorax": ("{side} lung collapsed by pneumothorax.",
                         "Pneumothorax at the {side} apex."),
        "opacity": ("Infiltrate at the {side} {zone}.", "Pneumonia of the {side} {zone}."),
        "nodule": ("Nodular shadow at the {side} {zone}.", "{side} {zone} with a nodular shadow."),
        "edema": ("Interstitial edema.", "Edema of either lung."),
        "catheter": ("PICC by way of the {side} arm.", "Central line entering on the {side}."),
    },
    absent={
        "cardiomegaly": ("Heart shadow not enlarged.", "Without cardiomegaly."),
        "effusion": ("Pleura free of effusion.",),
        "pneumothorax": ("Without pneumothorax.",),
        "opacity": ("Without infiltrate.", "Negative for pneumonia."),
        "nodule": ("Free of nodular shadows.",),
        "edema": ("Without edema.",),
        "catheter": ("Without a PICC.",),
    },
    words={"mild": "slight", "severe": "marked", "small": "trace", "large": "massive",
           "upper": "apex", "mid": "middle field", "lower": "base"},
    bilateral="{degree} effusion on both sides.",
    neither="Negative for effusion or pneumothorax.",
    clear="Both lungs well aerated.",
)

WORDINGS = {"plain": Wording(), "formal": FORMAL}
