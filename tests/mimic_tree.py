"""Miniature MIMIC-CXR trees with the exact layout and columns, invented text, and every quirk that facts and files know.

    tree = make(folder)     # tree.jpg, tree.zip, tree.reports, tree.at["truncated"] = (study, [image ids])
"""
import csv
import gzip
import hashlib
import io
import zipfile
from types import SimpleNamespace

import numpy as np
from PIL import Image

META = ("dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
        "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning").split(",")
LABELS = ("Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,Lung Opacity,No Finding,"
          "Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices").split(",")
SIDES, SIZES = ("left", "right"), ("small", "moderate", "large")

# one study each; all have one good PA image and a plain report but for what the name says
QUIRKS = ("truncated zero_byte html gstmp image_missing report_missing report_empty report_underscores no_findings latin1 bom crlf "
          "duplicate_row several_frontals two_views view_empty view_odd png16 dicom_monochrome1 rgba cmyk palette tiny aspect constant huge "
          "addendum wet_read hand_fixed last_paragraph lower_case no_label near_duplicate").split()
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___-year-old woman with cough.

 TECHNIQUE:  PA and lateral views of the chest.

 COMPARISON:  None.

 FINDINGS:

 {findings}

 IMPRESSION:

 {impression}
"""


def dicom_id(name):
    digest = hashlib.sha256(name.encode()).hexdigest()
    return "-".join(digest[i:i + 8] for i in range(0, 40, 8))


def film(seed, w=120, h=144):
    """A grey picture with a gradient and grain, all values in use."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    return np.clip(255 * (x / w + y / h) / 2 + rng.normal(0, 6, (h, w)), 0, 255).astype(np.uint8)


def jpeg(pixels, mode=None):
    buffer = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def dicom_file(pixels, photometric="MONOCHROME1"):
    import pydicom
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1.1", "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, photometric, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelData = pixels.astype(np.uint16).tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset)
    return buffer.getvalue()


def huge_png():
    """A PNG that says it has 20,000 x 20,000 pixels."""
    small = bytearray(png(Image.fromarray(film(0))))
    import struct
    import zlib
    small[16:24] = struct.pack(">II", 20_000, 20_000)
    small[29:33] = struct.pack(">I", zlib.crc32(bytes(small[12:29])))
    return bytes(small)


def wrong_image(quirk, good, n):
    """(ending, bytes) of what lies there in place of a good JPEG; None: nothing."""
    pixels = film(n)
    if quirk == "truncated":
        return ".jpg", good[:len(good) * 2 // 3]
    if quirk == "zero_byte":
        return ".jpg", b""
    if quirk == "html":
        return ".jpg", b"<!DOCTYPE html><html><body>Log in</body></html>"
    if quirk == "gstmp":
        return ".jpg_.gstmp", good[:100]
    if quirk == "image_missing":
        return None
    if quirk == "png16":
        return ".png", png(Image.fromarray((pixels.astype(np.uint16) * 200 + 1000)))
    if quirk == "dicom_monochrome1":
        return ".dcm", dicom_file(4095 - pixels.astype(np.uint16) * 16)
    if quirk == "rgba":
        rgba = Image.fromarray(pixels).convert("RGBA")
        rgba.putalpha(Image.fromarray(np.where(np.arange(120)[None] < 60, 255, 0).astype(np.uint8).repeat(144, 0)))
        return ".png", png(rgba)
    if quirk == "cmyk":
        return ".jpg", jpeg(pixels, "CMYK")
    if quirk == "palette":
        return ".png", png(Image.fromarray(pixels).convert("P"))
    if quirk in ("tiny", "aspect", "constant"):
        return ".jpg", jpeg({"tiny": film(n, 40, 48), "aspect": film(n, 80, 400), "constant": np.full((100, 100), 77, np.uint8)}[quirk])
    if quirk == "huge":
        return ".png", huge_png()
    return ".jpg", good


def wrong_report(quirk, text):
    """The report's bytes; None: nothing."""
    if quirk == "report_missing":
        return None
    if quirk == "report_empty":
        return b""
    if quirk == "report_underscores":
        return b" ___\n\n _______________ \n"
    if quirk == "no_findings":
        return text[:text.index(" FINDINGS:")].encode() + b" IMPRESSION:\n \n Small left effusion.\n"
    if quirk == "latin1":
        return text.replace("effusion", "effusion in Sj\xf6gren's").encode("latin-1")
    if quirk == "bom":
        return b"\xef\xbb\xbf" + text.encode()
    if quirk == "crlf":
        return text.replace("\n", "\r\n").encode()
    if quirk == "addendum":
        return (" ADDENDUM  Large right pneumothorax was phoned to Dr. ___.\n ______________________________\n" + text).encode()
    if quirk == "wet_read":
        return text.replace("FINDINGS:\n\n", "FINDINGS:\n\n WET READ VERSION #1 ___ MON 8:10 PM\n ").encode()
    if quirk == "last_paragraph":
        return b"                FINAL REPORT\n INDICATION:  Cough.\n \n Small left effusion, as a last paragraph.\n"
    if quirk == "lower_case":
        return text.replace("FINDINGS", "Findings").replace("IMPRESSION", "Impression").encode()
    return text.encode()


def write_table(path, header, rows, zipped):
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    (gzip.open if zipped else open)(f"{path}{'.gz' if zipped else ''}", "wb").write(text.getvalue().encode())


def make(folder, studies=200, zipped=True, wget=False, quirks=QUIRKS, labels=True):
    """`studies` studies, the last of which carry the quirks; the first 70% of the others train, then 10% validate, 20% test."""
    jpg = folder / "physionet.org/files/mimic-cxr-jpg/2.1.0" if wget else folder / "mimic-cxr-jpg"
    reports, archive = folder / "reports", folder / "mimic-cxr-reports.zip"
    (jpg / "files").mkdir(parents=True)
    tree = SimpleNamespace(jpg=jpg, top=folder if wget else jpg, reports=reports, zip=archive, at={}, split={}, texts={}, views={})
    metadata, splits, chexpert, contents = [], [], [], {}
    plain = studies - len(quirks)
    for n in range(studies):
        quirk = quirks[n - plain] if n >= plain else ""
        # two studies a patient, over p10 to p19
        subject, study = f"1{n // 2 % 10}{n // 2:06d}", f"5{(n * 7919) % 10_000_000:07d}"
        study = "50913680" if quirk == "hand_fixed" else study
        part = n // 2 * 2 / max(1, plain)
        split = "train" if quirk or part < 0.7 else "validate" if part < 0.8 else "test"
        views = {"several_frontals": ("AP", "PA", "PA", "LATERAL"), "two_views": ("AP", "LL"), "view_empty": ("",), "view_odd": ("AP AXIAL",),
                 "near_duplicate": ("PA", "PA")}.get(quirk, ("PA", "LATERAL") if n % 3 else ("AP",))
        words = f"There is a {SIZES[n % 3]} {SIDES[n % 2]} pleural effusion. Study number {n} of this tree.\n No pneumothorax."
        text = REPORT.format(findings=words, impression=f"{SIZES[n % 3].title()} {SIDES[n % 2]} effusion.")
        if n % 5 == 4 and not quirk:
            text = text[:text.index(" IMPRESSION")]
        tree.texts["s" + study], ids = text, []
        place = f"p{subject[:2]}/p{subject}"
        for k, view in enumerate(views):
            ids.append(dicom_id(f"{n} {0 if quirk == 'same' else k}"))
            shot = film(n if quirk == "near_duplicate" else n * 10 + k)
            found = wrong_image(quirk, jpeg(shot), n * 10 + k)
            image = jpg / "files" / place / f"s{study}" / ids[-1]
            image.parent.mkdir(parents=True, exist_ok=True)
            if found:
                image.with_name(image.name + found[0]).write_bytes(found[1])
            row = [ids[-1], subject, study, "CHEST (PA AND LAT)", view, 144, 120, "21800506", "013014.531", "", "", "Erect"]
            metadata += [row, row] if quirk == "duplicate_row" else [row]
            splits.append([ids[-1], study, subject, split])
            tree.split[ids[-1]], tree.views[ids[-1]] = split, view
        tree.at[quirk or n] = "s" + study, ids
        if quirk != "no_label":
            chexpert.append([subject, study, *("1.0" if label == "Pleural Effusion" else "0.0" if label == "Pneumothorax" else
                                               "-1.0" if label == "Edema" else "" for label in LABELS)])
        content = wrong_report(quirk, text)
        if content is not None:
            contents[f"files/{place}/s{study}.txt"] = content
    (jpg / "files" / "index.html").write_text("<html></html>")
    write_table(jpg / "mimic-cxr-2.0.0-metadata.csv", META, metadata, zipped)
    write_table(jpg / "mimic-cxr-2.0.0-split.csv", ("dicom_id", "study_id", "subject_id", "split"), splits, zipped)
    if labels:
        write_table(jpg / "mimic-cxr-2.0.0-chexpert.csv", ("subject_id", "study_id", *LABELS), chexpert, zipped)
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in contents.items():
            file.writestr(name, content)
            path = reports / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    tree.metadata = metadata
    return tree
