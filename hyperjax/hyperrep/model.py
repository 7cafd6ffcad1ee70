"""A hyper-representation as two functions: `encode` networks, `decode` latents.

Weights enter the autoencoder centred and scaled, `x = (w - mean) / scale` (both optional),
and leave it the same way, so that an untrained decoder yields the train members' mean.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import weights
from hyperjax.config import ArchitectureConfig, AutoencoderConfig, WeightDataConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import losses
from hyperjax.models import graph
from hyperjax.models.autoencoder import Autoencoder, Posterior
from hyperjax.symmetry import alignment
from hyperjax.types import Array, Key, Params
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo

_BATCH = 256  # a power of two; networks or latents that pass through the autoencoder at once


class Statistics(NamedTuple):
    """What is known of the train members before training."""

    mean: Array  # float32[D]: subtracted from inputs, added to outputs; zeros if not centred
    scale: Array  # float32[layers]: inputs are divided by it; ones if not scaled
    layer_std: Array  # float32[layers]: the coefficients of LWLN (paper section 3.1)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("params", "statistics", "reference"),
    meta_fields=("config", "spec"),
)
@dataclasses.dataclass(frozen=True, eq=False)
class HyperRep:
    """A trained hyper-representation: a pytree of arrays, with static `config` and `spec`."""

    config: AutoencoderConfig
    spec: WeightSpec
    params: Params
    statistics: Statistics
    reference: Array  # float32[D]: the network that all members are aligned to


def statistics(config: WeightDataConfig, spec: WeightSpec, vectors: Array) -> Statistics:
    """Mean and scales of the train vectors float32[N, D]."""
    std = weights.layer_std(spec, vectors)
    mean = np.asarray(vectors).mean(0, dtype=np.float64).astype(np.float32)
    return Statistics(
        mean=mean if config.center else np.zeros_like(mean),
        scale=std if config.scale else np.ones_like(std),
        layer_std=std,
    )


def to_inputs(spec: WeightSpec, stats: Statistics, vectors: Array) -> Array:
    return (vectors - stats.mean[None]) / losses.slot_scale(spec, stats.scale)[None]


def from_outputs(spec: WeightSpec, stats: Statistics, outputs: Array) -> Array:
    return outputs * losses.slot_scale(spec, stats.scale)[None] + stats.mean[None]


def align(hyperrep: HyperRep, networks: Zoo | Array) -> np.ndarray:
    """Bring networks into the neuron order, signs and scales that the encoder knows.

    Args:
      networks: weight vectors float32[..., D], each aligned by itself; or a `Zoo` of the same
        layers, whose members are aligned by their last snapshots, with all others the same way.

    Returns float32[..., D], of a zoo float32[M * E, D], members first: networks that compute the
    same as before. As they are, if the autoencoder was trained on members that are not aligned.

    Raises HyperJaxError if they do not fit the architecture or are not finite.

    >>> hj.align(hr, zoo).shape
    (12, 2464)
    """
    spec = hyperrep.spec
    if isinstance(networks, Zoo):
        _check_layers(hyperrep, networks)
        spec, trajectories = networks.spec, np.asarray(networks.weights)
    else:
        vectors = _host(networks, spec.num_params, "weight vectors")
        trajectories = vectors.reshape(-1, 1, spec.num_params)
    if hyperrep.config.data.align:
        reference = np.asarray(hyperrep.reference)
        trajectories = alignment.align_trajectories(spec, trajectories, reference)
    if isinstance(networks, Zoo):
        return trajectories.reshape(-1, spec.num_params)
    return trajectories.reshape(vectors.shape)


def align_zoo(hyperrep: HyperRep, networks: Zoo) -> Zoo:
    """A zoo whose members are aligned as by `align`, with their second moments, if it has them: a
    diagonal Fisher in the neuron order, the signs and the scales of the weights.

    Raises HyperJaxError if they do not fit the architecture or are not finite.

    >>> hj.align_zoo(hr, zoo).weights.shape
    (4, 3, 2464)
    """
    if networks.second_moments is None or not hyperrep.config.data.align:
        weights, moments = align(hyperrep, networks), networks.second_moments
    else:
        _check_layers(hyperrep, networks)
        weights, moments = alignment.align_moments(
            networks.spec, networks.weights, networks.second_moments, np.asarray(hyperrep.reference)
        )
    weights = weights.reshape(networks.weights.shape)
    return dataclasses.replace(networks, weights=weights, second_moments=moments)


def encode(hyperrep: HyperRep, networks: Zoo | Array, *, aligned: bool = False) -> Array:
    """Networks -> latents float32[..., latent]; of a VAE, the means of their posteriors.

    Outside of `jit`, `vmap` and `grad` it computes in batches, and the result is a NumPy array.

    Args:
      networks: weight vectors float32[..., D], or a `Zoo`, whose latents are
        float32[M * E, latent], members first.
      aligned: that the networks are in the neuron order of the train members already (`align`).
        Otherwise they are brought into it, on the host: not possible inside a transformation.

    Raises HyperJaxError if networks do not fit, are not finite, or cannot be aligned.

    >>> latents = hj.encode(hr, zoo)
    >>> latents.shape
    (12, 8)
    """
    return _apply(_encode, hyperrep, _in_order(hyperrep, networks, aligned))


def decode(hyperrep: HyperRep, latents: Array) -> Array:
    """Latents float32[..., latent] -> weight vectors float32[..., D], one forward pass.

    `jit`, `vmap` and `grad` pass through; outside of them it computes in batches, and the result
    is a NumPy array. Raises HyperJaxError if latents do not fit or are not finite.

    >>> hj.decode(hr, np.zeros(8)).shape
    (2464,)
    >>> jax.grad(lambda z: jnp.sum(hj.decode(hr, z) ** 2))(jnp.ones(8)).shape
    (8,)
    """
    return _apply(_decode, hyperrep, latents)


def reconstruct(hyperrep: HyperRep, networks: Zoo | Array, *, aligned: bool = False) -> Array:
    """`decode` what `encode` makes of networks, which is told whether they are `aligned`.

    >>> hj.reconstruct(hr, zoo).shape
    (12, 2464)
    """
    return decode(hyperrep, encode(hyperrep, networks, aligned=aligned))


def posterior(hyperrep: HyperRep, networks: Zoo | Array, *, aligned: bool = False) -> Posterior:
    """Networks, as `encode` takes them -> means and log-variances float32[..., latent] of a VAE.

    Raises HyperJaxError if it is none.
    """
    if not hyperrep.config.architecture.variational:
        raise HyperJaxError("this hyper-representation is no VAE: its encoder gives no Gaussian")
    return _apply(_posterior, hyperrep, _in_order(hyperrep, networks, aligned))


class Bound(NamedTuple):
    """The evidence lower bound of a VAE on some networks."""

    loss: float  # reconstruction of a sample of each posterior + `losses.kl_penalty`
    reconstruction: float
    nats: np.ndarray  # float32[latent]: KL divergence of each latent, mean over networks


def bound(hyperrep: HyperRep, vectors: Array, key: Key) -> Bound:
    """Aligned weight vectors float32[N, D] -> their bound, in the units of the loss.

    Raises HyperJaxError if the hyper-representation is no VAE.
    """
    c, spec, stats = hyperrep.config.loss, hyperrep.spec, hyperrep.statistics
    mean, log_variance = posterior(hyperrep, vectors, aligned=True)
    noise = np.asarray(jax.random.normal(key, mean.shape))
    outputs = decode(hyperrep, mean + np.exp(log_variance / 2) * noise)
    scale = stats.layer_std if c.lwln else np.ones_like(stats.layer_std)
    reconstruction = float(losses.reconstruction(spec, outputs, vectors, scale)[0])
    nats = np.asarray(losses.gaussian_kl(mean, log_variance).mean(0))
    loss = reconstruction + losses.kl_penalty(c.kl, spec, float(nats.sum()))
    return Bound(loss, reconstruction, nats)


# Static arguments are all that the modules depend on: autoencoders that differ by their training
# alone share a compilation.
_STATIC = ("architecture", "spec")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _encode(architecture: ArchitectureConfig, spec: WeightSpec, params, stats, vectors):
    return _applied(architecture, spec, params, to_inputs(spec, stats, vectors), "encode")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _posterior(architecture: ArchitectureConfig, spec: WeightSpec, params, stats, vectors):
    return _applied(architecture, spec, params, to_inputs(spec, stats, vectors), "posterior")


@functools.partial(jax.jit, static_argnames=_STATIC)
def _decode(architecture: ArchitectureConfig, spec: WeightSpec, params, stats, latents):
    outputs = _applied(architecture, spec, params, latents, "decode")
    return from_outputs(spec, stats, outputs)


def _applied(c: ArchitectureConfig, spec: WeightSpec, params, rows: Array, method: str) -> Any:
    """A method of the autoencoder, of rows [N, ...]."""
    size = graph.at_once(jax.default_backend()) if c.network == "graph" else 0

    def apply(rows):
        return Autoencoder(c, spec).apply({"params": params}, rows, method=method)

    return graph.in_parts(apply, size, rows)


def _in_order(hyperrep: HyperRep, networks: Zoo | Array, aligned: bool) -> Array:
    if isinstance(networks, Zoo) and aligned:
        _check_layers(hyperrep, networks)
        return np.asarray(networks.weights).reshape(-1, networks.spec.num_params)
    if aligned or (not hyperrep.config.data.align and not isinstance(networks, Zoo)):
        return networks
    if _traced(hyperrep, networks):
        raise HyperJaxError(
            "networks cannot be aligned inside jit, vmap or grad: align them before "
            "(hyperjax.align) and say encode(..., aligned=True)"
        )
    return align(hyperrep, networks)


def _check_layers(hyperrep: HyperRep, networks: Zoo) -> None:
    if networks.spec.layers != hyperrep.spec.layers:
        raise HyperJaxError(
            f"a zoo with layers {', '.join(networks.spec.names)}; this hyper-representation knows "
            f"{', '.join(hyperrep.spec.names)}, {hyperrep.spec.num_params} weights in all"
        )


def _traced(*trees: Any) -> bool:
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def _apply(fn: Callable, hyperrep: HyperRep, array: Array) -> Any:
    """`fn` of rows [..., W]: as part of the program that is being traced, or now, in batches.

    Batches have a few sizes, powers of two, so that any number of rows compiles to a few
    programs; the last one is padded.
    """
    latents = fn is _decode
    width = hyperrep.config.architecture.latent if latents else hyperrep.spec.num_params
    arguments = (hyperrep.config.architecture, hyperrep.spec, hyperrep.params, hyperrep.statistics)
    if _traced(hyperrep, array):
        array = jnp.asarray(array, jnp.float32)
        _check_width(array, width, "latents" if latents else "weight vectors")
        outputs = fn(*arguments, array.reshape(-1, width))
    else:
        array = _host(array, width, "latents" if latents else "weight vectors")
        rows, parts = array.reshape(-1, width), []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            size = 1 << (len(part) - 1).bit_length()
            parts.append(fn(*arguments, np.pad(part, ((0, size - len(part)), (0, 0)))))
        outputs = jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(rows)], *parts)
    return jax.tree.map(lambda leaf: leaf.reshape(*array.shape[:-1], -1), outputs)


def _check_width(array: Array, width: int, what: str) -> None:
    if array.ndim < 1 or array.shape[-1] != width or not array.size:
        raise HyperJaxError(
            f"{what} of shape {array.shape}: this hyper-representation takes [..., {width}], at "
            "least one"
        )


def _host(array: Array, width: int, what: str) -> np.ndarray:
    array = np.asarray(array, np.float32)
    _check_width(array, width, what)
    if not np.isfinite(array).all():
        raise HyperJaxError(f"{what}: expected finite values, got NaN or infinity")
    return array
