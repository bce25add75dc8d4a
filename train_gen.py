"""Stages 2 and 3: learn to draw. Flow matching on VAE latents given the report (paper Eq. 2, Table 1).

    torchrun --nproc_per_node=8 train_gen.py              # stage 2: 256 px with REPA, from out/und
    torchrun --nproc_per_node=8 train_gen.py --stage 3    # stage 3: 512 px without, from out/gen256
    torchrun --nproc_per_node=8 train_gen.py --preset table5-1:2      # a row of Table 5: reading and drawing together
    python train_gen.py --preset phantom [--stage 3]      # the laptop run: 64 px, then 128 px

Trains the generation set alone (but for Table 5); everything of understanding is frozen. The sequence is
[BOS report EOS] [noisy latent block]: text never sees the noise, so its keys and values are computed once, without
gradient. For a tenth of the samples the text is dropped, which is what guidance needs. Stage 3 reads more of the same
position table.

t in [0, 1], 1 = noise; x_0 clean latent, v = noise - x_0.
"""
from dataclasses import asdict, dataclass, replace
from itertools import repeat
from pathlib import Path

import torch
import torch.nn as nn
from safetensors.torch import load_file
from tqdm import tqdm

from weights import checkpoint
from common import processes as common
from training import cost
import flow
from training import optim
import repa
from training import run as runs
import weights
from mimic.check import refuse_leak
from common.processes import InputError, print0
from training.batches import Packed, Samples, loader
from sample import show_drawn


@dataclass
class TrainConfig(runs.RunConfig):
    # I/O
    preset: str = "paper"               # a row of PRESETS below
    stage: int = 2                      # 2: half size with REPA; 3: full size without
    data: str = "datasets/mimic"        # root of the packed data sets; reads <data>/gen-<size>
    init: str = "out/und"               # weights to start from: stage 1 for stage 2, stage 2 for stage 3
    vae: str = "pretrained/vae"         # a run of phantom.train_vae or a kl-f16; "" takes the VAE that --init holds
    out: str = "out/gen256"             # the run's directory; resumes when it holds a checkpoint
    # model
    size: int = 256                     # pixels a side
    max_latent_size: int = 32           # rows of the position table of a new generation set
    # loss
    repa: float = 0.5                   # weight of the alignment loss; 0 turns it off
    repa_inner: int = 2048              # width of its projector
    repa_encoder: str = "pretrained/rad-dino"   # a Dinov2Model to align with; "" takes the vision tower of --init
    repa_size: int = 0                  # pixels that it gets; 0: what it was trained on; 224 is the cheap option for RAD-DINO
    text_dropout: float = 0.1           # share of samples without text
    train_u: bool = False               # train the understanding set too (Table 5)
    und_share: float = 0.0              # reading samples a step on top, as a share of the batch (Table 5)
    shift: float = 1.0                  # of the training times
    # optimizer (Table 1, stage 2)
    steps: int = 75000                  # optimizer steps in all
    batch_size: int = 256               # samples a step, over all processes and micro-steps
    micro_batch: int = 8                # samples of one forward pass of one process; with shard it fits eight GPUs of 48 GB
    shard: bool = True                  # spread AdamW's state over the processes (ZeRO 1)
    lr: float = 2e-4                    # learning rate after warm-up
    warmup: int = 2000                  # steps of linear warm-up

    def __post_init__(self):
        assert self.stage in (2, 3), f"--stage {self.stage}: this script trains stages 2 and 3; train_und.py is stage 1."
        super().__post_init__()
        assert min(self.size, self.max_latent_size, self.repa_inner, self.shift) > 0, "sizes and --shift must be positive."
        assert self.train_u or not self.und_share, "--und-share trains the understanding set: it needs --train-u."
        assert self.und_share * self.micro_batch % 1 == 0 <= self.und_share, (
            f"--und-share {self.und_share:g} of a micro-batch of {self.micro_batch} is no whole number of samples.")
        assert not (self.train_u and self.repa and not self.repa_encoder), (
            "--train-u trains the vision tower, so it cannot be what --repa aligns with: name --repa-encoder or use --repa 0.")


PAPER3 = dict(init="out/gen256", vae="", out="out/gen512", size=512, repa=0.0, steps=5000, lr=1e-4, warmup=0, micro_batch=4)
PHANTOM = dict(data="datasets/phantom", vae="out/phantom/vae", max_latent_size=8, repa_inner=384, repa_encoder="", batch_size=32,
               micro_batch=32, shard=False, optimizer="muon", lr=2e-3, warmup=100, decay="cosine", ema=0.998, save_every=250)
PRESETS = {     # preset -> stage -> settings
    "paper": {2: {}, 3: PAPER3},
    "phantom": {2: dict(PHANTOM, init="out/phantom/und", out="out/phantom/gen64", size=64, steps=1000),
                3: dict(PHANTOM, init="out/phantom/gen64", out="out/phantom/gen128", size=128, steps=2500, repa=0.0)},
}
# Table 5, 2,000 steps each, by understanding : generation data. The paper does not say from which weights, at which size or
# with which weights of the losses; here from stage 2, at its size, both losses with weight 1, without REPA.
TABLE5 = {"0:1-frozen": (False, 0.0), "1:1": (True, 1.0), "1:2": (True, 0.5), "1:4": (True, 0.25), "0:1": (True, 0.0)}
for name, (train_u, und_share) in TABLE5.items():
    row = dict(train_u=train_u, und_share=und_share, vae="", repa=0.0, warmup=0)
    PRESETS[f"table5-{name}"] = {2: dict(row, init="out/gen256", out=f"out/table5-{name}", steps=2000, micro_batch=4)}
    PRESETS[f"phantom-table5-{name}"] = {2: dict(PHANTOM | row, init="out/phantom/gen64", size=64, steps=500, lr=1e-3,
                                                 decay="constant", out=f"out/phantom/table5-{name}")}
# parameters that AdamW keeps when Muon has the matrices
VECTORS = ("embed.weight", "lm_head", "positions", "patch", "latent_in", "latent_out", "mlp.4")


class GenStep(nn.Module):
    """One micro-step: a batch to draw, and one to read if both are trained -> squared error (B,) and alignment loss (B,)
    of its images, summed cross-entropy of the report tokens."""

    def __init__(self, unix, vae, encoder, projector, cfg):
        super().__init__()
        self.unix, self.vae, self.encoder, self.projector, self.cfg = unix, vae, encoder, projector, cfg
        for frozen in filter(None, (vae, encoder)):
            frozen.requires_grad_(False)

    @torch.no_grad()
    def clean_latents(self, batch):
        """A sample of the VAE's posterior, normalised: x_0 (B, z, h, w). From stored moments if there are."""
        with torch.autocast(batch.images.device.type, enabled=False):
            if batch.moments is None:
                return self.vae.encode(batch.images.float().expand(-1, 3, -1, -1) / 127.5 - 1, batch.posterior)
            mean, logvar = batch.moments.unbind(1)
            return self.vae.normalise(mean, logvar, batch.posterior)

    def forward(self, batch, und=None):
        frozen = not any(p.requires_grad for p in self.unix.u_parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            _, cache = self.unix.prefill_text(batch.ids, batch.valid)
        x_0, t = self.clean_latents(batch), flow.sample_t(batch.normal, self.cfg.shift)
        x_t, target = flow.interpolate(x_0, batch.noise, t)
        tap = self.unix.cfg.repa_layer
        v, hiddens = self.unix.denoise(x_t, t, cache.drop(batch.dropped), (tap,) if self.projector else ())
        mse = flow.flow_loss(v, target)
        align, ce = torch.zeros_like(mse), mse.new_zeros(())
        if self.projector is not None:
            towards = repa.targets(self.encoder, batch.images.float() / 255, x_t.shape[2:], self.cfg.repa_size)
            align = repa.repa_loss(self.projector(hiddens[tap]), towards)
        if und is not None:
            ce = self.unix.reading_loss(und.images, und.ids, und.valid, und.labels)
        return mse, align, ce


def initial(cfg):
    """The networks to start from -> (UniX with a generation set, VAE, Tokenizer)."""
    model, vae, tokenizer = weights.load(cfg.init)
    if cfg.vae:
        vae = weights.find_vae(cfg.vae)
    if vae is None:
        raise InputError(f"{cfg.init} holds no VAE; name one with --vae.")
    if not model.cfg.generation:
        if cfg.stage == 3:
            raise InputError(f"{cfg.init} has no generation set; stage 3 starts from stage 2 (train_gen.py).")
        model.cfg.max_latent_size, model.cfg.latent_channels = cfg.max_latent_size, vae.cfg.embed_dim
        torch.manual_seed(cfg.seed)
        model.copy_u_to_g()
    if cfg.size % vae.factor or cfg.size > model.cfg.max_latent_size * vae.factor:
        raise InputError(f"--size {cfg.size} is no multiple of {vae.factor} up to {model.cfg.max_latent_size * vae.factor}.")
    if model.cfg.latent_channels != vae.cfg.embed_dim:
        raise InputError(f"the VAE has {vae.cfg.embed_dim} latent channels, the model {model.cfg.latent_channels}.")
    return model, vae, tokenizer


def freeze(cfg, model):
    """Stages 2 and 3 freeze everything of understanding; Table 5's other rows train what gets a gradient.

    Drawing alone reaches no gradient where nothing flows from text to latents: the vision tower and connector, the head,
    and in the last layer what comes after attention. These are named and left out of the optimizer.
    """
    if not cfg.train_u:
        return model.freeze("u")
    last = f"layers.{model.cfg.n_layer - 1}.u."
    idle = ("vision.", "connector.", "norm_u.", "lm_head.", last + "heads.o.", last + "norm2.", last + "mlp.")
    names = [] if cfg.und_share else [n for n, _ in model.named_parameters() if n.startswith(idle)]
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    if names:
        print0(f"without a gradient, so not trained: {', '.join(names)}")


def repa_parts(cfg, model):
    """REPA's frozen encoder and its trained projector, or (None, None)."""
    if not cfg.repa:
        return None, None
    encoder = weights.load_rad_dino(cfg.repa_encoder) if cfg.repa_encoder else model.vision
    torch.manual_seed(cfg.seed)
    return encoder, repa.Projector(model.cfg.n_embd, cfg.repa_inner, encoder.cfg.n_embd)


@torch.no_grad()
def validate(step_module, samples, process, cfg, n=256, bins=5):
    """Squared error on the first n validation images with fixed times and noise; all processes take part.

    -> mean, and means over images whose t is in [0, 0.2), [0.2, 0.4), ...: near 0 fine detail is learnt, near 1 the layout.
    """
    total = torch.zeros(2, bins, dtype=torch.float64, device=process.device)            # errors and how many
    chosen = range(process.rank, min(n, len(samples.data)), process.world)
    for start in range(0, len(chosen), cfg.micro_batch):
        batch = Samples.collate([samples[(-1, i)] for i in chosen[start:start + cfg.micro_batch]]).to(process.device)
        with common.autocast(process.device, cfg.dtype):
            error = step_module(batch)[0].double()
        bin = (flow.sample_t(batch.normal, cfg.shift) * bins).long().clamp(max=bins - 1)
        total.index_add_(1, bin, torch.stack([error, torch.ones_like(error)]))
    errors, counts = common.all_sum(total)
    return float(errors.sum() / counts.sum()), (errors / counts).tolist()


def settings(argv):
    """The command line, with the preset's row for the stage."""
    if {"--help", "-h"} & set(argv):
        rows = {f"{name}, stage {stage}": row for name, by in PRESETS.items() for stage, row in by.items()}
        common.override(TrainConfig(), argv, __doc__, rows)
    stage = common.override(TrainConfig(), argv, __doc__, {k: rows[2] for k, rows in PRESETS.items()}).stage
    return common.override(TrainConfig(), argv, __doc__, {k: rows[stage] for k, rows in PRESETS.items() if stage in rows})


def main(argv):
    cfg = settings(argv)
    process = common.setup(cfg.device, cfg.threads, cfg.deterministic)
    runs.agree(process, cfg)
    resume = checkpoint.start(cfg.out, cfg, cfg.overwrite)

    # networks: the run's own checkpoint, else given weights; freeze, then optimizer, then DDP
    model, vae, tokenizer = weights.load(resume, ema=False) if resume else initial(cfg)
    freeze(cfg, model)
    model.recompute = cfg.recompute
    encoder, projector = repa_parts(cfg, model)
    if resume and projector is not None:
        projector.load_state_dict(load_file(resume / "projector.safetensors"))
    step_module = GenStep(model, vae, encoder, projector, cfg).to(process.device).train()
    if process.device.type == "cuda":
        vae.to(memory_format=torch.channels_last)               # convolutions like it
    latent = (vae.cfg.embed_dim, cfg.size // vae.factor, cfg.size // vae.factor)
    train, val = (Samples(Packed(cfg.data, "gen", cfg.size, split), tokenizer, model.cfg.max_text, cfg.seed,
                          cfg.batch_size, latent, cfg.text_dropout) for split in ("train", "val"))
    und = None
    if cfg.und_share:
        und = Samples(Packed(cfg.data, "und", model.cfg.vision.image_size, "train"), tokenizer, model.cfg.max_text, cfg.seed,
                      round(cfg.batch_size * cfg.und_share))
        refuse_leak(cfg.data, model.cfg.vision.image_size, cfg.size)
    stored = [samples.data.open_latents(weights.vae_hash(vae)) for samples in (train, val)]
    print0("latents: " + ("stored" if all(stored) else "encoded as we go (python -m training.latents stores them)"))
    step_cost = cost.Step(
        "ug" if cfg.train_u else "g", gen=cfg.micro_batch, report=train.longest("report"), size=cfg.size, vae=vae.cfg,
        latents=latent[1] * latent[2], stored=all(stored), projector=cfg.repa_inner if projector else 0,
        encoder=replace(encoder.cfg, image_size=cfg.repa_size or encoder.cfg.image_size) if projector and cfg.repa_encoder
        else None, und=round(cfg.micro_batch * cfg.und_share), text=und.longest("prompt", "report") if und else 0,
        answer=und.longest("report") if und else 0, **cost.of_run(cfg, process))
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
            tensors = {"model": weights.model_tensors(model), "ema": ema.shadow, "vae": vae.state_dict()}
            if projector is not None:
                tensors["projector"] = projector.state_dict()
            config = {**weights.describe(model, vae), "stage": cfg.stage, "settings": asdict(cfg)}
            checkpoint.save(cfg.out, step, cfg.keep, cfg.keep_every, config=config, tokenizer=tokenizer.json,
                            tensors=tensors, state=state)

    # the loop: `micro` forward and backward passes make one step
    micro = cfg.batch_size // (cfg.micro_batch * process.world)
    batches = loader(train, process, cfg.micro_batch, step, cfg.steps, cfg.workers)
    pairs = zip(batches, repeat(None) if und is None else
                loader(und, process, round(cfg.micro_batch * cfg.und_share), step, cfg.steps, cfg.workers))
    bar = tqdm(total=cfg.steps, initial=step, desc=f"stage {cfg.stage}", unit="step", disable=not process.master)
    meter = runs.Meter(cost.peak_flops(process.device, cfg.dtype), process.world)
    while step < cfg.steps and not stop.now:
        lr = optim.lr_at(step, cfg.lr, cfg.warmup, cfg.steps, cfg.decay)
        losses, parts, tokens = [], meter.fetch(pairs, micro), 1
        if und is not None:         # of the whole step, on all processes and micro-steps, as in stage 1
            tokens = common.all_sum(sum(read.tokens for _, read in parts).to(process.device))
        for i, (batch, read) in enumerate(parts):
            wrapped.require_backward_grad_sync = i == micro - 1     # DDP exchanges gradients in the last micro-step
            with common.autocast(process.device, cfg.dtype):
                mse, align, ce = wrapped(batch.to(process.device), read and read.to(process.device))
            loss = (mse + cfg.repa * align).sum() / cfg.batch_size + ce / tokens
            (loss * process.world).backward()               # DDP averages over processes
            losses.append(torch.stack([mse.sum(), align.sum(), ce]).detach())
        norm = float(nn.utils.clip_grad_norm_(step_module.parameters(), cfg.clip))
        step += 1
        for batch, read in parts:
            meter.counts.update(cost.counted(model.cfg, step_cost, batch, read))
        if bad := skipped.bad(norm, losses, lambda i: train.ids(parts[i][0]) + (und.ids(parts[i][1]) if und else [])):
            optim.forget(optimizers)
        else:
            optim.step_all(optimizers, lr)
            ema.update()
        bar.update()

        if step % cfg.log_every == 0 or step == cfg.steps or bad:
            mse, align, ce = common.all_sum(sum(losses)).tolist()
            mse, align, ce = mse / cfg.batch_size, align / cfg.batch_size, {"ce": ce / int(tokens)} if und else {}
            rates = meter.rates()
            bar.set_postfix(mse=f"{mse:.4f}", repa=f"{align:.3f}", img_s=f"{rates['img_s']:.0f}")
            if process.master:
                log.write(step=step, mse=mse, repa=align, **ce, lr=lr, norm=norm, **rates, **bad)
        saving = stop.agree(process.device) or step % cfg.save_every == 0 or step == cfg.steps
        with meter.paused():
            if step % cfg.eval_every == 0 or step == cfg.steps:
                with ema.swapped():
                    val_mse, by_t = validate(step_module, val, process, cfg)
                if process.master:
                    log.write(step=step, val_mse=val_mse, val_mse_bins=by_t)
                    bar.write(f"step {step}: validation error {val_mse:.4f}")
            if process.master and cfg.sample_every and step % cfg.sample_every == 0:
                with ema.swapped(), common.autocast(process.device, cfg.dtype):
                    show_drawn(model, vae, tokenizer, val.data, Path(cfg.out) / "samples" / f"{step:08d}.png")
            if saving:
                save()
    bar.close(), stop.release()
    print0(f"stage {cfg.stage} is in {cfg.out}: {step} of {cfg.steps} steps")


if __name__ == "__main__":
    common.cli(main)
