"""Stage 1: learn to read. Cross-entropy on the report given the image (paper Eq. 1, Table 1).

    torchrun --nproc_per_node=8 train_und.py       # the paper's run: from Janus-Pro-1B
    python train_und.py --preset phantom           # the laptop run: from nothing

Trains the vision tower, the connector and the understanding set; the generation set does not exist
yet. The sequence is [image block] [BOS prompt EOS] [BOS report EOS], and only the report and its
EOS carry loss.

The paper's run reads datasets/mimic and pretrained/Janus-Pro-1B, the laptop run datasets/phantom;
both write checkpoints and log.jsonl to out/. Started again, the same command goes on where it was.
"""
from dataclasses import dataclass

import torch
import torch.nn as nn

import weights
from common.cli import InputError, cli, override
from common.packed import Packed
from common.processes import all_sum, widest_float
from model import UniX, UniXConfig
from training import cost, lora, memory
from training.batches import Samples
from training.one_gpu import fitted
from training.run import Run, UniXRunConfig
from training.show import show_written
from vision import ViTConfig, normalize
from weights.knowledge import learned


@dataclass
class TrainConfig(UniXRunConfig):
    # files
    preset: str = ""                    # "phantom" for a laptop, "one-gpu" for data of your own
    data: str = "datasets/mimic"        # root of the packed data sets; reads <data>/und-<size>
    init: str = "pretrained/Janus-Pro-1B"   # weights to start from; "" starts from nothing
    out: str = "out/und"                # the run's directory; resumes when it holds a checkpoint
    eval_every: int = 250               # steps between validation losses; 0: none
    # model, when it starts from nothing
    n_layer: int = 24                   # decoder layers
    n_head: int = 16                    # attention heads
    n_embd: int = 2048                  # width
    n_inner: int = 5632                 # width inside the MLP
    vit_layer: int = 24                 # layers of the vision tower
    vit_head: int = 16                  # attention heads of the vision tower
    vit_embd: int = 1024                # width of the vision tower
    image_size: int = 384               # pixels a side of the images that it reads
    repa_layer: int = 8                 # layer that stage 2 aligns with an image encoder (REPA)
    max_text: int = 512                 # tokens of one text block
    # optimizer (Table 1, stage 1)
    steps: int = 3840                   # optimizer steps in all; 0: from the number of images
    batch_size: int = 256               # samples a step, a multiple of ranks x --micro-batch; or 0
    micro_batch: int = 4                # of a forward pass; 4 fit 8 GPUs of 48 GB, 8 fit 80 GB
    shard: bool = True                  # spread optimizer and average over the ranks (ZeRO 1)
    lr: float = 1e-4                    # learning rate after warm-up
    warmup: int = 80                    # steps of linear warm-up


PRESETS = {
    "phantom": dict(
        data="datasets/phantom", init="", out="out/phantom/und",
        n_layer=6, n_head=4, n_embd=192, n_inner=512, repa_layer=2, max_text=128,
        vit_layer=4, vit_head=4, vit_embd=192, image_size=128,
        steps=2600, batch_size=16, micro_batch=16, shard=False,
        optimizer="muon", lr=2e-3, warmup=100, decay="cosine", ema=0.995),
    # adapters on the released UniX with 24 GB; batch and steps by the number of images
    "one-gpu": dict(
        data="datasets/mine", init="pretrained/UniX", out="out/mine-und", lora=16, shard=False,
        steps=0, batch_size=0, micro_batch=4, lr=2e-4, warmup=20, decay="cosine", ema=0.0,
        eval_every=50, save_every=100),
}

# matrices that AdamW keeps when Muon has the others: Muon would mix their rows, which belong to
# single tokens or positions
ADAMW_ONLY = ("embed", "lm_head", "positions", "patch")


class UndStep(nn.Module):
    """One micro-step of reading: a batch -> summed cross-entropy of its report tokens."""

    def __init__(self, unix):
        super().__init__()
        self.unix = unix
        self.blocks = [*unix.layers, *unix.vision.blocks]       # what is compiled, one by one

    def forward(self, batch):
        # the image block, then prompt and report on top of its cache
        pixels = normalize(batch.images.float() / 255, self.unix.cfg.vision)        # (B, 3, S, S)
        _, cache = self.unix.prefill_image(pixels)
        hidden, _ = self.unix.prefill_text(batch.ids, batch.valid, cache)           # (B, T, C)

        # a label is the next token; outside the report there is none, and no logits are computed
        hidden, labels = (x.flatten(0, 1)[batch.answers] for x in (hidden, batch.labels))
        return self.unix.report_loss(hidden, labels).sum()


# ---- what the loop starts from ----

def initial(cfg):
    """Given weights, or a network from nothing -> (UniX without a generation set, Tokenizer)."""
    if cfg.init:
        model, _, tokenizer = weights.load(cfg.init)
        return model, tokenizer
    tokenizer = weights.load_tokenizer(cfg.data)
    try:
        vision = ViTConfig(
            image_size=cfg.image_size, patch_size=16, n_layer=cfg.vit_layer, n_head=cfg.vit_head,
            n_embd=cfg.vit_embd, n_inner=4 * cfg.vit_embd, mean=(0.5,) * 3, std=(0.25,) * 3, pad=0)
        sizes = UniXConfig(
            n_layer=cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd, n_inner=cfg.n_inner,
            vocab_size=tokenizer.size, bos=tokenizer.bos, eos=tokenizer.eos,
            soi=tokenizer.soi, eoi=tokenizer.eoi, max_text=cfg.max_text,
            vision=vision, repa_layer=cfg.repa_layer, generation=False)
    except AssertionError as error:         # sizes that do not fit each other
        raise InputError(f"{error}.") from None
    torch.manual_seed(cfg.seed)
    return UniX(sizes), tokenizer


def samples(cfg, model, tokenizer, split):
    """The training or validation set, encoded for this model."""
    data = Packed(cfg.data, "und", model.cfg.vision.image_size, split)
    return Samples(data, tokenizer, model.cfg.max_text, cfg.seed, cfg.batch_size)


@torch.no_grad()
def validate(run, module, val, n=256):
    """Mean cross-entropy per report token on the first n validation images, over all processes."""
    # cross-entropy, tokens
    total = torch.zeros(2, dtype=widest_float(run.device), device=run.device)
    for batch in run.validation_batches(val, n):
        with run.autocast():
            loss = module(batch)
        total[0] += loss
        total[1] += len(batch.answers)
    loss, tokens = all_sum(total).tolist()
    return loss / tokens


# ---- the run ----

def main(argv):
    cfg = fitted(override(TrainConfig(), argv, __doc__, PRESETS), "und")
    run = Run(cfg, stage=1)                         # finds the checkpoint to go on from

    # model: this run's own checkpoint, else given weights, else from nothing
    if run.resume:
        model, _, tokenizer = weights.load(run.resume, ema=False, merge=False)
    else:
        model, tokenizer = initial(cfg)
    if model.cfg.generation:
        model.freeze("g")       # weights of a later stage: its generation set is kept and saved
    adapted = lora.adapt(model, run, "u") if cfg.lora else {}
    model.recompute = cfg.recompute
    module = UndStep(model).to(run.device).train()

    # data: one permutation an epoch; every process takes its share of each batch
    train = samples(cfg, model, tokenizer, "train")
    val = samples(cfg, model, tokenizer, "val")
    model.about = learned(model.about, train.data, tokenizer)           # what it knows
    step_cost = cost.Step(
        "u", und=cfg.micro_batch, text=train.longest("prompt", "report"),
        answer=train.longest("report"), **cost.of_run(cfg, run.process))
    memory.tell(model.cfg, step_cost)

    # what is frozen is known now: optimizer and average first, DDP last
    run.prepare(module, average_of=model, adamw_only=ADAMW_ONLY)

    for batches in run.steps(train):                # the micro-batches of one step
        # report tokens of the whole step, on all processes: every token weighs the same
        tokens = run.total(sum(len(batch.answers) for batch in batches))
        losses = []
        for i, batch in enumerate(batches):
            run.exchange_gradients(i == len(batches) - 1)
            with run.autocast():
                loss = run.module(batch.to(run.device))
            (loss * run.world / tokens).backward()  # DDP averages over processes; we want the sum
            losses.append(loss.detach())
            run.count(**cost.counted(model.cfg, step_cost, und=batch))
        run.update(losses, [train.ids(batch) for batch in batches])

        # what happens between steps
        if run.logging:
            run.log(loss=float(all_sum(sum(losses))) / int(tokens))     # CPU-GPU sync
        if run.every(cfg.eval_every):
            with run.average():
                run.log_validation(val_loss=validate(run, module, val))
        if run.sampling:
            with run.average(), run.autocast():
                if run.master:
                    show_written(model, tokenizer, val.data, run.sheet)
        if run.saving:
            tensors = {"model": weights.model_tensors(model)}
            if cfg.lora:
                tensors = {"adapters": lora.trained(model)}     # the rest is the base's
            run.save({**weights.describe(model), **adapted}, tensors, tokenizer.json)
    run.close()


if __name__ == "__main__":
    cli(main)
