"""Ensembles, fine-tuned reconstructions, transfer and unseen zoos, on tiny populations."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy.special import softmax

from hyperjax import weights
from hyperjax.analysis import conditioning, convergence, decoded, ensembles
from hyperjax.app import populations
from hyperjax.app.context import Context, Target
from hyperjax.app.sample import Draw
from hyperjax.app.targets import read_config
from hyperjax.app.train import Trained
from hyperjax.config import AutoencoderConfig, Config, TrainingConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, Statistics
from hyperjax.models.autoencoder import make_autoencoder
from hyperjax.models.cnn import init_vector, zoo_cnn_spec
from hyperjax.population import engine as population
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.store import workdir
from hyperjax.zoo import Zoo

SPEC = zoo_cnn_spec(1, "tanh")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def small_lab():
    engine = population.make_engine(SPEC, TrainingConfig(), devices=jax.devices()[:1])
    pixels = RNG.integers(0, 256, (20, 28, 28, 1), np.uint8)
    images = population.place_images(engine, pixels, RNG.integers(0, 10, 20), [0.5], [0.3])
    return Task(engine, images, images, images)


@pytest.fixture(scope="module")
def networks():
    keys = jax.random.split(jax.random.key(1), 6)
    return np.stack([init_vector(SPEC, "normal", key) for key in keys])


def as_zoo(trajectories: np.ndarray, accuracy: np.ndarray) -> Zoo:
    members, epochs, _ = trajectories.shape
    metrics = {"test_accuracy": accuracy.astype(np.float32)}
    return Zoo(SPEC, trajectories, np.arange(epochs), np.arange(members), metrics, {})


def test_logits_are_those_of_each_network(small_lab, networks):
    """Against the module itself, and consistent with the predictions of `evaluate`."""
    outputs = evaluation.logits(small_lab, networks, small_lab.test)
    assert outputs.shape == (6, 20, 10)
    images = population.normalize(small_lab.test, np.arange(20))
    params = weights.unflatten(SPEC, networks[3])
    expected = small_lab.engine.model.apply({"params": params}, images)
    np.testing.assert_allclose(outputs[3], expected, rtol=1e-4, atol=1e-4)
    predictions = evaluation.evaluate(small_lab, networks, small_lab.test).predictions
    np.testing.assert_array_equal(outputs.argmax(-1), predictions)


def test_ensembles(small_lab, networks):
    broken = np.concatenate([networks, np.full((1, SPEC.num_params), np.nan, np.float32)])
    result = ensembles.run(
        {"a": broken}, small_lab, sizes=(1, 3, 6, 9), draws=8, how="softmax", seed=0
    )
    found = result["a"]
    np.testing.assert_array_equal(found.sizes, [1, 3, 6])  # there are no 9 finite models
    accuracy = evaluation.evaluate(small_lab, networks, small_lab.test).accuracy
    np.testing.assert_allclose(found.single, accuracy, atol=1e-6)
    assert set(found.accuracy[0].round(5)) <= set(accuracy.round(5))
    probabilities = softmax(evaluation.logits(small_lab, networks, small_lab.test), axis=-1)
    everything = np.mean(probabilities.mean(0).argmax(-1) == np.asarray(small_lab.test.labels))
    np.testing.assert_allclose(found.accuracy[2], everything, atol=1e-6)
    with pytest.raises(HyperJaxError, match="finite"):
        ensembles.run({"a": broken[-1:]}, small_lab, sizes=(1,), draws=2, how="softmax", seed=0)


def test_copies_are_an_ensemble_of_one(small_lab, networks):
    copies = np.repeat(networks[:1], 5, axis=0)
    found = ensembles.run({"a": copies}, small_lab, sizes=(1, 5), draws=3, how="vote", seed=0)["a"]
    assert len(set(found.accuracy.ravel().tolist()) | set(found.single.tolist())) == 1


def test_distances_between_originals_and_reconstructions():
    original = RNG.normal(size=(3, 2, SPEC.num_params))
    other = original.copy()
    other[:, 1] *= -2  # the same line, the other way, twice as far
    accuracy = RNG.random((3, 2))
    zoos = {convergence.ORIGINAL: as_zoo(original, accuracy), "b": as_zoo(other, accuracy / 2)}
    result = convergence.run(zoos)
    np.testing.assert_allclose(result.distance["b"][0], 0)
    norms = np.linalg.norm(original[:, 1], axis=1)
    np.testing.assert_allclose(result.distance["b"][1], 3 * norms)
    np.testing.assert_allclose(result.cosine["b"], [[1] * 3, [-1] * 3])
    np.testing.assert_allclose(result.accuracy["b"], accuracy.T / 2, rtol=1e-6)


def test_noise_as_large_as_the_reconstructions_error():
    vectors = RNG.normal(size=(4, 500))
    reconstructed = vectors + RNG.normal(size=(4, 500)) * np.arange(4)[:, None]
    noisy = convergence.with_noise(vectors, reconstructed, jax.random.key(0))
    errors = [np.linalg.norm(x - vectors, axis=1) for x in (noisy, reconstructed)]
    np.testing.assert_allclose(*errors, rtol=1e-5)
    directions = (noisy - vectors)[1:], (reconstructed - vectors)[1:]
    cosine = np.sum(directions[0] * directions[1], 1) / (errors[0] * errors[1])[1:]
    assert np.abs(cosine).max() < 0.25  # unrelated: 1 / sqrt(500) is 0.045


def test_as_decoded(small_lab, networks):
    def as_decoded(vectors):
        return as_zoo(vectors[:, None], np.arange(len(vectors))[:, None] / 10)

    copies = np.repeat(networks[:1], 4, axis=0)
    populations = {"replay": as_decoded(networks[:3]), "copies": as_decoded(copies)}
    trained = as_zoo(networks[:, None], RNG.random((6, 1)))
    result = decoded.run(populations, trained, 0, networks, small_lab, bootstrap=99, seed=0)
    assert result.populations["replay"].novelty == 0
    assert result.populations["copies"].disagreement == 0
    np.testing.assert_allclose(result.populations["replay"].accuracy, [0, 0.1, 0.2])
    assert result.populations["replay"].summary.median == pytest.approx(0.1)
    assert [(a, b) for a, b, _ in result.comparisons] == [("B_T", "replay")]  # no copies


def test_an_autoencoder_that_knows_its_mean_alone(small_lab, networks):
    """An untrained decoder yields the mean whatever is encoded: conditioning says nothing."""
    config = AutoencoderConfig(
        dim=8, heads=2, mlp_dim=8, blocks=1, latent=4, dropout=0.0, projection_layers=0
    )
    params = make_autoencoder(config, SPEC).init(
        jax.random.key(0), np.zeros((1, SPEC.num_params), np.float32), train=False
    )["params"]
    ones = np.ones(len(SPEC.layers), np.float32)
    mean = networks[:3].mean(0)
    model = HyperRep(config, SPEC, params, Statistics(mean, ones, ones), networks[0])
    result = conditioning.run(
        model, networks[3:], networks[:3], small_lab,
        ensemble_size=2, draws=4, how="softmax", seed=0,
    )  # fmt: skip
    itself = evaluation.evaluate(small_lab, mean[None], small_lab.test).accuracy[0]
    for values in (result.decoded, result.control, result.ensembles, result.control_ensembles):
        np.testing.assert_allclose(values, itself, atol=1e-6)
    originals = evaluation.evaluate(small_lab, networks[3:], small_lab.test).accuracy
    np.testing.assert_allclose(result.original, originals)
    assert result.r2 == pytest.approx(0, abs=1e-4)


def test_unseen_networks_of_another_activation(monkeypatch):
    """They are aligned by their own symmetries: gelu has no signs to flip, so that a perfect
    autoencoder keeps their accuracy, and far more than the alignment of a tanh zoo would."""
    engine = population.make_engine(
        zoo_cnn_spec(1, "gelu"), TrainingConfig(), devices=jax.devices()[:1]
    )
    pixels = RNG.integers(0, 256, (200, 28, 28, 1), np.uint8)
    images = population.place_images(engine, pixels, RNG.integers(0, 10, 200), [0.5], [0.3])
    gelu = Task(engine, images, images, images)
    keys = jax.random.split(jax.random.key(2), 4)
    unseen = np.stack([init_vector(engine.spec, "kaiming_uniform", key) for key in keys])
    ones = np.ones(len(SPEC.layers), np.float32)
    config = AutoencoderConfig(align=True)
    model = HyperRep(config, SPEC, {}, Statistics(unseen[0], ones, ones), unseen[0])
    seen = []

    def reconstruct(model, vectors):
        seen.append(vectors)
        return vectors

    monkeypatch.setattr(conditioning.hyperrep, "reconstruct", reconstruct)
    result = conditioning.run(
        model, unseen[1:], unseen[:1], gelu, ensemble_size=9, draws=2, how="softmax", seed=0
    )
    assert result.ensemble_size == 1  # as many models as both populations have
    assert not np.array_equal(seen[0], unseen[1:])  # something was permuted
    logits = [evaluation.logits(gelu, vectors, gelu.test) for vectors in (seen[0], unseen[1:])]
    np.testing.assert_allclose(*logits, atol=1e-4)


def test_other_settings_are_other_files(tmp_path, monkeypatch):
    """A population is not taken for one of another decoder, initialisation or size."""
    paths = []
    monkeypatch.setattr(populations, "make_population", lambda path, *rest: paths.append(path))
    monkeypatch.setattr(populations.sample, "draw", lambda *args: Draw(None, None, None, {}))
    config = Config(dataset="digits")
    images = SimpleNamespace(fingerprint="f")
    trained = Trained(config, images, None, None, None, None, {})
    target = Target("digits", config, "f", None, None, None)
    context = Context(tmp_path, trained, ("kde",), 3)
    decoder = workdir.hyperrep_path(tmp_path, "lwln")
    decoder.parent.mkdir(parents=True)
    for content in (b"one", b"another", b"another"):
        decoder.write_bytes(content)
        populations.drawn_from(context, "S_kde", populations.Source("kde", "lwln"))
    assert paths[0] != paths[1] == paths[2]
    other = dataclasses.replace(config, zoo=dataclasses.replace(config.zoo, init="normal"))
    for a, b in ((context, target), (context._replace(num_samples=4), target),
                 (context, target._replace(config=other))):  # fmt: skip
        populations.finetuned(a, "B_T", None, b, (0, 1))
    assert len(set(paths)) == 2 + 3


def test_target_configurations(tmp_path):
    config = read_config("configs/fashion_mnist.py:small")
    assert (config.dataset, config.zoo.epochs) == ("fashion_mnist", 25)
    with pytest.raises(HyperJaxError, match="no such workdir or configuration"):
        read_config(str(tmp_path / "none.py"))
    broken = tmp_path / "broken.py"
    broken.write_text("def get_config(:\n")
    with pytest.raises(HyperJaxError, match=r"cannot read .*broken.py"):
        read_config(str(broken))
