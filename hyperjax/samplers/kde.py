"""The paper's kernel density estimate, as its text and as its published code have it."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hyperjax.samplers.base import Sampler, draw, make
from hyperjax.types import Array, Key


class Kernels(NamedTuple):
    anchors: Array  # f32[N, Z], centres of the kernels
    bandwidth: Array  # f32[], standard deviation of the kernels


def kde(bandwidth: float = 0.002) -> Sampler:
    """S_KDE as in the paper's text (section 3.2.2): latent dimensions are independent.

    In each dimension, a Gaussian kernel of standard deviation `bandwidth` (the published
    value is 0.002) sits on every anchor. A sample takes another anchor in each dimension: it
    has the anchors' marginals, and none of the dependence between their dimensions.

    >>> sampler = hj.samplers.kde(0.002)
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """
    return make(
        functools.partial(_fit, bandwidth=bandwidth),
        _sample_independent,
        "latent",
        f"kernel density of each dimension by itself, bandwidth {bandwidth:g} (paper's text)",
    )


def kde_anchor(bandwidth: float = 0.002) -> Sampler:
    """S_KDE as in the published code: a jittered replay of training models.

    The published code seeds every dimension alike. All dimensions hence take the same anchor
    and add the same noise: a sample is one anchor plus `bandwidth` times ONE standard normal
    number, shared by all dimensions. With the published bandwidth, 0.002, decoding it gives
    back the reconstruction of one training model. The paper's figures come from this sampler.

    >>> sampler = hj.samplers.kde_anchor(0.002)
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """
    return make(
        functools.partial(_fit, bandwidth=bandwidth),
        _sample_anchor,
        "latent",
        f"replays one anchor, shifted by one shared {bandwidth:g} * N(0, 1) (published code)",
    )


def _fit(key, anchors, quality, bandwidth):
    return Kernels(jnp.asarray(anchors), jnp.float32(bandwidth))


@functools.partial(jax.jit, static_argnames="n")
def _sample_independent(key: Key, state: Kernels, n: int) -> Array:
    index_key, noise_key = jax.random.split(key)
    count, size = state.anchors.shape
    index = jax.random.randint(index_key, (n, size), 0, count)
    centres = jnp.take_along_axis(state.anchors, index, axis=0)
    return centres + state.bandwidth * jax.random.normal(noise_key, (n, size))


@functools.partial(jax.jit, static_argnames="n")
def _sample_anchor(key: Key, state: Kernels, n: int) -> Array:
    index_key, noise_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (n, 1))
    return draw(index_key, state.anchors, n) + state.bandwidth * noise
