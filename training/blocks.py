"""A sample of each kind, block by block: what `python model.py` prints."""
import torch

from model import UniX


def describe(cfg):
    """Print a sample of each kind block by block: tokens, positions, branch, who sees whom."""
    n, size = cfg.vision.grid ** 2, cfg.max_latent_size
    # a block: its name, tokens by branch, how many positions it takes, and what it sees of itself
    image = ("image", {"u": f"SOI, {n} vision tokens, EOI"}, 1, "all")
    prompt = ("prompt", {"u": "BOS, 4 ids, EOS"}, 6, "causal")
    report = ("report", {"u": "BOS, 6 ids, EOS"}, 8, "causal")
    noisy = ("noisy", {"u": "SOI, EOI", "g": f"{size ** 2} latents ({size} x {size})"}, 1, "all")
    samples = {
        "image -> report: cross-entropy of the report (stage 1)": [image, prompt, report],
        "report -> image: squared error of the velocity (stages 2 and 3)": [report, noisy],
        "no report: the unconditional half of guidance": [noisy],
    }

    def line(*cells):
        widths = (8, 29, 10, 8, 7, 7, 7)
        print("  " + "".join(f"{cell:{width}}" for cell, width in zip(cells, widths)).rstrip())

    print("A sample is a list of blocks. The last columns say what a block sees of each:")
    print("all tokens, none (-), or of its own those up to each token (causal).")
    for title, blocks in samples.items():
        print(f"\n{title}")
        line("block", "tokens", "position", "branch", *[block[0] for block in blocks])
        start = 0
        for i, (name, streams, length, inside) in enumerate(blocks):
            position = f"{start}..{start + length - 1}" if length > 1 else f"{start}"
            sees = ["all"] * i + [inside] + ["-"] * (len(blocks) - i - 1)
            for branch, tokens in streams.items():
                line(name, tokens, position, branch, *sees)
            start += length

    with torch.device("meta"):          # shapes without memory
        model = UniX(cfg)
    print(f"\nunderstanding set: {sum(p.numel() for p in model.u_parameters()):,} parameters")
    print(f"generation set:    {sum(p.numel() for p in model.g_parameters()):,} parameters")
