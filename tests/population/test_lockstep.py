"""Zoos and fine-tuning in memory, against the same in files and against plain loops."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from population_cases import (
    INIT,
    SPEC,
    TEST,
    TRAIN,
    TRAINING,
    make_engine,
    random_images,
    random_vectors,
)

from hyperjax import population, weights
from hyperjax.app.train_population import make_population
from hyperjax.config import Config, ZooConfig
from hyperjax.errors import HyperJaxError
from hyperjax.models import variants
from hyperjax.models.architectures import zoo_cnn_spec
from hyperjax.population import engine as engines
from hyperjax.population import evaluation, lockstep
from hyperjax.population.lockstep import Recipe
from hyperjax.weights import LayerSpec, WeightSpec
from hyperjax.zoo import Zoo

KEY = jax.random.key(4)
ZOO = ZooConfig(num_members=8, epochs=2, init=INIT, training=TRAINING)
DATA = SimpleNamespace(train=TRAIN, val=TEST, test=random_images(40, seed=2))
METRICS = {f"{part}_{name}" for part in ("train", "val", "test") for name in ("loss", "accuracy")}


@pytest.fixture(scope="module")
def zoo():
    return lockstep.train_zoo(DATA, ZOO, KEY)


def assert_same_zoo(ours, theirs, columns=slice(None), **tolerance):
    tolerance = {"rtol": 0, "atol": 0} | tolerance
    np.testing.assert_allclose(ours.weights, theirs.weights[:, columns], **tolerance)
    np.testing.assert_array_equal(ours.epochs, theirs.epochs[columns])
    np.testing.assert_array_equal(ours.members, theirs.members)
    assert ours.spec == theirs.spec
    for name, values in ours.metrics.items():
        np.testing.assert_allclose(values, theirs.metrics[name][:, columns], **tolerance)


def test_a_zoo_in_memory_equals_the_one_in_a_file(zoo, tmp_path):
    task = evaluation.make_task(make_engine(), DATA)
    recipe = Recipe(np.arange(8), np.arange(3), KEY, None, {"kind": "zoo"})
    config = Config(zoo=ZOO)
    assert lockstep.make_engine(ZOO, SPEC) == task.engine
    in_file = make_population(tmp_path / "zoo.safetensors", recipe, config, task, "zoo")
    assert zoo.metrics.keys() == in_file.metrics.keys() == METRICS
    assert_same_zoo(zoo, in_file)
    assert zoo.info == in_file.info


def test_second_moments_are_those_of_adam():
    """Against the recursion, in NumPy, on gradients of one batch an epoch; in parts as at once."""
    training = dataclasses.replace(TRAINING, batch_size=len(TRAIN.labels))
    config = dataclasses.replace(ZOO, num_members=3, training=training, save_moments=True)
    found = lockstep.train_zoo(TRAIN, config, KEY)
    images = np.asarray(engines.normalize(TRAIN, np.arange(23)))
    apply, expected = evaluation.network(SPEC).apply, np.zeros((3, SPEC.num_params))

    @jax.vmap
    @jax.grad
    def gradients(vector):
        losses = jax.nn.log_softmax(apply(vector, images))[np.arange(23), TRAIN.labels]
        return -losses.mean() + training.weight_decay / 2 * jnp.sum(vector**2)

    assert not found.second_moments[:, 0].any()
    for epoch in (1, 2):
        gradient = np.asarray(gradients(jnp.asarray(found.weights[:, epoch - 1])), np.float64)
        expected = 0.999 * expected + 0.001 * gradient**2
        np.testing.assert_allclose(found.second_moments[:, epoch], expected, rtol=1e-3, atol=1e-12)
    some = found.select([2, 0], epoch=[1, 2])
    np.testing.assert_array_equal(some.second_moments, found.second_moments[[2, 0], 1:])
    sgd = dataclasses.replace(training, optimizer="sgd")
    with pytest.raises(HyperJaxError, match="sgd has no second moments"):
        lockstep.train_zoo(TRAIN, dataclasses.replace(config, training=sgd), KEY)


def test_running_statistics_have_no_second_moments():
    """Though the decay of Adam's weights is part of what it squares."""
    layers = (LayerSpec("a", "dense", (4, 784), norm="batch"), LayerSpec("b", "dense", (10, 4)))
    spec = WeightSpec(layers, "tanh")
    config = dataclasses.replace(ZOO, save_moments=True)
    start = np.float32(np.random.default_rng(0).random((2, spec.num_params)))
    found = lockstep.finetune(start, TRAIN, config, epochs=1, key=KEY, spec=spec)
    tokens = weights.unflatten(spec, found.second_moments)["a"]
    assert not np.concatenate([tokens["mean"], tokens["var"]]).any()
    assert (np.asarray(tokens["scale"])[:, 1] > 0).all()


def test_a_zoo_equals_a_loop_over_its_epochs(zoo):
    """Snapshots are of the epochs 0, 1, 2; metrics are those of its weights on all images."""
    engine = make_engine()
    hyper = population.place_members(engine, population.hyper(np.arange(8), TRAINING))
    images = population.place_images(engine, TRAIN)
    state = population.init(engine, KEY, hyper)
    np.testing.assert_array_equal(zoo.weights[:, 0], state.vectors)
    for epoch in (1, 2):
        state, running = population.train_epoch(engine, state, hyper, images, KEY, jnp.int32(epoch))
        np.testing.assert_array_equal(zoo.weights[:, epoch], state.vectors)
        np.testing.assert_array_equal(zoo.metrics["train_loss"][:, epoch], running["loss"])
    task = evaluation.make_task(engine, DATA)
    for part, epoch in (("train", 0), ("val", 1), ("test", 2)):
        found = evaluation.evaluate(task, zoo.weights[:, epoch], getattr(task, part))
        for name in ("loss", "accuracy"):
            expected = getattr(found, name)
            np.testing.assert_allclose(zoo.metrics[f"{part}_{name}"][:, epoch], expected, rtol=1e-6)


def test_the_key_decides(zoo):
    other = lockstep.train_zoo(DATA, ZOO, jax.random.key(5))
    assert np.abs(other.weights - zoo.weights).max(axis=(1, 2)).min() > 0.1


def test_chunks_do_not_matter(zoo, monkeypatch):
    """8 members by fours, and 6 of them, the last two padded."""
    monkeypatch.setattr(lockstep, "members_per_call", lambda engine, images: 4)
    assert_same_zoo(lockstep.train_zoo(DATA, ZOO, KEY), zoo, rtol=1e-5, atol=1e-7)
    six = lockstep.train_zoo(DATA, dataclasses.replace(ZOO, num_members=6), KEY)
    assert_same_zoo(six, zoo.select(range(6)), rtol=1e-5, atol=1e-7)


def test_images_alone_have_no_metrics_but_those_of_training(zoo):
    alone = lockstep.train_zoo(TRAIN, ZOO, KEY)
    assert alone.metrics.keys() == {"train_loss", "train_accuracy"}
    assert_same_zoo(alone, zoo)


def test_only_the_snapshots_that_are_asked_for_are_kept(zoo):
    some = lockstep.train_zoo(DATA, dataclasses.replace(ZOO, snapshots=(0, 2)), KEY)
    assert_same_zoo(some, zoo, [0, 2])
    last = lockstep.train_zoo(DATA, dataclasses.replace(ZOO, snapshots=(2,)), KEY)
    assert_same_zoo(last, zoo, [2])


def test_test_images_may_wait_for_the_last_snapshot(zoo):
    """The rest is as it was; what is missing can be measured later, on the members at hand."""
    late = lockstep.train_zoo(DATA, dataclasses.replace(ZOO, tested="last"), KEY)
    for name, values in late.metrics.items():
        missing = np.isnan(values)
        assert missing[:, :-1].all() == missing.any() == name.startswith("test_")
        assert not missing[:, -1].any()
    task = evaluation.make_task(make_engine(), DATA)
    chosen = late.select([5, 2, 7])
    chosen.weights[1, 1] = np.nan
    later = evaluation.tested(task, chosen)
    for name, values in later.metrics.items():
        expected = zoo.metrics[name][[5, 2, 7]].copy()
        if name.startswith("test_"):
            assert np.isnan(values[1, 1])
            expected[1, 1] = np.nan
        np.testing.assert_allclose(values, expected, rtol=1e-5)
    assert np.isnan(chosen.metrics["test_loss"][:, 0]).all()  # is not written into


# --- fine-tuning --------------------------------------------------------------------------


def test_fine_tuning_starts_from_a_zoos_last_snapshots(zoo, tmp_path):
    """In memory, from a zoo or an array, and in a file."""
    tuned = lockstep.finetune(zoo, DATA, ZOO, epochs=2, key=KEY)
    np.testing.assert_array_equal(tuned.weights[:, 0], zoo.weights[:, -1])
    np.testing.assert_array_equal(tuned.metrics["val_loss"][:, 0], zoo.metrics["val_loss"][:, -1])
    assert np.abs(tuned.weights[:, 1] - tuned.weights[:, 0]).max(axis=1).min() > 1e-3
    last = zoo.weights[:, -1]
    for training, spec in ((ZOO, None), (TRAINING, SPEC)):
        again = lockstep.finetune(last, DATA, training, epochs=2, key=KEY, spec=spec)
        assert_same_zoo(again, tuned)
    task = evaluation.make_task(make_engine(), DATA)
    recipe = Recipe(np.arange(8), np.arange(3), KEY, last, {"kind": "finetuned"})
    path = tmp_path / "tuned.safetensors"
    assert_same_zoo(tuned, make_population(path, recipe, Config(zoo=ZOO), task, "tuned"))


def test_epochs_of_fine_tuning(zoo):
    """Their number, or those that are kept, in whatever order."""
    tuned = lockstep.finetune(zoo, DATA, ZOO, epochs=2, key=KEY)
    for epochs in (np.int64(2), [2, 0, 1], range(3)):
        assert_same_zoo(lockstep.finetune(zoo, DATA, ZOO, epochs=epochs, key=KEY), tuned)
    assert_same_zoo(lockstep.finetune(zoo, DATA, ZOO, epochs=[2], key=KEY), tuned, [2])
    as_given = lockstep.finetune(zoo, DATA, ZOO, epochs=0, key=KEY)
    assert_same_zoo(as_given, tuned, [0])
    for epochs in (-1, [], [-1, 2]):
        with pytest.raises(HyperJaxError, match=r"finetune: epochs = .*expected their number"):
            lockstep.finetune(zoo, DATA, ZOO, epochs=epochs, key=KEY)


def test_equal_networks_are_trained_in_orders_of_their_own(zoo):
    same = np.repeat(zoo.weights[:1, -1], 8, axis=0)
    tuned = lockstep.finetune(same, TRAIN, ZOO, epochs=1, key=KEY)
    assert len(np.unique(tuned.weights[:, 1].round(5), axis=0)) == 8


def test_networks_that_cannot_be_fine_tuned(zoo):
    last = zoo.weights[:, -1]
    with pytest.raises(HyperJaxError, match="what networks are these"):
        lockstep.finetune(last, DATA, TRAINING, epochs=1, key=KEY)
    colour = zoo_cnn_spec(3, "tanh")
    for wrong, spec in (
        (last[:, 1:], SPEC), (last[0], SPEC), (last[:0], SPEC), (random_vectors(8, colour), colour)
    ):  # fmt: skip
        with pytest.raises(HyperJaxError, match=r"finetune: weights of shape .* images of shape"):
            lockstep.finetune(wrong, DATA, TRAINING, epochs=1, key=KEY, spec=spec)


def test_architectures_that_are_no_sequence():
    """Of which a population would leave out the skips."""
    spec = variants.res_skip_spec(1, "tanh")
    vectors = random_vectors(8, spec)
    strange = Zoo(spec, vectors[:, None], np.zeros(1, np.int32), np.arange(8), {})
    for given, told in ((strange, None), (vectors, spec)):
        with pytest.raises(HyperJaxError, match=r"layer 'skip1' .* convolution after a dense"):
            lockstep.finetune(given, DATA, TRAINING, epochs=1, key=KEY, spec=told)


def test_names_that_are_not_known():
    for field, value in (("activation", "softsign"), ("init", "zeros"), ("mapping", "pmap")):
        with pytest.raises(HyperJaxError, match=f"'{value}'"):
            lockstep.train_zoo(TRAIN, dataclasses.replace(ZOO, **{field: value}), KEY)
