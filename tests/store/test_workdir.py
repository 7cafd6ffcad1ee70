"""The working directory: claims, differences, manifests, metrics, locks; foreign autoencoders."""

import dataclasses
import json

import numpy as np
import pytest

from hyperjax import config
from hyperjax.app import train_hyperrep
from hyperjax.config import AutoencoderConfig, Config
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, Statistics
from hyperjax.models.cnn import zoo_cnn_spec
from hyperjax.store import hyperrep_file, workdir


def test_a_claim_is_kept_and_another_refused(tmp_path):
    workdir.create(tmp_path, Config())
    assert workdir.load_config(tmp_path) == Config()
    with pytest.raises(HyperJaxError, match=r"seed: 0 there, 1 here"):
        workdir.create(tmp_path, Config(seed=1))
    assert workdir.load_config(tmp_path) == Config()


def test_what_training_does_not_depend_on_may_change(tmp_path):
    workdir.create(tmp_path, Config())
    samplers = dataclasses.replace(Config().samplers, joint_bandwidth=0.1)
    other = Config(data_dir="elsewhere", samplers=samplers)
    workdir.create(tmp_path, other)
    assert workdir.load_config(tmp_path) == other


@pytest.mark.parametrize("text", ["", "{", "3", '{"zoo": 3}', '{"no": 1}'])
def test_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(HyperJaxError):
        workdir.load_config(tmp_path)


def test_missing_config_says_how_to_make_one(tmp_path):
    with pytest.raises(HyperJaxError, match=r"no config.json.*train.py"):
        workdir.load_config(tmp_path)


def test_manifest_grows_and_a_damaged_one_is_noticed_early(tmp_path):
    workdir.add_to_manifest(tmp_path, {"a": 1})
    workdir.add_to_manifest(tmp_path, {"b": 2})
    assert workdir.read_manifest(tmp_path) == [{"a": 1}, {"b": 2}]
    (tmp_path / "manifest.json").write_text("[{")
    with pytest.raises(HyperJaxError, match=r"manifest.json"):
        workdir.create(tmp_path, Config())


def test_forgotten_metrics_are_those_of_one_stage_after_a_step(tmp_path):
    records = [{"stage": s, "step": i} for i in range(3) for s in ("a", "b")]
    for record in records:
        workdir.log_metrics(tmp_path, record)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "a", "st')  # what a killed run leaves
    workdir.forget_metrics(tmp_path, "a", after=1)
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [r for r in records if r != {"stage": "a", "step": 2}]
    assert workdir.has_metrics(tmp_path, "a")
    assert not workdir.has_metrics(tmp_path, "zoo")


def test_two_commands_do_not_share_a_folder(tmp_path):
    with (
        workdir.lock(tmp_path),
        pytest.raises(HyperJaxError, match="in use"),
        workdir.lock(tmp_path),
    ):
        pass
    with workdir.lock(tmp_path):
        pass


def foreign(spec, variant: AutoencoderConfig) -> HyperRep:
    """A file's content; parameters do not matter here."""
    layers, size = len(spec.layers), spec.num_params
    stats = Statistics(np.zeros(size), np.ones(layers), np.ones(layers))
    return HyperRep(variant, spec, {"encoder": {"w": np.zeros(1)}}, stats, np.zeros(size))


def test_an_autoencoder_of_another_architecture_is_refused(tmp_path):
    path, variant = tmp_path / "lwln.safetensors", AutoencoderConfig()
    hyperrep_file.write(path, foreign(zoo_cnn_spec(1, "tanh"), variant), {})
    assert train_hyperrep.read_checked(path, variant, zoo_cnn_spec(1, "tanh")).config == variant
    for spec in (zoo_cnn_spec(1, "relu"), zoo_cnn_spec(3, "tanh")):
        with pytest.raises(HyperJaxError, match="another architecture"):
            train_hyperrep.read_checked(path, variant, spec)
    other = dataclasses.replace(variant, latent=8)
    with pytest.raises(HyperJaxError, match=r"\(autoencoder\.latent: "):
        train_hyperrep.read_checked(path, other, zoo_cnn_spec(1, "tanh"))


def test_both_variants_are_trained_unless_told_otherwise():
    assert list(train_hyperrep.variants(Config())) == ["lwln", "no_lwln"]
    plain = dataclasses.replace(Config().autoencoder, lwln=False, train_baseline=False)
    assert list(train_hyperrep.variants(Config(autoencoder=plain))) == ["no_lwln"]
    assert config.from_dict(config.to_dict(Config(autoencoder=plain))).autoencoder == plain
