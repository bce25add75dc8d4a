"""Stages 2 and 3: learn to draw. Flow matching on VAE latents given the report (Eq. 2, Table 1).

    torchrun --nproc_per_node=8 train_gen.py              # stage 2: 256 px with REPA, from out/und
    torchrun --nproc_per_node=8 train_gen.py --stage 3    # stage 3: 512 px without, from out/gen256
    python train_gen.py --preset phantom [--stage 3]      # the laptop run: 64 px, then 128 px

Trains the generation set alone; everything of understanding is frozen. The sequence is
[BOS report EOS] [noisy latent block]: text never sees the noise, so its keys and values are
computed once, without gradient. For a tenth of the samples the text is dropped, which is what
guidance needs. Stage 3 reads more of the same position table.

t in [0, 1], 1 = noise; x_0 clean latent, x_t = (1 - t) x_0 + t noise, v = noise - x_0.
"""
from dataclasses import dataclass, replace

import torch
import torch.nn as nn
from safetensors.torch import load_file

import flow
import repa
import weights
from common.cli import InputError, cli, override
from common.packed import Packed
from common.processes import all_sum, widest_float
from training import cost, frozen, latents, lora, memory
from training.batches import Samples
from training.one_gpu import fitted
from training.run import Run, UniXRunConfig
from training.show import show_drawn
from weights.knowledge import learned


@dataclass
class TrainConfig(UniXRunConfig):
    # files
    preset: str = "paper"               # "phantom" for a laptop, "one-gpu" for data of your own
    stage: int = 2                      # 2: half size with REPA; 3: full size without
    data: str = "datasets/mimic"        # root of the packed data sets; reads <data>/gen-<size>
    init: str = "out/und"               # weights to start from: stage 1's, in stage 3 stage 2's
    vae: str = "pretrained/vae"         # a run of phantom.train_vae, or kl-f16; "": that of --init
    out: str = "out/gen256"             # the run's directory; resumes when it holds a checkpoint
    # model
    size: int = 256                     # pixels a side of what is drawn
    max_latent_size: int = 32           # rows of the position table of a new generation set
    # loss
    repa: float = 0.5                   # weight of the alignment loss; 0 turns it off
    repa_inner: int = 2048              # width of the projector of the alignment loss
    repa_encoder: str = "pretrained/rad-dino"   # image encoder to align with; "": the vision tower
    repa_size: int = 0                  # pixels that encoder gets; 0: as trained; 224 is cheap
    text_dropout: float = 0.1           # share of samples without text, which guidance needs
    shift: float = 1.0                  # shift of the training times towards noise; 1: none
    # optimizer (Table 1, stage 2)
    steps: int = 75000                  # optimizer steps in all; 0: from the number of images
    batch_size: int = 256               # samples a step, a multiple of ranks x --micro-batch; or 0
    micro_batch: int = 32               # of a forward pass; 32 fit 8 GPUs of 48 GB, 8 fit one
    shard: bool = True                  # spread optimizer and average over the ranks (ZeRO 1)
    lr: float = 2e-4                    # learning rate after warm-up
    warmup: int = 2000                  # steps of linear warm-up

    def __post_init__(self):
        assert self.stage in (2, 3), (
            f"--stage {self.stage}: this script trains stages 2 and 3; train_und.py is stage 1.")
        super().__post_init__()
        sizes = (self.size, self.max_latent_size, self.repa_inner, self.shift)
        assert min(sizes) > 0, "sizes and --shift must be positive."
        assert min(self.repa, self.repa_size) >= 0, "--repa and --repa-size: 0 or more."
        assert 0 <= self.text_dropout <= 1, "--text-dropout is a share, from 0 to 1."


PAPER3 = dict(
    init="out/gen256", vae="", out="out/gen512", size=512, repa=0.0, steps=5000, lr=1e-4, warmup=0,
    micro_batch=8)
PHANTOM = dict(
    data="datasets/phantom", vae="out/phantom/vae", max_latent_size=8, repa_inner=384,
    repa_encoder="", batch_size=32, micro_batch=32, shard=False, optimizer="muon", lr=2e-3,
    warmup=100, decay="cosine", ema=0.998, save_every=250)
PHANTOM2 = dict(
    PHANTOM, init="out/phantom/und", out="out/phantom/gen64", size=64, steps=1000)
PHANTOM3 = dict(
    PHANTOM, init="out/phantom/gen64", out="out/phantom/gen128", size=128, steps=2500, repa=0.0)
# adapters on weights that draw already, with 24 GB; batch and steps by the number of images
ONE_GPU2 = dict(
    data="datasets/mine", init="out/mine-und", vae="", out="out/mine-gen256", repa=0.0, lora=16,
    shard=False, steps=0, batch_size=0, micro_batch=8, warmup=20, decay="cosine", ema=0.0,
    eval_every=100, save_every=200)
ONE_GPU3 = dict(ONE_GPU2, out="out/mine-gen512", size=512, micro_batch=4)
PRESETS = {     # preset -> stage -> settings
    "paper": {2: {}, 3: PAPER3},
    "phantom": {2: PHANTOM2, 3: PHANTOM3},
    "one-gpu": {2: ONE_GPU2, 3: ONE_GPU3},
}

# matrices that AdamW keeps when Muon has the others: Muon would mix their rows, which belong to
# single tokens or positions. mlp.4 is the last layer of REPA's projector
ADAMW_ONLY = ("embed.weight", "lm_head", "positions", "patch", "latent_in", "latent_out", "mlp.4")


class GenStep(nn.Module):
    """One micro-step of drawing: a batch -> squared error (B,) and alignment loss (B,) an image.

    encoder and projector are REPA's, or None without it. VAE and encoder are frozen here.
    """

    def __init__(self, unix, vae, encoder, projector, cfg):
        super().__init__()
        self.unix = unix
        self.vae = vae
        self.encoder = encoder
        self.projector = projector
        self.cfg = cfg
        vae.requires_grad_(False)
        self.blocks = list(unix.layers)         # what torch.compile takes one by one
        if encoder is not None:
            encoder.requires_grad_(False)
            self.blocks += encoder.blocks

    def forward(self, batch):
        # the report's keys and values; without gradient while everything of u is frozen
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.unix.frozen_u):
            _, cache = self.unix.prefill_text(batch.ids, batch.valid)

        # from the clean latent towards noise
        x_0 = self.clean_latents(batch)                         # (B, z, h, w)
        t = flow.sample_t(batch.normal, self.cfg.shift)         # (B,)
        x_t, target = flow.interpolate(x_0, batch.noise, t)

        # the velocity there, and the latents' hidden states after layer repa_layer
        taps = () if self.projector is None else (self.unix.cfg.repa_layer,)
        v, hiddens = self.unix.denoise(x_t, t, cache.drop(batch.dropped), taps)
        mse = flow.flow_loss(v, target)
        if self.projector is None:
            return mse, torch.zeros_like(mse)
        images = batch.images.float() / 255
        towards = repa.targets(self.encoder, images, x_t.shape[2:], self.cfg.repa_size)
        projected = self.projector(hiddens[self.unix.cfg.repa_layer])
        return mse, repa.repa_loss(projected, towards)

    @torch.no_grad()
    def clean_latents(self, batch):
        """x_0 (B, z, h, w), drawn from the VAE's posterior and normalised; in fp32.

        From stored moments if there are (python -m training.latents), else encoded here.
        """
        with torch.autocast(batch.images.device.type, enabled=False):
            if batch.moments is not None:
                mean, logvar = batch.moments.unbind(1)
                return self.vae.normalise(mean, logvar, batch.posterior)
            images = batch.images.float().expand(-1, 3, -1, -1) / 127.5 - 1
            return self.vae.encode(images, batch.posterior)


# ---- what the loop starts from ----

def initial(cfg):
    """The networks to start from -> (UniX with a generation set, VAE, Tokenizer)."""
    model, vae, tokenizer = weights.load(cfg.init)
    if cfg.vae:
        vae = weights.find_vae(cfg.vae)
    if vae is None:
        raise InputError(f"{cfg.init} holds no VAE; name one with --vae.")

    # stage 2 makes the generation set: a copy of the understanding set, latent ends fresh
    if not model.cfg.generation:
        if cfg.stage == 3:
            raise InputError(f"{cfg.init} has no generation set; stage 3 starts from stage 2 "
                             "(train_gen.py).")
        model.cfg.max_latent_size = cfg.max_latent_size
        model.cfg.latent_channels = vae.cfg.embed_dim
        torch.manual_seed(cfg.seed)
        model.copy_u_to_g()

    largest = model.cfg.max_latent_size * vae.factor
    if cfg.size % vae.factor or cfg.size > largest:
        raise InputError(f"--size {cfg.size} is no multiple of {vae.factor} up to {largest}.")
    if model.cfg.latent_channels != vae.cfg.embed_dim:
        raise InputError(f"the VAE has {vae.cfg.embed_dim} latent channels, the model "
                         f"{model.cfg.latent_channels}.")
    return model, vae, tokenizer


def repa_parts(run, model):
    """REPA's frozen encoder and its trained projector, or (None, None)."""
    cfg = run.cfg
    if not cfg.repa:
        return None, None
    encoder = weights.load_rad_dino(cfg.repa_encoder) if cfg.repa_encoder else model.vision
    patch = encoder.cfg.patch_size
    if cfg.repa_size % patch:
        raise InputError(f"--repa-size {cfg.repa_size} is no multiple of the encoder's patches of "
                         f"{patch} pixels.")
    torch.manual_seed(cfg.seed)
    projector = repa.Projector(model.cfg.n_embd, cfg.repa_inner, encoder.cfg.n_embd)
    if run.resume:
        projector.load_state_dict(load_file(run.resume / "projector.safetensors"))
    return encoder, projector


def samples(cfg, model, vae, tokenizer, split):
    """The training or validation set, encoded for this model, with stored latents if there are."""
    data = Packed(cfg.data, "gen", cfg.size, split)
    data.open_latents(weights.vae_hash(vae))
    side = cfg.size // vae.factor
    latent = (vae.cfg.embed_dim, side, side)
    return Samples(data, tokenizer, model.cfg.max_text, cfg.seed, cfg.batch_size, latent,
                   cfg.text_dropout)


def cost_of_step(run, module, train):
    """What a micro-step computes and keeps, see training/cost.py."""
    cfg, encoder = run.cfg, None
    if module.projector is not None and cfg.repa_encoder:       # else it is the vision tower
        size = cfg.repa_size if cfg.repa_size else module.encoder.cfg.image_size
        encoder = replace(module.encoder.cfg, image_size=size)
    return cost.Step(
        "g", gen=cfg.micro_batch, report=train.longest("report"), size=cfg.size,
        vae=module.vae.cfg, latents=train.latent[1] * train.latent[2],
        stored=train.data.latents is not None, encoder=encoder,
        projector=0 if module.projector is None else cfg.repa_inner,
        **cost.of_run(cfg, run.process))


@torch.no_grad()
def validate(run, module, val, n=256, bins=5):
    """Squared error on the first n validation images with fixed times and noise.

    All processes take part. -> the mean, and means over images whose t is in [0, 0.2), [0.2, 0.4),
    ...: the error near 0 tells of fine detail, near 1 of the layout.
    """
    float64 = widest_float(run.device)
    total = torch.zeros(2, bins, dtype=float64, device=run.device)      # errors, how many
    for batch in run.validation_batches(val, n):
        with run.autocast():
            error = module(batch)[0].to(float64)
        t = flow.sample_t(batch.normal, run.cfg.shift)
        bin_of = (t * bins).long().clamp(max=bins - 1)
        total.index_add_(1, bin_of, torch.stack([error, torch.ones_like(error)]))
    errors, counts = all_sum(total)
    return float(errors.sum() / counts.sum()), (errors / counts).tolist()


# ---- the run ----

def settings(argv):
    """The command line, with the preset's row for the stage.

    The stage picks the row, so the line is read twice: for the stage, then with its row.
    """
    by_stage = {2: {}, 3: {}}
    rows = {}
    for name, stages in PRESETS.items():
        for stage, row in stages.items():
            by_stage[stage][name] = row
            rows[f"{name}, stage {stage}"] = row
    if {"--help", "-h"} & set(argv):
        override(TrainConfig(), argv, __doc__, rows)
    stage = override(TrainConfig(), argv, __doc__, by_stage[2]).stage
    return override(TrainConfig(), argv, __doc__, by_stage[stage])


def main(argv):
    cfg = fitted(settings(argv), "gen")
    run = Run(cfg, cfg.stage)                       # finds the checkpoint to go on from

    # networks: this run's own checkpoint, else given weights; understanding is frozen
    if run.resume:
        model, vae, tokenizer = weights.load(run.resume, ema=False, merge=False)
    else:
        model, vae, tokenizer = initial(cfg)
    model.freeze("u")
    adapted = lora.adapt(model, run, "g", vae) if cfg.lora else {}
    model.recompute = cfg.recompute
    encoder, projector = repa_parts(run, model)
    module = GenStep(model, vae, encoder, projector, cfg).train()
    originals = frozen.to_device(module, run)

    # data: one permutation an epoch; every process takes its share of each batch
    train = samples(cfg, model, vae, tokenizer, "train")
    val = samples(cfg, model, vae, tokenizer, "val")
    model.about = learned(model.about, train.data, tokenizer)           # what it knows
    step_cost = cost_of_step(run, module, train)
    latents.advise(cfg, step_cost.stored)
    memory.tell(model.cfg, step_cost)

    # what is frozen is known now: optimizer and average first, DDP last
    run.prepare(module, average_of=model, adamw_only=ADAMW_ONLY)

    for batches in run.steps(train):                # the micro-batches of one step
        losses = []
        for i, batch in enumerate(batches):
            run.exchange_gradients(i == len(batches) - 1)
            with run.autocast():
                mse, align = run.module(batch.to(run.device))
            loss = (mse + cfg.repa * align).sum() / cfg.batch_size
            (loss * run.world).backward()           # DDP averages over processes; we want the sum
            losses.append(torch.stack([mse.sum(), align.sum()]).detach())
            run.count(**cost.counted(model.cfg, step_cost, gen=batch))
        run.update(losses, [train.ids(batch) for batch in batches])

        # what happens between steps
        if run.logging:
            mse, align = all_sum(sum(losses)).tolist()      # CPU-GPU sync
            run.log(mse=mse / cfg.batch_size, repa=align / cfg.batch_size)
        if run.every(cfg.eval_every):
            with run.average():
                mse, mse_by_t = validate(run, module, val)
            run.log_validation(val_mse=mse, val_mse_bins=mse_by_t)
        if run.sampling:
            with run.average(), run.autocast():
                if run.master:
                    show_drawn(model, vae, tokenizer, val.data, run.sheet)
        if run.saving:
            tensors = {"model": weights.model_tensors(model) | originals, "vae": vae.state_dict()}
            if cfg.lora:
                tensors = {"adapters": lora.trained(model)}     # the rest is the base's
            if projector is not None:
                tensors["projector"] = projector.state_dict()
            run.save({**weights.describe(model, vae), **adapted}, tensors, tokenizer.json)
    run.close()


if __name__ == "__main__":
    cli(main)
