"""Text to ids and back: a thin layer over `tokenizers`, which never cuts, fills up or adds itself.

A text block is [BOS] ids [EOS]. The release's inference puts two BOS before a prompt (its
tokenizer adds one, its code another), although it was trained with one; `double_bos` reproduces
that and is on only for the released weights.
"""
import math
from pathlib import Path

import numpy as np
import tokenizers
import torch


class Tokenizer:
    """`tokenizer.json` and the ids of the four special tokens, which the model's config knows.

    `json` is the text of the file as it is: checkpoints keep it, with all that is switched off.
    """

    def __init__(self, path, bos, eos, soi, eoi, double_bos=False):
        self.json = Path(path).read_text(encoding="utf-8")
        self.bpe = tokenizers.Tokenizer.from_str(self.json)
        self.bpe.encode_special_tokens = True       # a typed "<eos>" is text, not the end of it
        # a file may have been saved with habits of its own: it would cut long texts, fill up short
        # ones, or (BPE dropout) cut the same text into other tokens each time
        self.bpe.no_truncation()
        self.bpe.no_padding()
        if isinstance(self.bpe.model, tokenizers.models.BPE):
            self.bpe.model.dropout = None
        self.bos = bos
        self.eos = eos
        self.soi = soi
        self.eoi = eoi
        self.double_bos = double_bos

    @classmethod
    def with_named_ids(cls, path):
        """A tokenizer of phantom.prepare, whose special tokens are named <bos>, <eos>, <soi>,
        <eoi>."""
        bpe = tokenizers.Tokenizer.from_file(str(path))
        ids = [bpe.token_to_id(f"<{name}>") for name in ("bos", "eos", "soi", "eoi")]
        return cls(path, *ids)

    @property
    def size(self):
        return self.bpe.get_vocab_size()

    def encode(self, text):
        """Text -> ids: all of it, without special tokens."""
        return self.bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        """Ids -> text, up to the first EOS, special tokens left out."""
        ids = list(ids)
        if self.eos in ids:
            ids = ids[:ids.index(self.eos)]
        return self.bpe.decode(ids, skip_special_tokens=True).strip()

    def prompt(self, text):
        """The block of a prompt, or of a report to draw: [BOS] ids [EOS], with double_bos two
        BOS."""
        start = [self.bos, self.bos] if self.double_bos else [self.bos]
        return start + self.encode(text) + [self.eos]

    def answers(self, texts):
        """The blocks of texts to be learned: [BOS] ids [EOS], always one BOS; int32 arrays."""
        encodings = self.bpe.encode_batch(texts, add_special_tokens=False)
        blocks = [[self.bos, *encoding.ids, self.eos] for encoding in encodings]
        return [np.array(block, dtype=np.int32) for block in blocks]


def pad(rows, multiple=1, fill=0):
    """Lists of ids -> ids (B, T), valid (B, T) bool: padded on the right to the longest row.

    Its length is rounded up to a multiple, so that a compiled model sees few shapes.
    """
    longest = max(len(row) for row in rows)
    T = math.ceil(longest / multiple) * multiple
    ids = torch.full((len(rows), T), fill)
    valid = torch.zeros(len(rows), T, dtype=torch.bool)
    for i, row in enumerate(rows):
        ids[i, :len(row)] = torch.tensor(row, dtype=torch.long)
        valid[i, :len(row)] = True
    return ids, valid
