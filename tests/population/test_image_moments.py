"""Two moments of images, inputs drawn from them, and what is not copied."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from population_cases import SPEC, random_images, random_vectors

from hyperjax import population
from hyperjax.errors import HyperJaxError
from hyperjax.population import Moments
from hyperjax.types import Images

FLOATS = np.zeros((2, 8, 8, 1), np.float32)


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (7, 3), (300, 3)])
def test_moments_are_those_of_normalised_images(count, channels):
    rng = np.random.default_rng(count)
    pixels = rng.integers(0, 256, (count, 4, 3, channels), dtype=np.uint8)
    pixels[:, 1, 1] = 7
    mean, std = np.linspace(0.2, 0.6, channels), np.linspace(0.5, 0.3, channels)
    images = Images(pixels, np.zeros(count, np.int32), np.float32(mean), np.float32(std))
    result = population.image_moments(images)
    rows = (pixels / 255 - np.float32(mean)) / np.float32(std)
    assert result.mean.shape == (4, 3, channels)
    assert {leaf.dtype for leaf in result} == {np.dtype(np.float32)}
    np.testing.assert_allclose(result.mean, rows.mean(0), atol=1e-6)
    expected = np.cov(rows.reshape(count, -1).T, bias=True)
    np.testing.assert_allclose(result.covariance, expected, atol=1e-5)
    constant = np.ravel_multi_index((1, 1, 0), (4, 3, channels))
    assert not result.covariance[constant].any()  # exactly
    on_device = images._replace(pixels=jnp.asarray(pixels))
    jax.tree.map(np.testing.assert_array_equal, population.image_moments(on_device), result)


def test_moments_do_not_copy_the_images():
    images = Images(np.zeros((20_000, 16, 16, 1), np.uint8), None, np.zeros(1), np.ones(1))
    tracemalloc.start()
    population.image_moments(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6  # as float64 they are 41 MB, and a matrix is 0.5


def test_members_that_a_repair_is_fitted_to_are_not_copied():
    """But for the 400 that are used."""
    few = random_vectors(1)
    many = np.broadcast_to(few, (10_000, SPEC.num_params))
    inputs = np.random.default_rng(0).normal(size=(8, 28, 28, 1)).astype(np.float32)
    alone, together = (population.fit_repair(SPEC, v, inputs) for v in (few, many))
    for ours, theirs in zip(together.means, alone.means, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    tracemalloc.start()
    population.fit_repair(SPEC, many, inputs)  # compiled above
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e7  # they are 99 MB


@pytest.mark.parametrize(
    "pixels", [np.zeros((0, 8, 8, 1), np.uint8), np.zeros((2, 8, 8), np.uint8), FLOATS]
)
def test_what_has_no_moments(pixels):
    with pytest.raises(HyperJaxError, match=r"expected uint8\[N, H, W, C\]"):
        population.image_moments(Images(pixels, None, np.zeros(1), np.ones(1)))


def random_moments(rank, seed=0):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(24, rank)) / max(rank, 1) ** 0.5
    mean = rng.normal(size=(4, 2, 3))
    return Moments(np.float32(mean), np.float32(factor @ factor.T))


@pytest.mark.parametrize("rank", [24, 5, 0])
def test_gaussian_inputs_have_the_moments(rank):
    """Also where the covariance is singular, or zero."""
    given_moments, n = random_moments(rank), 5_000
    inputs = population.gaussian_inputs(jax.random.key(1), given_moments, n)
    assert inputs.shape == (n, 4, 2, 3)
    assert inputs.dtype == np.float32
    inputs = np.float64(inputs)
    largest = given_moments.covariance.max()
    atol = 5 * np.sqrt(largest / n) + 1e-6
    np.testing.assert_allclose(inputs.mean(0), given_moments.mean, atol=atol)
    covariance = np.cov(inputs.reshape(n, -1), rowvar=False)
    atol = 5 * largest * np.sqrt(2 / n) + 1e-6
    np.testing.assert_allclose(covariance, given_moments.covariance, atol=atol)


def test_gaussian_inputs_follow_their_key():
    draw = [
        population.gaussian_inputs(jax.random.key(seed), random_moments(5)) for seed in (0, 0, 1)
    ]
    assert draw[0].shape[0] == 512
    np.testing.assert_array_equal(draw[0], draw[1])
    assert np.abs(draw[0] - draw[2]).mean() > 0.1


def test_no_gaussian():
    indefinite = random_moments(5)._replace(covariance=np.float32(np.ones((24, 24)) - np.eye(24)))
    with pytest.raises(HyperJaxError, match="no Gaussian has this covariance"):
        population.gaussian_inputs(jax.random.key(0), indefinite)


def test_image_inputs_are_different_normalised_images():
    images = random_images(40)
    inputs = np.asarray(population.image_inputs(jax.random.key(0), images, 30))
    assert inputs.dtype == np.float32
    rows = (images.pixels / 255.0 - 0.4) / 0.3
    distances = np.abs(inputs[:, None] - rows[None]).max(axis=(2, 3, 4))
    assert distances.min(axis=1).max() < 1e-5
    assert len(set(distances.argmin(axis=1))) == 30
    assert population.image_inputs(jax.random.key(0), images).shape == (40, 28, 28, 1)
