"""Baselines that need no autoencoder: aligned weight vectors in, weight vectors out.

Every sampler of latents must beat these on accuracy and novelty (Zeng et al., 2025, found
none that does). They suppose that the anchors are aligned (`hyperjax.symmetry`): otherwise
averages of networks are not networks.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.samplers.base import Sampler, at_least_two, draw, make
from hyperjax.types import Array, Key
from hyperjax.weights import WeightSpec, layer_ids, layer_std


def aligned_mean() -> Sampler:
    """The mean of all anchors: one model. All n samples are equal and no key changes them.

    >>> sampler = hj.samplers.aligned_mean()
    >>> sampler.sample(key, sampler.fit(key, weights), 5).shape
    (5, 2464)
    """
    return make(_fit_mean, _sample_mean, "weights", "mean of all anchors: n times one model")


def _fit_mean(key, anchors, quality):
    return jnp.asarray(anchors.mean(axis=0, dtype=np.float64), jnp.float32)


@functools.partial(jax.jit, static_argnames="n")
def _sample_mean(key: Key, state: Array, n: int) -> Array:
    return jnp.broadcast_to(state[None, :], (n, *state.shape))


def average(of: int) -> Sampler:
    """Mean of `of` distinct random anchors, drawn anew for each sample.

    Fitting raises HyperJaxError if there are fewer anchors than `of`.

    >>> sampler = hj.samplers.average(2)
    >>> sampler.sample(key, sampler.fit(key, weights), 5).shape
    (5, 2464)
    """
    return make(
        functools.partial(_fit_average, of=of),
        functools.partial(_sample_average, of=of),
        "weights",
        f"mean of {of} random anchors",
    )


def _fit_average(key, anchors, quality, of):
    if of > len(anchors):
        raise HyperJaxError(
            f"config field samplers.average_of: got {of}, expected at most the "
            f"number of anchors, {len(anchors)}"
        )
    return jnp.asarray(anchors)


@functools.partial(jax.jit, static_argnames=("n", "of"))
def _sample_average(key: Key, state: Array, n: int, of: int) -> Array:
    # The `of` largest of N random numbers stand at `of` distinct uniform places.
    _, index = jax.lax.top_k(jax.random.uniform(key, (n, len(state))), of)
    # one after another: all n * of anchors at once would be many times the samples' memory
    total = jax.lax.fori_loop(
        0, of, lambda i, total: total + state[index[:, i]], jnp.zeros((n, state.shape[1]))
    )
    return total / of


def average_nearest() -> Sampler:
    """Mean of a random anchor and the anchor that is nearest to it: of pairs, the most accurate.

    >>> sampler = hj.samplers.average_nearest()
    >>> sampler.sample(key, sampler.fit(key, weights), 5).shape
    (5, 2464)
    """
    return make(_fit_nearest, _sample_nearest, "weights", "mean of an anchor and the nearest other")


def _fit_nearest(key, anchors, quality):
    at_least_two(anchors)
    return jnp.asarray(anchors)


@functools.partial(jax.jit, static_argnames="n")
def _sample_nearest(key: Key, state: Array, n: int) -> Array:
    chosen = jax.random.randint(key, (n,), 0, len(state))
    squares = jnp.sum(state**2, axis=1)[None] - 2 * state[chosen] @ state.T
    nearest = jnp.argmin(squares.at[jnp.arange(n), chosen].set(jnp.inf), axis=1)
    return (state[chosen] + state[nearest]) / 2


class Noisy(NamedTuple):
    anchors: Array  # f32[N, D]
    scale: Array  # f32[D], standard deviation of the noise on each weight


def noise(scale: float, spec: WeightSpec | None) -> Sampler:
    """A random anchor plus Gaussian noise, of `scale` times its layer's standard deviation.

    The standard deviation is that of all values of the layer in all anchors, as in
    `weights.layer_std`.

    >>> sampler = hj.samplers.noise(0.2, zoo.spec)
    >>> sampler.sample(key, sampler.fit(key, weights), 5).shape
    (5, 2464)
    """
    return make(
        functools.partial(_fit_noise, scale=scale, spec=spec),
        _sample_noise,
        "weights",
        f"random anchor + {scale:g} layer standard deviations of Gaussian noise",
    )


def _fit_noise(key, anchors, quality, scale, spec):
    std = layer_std(spec, anchors)[layer_ids(spec)]
    return Noisy(jnp.asarray(anchors), jnp.asarray(scale * std))


@functools.partial(jax.jit, static_argnames="n")
def _sample_noise(key: Key, state: Noisy, n: int) -> Array:
    index_key, noise_key = jax.random.split(key)
    centres = draw(index_key, state.anchors, n)
    return centres + state.scale[None, :] * jax.random.normal(noise_key, centres.shape)


class Gaussian(NamedTuple):
    mean: Array  # f32[D]
    axes: Array  # f32[K, D], principal axes, each as long as its standard deviation


def pca(components: int) -> Sampler:
    """A Gaussian in the anchors' first K = min(components, N - 1, D) principal components.

    mean + sum_i s_i N(0, 1) v_i, with v_i the axes and s_i^2 the variances (divisor N - 1).

    >>> sampler = hj.samplers.pca(3)
    >>> sampler.sample(key, sampler.fit(key, weights), 5).shape
    (5, 2464)
    """
    return make(
        functools.partial(_fit_pca, components=components),
        _sample_pca,
        "weights",
        f"Gaussian in the first {components} principal components",
    )


def _fit_pca(key, anchors, quality, components):
    at_least_two(anchors)
    mean = anchors.mean(axis=0, dtype=np.float64).astype(np.float32)
    _, lengths, axes = np.linalg.svd(anchors - mean[None, :], full_matrices=False)
    kept = min(components, len(anchors) - 1, len(axes))
    scale = lengths[:kept, None] / np.sqrt(len(anchors) - 1)
    return Gaussian(jnp.asarray(mean), jnp.asarray(scale * axes[:kept], jnp.float32))


@functools.partial(jax.jit, static_argnames="n")
def _sample_pca(key: Key, state: Gaussian, n: int) -> Array:
    return state.mean[None, :] + jax.random.normal(key, (n, len(state.axes))) @ state.axes
