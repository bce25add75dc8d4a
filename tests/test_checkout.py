"""What git hands out is the same on every machine, and git leaves alone what the commands write."""
import hashlib
import shutil
import subprocess

import pytest

from helpers import ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / ".git").exists() or not shutil.which("git"), reason="no git work tree")


def git(*words, folder=ROOT):
    """What git prints, as bytes."""
    return subprocess.run(["git", *words], cwd=folder, capture_output=True, check=True).stdout


def test_a_checkout_on_windows_has_the_same_bytes(tmp_path):
    """Git for Windows sets core.autocrlf, which writes "\\r\\n" at the end of each line of a text:
    demo/tokenizer.json then has another hash than its checkpoint says.
    """
    clone = tmp_path / "clone"
    git("clone", "-q", "-c", "core.autocrlf=true", str(ROOT), str(clone))
    for entry in git("ls-tree", "-r", "-z", "HEAD", folder=clone).split(b"\0")[:-1]:
        about, name = entry.split(b"\t")
        content = (clone / name.decode()).read_bytes()
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        assert blob == about.split()[2].decode(), f"{name.decode()} was changed by the checkout"
