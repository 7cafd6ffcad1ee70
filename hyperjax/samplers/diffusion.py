"""Samplers that go through a denoiser, and the wrapper that repairs what another sampler draws.

None of them fits anything to anchors: the denoiser and the repair are given, as `Tools`. They draw
aligned weight vectors.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.config import DiffusionConfig
from hyperjax.diffusion import sampling
from hyperjax.diffusion.denoiser import UNKNOWN, Denoiser
from hyperjax.errors import HyperJaxError
from hyperjax.samplers.base import Sampler, make
from hyperjax.types import Array

Denoisers = Callable[[], Denoiser]  # called when the sampler draws


def diffusion(denoiser: Denoisers, config: DiffusionConfig, best: float = 1.0) -> Sampler:
    """From noise to networks by a denoiser (`hyperjax.diffusion`).

    With `best` < 1 the denoiser is told that each network is of the best so many: of a quantile
    that is uniform in [1 - best, 1], with `config.guidance`. Fitting then raises HyperJaxError if
    no quality is known: a denoiser of such members was never told what that means.

    >>> sampler = hj.samplers.diffusion(lambda: denoiser, config.samplers.diffusion)
    >>> sampler.sample(key, sampler.fit(key, weights), 2).shape
    (2, 2464)
    """

    def fit(key, anchors, quality):
        if best < 1 and np.isnan(quality).all():
            raise HyperJaxError(
                f"cannot ask for the best {100 * best:g} %: the quality of every one of the "
                f"{len(quality)} train models is NaN"
            )
        return ()

    def sample(key, state, n):
        key_quantile, key_draw = jax.random.split(key)
        quantiles = jax.random.uniform(key_quantile, (n,), minval=1 - best, maxval=1.0)
        quantiles = quantiles if best < 1 else jnp.full(n, UNKNOWN)
        return sampling.sample(key_draw, denoiser(), config, quantiles)

    condition = f", told to be of the best {100 * best:g} %" if best < 1 else ""
    description = f"diffusion of weights in {config.steps} steps{condition}"
    return make(fit, sample, "weights", description)


def refine(
    sampler: Sampler,
    denoiser: Denoisers,
    config: DiffusionConfig,
    networks: Callable[[Array], Array] | None = None,
) -> Sampler:
    """What `sampler` draws, noised to `config.refine_sigma` and denoised again.

    `networks` decodes it, where it is latents.

    >>> sampler = hj.samplers.average(2)
    >>> refined = hj.samplers.refine(sampler, lambda: denoiser, config.samplers.diffusion)
    >>> refined.sample(key, refined.fit(key, weights), 2).shape
    (2, 2464)
    """

    def sample(key, state, n):
        key_draw, key_noise = jax.random.split(key)
        drawn = _decoded(sampler, networks, sampler.sample(key_draw, state, n))
        unknown = jnp.full(n, UNKNOWN)
        sigma = config.refine_sigma
        return sampling.refine(key_noise, denoiser(), config, drawn, sigma, unknown)

    description = f"{sampler.description}; noised to {config.refine_sigma:g} and denoised"
    made = make(sampler.fit, sample, sampler.space, description)
    return made._replace(draws="weights")


def repair(
    sampler: Sampler,
    repairer: Callable[[Array], Array],
    networks: Callable[[Array], Array] | None = None,
) -> Sampler:
    """What `sampler` draws, each neuron given the mean and spread that it has in train members
    (`hyperjax.population.repair`); `networks` decodes it, where it is latents.

    >>> repaired = hj.samplers.repair(hj.samplers.average(2), lambda vectors: vectors)
    >>> repaired.sample(key, repaired.fit(key, weights), 2).shape
    (2, 2464)
    """

    def sample(key, state, n):
        return repairer(_decoded(sampler, networks, sampler.sample(key, state, n)))

    description = f"{sampler.description}; neurons' means and spreads repaired"
    made = make(sampler.fit, sample, sampler.space, description)
    return made._replace(draws="weights")


def polish(
    sampler: Sampler,
    denoiser: Denoisers,
    repairer: Callable[[Array], Array],
    config: DiffusionConfig,
    networks: Callable[[Array], Array] | None = None,
) -> Sampler:
    """What `sampler` draws, repaired, then `config.polish_rounds` times in turn noised to
    `config.polish_sigma`, denoised and repaired. `networks` decodes it, where it is latents.

    The denoiser pulls weights to where networks of the population are, the repair neurons to where
    theirs are: in turn they come nearer to both than either alone.

    >>> polished = hj.samplers.polish(
    ...     hj.samplers.average(2), lambda: denoiser, lambda vectors: vectors,
    ...     config.samplers.diffusion,
    ... )
    >>> polished.sample(key, polished.fit(key, weights), 2).shape
    (2, 2464)
    """

    def sample(key, state, n):
        key_draw, *keys = jax.random.split(key, 1 + config.polish_rounds)
        drawn = repairer(_decoded(sampler, networks, sampler.sample(key_draw, state, n)))
        unknown, sigma = jnp.full(n, UNKNOWN), config.polish_sigma
        for of_round in keys:
            drawn = sampling.refine(of_round, denoiser(), config, drawn, sigma, unknown)
            drawn = repairer(drawn)
        return drawn

    description = (
        f"{sampler.description}; {config.polish_rounds} times noised to {config.polish_sigma:g}, "
        "denoised and repaired"
    )
    made = make(sampler.fit, sample, sampler.space, description)
    return made._replace(draws="weights")


def _decoded(sampler: Sampler, networks, samples: Array) -> np.ndarray:
    in_weights = sampler.drawn == "weights"
    return np.asarray(samples if in_weights else networks(samples), np.float32)
