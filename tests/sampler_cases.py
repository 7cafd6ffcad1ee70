"""Anchors, small samplers, and what tests of all samplers do with them."""

import dataclasses
import functools

import jax
import numpy as np
from denoiser_cases import CONFIG, GRAPH, random_params

from hyperjax import samplers
from hyperjax.config import DiffusionConfig, GanConfig, SamplersConfig
from hyperjax.diffusion import Denoiser, wiener
from hyperjax.weights import LayerSpec, WeightSpec

SPEC = WeightSpec(
    layers=(LayerSpec("conv1", "conv", (2, 1, 2, 2)), LayerSpec("fc1", "dense", (3, 2))),
    activation="tanh",
)
D = SPEC.num_params  # 10 + 9
NAMES = samplers.names(vae=True)
WEIGHT_SAMPLERS = ("aligned_mean", "average", "average_nearest", "noise", "pca")
DIFFUSION = ("diffusion", "diffusion30")
WITH_TOOLS = (
    *DIFFUSION, "refine:kde", "repair:average", "repair:joint", "refine:repair:pca", "polish:kde",
    "subsample:repair:joint", "bootstrap:refine:kde",
)  # fmt: skip
SUBSAMPLED = ("subsample:kde30", "subsample:bootstrap:pca")
ALL = (*NAMES, *SUBSAMPLED, "bootstrap:joint", "bootstrap:neigh30", *WITH_TOOLS)
ON_HOST = ("neigh", "neigh30", "bootstrap:neigh30")  # the state
QUICK = SamplersConfig(
    gan=GanConfig(hidden=8, layers=1, steps=10, batch_size=4),
    subsample_factor=3, bootstrap_rounds=2, bootstrap_draws=20,
    diffusion=DiffusionConfig(steps=2, sigma_max=1.5, refine_sigma=1.5, polish_rounds=2),
)  # fmt: skip
LINEAR = np.linalg.qr(np.random.default_rng(5).normal(size=(D, D)))[0].astype(np.float32)


def score(samples):
    return -np.abs(samples).sum(axis=1)


def decode(latents):
    return np.asarray(latents) @ LINEAR


def encode(vectors):
    return np.asarray(vectors) @ np.linalg.pinv(LINEAR)


def repair(vectors):
    """Bring the mean of all weights back to a half."""
    return vectors + (0.5 - vectors.mean(axis=1, keepdims=True))


@functools.cache
def denoiser():
    """One that has learned nothing, of other networks than any anchors."""
    members = some_anchors(40, seed=9)
    params, one = random_params(GRAPH, SPEC), np.ones(2, np.float32)
    return Denoiser(CONFIG, SPEC, params, wiener.fit(members), one, members[0])


TOOLS = samplers.Tools(score, decode, encode, denoiser, repair)


def make(name, **settings):
    config = dataclasses.replace(QUICK, **settings)
    return samplers.get_sampler(name, config, SPEC, tools=TOOLS)


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
