"""Networks that were trained elsewhere through the whole product, as a user calls it."""

import dataclasses
import re
import shlex
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from exchange_cases import moments_of, zoo_of
from script_calls import ROOT, call

import hyperjax as hj
from hyperjax.app import foreign_zoo
from hyperjax.config import Config, TrainingConfig, ZooConfig, override
from hyperjax.data.images import load_images
from hyperjax.errors import HyperJaxError
from hyperjax.exchange import export, sources
from hyperjax.store import zoo_file

NAMES = (("net.0.weight", "net.0.bias"), ("net.2.weight", "net.2.bias"))
PAGE = (ROOT / "docs" / "networks.md").read_text()
COMMAND = ("-m", "hyperjax")
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


def seeing(epochs, config):
    return override(config, {"autoencoder.data.epochs_seen": tuple(map(int, epochs))})


def done(env, *command):
    result = call(env, *command)
    assert result.returncode == 0, result.stderr
    return " ".join(result.stdout.split())


def test_the_page_on_ones_own_networks(env, networks, tmp_path):
    """Every command of docs/networks.md, at a smaller scale, then its Python."""
    blocks = re.findall(r"```sh\n(.*?)```", PAGE, flags=re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    places = {
        "--source=networks": f"--source={networks.folder}",
        "zoo.safetensors": f"{tmp_path}/zoo.safetensors",
        "samples.safetensors": f"{tmp_path}/samples.safetensors",
        "runs/mine": f"{tmp_path}/mine",
        "=exported": f"={tmp_path}/exported",
        "--config=zoo_folder:small": " ".join(SMALL),
    }
    texts = {}
    for line in lines:
        for name, place in places.items():
            line = line.replace(name, place)
        program, *arguments = shlex.split(line)
        assert program == "hyperjax"
        texts[arguments[0]] = done(env, *COMMAND, *arguments)
    assert list(texts) == ["import", "train", "sample", "evaluate", "export"]
    assert "assumed: that it is the architecture mlp" in texts["import"]
    assert "measuring them on the images at hand" in texts["train"]
    run = hj.load(tmp_path / "mine")
    np.testing.assert_array_equal(run.zoo.weights, networks.zoo.weights)
    assert run.config.autoencoder.data.epochs_seen == (1,)  # the one that there is
    accuracy = run.zoo.metrics["test_accuracy"]
    np.testing.assert_allclose(accuracy, networks.zoo.metrics["test_accuracy"], atol=1e-6)
    assert accuracy.mean() > 0.7  # of ten classes
    drawn = zoo_file.read(tmp_path / "samples.safetensors")
    assert drawn.metrics["test_accuracy"].shape == (10, 1)
    paths = sorted((tmp_path / "exported").iterdir())
    assert len(paths) == 10
    state = sources.tensors_of(paths[3])
    assert list(state) == [name for names in NAMES for name in names]
    np.testing.assert_array_equal(
        np.concatenate([x.ravel() for x in state.values()]), drawn.weights[3, 0]
    )
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)
    code = code.replace("runs/mine", f"{tmp_path}/mine").replace('"folder"', f'"{tmp_path}/hub"')
    namespace = {}
    exec(code, namespace)
    assert namespace["hyperrep"].spec == run.zoo.spec


def test_without_images(env, networks, tmp_path):
    """Reconstruction and geometry; what needs images says so."""
    folder = tmp_path / "blind"
    source = tmp_path / "source"
    shutil.copytree(networks.folder, source)
    text = done(env, "train.py", *SMALL, f"--workdir={folder}", f"--config.zoo.path={source}")
    assert "accuracy not known" in text
    moved = (f"--workdir={folder}", f"--config.zoo.path={source}")
    shutil.rmtree(source)
    assert "nothing to train" in done(env, "train.py", *SMALL, *moved)  # asks for it no more
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


def test_fine_tuning_of_networks_from_elsewhere(env, networks, tmp_path):
    """tab1 and repaired samples; images of another size are refused."""
    command = (
        "train.py", *SMALL, f"--workdir={tmp_path / 'mine'}", "--config.dataset=digits",
        f"--config.zoo.path={networks.folder}", "--config.num_val=200", "--config.num_train=100",
    )  # fmt: skip
    refused = call(env, *command, "--config.image_size=20")
    assert refused.returncode == 2
    assert "20 x 20 pixels" in " ".join(refused.stderr.split())
    done(env, *command)
    done(
        env, "evaluate.py", f"--workdir={tmp_path / 'mine'}", "--experiments=tab1",
        "--samplers=joint,repair:average", "--config.evaluation.epochs=(0,1)",
    )  # fmt: skip
    text = (tmp_path / "mine" / "report" / "index.html").read_text()
    assert "repair:average" in text


def test_rows_of_a_zoo_are_exported(env, tmp_path):
    spec = hj.architecture("mlp", channels=1, activation="relu", image_size=(28, 28))
    paths = export.export(zoo_of(spec, 3), tmp_path / "dicts", "safetensors", tensors=NAMES)
    file, out = tmp_path / "zoo.safetensors", tmp_path / "out"
    hj.import_zoo(paths[0].parent, file, activation="relu")
    command = (*COMMAND, "export", f"--source={file}", f"--output={out}")
    assert "2 files in" in done(env, *command, "--members=2,0", "--form=safetensors")
    assert [path.stem for path in sorted(out.iterdir())] == ["00000000", "00000002"]
    assert (out / "00000002.safetensors").read_bytes() == paths[2].read_bytes()
    refused = call(env, *command, "--members=3")
    assert refused.returncode == 2
    assert "rows 0 to 2" in refused.stderr
    assert "torch" in done(env, *COMMAND, "export", "--list")


def test_images_that_do_not_fit_leave_the_folder_free(networks, tmp_path):
    source, path = tmp_path / "mine.safetensors", tmp_path / "run" / "zoo" / "zoo.safetensors"
    zoo_file.write(source, networks.zoo)
    config = seeing((5,), Config(dataset="digits", zoo=ZooConfig(path=str(source))))
    counts = {"seed": 0, "num_train": 100, "num_val": 50}
    with pytest.raises(HyperJaxError, match=r"config field dataset: images of shape \(20, 20, 1\)"):
        foreign_zoo.make_zoo(config, path, load_images("digits", "", **counts, size=20))
    assert not path.parent.exists()
    for images in (None, load_images("digits", "", **counts)):
        with pytest.raises(HyperJaxError, match=r"no snapshot of epochs \[4\]; it has \[5\]"):
            foreign_zoo.make_zoo(seeing((4, 5), config), path, images)
        assert not path.parent.exists()
    made = foreign_zoo.make_zoo(config, path, load_images("digits", "", **counts))
    np.testing.assert_array_equal(made.weights, networks.zoo.weights)


def test_second_moments_come_along(tmp_path):
    """Of networks of others and of a zoo file; one that has none is refused."""
    spec = hj.architecture("mlp", channels=1, activation="relu", image_size=(28, 28))
    zoo = moments_of(zoo_of(spec, 3))
    export.export(zoo, tmp_path / "ray", "ray")
    zoo_file.write(tmp_path / "kept.safetensors", zoo)
    for name in ("ray", "kept.safetensors"):
        settings = ZooConfig(path=str(tmp_path / name), activation="relu", save_moments=True)
        config = seeing(zoo.epochs, Config(zoo=dataclasses.replace(settings, model="")))
        found = foreign_zoo.make_zoo(config, tmp_path / f"{name}.made")
        np.testing.assert_array_equal(found.second_moments, zoo.second_moments)
    zoo_file.write(tmp_path / "kept.safetensors", dataclasses.replace(zoo, second_moments=None))
    with pytest.raises(HyperJaxError, match=r"zoo\.save_moments: .*kept\.safetensors has none"):
        foreign_zoo.make_zoo(config, tmp_path / "other.made")
