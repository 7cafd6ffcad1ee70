"""New networks from a denoiser: from noise to weights, level by level.

From x at a level s, with x0 = D(x, s) the expected clean weights, to a lower level s':

- ancestral: x' = x0 + (s'/s)^2 (x - x0) + s' sqrt(1 - (s'/s)^2) e, the posterior of x' given x and
  x0 (Ho et al., "Denoising Diffusion Probabilistic Models", 2020, for noise that is added without
  shrinking the weights; Song et al., 2021);
  with e standard normal, times `temperature`: below 1, samples keep to where the density is high;
- deterministic: x' = x0 + (s'/s) (x - x0), an Euler step of the probability flow (Song et al.,
  2021; Karras et al., 2022).

With a quality that is asked for, x0 may be guided (Ho and Salimans, "Classifier-Free Diffusion
Guidance", 2022): D without it, plus `guidance` times the difference that it makes.

Levels fall geometrically; at the last one, which is not zero, the expected clean weights are the
sample.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hyperjax.config import DiffusionConfig
from hyperjax.diffusion import wiener as wieners
from hyperjax.diffusion.denoiser import Denoiser, denoise
from hyperjax.diffusion.wiener import Wiener
from hyperjax.hyperrep.losses import slot_scale
from hyperjax.types import Array, Key

_BATCH = 50  # networks that are sampled at once


def levels(config: DiffusionConfig, start: float) -> np.ndarray:
    """Noise levels float32[steps + 1] from `start` down to `config.sigma_min`; as many steps as
    from `config.sigma_max` down to `start` would leave. From a level that is no higher there are
    no steps: `start` alone."""
    if start <= config.sigma_min:
        return np.array([start], np.float32)
    low, high, first = np.log([config.sigma_min, config.sigma_max, start])
    steps = max(1, round(config.steps * (first - low) / max(high - low, 1e-6)))
    return np.exp(np.linspace(first, low, steps + 1)).astype(np.float32)


def sample(key: Key, denoiser: Denoiser, config: DiffusionConfig, quantiles: Array) -> np.ndarray:
    """New networks float32[n, D], from noise at `config.sigma_max`, one for each of `quantiles`
    float32[n]: of which quality they are to be (`UNKNOWN`: of any)."""
    unit = np.asarray(slot_scale(denoiser.spec, denoiser.scale))[None]
    key_start, key_noise = jax.random.split(key)
    centres = unit * _centres(denoiser.wiener, jax.random.split(key_start, len(quantiles)))
    return refine(key_noise, denoiser, config, centres, config.sigma_max, quantiles)


@jax.jit
def _centres(wiener: Wiener, keys: Array) -> Array:
    """Draws of the Wiener denoiser's Gaussian, one for each key."""
    axes, size = wiener.axes.shape

    def one(key):
        along, beside = jax.random.split(key)
        noise = jax.random.normal(along, (1, axes)), jax.random.normal(beside, (1, size))
        return wieners.sample(wiener, *noise)[0]

    return jax.vmap(one)(keys)


def refine(
    key: Key,
    denoiser: Denoiser,
    config: DiffusionConfig,
    networks: Array,
    sigma: float,
    quantiles: Array,
) -> np.ndarray:
    """Aligned networks float32[M, D], noised to the level `sigma` and denoised again.

    Networks that are not finite stay as they are.
    """
    networks, quantiles = np.asarray(networks, np.float32), np.asarray(quantiles, np.float32)
    steps, keys, parts = levels(config, sigma), jax.random.split(key, len(networks)), []
    # without a condition there is nothing to guide
    guidance = config.guidance if (quantiles >= 0).any() else 1.0
    for begin in range(0, len(networks), _BATCH):
        rows = np.arange(begin, begin + _BATCH).clip(max=len(networks) - 1)
        inputs = keys[rows], networks[rows], quantiles[rows], steps
        noise = 0.0 if config.deterministic else config.temperature
        part = _denoised(denoiser, config.deterministic, guidance, noise, *inputs)
        parts.append(np.asarray(part)[: len(networks) - begin])
    finite = np.isfinite(networks).all(axis=1, keepdims=True)
    return np.where(finite, np.concatenate(parts), networks)


@functools.partial(jax.jit, static_argnames=("deterministic", "guidance"))
def _denoised(
    denoiser: Denoiser,
    deterministic: bool,
    guidance: float,
    temperature: Array,
    keys: Array,
    networks: Array,
    quantiles: Array,
    steps: Array,
) -> Array:
    unit = slot_scale(denoiser.spec, denoiser.scale)[None]

    def expected(x, level):
        clean = denoise(denoiser, x, level, quantiles)
        if guidance == 1:
            return clean
        plain = denoise(denoiser, x, level)
        return plain + guidance * (clean - plain)

    def normal(number):
        of_step = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
        return unit * jax.vmap(lambda k: jax.random.normal(k, networks.shape[1:]))(of_step)

    def body(x, inputs):
        number, level, lower = inputs
        clean, share = expected(x, level), lower / level
        if deterministic:
            return clean + share * (x - clean), None
        spread = temperature * lower * jnp.sqrt(jnp.maximum(1 - share**2, 0))
        return clean + share**2 * (x - clean) + spread * normal(number), None

    x = networks + steps[0] * normal(0)
    inputs = (jnp.arange(1, len(steps)), steps[:-1], steps[1:])
    x, _ = lax.scan(body, x, inputs)
    return expected(x, steps[-1])
