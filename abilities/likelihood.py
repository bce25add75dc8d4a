"""How likely a report is under the model's own reader, token by token.

    scores = token_scores(model, tokenizer, images, reports)        # with the pictures
    scores = token_scores(model, tokenizer, None, reports)          # without any

The report is given, not written: one forward pass says for every token of it how likely it was
after the picture, the prompt and the tokens before (teacher forcing, as in stage 1's loss).
"""
from typing import NamedTuple

import torch

from sample import PROMPT
from tokenizer import pad
from vision import normalize


class TokenScores(NamedTuple):
    """Natural logarithms of the probabilities of a report's tokens, the EOS at the end included."""
    ids: list                       # T token ids
    log_p: torch.Tensor             # (T,) float32, on the CPU

    @property
    def total(self):
        """Log-likelihood of the whole report, in nats."""
        return float(self.log_p.sum())

    @property
    def least(self):
        """Of the least likely token, in nats; the end of the report is none."""
        return float(self.log_p[:-1].min())

    @property
    def mean(self):
        """Log-likelihood a token, in nats: reports of different lengths compare."""
        return float(self.log_p.mean())


@torch.inference_mode()
def token_scores(model, tokenizer, images, reports, prompt=PROMPT, batch=16):
    """[TokenScores] of N reports. images (N, S, S) uint8, `vision.preprocess`ed to the tower's
    size; None: nothing but the prompt stands before the report.

    A score depends on its own picture and report; with another batch its last digits may differ.
    """
    device, dtype = model.embed.weight.device, model.embed.weight.dtype
    prompt_ids = torch.tensor(tokenizer.prompt(prompt), device=device)
    blocks = [block.tolist() for block in tokenizer.answers(list(reports))]

    scores = []
    for start in range(0, len(blocks), batch):
        some = blocks[start:start + batch]
        B = len(some)

        # the image block, if there is one, and the prompt on top of it
        cache = None
        if images is not None:
            grey = torch.as_tensor(images[start:start + batch]).to(device)          # (B, S, S)
            pixels = normalize(grey[:, None].float() / 255, model.cfg.vision)       # (B, 3, S, S)
            _, cache = model.prefill_image(pixels.to(dtype))
        _, cache = model.prefill_text(prompt_ids.expand(B, -1), cache=cache)

        # the reports: the state at each token foretells the next one
        ids, valid = pad(some)
        hidden, _ = model.prefill_text(ids.to(device), valid.to(device), cache)     # (B, T, C)
        logits = model.logits(hidden[:, :-1]).float()                               # (B, T-1, V)
        following = ids[:, 1:, None].to(device)
        log_p = logits.log_softmax(-1).gather(2, following)[..., 0].cpu()           # (B, T-1)
        for block, row in zip(some, log_p):
            length = len(block) - 1
            scores.append(TokenScores(block[1:], row[:length].clone()))
    return scores
