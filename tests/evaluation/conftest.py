"""What the tests of evaluation/ share: reference values, a model, and what its runs leave."""
import json
import shutil

import pytest
import torch
from PIL import Image

import weights
from evaluation import compare, gen, und
from helpers import GOLDEN, normal, randomise, tiny_config, tiny_vae
from model import UniX
from phantom.prepare import Settings, held_out
from tokenizer import Tokenizer
from vision import ViTConfig
from weights import checkpoint


@pytest.fixture(scope="session")
def golden_metrics():
    """What the official code and packages gave for every metric, and the texts and labels."""
    if not GOLDEN.exists():
        pytest.skip("reference values are not here")
    return json.loads((GOLDEN / "metrics.json").read_text())


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """As in processes that share the work: another number of threads sums in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def run(phantom, tmp_path_factory):
    """The run directory of a random model that reads 64 pixels and draws 32."""
    out = tmp_path_factory.mktemp("run")
    tokenizer = Tokenizer.with_named_ids(phantom / "tokenizer.json")
    config = tiny_config(
        vocab_size=tokenizer.size, bos=tokenizer.bos, eos=tokenizer.eos, soi=tokenizer.soi,
        eoi=tokenizer.eoi, latent_channels=4, max_latent_size=4,
        vision=ViTConfig(image_size=64, patch_size=16, n_layer=1, n_head=2, n_embd=16, n_inner=32,
                         pad=0))
    model = randomise(UniX(config))
    vae = tiny_vae()
    vae.decoder.conv_out.weight.data *= 5           # pictures with contrast
    checkpoint.save(
        out, 1, config=weights.describe(model, vae), tokenizer=tokenizer.json,
        tensors={"model": weights.model_tensors(model), "vae": vae.state_dict()})
    return out


@pytest.fixture(scope="session")
def words(phantom, run):
    """words("und", out, *options) -> the command line, over phantoms of the training split."""
    def command_line(command, out, *options, data=phantom):
        common = f"--checkpoint {run} --data {data} --split train --out {out} --device cpu"
        common += " --dtype float32"        # what is compared here is compared in it
        common += " --max-tokens 12 --batch 4 --bootstrap 3 --limit 12"
        if command == "gen":
            common += " --encoder vision --steps 2 --shards 1 --show 2"
        return [*common.split(), *map(str, options)]
    return command_line


@pytest.fixture(scope="session")
def und_run(words, tmp_path_factory):
    """What `evaluate.py und` leaves."""
    out = tmp_path_factory.mktemp("und") / "out"
    assert und.main(words("und", out)) == 0
    return out


@pytest.fixture(scope="session")
def gen_run(words, tmp_path_factory):
    """What `evaluate.py gen` leaves."""
    out = tmp_path_factory.mktemp("gen") / "out"
    assert gen.main(words("gen", out)) == 0
    return out


@pytest.fixture
def result():
    """result(directory) -> what result.json says."""
    return lambda directory: json.loads((directory / "result.json").read_text())


@pytest.fixture
def altered(phantom, tmp_path):
    """altered(task, change) -> a copy of the data after change(n, row) of each row."""
    def copy(task, change):
        root = shutil.copytree(phantom, tmp_path / "altered")
        path = root / task / "00000.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        for n, row in enumerate(rows):
            change(n, row)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return root
    return copy


@pytest.fixture
def damaged(phantom, tmp_path):
    """damaged(task, n) -> a copy of the data without training image n, and its id."""
    from evaluation.features import PackedImages

    def copy(task, n):
        root = shutil.copytree(phantom, tmp_path / "damaged")
        images = PackedImages(root / task, "train")
        shard, _, offset, length = images.data.places[n]
        with open(images.data.shards[shard].with_suffix(".bin"), "r+b") as file:
            file.seek(offset)
            file.write(bytes(length))
        return root, images.ids[n]
    return copy


CHEXBERT_WORDS = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] . , small large left right effusion no pneumothorax heart "
    "lung ##s is clear normal the").split()


def chexbert_tensors():
    """Random tensors of a small CheXbert, by the names of the published file."""
    C, inner = 128, 48
    shapes = {"embeddings.word_embeddings.weight": (len(CHEXBERT_WORDS), C),
              "embeddings.position_embeddings.weight": (16, C),
              "embeddings.token_type_embeddings.weight": (2, C)}
    norms, linears = ["embeddings.LayerNorm"], {"pooler.dense": (C, C)}
    for n in range(2):
        layer = f"encoder.layer.{n}"
        for name in ("query", "key", "value"):
            linears[f"{layer}.attention.self.{name}"] = (C, C)
        linears[f"{layer}.attention.output.dense"] = (C, C)
        linears[f"{layer}.intermediate.dense"] = (inner, C)
        linears[f"{layer}.output.dense"] = (C, inner)
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (C,), f"{name}.bias": (C,)}
    for name, (rows, columns) in linears.items():
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    shapes = {f"bert.{name}": shape for name, shape in shapes.items()}
    for n in range(14):                 # the last, No Finding, is yes or no
        rows = 2 if n == 13 else 4
        shapes |= {f"linear_heads.{n}.weight": (rows, C), f"linear_heads.{n}.bias": (rows,)}

    tensors = {"module.bert.embeddings.position_ids": torch.arange(16)[None]}
    for seed, (name, shape) in enumerate(shapes.items()):
        tensors[f"module.{name}"] = normal(*shape, seed=seed) * 0.2
        if name.endswith("LayerNorm.weight"):
            tensors[f"module.{name}"] += 1
    return tensors


@pytest.fixture(scope="session")
def write_chexbert():
    """write_chexbert(folder, **changes) -> folder with a small random CheXbert and its vocab.txt.

    changes: the name of a tensor -> another tensor, or None to leave it out.
    """
    def write(folder, **changes):
        folder.mkdir(exist_ok=True)
        tensors = {**chexbert_tensors(), **changes}
        tensors = {name: value for name, value in tensors.items() if value is not None}
        content = {"epoch": 8, "model_state_dict": tensors, "loss": 0.1}
        torch.save(content, folder / "chexbert.pth")
        (folder / "vocab.txt").write_text("\n".join(CHEXBERT_WORDS) + "\n")
        return folder
    return write


@pytest.fixture(scope="session")
def chexbert_folder(write_chexbert, tmp_path_factory):
    return write_chexbert(tmp_path_factory.mktemp("chexbert"))


@pytest.fixture(scope="session")
def vision_encoder(run):
    """Options that take the tower of `run` as the network of features."""
    return ["--encoder", "vision", "--checkpoint", str(run), "--device", "cpu"]


@pytest.fixture(scope="session")
def feature_files(phantom, vision_encoder, tmp_path_factory):
    """A directory with train.safetensors, held.safetensors and made.safetensors, of 24, 4 and 14
    images; the last are those of the folder made/.
    """
    out = tmp_path_factory.mktemp("features")
    (out / "made").mkdir()
    for i in range(14):
        _, picture = held_out(Settings(seed=5, size=64), i)
        Image.fromarray(picture).save(out / "made" / f"m{i:02d}.png")
    packed = str(phantom / "gen-64")
    for name, source in (("train", ["--images", packed, "--split", "train"]),
                         ("held", ["--images", packed, "--split", "val"]),
                         ("made", ["--images", str(out / "made")])):
        path = str(out / f"{name}.safetensors")
        assert compare.extract_features([*source, "--out", path, *vision_encoder]) == 0
    return out
