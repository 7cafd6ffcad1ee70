"""Configurations: round trip, and one clear error for every kind of mistake."""

import importlib.util
import json
from pathlib import Path

import pytest

from hyperjax import config
from hyperjax.config import Config
from hyperjax.errors import HyperJaxError

CONFIGS = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def changed(field: str, value) -> dict:
    """The default configuration as a dictionary with one field replaced."""
    tree = config.to_dict(Config())
    *path, name = field.split(".")
    inner = tree
    for key in path:
        inner = inner[key]
    inner[name] = value
    return tree


def test_round_trip_through_json():
    tree = json.loads(json.dumps(config.to_dict(Config()), allow_nan=False))
    assert config.from_dict(tree) == Config()


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("scale", ["full", "small", "smoke"])
def test_every_config_file_is_valid_at_every_scale(path, scale):
    module_spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(module_spec)
    module_spec.loader.exec_module(module)
    made = config.from_dict(module.get_config(scale).to_dict())
    assert made.dataset == path.stem
    assert f"configs/{path.name}" in module.__doc__


def test_full_scale_is_the_papers():
    """Hyper-parameters of the published zoos, method of the generators."""
    published = {
        "mnist": ("tanh", "uniform", 3e-4, 0.0, 10_000),
        "svhn": ("tanh", "uniform", 3e-3, 0.0, 13_257),
        "cifar10": ("gelu", "kaiming_uniform", 1e-4, 1e-2, 8_000),
        "stl10": ("tanh", "kaiming_uniform", 1e-4, 1e-3, 800),
    }
    for path in CONFIGS:
        if path.stem in published:
            scope: dict = {}
            exec(compile(path.read_text(), str(path), "exec"), scope)
            full, zoo = scope["FULL"], scope["FULL"].zoo
            assert (zoo.num_members, zoo.epochs, zoo.training.batch_size) == (1000, 50, 10)
            found = (zoo.activation, zoo.init, zoo.training.learning_rate,
                     zoo.training.weight_decay, full.num_val)  # fmt: skip
            assert found == published[path.stem]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "seed: got -1"),
        ("seed", 2**32, "less than 2"),
        ("seed", 1.5, "seed: got 1.5"),
        ("zoo.num_members", 0, "zoo.num_members: got 0"),
        ("zoo.num_members", 2, "at least 3 members"),
        ("zoo.activation", "tan", "zoo.activation 'tan'"),
        ("zoo.split", (0.7, 0.3), "three shares"),
        ("zoo.training.learning_rate", float("nan"), "learning_rate: got nan"),
        ("zoo.training.optimizer", "lamb", "there is: adam, adamw, sgd"),
        ("zoo.snapshots", (0, 25), "zoo.snapshots"),
        ("autoencoder.heads", 3, "multiple of autoencoder.heads"),
        ("autoencoder.epochs_seen", (49, 51), "between 0 and zoo.epochs = 50"),
        ("autoencoder.epochs_seen", (22, 21), "rising epochs"),
        ("autoencoder.beta", 1.5, "at most 1"),
        ("autoencoder.lwln", 1, "autoencoder.lwln: got 1"),
        ("autoencoder.augment.erase_scale", (0.5, 0.1), "low to high"),
        ("evaluation.epochs", (1, 5), "must contain 0"),
        ("zoo.epoch", 3, "unknown config field 'zoo.epoch'"),
    ],
)
def test_mistakes_name_the_field(field, value, message):
    with pytest.raises(HyperJaxError) as caught:
        config.from_dict(changed(field, value))
    assert message in str(caught.value)


def test_accuracy_needs_models_to_evaluate():
    tree = changed("autoencoder.select", "accuracy")
    tree["autoencoder"]["eval_models"] = 0
    with pytest.raises(HyperJaxError, match="eval_models"):
        config.from_dict(tree)
