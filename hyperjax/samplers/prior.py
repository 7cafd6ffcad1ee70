"""The prior of a variational autoencoder (paper appendix E)."""

import functools

import jax
import jax.numpy as jnp

from hyperjax.samplers.base import Sampler, make
from hyperjax.types import Array, Key


def prior() -> Sampler:
    """z ~ N(0, 1)^Z, which a VAE's KL term draws its latents to. Of the anchors only Z is used.

    The latents of another autoencoder have no such distribution: `check` refuses it there.

    >>> sampler = hj.samplers.prior()
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """
    return make(_fit, _sample, "latent", "standard normal, the prior of a VAE; of VAEs only")


def _fit(key, anchors, quality):
    return jnp.zeros(anchors.shape[1], jnp.float32)  # the mean


@functools.partial(jax.jit, static_argnames="n")
def _sample(key: Key, state: Array, n: int) -> Array:
    return state[None, :] + jax.random.normal(key, (n, *state.shape))
