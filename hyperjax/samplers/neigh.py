"""Neighbour sampling S_Neigh: uniform in a UMAP embedding of the anchors (paper section 3.2.3)."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.config import NeighConfig
from hyperjax.errors import HyperJaxError
from hyperjax.samplers.base import Sampler, make, tanh_bound
from hyperjax.types import Array, Key

_SIZE = 3  # dimensions of the embedding, as in the paper


class Embedding(NamedTuple):
    umap: Any  # the fitted umap.UMAP, a host object that no function here changes
    low: np.ndarray  # f32[3], the box from which points are drawn
    high: np.ndarray  # f32[3]
    bound: float  # largest absolute value of a sample


def neigh(config: NeighConfig | None = None) -> Sampler:
    """S_Neigh: embed the anchors with UMAP, draw uniformly there, map back with its inverse.

    Points are drawn in the box that holds the embedded anchors, as the paper's text has it (the
    published code: in the cube over the extremes of all coordinates). Fewer anchors get fewer
    neighbours, and 4 anchors, of which UMAP makes no 3 dimensions, get 2. UMAP extrapolates: values
    beyond the range of the latents (`tanh_bound`) are clipped, and `report` tells their share.

    The state lives on the host: it holds a umap.UMAP and is no pytree of arrays, and `sample`
    cannot be jitted or vmapped. The first fit and draw of a process compile for 20 seconds.
    Both are seeded by the key of `fit`. Fitting raises HyperJaxError for fewer than 4 anchors.

    >>> sampler = hj.samplers.neigh()
    >>> sampler.sample(key, sampler.fit(key, latents), 5).shape
    (5, 8)
    """
    return make(
        functools.partial(_fit, config=config or NeighConfig()),
        _sample,
        "latent",
        f"uniform in the box around a UMAP embedding of the anchors in {_SIZE} dimensions, "
        "inverted",
        _report,
    )


def _fit(key, anchors, quality, config):
    if len(anchors) < 4:
        raise HyperJaxError(
            f"UMAP cannot embed {len(anchors)} anchors so that there is an inverse; "
            "expected at least 4 anchors"
        )
    seed = int(jax.random.bits(key))
    if np.square(anchors.astype(np.float64)).sum() > np.finfo(np.float32).max:
        raise HyperJaxError("anchors are too large: their distances are infinite in float32")
    umap = (
        import_umap()
        .UMAP(
            n_components=min(_SIZE, len(anchors) - 2),
            n_neighbors=min(config.neighbors, len(anchors) - 1),
            min_dist=config.min_dist,
            random_state=seed,
            transform_seed=seed,  # of the inverse
            n_jobs=1,  # what a seed means anyway, but with a warning
        )
        .fit(anchors)
    )
    low, high = umap.embedding_.min(axis=0), umap.embedding_.max(axis=0)
    return Embedding(umap, low, high, tanh_bound(anchors))


def import_umap():
    with warnings.catch_warnings():  # about a variant of UMAP that nobody asked for
        warnings.filterwarnings("ignore", "Tensorflow not installed", ImportWarning)
        import umap
    return umap


def _sample(key: Key, state: Embedding, n: int) -> Array:
    shape = (n, len(state.low))
    points = jax.random.uniform(key, shape, minval=state.low, maxval=state.high)
    samples = state.umap.inverse_transform(np.asarray(points))
    return jnp.clip(jnp.asarray(samples, jnp.float32), -state.bound, state.bound)


def _report(state: Embedding, samples: Array) -> dict[str, float]:
    """Clipped values are known by where they are: no other value hits the bound exactly."""
    return {"clipped": float(np.mean(np.abs(samples) == state.bound))}
