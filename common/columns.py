"""Which column of somebody's table holds what: known by its usual names, or said by --columns.

    columns, rows = own_table(path)                             # common/tables.py
    known = understand(path, columns, ["subject=case_no"])      # {"image": "filename", ...}
    value = known_value(row, known["subject"])

Small and capital letters, spaces and punctuation make no difference: "Patient ID" is `patient_id`.
What a name does not say is asked for, in one sentence that lists the columns there are.
"""
import math
import re

from common.cli import InputError

# what a column holds -> its usual names; the first of them counts where a table has several
NAMES = {
    "image": ("image", "filename", "file_name", "file", "path", "filepath", "file_path",
              "image_path", "image_file", "image_filename", "image_name", "image_index", "img",
              "img_path", "dicom_path", "path_to_image"),
    "report": ("report", "text", "report_text", "full_report", "radiology_report", "caption",
               "prompt"),
    "findings": ("findings", "finding", "section_findings", "findings_text", "report_findings"),
    "impression": ("impression", "impressions", "section_impression", "impression_text",
                   "conclusion", "report_impression"),
    "subject": ("subject", "subject_id", "patient", "patient_id", "patient_number", "pid", "mrn",
                "deid_patient_id"),
    "study": ("study", "study_id", "study_uid", "study_instance_uid", "accession",
              "accession_number", "exam_id"),
    "id": ("id", "image_id", "dicom_id", "sop_instance_uid"),
    "split": ("split", "subset", "partition", "data_split"),
    "view": ("view", "view_position", "projection", "frontal_lateral"),
}
# words of names that a column of patients may have, and those that say that it has another thing
OF_PATIENTS = ("patient", "pat", "subject", "mrn", "case", "person", "participant", "individual",
               "client", "accession", "pseudonym", "pid")
ABOUT_PATIENTS = ("age", "sex", "gender", "weight", "height", "race", "ethnicity", "position",
                  "orientation", "birth", "class", "history")
# how programs spell that a cell is empty
BLANK = {"", "nan", "none", "null", "na", "n/a", "#n/a", "<na>", "nat"}


def plain(name):
    """A name as it is compared: letters and digits alone, in small letters."""
    return re.sub(r"[\W_]", "", name.lower())


def understand(path, columns, given=()):
    """Names of a table's columns -> {what it holds: its name} of those that are known.

    given: "what=name" words of --columns, which count before the usual names. InputError for a name
    that is not there, and where two columns may hold the same thing.
    """
    known = {}
    for word in given:
        what, equals, name = word.partition("=")
        if not equals or what not in NAMES:
            raise InputError(f"--columns {word}: wanted WHAT=COLUMN, where WHAT is one of "
                             f"{', '.join(NAMES)}.")
        if name not in columns:
            raise InputError(f"--columns {word}: {there_are(path, columns)}")
        known[what] = name

    for what, names in NAMES.items():
        spellings = [plain(name) for name in names]
        found = [name for name in columns
                 if plain(name) in spellings and name not in known.values()]
        if what in known or not found:
            continue
        # the first name is ours; of others, none is better than the next
        ours = [name for name in found if plain(name) == spellings[0]]
        found = ours if ours else found
        if len(set(found)) < len(found):
            raise InputError(f"{path} has the column '{found[0]}' twice; rename one of them.")
        if len(found) > 1:
            raise InputError(f"{path} has {len(found)} columns that may be the {what}: "
                             f"{', '.join(found)}; call the right one '{what}', or say which with "
                             f"--columns {what}={found[0]} (prepare_mimic.py).")
        known[what] = found[0]
    return known


def there_are(path, columns):
    return f"{path} has the columns {', '.join(columns) if columns else '(none)'}."


def refuse_missing(path, columns, known, *wanted):
    """InputError unless the table has one of each of `wanted`: a name of NAMES, or a tuple of names
    of which one will do."""
    for choice in wanted:
        choice = (choice,) if isinstance(choice, str) else choice
        if any(what in known for what in choice):
            continue
        usual = " or ".join(f"the {what} ({', '.join(NAMES[what][:6])}, …)" for what in choice)
        raise InputError(f"{there_are(path, columns)} None is known as {usual}: rename it, or say "
                         f"which with --columns {choice[0]}=COLUMN (prepare_mimic.py).")


def may_be_patients(name):
    """Whether the name of a column sounds as if it told patients apart."""
    apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()
    words = re.findall(r"[a-z]+", apart)
    # patientno and caseid are one word
    of = any(word in OF_PATIENTS or word.startswith(("patient", "subject", "caseid", "caseno"))
             for word in words)
    return of and not any(word.endswith(ABOUT_PATIENTS) for word in words)


# ---- values ----

def known_value(row, column):
    """The value of a column, None where it says nothing: blank, null, NaN, or a word for these.

    column: None for a table that has no such column.
    """
    value = row.get(column)
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, str) and value.strip().lower() in BLANK:
        return None
    return value.strip() if isinstance(value, str) else value


def name_of(value):
    """A value as the name of something, an id or a file; None for what names nothing.

    Spreadsheets turn the id 17 into 17.0, and so does pandas where a cell of the column is blank.
    """
    if isinstance(value, (bool, list, dict)) or value is None:
        return None
    whole = re.fullmatch(r"(\d+)\.0+", str(value))
    return whole[1] if whole else str(value)


# what browsers and hospital systems mark text with; "<90%" and ">2 L" are none
HTML = re.compile(r"</?(html|body|div|span|p|br|b|i|u|strong|em|font|table|tr|td|ul|ol|li|h[1-6])"
                  r"(\s[^<>]*)?/?>|&(nbsp|amp|lt|gt|quot|#\d+);", re.IGNORECASE)


def not_text(value):
    """What a value is that is no plain text: "a number", "a list", "HTML"; "" for a text.

    In a CSV file all are texts: there it goes by what they look like.
    """
    text = str(value).strip()
    if isinstance(value, bool) or text.lower() in ("true", "false"):
        return "true or false"
    if isinstance(value, (int, float)) or re.fullmatch(r"[-+]?[\d.,]+([eE][-+]?\d+)?", text):
        return "a number"
    if text.startswith(r"{\rtf"):
        return "RTF"
    if HTML.search(text):
        return "HTML"
    if isinstance(value, (list, dict)) or re.fullmatch(r"\[.*\]|\{.*\}", text, re.DOTALL):
        return "a list"
    return ""
