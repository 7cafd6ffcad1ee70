"""Files of every version so far are read by this one; see tests/golden/README.md."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save

from hyperjax import config as config_lib
from hyperjax import hyperrep
from hyperjax.app import run, train, train_population
from hyperjax.app.train_population import make_population
from hyperjax.config import AutoencoderConfig, Config, ZooConfig
from hyperjax.errors import HyperJaxError
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.store import hyperrep_file, workdir, zoo_file
from hyperjax.store.upgrade import upgraded

GOLDEN = Path(__file__).parents[1] / "golden"
VERSIONS = ("v0_1", "v0_2")
AUTOENCODER = {
    "architecture.dim": 8, "architecture.heads": 2, "architecture.mlp_dim": 16,
    "architecture.blocks": 1, "architecture.latent": 2, "architecture.dropout": 0.0,
    "architecture.compression": "linear", "architecture.projection_layers": 1,
    "architecture.projection_hidden": 8, "architecture.projection_dim": 4,
    "data.epochs_seen": (2, 3), "data.augment.noise": 0.5, "data.augment.erase": 0.0,
    "loss.beta": 0.95, "training.steps": 40, "training.batch_size": 8,
    "training.learning_rate": 0.003, "training.weight_decay": 0.01, "training.warmup_steps": 2,
    "training.eval_every": 10, "training.eval_models": 4, "training.select": "last",
}  # fmt: skip
FIELDS = {
    "dataset": "digits", "num_train": 120, "num_val": 60, "zoo.num_members": 3, "zoo.epochs": 3,
    "zoo.init": "torch_default", "zoo.training.learning_rate": 0.005,
    "zoo.training.weight_decay": 0.01, "zoo.training.batch_size": 32, "zoo.snapshots": (2, 3),
    "zoo.mapping": "map", "samplers.joint_bandwidth": 0.3, "samplers.gan.hidden": 16,
    "samplers.gan.steps": 50, "samplers.pca_components": 4, "evaluation.num_samples": 4,
    "evaluation.epochs": (0, 1), "evaluation.bootstrap": 199, "evaluation.unseen_models": 15,
    "evaluation.noise_levels": (0.0, 0.1, 1.0), "evaluation.pairs": 4, "evaluation.points": 3,
    "evaluation.probe_snapshots": 3, "autoencoder.loss.kl": 0.5,
    **{f"autoencoder.{name}": value for name, value in AUTOENCODER.items()},
}  # fmt: skip
# the twin was a switch, and of a VAE there was nothing to say yet
VARIANTS = {"v0_1": ("lwln", "no_lwln"), "v0_2": ("no_lwln", "vae")}


@pytest.fixture(params=VERSIONS)
def version(request):
    return request.param


@pytest.fixture
def folder(version, tmp_path):
    """A copy: nothing may write into the golden one."""
    return shutil.copytree(GOLDEN / version, tmp_path / version)


def expected_config(version):
    return config_lib.override(Config(), FIELDS | {"autoencoder.variants": VARIANTS[version]})


# --- configurations ---------------------------------------------------------------------------


def test_the_configuration(version, folder):
    """It opens as what was asked for, is not taken for another, and is written as of now."""
    expected = expected_config(version)
    assert workdir.load_config(folder) == expected
    workdir.create(folder, expected)
    assert json.loads((folder / "config.json").read_text()).keys() == vars(expected).keys()
    assert workdir.load_config(folder) == expected
    with pytest.raises(HyperJaxError, match=r"training\.steps: 40 there, 41 here"):
        workdir.create(folder, config_lib.override(expected, {"autoencoder.training.steps": 41}))


def old_config(**changes):
    """config.json of version 0.1, with other values of some fields."""
    tree = config_lib.flat(json.loads((GOLDEN / "v0_1" / "config.json").read_text()))
    assert changes.keys() <= tree.keys()
    return config_lib.nested(tree | changes)


def test_switches_that_have_become_something_else():
    """A weight of the KL term made a VAE, and train_baseline the twin."""
    vae = old_config(**{"autoencoder.kl": 0.25, "autoencoder.tanh": False})
    c = config_lib.from_dict(upgraded(vae)).autoencoder
    assert (c.architecture.variational, c.loss.kl) == (True, 0.25)
    c = config_lib.from_dict(upgraded(old_config())).autoencoder
    assert (c.architecture.variational, c.loss.kl) == (False, 0.5)  # of evaluation.vae_kl
    alone = upgraded(old_config(**{"autoencoder.train_baseline": False}))
    assert config_lib.from_dict(alone).autoencoder.variants == ()


REMOVED = {
    "autoencoder.kl_warmup": 5,
    "autoencoder.augment.erase_scale": [0.1, 0.2],
    "zoo.max_abs_weight": 3.0,
    "samplers.neigh.cube": True,
    "evaluation.ensemble": "vote",
}


@pytest.mark.parametrize("field", REMOVED)
def test_an_option_that_is_gone_is_refused_by_name(field, tmp_path):
    """Unless it had the value that is now always so: that of the golden files."""
    tree = old_config(**{field: REMOVED[field]})
    (tmp_path / "config.json").write_text(json.dumps(tree))
    with pytest.raises(HyperJaxError, match=f"older version with config field {field}, .* always"):
        workdir.load_config(tmp_path)


@pytest.mark.parametrize(
    ("old", "value", "now"),
    [
        ("autoencoder.compression", "average", "autoencoder.architecture.compression"),
        ("autoencoder.select", "accuracy", "autoencoder.training.select"),
    ],
)
def test_a_value_that_is_gone_is_refused_by_the_name_of_its_field(old, value, now, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(old_config(**{old: value})))
    with pytest.raises(HyperJaxError, match=f"config field {now} '{value}'"):
        workdir.load_config(tmp_path)


# --- hyper-representations --------------------------------------------------------------------


def test_the_hyper_representation(version, folder):
    """It has its configuration, and computes what the version that wrote it computed."""
    model, info = hyperrep_file.read(workdir.hyperrep_path(folder, "lwln"))
    own = dataclasses.replace(model.config, variants=())
    fields = AUTOENCODER if version == "v0_1" else AUTOENCODER | {"loss.kl": 0.5}
    tree = config_lib.flat(config_lib.to_dict(AutoencoderConfig(variants=()))) | fields
    assert own == config_lib.build(AutoencoderConfig, config_lib.nested(tree))
    assert model.spec == zoo_cnn_spec(1, "tanh")
    assert (info["name"], info["best_step"]) == ("lwln", 40)
    with np.load(folder / "expected.npz") as expected:
        decoded = hyperrep.decode(model, expected["latents"])
        assert np.isfinite(decoded).all()
        np.testing.assert_allclose(decoded, expected["decoded"], rtol=0, atol=1e-6)
        for aligned in (True, False):
            found = hyperrep.encode(model, model.reference[None], aligned=aligned)
            np.testing.assert_allclose(found, expected["encoded"], rtol=0, atol=1e-5)
    # every part matters to this comparison
    params = jax.tree.map(np.zeros_like, model.params["decoder"])
    for name, leaves in params.items():
        changed = model.params | {"decoder": model.params["decoder"] | {name: leaves}}
        other = hyperrep.decode(dataclasses.replace(model, params=changed), np.ones((1, 2)))
        assert np.abs(other - hyperrep.decode(model, np.ones((1, 2)))).max() > 1e-5, name


def test_a_hyper_representation_has_one_digest_in_every_version(version, folder):
    """Also where the file does not say, being older than digests: as if it were written now."""
    path = workdir.hyperrep_path(folder, "lwln")
    with safe_open(path, framework="numpy") as file:
        assert ("digest" in file.metadata()) == (version != "v0_1")
    model, info = hyperrep_file.read(path)
    hyperrep_file.write(path, model, {})
    assert hyperrep_file.read(path)[1]["digest"] == info["digest"]


def test_an_option_that_is_gone_is_refused_in_a_hyper_representation_too(tmp_path):
    path = tmp_path / "lwln.safetensors"
    with safe_open(workdir.hyperrep_path(GOLDEN / "v0_1", "lwln"), framework="numpy") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    metadata["config"] = json.dumps(json.loads(metadata["config"]) | {"kl_warmup": 5})
    path.write_bytes(save(tensors, metadata))
    with pytest.raises(HyperJaxError, match=r"lwln\.safetensors: .*autoencoder\.kl_warmup"):
        hyperrep_file.read(path)


def test_the_whole_workdir(version, folder):
    """As scripts open it: what its configuration says is what its files are."""
    opened = run.load(folder)
    assert opened.main == "lwln"
    assert opened.hyperreps["lwln"].config.architecture.latent == 2
    assert opened.hyperreps.info("lwln")["best_step"] == 40
    assert opened.zoo.weights.shape == (3, 2, 2464)
    assert sorted(np.concatenate(opened.split).tolist()) == [0, 1, 2]
    assert opened.data.train.shape == (1, 2, 2464)
    assert not np.isnan(opened.data.quality).any()


# --- zoos -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """A run whose images and engine are there: of both versions they are the same."""
    return run.Run(GOLDEN / "v0_1", expected_config("v0_1"))


@pytest.fixture
def accept(made, folder, monkeypatch):
    """Take the zoo of the workdir for that of a configuration, without training one."""

    def training(*_):
        raise AssertionError("it would have been trained anew")

    monkeypatch.setattr(train_population, "_train", training)

    def take(config):
        recipe = train.zoo_recipe(config, made.images)
        return make_population(workdir.zoo_path(folder), recipe, config, made.task, "zoo")

    return take


def test_the_zoo(version, folder, accept):
    """It is that of its configuration, hence read and not trained again; of no other."""
    config = workdir.load_config(folder)
    found = accept(config)
    assert found.weights.shape == (3, 2, 2464)
    assert np.isfinite(found.weights).all()
    assert found.epochs.tolist() == [2, 3]
    for field, value in (("zoo.init", "normal"), ("zoo.training.learning_rate", 0.004),
                         ("zoo.snapshots", (1, 2, 3)), ("zoo.num_members", 4)):  # fmt: skip
        with pytest.raises(HyperJaxError, match="was made with other settings"):
            accept(config_lib.override(config, {field: value}))
    # how members are computed is no part of them
    accept(config_lib.override(config, {"zoo.mapping": "vmap", "zoo.chunk_size": 1}))


def test_a_zoo_is_still_that_of_its_configuration_when_there_is_a_new_field(
    made, folder, accept, monkeypatch
):
    """One that the file says nothing of had its default."""
    new = ("young", str, dataclasses.field(default="as ever"))
    younger = dataclasses.make_dataclass("Younger", [new], bases=(ZooConfig,), frozen=True)
    monkeypatch.setattr(train_population, "ZooConfig", younger)
    config = workdir.load_config(folder)

    def of(**fields):
        return dataclasses.replace(config, zoo=younger(**vars(config.zoo), **fields))

    assert "young" in train.zoo_recipe(of(), made.images).info["zoo"]
    assert accept(of()).weights.shape == (3, 2, 2464)
    with pytest.raises(HyperJaxError, match="was made with other settings"):
        accept(of(young="otherwise"))


def without(info, name):
    zoo = info["zoo"]
    training = {k: v for k, v in zoo["training"].items() if k != name}
    return info | {"zoo": {k: v for k, v in zoo.items() if k != name} | {"training": training}}


@pytest.mark.parametrize(
    ("field", "default"),
    [("activation", True), ("optimizer", True), ("init", False), ("batch_size", False)],
)
def test_a_field_that_the_file_does_not_have_had_its_default(folder, accept, field, default):
    path = workdir.zoo_path(folder)
    models = zoo_file.read(path)
    info = without(models.info, field)
    assert info != models.info
    zoo_file.write(path, dataclasses.replace(models, info=info))
    if default:
        assert accept(workdir.load_config(folder)).info == info
    else:  # the configuration's value is not the default
        with pytest.raises(HyperJaxError, match="was made with other settings"):
            accept(workdir.load_config(folder))


def test_a_field_that_this_version_does_not_know_is_refused_by_name(folder, accept):
    path = workdir.zoo_path(folder)
    models = zoo_file.read(path)
    info = models.info | {"zoo": models.info["zoo"] | {"future": 1}}
    zoo_file.write(path, dataclasses.replace(models, info=info))
    with pytest.raises(HyperJaxError, match=r"zoo\.future"):
        accept(workdir.load_config(folder))
