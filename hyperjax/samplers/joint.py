"""One joint kernel density over all latent dimensions."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.samplers.base import Sampler, at_least_two, draw, make, tanh_bound
from hyperjax.types import Array, Key


class Joint(NamedTuple):
    mean: Array  # f32[Z]
    residuals: Array  # f32[N, Z], anchors minus their mean
    bandwidth: Array  # f32[], h in [0, 1]
    bound: Array  # f32[], largest absolute value of a sample


def joint(bandwidth: float) -> Sampler:
    """Kernels shaped like the anchors' covariance S, on shrunken centres (West, 1993).

    A sample is m + sqrt(1 - h^2) (a - m) + h S^(1/2) e, with `a` a random anchor, `m` their
    mean, `e` standard normal and h the `bandwidth`, between 0 and 1. The kernels widen the
    density by what shrinking the centres took away, so that the samples' mean and covariance
    equal the anchors' for every h: from 0, a replay of the anchors, to 1, a Gaussian. Unlike
    in `kde`, dimensions stay as correlated as they are.

    S^(1/2) e is drawn as R^T e' / sqrt(N), with R [N, Z] the anchors' residuals and e'
    standard normal in N dimensions. Its covariance is R^T R / N = S without factorising
    anything, also where S is singular because there are fewer anchors than dimensions.

    Samples are clipped to the range of the latents (`tanh_bound`). This alters the two moments
    only as far as the density above leaks out of that range.

    >>> sampler = hj.samplers.joint(0.4)
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """
    return make(
        functools.partial(_fit, bandwidth=bandwidth),
        _sample,
        "latent",
        f"joint kernel density with the anchors' covariance, bandwidth {bandwidth:g} "
        "(0: replay, 1: Gaussian)",
    )


def _fit(key, anchors, quality, bandwidth):
    at_least_two(anchors)
    mean = anchors.mean(axis=0, dtype=np.float64)
    residuals = anchors - mean[None, :]
    values = (mean, residuals, bandwidth, tanh_bound(anchors))
    return Joint(*(jnp.asarray(x, jnp.float32) for x in values))


@functools.partial(jax.jit, static_argnames="n")
def _sample(key: Key, state: Joint, n: int) -> Array:
    index_key, noise_key = jax.random.split(key)
    count = len(state.residuals)
    noise = jax.random.normal(noise_key, (n, count)) @ state.residuals / jnp.sqrt(count)
    centres = draw(index_key, state.residuals, n)
    h = state.bandwidth
    samples = state.mean[None, :] + jnp.sqrt(1 - h**2) * centres + h * noise
    return jnp.clip(samples, -state.bound, state.bound)
