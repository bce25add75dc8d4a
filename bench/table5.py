"""Table 5: reading and drawing trained together, in five proportions of data.

    torchrun --nproc_per_node=8 -m bench.table5 --preset table5-1:2     # after stage 2
    python -m bench.table5 --preset phantom-table5-1:2                  # a laptop's, after demo.sh

Rows are named by understanding : generation samples. Every step has a batch to draw and, on top, a
share of it to read, both in every micro-step; the loss is the squared error plus the cross-entropy.
All rows but 0:1-frozen train the understanding set too, and gradients then pass from the latents
through the text.

The paper gives the proportions and the 2,000 steps. It does not say from which weights, at which
size, or with which weights of the two losses: here from stage 2, at its size, both with weight 1,
without REPA.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn as nn

import train_gen
import weights
from common.cli import InputError, cli, override
from common.packed import Packed
from common.platforms import safe_name
from common.processes import all_sum, print0
from mimic.leaks import refuse_leak
from train_gen import GenStep
from train_und import UndStep
from training import cost, frozen, latents, memory
from training.batches import Samples
from training.run import Run
from training.show import show_drawn


@dataclass
class Table5Config(train_gen.TrainConfig):
    preset: str = ""                    # a row of PRESETS below; there is no run without one
    train_u: bool = True                # train the understanding set too
    und_share: float = 1.0              # samples to read a step, as a share of the batch to draw
    init: str = "out/gen256"            # weights to start from: stage 2's
    vae: str = ""                       # a VAE run or a kl-f16; "" takes the one that --init holds
    out: str = "out/table5"             # the run's directory; resumes when it holds a checkpoint
    repa: float = 0.0                   # Table 5 is without REPA
    steps: int = 2000                   # optimizer steps in all
    warmup: int = 0                     # steps of linear warm-up
    micro_batch: int = 4                # samples to draw of a forward pass; 4 fit 8 GPUs of 80 GB

    FROM_DATA = ()                      # every row is as long as the paper's

    def __post_init__(self):
        super().__post_init__()
        assert self.stage == 2, "Table 5 trains at the size of stage 2; choose another with --size."
        assert self.repa == 0, "Table 5 is trained without REPA: --repa must be 0."
        assert self.lora == 0, "Table 5 trains weights, no adapters: leave out --lora."
        assert self.und_share >= 0, f"--und-share {self.und_share:g} must be 0 or more."
        assert self.train_u or not self.und_share, (
            "--und-share trains the understanding set: it needs --train-u.")
        assert self.und_share * self.micro_batch % 1 == 0, (
            f"--und-share {self.und_share:g} of a micro-batch of {self.micro_batch} is no whole "
            "number of samples.")

    @property
    def micro_batch_und(self):
        """Samples to read of a forward pass."""
        return round(self.micro_batch * self.und_share)


# understanding : generation -> is the understanding set trained, samples to read for one to draw
ROWS = {
    "0:1-frozen": (False, 0.0), "1:1": (True, 1.0), "1:2": (True, 0.5), "1:4": (True, 0.25),
    "0:1": (True, 0.0),
}
PRESETS = {}
for name, (train_u, und_share) in ROWS.items():
    row = dict(train_u=train_u, und_share=und_share, repa=0.0, vae="", warmup=0)
    directory = safe_name(f"table5-{name}")
    PRESETS[f"table5-{name}"] = dict(row, out=f"out/{directory}")
    PRESETS[f"phantom-table5-{name}"] = {
        **train_gen.PHANTOM, **row, "init": "out/phantom/gen64", "size": 64, "steps": 500,
        "lr": 1e-3, "decay": "constant", "out": f"out/phantom/{directory}"}


class JointStep(nn.Module):
    """One micro-step: a batch to draw and perhaps one to read, over one UniX.

    -> squared error (B,) an image, summed cross-entropy of the report tokens that are read.
    """

    def __init__(self, unix, vae, cfg):
        super().__init__()
        self.draw = GenStep(unix, vae, None, None, cfg)
        self.read = UndStep(unix)
        self.blocks = self.read.blocks          # the layers among them

    def forward(self, to_draw, to_read=None):
        mse, _ = self.draw(to_draw)
        if to_read is None:
            return mse, mse.new_zeros(())
        return mse, self.read(to_read)


def freeze(cfg, model):
    """Freeze what a row does not train, and what no gradient would reach.

    Where nothing is read, nothing flows from the text to the latents but keys and values. So no
    gradient reaches vision tower, connector and head, nor what follows the attention of the last
    layer. DDP would wait for these gradients and Muon would miss them, so the parameters are named
    and left out.
    """
    if not cfg.train_u:
        model.freeze("u")
        return
    if cfg.und_share:
        return
    last = f"layers.{model.cfg.n_layer - 1}.u."
    silent = ("vision.", "connector.", "norm_u.", "lm_head.",
              last + "heads.o.", last + "norm2.", last + "mlp.")
    names = [name for name, _ in model.named_parameters() if name.startswith(silent)]
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    print0(f"without a gradient, so not trained: {', '.join(names)}")


def samples_to_read(cfg, model, tokenizer):
    """The reading task's training set, or None for a row that reads nothing."""
    if not cfg.und_share:
        return None
    size = model.cfg.vision.image_size
    refuse_leak(cfg.data, size, cfg.size)
    data = Packed(cfg.data, "und", size, "train")
    batch_size = round(cfg.batch_size * cfg.und_share)
    return Samples(data, tokenizer, model.cfg.max_text, cfg.seed, batch_size)


def cost_of_step(run, module, train, und):
    """What a micro-step computes and keeps, see training/cost.py."""
    cfg = run.cfg
    step = train_gen.cost_of_step(run, module.draw, train)
    if cfg.train_u:
        step = replace(step, trains="ug")
    if und is None:
        return step
    return replace(step, und=cfg.micro_batch_und, text=und.longest("prompt", "report"),
                   answer=und.longest("report"))


def steps(run, train, und):
    """The micro-batches of every step as a list of pairs: one to draw, one to read or None."""
    if und is not None:
        reading = run.micro_batches(und, run.cfg.micro_batch_und)
    for to_draw in run.steps(train):
        to_read = [None] * len(to_draw) if und is None else next(reading)
        yield list(zip(to_draw, to_read, strict=True))


def main(argv):
    cfg = override(Table5Config(), argv, __doc__, PRESETS)
    if not cfg.preset:
        raise InputError("choose a row of Table 5: --preset table5-1:2; --help lists them all.")
    run = Run(cfg, cfg.stage)                       # finds the checkpoint to go on from

    # networks: this run's own checkpoint, else stage 2's
    if run.resume:
        model, vae, tokenizer = weights.load(run.resume, ema=False)
    else:
        model, vae, tokenizer = train_gen.initial(cfg)
    freeze(cfg, model)
    model.recompute = cfg.recompute
    module = JointStep(model, vae, cfg).train()
    originals = frozen.to_device(module.draw, run)  # reading uses the same model

    # data of both tasks
    train = train_gen.samples(cfg, model, vae, tokenizer, "train")
    val = train_gen.samples(cfg, model, vae, tokenizer, "val")
    und = samples_to_read(cfg, model, tokenizer)
    step_cost = cost_of_step(run, module, train, und)
    latents.advise(cfg, step_cost.stored)
    memory.tell(model.cfg, step_cost)
    run.prepare(module, average_of=model, adamw_only=train_gen.ADAMW_ONLY)

    for pairs in steps(run, train, und):            # the micro-batches of one step
        # report tokens of the whole step, on all processes: every token weighs the same
        tokens = 1
        if und is not None:
            tokens = run.total(sum(len(to_read.answers) for _, to_read in pairs))
        losses, names = [], []
        for i, (to_draw, to_read) in enumerate(pairs):
            run.exchange_gradients(i == len(pairs) - 1)
            on_device = [batch.to(run.device) for batch in (to_draw, to_read) if batch is not None]
            with run.autocast():
                mse, ce = run.module(*on_device)
            loss = mse.sum() / cfg.batch_size + ce / tokens
            (loss * run.world).backward()           # DDP averages over processes; we want the sum
            losses.append(torch.stack([mse.sum(), ce]).detach())
            names.append(train.ids(to_draw) + (und.ids(to_read) if und is not None else []))
            run.count(**cost.counted(model.cfg, step_cost, to_draw, to_read))
        run.update(losses, names)

        # what happens between steps
        if run.logging:
            mse, ce = all_sum(sum(losses)).tolist()         # CPU-GPU sync
            of_reading = {} if und is None else {"ce": ce / int(tokens)}
            run.log(mse=mse / cfg.batch_size, **of_reading)
        if run.every(cfg.eval_every):
            with run.average():
                mse, mse_by_t = train_gen.validate(run, module, val)
            run.log_validation(val_mse=mse, val_mse_bins=mse_by_t)
        if run.sampling:
            with run.average(), run.autocast():
                if run.master:
                    show_drawn(model, vae, tokenizer, val.data, run.sheet)
        if run.saving:
            tensors = {"model": weights.model_tensors(model) | originals, "vae": vae.state_dict()}
            run.save(weights.describe(model, vae), tensors, tokenizer.json)
    run.close()


if __name__ == "__main__":
    cli(main)
