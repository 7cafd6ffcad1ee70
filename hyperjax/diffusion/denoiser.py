"""A denoiser of weights: the Wiener denoiser, and what a network on the graph adds to it."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hyperjax import symmetry, weights
from hyperjax.config import DenoiserConfig, GraphConfig
from hyperjax.diffusion import wiener as wieners
from hyperjax.diffusion.wiener import Wiener
from hyperjax.hyperrep.losses import slot_scale
from hyperjax.models.graph import GraphDenoiser
from hyperjax.types import Array, Params
from hyperjax.weights import WeightSpec


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "wiener", "scale", "reference"),
    meta_fields=("config", "spec"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class Denoiser:
    """A trained denoiser: a pytree of arrays, with static `config` and `spec`."""

    config: DenoiserConfig
    spec: WeightSpec
    params: Params
    wiener: Wiener  # in units of `scale`
    scale: Array  # float32[layers]: standard deviation of each layer, the unit of noise levels
    reference: Array  # float32[D]: the network that all members are aligned to


class Static(NamedTuple):
    """What a compiled denoiser depends on."""

    graph: GraphConfig
    spec: WeightSpec


UNKNOWN = -1.0  # quantile of a quality that nobody has said


def denoise(denoiser: Denoiser, noisy: Array, sigma: Array, quantile: Array = UNKNOWN) -> Array:
    """Expected clean networks float32[B, D] of aligned ones with Gaussian noise.

    Args:
      noisy: weight vectors float32[B, D].
      sigma: noise level in layer standard deviations, one or float32[B].
      quantile: of the networks' quality among the train members, in [0, 1], or `UNKNOWN`; one or
        float32[B].

    Pure; works under jit, vmap and grad.

    >>> hj.denoise(denoiser, weights, 0.5).shape
    (4, 2464)
    """
    unit = slot_scale(denoiser.spec, denoiser.scale)[None]
    static = Static(denoiser.config.graph, denoiser.spec)
    level, quality = (
        jnp.broadcast_to(jnp.asarray(x, jnp.float32), (len(noisy),)) for x in (sigma, quantile)
    )
    inputs = denoiser.params, denoiser.wiener, noisy / unit, level, quality
    return unit * denoise_scaled(static, *inputs)


def denoise_scaled(
    static: Static, params: Params, wiener: Wiener, noisy: Array, sigma: Array, quantile: Array
) -> Array:
    """The same in units of `scale`, at levels float32[B]:

    D(x, s) = W(x, s) + s / sqrt(1 + s^2) F(x / sqrt(1 + s^2), W(x, s), log s)

    with W the Wiener denoiser and F the network, zero at the start of its training. The factors
    give inputs and targets of F a variance of about one at every level (Karras et al., "Elucidating
    the Design Space of Diffusion-Based Generative Models", 2022).
    """
    linear = wieners.denoise(wiener, noisy, sigma)
    norm = jax.lax.rsqrt(1 + sigma**2)[:, None]
    return linear + sigma[:, None] * norm * residual(
        static, params, noisy * norm, linear, sigma, quantile
    )


def residual(
    static: Static, params: Params, noisy: Array, linear: Array, sigma: Array, quantile: Array
) -> Array:
    """The network F float32[B, D]. Equivariant: it is evaluated in the frame in which all biases
    of sign-symmetric neurons are positive, and what it gives is taken back."""
    inputs = jnp.stack([noisy, linear], axis=1)
    module = GraphDenoiser(static.graph, static.spec)
    if not static.graph.equivariant:
        return module.apply({"params": params}, inputs, jnp.log(sigma), quantile)
    signs = bias_signs(static.spec, noisy)
    outputs = module.apply({"params": params}, inputs * signs[:, None], jnp.log(sigma), quantile)
    return outputs * signs


def bias_signs(spec: WeightSpec, vectors: Array) -> Array:
    """±1 for each weight float32[B, D]: the sign change that makes the biases of all neurons whose
    sign is a symmetry positive, or the sums of their incoming weights where they have no bias. A
    frame of the group (Puny et al., "Frame Averaging", 2022): what is computed in it commutes with
    the signs."""
    scales, before = [], jnp.ones((len(vectors), 1))
    parts = zip(spec.layers, spec.slices, symmetry.input_blocks(spec), strict=True)
    for (layer, part, blocks), signed in zip(parts, symmetry.sign_symmetric(spec), strict=False):
        kernel, value = weights.split_layer(layer, vectors[:, part])
        if layer.values != ("bias",):
            kernel = kernel.reshape(len(vectors), layer.num_neurons, *blocks)
            value = (kernel.sum(axis=3) * before[:, None]).sum(axis=2)
        before = jnp.where(value < 0, -1.0, 1.0) if signed else jnp.ones_like(value)
        scales.append(before)
    identity = symmetry.identity(spec).permutations
    permutations = [jnp.broadcast_to(p, s.shape) for p, s in zip(identity, scales, strict=True)]
    transform = symmetry.Transform(tuple(permutations), tuple(scales))
    return symmetry.apply(spec, transform, jnp.ones_like(vectors))
