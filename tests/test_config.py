"""Configurations: round trip, scales, and one clear error for every kind of mistake."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from hyperjax import config, config_rules
from hyperjax.config import AutoencoderConfig, Config, SamplersConfig, ZooConfig
from hyperjax.errors import HyperJaxError

ROOT = Path(__file__).parents[1]
NAMES = sorted({p.stem for p in (ROOT / "configs").glob("*.py")} - {"__init__", "common"})
SCALES = dict.fromkeys(NAMES, ("full", "paper", "small", "smoke"))
SCALES |= dict.fromkeys(("fashion_mnist", "mnist"), ("full", "large", "paper", "small", "smoke"))
SCALES |= dict.fromkeys(("cifar10", "stl10"), ("cnn3", "full", "paper", "small", "smoke"))
SCALES["digits"] = ("demo", "large", "paper", "small", "smoke")
SCALES["zoo_folder"] = ("large", "small", "smoke")
PUBLISHED = [name for name, scales in SCALES.items() if "full" in scales]


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


@pytest.fixture
def at_scale(monkeypatch):
    """Reads a file of configs/ as the scripts do."""
    monkeypatch.syspath_prepend(ROOT)

    def read(name, scale=None):
        path = ROOT / "configs" / f"{name}.py"
        module_spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(module_spec)
        module_spec.loader.exec_module(module)
        assert f"configs/{path.name}" in module.__doc__
        tree = module.get_config(scale) if scale else module.get_config()
        return config.from_dict(tree.to_dict())

    return read


# --- trees --------------------------------------------------------------------------------


def test_a_part_is_built_by_itself():
    part = {"data": {"epochs_seen": [1, 2]}, "variants": []}
    expected = dataclasses.replace(
        AutoencoderConfig(),
        data=dataclasses.replace(AutoencoderConfig().data, epochs_seen=(1, 2)),
        variants=(),
    )
    assert config.build(AutoencoderConfig, part) == expected
    assert config.build(AutoencoderConfig, config.to_dict(expected)) == expected
    with pytest.raises(HyperJaxError, match=r"config field autoencoder\.loss\.beta: got 2.0"):
        config.build(AutoencoderConfig, {"loss": {"beta": 2.0}}, "autoencoder.")


def test_flat_and_nested():
    tree = {"a": {"b": 1, "c": {"d": [2, 3]}}, "e": "f"}
    fields = {"a.b": 1, "a.c.d": (2, 3), "e": "f"}
    assert config.flat(tree) == fields
    assert config.nested(fields) == {"a": {"b": 1, "c": {"d": (2, 3)}}, "e": "f"}
    default = config.to_dict(Config())
    assert config.from_dict(config.nested(config.flat(default))) == Config()


def test_override_and_differences():
    fields = {"seed": 3, "autoencoder.architecture.tanh": False, "samplers.gan.steps": 7,
              "evaluation.epochs": [0, 2]}  # fmt: skip
    made = config.override(Config(), fields)
    assert config.differences(Config(), made) == {
        "seed": (0, 3),
        "autoencoder.architecture.tanh": (True, False),
        "samplers.gan.steps": (3000, 7),
        "evaluation.epochs": ((0, 1, 5, 25, 50), (0, 2)),
    }
    assert config.override(made, {}) == made
    assert config.differences(made.samplers, SamplersConfig()) == {"gan.steps": (7, 3000)}


# --- files --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scale"), [(name, scale) for name, scales in SCALES.items() for scale in scales]
)
def test_every_config_file_is_valid_at_every_scale(at_scale, name, scale):
    assert at_scale(name, scale).dataset == ("" if name == "zoo_folder" else name)


@pytest.mark.parametrize("name", SCALES)
def test_an_unknown_scale_lists_those_that_there_are(at_scale, name):
    known = ", ".join(SCALES[name])
    with pytest.raises(HyperJaxError, match=f"^unknown scale 'huge'; there is: {known}$"):
        at_scale(name, "huge")


@pytest.mark.parametrize("name", PUBLISHED)
def test_paper_differs_from_full_by_what_is_ours_alone(at_scale, name):
    full, paper = at_scale(name, "full"), at_scale(name, "paper")
    assert at_scale(name) == full
    assert {n.removeprefix("autoencoder.") for n in config.differences(full, paper)} == {
        "architecture.linear_path", "data.align", "data.center", "data.scale",
        "data.augment.permute", "loss.target", "training.steps", "training.batch_size",
        "training.schedule", "training.warmup_steps", "training.clip_norm", "training.eval_every",
        "training.select",
    }  # fmt: skip


@pytest.mark.parametrize("name", [name for name in SCALES if "paper" in SCALES[name]])
def test_paper_has_the_published_autoencoder(at_scale, name):
    """As its code has it: weights as they are, views permuted, the corrupted view the target."""
    made = at_scale(name, "paper").autoencoder
    a, data, loss, t = made.architecture, made.data, made.loss, made.training
    assert (a.dim, a.heads, a.mlp_dim, a.blocks, a.latent, a.dropout) == (800, 4, 900, 2, 700, 0.1)
    assert (a.compression, a.tanh, a.linear_path, a.variational) == ("token", True, False, False)
    assert (a.projection_layers, a.projection_hidden, a.projection_dim) == (4, 400, 50)
    assert (data.align, data.center, data.scale) == (False, False, False)
    assert data.epochs_seen == (21, 22, 23, 24, 25)
    augment = data.augment
    assert (augment.permute, augment.mix, augment.noise, augment.erase) == (True, 0, 0, 0.5)
    assert (loss.lwln, loss.beta, loss.temperature, loss.target) == (True, 0.9, 0.1, "view")
    assert (t.batch_size, t.learning_rate, t.weight_decay, t.clip_norm) == (500, 1e-4, 1e-9, 0)
    assert (t.schedule, t.warmup_steps, t.select) == ("constant", 0, "last")
    assert made.variants == ("no_lwln",)


def test_digits_at_paper_scale_has_its_own_zoo(at_scale):
    small, paper = at_scale("digits", "small"), at_scale("digits", "paper")
    assert at_scale("digits") == small
    assert (paper.zoo, paper.samplers, paper.evaluation) == (
        small.zoo, small.samplers, small.evaluation
    )  # fmt: skip


def test_full_scale_is_the_papers(at_scale):
    """Hyper-parameters of the published zoos, method of the generators."""
    published = {
        "mnist": ("tanh", "uniform", 3e-4, 0.0, 10_000),
        "svhn": ("tanh", "uniform", 3e-3, 0.0, 13_257),
        "cifar10": ("gelu", "kaiming_uniform", 1e-4, 1e-2, 8_000),
        "stl10": ("tanh", "kaiming_uniform", 1e-4, 1e-3, 800),
    }
    assert set(published) <= set(SCALES)
    for name, expected in published.items():
        full = at_scale(name, "full")
        zoo = full.zoo
        assert (zoo.num_members, zoo.epochs, zoo.training.batch_size) == (1000, 50, 10)
        found = (zoo.activation, zoo.init, zoo.training.learning_rate,
                 zoo.training.weight_decay, full.num_val)  # fmt: skip
        assert found == expected


# --- mistakes -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("seed", -1, "seed: got -1"),
        ("seed", 2**32, "seed: got 4294967296, expected at least 0 and at most 4294967295"),
        ("seed", 1.5, "seed: got 1.5"),
        ("zoo.num_members", 0, "zoo.num_members: got 0"),
        ("zoo.num_members", 2, "zoo.num_members: got 2, expected at least 3"),
        ("zoo.epochs", 0, "zoo.epochs: got 0, expected positive"),
        ("zoo.epochs", True, "zoo.epochs: got True"),
        ("zoo.chunk_size", -1, "zoo.chunk_size: got -1, expected at least 0"),
        ("zoo.activation", "tan", "zoo.activation 'tan'"),
        ("zoo.mapping", "pmap", "zoo.mapping 'pmap'; there is: auto, map, vmap"),
        ("zoo.split", (0.7, 0.3), "three shares"),
        ("zoo.split", (1.0, 0.0, 0.0), "three shares"),
        ("zoo.split", (0.5, 0.25, float("nan")), "three shares"),
        ("zoo.training.learning_rate", float("nan"), "learning_rate: got nan"),
        ("zoo.training.learning_rate", float("inf"), "learning_rate: got inf"),
        ("zoo.training.optimizer", "lamb", "there is: adam, adamw, sgd"),
        ("zoo.snapshots", (0, 25), "zoo.snapshots"),
        ("zoo.snapshots", (-1, 50), "zoo.snapshots: got (-1, 50), expected rising epochs"),
        ("autoencoder.architecture.heads", 3, "autoencoder.architecture.dim: must be a multiple"),
        ("autoencoder.architecture.compression", "average", "'average'; there is: linear, token"),
        ("autoencoder.architecture.dropout", 1.0, "dropout: got 1.0, expected at least 0 and at"),
        ("autoencoder.architecture.dropout", 0.999, "architecture.dropout: got 0.999"),
        ("autoencoder.architecture.dropout", 0.001, "architecture.dropout: got 0.001, expected 0"),
        ("autoencoder.architecture.variational", True, "expected tanh=False"),
        ("autoencoder.architecture", 3, "autoencoder.architecture: got 3, expected fields"),
        ("autoencoder.data.epochs_seen", (49, 51), "between 0 and zoo.epochs = 50"),
        ("autoencoder.data.epochs_seen", (22, 21), "rising epochs"),
        ("autoencoder.data.epochs_seen", (), "autoencoder.data.epochs_seen: got ()"),
        ("autoencoder.data.epochs_seen", "21", "autoencoder.data.epochs_seen: got '21'"),
        ("autoencoder.data.augment.noise", -0.1, "noise: got -0.1, expected at least 0"),
        ("autoencoder.loss.beta", 1.5, "loss.beta: got 1.5, expected at least 0 and at most 1"),
        ("autoencoder.loss.lwln", 1, "autoencoder.loss.lwln: got 1"),
        ("autoencoder.loss.kl", 0.0, "autoencoder.loss.kl: got 0.0, expected positive"),
        ("autoencoder.training.select", "accuracy", "'accuracy'; there is: last, loss"),
        ("autoencoder.variants", ("lwln", "gan"), "autoencoder.variants 'gan'; there is: lwln, no"),
        ("samplers.best_fraction", 0.0, "samplers.best_fraction: got 0.0"),
        ("samplers.joint_bandwidth", 1.1, "samplers.joint_bandwidth: got 1.1"),
        ("evaluation.epochs", (1, 5), "must contain 0"),
        ("evaluation.points", 1, "evaluation.points: got 1, expected at least 2"),
        ("evaluation.ensemble_sizes", (0, 3), "evaluation.ensemble_sizes"),
        ("evaluation.noise_levels", (0.0, 0.5, 0.1), "rising levels from 0"),
        ("zoo.epoch", 3, "unknown config field 'zoo.epoch'"),
    ],
)
def test_mistakes_name_the_field(field, value, message):
    for make in (
        lambda: config.from_dict(changed(field, value)),
        lambda: config.override(Config(), {field: value}),
    ):
        with pytest.raises(HyperJaxError) as caught:
            make()
        assert message in str(caught.value)


def test_a_value_has_no_fields():
    with pytest.raises(HyperJaxError, match=r"zoo.epochs.first: epochs has no fields"):
        config.override(Config(), {"zoo.epochs.first": 3})


@pytest.mark.parametrize("value", [0.0, 1 / 256, 0.99])
def test_dropout_that_is_taken(value):
    made = config.override(Config(), {"autoencoder.architecture.dropout": value})
    assert made.autoencoder.architecture.dropout == value


def test_means_are_of_aligned_networks():
    fields = {"autoencoder.data.augment.mix": 0.5}
    config_rules.check_asked(config.override(Config(), fields).autoencoder)
    with pytest.raises(HyperJaxError, match=r"augment\.mix: means of networks that are not"):
        config_rules.check_asked(
            config.override(Config(), fields | {"autoencoder.data.align": False}).autoencoder
        )


def test_parts_of_a_batch_are_of_autoencoders_that_draw_nothing():
    fields = {"autoencoder.micro_batch": 8}
    for draws in ({}, {"autoencoder.architecture.variational": True,
                       "autoencoder.architecture.tanh": False}):  # fmt: skip
        with pytest.raises(HyperJaxError, match=r"autoencoder\.micro_batch: got 8, expected 0"):
            config_rules.check_asked(config.override(Config(), fields | draws).autoencoder)
    for same in ("autoencoder.architecture.dropout", 0.0), (
        "autoencoder.architecture.network", "graph"
    ):  # fmt: skip
        config_rules.check_asked(config.override(Config(), fields | dict([same])).autoencoder)


def test_second_moments_are_those_of_adam():
    fields = {"zoo.save_moments": True, "zoo.training.optimizer": "sgd"}
    with pytest.raises(HyperJaxError, match=r"zoo\.save_moments: sgd has no second moments"):
        config.override(Config(), fields)
    assert config.override(Config(), fields | {"zoo.path": "zoo"}).zoo.save_moments  # imported


def test_snapshots_hold_what_is_seen_of_them():
    fields = {"zoo.snapshots": (0, 10, 50), "autoencoder.data.epochs_seen": (10,)}
    assert config.override(Config(), fields).zoo == dataclasses.replace(
        ZooConfig(), snapshots=(0, 10, 50)
    )
    for wrong in ({"zoo.snapshots": (0, 10)}, {"autoencoder.data.epochs_seen": (10, 20)}):
        with pytest.raises(HyperJaxError, match=r"config field zoo\.snapshots: must hold"):
            config.override(Config(), fields | wrong)
