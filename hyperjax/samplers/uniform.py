"""Uniform sampling of the latent cube: the naive baseline S_U (paper section 3.2.1)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hyperjax.samplers.base import Sampler, make
from hyperjax.types import Array, Key


class Box(NamedTuple):
    low: Array  # f32[Z]
    high: Array  # f32[Z]


def uniform() -> Sampler:
    """z ~ U(-1, 1)^Z, the range of the tanh bottleneck. Of the anchors only Z is used.

    >>> sampler = hj.samplers.uniform()
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """
    return make(_fit, _sample, "latent", "uniform in (-1, 1), blind to the anchors")


def _fit(key, anchors, quality):
    high = jnp.ones(anchors.shape[1], jnp.float32)
    return Box(low=-high, high=high)


@functools.partial(jax.jit, static_argnames="n")
def _sample(key: Key, state: Box, n: int) -> Array:
    return jax.random.uniform(key, (n, *state.low.shape), minval=state.low, maxval=state.high)
