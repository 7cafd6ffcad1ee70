"""Ensembles, fine-tuned reconstructions, transfer and unseen zoos, on tiny populations."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from population_cases import random_task
from scipy.special import softmax

from hyperjax import weights
from hyperjax.analysis import comparisons, ensembles, reconstruction
from hyperjax.app import populations
from hyperjax.app.context import Context, Target, read_config
from hyperjax.app.run import Run
from hyperjax.config import (
    ArchitectureConfig,
    AutoencoderConfig,
    Config,
    WeightDataConfig,
)
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, Statistics
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.models.autoencoder import Autoencoder
from hyperjax.models.initialise import init_vector
from hyperjax.population import engine as engines
from hyperjax.population import evaluation
from hyperjax.store import zoo_file
from hyperjax.zoo import Zoo

SPEC = zoo_cnn_spec(1, "tanh")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def small_task():
    return random_task(20)


@pytest.fixture(scope="module")
def networks():
    keys = jax.random.split(jax.random.key(1), 6)
    return np.stack([init_vector(SPEC, "normal", key) for key in keys])


def as_zoo(trajectories: np.ndarray, accuracy: np.ndarray) -> Zoo:
    members, epochs, _ = trajectories.shape
    metrics = {"test_accuracy": accuracy.astype(np.float32)}
    return Zoo(SPEC, trajectories, np.arange(epochs), np.arange(members), metrics, {})


def test_logits_are_those_of_each_network(small_task, networks):
    """Against the module itself, and consistent with the predictions of `evaluate`."""
    outputs = evaluation.logits(small_task, networks, small_task.test)
    assert outputs.shape == (6, 20, 10)
    images = engines.normalize(small_task.test, np.arange(20))
    params = weights.unflatten(SPEC, networks[3])
    expected = small_task.engine.model.apply({"params": params}, images)
    np.testing.assert_allclose(outputs[3], expected, rtol=1e-4, atol=1e-4)
    predictions = evaluation.evaluate(small_task, networks, small_task.test).predictions
    np.testing.assert_array_equal(outputs.argmax(-1), predictions)


def test_ensembles(small_task, networks):
    broken = np.concatenate([networks, np.full((1, SPEC.num_params), np.nan, np.float32)])
    result = ensembles.ensembles({"a": broken}, small_task, sizes=(1, 3, 6, 9), draws=8, seed=0)
    found = result["a"]
    np.testing.assert_array_equal(found.sizes, [1, 3, 6])  # there are no 9 finite models
    accuracy = evaluation.evaluate(small_task, networks, small_task.test).accuracy
    np.testing.assert_allclose(found.single, accuracy, atol=1e-6)
    assert set(found.accuracy[0].round(5)) <= set(accuracy.round(5))
    probabilities = softmax(evaluation.logits(small_task, networks, small_task.test), axis=-1)
    everything = np.mean(probabilities.mean(0).argmax(-1) == np.asarray(small_task.test.labels))
    np.testing.assert_allclose(found.accuracy[2], everything, atol=1e-6)
    with pytest.raises(HyperJaxError, match="finite"):
        ensembles.ensembles({"a": broken[-1:]}, small_task, sizes=(1,), draws=2, seed=0)


def test_copies_are_an_ensemble_of_one(small_task, networks):
    copies = np.repeat(networks[:1], 5, axis=0)
    found = ensembles.ensembles({"a": copies}, small_task, sizes=(1, 5), draws=3, seed=0)["a"]
    assert len(set(found.accuracy.ravel().tolist()) | set(found.single.tolist())) == 1


def test_distances_between_originals_and_reconstructions():
    original = RNG.normal(size=(3, 2, SPEC.num_params))
    other = original.copy()
    other[:, 1] *= -2  # the same line, the other way, twice as far
    accuracy = RNG.random((3, 2))
    zoos = {comparisons.ORIGINAL: as_zoo(original, accuracy), "b": as_zoo(other, accuracy / 2)}
    result = comparisons.convergence(zoos)
    np.testing.assert_allclose(result.distance["b"][0], 0)
    norms = np.linalg.norm(original[:, 1], axis=1)
    np.testing.assert_allclose(result.distance["b"][1], 3 * norms)
    np.testing.assert_allclose(result.cosine["b"], [[1] * 3, [-1] * 3])
    np.testing.assert_allclose(result.accuracy["b"], accuracy.T / 2, rtol=1e-6)


def test_noise_as_large_as_the_reconstructions_error():
    vectors = RNG.normal(size=(4, 500))
    reconstructed = vectors + RNG.normal(size=(4, 500)) * np.arange(4)[:, None]
    noisy = comparisons.with_noise(vectors, reconstructed, jax.random.key(0))
    errors = [np.linalg.norm(x - vectors, axis=1) for x in (noisy, reconstructed)]
    np.testing.assert_allclose(*errors, rtol=1e-5)
    directions = (noisy - vectors)[1:], (reconstructed - vectors)[1:]
    cosine = np.sum(directions[0] * directions[1], 1) / (errors[0] * errors[1])[1:]
    assert np.abs(cosine).max() < 0.25  # unrelated: 1 / sqrt(500) is 0.045


def test_an_autoencoder_that_knows_its_mean_alone(small_task, networks):
    """An untrained decoder yields the mean whatever is encoded: conditioning says nothing."""
    architecture = ArchitectureConfig(
        dim=8, heads=2, mlp_dim=8, blocks=1, latent=4, dropout=0.0, projection_layers=0
    )
    config = AutoencoderConfig(architecture)
    params = Autoencoder(architecture, SPEC).init(
        jax.random.key(0), np.zeros((1, SPEC.num_params), np.float32), train=False
    )["params"]
    ones = np.ones(len(SPEC.layers), np.float32)
    mean = networks[:3].mean(0)
    model = HyperRep(config, SPEC, params, Statistics(mean, ones, ones), networks[0])
    result = reconstruction.condition(
        model, networks[3:], networks[:3], small_task,
        ensemble_size=2, draws=4, seed=0,
    )  # fmt: skip
    itself = evaluation.evaluate(small_task, mean[None], small_task.test).accuracy[0]
    for values in (result.decoded, result.control, result.ensembles, result.control_ensembles):
        np.testing.assert_allclose(values, itself, atol=1e-6)
    originals = evaluation.evaluate(small_task, networks[3:], small_task.test).accuracy
    np.testing.assert_allclose(result.original, originals)
    assert result.r2 == pytest.approx(0, abs=1e-4)


def test_unseen_networks_of_another_activation(monkeypatch):
    """They are aligned by their own symmetries: gelu has no signs to flip, so that a perfect
    autoencoder keeps their accuracy, and far more than the alignment of a tanh zoo would."""
    gelu = random_task(200, zoo_cnn_spec(1, "gelu"))
    keys = jax.random.split(jax.random.key(2), 4)
    unseen = np.stack([init_vector(gelu.engine.spec, "kaiming_uniform", key) for key in keys])
    ones = np.ones(len(SPEC.layers), np.float32)
    config = AutoencoderConfig(data=WeightDataConfig(align=True))
    model = HyperRep(config, SPEC, {}, Statistics(unseen[0], ones, ones), unseen[0])
    seen = []

    def reconstruct(model, vectors, *, aligned):
        assert aligned
        seen.append(vectors)
        return vectors

    monkeypatch.setattr(reconstruction.hyperrep, "reconstruct", reconstruct)
    result = reconstruction.condition(
        model, unseen[1:], unseen[:1], gelu, ensemble_size=9, draws=2, seed=0
    )
    assert result.ensemble_size == 1  # as many models as both populations have
    assert not np.array_equal(seen[0], unseen[1:])  # something was permuted
    logits = [evaluation.logits(gelu, vectors, gelu.test) for vectors in (seen[0], unseen[1:])]
    np.testing.assert_allclose(*logits, atol=1e-4)


@pytest.fixture
def run(small_task, tmp_path):
    """A workdir of which only that is there which samples depend on."""
    made = Run(tmp_path, Config(dataset="digits"))
    info = {"lwln": {"digest": "one"}, "no_lwln": {"digest": "another"}}
    vars(made).update(
        task=small_task,
        zoo=SimpleNamespace(info={"fingerprint": "f"}),
        hyperreps=SimpleNamespace(info=info.__getitem__),
    )
    return made


@pytest.fixture
def draws(monkeypatch, networks):
    """Stands for drawing samples: what was asked for."""
    asked = []

    def draw(run, sampler, n, *, hyperrep, seed):
        asked.append((sampler, n, hyperrep, seed))
        models = as_zoo(networks[:n, None], np.zeros((n, 1)))
        info = populations.request(run, sampler, n, hyperrep, seed)
        return dataclasses.replace(models, info=info, metrics={})

    monkeypatch.setattr(populations, "draw", draw)
    return asked


def test_other_requests_are_other_files_of_samples(run, draws):
    """Of another sampler, size, decoder, seed or setting; the same one is read."""
    first, models = populations.sampled(run, "kde", 2, "lwln", 0)
    assert set(models.metrics) > {"train_loss", "val_accuracy", "test_accuracy"}
    assert populations.sampled(run, "kde", 2, "lwln", 0)[0] == first
    assert len(draws) == 1
    requests = [("joint", 2, "lwln", 0), ("kde", 3, "lwln", 0), ("kde", 2, "no_lwln", 0),
                ("kde", 2, "lwln", 1)]  # fmt: skip
    paths = [populations.sampled(run, *request)[0] for request in requests]
    vars(run)["hyperreps"] = SimpleNamespace(info=lambda name: {"digest": "retrained"})
    paths.append(populations.sampled(run, *requests[0])[0])
    samplers = dataclasses.replace(run.config.samplers, joint_bandwidth=0.1)
    other = Run(run.folder, dataclasses.replace(run.config, samplers=samplers))
    vars(other).update({name: vars(run)[name] for name in ("task", "zoo", "hyperreps")})
    paths.append(populations.sampled(other, *requests[0])[0])
    assert len({first, *paths}) == 7
    assert draws == [("kde", 2, "lwln", 0), *requests, requests[0], requests[0]]


def test_a_file_of_another_request_is_not_taken_for_it(run, draws, tmp_path):
    path, models = populations.sampled(run, "kde", 2, "lwln", 0, tmp_path / "mine.safetensors")
    foreign = dataclasses.replace(models, info=models.info | {"decoder": "another"})
    foreign = dataclasses.replace(foreign, weights=0 * np.asarray(models.weights))
    zoo_file.write(path, foreign)
    _, again = populations.sampled(run, "kde", 2, "lwln", 0, path)
    assert len(draws) == 2
    assert again.weights.any()


def test_other_settings_are_other_files(run, tmp_path, monkeypatch):
    """A population is not taken for one of another initialisation, size or start."""
    paths = []
    monkeypatch.setattr(populations, "make_population", lambda path, *rest: paths.append(path))
    config = run.config
    target = Target("digits", config, "f", None, None)
    context = Context(tmp_path, run, ("kde",), 3)
    other = dataclasses.replace(config, zoo=dataclasses.replace(config.zoo, init="normal"))
    requests = [
        (context, "B_T", None, target, (0, 1)),
        (context._replace(num_samples=4), "B_T", None, target, (0, 1)),
        (context, "B_T", None, target._replace(config=other), (0, 1)),
        (context, "B_T", None, target._replace(fingerprint="g"), (0, 1)),
        (context, "B_T", None, target, (0, 2)),
        (context, "S", np.zeros((2, 5)), target, (0, 1)),
        (context, "S", np.ones((2, 5)), target, (0, 1)),
    ]
    for request in requests:
        populations.finetuned(*request)
    assert len(set(paths)) == len(requests)
    populations.finetuned(*requests[-1])
    assert paths[-1] == paths[-2]


def test_target_configurations(tmp_path):
    config = read_config("configs/fashion_mnist.py:small")
    assert (config.dataset, config.zoo.epochs) == ("fashion_mnist", 25)
    with pytest.raises(HyperJaxError, match="no such workdir or configuration"):
        read_config(str(tmp_path / "none.py"))
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    with pytest.raises(HyperJaxError, match=r"cannot read .*broken.py"):
        read_config(str(broken))
