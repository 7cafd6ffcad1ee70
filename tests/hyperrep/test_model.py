"""Encoding and decoding: of anything that holds networks, in batches and in transformations."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyperrep_cases import (
    DIM,
    KEY,
    SIZES,
    SPEC,
    STATS,
    TINY,
    VECTORS,
    changed,
    make_vectors,
    trained_model,
)

from hyperjax import hyperrep, symmetry
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, losses
from hyperjax.hyperrep import model as models
from hyperjax.weights import LayerSpec, WeightSpec
from hyperjax.zoo import Zoo

LATENTS = np.random.default_rng(3).uniform(-0.8, 0.8, (6, 8)).astype(np.float32)


@pytest.fixture(scope="module")
def model():
    return trained_model()


# --- statistics and units -------------------------------------------------------------------


def test_statistics():
    mean = VECTORS.astype(np.float64).mean(0)
    parts = np.split(VECTORS.astype(np.float64), [15, 67], axis=1)
    std = [part.std(ddof=1) for part in parts]
    np.testing.assert_allclose(STATS.mean, mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(STATS.layer_std, std, rtol=1e-5)
    np.testing.assert_allclose(STATS.scale, std, rtol=1e-5)
    raw = dataclasses.replace(TINY.data, center=False, scale=False)
    stats = hyperrep.statistics(raw, SPEC, VECTORS)
    np.testing.assert_array_equal(stats.mean, np.zeros(DIM))
    np.testing.assert_array_equal(stats.scale, np.ones(3))
    np.testing.assert_allclose(stats.layer_std, std, rtol=1e-5)
    np.testing.assert_array_equal(models.to_inputs(SPEC, stats, VECTORS), VECTORS)
    assert all(leaf.dtype == np.float32 for leaf in (*STATS, *stats))


def test_inputs_are_centred_and_scaled_and_back():
    inputs = models.to_inputs(SPEC, STATS, VECTORS)
    expected = (VECTORS - VECTORS.mean(0)) / np.repeat(STATS.layer_std, SIZES)
    np.testing.assert_allclose(inputs, expected, atol=1e-5)
    np.testing.assert_allclose(
        models.from_outputs(SPEC, STATS, inputs), VECTORS, rtol=1e-5, atol=1e-5
    )


# --- what is encoded and decoded ------------------------------------------------------------


def test_an_untrained_model_decodes_to_the_mean():
    params = hyperrep.init(hyperrep.make_trainer(TINY, SPEC), KEY).params
    untrained = HyperRep(TINY, SPEC, params, STATS, VECTORS[0])
    latents = hyperrep.encode(untrained, VECTORS[:3], aligned=True)
    assert latents.shape == (3, 8)
    assert np.abs(latents).max() < 1
    decoded = hyperrep.decode(untrained, latents)
    np.testing.assert_allclose(decoded, np.tile(STATS.mean, (3, 1)), rtol=1e-6)


def test_a_trained_model_reconstructs_better_than_the_mean(model):
    result = hyperrep.reconstruct(model, VECTORS, aligned=True)
    assert (result.shape, result.dtype) == (VECTORS.shape, np.float32)
    score = losses.r_squared(SPEC, result, VECTORS, STATS.mean, STATS.layer_std)
    assert score["all"] > 0.1


@jax.jit
def disguised(vectors):
    """Each row of [N, ..., D] with neurons in another order, and other signs."""
    keys = jax.random.split(KEY, len(vectors))
    transforms = jax.vmap(lambda key: symmetry.random_transform(key, SPEC))(keys)
    return symmetry.apply(SPEC, transforms, vectors)


def near(reference, *lead):
    """Networks whose neurons are in the order of the reference."""
    noise = np.random.default_rng(5).normal(size=(*lead, DIM)) * np.repeat([0.02, 0.2, 4], SIZES)
    return np.float32(reference + noise)


def test_networks_are_aligned_unless_they_are_said_to_be(model):
    ordered = near(model.reference, 10)
    moved = disguised(ordered)
    expected = hyperrep.encode(model, ordered, aligned=True)
    np.testing.assert_allclose(hyperrep.encode(model, moved), expected, atol=1e-5)
    as_they_are = hyperrep.encode(model, moved, aligned=True)
    assert np.abs(as_they_are - expected).max(axis=1).min() > 1e-2
    result, straight = (hyperrep.reconstruct(model, v, aligned=a)
                        for v, a in ((moved, False), (ordered, True)))  # fmt: skip
    np.testing.assert_allclose(result, straight, atol=1e-4)
    np.testing.assert_allclose(hyperrep.align(model, moved), ordered, atol=1e-5)
    one = hyperrep.align(model, moved.reshape(2, 5, DIM))[1, 3]
    np.testing.assert_allclose(one, ordered[8], atol=1e-5)


def test_without_alignment_networks_are_encoded_as_they_are(model):
    plain = dataclasses.replace(model, config=changed(TINY, data={"align": False}))
    moved = disguised(near(model.reference, 10))
    expected = hyperrep.encode(model, moved, aligned=True)
    np.testing.assert_array_equal(hyperrep.align(plain, moved), moved)
    np.testing.assert_array_equal(hyperrep.encode(plain, moved), expected)
    inside = jax.jit(lambda networks: hyperrep.encode(plain, networks))(moved)
    np.testing.assert_allclose(inside, expected, atol=1e-5)


def make_zoo(trajectories):
    members, epochs = trajectories.shape[:2]
    return Zoo(SPEC, trajectories, np.arange(epochs), np.arange(members), {})


def test_a_zoos_rows_are_members_first_each_aligned_by_its_last_snapshot(model):
    """First snapshots are near to nothing: by themselves they would be aligned otherwise."""
    last = near(model.reference, 5)
    first = make_vectors(5)[:, ::-1].copy()
    ordered = np.stack([first, last], axis=1)
    models_ = make_zoo(disguised(ordered))
    expected = np.concatenate([hyperrep.encode(model, v, aligned=True) for v in ordered])
    latents = hyperrep.encode(model, models_)
    assert latents.shape == (10, 8)
    np.testing.assert_allclose(latents, expected, atol=1e-5)
    np.testing.assert_allclose(
        hyperrep.align(model, models_), ordered.reshape(-1, DIM), rtol=1e-5, atol=1e-5
    )
    alone = hyperrep.encode(model, models_.weights)  # each snapshot by itself
    assert np.abs(alone.reshape(10, 8) - expected)[::2].max() > 1e-2
    same = hyperrep.encode(model, make_zoo(ordered), aligned=True)
    np.testing.assert_allclose(same, expected, atol=1e-5)


def test_a_zoo_is_aligned_with_its_second_moments(model):
    """Both are ordered as one; of weights as large as their moments, squares stay squares."""
    zoo = make_zoo(disguised(near(model.reference, 5))[:, None])
    kept = dataclasses.replace(zoo, second_moments=np.square(zoo.weights))
    expected = hyperrep.align(model, zoo)
    found = hyperrep.align_zoo(model, kept)
    np.testing.assert_array_equal(found.weights[:, 0], expected)
    # of an odd activation: a transform of signs, which squares do not know
    np.testing.assert_allclose(found.second_moments[:, 0], np.square(expected), rtol=1e-6)
    assert np.abs(found.second_moments - kept.second_moments).max() > 1e-2
    alone = hyperrep.align_zoo(model, zoo)
    np.testing.assert_array_equal(alone.weights, found.weights)
    assert alone.second_moments is None
    plain = dataclasses.replace(model, config=changed(TINY, data={"align": False}))
    np.testing.assert_array_equal(
        hyperrep.align_zoo(plain, kept).second_moments, kept.second_moments
    )


@pytest.mark.parametrize("lead", [(), (1,), (2, 3), (3, 1, 2)])
def test_any_leading_axes(model, lead):
    count = int(np.prod(lead))
    vectors = VECTORS[:count].reshape(*lead, DIM)
    rows = hyperrep.encode(model, VECTORS[:count], aligned=True)
    latents = hyperrep.encode(model, vectors, aligned=True)
    assert latents.shape == (*lead, 8)
    np.testing.assert_allclose(latents.reshape(-1, 8), rows, atol=1e-5)
    decoded = hyperrep.decode(model, latents)
    assert decoded.shape == (*lead, DIM)
    np.testing.assert_allclose(decoded.reshape(-1, DIM), hyperrep.decode(model, rows), atol=1e-4)


# --- batches --------------------------------------------------------------------------------


def test_batches_do_not_matter(model, monkeypatch):
    latents = hyperrep.encode(model, VECTORS, aligned=True)
    decoded = hyperrep.decode(model, latents)
    np.testing.assert_allclose(
        hyperrep.encode(model, VECTORS[7:8], aligned=True), latents[7:8], atol=1e-5
    )
    monkeypatch.setattr(models, "_BATCH", 8)
    np.testing.assert_allclose(hyperrep.encode(model, VECTORS, aligned=True), latents, atol=1e-5)
    np.testing.assert_allclose(hyperrep.decode(model, latents), decoded, atol=1e-4)


@pytest.mark.parametrize(
    ("count", "sizes"),
    [(1, [1]), (2, [2]), (5, [8]), (256, [256]), (257, [256, 1]), (600, [256, 256, 128])],
)
def test_sizes_of_batches_are_powers_of_two(model, monkeypatch, count, sizes):
    """At most twice as many rows as there are, and one latent alone is one row."""
    seen = []

    def recorded(architecture, spec, params, stats, latents):
        seen.append(len(latents))
        return np.repeat(latents[:, :1], DIM, axis=1)

    monkeypatch.setattr(models, "_decode", recorded)
    latents = np.arange(count, dtype=np.float32)[:, None] * np.ones((1, 8), np.float32)
    decoded = hyperrep.decode(model, latents)
    assert seen == sizes
    np.testing.assert_array_equal(decoded[:, 3], np.arange(count))


def test_many_numbers_of_models_share_a_few_programs(model):
    hyperrep.encode(model, VECTORS, aligned=True)  # 128 rows
    compiled = models._encode._cache_size()
    for count in (65, 80, 128):
        vectors = make_vectors(count)
        assert hyperrep.encode(model, vectors, aligned=True).shape == (count, 8)
    assert models._encode._cache_size() == compiled
    latents = hyperrep.encode(model, VECTORS, aligned=True)
    hyperrep.decode(model, latents)
    compiled = models._decode._cache_size()
    for count in (65, 80, 100):
        assert hyperrep.decode(model, latents[:count]).shape == (count, SPEC.num_params)
    assert models._decode._cache_size() == compiled


def test_autoencoders_that_differ_by_their_training_share_a_program(model):
    hyperrep.decode(model, LATENTS[0])
    compiled = models._decode._cache_size()
    other = dataclasses.replace(model, config=changed(TINY, loss={"lwln": False, "beta": 0.5}))
    hyperrep.decode(other, LATENTS[0])
    assert models._decode._cache_size() == compiled


# --- inside of transformations --------------------------------------------------------------


def test_decoding_inside_jit_and_vmap_equals_outside(model):
    expected = hyperrep.decode(model, LATENTS)
    assert isinstance(expected, np.ndarray)
    inside = jax.jit(lambda z: hyperrep.decode(model, z))
    np.testing.assert_allclose(inside(LATENTS), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(inside(LATENTS[0]), expected[0], rtol=1e-4, atol=1e-4)
    mapped = jax.vmap(lambda z: hyperrep.decode(model, z))(LATENTS)
    np.testing.assert_allclose(mapped, expected, rtol=1e-4, atol=1e-4)


def test_encoding_of_aligned_networks_inside_jit_and_vmap_equals_outside(model):
    expected = hyperrep.encode(model, VECTORS[:6], aligned=True)

    def inside(networks):
        return hyperrep.encode(model, networks, aligned=True)

    np.testing.assert_allclose(jax.jit(inside)(VECTORS[:6]), expected, atol=1e-5)
    np.testing.assert_allclose(jax.vmap(inside)(VECTORS[:6]), expected, atol=1e-5)


def test_gradients_are_those_of_finite_differences(model):
    units = np.repeat(STATS.layer_std, SIZES)

    def decoded_error(z):
        return jnp.mean(((hyperrep.decode(model, z) - VECTORS[1]) / units) ** 2)

    def encoded_square(x):
        return jnp.sum(hyperrep.encode(model, x, aligned=True) ** 2)

    direction = np.random.default_rng(0).normal(size=(2, DIM))
    for fn, at, along in (
        (decoded_error, LATENTS[0], direction[0, :8]),
        (encoded_square, VECTORS[1], direction[1] * units),
    ):
        steps = (1e-2 * along, -1e-2 * along)
        ends = [float(fn(np.float32(at + step))) for step in steps]
        slope = float(np.asarray(jax.grad(fn)(at), np.float64) @ along)
        assert slope == pytest.approx((ends[0] - ends[1]) / 2e-2, rel=0.02)


def test_a_latent_is_found_by_gradient_descent(model):
    units = np.repeat(STATS.layer_std, SIZES)
    target = hyperrep.decode(model, LATENTS[0])

    @jax.jit
    def step(z):
        def distance(z):
            return jnp.sum(((hyperrep.decode(model, z) - target) / units) ** 2)

        value, slope = jax.value_and_grad(distance)(z)
        return z - 0.01 * slope, value

    z, values = jnp.zeros(8), []
    for _ in range(60):
        z, value = step(z)
        values.append(float(value))
    assert values[-1] < 0.1 * values[0]
    found = hyperrep.decode(model, z)
    start = hyperrep.decode(model, np.zeros(8))
    assert np.linalg.norm(found - target) < 0.5 * np.linalg.norm(start - target)


@pytest.mark.parametrize("transform", [jax.jit, jax.vmap, jax.grad])
def test_alignment_inside_a_transformation_is_refused(model, transform):
    def encoded(networks):
        return jnp.sum(hyperrep.encode(model, networks))

    vectors = VECTORS[0] if transform is jax.grad else VECTORS[:2]
    with pytest.raises(HyperJaxError, match=r"inside jit, vmap or grad.*aligned=True"):
        transform(encoded)(vectors)


def test_shapes_are_checked_inside_of_transformations_too(model):
    with pytest.raises(HyperJaxError, match=r"latents of shape \(2, 7\).*\[\.\.\., 8\]"):
        jax.jit(lambda z: hyperrep.decode(model, z))(np.zeros((2, 7)))


def test_a_hyper_representation_is_an_argument_of_jit(model):
    """Its arrays are traced, its configuration is not: another one compiles another program."""
    expected = hyperrep.decode(model, LATENTS)

    @jax.jit
    def both(hr, z):
        return hr, hyperrep.decode(hr, z)

    back, decoded = both(model, LATENTS)
    np.testing.assert_allclose(decoded, expected, rtol=1e-4, atol=1e-4)
    assert (back.config, back.spec) == (model.config, model.spec)
    np.testing.assert_array_equal(back.reference, model.reference)
    shifted = dataclasses.replace(model, statistics=STATS._replace(mean=STATS.mean + np.float32(1)))
    np.testing.assert_allclose(both(shifted, LATENTS)[1], expected + 1, rtol=1e-4, atol=1e-4)
    assert both._cache_size() == 1
    raw = dataclasses.replace(model, config=changed(TINY, training={"steps": 1}))
    assert both(raw, LATENTS)[0].config.training.steps == 1
    slope = jax.grad(lambda hr: hyperrep.decode(hr, LATENTS[0])[3])(model)
    np.testing.assert_allclose(slope.statistics.mean, np.eye(DIM)[3], atol=1e-6)


# --- mistakes -------------------------------------------------------------------------------


def test_errors(model):
    with pytest.raises(HyperJaxError, match=r"weight vectors of shape \(2, 76\).*\[\.\.\., 77\]"):
        hyperrep.encode(model, np.zeros((2, 76)))
    with pytest.raises(HyperJaxError, match=r"weight vectors of shape \(\)"):
        hyperrep.encode(model, np.float32(1))
    with pytest.raises(HyperJaxError, match=r"latents of shape \(2, 77\).*\[\.\.\., 8\]"):
        hyperrep.decode(model, np.zeros((2, 77)))
    with pytest.raises(HyperJaxError, match=r"latents of shape \(0, 8\)"):
        hyperrep.decode(model, np.zeros((0, 8)))
    for value in (np.nan, np.inf):
        with pytest.raises(HyperJaxError, match="latents: expected finite values"):
            hyperrep.decode(model, np.full((1, 8), value))
        for aligned in (True, False):
            with pytest.raises(HyperJaxError, match="weight vectors: expected finite values"):
                hyperrep.encode(model, np.full((1, 77), value), aligned=aligned)
    other = WeightSpec((LayerSpec("f", "dense", (2, 3)),), "tanh")
    small = Zoo(other, np.zeros((1, 1, 8), np.float32), np.arange(1), np.arange(1), {})
    for aligned in (True, False):
        with pytest.raises(HyperJaxError, match="77"):
            hyperrep.encode(model, small, aligned=aligned)
    with pytest.raises(HyperJaxError, match="no VAE"):
        hyperrep.posterior(model, VECTORS)
