"""CheXbert: 14 findings of a radiology report, each blank, positive, negative or uncertain (Smit et al. 2020).

A BERT-base with 14 linear heads on the first token, from the authors' `chexbert.pth`, in plain torch: the packages that wrap it
are broken on current versions. Loading is strict, and by the table in `weights/layouts.py`.

    labeller = chexbert.load("pretrained/chexbert")         # chexbert.pth, and vocab.txt or tokenizer.json of bert-base-uncased
    labeller.label(["Small left effusion. No pneumothorax."])           # -> (1, 14) codes, text_metrics.LABELS says which
    python -m evaluation.chexbert pretrained/chexbert reports.txt       # a line of codes for each line of the file
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
from tqdm import tqdm

from common import processes as common
from common.processes import InputError
from common.images import text_lines
from weights.files import fill, read_tensors, translate
from weights.layouts import CHEXBERT
from evaluation.text_metrics import LABELS

CUT = 512               # characters: what the official evaluation keeps of a report; CheXbert itself cuts after 512 tokens
GET = ("hf download StanfordAIMI/RRG_scorers chexbert.pth --local-dir pretrained/chexbert, and hf download bert-base-uncased "
       "vocab.txt --local-dir pretrained/chexbert")


@dataclass
class BertConfig:
    vocab_size: int = 30522
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_inner: int = 3072
    max_text: int = 512
    norm_eps: float = 1e-12


class BertBlock(nn.Module):
    """Post-norm: attention, add, norm; MLP, add, norm."""

    def __init__(self, cfg):
        super().__init__()
        self.n_head = cfg.n_head
        self.qkv, self.proj = nn.Linear(cfg.n_embd, 3 * cfg.n_embd), nn.Linear(cfg.n_embd, cfg.n_embd)
        self.fc1, self.fc2 = nn.Linear(cfg.n_embd, cfg.n_inner), nn.Linear(cfg.n_inner, cfg.n_embd)
        self.norm1, self.norm2 = (nn.LayerNorm(cfg.n_embd, cfg.norm_eps) for _ in range(2))

    def forward(self, x, mask):
        B, T, C = x.shape
        q, k, v = self.qkv(x).view(B, T, 3, self.n_head, -1).permute(2, 0, 3, 1, 4)               # (B, H, T, C/H)
        y = F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).reshape(B, T, C)
        x = self.norm1(x + self.proj(y))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class CheXbert(nn.Module):
    """Token numbers (B, T), valid (B, T) -> logits, a list of 14: (B, 4), and (B, 2) of No Finding."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg, self.tokenizer = cfg, None
        self.words, self.positions = nn.Embedding(cfg.vocab_size, cfg.n_embd), nn.Embedding(cfg.max_text, cfg.n_embd)
        self.types, self.norm = nn.Embedding(2, cfg.n_embd), nn.LayerNorm(cfg.n_embd, cfg.norm_eps)
        self.blocks = nn.ModuleList(BertBlock(cfg) for _ in range(cfg.n_layer))
        self.heads = nn.ModuleList(nn.Linear(cfg.n_embd, 4 if name != "no_finding" else 2) for name in LABELS)

    def forward(self, ids, valid):
        x = self.norm(self.words(ids) + self.positions.weight[:ids.shape[1]] + self.types.weight[0])       # (B, T, C)
        for block in self.blocks:
            x = block(x, valid[:, None, None])
        return [head(x[:, 0]) for head in self.heads]

    @torch.inference_mode()
    def label(self, reports, cut=0, batch=32, progress=True):
        """Codes (N, 14): 0 blank, 1 positive, 2 negative, 3 uncertain; of No Finding 0 no, 1 yes. cut: keep so many characters
        (CUT is the official evaluation's); 0 cuts after 512 tokens alone, as CheXbert's own labeller."""
        device, rows = self.words.weight.device, []
        for at in tqdm(range(0, len(reports), batch), desc="CheXbert", unit="batch", disable=not progress, leave=False):
            texts = [prepare(text, cut) for text in reports[at:at + batch]]
            coded = [self.tokenizer.encode(text).ids for text in texts]
            coded = [ids if len(ids) <= self.cfg.max_text else ids[:self.cfg.max_text - 1] + ids[-1:] for ids in coded]
            longest = max(map(len, coded))
            ids = torch.tensor([row + [0] * (longest - len(row)) for row in coded], device=device)
            valid = torch.tensor([[True] * len(row) + [False] * (longest - len(row)) for row in coded], device=device)
            rows.append(torch.stack([logits.argmax(-1) for logits in self(ids, valid)], 1).cpu().numpy())
        return np.concatenate(rows)


def prepare(text, cut=0):
    """The official order: cut, strip, newlines to blanks, strip; runs of blanks stay (BERT's tokenizer ignores them)."""
    return (text[:cut] if cut else text).strip().replace("\n", " ").strip()


def load(path, heads=0):
    """A CheXbert from chexbert.pth or a folder that holds it, with the tokenizer beside it. heads: of attention, where they are
    not 64 wide (tests)."""
    path = Path(path)
    path = path / "chexbert.pth" if path.is_dir() else path
    if not path.exists():
        raise InputError(f"there is no CheXbert at {path}; {GET}.")
    source = {name.removeprefix("module."): tensor for name, tensor in read_tensors(path).items()}
    try:
        vocab, width = source["bert.embeddings.word_embeddings.weight"].shape
        n_layer = next(i for i in range(100) if f"bert.encoder.layer.{i}.output.dense.weight" not in source)
        cfg = BertConfig(vocab, n_layer, heads or max(1, width // 64), width,
                         source["bert.encoder.layer.0.intermediate.dense.weight"].shape[0],
                         source["bert.embeddings.position_embeddings.weight"].shape[0])
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(f"{path} is not {CHEXBERT.title}: its sizes cannot be read ({error}).") from None
    with torch.device("meta"):
        model = CheXbert(cfg)
    fill(model, translate({k: v.shape for k, v in model.state_dict().items()}, source, CHEXBERT), path, torch.float32)
    model.tokenizer = tokenizer(path.parent, cfg)
    return model


def tokenizer(folder, cfg):
    """BERT's uncased word pieces, [CLS] … [SEP]."""
    path = next((folder / name for name in ("tokenizer.json", "vocab.txt") if (folder / name).exists()), None)
    if path is None:
        raise InputError(f"{folder} lacks vocab.txt (or tokenizer.json) of bert-base-uncased beside chexbert.pth; {GET}.")
    try:
        pieces = Tokenizer.from_file(str(path)) if path.suffix == ".json" else BertWordPieceTokenizer(str(path), lowercase=True)
    except Exception as error:          # what the library raises for a damaged file is a plain Exception
        raise InputError(f"{path} is no tokenizer: {error}.") from None
    pieces.no_truncation()
    pieces.no_padding()
    if pieces.get_vocab_size() != cfg.vocab_size:
        raise InputError(f"{path} has {pieces.get_vocab_size()} word pieces, chexbert.pth {cfg.vocab_size}; they do not belong "
                         "together.")
    return pieces


def main(argv):
    if len(argv) != 2:
        raise InputError("say which weights and which reports: `python -m evaluation.chexbert pretrained/chexbert reports.txt`.")
    reports = text_lines(argv[1])
    if not reports:
        raise InputError(f"{argv[1]} holds no report; write one a line.")
    for row in load(argv[0]).label(reports):
        print(",".join(map(str, row)))
    print("order: " + ", ".join(LABELS), file=sys.stderr)


if __name__ == "__main__":
    common.cli(main)
