"""The linear-optimal (Wiener) denoiser: all that second moments of a population tell.

With x = w + sigma e, the linear map of x with the least expected error is

    E[w | x] = mean + C (C + sigma^2 I)^-1 (x - mean)

for weights of covariance C, and no other is better if they are Gaussian. A learned denoiser is
judged against it: what it gains is structure beyond second order.

The sample covariance of fewer members than weights knows its own members too well: their error is
far below that of members it has not seen. Hence it is shrunk, C = (1 - a) S + a tr(S) / D I, by the
intensity a of Ledoit and Wolf (2004), whose independent observations are members: snapshots of one
are nearly the same network.
"""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from hyperjax import symmetry, weights
from hyperjax.errors import HyperJaxError
from hyperjax.types import Array
from hyperjax.weights import WeightSpec


class Wiener(NamedTuple):
    """Mean and covariance of a population, in K = min(N - 1, D) principal axes.

    In the directions beside the axes all variances are `rest`.
    """

    mean: Array  # float32[D]
    axes: Array  # float32[K, D], orthonormal
    variances: Array  # float32[K]
    rest: Array  # float32[], or float32[D] where there are no axes


def fit(
    vectors: Array,
    shrinkage: float | None = None,
    *,
    rows: Array | None = None,
    unit: Array | None = None,
) -> Wiener:
    """Mean and shrunk covariance (divisor N) of vectors float32[N, D], or [M, E, D] of M members.

    Args:
      vectors: may be the memory map of a file that is larger than memory, as long as there are more
        of them than weights; fewer are all read.
      shrinkage: the intensity a in [0, 1]; None: that of Ledoit and Wolf.
      rows: int[n], those along the first axis that count; None: all of them.
      unit: float32[D], what they are divided by; None: nothing.

    Raises HyperJaxError for fewer than two vectors.
    """
    rows, size = np.arange(len(vectors)) if rows is None else rows, vectors.shape[-1]
    each = math.prod(vectors.shape[1:-1])
    count = len(rows) * each
    if count < 2:
        raise HyperJaxError(f"a covariance of {count} networks; expected at least 2")
    blocks = functools.partial(_blocks, vectors, rows, unit)
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks(np.zeros(size))) / count
    wide, own = count <= size, 0.0  # the latter: the mean of `_squares` over members
    # of the smaller of the two products, of which both have the same eigenvalues
    if wide:
        centred = np.concatenate([*blocks(mean)])
        product = (centred @ centred.T).astype(np.float64) / count
        own = _squares(centred, each) / len(rows)
    else:
        product = np.zeros((size, size))
        for block in blocks(mean):
            product += (block.T @ block).astype(np.float64) / count
            own += _squares(block, each) / len(rows)
    if shrinkage is None:
        shrinkage = _ledoit_wolf(product, own, len(rows), size)
    variances, axes = np.linalg.eigh(product)
    total = max(float(variances.sum()), 0.0)
    kept = variances > 1e-7 * variances[-1]
    variances, axes = variances[kept][::-1], axes[:, kept][:, ::-1].T
    if wide:
        axes = axes @ centred / np.sqrt(count * variances)[:, None]
    rest = shrinkage * total / size
    values = (mean, axes, (1 - shrinkage) * variances + rest, rest)
    return Wiener(*(np.asarray(value, np.float32) for value in values))


def _blocks(
    vectors: Array, rows: np.ndarray, unit: Array | None, centre: Array
) -> Iterator[np.ndarray]:
    """Vectors float32[n, D] of some members at a time, divided, less the centre."""
    for block in weights.blocks(vectors, rows):
        yield (block if unit is None else block / unit[None]) - centre.astype(np.float32)[None]


def _squares(centred: np.ndarray, each: int) -> float:
    """Sum over members of the squared Frobenius norm of S_m, the mean of x x^T over the `each`
    vectors x of a member: that is the mean of (x . y)^2 over its pairs of vectors."""
    of_member = centred.reshape(-1, each, centred.shape[-1])
    return float(np.sum((of_member @ of_member.swapaxes(1, 2)).astype(np.float64) ** 2)) / each**2


def _ledoit_wolf(product: np.ndarray, own: float, members: int, size: int) -> float:
    """The intensity of Ledoit and Wolf (2004, section 3.3), of what sums up block by block.

    Args:
      product: the covariance S = mean of S_m, or another matrix of its eigenvalues that are not 0.
      own: the mean over members of the squared norm of S_m (`_squares`), which is of rank one, x
        x^T, for a member of one vector.
    """
    squares = float(np.sum(product**2))  # of all eigenvalues
    apart = squares - float(np.trace(product)) ** 2 / size  # of S from a multiple of I
    error = min(max((own - squares) / members, 0.0), apart)
    return error / apart if error > 0 else 0.0


def fit_orbits(spec: WeightSpec, vectors: Array) -> Wiener:
    """One that commutes with the permutations and signs of hidden neurons.

    Weights that the symmetries exchange get one mean and one variance, those of all of them
    together, and are taken as independent; where a sign is free, the mean is zero.
    """
    tokens = weights.tokenize(spec, np.asarray(vectors))
    blocks, signs = symmetry.input_blocks(spec), (*symmetry.sign_symmetric(spec), False)
    means, variances, signed_input = [], [], False
    for number, (token, (inputs, block), signed) in enumerate(
        zip(tokens, blocks, signs, strict=True)
    ):
        token, hidden = np.asarray(token, np.float64), number < len(tokens) - 1
        kernel = token[..., : inputs * block].reshape(*token.shape[:2], inputs, block)
        of_layer = []
        for values, axes, free in (
            (kernel, (0, *([1] if hidden else []), 2), signed or signed_input),
            (token[..., inputs * block :], (0, *([1] if hidden else [])), signed),
        ):
            mean = values.mean(axes, keepdims=True) * (not free)
            spread = ((values - mean) ** 2).mean(axes, keepdims=True)
            of_layer.append([np.broadcast_to(x[0], values.shape[1:]) for x in (mean, spread)])
        for found, number_of in ((means, 0), (variances, 1)):
            parts = [part[number_of].reshape(token.shape[1], -1) for part in of_layer]
            found.append(np.concatenate(parts, axis=1))
        signed_input = signed
    mean, rest = (np.asarray(weights.detokenize(spec, x), np.float32) for x in (means, variances))
    return Wiener(mean, np.zeros((0, len(mean)), np.float32), np.zeros(0, np.float32), rest)


def denoise(wiener: Wiener, noisy: Array, sigma: Array) -> Array:
    """Expected clean vectors float32[B, D] of noisy ones, at noise levels float32[B] or one.

    Pure; works under jit, vmap and grad.
    """
    level = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), (len(noisy),))[:, None] ** 2
    offset = noisy - wiener.mean[None]
    rest = jnp.reshape(wiener.rest, (1, -1))
    rest = rest / (rest + level)
    known = wiener.variances[None] / (wiener.variances[None] + level)
    clean = wiener.mean[None] + rest * offset
    if not len(wiener.axes):
        return clean
    return clean + ((offset @ wiener.axes.T) * (known - rest)) @ wiener.axes


def sample(wiener: Wiener, noise: Array, rest_noise: Array) -> Array:
    """Draws of the Gaussian float32[n, D] from standard normal noise [n, K] and [n, D]."""
    beside = rest_noise - (rest_noise @ wiener.axes.T) @ wiener.axes
    along = (noise * jnp.sqrt(wiener.variances)[None]) @ wiener.axes
    return wiener.mean[None] + along + jnp.sqrt(jnp.reshape(wiener.rest, (1, -1))) * beside
