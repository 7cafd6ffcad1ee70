"""The principal components beside the attention: where they start, and that they stay."""

import jax
import numpy as np
import pytest
from hyperrep_cases import (
    DIM,
    KEY,
    LINEAR,
    SIZES,
    SPEC,
    STATS,
    TINY,
    VECTORS,
    assert_trees_equal,
    changed,
    placed,
    updates_of,
)
from sklearn.decomposition import PCA

from hyperjax import hyperrep, weights
from hyperjax.hyperrep import HyperRep, losses, training
from hyperjax.hyperrep.model import to_inputs


def started(config, stats=STATS, vectors=VECTORS):
    params = hyperrep.init(hyperrep.make_trainer(config, SPEC), KEY).params
    params = hyperrep.principal_components(config, SPEC, params, stats, vectors)
    return HyperRep(config, SPEC, params, stats, VECTORS[0])


@pytest.mark.parametrize("lwln", [True, False])
def test_the_linear_path_holds_the_principal_components(lwln):
    """Of layer-wise normalised weights with LWLN, of raw weights without."""
    config = changed(LINEAR, architecture={"tanh": False}, loss={"lwln": lwln})
    units = np.repeat(STATS.layer_std if lwln else np.ones(3), SIZES)
    pca = PCA(8).fit(VECTORS / units)
    expected = pca.inverse_transform(pca.transform(VECTORS / units)) * units
    np.testing.assert_allclose(
        hyperrep.reconstruct(started(config), VECTORS, aligned=True), expected, rtol=1e-3, atol=2e-3
    )


def test_the_tanh_is_nearly_linear_at_the_start():
    model = started(LINEAR)
    latents = np.arctanh(hyperrep.encode(model, VECTORS, aligned=True).astype(np.float64))
    np.testing.assert_allclose(latents.std(0), 0.4, rtol=1e-3)
    np.testing.assert_allclose(np.corrcoef(latents.T), np.eye(8), atol=1e-3)
    result = hyperrep.reconstruct(model, VECTORS, aligned=True)
    score = losses.r_squared(SPEC, result, VECTORS, STATS.mean, STATS.layer_std)
    assert 0.98 < score["all"] < 1


def test_the_decoder_is_that_of_least_squares(monkeypatch):
    """Of all models at once, in float64; in how many blocks does not matter."""
    model = started(LINEAR)
    inputs = np.asarray(to_inputs(SPEC, STATS, VECTORS), np.float64)
    encoder, decoder = (model.params[part]["linear"]["kernel"] for part in ("encoder", "decoder"))
    expected = np.linalg.lstsq(np.tanh(inputs @ np.float64(encoder)), inputs, rcond=1e-6)[0]
    np.testing.assert_allclose(decoder, expected, rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(weights, "_BLOCK_BYTES", 7 * 4 * DIM)
    assert_trees_equal(started(LINEAR).params, model.params, rtol=1e-4, atol=1e-5)


def test_fewer_models_than_latents():
    few = VECTORS[:4]
    stats = hyperrep.statistics(TINY.data, SPEC, few)
    model = started(LINEAR, stats, few)
    latents = hyperrep.encode(model, few, aligned=True)
    np.testing.assert_array_equal(latents[:, 3:], 0)  # three differences between four models
    result = hyperrep.reconstruct(model, few, aligned=True)
    score = losses.r_squared(SPEC, result, few, stats.mean, stats.layer_std)
    assert score["all"] > 0.98


def test_the_linear_path_stays_as_it_is():
    """No gradient reaches it and it does not decay, while everything around it is trained."""
    config = changed(
        LINEAR,
        architecture={"dropout": 0.0},
        training={"weight_decay": 1.0, "warmup_steps": 0},
    )
    trainer, params = hyperrep.make_trainer(config, SPEC), started(LINEAR).params
    noise = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + noise.normal(0, 0.1, leaf.shape).astype(np.float32), params
    )

    updates = updates_of(trainer, params)
    for part in ("encoder", "decoder"):
        assert not updates[part].pop("linear")["kernel"].any()
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(updates))


def test_a_training_starts_from_the_linear_path():
    """Its state and its best parameters; without such a path nothing changes."""
    expected = started(LINEAR).params
    for config, part in ((LINEAR, expected), (TINY, None)):
        trainer = hyperrep.make_trainer(config, SPEC)
        begun = training.begin(trainer, KEY, placed(trainer))
        before = jax.tree.map(np.asarray, begun.state.params)
        fitted = training.fit_linear(trainer, begun, STATS, VECTORS)
        for params in (fitted.state.params, fitted.best):
            assert_trees_equal(params, before if part is None else part, rtol=1e-6, atol=1e-6)
        assert (float(fitted.best_score), int(fitted.best_step)) == (-np.inf, 0)
