"""A training run and what may happen to it. The loops that learn are in the train scripts.

    run = Run(cfg, stage=1)                 # joins the other processes; finds what to go on from
    run.prepare(module, average_of=model)   # optimizer, average, DDP, log: in that order
    for batches in run.steps(train):        # the micro-batches of one step
        ...                                 # forward and backward of each
        run.update(losses, names)           # clip, learning rate, optimizer, average
        if run.every(cfg.log_every):
            run.log(loss=...)
        if run.saving:
            run.save(...)
    run.close()

`Run` contains no training loop, takes no callbacks, and knows no model. A run resumes by itself
when its directory holds a checkpoint of the same settings, and goes on bit for bit as if nothing
had happened: everything random depends on (seed, step, index in the batch) alone.
"""
import math
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from common import locks, processes
from common.cli import InputError, differences, option, until_the_end
from common.processes import all_sum, gather, on_first, print0
from training import optim
from training.batches import Samples, loader, refuse_uneven, repetition
from training.compiled import compile_blocks
from training.log import Log, Meter, open_boards, refuse_missing_boards
from training.peak import peak_to_log
from training.resume import begun_with, checkpoint_to_resume, optimizer_state, restore, tidy
from training.saving import Saver
from training.stop import Stop
from weights import checkpoint


@dataclass
class RunConfig:
    """Settings that every training has; the scripts add their own (--help lists those first)."""
    overwrite: bool = False             # start anew although the run's directory holds checkpoints
    save_every: int = 500               # steps between checkpoints
    log_every: int = 10                 # steps between lines of log.jsonl
    boards: str = ""                    # also log to tensorboard, wandb, or both (a,b)
    keep: int = 2                       # newest checkpoints to keep
    max_skipped: int = 20               # steps in a row without a finite gradient that end the run
    optimizer: Literal[*optim.OPTIMIZERS] = "adamw"     # muon: for matrices, faster from nothing
    decay: Literal[*optim.DECAYS] = "constant"          # learning rate after warm-up
    weight_decay: float = 0.0           # weight decay of AdamW
    clip: float = 1.0                   # largest norm of the gradient; longer ones are shortened
    ema: float = 0.9999                 # decay of the averaged weights; 0: none are kept
    seed: int = 0                       # seed of everything random: weights, order, noise
    device: str = "auto"                # auto, cpu, cuda, mps
    dtype: Literal[*processes.DTYPES] = "auto"      # of products; parameters stay float32
    threads: int = 0                    # CPU threads; 0: a fair share of the cores
    shard: bool = False                 # spread optimizer and average over the ranks (ZeRO 1)
    compile: bool | None = None         # torch.compile the layers; on CUDA unless --no-compile
    deterministic: bool = False         # the same bits in every run, on CUDA too; slower

    FROM_DATA = ()      # of these 0 means: from the number of images (training/one_gpu.py)

    def __post_init__(self):
        at_least_one = {"batch_size", "micro_batch", "steps", "save_every", "log_every",
                        "keep", "max_skipped"}.difference(self.FROM_DATA)
        at_least_zero = {"eval_every", "sample_every", "warmup", "lr", "weight_decay", "ema",
                         "threads", *self.FROM_DATA}
        for names, least in ((at_least_one, 1), (at_least_zero, 0)):
            for name in sorted(names):
                if name not in vars(self):      # the autoencoder's training has not all of them
                    continue
                value = vars(self)[name]
                assert value >= least, f"{option(name)} {value} must be {least} or more."
        assert self.ema <= 1, f"--ema {self.ema}: the decay of an average is at most 1."
        assert self.clip > 0, (
            f"--clip {self.clip} would leave no gradient; a large number, as 1e9, clips nothing.")


@dataclass
class UniXRunConfig(RunConfig):
    """Settings that every training of a UniX has; that of an autoencoder has no use for them."""
    eval_every: int = 500               # steps between validation losses; 0: none
    sample_every: int = 1000            # steps between samples in <out>/samples; 0: none
    workers: int = -1                   # threads that read ahead; -1: four with a GPU, else none
    recompute: bool = False             # compute layers again going backward: less memory
    lora: int = 0                       # train adapters of this rank, not weights; 0: weights
    lora_alpha: float = 16.0            # adapters count times this / --lora
    lora_vision: bool = False           # to read: adapters for the vision tower, too

    def __post_init__(self):
        super().__post_init__()
        assert self.lora >= 0, f"--lora {self.lora}: a rank of 1 or more, or 0 for none."
        assert self.lora_alpha > 0, f"--lora-alpha {self.lora_alpha:g} must be positive."

    FROM_DATA = ("batch_size", "steps")


# settings that may differ from machine to machine within one run
OF_A_MACHINE = ("device", "threads", "workers")


def check_ranks_agree(cfg):
    """Stop if processes were started with different settings, other than OF_A_MACHINE."""
    everyone = gather(asdict(cfg))
    different = set()
    for settings in everyone[1:]:
        different |= differences(everyone[0], settings, OF_A_MACHINE).keys()
    lists = []
    for key in sorted(different):
        values = [str(settings[key]) for settings in everyone]
        lists.append(f"{key}: {', '.join(values)}")
    if lists:
        raise InputError(f"ranks disagree about their settings ({'; '.join(lists)}); give the same "
                         "command on every machine.")


# ---- what may happen to a run ----

class Skipped:
    """Steps whose gradient is no number: weights, optimizer and average stay, and the run goes on.

    After `limit` of them in a row it ends. The gradient is the same on all processes, so they all
    skip together.
    """

    def __init__(self, limit, in_a_row=0):
        self.limit = limit
        self.in_a_row = in_a_row

    def culprits(self, norm, losses, names):
        """The samples to blame if the gradient's norm is no number, on any process; else an empty
        list.

        losses: one tensor a micro-step of this process. names: for each, the ids of its samples.
        """
        if math.isfinite(norm):
            self.in_a_row = 0
            return []
        self.in_a_row += 1
        mine = []
        for loss, ids in zip(losses, names):
            if not torch.isfinite(loss).all():
                mine += ids
        ids = [name for theirs in gather(mine) for name in theirs]
        if not ids:
            ids = ["none: the losses are numbers, the gradient is not"]
        if self.in_a_row >= self.limit:
            raise InputError(
                f"the gradient was no number {self.in_a_row} steps in a row; the samples of the "
                f"last: {', '.join(ids)}; the weights of the last checkpoint are from before.")
        return ids


# ---- the run ----

class Run:
    """One training run, of which this process is one of `world`.

    cfg: a RunConfig that also has out, steps, batch_size, micro_batch, lr and warmup.
    stage: 1 to 3, or a word for what is trained; it is shown and kept in the checkpoints.
    """

    def __init__(self, cfg, stage):
        self.cfg = cfg
        self.stage = stage

        # who we are among the processes
        self.process = processes.setup(cfg.device, cfg.threads, cfg.deterministic)
        self.rank = self.process.rank
        self.world = self.process.world
        self.device = self.process.device
        self.master = self.process.master       # this one writes files and shows progress
        # one run, one command, and batches that can be shared out (phantom.train_vae cuts its own)
        check_ranks_agree(cfg)
        if "micro_batch" in vars(cfg):
            refuse_uneven(cfg.batch_size, self.process, cfg.micro_batch)
        refuse_missing_boards(cfg.boards)
        # no other process that writes there; then the checkpoint to go on from, or None
        on_first(self.process, partial(locks.refuse_taken, cfg.out))
        self.seen = checkpoint.checkpoints(cfg.out)
        self.resume = checkpoint_to_resume(cfg, stage)
        # it goes on in the number format that it began with; machines may differ in what auto is
        begun = begun_with(self.resume, "dtype")
        cfg.dtype = processes.number_format(cfg.dtype, self.device, begun)
        check_ranks_agree(cfg)

    def prepare(self, module, average_of, adamw_only=()):
        """Optimizer, average, DDP and log, once it is known what is frozen.

        module: the step module; what is not frozen is trained, its `blocks` are compiled.
        average_of: the part of it whose averaged weights are kept.
        adamw_only: parts of names of matrices that stay with AdamW when Muon has the others.
        """
        # what is not frozen gets an optimizer and an average; a resumed run gets its own back
        cfg = self.cfg
        self.trained = module
        self.optimizers = optim.optimizers(module, cfg, adamw_only, cfg.shard)
        self.ema = optim.EMA(average_of, cfg.ema, cfg.shard)
        self.step, skips = 0, 0
        if self.resume:
            self.step, skips = restore(self.resume, self.optimizers, self.ema)
        self.skipped = Skipped(cfg.max_skipped, skips)

        # `module` is what the loop calls: its blocks compiled, in DDP if there are others
        self.compiled = compile_blocks(module.blocks, cfg.compile, self.device, cfg.deterministic)
        self.module = module
        if self.world > 1:
            self.module = DistributedDataParallel(
                module, gradient_as_bucket_view=True, forward_sync_buffers=False)

        # from here on files are written: everything that may be refused has been checked
        on_first(self.process, self.begin_to_write)
        # checkpoints are written beside training, which goes on meanwhile; at the end of the script
        # it is waited for before others may write here, hence after the lock
        self.saver = Saver(cfg.out, cfg.keep, before=self.resume)
        # what is shown and asked for while it runs
        self.meter = Meter(peak_to_log(self.device, cfg.dtype), self.world)
        self.stop = Stop()
        self.stopping = False           # whether a signal asked for the end
        gather(None)                    # all listen for signals before the bar says that it trains
        self.bar = tqdm(total=cfg.steps, initial=self.step, desc=f"stage {self.stage}", unit="step",
                        disable=not self.master)
        self.culprits = []              # samples of a step that was skipped

    def begin_to_write(self):
        """Take the run's directory, on the first process; what is to go goes at the very last."""
        cfg = self.cfg
        locks.take(cfg.out)
        if checkpoint.checkpoints(cfg.out) != self.seen:
            raise InputError(f"another run wrote to {cfg.out} meanwhile; start the same command "
                             "again.")
        boards = open_boards(cfg.boards, cfg.out, asdict(cfg))
        tidy(cfg.out, anew=self.resume is None)
        self.lines = Log(Path(cfg.out) / "log.jsonl", self.step, boards)

    # ---- within a step ----

    def steps(self, samples):
        """The micro-batches of every step, as lists, until cfg.steps or a signal."""
        often = repetition(len(samples.data), self.cfg.steps, self.cfg.batch_size)
        if often and self.master:
            self.bar.write(often)
        steps = self.micro_batches(samples, self.cfg.micro_batch)
        while self.step < self.cfg.steps and not self.stopping:
            yield next(steps)

    def micro_batches(self, samples, micro_batch):
        """This process's share of every step's batch, cut into micro-batches of so many samples."""
        cfg = self.cfg
        batches = loader(samples, self.process, micro_batch, self.step, cfg.steps, cfg.workers)
        n = samples.batch_size // (micro_batch * self.world)
        while True:
            yield self.meter.take(batches, n)

    def validation_batches(self, samples, n):
        """This process's share of the first n samples, with fixed noise, on its device."""
        mine = range(self.rank, min(n, len(samples.data)), self.world)
        for start in range(0, len(mine), self.cfg.micro_batch):
            indices = mine[start:start + self.cfg.micro_batch]
            yield Samples.collate([samples[(-1, i)] for i in indices]).to(self.device)

    def exchange_gradients(self, now):
        """DDP exchanges gradients in the last micro-step only: call it before every forward pass.
        """
        self.module.require_backward_grad_sync = now

    def total(self, number):
        """The sum of a whole number over all processes, as a tensor on the device."""
        return all_sum(torch.full((), number, device=self.device))

    def autocast(self):
        """Matrix products in cfg.dtype."""
        return processes.autocast(self.device, self.cfg.dtype)

    def count(self, **counts):
        """Add to what this process has done since the last log line: img, u_tok, g_tok, flops."""
        self.meter.counts.update(counts)

    def update(self, losses, names):
        """Clip the gradient, set the learning rate, step the optimizers and the average.

        losses: one tensor a micro-step, without gradient. names: for each, the ids of its samples.
        A step whose gradient is no number is skipped, and the samples to blame are logged.
        """
        # the norm is the same on all processes; a signal is not, and here they agree on the step
        cfg = self.cfg
        norm = clip_grad_norm_(self.trained.parameters(), cfg.clip)
        self.norm, asking = torch.stack([norm, self.stop.asking(self.device)]).tolist()     # sync
        self.stopping = asking > 0
        self.lr = optim.lr_at(self.step, cfg.lr, cfg.warmup, cfg.steps, cfg.decay)
        # a step whose gradient is not finite is counted, but changes nothing
        self.step += 1
        self.culprits = self.skipped.culprits(self.norm, losses, names)
        if self.culprits:
            optim.forget(self.optimizers)
        else:
            optim.step_all(self.optimizers, self.lr)
            self.ema.update()
        self.saver.check()
        self.bar.update()

    # ---- between steps ----

    def every(self, steps):
        """Whether something that is done every so many steps is due; 0 is never.

        The last step counts too.
        """
        if steps == 0:
            return False
        return self.step % steps == 0 or self.step == self.cfg.steps

    @property
    def logging(self):
        """Whether a log line is due. A skipped step is always logged."""
        return self.every(self.cfg.log_every) or bool(self.culprits)

    @property
    def sampling(self):
        """Whether the first process shows samples now, while the others wait."""
        return bool(self.cfg.sample_every) and self.step % self.cfg.sample_every == 0

    @property
    def sheet(self):
        """The file of the samples that are shown after this step."""
        return Path(self.cfg.out) / "samples" / f"{self.step:08d}.png"

    @property
    def saving(self):
        """Whether a checkpoint is due."""
        return self.stopping or self.every(self.cfg.save_every)

    def log(self, **losses):
        """A line of training: the losses, learning rate, norm of the gradient, and speed."""
        # the rates are of the time since the last line
        rates = self.meter.rates()
        skipped = {"skipped": self.culprits} if self.culprits else {}
        shown = {name: f"{value:.4g}" for name, value in losses.items()}
        self.bar.set_postfix(**shown, img_s=f"{rates.get('img_s', 0):.0f}")
        if self.master:
            self.lines.write(
                step=self.step, **losses, lr=self.lr, norm=self.norm, **rates, **skipped)

    def log_validation(self, **scores):
        """A line of validation, which is also shown above the progress bar."""
        if self.master:
            self.lines.write(step=self.step, **scores)
            numbers = [(name, value) for name, value in scores.items() if isinstance(value, float)]
            text = ", ".join(f"{name} {value:.4f}" for name, value in numbers)
            self.bar.write(f"step {self.step}: {text}")

    @contextmanager
    def average(self):
        """In here the averaged weights are live, and the clock of the throughput stands still. All
        processes enter and leave it together.
        """
        # eagerly: validation and samples have shapes of their own, for which compiling does not pay
        stance = torch.compiler.set_stance("force_eager") if self.compiled else nullcontext()
        with self.meter.paused(), self.ema.swapped(), stance:
            yield

    def save(self, config, tensors, tokenizer=None):
        """Have a checkpoint written, to which the first process adds what resuming needs. All
        processes call it, and go on when what they train is copied.

        config: what the tensors are (weights.describe). tensors: {"model": {name: tensor}, ...};
        the average, if one is kept, is added as "ema". tokenizer: the text of tokenizer.json.
        """
        cfg = self.cfg
        with self.meter.paused():
            # all processes take part in gathering, the first one writes
            state = optimizer_state(self.optimizers, self.ema, self.skipped.in_a_row)
            average = self.ema.whole()
            if average and "ema" not in tensors:
                tensors = {**tensors, "ema": average}
            if self.master:
                trained = [p for p in self.trained.parameters() if p.requires_grad]
                self.saver.save(
                    self.step, changing=[*trained, *average.values()],
                    config={**config, "stage": self.stage, "settings": asdict(cfg)},
                    tensors=tensors, tokenizer=tokenizer, state=state)

    def close(self):
        """The end: the last checkpoint is whole, signals mean again what they meant before."""
        self.saver.wait()
        self.bar.close()
        self.stop.release()
        until_the_end.close()           # others may write here; boards send what they hold
        print0(f"stage {self.stage} is in {self.cfg.out}: {self.step} of {self.cfg.steps} steps")
