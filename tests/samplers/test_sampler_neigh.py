"""Neighbour sampling against umap-learn itself, called directly."""

import functools

import jax
import numpy as np
import pytest

from hyperjax import samplers
from hyperjax.config import NeighConfig, SamplersConfig, from_dict
from hyperjax.errors import HyperJaxError
from hyperjax.samplers.neigh import import_umap


def anchors(count=40):
    return np.random.default_rng(0).uniform(-0.99, 0.99, (count, 6)).astype(np.float32)


@functools.cache
def fitted(key=0, **settings):
    sampler = samplers.get_sampler("neigh", SamplersConfig(neigh=NeighConfig(**settings)))
    return sampler, sampler.fit(jax.random.key(key), anchors(), np.ones(40))


@functools.cache
def reference():
    """What the paper describes, by hand."""
    umap, seed = import_umap(), int(jax.random.bits(jax.random.key(0)))
    return umap.UMAP(
        n_neighbors=15, min_dist=0.01, n_components=3, metric="euclidean", random_state=seed,
        transform_seed=seed, n_jobs=1,
    ).fit(anchors())  # fmt: skip


def test_is_the_inverse_of_umap_in_the_box():
    sampler, state = fitted()
    theirs, key = reference(), jax.random.key(1)
    np.testing.assert_array_equal(state.umap.embedding_, theirs.embedding_)
    low, high = theirs.embedding_.min(axis=0), theirs.embedding_.max(axis=0)
    points = low + (high - low) * np.asarray(jax.random.uniform(key, (50, 3)))
    expected = theirs.inverse_transform(points)
    samples = np.asarray(sampler.sample(key, state, 50))
    np.testing.assert_allclose(samples, np.clip(expected, -1, 1), atol=1e-3)
    assert sampler.report(state, samples) == {"clipped": np.mean(np.abs(expected) > 1)}
    assert np.mean(np.abs(expected) > 1) > 0  # something was clipped, or this tests nothing


def test_the_box_holds_the_embedding():
    embedding, (_, box) = reference().embedding_, fitted()
    np.testing.assert_array_equal(box.low, embedding.min(axis=0))
    np.testing.assert_array_equal(box.high, embedding.max(axis=0))


def test_the_key_of_fit_seeds_umap():
    (sampler, one), (_, other) = fitted(), fitted(key=1)
    assert not np.array_equal(one.umap.embedding_, other.umap.embedding_)
    samples = [sampler.sample(jax.random.key(1), state, 3) for state in (one, other)]
    assert not np.array_equal(*samples)


def test_unbounded_latents_are_not_clipped():
    sampler, _ = fitted()
    state = sampler.fit(jax.random.key(0), 3 * anchors(), np.ones(40))
    samples = np.asarray(sampler.sample(jax.random.key(1), state, 20))
    assert np.abs(samples).max() > 1.5
    assert sampler.report(state, samples) == {"clipped": 0.0}


def test_too_few_anchors():
    sampler, _ = fitted()
    for count in (1, 3):
        with pytest.raises(HyperJaxError, match=f"neigh: UMAP cannot embed {count} anchors.* 4"):
            sampler.fit(jax.random.key(0), anchors(count), np.ones(count))


def test_one_neighbour_is_refused():
    with pytest.raises(HyperJaxError, match=r"samplers.neigh.neighbors: got 1, .* at least 2"):
        from_dict({"samplers": {"neigh": {"neighbors": 1}}})
