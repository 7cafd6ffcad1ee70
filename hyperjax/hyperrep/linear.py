"""The linear path beside the attention (`architecture.linear_path`): principal components."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import weights
from hyperjax.config import AutoencoderConfig
from hyperjax.hyperrep import losses
from hyperjax.hyperrep.model import Statistics, to_inputs
from hyperjax.types import Array, Params
from hyperjax.weights import WeightSpec

_LATENT_STD = 0.4  # of a principal component's latent before the tanh


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
    c, kl = config.architecture, config.loss.kl if config.architecture.variational else 0.0
    blocks = functools.partial(_blocks, spec, stats, vectors)
    metric = np.asarray(losses.slot_scale(spec, losses.loss_scale(config.loss, stats)), np.float64)
    singular, components = _principal_axes(vectors.shape, blocks, metric)
    rank = min(c.latent, int(np.sum(singular > 1e-6 * singular[0])))
    std = singular[:rank] / np.sqrt(len(vectors))
    known = np.maximum(1 - kl / std**2, 0)  # share of each latent's variance; without `kl`, all
    gain = _LATENT_STD if c.tanh else np.sqrt(known)
    encoder = np.zeros((spec.num_params, c.latent))
    encoder[:, :rank] = gain * components[:rank].T / std / metric[:, None]
    params = jax.tree.map(lambda leaf: leaf, params)  # a copy of the dictionaries
    if c.variational:
        decoder = np.zeros(encoder.T.shape)
        decoder[:rank] = (gain * std)[:, None] * components[:rank] * metric
        log_variance = np.zeros(c.latent)
        log_variance[:rank] = np.log1p(-known)
        params["encoder"]["log_variance"]["bias"] = jnp.asarray(log_variance, jnp.float32)
    else:
        decoder = _least_squares(blocks, encoder, c.tanh)
    params["encoder"]["linear"]["kernel"] = jnp.asarray(encoder, jnp.float32)
    params["decoder"]["linear"]["kernel"] = jnp.asarray(decoder, jnp.float32)
    if c.network == "graph":
        params["encoder"]["linear_decoder"]["kernel"] = jnp.asarray(decoder, jnp.float32)
    return params


def _blocks(spec: WeightSpec, stats: Statistics, vectors: Array) -> Iterator[np.ndarray]:
    """The encoder's inputs, some rows at a time: `vectors` may be larger than memory."""
    for block in weights.blocks(vectors):
        yield np.asarray(to_inputs(spec, stats, block))


def _principal_axes(
    shape: tuple[int, int], blocks: Callable[[], Iterator[np.ndarray]], metric: Array
) -> tuple[np.ndarray, np.ndarray]:
    """Singular values, falling, and right singular vectors of rows float32[N, D] / metric.

    Of more rows than columns by the eigenvectors of a float64[D, D], so that memory does not grow
    with them.
    """
    count, size = shape
    if count <= size:
        return np.linalg.svd(np.concatenate([*blocks()]) / metric, full_matrices=False)[1:]
    gram = np.zeros((size, size))
    for block in blocks():
        rows = block / metric
        gram += rows.T @ rows
    values, axes = np.linalg.eigh(gram)
    return np.sqrt(np.maximum(values[::-1], 0)), axes[:, ::-1].T


def _least_squares(
    blocks: Callable[[], Iterator[np.ndarray]], encoder: Array, tanh: bool
) -> np.ndarray:
    """The decoder float64[latent, D] that brings latents of inputs float32[N, D] nearest to them,
    by the normal equations, which whitened latents make well conditioned."""
    latent = encoder.shape[1]
    products, targets = np.zeros((latent, latent)), np.zeros((latent, len(encoder)))
    for inputs in blocks():
        block = inputs.astype(np.float64)
        latents = np.tanh(block @ encoder) if tanh else block @ encoder
        products += latents.T @ latents
        targets += latents.T @ block
    return np.linalg.lstsq(products, targets, rcond=1e-12)[0]
