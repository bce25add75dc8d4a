"""Stage 1: learn to read. Cross-entropy on the report given the image and a prompt (paper Eq. 1, Table 1).

    torchrun --nproc_per_node=8 train_und.py       # the paper's run: from Janus-Pro-1B, data in datasets/mimic
    python train_und.py --preset phantom           # the laptop run: from nothing, data in datasets/phantom

Trains the vision tower, the connector and the understanding set; the generation set does not exist yet. The sequence
is [image block] [BOS prompt EOS] [BOS report EOS], and only the report and its EOS carry loss.
"""
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn
from tqdm import tqdm

from weights import checkpoint
from common import processes as common
from training import cost
from training import optim
from training import run as runs
import weights
from common.processes import InputError, print0
from training.batches import Packed, Samples, loader
from sample import show_written
from model import UniX, UniXConfig
from vision import ViTConfig


@dataclass
class TrainConfig(runs.RunConfig):
    # I/O
    preset: str = ""                    # a row of PRESETS below
    data: str = "datasets/mimic"        # root of the packed data sets; reads <data>/und-<image size>
    init: str = "pretrained/Janus-Pro-1B"   # weights to start from; "" starts from nothing with the sizes below
    out: str = "out/und"                # the run's directory; resumes when it holds a checkpoint
    eval_every: int = 250               # steps between validation losses
    # model, when it starts from nothing
    n_layer: int = 24                   # decoder layers
    n_head: int = 16                    # attention heads
    n_embd: int = 2048                  # width
    n_inner: int = 5632                 # width inside the MLP
    vit_layer: int = 24                 # layers of the vision tower
    vit_head: int = 16                  # its heads
    vit_embd: int = 1024                # its width
    image_size: int = 384               # pixels of its input
    repa_layer: int = 8                 # layer that stage 2 will align
    max_text: int = 512                 # tokens of one text block
    # optimizer (Table 1, stage 1)
    steps: int = 3840                   # optimizer steps in all
    batch_size: int = 256               # samples a step, over all processes and micro-steps
    micro_batch: int = 8                # samples of one forward pass of one process; this and the next two: 8 x 48 GB
    shard: bool = True                  # spread AdamW's state over the processes (ZeRO 1)
    recompute: bool = True              # forget what layers compute and compute it again going backward
    lr: float = 1e-4                    # learning rate after warm-up
    warmup: int = 80                    # steps of linear warm-up


PRESETS = {
    "phantom": dict(data="datasets/phantom", init="", out="out/phantom/und", n_layer=6, n_head=4, n_embd=192,
                    n_inner=512, vit_layer=4, vit_head=4, vit_embd=192, image_size=128, repa_layer=2, max_text=128,
                    steps=2600, batch_size=16, micro_batch=16, optimizer="muon", lr=2e-3, warmup=100, decay="cosine",
                    ema=0.995, shard=False, recompute=False),
}
VECTORS = ("embed", "lm_head", "positions", "patch")    # parameters that AdamW keeps when Muon has the matrices


class UndStep(nn.Module):
    """One micro-step: a batch -> summed cross-entropy and the number of report tokens."""

    def __init__(self, unix):
        super().__init__()
        self.unix = unix

    def forward(self, batch):
        return self.unix.reading_loss(batch.images, batch.ids, batch.valid, batch.labels), batch.tokens


def initial(cfg):
    """The model and tokenizer to start from -> (UniX without a generation set, Tokenizer)."""
    if cfg.init:
        model, _, tokenizer = weights.load(cfg.init)
        return model, tokenizer
    tokenizer = weights.load_tokenizer(cfg.data)
    try:
        vision = ViTConfig(image_size=cfg.image_size, patch_size=16, n_layer=cfg.vit_layer, n_head=cfg.vit_head,
                           n_embd=cfg.vit_embd, n_inner=4 * cfg.vit_embd, mean=(0.5,) * 3, std=(0.25,) * 3, pad=0)
        sizes = UniXConfig(n_layer=cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd, n_inner=cfg.n_inner,
                           vocab_size=tokenizer.size, bos=tokenizer.bos, eos=tokenizer.eos, soi=tokenizer.soi,
                           eoi=tokenizer.eoi, max_text=cfg.max_text, vision=vision, repa_layer=cfg.repa_layer,
                           generation=False)
    except AssertionError as error:         # sizes that do not fit each other
        raise InputError(f"{error}.") from None
    torch.manual_seed(cfg.seed)
    return UniX(sizes), tokenizer


@torch.no_grad()
def validate(step_module, samples, process, cfg, n=256):
    """Mean cross-entropy per report token on the first n validation images; all processes take part."""
    total = torch.zeros(2, dtype=torch.float64, device=process.device)
    chosen = range(process.rank, min(n, len(samples.data)), process.world)
    for start in range(0, len(chosen), cfg.micro_batch):
        batch = Samples.collate([samples[(-1, i)] for i in chosen[start:start + cfg.micro_batch]])
        with common.autocast(process.device, cfg.dtype):
            total += torch.stack(step_module(batch.to(process.device))).double()
    loss, tokens = common.all_sum(total).tolist()
    return loss / tokens


def main(argv):
    cfg = common.override(TrainConfig(), argv, __doc__, PRESETS)
    process = common.setup(cfg.device, cfg.threads, cfg.deterministic)
    runs.agree(process, cfg)
    resume = checkpoint.start(cfg.out, cfg, cfg.overwrite)

    # model: the run's own checkpoint, else given weights, else from nothing
    model, tokenizer = weights.load(resume, ema=False)[::2] if resume else initial(cfg)
    if model.cfg.generation:
        model.freeze("g")           # going on from a later stage: its generation set is carried along untouched
    image_size = model.cfg.vision.image_size
    train, val = (Samples(Packed(cfg.data, "und", image_size, split), tokenizer, model.cfg.max_text, cfg.seed,
                          cfg.batch_size) for split in ("train", "val"))
    model.recompute = cfg.recompute
    step_module = UndStep(model.to(process.device).train())
    step_cost = cost.Step("u", und=cfg.micro_batch, text=train.longest("prompt", "report"), answer=train.longest("report"),
                          **cost.of_run(cfg, process))
    print0(cost.describe_memory(model.cfg, step_cost))
    optimizers = optim.optimizers(step_module, cfg, VECTORS, cfg.shard)
    ema = optim.EMA(model, cfg.ema)
    step, skips = optim.resume(resume, optimizers, ema) if resume else (0, 0)
    skipped, stop = runs.Skipped(cfg.max_skipped, skips), runs.Stop()
    wrapped = common.wrap(step_module, process, cfg.compile)
    if process.master:
        checkpoint.tidy(cfg.out, anew=resume is None)
        log = runs.Log(Path(cfg.out) / "log.jsonl", step, cfg.boards, asdict(cfg))

    def save():
        state = optim.state(optimizers, ema, skipped.in_a_row)         # all processes: gathers the shards
        if process.master:
            config = {**weights.describe(model), "stage": 1, "settings": asdict(cfg)}
            checkpoint.save(cfg.out, step, cfg.keep, cfg.keep_every, config=config, tokenizer=tokenizer.json,
                            tensors={"model": weights.model_tensors(model), "ema": ema.shadow}, state=state)

    # the loop: `micro` forward and backward passes make one step
    micro = cfg.batch_size // (cfg.micro_batch * process.world)
    batches = loader(train, process, cfg.micro_batch, step, cfg.steps, cfg.workers)
    bar = tqdm(total=cfg.steps, initial=step, desc="stage 1", unit="step", disable=not process.master)
    meter = runs.Meter(cost.peak_flops(process.device, cfg.dtype), process.world)
    while step < cfg.steps and not stop.now:
        lr = optim.lr_at(step, cfg.lr, cfg.warmup, cfg.steps, cfg.decay)
        parts = meter.fetch(batches, micro)
        # the sum over tokens is divided by the report tokens of the whole step, on all processes and micro-steps
        tokens = common.all_sum(sum(batch.tokens for batch in parts).to(process.device))
        losses = []
        for i, batch in enumerate(parts):
            wrapped.require_backward_grad_sync = i == micro - 1     # DDP exchanges gradients in the last micro-step
            with common.autocast(process.device, cfg.dtype):
                loss, _ = wrapped(batch.to(process.device))
            (loss * process.world / tokens).backward()             # DDP averages over processes
            losses.append(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(model.parameters(), cfg.clip))
        step += 1
        for batch in parts:
            meter.counts.update(cost.counted(model.cfg, step_cost, und=batch))
        if bad := skipped.bad(norm, losses, lambda i: train.ids(parts[i])):
            optim.forget(optimizers)
        else:
            optim.step_all(optimizers, lr)
            ema.update()
        bar.update()

        if step % cfg.log_every == 0 or step == cfg.steps or bad:
            loss = float(common.all_sum(sum(losses))) / int(tokens)
            rates = meter.rates()
            bar.set_postfix(loss=f"{loss:.4f}", img_s=f"{rates['img_s']:.0f}")
            if process.master:
                log.write(step=step, loss=loss, lr=lr, norm=norm, **rates, **bad)
        saving = stop.agree(process.device) or step % cfg.save_every == 0 or step == cfg.steps
        with meter.paused():
            if step % cfg.eval_every == 0 or step == cfg.steps:
                with ema.swapped():
                    val_loss = validate(step_module, val, process, cfg)
                if process.master:
                    log.write(step=step, val_loss=val_loss)
                    bar.write(f"step {step}: validation loss {val_loss:.4f}")
            if process.master and cfg.sample_every and step % cfg.sample_every == 0:
                with ema.swapped(), common.autocast(process.device, cfg.dtype):
                    show_written(model, tokenizer, val.data, Path(cfg.out) / "samples" / f"{step:08d}.txt")
            if saving:
                save()
    bar.close(), stop.release()
    print0(f"stage 1 is in {cfg.out}: {step} of {cfg.steps} steps")


if __name__ == "__main__":
    common.cli(main)
