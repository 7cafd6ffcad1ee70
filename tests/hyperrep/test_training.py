"""The loss and the steps of training."""

import dataclasses
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyperrep_cases import (
    DIM,
    EXACT,
    KEY,
    PLAIN,
    SIZES,
    SPEC,
    STATS,
    TINY,
    VECTORS,
    assert_trees_equal,
    changed,
    trained,
    trained_model,
)
from jax.sharding import PartitionSpec as P

from hyperjax import hyperrep
from hyperjax.config import AutoencoderConfig
from hyperjax.hyperrep import augment, losses, training
from hyperjax.hyperrep.model import to_inputs
from hyperjax.store import checkpoint


@pytest.fixture(scope="module")
def trainer():
    return training.make_trainer(TINY, SPEC)


@pytest.fixture(scope="module")
def model():
    return trained_model()


# --- the loss -------------------------------------------------------------------------------


def loss_of(config, params, key=KEY, stats=STATS):
    trainer = training.make_trainer(config, SPEC)
    fn = jax.jit(training.loss_fn, static_argnums=0)
    loss, metrics = fn(trainer, params, stats, VECTORS, key)
    assert metrics["loss"] == loss
    return {name: float(value) for name, value in metrics.items()}


def test_lwln_divides_squared_errors_by_layer_variances(model):
    decoded = hyperrep.reconstruct(model, VECTORS, aligned=True).astype(np.float64)
    error = (decoded - VECTORS) ** 2
    with_lwln = loss_of(EXACT, model.params)
    assert with_lwln.keys() == {"loss", "reconstruction"}
    normalised = error / np.repeat(STATS.layer_std.astype(np.float64), SIZES) ** 2
    assert with_lwln["loss"] == pytest.approx(normalised.mean(), rel=1e-4)
    without = loss_of(changed(EXACT, loss={"lwln": False}), model.params)
    assert without["loss"] == pytest.approx(error.mean(), rel=1e-4)
    assert without["loss"] > 5 * with_lwln["loss"]  # the widest layer rules


def test_lwln_does_not_depend_on_the_inputs_units(model):
    """The loss is in units of the weights, whatever the autoencoder is fed."""
    raw = STATS._replace(scale=np.ones(3, np.float32))
    zero = jax.tree.map(np.zeros_like, model.params)  # decodes to the mean
    expected = np.mean((VECTORS - VECTORS.mean(0)) ** 2 / np.repeat(STATS.layer_std, SIZES) ** 2)
    for stats in (STATS, raw):
        assert loss_of(EXACT, zero, stats=stats)["loss"] == pytest.approx(expected, rel=1e-4)


def test_beta_weighs_reconstruction_against_contrast(model):
    config = changed(EXACT, loss={"beta": 0.7, "temperature": 0.5})
    metrics = loss_of(config, model.params)
    inputs = to_inputs(SPEC, STATS, VECTORS)
    module = training.make_trainer(config, SPEC).module
    apply = jax.jit(lambda x: module.apply({"params": model.params}, x, train=False))
    projections = apply(inputs)[2]
    contrast = losses.nt_xent(projections, projections, 0.5)  # both views are the same
    assert metrics["contrast"] == pytest.approx(float(contrast), rel=1e-4)
    alone = loss_of(EXACT, model.params)["loss"]
    assert metrics["reconstruction"] == pytest.approx(alone, rel=1e-4)
    assert metrics["loss"] == pytest.approx(0.7 * alone + 0.3 * float(contrast), rel=1e-4)


def test_targets_are_the_original_or_the_corrupted_view(model, monkeypatch):
    """A decoder that gives zero is charged the mean square of its target."""
    monkeypatch.setattr(augment, "ERASED", (0.3, 0.3))
    zero = jax.tree.map(np.zeros_like, model.params)
    config = changed(EXACT, data={"augment": dataclasses.replace(PLAIN, erase=1.0)})
    clean = np.mean(np.square(to_inputs(SPEC, STATS, VECTORS)))
    original = loss_of(config, zero)["loss"]
    assert original == pytest.approx(clean, rel=1e-4)
    view = loss_of(changed(config, loss={"target": "view"}), zero)["loss"]
    assert view == pytest.approx(0.7 * clean, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "differ"),
    [({}, False), ({"noise": 0.5}, True), ({"permute": True, "mix": 0.5}, True)],
)
def test_the_two_views_are_drawn_independently(model, monkeypatch, changes, differ):
    augmented = dataclasses.replace(PLAIN, **changes)
    config = changed(EXACT, loss={"beta": 0.5}, data={"augment": augmented})
    views = []
    monkeypatch.setattr(losses, "nt_xent", lambda i, j, _: views.append((i, j)) or 0.0)

    @jax.jit
    def projections(key):
        training.loss_fn(training.make_trainer(config, SPEC), model.params, STATS, VECTORS, key)
        return views.pop()

    (first, second), (other, _) = projections(KEY), projections(jax.random.key(1))
    assert first.shape == second.shape == (100, 4)
    assert np.all(np.any(np.abs(first - second) > 1e-5, axis=1)) == differ
    assert (not np.allclose(first, other)) == differ


# --- training -------------------------------------------------------------------------------


def test_training_lowers_the_loss(trainer):
    state, first = trained(10, trainer)
    state, _ = trained(30, trainer, state=state)
    state, last = trained(10, trainer, state=state)
    assert state.step == 50
    assert first.keys() == {"loss", "reconstruction", "contrast", "grad_norm"}
    assert last["reconstruction"] < 0.8 * first["reconstruction"]
    assert last["loss"] < first["loss"]


def test_interrupted_training_equals_uninterrupted(trainer, tmp_path):
    whole, metrics = trained(10, trainer)
    half, first = trained(5, trainer)
    checkpoint.save(tmp_path / "hyperrep", 5, half)
    restored = checkpoint.restore(tmp_path / "hyperrep", 5, training.init(trainer, KEY))
    assert_trees_equal(restored, half)
    resumed, second = trained(5, trainer, state=half)
    assert_trees_equal(resumed, whole)
    assert_trees_equal(trained(5, trainer, state=restored)[0], whole)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, (first[name] + second[name]) / 2, rtol=1e-5)


def test_one_compilation_serves_any_count_of_steps(trainer):
    state, _ = trained(1, trainer)
    compiled = training.train_steps._cache_size()
    for count in (2, 7):
        state, _ = trained(count, trainer, state=state)
    same = training.make_trainer(TINY, SPEC)
    trained(3, same)
    assert training.train_steps._cache_size() == compiled


def test_devices_do_not_matter(trainer):
    assert trainer.mesh.size == 4
    alone = training.make_trainer(TINY, SPEC, jax.devices()[:1])
    (ours, metrics), (theirs, expected) = trained(5, trainer), trained(5, alone)
    assert_trees_equal(ours.params, theirs.params, atol=2e-4)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3)


@pytest.mark.parametrize(("batch", "used"), [(32, 4), (36, 4), (24, 3), (16, 2), (8, 1), (67, 1)])
def test_as_many_devices_as_divide_the_batch_into_parts_worth_it(batch, used):
    config = changed(TINY, training={"batch_size": batch})
    assert training.make_trainer(config, SPEC).mesh.size == used


def test_a_large_autoencoder_uses_one_cpu_device():
    config = AutoencoderConfig()  # a batch of 64, 22 million weights
    assert training.make_trainer(config, SPEC).mesh.size == 1
    assert training.make_trainer(config, SPEC, jax.devices()).mesh.size == 4


def batches(monkeypatch, trainer, count, steps):
    """Rows and keys of each of the first steps, by steps that compute nothing."""
    rows, keys = [], []

    def record(trainer, params, stats, vectors, key):
        rows.append(vectors[:, 0])
        keys.append(jax.random.key_data(key))
        return params["x"], {}

    monkeypatch.setattr(training, "loss_fn", record)
    params = {"x": jnp.float32(0)}
    opt_state = training.optimizer(TINY.training).init(params)
    data = np.repeat(np.arange(count, dtype=np.float32)[:, None], DIM, 1)
    for step, vectors in enumerate(training.batches(trainer, KEY, data)(0, steps)):
        state = training.TrainState(params, opt_state, jnp.int32(step), KEY)
        training._step(trainer, state, vectors, STATS)
    return np.asarray(rows), np.asarray(keys)


def test_an_epoch_sees_no_model_twice(monkeypatch, trainer):
    """Three batches of 32 from 100 models; another order each epoch."""
    rows, keys = batches(monkeypatch, trainer, 100, 6)
    epochs = rows.reshape(2, 96)
    assert [len(set(epoch)) for epoch in epochs] == [96, 96]
    assert set(epochs.ravel()) <= set(range(100))
    assert not np.array_equal(*epochs)
    assert len(np.unique(keys, axis=0)) == 6  # augmentation and dropout differ at every step


def test_fewer_models_than_a_batch(monkeypatch, trainer):
    for batch in batches(monkeypatch, trainer, 5, 2)[0]:
        assert sorted(batch) == [0, 1, 2, 3, 4]


def learning_rates(**changes):
    """Adam's first steps under a constant gradient are as long as its learning rate."""
    config = dataclasses.replace(TINY.training, learning_rate=0.5, weight_decay=0.0, **changes)
    tx, param, rates = training.optimizer(config), jnp.float32(0), []
    state = tx.init(param)
    for _ in range(8):
        update, state = tx.update(jnp.float32(1), state, param)
        rates.append(-float(update))
    return rates


def test_schedules():
    constant = learning_rates(schedule="constant", warmup_steps=2)
    np.testing.assert_allclose(constant, [0, 0.25, *[0.5] * 6], atol=1e-4)
    np.testing.assert_allclose(learning_rates(schedule="constant", warmup_steps=0), 0.5, rtol=1e-4)
    cosine = learning_rates(schedule="cosine", warmup_steps=2, steps=6)
    decay = 0.25 * (1 + np.cos(np.pi * np.arange(5) / 4))
    np.testing.assert_allclose(cosine, [0, 0.25, *decay, 0], atol=1e-4)
    short = learning_rates(schedule="cosine", warmup_steps=8, steps=4)  # ends in its warm-up
    np.testing.assert_allclose(short, np.arange(8) / 16, atol=1e-4)


def test_the_gradients_norm_is_clipped():
    def run(gradients, clip):
        config = dataclasses.replace(TINY.training, clip_norm=clip, warmup_steps=0)
        tx = training.optimizer(config)
        param = jnp.zeros(2)
        state = tx.init(param)
        for gradient in gradients:
            update, state = tx.update(jnp.float32(gradient), state, param)
        return update

    large = [[30, 40], [0.1, -0.2]]
    np.testing.assert_allclose(run(large, 1.0), run([[0.6, 0.8], large[1]], 0.0), rtol=1e-5)
    assert not np.allclose(run(large, 0.0), run(large, 1.0), rtol=1e-2)


def test_batches_are_read_from_a_file_as_from_memory(trainer, tmp_path):
    """And only they: with a memory of an eighth of the file."""
    data = np.random.default_rng(0).standard_normal((20_000, DIM), np.float32)
    np.save(tmp_path / "data.npy", data)
    expected = np.asarray(training.batches(trainer, KEY, data)(623, 4))  # into the second epoch
    mapped = np.load(tmp_path / "data.npy", mmap_mode="r")
    tracemalloc.start()
    try:
        found = training.batches(trainer, KEY, mapped)(623, 4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found, expected)
    assert found.sharding.spec == P(None, "batch")
    assert peak < data.nbytes / 8
    every = np.asarray(training.batches(trainer, KEY, data)(0, 1250)).reshape(2, -1, DIM)
    np.testing.assert_array_equal(expected.reshape(2, -1, DIM)[0], every[0, -64:])
    np.testing.assert_array_equal(expected.reshape(2, -1, DIM)[1], every[1, :64])
    known = {row.tobytes() for row in data}
    for epoch in every:
        assert {row.tobytes() for row in epoch} == known
    assert not np.array_equal(*every)
