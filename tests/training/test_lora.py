"""training/lora.py: what is trained is small, and the base stays what it is."""
import copy
import json
import shutil

import pytest
import torch
from torch import nn

import train_gen
import train_und
import weights
from bench import table5
from common.cli import InputError
from helpers import close, normal, tiny_config
from model import UniX
from tiny_runs import MAIN, SCRIPT, column, gen, identical, same_run, state, tensors, und
from training import frozen, lora
from weights import adapters, checkpoint


def fill_b(model):
    """Random values where adapters start with zeros."""
    for name, p in lora.trained(model).items():
        if name.endswith("lora_b"):
            p.data.copy_(0.1 * normal(*p.shape))


# ---- the layer ----

def test_an_adapted_layer_is_the_formula():
    linear = nn.Linear(6, 5)
    layer = lora.AdaptedLinear(linear, rank=3, alpha=12.0)
    x = normal(2, 7, 6)
    assert torch.equal(layer(x), linear(x)), "B is zero at the start"
    layer.lora_b.data.copy_(normal(5, 3, seed=1))
    matrix = linear.weight + 12 / 3 * layer.lora_b @ layer.lora_a
    close(layer(x), x @ matrix.T + linear.bias)


@pytest.mark.parametrize("branch, vision", [("u", False), ("u", True), ("g", False)])
def test_what_is_trained(branch, vision):
    """Adapters of every linear layer of a branch, and the latent ends; all else is frozen."""
    model = UniX(tiny_config())
    before = {name: p.numel() for name, p in model.named_parameters()}
    lora.insert(model, branch, 2, 1.0, vision)
    adapted, whole = set(), set()
    for name in lora.trained(model):
        layer, _, part = name.rpartition(".")
        if part.startswith("lora_"):
            adapted.add(layer)
        else:
            whole.add(name.split(".")[0])
    n_layer, n_tower = model.cfg.n_layer, model.cfg.vision.n_layer
    wanted = 7 * n_layer
    if branch == "u":
        wanted += 3 + (4 * n_tower if vision else 0)         # connector and head, too
    assert len(adapted) == wanted
    assert whole == (set(lora.LATENT_ENDS) if branch == "g" else set())
    assert all(f".{branch}." in layer for layer in adapted if layer.startswith("layers"))
    frozen = {name: p.numel() for name, p in model.named_parameters() if not p.requires_grad}
    assert {name.replace("base.", "") for name in frozen} <= before.keys()


def test_the_base_lies_in_bf16_and_adapters_in_fp32():
    """As on CUDA; the same bits as autocast makes, in the loss and in every gradient."""
    model = UniX(tiny_config())
    lora.insert(model, "u", 2, 1.0, vision=True)
    fill_b(model)
    plain = copy.deepcopy(model)
    frozen.in_bfloat16(model, torch.device("cuda"), "bfloat16")
    ids = torch.randint(4, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    results = []
    for one in (model, plain):
        with torch.autocast("cpu", torch.bfloat16):
            _, cache = one.prefill_image(normal(2, 3, 32, 32))
            hidden, _ = one.prefill_text(ids, None, cache)
            loss = one.report_loss(hidden.flatten(0, 1), ids.flatten()).sum()
        loss.backward()
        results.append({name: p.grad for name, p in lora.trained(one).items()})
        results[-1]["loss"] = loss.detach()
    assert identical(*results)
    assert all(p.dtype == torch.float32 for p in lora.trained(model).values())
    layer = model.layers[2].u.mlp.down
    assert layer.base.weight.dtype == torch.bfloat16 == model.lm_head.base.weight.dtype


# ---- runs: reading on the weights of stage 1, drawing on those of stage 2 ----

@pytest.fixture(scope="module")
def bases(stage1, stage2, tmp_path_factory):
    """stage -> a copy of the checkpoint that its adapters belong to, by an odd name."""
    folder = tmp_path_factory.mktemp("bases")
    return {1: shutil.copytree(checkpoint.newest(stage1), folder / "reads"),
            2: shutil.copytree(checkpoint.newest(stage2), folder / "draws")}


@pytest.fixture(scope="module")
def command(phantom, bases):
    """command(stage, out, *more): three steps of rank 4."""
    def command(stage, out, *more):
        words = ("--init", bases[stage], "--lora", 4, "--steps", 3, "--save-every", 1, "--keep", 9)
        if stage == 1:
            return und(phantom, out, *words, "--lora-vision", *more)
        return gen(phantom, out, bases[2], *words, *more)
    return command


@pytest.fixture(scope="module", params=[1, 2], ids=["reading", "drawing"])
def tuned(request, command, tmp_path_factory):
    """-> stage, the run."""
    stage = request.param
    run = tmp_path_factory.mktemp("tuned")
    MAIN[stage](command(stage, run))
    return stage, run


def test_a_checkpoint_holds_adapters_and_names_its_base(tuned, bases):
    stage, run = tuned
    newest = checkpoint.newest(run)
    names = {path.name for path in newest.iterdir()}
    more = {"projector.safetensors"} if stage == 2 else set()
    assert names == more | {"config.json", "tokenizer.json", "state.pt", "adapters.safetensors",
                            "ema.safetensors"}
    held = tensors(run, "adapters")
    assert held.keys() == tensors(run, "ema").keys()
    assert all(tensor.dtype == torch.float32 for tensor in held.values())
    config = json.loads((newest / "config.json").read_text())
    assert config["lora"] == {"rank": 4, "alpha": 16.0}
    assert config["base"]["absolute"] == str(bases[stage])


def test_the_first_step_is_the_base(tuned, command, bases, phantom, tmp_path):
    """The same loss as that of a run that trains all weights, bit for bit."""
    stage, run = tuned
    words = [word for word in command(stage, tmp_path, "--steps", 1) if word != "--lora-vision"]
    MAIN[stage]([*words, "--lora", "0"])
    loss = "loss" if stage == 1 else "mse"
    assert column(run, loss)[0] == column(tmp_path, loss)[0]
    assert column(run, loss)[1] != column(run, loss)[0]


def test_merged_weights_compute_the_same(tuned, bases):
    """W + (alpha / r) B A, and W beside A and B, on the same input."""
    stage, run = tuned
    newest = checkpoint.newest(run)
    merged, vae, _ = weights.load(run, ema=False)
    apart, _, _ = weights.load(newest, ema=False, merge=False)
    lora.insert(apart, "u" if stage == 1 else "g", 4, 16.0, vision=stage == 1)
    adapters.take_over(lora.trained(apart), newest)
    ids = torch.randint(4, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    pixels = normal(2, 3, 64, 64)
    with torch.no_grad():
        _, cache = apart.prefill_image(pixels)
        _, cache_of_merged = merged.prefill_image(pixels)
        close(merged.prefill_text(ids, None, cache_of_merged)[0],
              apart.prefill_text(ids, None, cache)[0])
        if stage == 2:
            noise = normal(2, 4, 8, 8)
            t = torch.tensor([0.2, 0.7])
            close(merged.velocity(noise, t, cache_of_merged), apart.velocity(noise, t, cache))
            assert vae is not None, "the base's"
    base = weights.load(bases[stage])[0].state_dict()
    changed = {name for name, tensor in merged.state_dict().items()
               if not torch.equal(tensor, base[name])}
    assert any(name.endswith("mlp.up.weight") for name in changed)
    other = ".g." if stage == 1 else ".u."
    assert not any(other in name for name in changed)


def test_a_run_goes_on_bit_for_bit(tuned, command, tmp_path):
    stage, reference = tuned
    run = shutil.copytree(reference, tmp_path / "run")
    for later in ("00000002", "00000003"):
        shutil.rmtree(run / later)
    MAIN[stage](command(stage, run))
    same_run(run, reference)
    assert identical(tensors(run, "adapters"), tensors(reference, "adapters"))


def goes_on(run, train):
    """Train, take the last checkpoint away, train again: the same run."""
    train(run)
    reference = shutil.copytree(run, run.with_name("reference"))
    shutil.rmtree(checkpoint.newest(run))
    train(run)
    same_run(run, reference)


def test_with_muon(tuned, command, tmp_path):
    """The adapter of the head stays with AdamW, as the head does; and the run goes on."""
    stage, _ = tuned
    run = tmp_path / "run"
    goes_on(run, lambda run: MAIN[stage](command(stage, run, "--optimizer", "muon")))
    assert len(state(run)["optimizers"]) == 2


def test_a_base_that_cannot_draw_yet(phantom, bases, vae_run, tmp_path):
    """g is a copy of the base's u: it is made again, not saved. The VAE from elsewhere is named."""
    run = tmp_path / "run"
    words = gen(phantom, run, bases[1], "--vae", vae_run, "--lora", 4, "--save-every", 1,
                "--keep", 9, "--steps", 2)
    goes_on(run, lambda _: train_gen.main(words))
    assert not list(run.glob("*/vae*"))

    model, vae, _ = weights.load(run, ema=False)
    assert model.cfg.generation
    assert weights.vae_hash(vae) == weights.vae_hash(weights.find_vae(vae_run))
    held = tensors(run, "adapters")
    name = "layers.1.g.mlp.up"
    difference = 16 / 4 * held[f"{name}.lora_b"] @ held[f"{name}.lora_a"]
    u = tensors(bases[1], "ema")["layers.1.u.mlp.up.weight"]
    close(model.get_parameter(f"{name}.weight"), u + difference, 1e-6)
    assert torch.equal(model.latent_in.weight, held["latent_in.weight"])


@pytest.mark.slow
def test_two_processes_are_the_same_run(tuned, command, fork, tmp_path):
    """Losses to 1e-6, adapters to 1e-5."""
    stage, reference = tuned
    fork(SCRIPT[stage], command(stage, tmp_path, "--micro-batch", 1, "--threads", 1), 2).finish()
    loss = "loss" if stage == 1 else "mse"
    assert column(tmp_path, loss) == pytest.approx(column(reference, loss), rel=1e-5)
    theirs = tensors(reference, "adapters")
    for name, tensor in tensors(tmp_path, "adapters").items():
        close(tensor, theirs[name], 1e-4)


# ---- bad input ----

def test_another_rank_is_another_run(tuned, command):
    stage, run = tuned
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match=r"other settings \(lora=4\).*--overwrite"):
        MAIN[stage](command(stage, run, "--lora", 2))
    with pytest.raises(InputError, match=r"other settings \(lora=4\)"):
        MAIN[stage](command(stage, run, "--lora", 0))
    assert sorted(run.rglob("*")) == before


def test_a_base_that_has_changed_stops_a_run_that_goes_on(tuned, command, bases, monkeypatch):
    stage, run = tuned
    before = sorted(run.rglob("*"))
    monkeypatch.setattr(adapters, "digest", lambda path: "other")
    with pytest.raises(InputError, match="is not what the adapters in .* were trained on"):
        MAIN[stage](command(stage, run))
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize("words, message", [
    (["--lora", 4], "--lora adapts weights that are there: name them with --init"),
    (["--lora", -1], "--lora -1: a rank of 1 or more, or 0 for none"),
    (["--lora", 4, "--lora-alpha", 0], "--lora-alpha 0 must be positive"),
])
def test_bad_settings(phantom, tmp_path, words, message):
    with pytest.raises(InputError, match=message):
        train_und.main(und(phantom, tmp_path / "run", *words))
    assert not (tmp_path / "run").exists()


def test_table_5_trains_no_adapters(phantom, stage2, tmp_path):
    with pytest.raises(InputError, match="Table 5 trains weights, no adapters"):
        table5.main(gen(phantom, tmp_path, stage2, "--preset", "table5-1:1", "--lora", 2))


def test_a_checkpoint_of_other_adapters_is_refused(tuned):
    """Such as one whose file of adapters somebody has put in from another run."""
    stage, run = tuned
    other = UniX(tiny_config())
    lora.insert(other, "u", 2, 16.0)
    with pytest.raises(InputError, match="holds other adapters than this run trains"):
        adapters.take_over(lora.trained(other), checkpoint.newest(run))
