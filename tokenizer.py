"""Text to ids and back: a thin layer over `tokenizers`. BOS and EOS are placed by us, never by the tokenizer.

A text block is [BOS] ids [EOS]. The release's inference puts two BOS before a prompt (its tokenizer adds one, its code
another) although it was trained with one; `double_bos` reproduces that and is on only for the released weights.
"""
from pathlib import Path

import numpy as np
import tokenizers
import torch


class Tokenizer:
    """`tokenizer.json` with the ids of the four special tokens, which belong to the model's configuration."""

    def __init__(self, path, bos, eos, soi, eoi, double_bos=False):
        self.json = Path(path).read_text(encoding="utf-8")
        self.bpe = tokenizers.Tokenizer.from_str(self.json)
        self.bpe.encode_special_tokens = True       # a typed "<eos>" is text, not the end of it
        self.bos, self.eos, self.soi, self.eoi, self.double_bos = bos, eos, soi, eoi, double_bos

    @classmethod
    def with_named_ids(cls, path):
        """A tokenizer of our own, whose special tokens are called <bos>, <eos>, <soi>, <eoi>."""
        bpe = tokenizers.Tokenizer.from_file(str(path))
        return cls(path, *(bpe.token_to_id(f"<{name}>") for name in ("bos", "eos", "soi", "eoi")))

    @property
    def size(self):
        return self.bpe.get_vocab_size()

    def encode(self, text):
        """Text -> ids, without special tokens."""
        return self.bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        """Ids -> text, up to the first EOS, special tokens left out."""
        ids = list(ids)
        ids = ids[:ids.index(self.eos)] if self.eos in ids else ids
        return self.bpe.decode(ids, skip_special_tokens=True).strip()

    def prompt(self, text):
        """The block of a prompt or of a report to draw: [BOS] ids [EOS], with the release's second BOS if asked."""
        return [self.bos] * (1 + self.double_bos) + self.encode(text) + [self.eos]

    def answers(self, texts):
        """The blocks of texts to be learned: [BOS] ids [EOS], int32 arrays."""
        found = self.bpe.encode_batch(texts, add_special_tokens=False)
        return [np.array([self.bos, *one.ids, self.eos], dtype=np.int32) for one in found]


def pad(rows, multiple=1, fill=0):
    """Lists of ids -> ids (B, T), valid (B, T) bool; padded on the right to a multiple of tokens (few shapes)."""
    T = -(-max(map(len, rows)) // multiple) * multiple
    ids, valid = torch.full((len(rows), T), fill), torch.zeros(len(rows), T, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, :len(row)], valid[i, :len(row)] = torch.tensor(row, dtype=torch.long), True
    return ids, valid
