"""training/compiled.py: few graphs, the same gradients, and a sentence where nothing compiles."""

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters
from torch.nn.parallel import DistributedDataParallel

import train_gen
from common.cli import InputError, override
from helpers import close, randomise, tiny_config, tiny_vae
from model import UniX
from repa import Projector
from tiny_runs import MAIN, column, gen, tensors, und
from train_gen import GenStep
from train_und import UndStep
from training import compiled
from training.batches import Batch
from training.run import RunConfig
from vision import ViT, ViTConfig

# its gradient is zero but for rounding, see test_sameness.py
KEYS = "vision.blocks.0.qkv.bias"
CPU = torch.device("cpu")
ENCODER = ViTConfig(image_size=28, patch_size=14, n_layer=2, n_head=2, n_embd=32, n_inner=32,
                    class_token=True, layer_scale=True)


@pytest.fixture(autouse=True)
def fresh():
    """Nothing is compiled before, and settings of torch are as they were afterwards."""
    torch._dynamo.reset()
    counters.clear()
    before = torch._dynamo.config.optimize_ddp, torch._dynamo.config.recompile_limit
    yield
    torch._dynamo.config.optimize_ddp, torch._dynamo.config.recompile_limit = before
    torch._dynamo.reset()


def step_module(stage, n_layer, recompute=False):
    """The step module of stage 1 or 2 with random weights, which are the same every time."""
    torch.manual_seed(0)
    unix = randomise(UniX(tiny_config(n_layer=n_layer, latent_channels=4, generation=stage == 2)))
    unix.recompute = recompute
    if stage == 1:
        return UndStep(unix).train()
    unix.freeze("u")
    encoder, projector = randomise(ViT(ENCODER)), randomise(Projector(64, 32, 32))
    return GenStep(unix, tiny_vae(), encoder, projector, train_gen.TrainConfig()).train()


def batch_of(stage, T, B=2):
    """Random images, texts of T tokens; one sample has no text."""
    generator = torch.Generator().manual_seed(T)
    ids = torch.randint(4, 60, (B, T), generator=generator)
    images = torch.randint(0, 256, (B, 1, 32, 32), generator=generator, dtype=torch.uint8)
    batch = Batch(index=torch.arange(B), images=images, ids=ids, valid=torch.ones_like(ids).bool(),
                  labels=ids if stage == 1 else None)
    if stage == 1:
        return batch
    batch.normal = torch.randn(B, generator=generator)
    batch.noise, batch.posterior = torch.randn(2, B, 4, 4, 4, generator=generator)
    batch.dropped = torch.arange(B) == 0
    return batch


def gradients(module, batch):
    """{name: gradient} of a micro-step."""
    module.zero_grad()
    outputs = module(batch)
    (outputs if torch.is_tensor(outputs) else sum(outputs).mean()).backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def compile_with(backend, module):
    for block in module.blocks:
        block.compile(backend=backend)


# text twice, since the second length makes a graph for all lengths; stage 1 has an image block and
# its tower, stage 2 latents behind texts of two lengths and the encoder of REPA
@pytest.mark.slow
@pytest.mark.parametrize("stage, graphs", [(1, 4), (2, 5)])
@pytest.mark.parametrize("n_layer", [2, 6])
def test_graphs_are_few_whatever_the_layers_and_the_texts(stage, graphs, n_layer):
    module = step_module(stage, n_layer, recompute=stage == 1)
    compile_with("eager", module)
    for T in (32, 16, 48, 64):
        gradients(module, batch_of(stage, T))
    assert counters["stats"]["unique_graphs"] == graphs
    assert not counters["graph_break"] and not counters["recompile_limit"]


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_gradients_are_those_of_eager(stage):
    module, plain = step_module(stage, 2, recompute=stage == 1), step_module(stage, 2)
    compile_with("aot_eager", module)
    for T in (32, 16):
        ours, theirs = (gradients(m, batch_of(stage, T)) for m in (module, plain))
        assert ours.keys() == theirs.keys()
        for name, gradient in theirs.items():
            close(ours[name], gradient, 1e-5)


@pytest.mark.slow
def test_ddp_does_not_cut_the_layers(monkeypatch):
    from torch._dynamo.backends.distributed import DDPOptimizer

    def compile_fn(*_):
        raise AssertionError("DDPOptimizer was called")
    monkeypatch.setattr(DDPOptimizer, "compile_fn", compile_fn)
    monkeypatch.setattr(compiled, "why_not", lambda device: "")
    module = step_module(2, 2)
    assert compiled.compile_blocks([], True, CPU)
    compile_with("eager", module)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        gradients(DistributedDataParallel(module, gradient_as_bucket_view=True), batch_of(2, 16))
    finally:
        dist.destroy_process_group()
    assert counters["stats"]["unique_graphs"] == 3


# ---- the command line ----

@pytest.mark.parametrize("words, asked", [([], None), (["--compile"], True),
                                          (["--no-compile"], False), (["--compile=false"], False)])
def test_who_says_nothing_leaves_it_to_the_machine(words, asked):
    assert override(RunConfig(), words).compile is asked
    layer = torch.nn.Identity()
    if not asked:
        assert not compiled.compile_blocks([layer], asked, CPU)
        assert layer._compiled_call_impl is None


def test_without_a_compiler_a_sentence_says_what_to_do(monkeypatch, capsys):
    """It ends what was asked for by hand; where it is a default, the run goes on without."""
    def fails(_):
        raise RuntimeError("InvalidCxxCompiler: none found\n\nSet TORCHDYNAMO_VERBOSE=1")
    monkeypatch.setattr(torch, "compile", fails)
    with pytest.raises(InputError, match="--compile.*none found.; install a C") as error:
        compiled.compile_blocks([], True, CPU)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: None)
    assert not compiled.compile_blocks([], None, torch.device("cuda"))
    assert "none found" in capsys.readouterr().out
    assert not compiled.compile_blocks([], None, torch.device("cuda"), deterministic=True)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
def test_a_compiled_run_is_the_run(stage, phantom, stage1, stage2, tmp_path):
    """With validation and samples in between, and resumed as a run that compiles nothing."""
    def train(name, *more):
        words = ("--eval-every", 1, "--sample-every", 1, "--micro-batch", 2, *more)
        line = und(phantom, tmp_path / name, *words) if stage == 1 else gen(
            phantom, tmp_path / name, stage2, *words)
        MAIN[stage](line)
        return tmp_path / name

    plain = train("plain", "--steps", 3, "--no-compile")
    layers = train("layers", "--steps", 2, "--compile", "--recompute")
    train("layers", "--steps", 3, "--no-compile")
    for name in {1: ("loss", "val_loss"), 2: ("mse", "repa", "val_mse")}[stage]:
        assert column(layers, name) == pytest.approx(column(plain, name), rel=1e-5), name
    for name, value in tensors(plain).items():
        if name != KEYS:
            close(tensors(layers)[name], value, 1e-4)
