"""The linear path beside the attention (`architecture.linear_path`): principal components."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax.config import AutoencoderConfig
from hyperjax.hyperrep import losses
from hyperjax.hyperrep.model import Statistics, to_inputs
from hyperjax.types import Array, Params
from hyperjax.weights import WeightSpec

_LATENT_STD = 0.4  # of a principal component's latent before the tanh
_BLOCK = 4096  # rows that are treated together, in float64


class Components(NamedTuple):
    """The principal components that a linear path keeps, in the metric of the loss."""

    metric: np.ndarray  # float64[D]: what weights are divided by
    axes: np.ndarray  # float64[rank, D], orthonormal
    std: np.ndarray  # float64[rank], of the train vectors along them
    gain: np.ndarray  # float64[rank], of whitened latents
    known: np.ndarray  # float64[rank]: a latent's variance that is the posterior's mean


class Path(NamedTuple):
    """A linear encoder and decoder, or K of them."""

    encoder: Array  # float32[D, latent]
    decoder: Array  # float32[latent, D]


def principal_components(
    config: AutoencoderConfig, spec: WeightSpec, params: Params, stats: Statistics, vectors: Array
) -> Params:
    """Set the linear path of `params` to the principal components of train vectors float32[N, D].

    Components are those of the reconstruction loss's metric, so that LWLN decides which count.
    Latents are whitened, and small enough for the tanh to be nearly linear; the decoder is the
    least-squares inverse.

    A VAE's path is the linear VAE of the least loss, which is known too: probabilistic principal
    components with the noise variance s^2 = `kl` (Lucas et al., "Don't blame the ELBO", 2019). A
    component of variance v gets a posterior of mean variance 1 - s^2 / v and variance s^2 / v, so
    that the latents of all train vectors have variance 1, and the decoder's gain sqrt(v - s^2);
    with v <= s^2 it is left out, and its latent is the prior.
    """
    inputs = np.asarray(to_inputs(spec, stats, np.asarray(vectors)))
    found = _components(config, spec, stats, inputs)
    params = with_path(params, _path(config, found, found.axes, inputs))
    if config.architecture.variational:
        log_variance = np.zeros(config.architecture.latent)
        log_variance[: len(found.std)] = np.log1p(-found.known)
        params["encoder"]["log_variance"]["bias"] = jnp.asarray(log_variance, jnp.float32)
    return params


def crosswise(
    config: AutoencoderConfig,
    spec: WeightSpec,
    stats: Statistics,
    vectors: Array,
    folds: list[np.ndarray],
) -> Path:
    """For the members of each fold, a path of principal components of all others.

    Components know the vectors that they were fitted to better than others: what is trained beside
    them on the same vectors would learn to mend an error that unseen ones do not have.

    Args:
      vectors: train vectors float32[N, D].
      folds: rows of them, K arrays.

    Returns a path of arrays [K, ...]. Latents of all folds mean the same: each fold's axes are
    turned to lie as near as they can to those of `principal_components` (orthogonal Procrustes),
    whose standard deviations and gains they share.
    """
    inputs = np.asarray(to_inputs(spec, stats, np.asarray(vectors)))
    whole = _components(config, spec, stats, inputs)
    paths = []
    for fold in folds:
        others = np.delete(inputs, fold, axis=0)
        _, axes = _principal_axes(others, whole.metric)
        axes = axes[: len(whole.axes)]
        # where others are few, so are their axes, which scipy's orthogonal_procrustes would refuse
        left, _, right = np.linalg.svd(whole.axes @ axes.T, full_matrices=False)
        paths.append(_path(config, whole, left @ right @ axes, others))
    return Path(*(np.stack(leaves).astype(np.float32) for leaves in zip(*paths, strict=True)))


def with_path(params: Params, path: Path) -> Params:
    """Parameters of an autoencoder with another linear path; the given ones stay as they are."""
    params = jax.tree.map(lambda leaf: leaf, params)  # a copy of the dictionaries
    for part, kernel in zip(("encoder", "decoder"), path, strict=True):
        params[part]["linear"]["kernel"] = jnp.asarray(kernel, jnp.float32)
    return params


def _components(
    config: AutoencoderConfig, spec: WeightSpec, stats: Statistics, inputs: np.ndarray
) -> Components:
    c, kl = config.architecture, config.loss.kl if config.architecture.variational else 0.0
    metric = np.asarray(losses.slot_scale(spec, losses.loss_scale(config.loss, stats)), np.float64)
    singular, axes = _principal_axes(inputs, metric)
    rank = min(c.latent, int(np.sum(singular > 1e-6 * singular[0])))
    std = singular[:rank] / np.sqrt(len(inputs))
    known = np.maximum(1 - kl / std**2, 0)  # share of each latent's variance; without `kl`, all
    gain = np.full(rank, _LATENT_STD) if c.tanh else np.sqrt(known)
    return Components(metric, axes[:rank], std, gain, known)


def _path(
    config: AutoencoderConfig, found: Components, axes: np.ndarray, inputs: np.ndarray
) -> Path:
    """By `axes` float64[at most rank, D], in place of those found. Float64."""
    c, rank = config.architecture, len(axes)
    std, gain = found.std[:rank], found.gain[:rank]
    encoder = np.zeros((len(found.metric), c.latent))
    encoder[:, :rank] = gain * axes.T / std / found.metric[:, None]
    if not c.variational:
        return Path(encoder, _least_squares(inputs, encoder, c.tanh))
    decoder = np.zeros(encoder.T.shape)
    decoder[:rank] = (gain * std)[:, None] * axes * found.metric
    return Path(encoder, decoder)


def _principal_axes(rows: Array, metric: Array) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, falling, and right singular vectors of rows float32[N, D] / metric.

    Of more rows than columns by the eigenvectors of a float64[D, D], so that memory does not grow
    with them.
    """
    count, size = rows.shape
    if count <= size:
        return np.linalg.svd(rows / metric, full_matrices=False)[1:]
    gram = np.zeros((size, size))
    for begin in range(0, count, _BLOCK):
        block = rows[begin : begin + _BLOCK] / metric
        gram += block.T @ block
    values, axes = np.linalg.eigh(gram)
    return np.sqrt(np.maximum(values[::-1], 0)), axes[:, ::-1].T


def _least_squares(inputs: Array, encoder: Array, tanh: bool) -> np.ndarray:
    """The decoder float64[latent, D] that brings latents of inputs float32[N, D] nearest to them,
    by the normal equations, which whitened latents make well conditioned."""
    latent = encoder.shape[1]
    products, targets = np.zeros((latent, latent)), np.zeros((latent, len(encoder)))
    for begin in range(0, len(inputs), _BLOCK):
        block = inputs[begin : begin + _BLOCK].astype(np.float64)
        latents = np.tanh(block @ encoder) if tanh else block @ encoder
        products += latents.T @ latents
        targets += latents.T @ block
    return np.linalg.lstsq(products, targets, rcond=1e-12)[0]
