"""Anchors, small samplers, and what tests of all samplers do with them."""

import dataclasses
import functools

import jax
import numpy as np

from hyperjax import samplers
from hyperjax.config import GanConfig, SamplersConfig
from hyperjax.weights import LayerSpec, WeightSpec

SPEC = WeightSpec(
    layers=(LayerSpec("conv1", "conv", (2, 1, 2, 2)), LayerSpec("fc1", "dense", (3, 2))),
    activation="tanh",
)
D = SPEC.num_params  # 10 + 9
NAMES = samplers.names(vae=True)
WEIGHT_SAMPLERS = ("aligned_mean", "average", "noise", "pca")
SUBSAMPLED = ("subsample:kde30", "subsample:bootstrap:pca")
ALL = (*NAMES, *SUBSAMPLED, "bootstrap:joint", "bootstrap:neigh30")
ON_HOST = ("neigh", "neigh30", "bootstrap:neigh30")  # the state
QUICK = SamplersConfig(
    gan=GanConfig(hidden=8, layers=1, steps=10, batch_size=4),
    subsample_factor=3, bootstrap_rounds=2, bootstrap_draws=20,
)  # fmt: skip


def score(samples):
    return -np.abs(samples).sum(axis=1)


def make(name, **settings):
    return samplers.get_sampler(name, dataclasses.replace(QUICK, **settings), SPEC, score)


def fit(sampler, anchors, quality=None):
    anchors = np.asarray(anchors, np.float32)
    quality = np.ones(len(anchors)) if quality is None else quality  # the best: all of them
    return sampler.fit(jax.random.key(0), anchors, quality)


def draw(sampler, state, n, seed=1):
    return np.asarray(sampler.sample(jax.random.key(seed), state, n))


def fit_draw(sampler, anchors, n, quality=None):
    return draw(sampler, fit(sampler, anchors, quality), n)


@functools.cache
def fitted(name):
    return fit(make(name), some_anchors())


def some_anchors(count=20, size=D, seed=0):
    return np.random.default_rng(seed).uniform(-0.9, 0.9, (count, size)).astype(np.float32)


def correlated(count, size, scale=0.1, seed=0):
    """Anchors far inside (-1, 1), with a mean and a full covariance."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(size, size))
    return (scale * (rng.normal(size=(count, size)) @ mixing / size + 1)).astype(np.float32)


def assert_moments(samples, mean, covariance):
    """Within 5 standard errors, with the Gaussian error of a covariance as the scale."""
    n, variance = len(samples), np.diag(covariance)
    assert np.all(np.abs(samples.mean(0) - mean) < 5 * np.sqrt(variance / n) + 1e-6)
    error = np.sqrt((np.outer(variance, variance) + covariance**2) / n)
    assert np.all(np.abs(np.cov(samples.T, ddof=0) - covariance) < 5 * error + 1e-8)
