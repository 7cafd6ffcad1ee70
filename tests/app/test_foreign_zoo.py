"""Networks that were trained elsewhere through the whole product, as a user calls it."""

import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from exchange_cases import zoo_of
from script_calls import call

import hyperjax as hj
from hyperjax.config import TrainingConfig, ZooConfig
from hyperjax.data.images import load_images
from hyperjax.exchange import export, sources
from hyperjax.store import zoo_file

NAMES = (("net.0.weight", "net.0.bias"), ("net.2.weight", "net.2.bias"))
SMALL = (
    "--config=configs/zoo_folder.py:smoke", "--config.autoencoder.variants=()",
    "--config.autoencoder.training.steps=4", "--config.autoencoder.training.eval_every=2",
)  # fmt: skip


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Twelve MLPs on digits, trained for five epochs, as files of PyTorch; and their zoo."""
    data = load_images("digits", "", seed=0, num_train=400, num_val=200)
    training = TrainingConfig(learning_rate=3e-3, batch_size=16)
    config = ZooConfig(
        num_members=12, epochs=5, model="mlp", widths=(16,), activation="relu", training=training,
        init="torch_default", snapshots=(5,),
    )  # fmt: skip
    zoo = hj.train_zoo(data, config, jax.random.key(0))
    folder = tmp_path_factory.mktemp("networks")
    export.export(zoo, folder, "torch", tensors=NAMES)
    return SimpleNamespace(folder=folder, zoo=zoo)


def done(env, *command):
    result = call(env, *command)
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.split())


def test_with_images(env, networks, tmp_path):
    """Trained on, sampled, evaluated and fine-tuned on the images that are named; exported."""
    folder = tmp_path / "mine"
    text = done(
        env, "train.py", *SMALL, f"--workdir={folder}", f"--config.zoo.path={networks.folder}",
        "--config.dataset=digits", "--config.num_val=200", "--config.num_train=100",
    )  # fmt: skip
    assert "assumed: that it is the architecture mlp" in text
    assert "measuring them on the images at hand" in text
    run = hj.load(folder)
    np.testing.assert_array_equal(run.zoo.weights, networks.zoo.weights)
    assert run.config.autoencoder.data.epochs_seen == (1,)  # the one that there is
    accuracy = run.zoo.metrics["test_accuracy"]
    np.testing.assert_allclose(accuracy, networks.zoo.metrics["test_accuracy"], atol=1e-6)
    assert accuracy.mean() > 0.7  # of ten classes
    done(env, "sample.py", f"--workdir={folder}", "--sampler=joint30", "--num_samples=3")
    (path,) = (folder / "samples").glob("joint30-*")
    assert zoo_file.read(path).metrics["test_accuracy"].shape == (3, 1)
    text = done(
        env, "evaluate.py", f"--workdir={folder}", "--experiments=fig2,tab1,novelty",
        "--samplers=joint,average,repair:average", "--config.evaluation.epochs=(0,1)",
    )  # fmt: skip
    report = json.loads((folder / "report" / "tab1.json").read_text())
    assert report
    paths = export.export(zoo_file.read(path), tmp_path / "out", "torch", tensors=NAMES)
    state = sources.tensors_of(paths[0])
    assert list(state) == [name for names in NAMES for name in names]
    assert state["net.0.weight"].shape == (16, 784)


def test_without_images(env, networks, tmp_path):
    """Reconstruction and geometry; what needs images says so."""
    zoo = tmp_path / "zoo.safetensors"
    hj.import_zoo(networks.folder, zoo, activation="relu")
    folder = tmp_path / "blind"
    text = done(env, "train.py", *SMALL, f"--workdir={folder}", f"--config.zoo.path={zoo}")
    assert "accuracy not known" in text
    assert not (folder / "zoo" / "moments.safetensors").exists()
    text = done(env, "evaluate.py", f"--workdir={folder}", "--samplers=joint,kde")
    assert "without images (config field dataset) there is no tab1" in text
    assert "networks of" in (folder / "report" / "index.html").read_text()
    text = done(env, "sample.py", f"--workdir={folder}", "--sampler=joint", "--num_samples=3")
    assert "3 models from joint (lwln) written to" in text
    for command in (
        ("sample.py", "--sampler=subsample:joint"),
        ("evaluate.py", "--experiments=tab1"),
    ):
        refused = call(env, *command, f"--workdir={folder}")
        assert refused.returncode == 2
        assert "config field dataset names the data set" in " ".join(refused.stderr.split())


def test_images_of_another_size_are_refused(env, networks, tmp_path):
    refused = call(
        env, "train.py", *SMALL, f"--workdir={tmp_path / 'mine'}", "--config.dataset=digits",
        f"--config.zoo.path={networks.folder}", "--config.image_size=20", "--config.num_val=200",
        "--config.num_train=100",
    )  # fmt: skip
    assert refused.returncode == 2
    assert "images of shape (20, 20, 1)" in " ".join(refused.stderr.split()) or (
        "784 inputs" in refused.stderr or "would get" in refused.stderr
    )


def test_the_commands_import_and_export(env, tmp_path):
    zoo = zoo_of(networks_spec(), members=3)
    paths = export.export(zoo, tmp_path / "dicts", "safetensors", tensors=NAMES)
    file = tmp_path / "zoo.safetensors"
    command = ("-m", "hyperjax")
    text = done(
        env, *command, "import", f"--source={paths[0].parent}", f"--output={file}",
        "--activation=relu",
    )  # fmt: skip
    assert "3 members, 0 left out; no metrics" in text
    text = done(
        env, *command, "export", f"--source={file}", f"--output={tmp_path / 'out'}",
        "--members=2,0", "--form=safetensors",
    )  # fmt: skip
    assert "2 files in" in text
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == [
        "00000000.safetensors",
        "00000002.safetensors",
    ]
    assert (out / "00000002.safetensors").read_bytes() == paths[2].read_bytes()
    refused = call(env, *command, "export", f"--source={file}", f"--output={out}", "--members=3")
    assert refused.returncode == 2
    assert "rows 0 to 2" in refused.stderr
    assert "torch" in done(env, *command, "export", "--list")


def networks_spec():
    return hj.architecture("mlp", channels=1, activation="relu", image_size=(28, 28))
