"""Folds of members, each with the principal components of the others."""

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
    VECTORS,
    assert_trees_equal,
    changed,
)
from scipy.linalg import orthogonal_procrustes
from sklearn.decomposition import TruncatedSVD

from hyperjax import hyperrep
from hyperjax.config import Config, override
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import linear, losses, training, weight_data
from hyperjax.hyperrep.model import to_inputs

BARE = changed(EXACT, architecture={"linear_path": True, "tanh": False})
FOLDED = dataclasses.replace(BARE, folds=4)
UNITS = np.repeat(STATS.layer_std, SIZES)


def paths_of(config, folds):
    return linear.crosswise(config, SPEC, STATS, VECTORS, folds)


def members(count=50, each=2):
    """`each` vectors of each member, float32[M, E, D]."""
    return VECTORS[: count * each].reshape(count, each, DIM)


# --- folds --------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "each", "asked"), [(50, 2, 4), (11, 1, 3), (9, 5, 8)])
def test_every_member_is_in_one_fold_with_all_its_vectors(count, each, asked):
    parts = weight_data.folds(count, each, asked, seed=0)
    assert len(parts) == min(asked, count // 2)
    assert sorted(np.concatenate(parts)) == list(range(count * each))
    for part in parts:
        assert len(part) in (each * (count // len(parts)), each * -(-count // len(parts)))
        assert set(part) == {each * (row // each) + k for row in part for k in range(each)}


def test_members_are_split_at_random():
    first, again, other = (weight_data.folds(40, 1, 4, seed)[0] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first) not in (set(other), set(range(10)))


# --- paths --------------------------------------------------------------------------------


def test_a_path_has_the_components_of_the_others():
    folds = weight_data.folds(100, 1, 4, seed=0)
    paths = paths_of(BARE, folds)
    inputs = np.asarray(to_inputs(SPEC, STATS, VECTORS))
    metric = np.asarray(losses.slot_scale(SPEC, losses.loss_scale(BARE.loss, STATS)))
    for number, fold in enumerate(folds):
        svd = TruncatedSVD(8, algorithm="arpack").fit(np.delete(inputs, fold, 0) / metric)
        expected = svd.inverse_transform(svd.transform(inputs / metric)) * metric
        path = jax.tree.map(lambda leaf, k=number: leaf[k], paths)
        ours = inputs @ path.encoder @ path.decoder
        np.testing.assert_allclose(ours[fold], expected[fold], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("tanh", [False, True])
def test_latents_of_all_folds_mean_the_same(tanh):
    """Axes are turned as near to those of all members as orthogonal maps can."""
    config = changed(BARE, architecture={"tanh": tanh, "latent": 3})
    folds = weight_data.folds(100, 1, 4, seed=0)
    params = hyperrep.init(hyperrep.make_trainer(config, SPEC), KEY).params
    params = hyperrep.principal_components(config, SPEC, params, STATS, VECTORS)
    whole = np.asarray(params["encoder"]["linear"]["kernel"])
    inputs = np.asarray(to_inputs(SPEC, STATS, VECTORS))
    units = np.linalg.norm(whole, axis=0)  # axes are whitened
    for encoder in paths_of(config, folds).encoder:
        turn, _ = orthogonal_procrustes(encoder / units, whole / units)
        np.testing.assert_allclose(turn, np.eye(3), atol=1e-3)
        np.testing.assert_allclose(
            inputs @ encoder, inputs @ whole, atol=0.2 * (0.4 if tanh else 1)
        )


def test_a_variational_path_keeps_what_the_posterior_says():
    """One fold of nothing: the path of all members, by the same formulas."""
    config = changed(BARE, architecture={"variational": True}, loss={"kl": 0.3})
    params = hyperrep.init(hyperrep.make_trainer(config, SPEC), KEY).params
    params = hyperrep.principal_components(config, SPEC, params, STATS, VECTORS)
    path = paths_of(config, [np.zeros(0, int)])
    for part, kernel in zip(("encoder", "decoder"), path, strict=True):
        np.testing.assert_allclose(kernel[0], params[part]["linear"]["kernel"], atol=1e-5)


def test_fewer_others_than_components():
    """Of two members, one teaches the other's path: no more than its own direction."""
    path = linear.crosswise(BARE, SPEC, STATS, VECTORS[:2], [np.array([0]), np.array([1])])
    inputs = np.asarray(to_inputs(SPEC, STATS, VECTORS[:2]), np.float64)
    for own in (0, 1):
        other = inputs[1 - own]
        expected = other * (inputs[own] @ other) / (other @ other)
        ours = inputs[own] @ path.encoder[own] @ path.decoder[own]
        np.testing.assert_allclose(ours, expected, rtol=1e-3, atol=1e-3)


# --- training -----------------------------------------------------------------------------


def started(config):
    trainer = training.make_trainer(config, SPEC)
    data, stats = training.shown(trainer, STATS, members(), seed=0)
    begun = training.begin(trainer, KEY, data, stats)
    return trainer, data, stats, training.fit_linear(trainer, begun, stats, VECTORS).state


def test_a_batch_is_shown_with_the_path_of_its_fold():
    """The loss of the first step is the error of components that have not seen the batch."""
    trainer, data, stats, state = started(FOLDED)
    folds = weight_data.folds(50, 2, 4, seed=0)
    assert data.vectors.shape == (4, 26, DIM)
    errors = []
    for number, fold in enumerate(folds):
        inside = {row.tobytes() for row in VECTORS[fold]}
        assert {row.tobytes() for row in np.asarray(data.vectors[number])} == inside
    for encoder, decoder, vectors in zip(*data.paths, data.vectors, strict=True):
        part = np.asarray(to_inputs(SPEC, STATS, vectors))
        errors.append(np.square(part @ encoder @ decoder - part))
    own = {}
    for step in range(12):
        rows, params = training._batch(32, state._replace(step=jnp.int32(step)), data)
        (fold,) = {
            k for k in range(4) if {r.tobytes() for r in np.asarray(rows)}
            <= {r.tobytes() for r in np.asarray(data.vectors[k])}
        }  # fmt: skip
        np.testing.assert_array_equal(params["encoder"]["linear"]["kernel"], data.paths[0][fold])
        np.testing.assert_array_equal(params["decoder"]["linear"]["kernel"], data.paths[1][fold])
        loss, _ = training.loss_fn(trainer, params, stats, data.vectors[fold], KEY)
        own[fold] = float(loss)
    assert len(own) == 4
    scale = np.asarray(losses.slot_scale(SPEC, losses.loss_scale(FOLDED.loss, STATS)))
    for fold, loss in own.items():
        np.testing.assert_allclose(loss, np.mean(errors[fold] / scale**2), rtol=1e-4)


def test_the_path_of_all_members_stays_in_the_parameters():
    trainer, data, stats, state = started(FOLDED)
    before = jax.tree.map(np.asarray, state.params)
    state, _ = training.train_steps(trainer, state, data, stats, jnp.int32(3))
    for part in ("encoder", "decoder"):
        np.testing.assert_array_equal(
            state.params[part]["linear"]["kernel"], before[part]["linear"]["kernel"]
        )
    assert np.any(
        state.params["decoder"]["expand"]["kernel"] != before["decoder"]["expand"]["kernel"]
    )


def test_in_parts_it_is_the_same_training():
    trainer, data, stats, state = started(FOLDED)
    copy = jax.tree.map(jnp.copy, state)
    whole, _ = training.train_steps(trainer, copy, data, stats, jnp.int32(5))
    for count in (2, 3):
        state, _ = training.train_steps(trainer, state, data, stats, jnp.int32(count))
    assert_trees_equal(whole, state)


def test_devices_do_not_matter():
    found = []
    for devices in (jax.devices(), jax.devices()[:1]):
        trainer = training.make_trainer(FOLDED, SPEC, devices)
        data, stats = training.shown(trainer, STATS, members(), seed=0)
        state = training.init(trainer, KEY)
        # of later steps Adam magnifies the rounding of gradients that are nearly zero
        _, metrics = training.train_steps(trainer, state, data, stats, jnp.int32(2))
        found.append({name: float(value) for name, value in metrics.items()})
    ours, theirs = found
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_one_fold_is_all_vectors():
    trainer = training.make_trainer(BARE, SPEC)
    data, _ = training.shown(trainer, STATS, members(), seed=0)
    np.testing.assert_array_equal(data, VECTORS)


def test_what_is_learned_crosswise_carries_over():
    """Few members of many weights, without structure beyond the second order: what a network adds
    to the components of the very members makes others worse, much less so crosswise."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(240, 20)) @ rng.normal(size=(20, DIM)) + rng.normal(size=(240, DIM))
    train, held_out = np.split(np.float32(values), [60])
    lost = {}
    for folds in (1, 6):
        config = changed(
            BARE, training={"steps": 200}, data={"augment": PLAIN}, architecture={"mlp_dim": 64}
        )
        config = dataclasses.replace(config, folds=folds)
        stats = hyperrep.statistics(config.data, SPEC, train)
        trainer = training.make_trainer(config, SPEC)
        data, placed = training.shown(trainer, stats, train[:, None], seed=0)
        state = training.begin(trainer, KEY, data, placed)
        state = training.fit_linear(trainer, state, stats, train).state
        start = error(config, state.params, stats, held_out)
        state, _ = training.train_steps(trainer, state, data, placed, jnp.int32(200))
        lost[folds] = error(config, state.params, stats, held_out) - start
    assert 0 < lost[6] < 0.75 * lost[1]


def error(config, params, stats, vectors):
    model = hyperrep.HyperRep(config, SPEC, jax.device_get(params), stats, vectors[0])
    return float(np.mean((hyperrep.reconstruct(model, vectors, aligned=True) - vectors) ** 2))


def test_folds_need_a_linear_path():
    asked = {"autoencoder.folds": 4, "autoencoder.architecture.linear_path": False}
    with pytest.raises(HyperJaxError, match=r"autoencoder\.folds: got 4"):
        override(Config(), asked)
    override(Config(), asked | {"autoencoder.architecture.linear_path": True})
