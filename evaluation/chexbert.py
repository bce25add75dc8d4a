"""CheXbert: which of 14 findings a radiology report states (Smit et al. 2020).

    python -m evaluation.chexbert pretrained/chexbert reports.txt       # one line of codes a report

A BERT-base with 14 linear heads on the first token of its last layer. It is written here in plain
torch, because the packages that wrap it are broken on current versions. The weights are those of
the authors' `chexbert.pth`, read strictly by the table in `weights/layouts.py`; `vocab.txt` or
`tokenizer.json` of bert-base-uncased must lie beside it.

    labeller = chexbert.load("pretrained/chexbert")
    labeller.label(["Small left effusion. No pneumothorax."])       # codes (1, 14)

The columns are those of `text_metrics.LABELS`. The codes are 0 blank, 1 positive, 2 negative and
3 uncertain; No Finding, the last column, has 0 no and 1 yes.
"""
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.implementations import BertWordPieceTokenizer
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from common.cli import InputError, cli
from common.files import text_lines
from evaluation.text_metrics import LABELS
from weights.files import fill, read_tensors, translate
from weights.layouts import CHEXBERT

HEAD_WIDTH = 64         # of attention, in every BERT; it cannot be read off the tensors
CUT = 512               # the official evaluation keeps so many *characters* of a report
GET = (                 # how to get the files, for sentences about their absence
    "hf download StanfordAIMI/RRG_scorers chexbert.pth --local-dir pretrained/chexbert, and "
    "hf download bert-base-uncased vocab.txt --local-dir pretrained/chexbert"
)


# ---- the network ----

@dataclass
class BertConfig:
    """Sizes of BERT-base; `load` reads those of a file off its tensors."""
    vocab_size: int = 30522
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int = 3072
    max_text: int = 512         # tokens, [CLS] and [SEP] included
    norm_eps: float = 1e-12


class BertBlock(nn.Module):
    """A post-norm transformer block: attention, add, norm; MLP, add, norm."""

    def __init__(self, cfg):
        super().__init__()
        self.n_head = cfg.n_head
        self.qkv = nn.Linear(cfg.n_embd, 3 * cfg.n_embd)
        self.proj = nn.Linear(cfg.n_embd, cfg.n_embd)
        self.norm1 = nn.LayerNorm(cfg.n_embd, cfg.norm_eps)
        self.fc1 = nn.Linear(cfg.n_embd, cfg.n_inner)
        self.fc2 = nn.Linear(cfg.n_inner, cfg.n_embd)
        self.norm2 = nn.LayerNorm(cfg.n_embd, cfg.norm_eps)

    def forward(self, x, mask):
        B, T, C = x.shape                                       # batch, tokens, width
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)  # (B, H, T, D)
        # mask (B, 1, 1, T) is False at padding; there is no causal order, BERT sees both sides
        y = F.scaled_dot_product_attention(q, k, v, mask)
        y = y.transpose(1, 2).reshape(B, T, C)
        # post-norm: the norm follows the sum; gelu is the exact one, not the tanh approximation
        x = self.norm1(x + self.proj(y))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class CheXbert(nn.Module):
    """BERT, one linear head a finding, and the tokenizer that goes with them."""

    def __init__(self, cfg, tokenizer):
        super().__init__()
        self.cfg = cfg
        self.tokenizer = tokenizer
        self.words = nn.Embedding(cfg.vocab_size, cfg.n_embd)
        self.positions = nn.Embedding(cfg.max_text, cfg.n_embd)
        self.types = nn.Embedding(2, cfg.n_embd)        # first or second text; we have no second
        self.norm = nn.LayerNorm(cfg.n_embd, cfg.norm_eps)
        self.blocks = nn.ModuleList(BertBlock(cfg) for _ in range(cfg.n_layer))
        # No Finding is yes or no; the others are blank, positive, negative or uncertain
        n_codes = [2 if label == "no_finding" else 4 for label in LABELS]
        self.heads = nn.ModuleList(nn.Linear(cfg.n_embd, n) for n in n_codes)

    def forward(self, ids, valid):
        """Token ids (B, T), valid (B, T) False at padding -> 14 logits (B, 4), the last (B, 2)."""
        B, T = ids.shape
        # positions are learned, so their number limits the text; every token is of the first text
        x = self.words(ids) + self.positions.weight[:T] + self.types.weight[0]          # (B, T, C)
        x = self.norm(x)
        for block in self.blocks:
            x = block(x, valid[:, None, None])
        # only the first token, [CLS], is read, as BERT classifiers do
        return [head(x[:, 0]) for head in self.heads]

    @torch.inference_mode()
    def label(self, reports, cut=0, batch=32, progress=True):
        """Reports (N texts) -> codes (N, 14).

        CheXbert reads the first 512 tokens, as its authors' labeller. cut: it is given only so many
        characters; the official evaluation keeps 512 (CUT), which drops the end of long reports.
        """
        device = self.words.weight.device
        codes = []
        starts = range(0, len(reports), batch)
        for start in tqdm(starts, desc="CheXbert", unit="batch", disable=not progress, leave=False):
            # short reports are padded to the longest of the batch, and `valid` says where
            texts = [one_line(text, cut) for text in reports[start:start + batch]]
            rows = [torch.tensor(self.tokenizer.encode(text).ids) for text in texts]
            ids = pad_sequence(rows, batch_first=True)          # with 0, which is [PAD]
            lengths = torch.tensor([len(row) for row in rows])
            valid = torch.arange(ids.shape[1]) < lengths[:, None]
            logits = self(ids.to(device), valid.to(device))
            codes.append(torch.stack([finding.argmax(-1) for finding in logits], 1).cpu().numpy())
        return np.concatenate(codes)


def one_line(text, cut=0):
    """A report as CheXbert reads it; in the official order it is cut first and stripped then."""
    if cut:
        text = text[:cut]
    return text.strip().replace("\n", " ").strip()


# ---- from files ----

def load(path):
    """A CheXbert from chexbert.pth, or from a folder with it -> CheXbert, float32, on the CPU.

    InputError if the file is missing, or is anything but the tensors of a CheXbert.
    """
    path = Path(path)
    # a folder or the file itself; the tokenizer is beside it in either case
    if path.is_dir():
        path = path / "chexbert.pth"
    if not path.exists():
        raise InputError(f"there is no CheXbert at {path}; {GET}.")
    # the authors trained with DataParallel, which puts "module." in front of every name
    tensors = {name.removeprefix("module."): value for name, value in read_tensors(path).items()}
    cfg = read_config(tensors, path)
    # on the meta device a network costs no memory until `fill` gives it the tensors of the file
    with torch.device("meta"):
        model = CheXbert(cfg, load_tokenizer(path.parent, cfg))
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    fill(model, translate(shapes, tensors, CHEXBERT), path, torch.float32)
    return model


def read_config(tensors, path):
    """The sizes of a CheXbert, read off its tensors by their names in the file."""
    try:
        vocab_size, width = tensors["bert.embeddings.word_embeddings.weight"].shape
        max_text, _ = tensors["bert.embeddings.position_embeddings.weight"].shape
        n_inner, _ = tensors["bert.encoder.layer.0.intermediate.dense.weight"].shape
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is not CheXbert: its sizes cannot be read ({error}).") from None
    if width % HEAD_WIDTH:
        raise InputError(f"{path} is not CheXbert: a width of {width} is not {HEAD_WIDTH} a head.")
    # bert.encoder.layer.<number>.attention...: the numbers are counted
    layers = {name.split(".")[3] for name in tensors if name.startswith("bert.encoder.layer.")}
    return BertConfig(vocab_size, len(layers), width // HEAD_WIDTH, width, n_inner, max_text)


def load_tokenizer(folder, cfg):
    """BERT's tokenizer: a text -> [CLS], word pieces in lower case, [SEP]; cfg.max_text at most."""
    # tokenizer.json comes first: it is a whole tokenizer, vocab.txt only its words
    paths = [folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).exists()]
    if not paths:
        raise InputError(
            f"{folder} lacks vocab.txt (or tokenizer.json) of bert-base-uncased beside "
            f"chexbert.pth; {GET}.")
    path = paths[0]
    try:
        if path.suffix == ".json":
            tokenizer = Tokenizer.from_file(str(path))
        else:
            tokenizer = BertWordPieceTokenizer(str(path), lowercase=True)
    except Exception as error:          # the library raises a plain Exception for a damaged file
        raise InputError(f"{path} is no tokenizer: {error}.") from None
    # with the vocabulary of another BERT, each id would mean another word, and nothing would fail
    if tokenizer.get_vocab_size() != cfg.vocab_size:
        raise InputError(
            f"{path} has {tokenizer.get_vocab_size()} word pieces, chexbert.pth {cfg.vocab_size}; "
            "they do not belong together.")
    tokenizer.no_padding()
    tokenizer.enable_truncation(cfg.max_text)       # the end is cut, [SEP] stays
    return tokenizer


def main(argv):
    if len(argv) != 2:
        raise InputError(
            "say which weights and which reports: "
            "`python -m evaluation.chexbert pretrained/chexbert reports.txt`.")
    folder, path = argv
    reports = text_lines(path)
    if not reports:
        raise InputError(f"{path} holds no report; write one a line.")
    # codes on standard output, for the next program; what they mean on standard error
    for codes in load(folder).label(reports):
        print(",".join(str(code) for code in codes))
    print("order: " + ", ".join(LABELS), file=sys.stderr)


if __name__ == "__main__":
    cli(main, __doc__)
