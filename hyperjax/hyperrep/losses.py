"""Losses on weight vectors and latents (paper section 3 and 3.1)."""

import jax.numpy as jnp
import numpy as np
import optax

from hyperjax import weights
from hyperjax.config import LossConfig
from hyperjax.types import Array
from hyperjax.weights import WeightSpec


def slot_scale(spec: WeightSpec, layer_scale: Array) -> Array:
    """One value per layer -> one per scalar of the flat vector, float32[D]."""
    return jnp.asarray(layer_scale, jnp.float32)[weights.layer_ids(spec)]


def loss_scale(config: LossConfig, stats) -> Array:
    """What the loss divides the autoencoder's outputs by, float32[layers].

    In raw weights it divides by LWLN's coefficients or by one; outputs are in units of `scale`.
    `stats` are the train members' `Statistics`.
    """
    coefficients = stats.layer_std if config.lwln else jnp.ones_like(stats.layer_std)
    return coefficients / stats.scale


def reconstruction(
    spec: WeightSpec, prediction: Array, target: Array, layer_scale: Array
) -> tuple[Array, Array]:
    """Layer-wise normalised mean squared error of [B, D] against [B, D].

    With LWLN `layer_scale` float32[layers] holds each layer's standard deviation over the
    train samples (paper section 3.1, `weights.layer_std`); without it, ones. Every scalar
    weighs the same after normalisation.

    Returns the loss and its float32[layers] parts, which sum to it.
    """
    per_slot = jnp.mean((prediction - target) ** 2, axis=0)
    sums = jnp.stack([per_slot[part].sum() for part in spec.slices])
    parts = sums / (layer_scale**2 * spec.num_params)
    return parts.sum(), parts


def nt_xent(view_i: Array, view_j: Array, temperature: float) -> Array:
    """Normalised temperature-scaled cross entropy of two views float32[B, C] (SimCLR).

    Row k of one view is the positive of row k of the other; the 2B - 2 other rows are
    negatives.
    """
    z = jnp.concatenate([view_i, view_j])
    # the square root of the floored sum, since a norm has no gradient at zero
    z = z / jnp.sqrt(jnp.maximum(jnp.sum(z**2, axis=-1, keepdims=True), 1e-16))
    similarity = z @ z.T / temperature
    size = len(z)
    similarity = jnp.where(jnp.eye(size, dtype=bool), -jnp.inf, similarity)  # no row with itself
    positives = (jnp.arange(size) + size // 2) % size
    return optax.softmax_cross_entropy_with_integer_labels(similarity, positives).mean()


def gaussian_kl(mean: Array, log_variance: Array) -> Array:
    """KL divergence, in nats, of independent Gaussians from N(0, 1), elementwise f[...].

    KL(N(m, v) || N(0, 1)) = (m^2 + v - 1 - log v) / 2 (Kingma and Welling, 2014). Never negative.
    """
    # expm1 keeps what a variance near 1 leaves of v - 1 - log v
    return (mean**2 + (jnp.expm1(log_variance) - log_variance)) / 2


def kl_penalty(kl: float, spec: WeightSpec, nats: float | Array) -> float | Array:
    """What a mean KL divergence of so many nats a network adds to the reconstruction's loss.

    With Gaussian decoder noise of variance s^2 = `kl` on each of the D weights, in the loss's
    units (with LWLN, a layer's variance is 1), the negative evidence lower bound is

        D / (2 s^2) * reconstruction + KL + a constant,

    so reconstruction + 2 s^2 / D * KL is the same up to a factor. Every `kl` is thus the true
    bound of some noise: a larger one explains more of the weights as noise.
    """
    return 2 * kl / spec.num_params * nats


def r_squared(
    spec: WeightSpec, prediction: Array, target: Array, mean: Array, layer_scale: Array
) -> dict[str, float]:
    """1 - loss / loss of predicting `mean` (the train members' mean vector, float32[D]).

    Overall (every scalar normalised by its layer's scale) under "all", and per layer, where
    the scale cancels.
    """
    _, parts = reconstruction(spec, prediction, target, layer_scale)
    _, base = reconstruction(spec, jnp.broadcast_to(mean, target.shape), target, layer_scale)
    parts, base = np.asarray(parts, np.float64), np.asarray(base, np.float64)
    named = {name: float(1 - p / b) for name, p, b in zip(spec.names, parts, base, strict=True)}
    return {"all": float(1 - parts.sum() / base.sum())} | named
