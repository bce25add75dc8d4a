"""train_gen.py on a tiny phantom: stage 2 with REPA, then stage 3; understanding never moves."""
import shutil

import pytest
import torch

import train_gen
import weights
from common.cli import InputError
from common.processes import generator
from model import is_generation
from tiny_runs import column, gen, identical, log, tensors
from training import latents
from vae import VAE, VAEConfig
from weights import checkpoint


@pytest.fixture(scope="module")
def stage3(phantom, stage2, tmp_path_factory):
    out = tmp_path_factory.mktemp("gen64")
    more = ("--stage", 3, "--size", 64, "--repa", 0, "--steps", 4)
    train_gen.main(gen(phantom, out, stage2, *more))
    return out


def test_stage_2_learns_to_draw(stage2):
    """On the validation images, whose times and noise are fixed: a step's own error varies."""
    errors, alignment = column(stage2, "val_mse"), column(stage2, "repa")
    assert len(column(stage2, "mse")) == len(errors) == 30
    assert errors[-1] < 0.96 * errors[0]
    assert sum(alignment[-5:]) < sum(alignment[:5]) - 0.5 and min(alignment) >= -1
    assert (checkpoint.newest(stage2) / "projector.safetensors").exists()


def test_stage_3_is_without_repa(stage3, stage2):
    assert column(stage3, "repa") == [0.0] * 4
    assert not (checkpoint.newest(stage3) / "projector.safetensors").exists()
    model, vae, _ = weights.load(stage3)
    assert model.cfg.generation and model.cfg.max_latent_size == 8 and vae is not None
    assert checkpoint.read_config(checkpoint.newest(stage3))["stage"] == 3
    assert tensors(stage3).keys() == tensors(stage2).keys()


def test_understanding_and_vae_stay_bit_for_bit(stage1, stage2, stage3, vae_run):
    """Stage 2 starts from the average of stage 1; after that only the generation set moves."""
    start = {**tensors(stage1), **tensors(stage1, "ema")}
    for run in (stage2, stage3):
        now = tensors(run)
        assert all(torch.equal(now[name], start[name]) for name in start)
        averaged = set(tensors(run, "ema"))
        assert averaged == now.keys() - start.keys()
        assert averaged == {name for name in now if is_generation(name)}
        assert identical(tensors(run, "vae"), tensors(vae_run, "vae"))
    before, after = tensors(stage2, "ema"), tensors(stage3)
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_generation_starts_as_the_copy(phantom, stage1, vae_run, tmp_path):
    """With a learning rate of nothing, stage 2 is stage 1 with a copied set and a zero output."""
    train_gen.main(gen(phantom, tmp_path, stage1, "--vae", vae_run, "--steps", 1, "--lr", 0))
    now = tensors(tmp_path)
    for name in now:
        if ".g." in name:
            assert torch.equal(now[name], now[name.replace(".g.", ".u.")]), name
    assert torch.equal(now["norm_g.weight"], now["norm_u.weight"])
    assert not now["latent_out.weight"].any()
    assert column(tmp_path, "mse")[0] > 1       # of noise - x_0 against nothing


def test_stored_latents_are_the_same_draw(phantom, stage2, tmp_path, capsys):
    """Posteriors stored instead of encoded at every step: the same loss to 1e-6. A run without them
    prints the command that stores them.
    """
    data = shutil.copytree(phantom, tmp_path / "data")
    train_gen.main(gen(data, tmp_path / "online", stage2, "--steps", 2))
    command = capsys.readouterr().out.partition("python -m training.latents ")[2].splitlines()[0]
    latents.main([*command.split(), "--device", "cpu"])
    capsys.readouterr()
    train_gen.main(gen(data, tmp_path / "stored", stage2, "--steps", 2))
    assert "training.latents" not in capsys.readouterr().out
    online, stored = column(tmp_path / "online", "mse"), column(tmp_path / "stored", "mse")
    assert stored == pytest.approx(online, rel=1e-6)


def test_text_dropout_counts_in_training_and_not_in_validation(phantom, stage2, tmp_path):
    never, always = tmp_path / "never", tmp_path / "always"
    for run, share in ((never, 0), (always, 1)):
        train_gen.main(gen(phantom, run, stage2, "--steps", 1, "--text-dropout", share, "--lr", 0))
    assert column(never, "mse") != column(always, "mse")
    assert column(never, "val_mse") == column(always, "val_mse")


def test_validation_by_bins_of_t(stage2):
    """The bins' means, weighted by how many of the four fixed times lie in each, give the mean."""
    line = [line for line in log(stage2) if "val_mse" in line][-1]
    times = []
    for i in range(4):
        rng = generator(0, -1, i)
        torch.rand((), generator=rng)       # the draw of text dropout comes first
        times.append(torch.sigmoid(torch.randn((), generator=rng)))
    counts = torch.bincount((torch.stack(times) * 5).long(), minlength=5).tolist()
    bins = line["val_mse_bins"]
    assert [error is None for error in bins] == [n == 0 for n in counts]
    mean = sum(n * error for n, error in zip(counts, bins) if n) / 4
    assert mean == pytest.approx(line["val_mse"], rel=1e-6)


def test_rad_dino_is_the_target_of_repa(phantom, stage1, vae_run, tmp_path):
    """An encoder of its own, from a Hugging Face directory, at its own size and at --repa-size."""
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=70, patch_size=14,
        mlp_ratio=2)
    torch.manual_seed(0)
    transformers.Dinov2Model(config).save_pretrained(tmp_path / "dino")
    losses = []
    for name, more in (("own", []), ("smaller", ["--repa-size", 28])):
        run = tmp_path / name
        train_gen.main(gen(phantom, run, stage1, "--vae", vae_run, "--steps", 1,
                           "--repa-encoder", tmp_path / "dino", *more))
        losses.append(column(run, "repa"))
        assert tensors(run, "projector")["mlp.4.weight"].shape[0] == 48
    assert losses[0] != losses[1]
    assert all(-1 <= loss <= 1 and loss != 0 for loss in losses[0] + losses[1])


@pytest.mark.parametrize("more, sentence", [
    (["--vae="], "no VAE.*--vae"),
    (["--stage", 3], "stage 3 starts from stage 2"),
    (["--size", 128], "--size 128 is no multiple of 8 up to 64"),
    (["--init", "{vae}"], "holds no model"),
    (["--init", "{stage2}", "--vae", "{wide}"], "6 latent channels, the model 4"),
    (["--stage", 4], "stages 2 and 3"),
    (["--shift", 0], "--shift must be positive")])
def test_what_is_wrong_is_one_sentence(
        phantom, stage1, stage2, vae_run, tmp_path, more, sentence):
    wide = VAE(VAEConfig(ch=8, ch_mult=(1, 1, 1, 2), n_res=1, z_channels=6, embed_dim=6,
                         norm_groups=4))
    checkpoint.save(tmp_path / "wide", 1, config=weights.describe(vae=wide),
                    tensors={"vae": wide.state_dict()})
    places = {"vae": vae_run, "stage2": stage2, "wide": tmp_path / "wide"}
    more = [str(word).format(**places) for word in more]
    with pytest.raises(InputError, match=sentence) as error:
        line = gen(phantom, tmp_path / "run", stage1, "--vae", vae_run, "--steps", 1, *more)
        train_gen.main(line)
    assert "\n" not in str(error.value)


def test_the_paper_s_presets(tmp_path):
    """Table 1: stage 2 at 256 px with REPA, stage 3 at 512 px without, from stage 2."""
    two, three = train_gen.settings([]), train_gen.settings(["--stage", "3"])
    assert (two.size, two.repa, two.steps, two.lr, two.batch_size) == (256, 0.5, 75000, 2e-4, 256)
    assert (three.size, three.repa, three.steps, three.lr) == (512, 0.0, 5000, 1e-4)
    assert three.init == two.out
