"""Counterfactual sampling S_C: where the kernel density has no mass (paper section 3.2.2)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.samplers.base import Sampler, make, tanh_bound
from hyperjax.types import Array, Key

_CELLS = 2000  # of each dimension's range: as wide as half the published bandwidth


class Gaps(NamedTuple):
    cells: Array  # f32[C, Z], lower edges of each dimension's cells, least density first
    count: Array  # f32[Z], how many of them belong to the gaps
    width: Array  # f32[Z], of a cell


def counterfactual(bandwidth: float, fraction: float) -> Sampler:
    """Uniform, in each dimension by itself, where the density of `kde` is lowest.

    The paper asks for regions "with low probability according to the KDE" and gives no rule;
    this is ours. The range of a dimension is cut into cells. A cell is a gap if the kernel
    density there is at most the `fraction` quantile of all cells' densities; ties stay. With a
    small bandwidth most of the range is empty: the quantile is then zero, and gaps are what is
    more than four bandwidths away from every anchor. A sample takes a random place in a random
    gap, anew in each dimension.

    The range is (-1, 1) if there is such a bound (`tanh_bound`), and otherwise the anchors'
    own in each dimension, with half of its length and four bandwidths added at either end.

    >>> sampler = hj.samplers.counterfactual(0.002, 0.1)
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """
    return make(
        functools.partial(_fit, bandwidth=bandwidth, fraction=fraction),
        _sample,
        "latent",
        f"uniform where the kernel density of each dimension is lowest ({100 * fraction:g} % of "
        "the range, or more where it is zero)",
    )


def _fit(key, anchors, quality, bandwidth, fraction):
    # Not at module level: SciPy's filters would slow down every import of the samplers.
    from scipy.ndimage import gaussian_filter1d

    low, high = _range(anchors, tanh_bound(anchors), bandwidth)
    width = (high - low) / _CELLS
    place = np.clip((anchors - low[None, :]) / width[None, :], 0, _CELLS - 1).astype(int)
    density = np.zeros((_CELLS, anchors.shape[1]))
    np.add.at(density, (place, np.arange(anchors.shape[1])[None, :]), 1)
    for column, sigma in enumerate(bandwidth / width):
        density[:, column] = gaussian_filter1d(density[:, column], sigma, mode="constant")
    threshold = np.quantile(density, fraction, axis=0, method="lower")
    count = np.sum(density <= threshold[None, :], axis=0)
    order = np.argsort(density, axis=0, kind="stable")  # all, so that states have one shape
    cells = low[None, :] + order * width[None, :]
    return Gaps(*(jnp.asarray(x, jnp.float32) for x in (cells, count, width)))


def _range(anchors, bound, bandwidth):
    if np.isfinite(bound):
        return np.full(anchors.shape[1], -bound), np.full(anchors.shape[1], bound)
    low, high = anchors.min(axis=0).astype(np.float64), anchors.max(axis=0).astype(np.float64)
    margin = (high - low) / 2 + 4 * bandwidth
    return low - margin, high + margin


@functools.partial(jax.jit, static_argnames="n")
def _sample(key: Key, state: Gaps, n: int) -> Array:
    index_key, place_key = jax.random.split(key)
    shape = (n, len(state.count))
    # Rounding in float32 may reach the count itself.
    index = jnp.minimum(
        jax.random.uniform(index_key, shape) * state.count[None, :], state.count[None, :] - 1
    )
    edges = jnp.take_along_axis(state.cells, index.astype(jnp.int32), axis=0)
    return edges + state.width[None, :] * jax.random.uniform(place_key, shape)
