import dataclasses

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
    trained,
)

from hyperjax.config import AutoencoderConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, losses
from hyperjax.hyperrep import training as hyperrep
from hyperjax.store import checkpoint


@pytest.fixture(scope="module")
def trainer():
    return hyperrep.make_trainer(TINY, SPEC)


@pytest.fixture(scope="module")
def model(trainer):
    state, _ = trained(50, trainer)
    return HyperRep(TINY, SPEC, jax.tree.map(np.asarray, state.params), STATS, VECTORS[0])


# --- statistics and units -------------------------------------------------------------------


def test_statistics():
    mean = VECTORS.astype(np.float64).mean(0)
    parts = np.split(VECTORS.astype(np.float64), [15, 67], axis=1)
    std = [part.std(ddof=1) for part in parts]
    np.testing.assert_allclose(STATS.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(STATS.layer_std, std, rtol=1e-5)
    np.testing.assert_allclose(STATS.scale, std, rtol=1e-5)
    raw = dataclasses.replace(TINY, center=False, scale=False)
    stats = hyperrep.statistics(raw, SPEC, VECTORS)
    np.testing.assert_array_equal(stats.mean, np.zeros(DIM))
    np.testing.assert_array_equal(stats.scale, np.ones(3))
    np.testing.assert_allclose(stats.layer_std, std, rtol=1e-5)
    np.testing.assert_array_equal(hyperrep.to_inputs(SPEC, stats, VECTORS), VECTORS)
    assert all(leaf.dtype == np.float32 for leaf in (*STATS, *stats))


def test_inputs_are_centred_and_scaled_and_back():
    inputs = hyperrep.to_inputs(SPEC, STATS, VECTORS)
    expected = (VECTORS - VECTORS.mean(0)) / np.repeat(STATS.layer_std, SIZES)
    np.testing.assert_allclose(inputs, expected, atol=1e-5)
    np.testing.assert_allclose(
        hyperrep.from_outputs(SPEC, STATS, inputs), VECTORS, rtol=1e-5, atol=1e-5
    )


# --- the loss -------------------------------------------------------------------------------


def loss_of(config, params, key=KEY, stats=STATS):
    trainer = hyperrep.make_trainer(config, SPEC)
    fn = jax.jit(hyperrep.loss_fn, static_argnums=0)
    loss, metrics = fn(trainer, params, stats, VECTORS, key)
    assert metrics["loss"] == loss
    return {name: float(value) for name, value in metrics.items()}


def test_lwln_divides_squared_errors_by_layer_variances(model):
    decoded = hyperrep.reconstruct(model, VECTORS).astype(np.float64)
    error = (decoded - VECTORS) ** 2
    with_lwln = loss_of(EXACT, model.params)
    assert with_lwln.keys() == {"loss", "reconstruction"}
    normalised = error / np.repeat(STATS.layer_std.astype(np.float64), SIZES) ** 2
    assert with_lwln["loss"] == pytest.approx(normalised.mean(), rel=1e-4)
    without = loss_of(dataclasses.replace(EXACT, lwln=False), model.params)
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
    config = dataclasses.replace(EXACT, beta=0.7, temperature=0.5)
    metrics = loss_of(config, model.params)
    inputs = hyperrep.to_inputs(SPEC, STATS, VECTORS)
    module = hyperrep.make_trainer(config, SPEC).module
    apply = jax.jit(lambda x: module.apply({"params": model.params}, x, train=False))
    projections = apply(inputs)[2]
    contrast = losses.nt_xent(projections, projections, 0.5)  # both views are the same
    assert metrics["contrast"] == pytest.approx(float(contrast), rel=1e-4)
    alone = loss_of(EXACT, model.params)["loss"]
    assert metrics["reconstruction"] == pytest.approx(alone, rel=1e-4)
    assert metrics["loss"] == pytest.approx(0.7 * alone + 0.3 * float(contrast), rel=1e-4)


def test_targets_are_the_original_or_the_corrupted_view(model):
    """A decoder that gives zero is charged the mean square of its target."""
    zero = jax.tree.map(np.zeros_like, model.params)
    erase = dataclasses.replace(PLAIN, erase=1.0, erase_scale=(0.3, 0.3))
    clean = np.mean(np.square(hyperrep.to_inputs(SPEC, STATS, VECTORS)))
    original = loss_of(dataclasses.replace(EXACT, augment=erase), zero)["loss"]
    assert original == pytest.approx(clean, rel=1e-4)
    view = loss_of(dataclasses.replace(EXACT, augment=erase, target="view"), zero)["loss"]
    assert view == pytest.approx(0.7 * clean, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "differ"),
    [({}, False), ({"noise": 0.5}, True), ({"permute": True, "mix": 0.5}, True)],
)
def test_the_two_views_are_drawn_independently(model, monkeypatch, changes, differ):
    config = dataclasses.replace(EXACT, beta=0.5, augment=dataclasses.replace(PLAIN, **changes))
    views = []
    monkeypatch.setattr(losses, "nt_xent", lambda i, j, _: views.append((i, j)) or 0.0)

    @jax.jit
    def projections(key):
        hyperrep.loss_fn(hyperrep.make_trainer(config, SPEC), model.params, STATS, VECTORS, key)
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
    restored = checkpoint.restore(tmp_path / "hyperrep", 5, hyperrep.init(trainer, KEY))
    assert_trees_equal(restored, half)
    resumed, second = trained(5, trainer, state=half)
    assert_trees_equal(resumed, whole)
    assert_trees_equal(trained(5, trainer, state=restored)[0], whole)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, (first[name] + second[name]) / 2, rtol=1e-5)


def test_one_compilation_serves_any_count_of_steps(trainer):
    state, _ = trained(1, trainer)
    compiled = hyperrep.train_steps._cache_size()
    for count in (2, 7):
        state, _ = trained(count, trainer, state=state)
    same = hyperrep.make_trainer(TINY, SPEC)
    trained(3, same)
    assert hyperrep.train_steps._cache_size() == compiled


def test_devices_do_not_matter(trainer):
    assert trainer.mesh.size == 4
    alone = hyperrep.make_trainer(TINY, SPEC, jax.devices()[:1])
    (ours, metrics), (theirs, expected) = trained(5, trainer), trained(5, alone)
    assert_trees_equal(ours.params, theirs.params, atol=2e-4)
    for name, value in metrics.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3)


@pytest.mark.parametrize(("batch", "used"), [(32, 4), (36, 4), (24, 3), (16, 2), (8, 1), (67, 1)])
def test_as_many_devices_as_divide_the_batch_into_parts_worth_it(batch, used):
    config = dataclasses.replace(TINY, batch_size=batch)
    assert hyperrep.make_trainer(config, SPEC).mesh.size == used


def test_a_large_autoencoder_uses_one_cpu_device():
    config = AutoencoderConfig(batch_size=64)  # 22 million weights
    assert hyperrep.make_trainer(config, SPEC).mesh.size == 1
    assert hyperrep.make_trainer(config, SPEC, jax.devices()).mesh.size == 4


def batches(monkeypatch, trainer, count, steps):
    """Rows and keys of each of the first steps, by steps that compute nothing."""
    rows, keys = [], []

    def record(trainer, params, stats, vectors, key, step):
        rows.append(vectors[:, 0])
        keys.append(jax.random.key_data(key))
        return params["x"], {}

    monkeypatch.setattr(hyperrep, "loss_fn", record)
    params = {"x": jnp.float32(0)}
    opt_state = hyperrep.optimizer(TINY).init(params)
    data = np.repeat(np.arange(count, dtype=np.float32)[:, None], DIM, 1)
    for step in range(steps):
        state = hyperrep.TrainState(params, opt_state, jnp.int32(step), KEY)
        hyperrep._step(trainer, state, data, STATS)
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
    config = dataclasses.replace(TINY, learning_rate=0.5, weight_decay=0.0, **changes)
    tx, param, rates = hyperrep.optimizer(config), jnp.float32(0), []
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
        tx = hyperrep.optimizer(dataclasses.replace(TINY, clip_norm=clip, warmup_steps=0))
        param = jnp.zeros(2)
        state = tx.init(param)
        for gradient in gradients:
            update, state = tx.update(jnp.float32(gradient), state, param)
        return update

    large = [[30, 40], [0.1, -0.2]]
    np.testing.assert_allclose(run(large, 1.0), run([[0.6, 0.8], large[1]], 0.0), rtol=1e-5)
    assert not np.allclose(run(large, 0.0), run(large, 1.0), rtol=1e-2)


# --- encoding and decoding ------------------------------------------------------------------


def test_an_untrained_model_decodes_to_the_mean():
    params = hyperrep.init(hyperrep.make_trainer(TINY, SPEC), KEY).params
    untrained = HyperRep(TINY, SPEC, params, STATS, VECTORS[0])
    latents = hyperrep.encode(untrained, VECTORS[:3])
    assert latents.shape == (3, 8)
    assert np.abs(latents).max() < 1
    decoded = hyperrep.decode(untrained, latents)
    np.testing.assert_allclose(decoded, np.tile(STATS.mean, (3, 1)), rtol=1e-6)


def test_a_trained_model_reconstructs_better_than_the_mean(model):
    result = hyperrep.reconstruct(model, VECTORS)
    assert (result.shape, result.dtype) == (VECTORS.shape, np.float32)
    score = losses.r_squared(SPEC, result, VECTORS, STATS.mean, STATS.layer_std)
    assert score["all"] > 0.1


def test_batches_do_not_matter(model):
    latents = hyperrep.encode(model, VECTORS)
    np.testing.assert_allclose(hyperrep.encode(model, VECTORS, batch=5), latents, atol=1e-5)
    np.testing.assert_allclose(hyperrep.encode(model, VECTORS[7:8]), latents[7:8], atol=1e-5)
    np.testing.assert_allclose(
        hyperrep.decode(model, latents, batch=5), hyperrep.decode(model, latents), atol=1e-4
    )


def test_any_number_of_models_compiles_once(model):
    hyperrep.encode(model, VECTORS)
    compiled = hyperrep._encode._cache_size()
    for count in (1, 20, 100):
        assert hyperrep.encode(model, VECTORS[:count]).shape == (count, 8)
    assert hyperrep._encode._cache_size() == compiled
    latents = hyperrep.encode(model, VECTORS)
    hyperrep.decode(model, latents)
    compiled = hyperrep._decode._cache_size()
    for count in (1, 20, 100):
        assert hyperrep.decode(model, latents[:count]).shape == (count, SPEC.num_params)
    assert hyperrep._decode._cache_size() == compiled


def test_errors(model):
    with pytest.raises(HyperJaxError, match=r"weight vectors of shape \(2, 76\).*\[N, 77\]"):
        hyperrep.encode(model, np.zeros((2, 76)))
    with pytest.raises(HyperJaxError, match=r"weight vectors of shape \(77,\)"):
        hyperrep.encode(model, VECTORS[0])
    with pytest.raises(HyperJaxError, match=r"latents of shape \(2, 77\).*\[N, 8\]"):
        hyperrep.decode(model, np.zeros((2, 77)))
    with pytest.raises(HyperJaxError, match=r"latents of shape \(0, 8\)"):
        hyperrep.decode(model, np.zeros((0, 8)))
    for value in (np.nan, np.inf):
        with pytest.raises(HyperJaxError, match="latents: expected finite values"):
            hyperrep.decode(model, np.full((1, 8), value))
