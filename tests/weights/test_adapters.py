"""weights/adapters.py: a base that is the right one, wherever it lies, or one sentence."""
import copy
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

import train_gen
import train_und
import weights
from common.cli import InputError
from helpers import close, normal
from phantom import prepare
from tiny_runs import gen, und
from training import lora
from weights import adapters, checkpoint
from weights.export import main as export

LAYER = "layers.1.u.mlp.up"


def save_adapters(model, base, directory, branch="u"):
    """Write adapters with random values, as a run would, for this model, of which a copy is made
    -> what the matrix of LAYER should be.
    """
    model = copy.deepcopy(model)
    about = {"lora": {"rank": 2, "alpha": 8.0}, "base": adapters.model_base(base)}
    lora.insert(model, branch, 2, 8.0)
    for i, p in enumerate(lora.trained(model).values()):
        p.data.copy_(0.1 * normal(*p.shape, seed=i))
    tokenizer = (checkpoint.newest(base) / "tokenizer.json").read_text()
    checkpoint.write(directory, config={**weights.describe(model), **about, "step": 3},
                     tensors={"adapters": lora.trained(model)}, tokenizer=tokenizer)
    layer = model.get_submodule(LAYER)
    if branch == "g":
        return layer.weight.detach()
    return (layer.base.weight + 8 / 2 * layer.lora_b @ layer.lora_a).detach()


@pytest.fixture
def adapted(run):
    """-> the base's directory, the adapters' directory, what the matrix of LAYER should be."""
    base = checkpoint.newest(run[3])
    model, _, _ = weights.load(base)
    directory = base.parents[1] / "adapted" / "00000003"
    return base, directory, save_adapters(model, base, directory)


def matrix(directory, **more):
    return weights.load(directory, **more)[0].get_parameter(f"{LAYER}.weight").detach()


# ---- like any other checkpoint ----

def test_they_are_added_to_their_base(adapted, run):
    base, directory, wanted = adapted
    model, vae, tokenizer = weights.load(directory.parent)          # the newest of the run
    close(model.get_parameter(f"{LAYER}.weight"), wanted, 1e-6)
    before, _, _ = weights.load(directory, merge=False)
    assert torch.equal(before.lm_head.weight, run[1]["lm_head.weight"]), "the base is its average"
    assert weights.vae_hash(vae) == weights.vae_hash(run[2]) and tokenizer.size == 64
    assert weights.vae_hash(weights.find_vae(directory)) == weights.vae_hash(run[2])
    assert matrix(directory, dtype=torch.bfloat16).dtype == torch.bfloat16
    assert torch.equal(matrix(directory, dtype=torch.bfloat16), matrix(directory).bfloat16())
    assert torch.equal(matrix(directory, merge=False), matrix(base))


def test_in_int8_they_are_added_before_the_matrices_are_rounded(adapted):
    _, directory, wanted = adapted
    layer = weights.load(directory, matrices="int8")[0].get_submodule(LAYER)
    close(layer.weight.float() * layer.scale[:, None], wanted, 0.01)


def test_adapters_may_be_the_base_of_others(adapted, tmp_path):
    _, directory, wanted = adapted
    model, _, _ = weights.load(directory)
    later = tmp_path / "later" / "00000003"
    save_adapters(model, directory, later, branch="g")
    close(matrix(later), wanted, 1e-6)
    assert not torch.equal(weights.load(later)[0].layers[1].g.mlp.up.weight,
                           model.layers[1].g.mlp.up.weight)


def test_an_export_is_a_plain_checkpoint(adapted, tmp_path):
    base, directory, wanted = adapted
    export([str(directory), str(tmp_path / "plain")])
    shutil.rmtree(base)                             # nobody needs the base any more
    shutil.rmtree(directory)
    close(matrix(tmp_path / "plain"), wanted, 1e-3)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    assert "base" not in config and "lora" not in config and "vae" in config


def test_on_the_released_unix(release, tmp_path):
    """And an export in the release's layout, which loads as it is."""
    _, vae, base = release
    model, _, _ = weights.load(base)
    wanted = save_adapters(model, base, tmp_path / "adapted")
    export([str(tmp_path / "adapted"), str(tmp_path / "UniX"), "--release"])
    merged, found, _ = weights.load(tmp_path / "adapted")
    close(merged.get_parameter(f"{LAYER}.weight"), wanted, 1e-6)
    again, exported, _ = weights.load(tmp_path / "UniX")
    assert weights.vae_hash(found) == weights.vae_hash(exported) == weights.vae_hash(vae)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, merged.state_dict()[name]), name
    assert again.unused.keys() == model.unused.keys()


@pytest.mark.slow
def test_the_released_unix_is_fine_tuned_to_read_and_then_to_draw(release, tmp_path):
    """Adapters on the release, adapters on these, and all of it again in the release's layout."""
    data = tmp_path / "data"
    prepare.main(f"--out {data} --size 32 --train 8 --val 2 --test 0 --workers 1".split())
    short = ("--batch-size", 2, "--micro-batch", 2, "--steps", 2, "--lora", 4)
    train_und.main(und(data, tmp_path / "read", "--init", release[2], *short))
    train_gen.main(gen(data, tmp_path / "draw", tmp_path / "read", "--repa", 0, *short))
    for run, branch in (("read", "u"), ("draw", "g")):
        held = load_file(checkpoint.newest(tmp_path / run) / "adapters.safetensors")
        assert all(f".{branch}." in name for name in held if name.startswith("layers"))
        assert sum(tensor.nbytes for tensor in held.values()) < 2_000_000

    export([str(tmp_path / "draw"), str(tmp_path / "UniX"), "--release"])
    tuned, vae, _ = weights.load(tmp_path / "UniX")
    assert weights.vae_hash(vae) == weights.vae_hash(release[1])
    before = weights.load(release[2])[0].state_dict()
    changed = {name for name, tensor in tuned.state_dict().items()
               if not torch.equal(tensor, before[name])}
    assert {LAYER + ".weight", LAYER.replace(".u.", ".g.") + ".weight", "connector.0.weight",
            "lm_head.weight", "latent_in.weight"} <= changed
    assert not {"embed.weight", "norm_u.weight", "vision.patch.weight"} & changed


# ---- which base ----

def test_a_base_is_found_where_it_was_and_where_it_is_seen_from(adapted, tmp_path, monkeypatch):
    """Under its absolute path from every folder; after a move under the path as it was given."""
    base, directory, wanted = adapted
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    save_adapters(weights.load(base)[0], base.relative_to(tmp_path), directory)
    monkeypatch.chdir(tmp_path / "elsewhere")
    close(matrix(directory), wanted, 1e-6)

    moved = tmp_path / "elsewhere" / base.relative_to(tmp_path)
    moved.parent.mkdir(parents=True)
    os.rename(base, moved)
    close(matrix(directory), wanted, 1e-6)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="holds adapters of run/00000007, which is not there"):
        matrix(directory)


def alter(path, change):
    """Rewrite a JSON file as `change` leaves it."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def test_a_changed_base_is_refused(adapted):
    base, directory, _ = adapted
    tensors = load_file(base / "ema.safetensors")
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, base / "ema.safetensors")
    with pytest.raises(InputError, match="is not what the adapters in .* were trained on"):
        matrix(directory)
    with pytest.raises(InputError, match="is not what the adapters in .* were trained on"):
        weights.find_vae(directory)


def test_a_file_beside_the_base_that_decides_nothing_may_change(adapted):
    base, directory, wanted = adapted
    (base / "notes.txt").write_text("mine")
    (base / "state.pt").unlink()
    alter(base / "config.json", lambda config: config["files"].pop("state.pt"))
    alter(directory / "config.json",
          lambda config: config["base"].update(sha256=adapters.fingerprint(base)))
    close(matrix(directory), wanted, 1e-6)


def test_the_shards_of_a_base_count(release, tmp_path):
    """Of weights in several files every one, and the index that lists them."""
    folder = tmp_path / "sharded"
    shutil.copytree(release[2], folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / file)
    index = {"weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    seen = {adapters.fingerprint(folder)}
    for file, held in shards.items():
        save_file({name: tensors[name] + 1 for name in held}, folder / file)
        seen.add(adapters.fingerprint(folder))
    assert len(seen) == 3


def test_a_vae_from_elsewhere_is_named_and_checked(adapted, vae_run, run, tmp_path):
    """Not kept a second time in the checkpoint; and refused once it has changed."""
    _, directory, _ = adapted
    source = tmp_path / "vae"
    vae = weights.find_vae(vae_run)
    vae.post_quant_conv.bias.data += 1
    checkpoint.save(source, 1, config=weights.describe(vae=vae), tensors={"vae": vae.state_dict()})
    entry = adapters.vae_base(source, vae)
    assert entry["path"] == str(source / "00000001")
    alter(directory / "config.json", lambda config: config.update(vae_base=entry))
    for dtype in (torch.float32, torch.bfloat16):
        found = weights.load(directory, dtype=dtype)[1]
        assert next(found.parameters()).dtype == dtype
    assert weights.vae_hash(weights.find_vae(directory)) == weights.vae_hash(vae)
    assert weights.vae_hash(vae) != weights.vae_hash(run[2]), "another one than the base's"
    alter(directory / "config.json", lambda config: config["vae_base"].update(sha256="0" * 16))
    with pytest.raises(InputError, match="is not what the adapters in .* were trained on"):
        weights.load(directory)


@pytest.mark.parametrize("change", ["rank", "rows", "half", "unknown", "missing", "nan"])
def test_adapters_that_do_not_fit(adapted, change):
    _, directory, _ = adapted
    path = directory / "adapters.safetensors"
    tensors = load_file(path)
    words = f"adapters of {LAYER} are not of rank 2"
    if change == "rank":
        alter(directory / "config.json", lambda config: config["lora"].update(rank=3))
        words = "are not of rank 3"
    elif change == "rows":
        tensors[f"{LAYER}.lora_b"] = normal(5, 2)
    elif change == "half":
        del tensors[f"{LAYER}.lora_b"]
    elif change == "unknown":
        tensors["layers.9.u.mlp.up.lora_a"] = normal(2, 64)
        words = "adapters of layers.9.u.mlp.up are not"
    elif change == "missing":
        del tensors[f"{LAYER}.lora_a"]
    else:
        tensors[f"{LAYER}.lora_a"][0, 0] = float("nan")
        words = "numbers that are not finite"
    if change != "rank":
        save_file(tensors, path)
        alter(directory / "config.json",
              lambda config: config["files"].update({path.name: path.stat().st_size}))
    with pytest.raises(InputError, match=words):
        weights.load(directory)
