"""bench/synthetic.py: pictures that show what was asked for, and one that does not."""
import json

import pytest
from PIL import Image

from bench import synthetic
from common.cli import InputError
from common.images import save_png
from evaluation.phantom import PhantomConfig, held_out_phantoms


def test_a_picture_of_another_report_is_seen(tmp_path, capsys):
    phantoms = held_out_phantoms(PhantomConfig(), 128, range(6))
    lines = ["image,report"]
    for i, (picture, report) in enumerate(zip(phantoms.pictures, phantoms.reports)):
        save_png(Image.fromarray(picture), tmp_path / f"{i}.png")
        lines.append(f"{(i + 1) % 6 if i > 3 else i}.png,{report}")         # the last two are not
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join(lines))
    synthetic.main(["--manifest", str(path), "--bootstrap", "0", "--threads", "1", "--json"])
    figures = json.loads(capsys.readouterr().out)["figures"][str(path)]
    assert figures["pictures"] == 6 and figures["exact"]["value"] == pytest.approx(4 / 6)


def test_what_is_no_manifest_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id,report\na,No edema.\n")
    with pytest.raises(InputError, match="no manifest of sample.py --table"):
        synthetic.main(["--manifest", str(path)])
    with pytest.raises(InputError, match="name a --manifest"):
        synthetic.main([])
