"""Moment repair: give every neuron of a network back its mean and its spread.

Averages and decodings of networks shrink: activations lose their spread. REPAIR (Jordan et al.,
"REPAIR: REnormalizing Permuted Activations for Interpolation Repair", ICLR 2023) rescales the
neurons of an average so that their statistics are those of its parents. Here the statistics are
those of a population: `fit_repair` keeps the mean over members of each neuron's mean and of its
standard deviation, `repair` gives both to any network whose neurons are aligned with the members'.

Inputs need not be images. Two moments of a data set's normalised training images are enough:
`gaussian_inputs` draws from the Gaussian that has them. `image_inputs` takes real images instead:
another category of method, and better where images are far from Gaussian and networks far off.

>>> inputs = gaussian_inputs(jax.random.key(0), image_moments(train_images))
>>> fitted = fit_repair(zoo.spec, zoo.weights[:, -1], inputs)
>>> repaired = repair(zoo.spec, fitted, samples)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hyperjax import distributed, weights
from hyperjax.errors import HyperJaxError
from hyperjax.models import conv, sequential
from hyperjax.models.sequential import activate, activation_fn, preactivation
from hyperjax.population import placement
from hyperjax.population.engine import normalize
from hyperjax.types import Array, Images, Key
from hyperjax.weights import LayerSpec, WeightSpec

MAX_MEMBERS = 400  # more do not change the means that a repair needs
SCALES = (0.2, 5.0)  # a repair scales a neuron no further
_FLAT = 1e-6  # of the mean: a smaller spread is rounding, the neuron is constant
_JITTER = 1e-5  # of the largest variance; float32 rounds a covariance's entries to less
_EXACT = 256  # images whose sums of products of two pixels, below 2^24, are exact in float32
_AT_ONCE = 32  # networks on an accelerator; on CPU one after another, to stay in its cache


class Moments(NamedTuple):
    """First two moments of normalised images, P = H * W * C."""

    mean: Array  # float32[H, W, C]
    covariance: Array  # float32[P, P], of images flattened row-major


class Repair(NamedTuple):
    """What neurons are to be like on some inputs. A pytree; one array a layer, logits included.

    Pre-activations are taken after pooling where it comes before the activation, and over all
    inputs and all positions of a channel.
    """

    inputs: Array  # float32[n, H, W, C], normalised
    means: tuple[Array, ...]  # float32[neurons]
    stds: tuple[Array, ...]  # float32[neurons]


# --- inputs -----------------------------------------------------------------------------


def image_moments(images: Images) -> Moments:
    """Mean and covariance (divided by N) of images that are normalised as networks see them.

    Pixels are integers, whose sums are exact: the result does not depend on the machine, and a
    constant pixel has no variance at all. Memory: two matrices float64[P, P].

    Raises HyperJaxError if there are no images or pixels are not uint8[N, H, W, C].
    """
    pixels = np.asarray(images.pixels)
    if pixels.ndim != 4 or pixels.dtype != np.uint8 or len(pixels) == 0:
        raise HyperJaxError(
            f"moments of pixels {pixels.dtype}{list(pixels.shape)}; expected uint8[N, H, W, C] of "
            "one image or more"
        )
    count, shape = len(pixels), pixels.shape[1:]
    size = int(np.prod(shape))
    total, products = np.zeros(size), np.zeros((size, size))
    for begin in range(0, count, _EXACT):
        rows = pixels[begin : begin + _EXACT].reshape(-1, size).astype(np.float32)
        total += rows.sum(axis=0)
        products += rows.T @ rows
    std = np.broadcast_to(np.asarray(images.std, np.float64), shape)
    mean = (total.reshape(shape) / (255 * count) - np.asarray(images.mean, np.float64)) / std
    products *= count
    products -= np.outer(total, total)
    products /= np.outer(255 * count * std, 255 * count * std)
    return Moments(mean.astype(np.float32), products.astype(np.float32))


def gaussian_inputs(key: Key, moments: Moments, n: int = 512) -> Array:
    """Draws float32[n, H, W, C] from the Gaussian with these moments; no image is needed.

    The covariance may be singular, as where pixels are constant: a little white noise, of a
    hundred-thousandth of the largest variance, makes a Cholesky factor exist. It is unique, so that
    a key draws the same inputs on every machine, up to rounding.

    Raises HyperJaxError for a matrix that is no covariance.
    """
    covariance = np.array(moments.covariance, np.float64)
    variances = np.diagonal(covariance)
    covariance += np.eye(len(covariance)) * (_JITTER * variances.max() + np.finfo(np.float32).tiny)
    try:
        factor = np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError as error:
        raise HyperJaxError(f"no Gaussian has this covariance: {error}") from error
    noise = jax.random.normal(key, (n, len(factor))) @ jnp.asarray(factor.T, jnp.float32)
    return noise.reshape(n, *moments.mean.shape) + jnp.asarray(moments.mean)[None]


def image_inputs(key: Key, images: Images, n: int = 512) -> Array:
    """Normalised images float32[n, H, W, C], drawn without replacement; all of them where there
    are fewer than n."""
    index = jax.random.permutation(key, len(images.pixels))[:n]
    return jnp.asarray(normalize(images, np.asarray(index)), jnp.float32)


# --- one network ------------------------------------------------------------------------


def check_repairable(spec: WeightSpec, shape: tuple[int, ...]) -> None:
    """Raises HyperJaxError unless `spec` lays out a sequence of layers, all with biases, that takes
    inputs of `shape` (n, H, W, C)."""
    check_inputs(spec, shape)
    without = [layer.name for layer in spec.layers if not layer.bias and not layer.norm]
    if without:
        raise HyperJaxError(
            f"layers {', '.join(without)} have no biases, by which moment repair shifts neurons"
        )


def check_inputs(spec: WeightSpec, shape: tuple[int, ...]) -> None:
    """Raises HyperJaxError unless `spec` lays out a sequence of layers that takes inputs of `shape`
    (n, H, W, C)."""
    expected = (*spec.image_size, spec.channels)
    if len(shape) != 4 or 0 in shape or shape[1:] != expected:
        raise HyperJaxError(
            f"inputs of shape {shape}; expected [n, {', '.join(map(str, expected))}], one or more"
        )
    sequential.output_sizes(spec)


def _columns(inputs: Array) -> Array:
    return sequential.columns(jnp.asarray(inputs, jnp.float32))


def preactivations(spec: WeightSpec, vector: Array, inputs: Array) -> tuple[Array, ...]:
    """What each layer of the network `vector` float32[D] computes of inputs float32[n, H, W, C],
    before its activation, and after a pooling before that: float32[neurons, H', W', n], or
    [neurons, n] of a dense layer. The last ones are the logits, transposed. Works under jit, vmap
    and grad.

    Raises HyperJaxError for specs and shapes that do not fit (`check_repairable`).
    """
    check_repairable(spec, inputs.shape)
    act, params = activation_fn(spec.activation), weights.unflatten(spec, vector)
    x, outputs, form = _columns(inputs), [], conv.default_form(jax.default_backend())
    for layer in spec.layers:
        outputs.append(preactivation(layer, params[layer.name], x, form))
        x = activate(layer, act, outputs[-1])
    return tuple(outputs)


def moments(z: Array) -> tuple[Array, Array]:
    """Mean and variance of each neuron, float32[neurons] each.

    By the corrected two-pass algorithm (Chan, Golub and LeVeque 1983): a plain float32 mean over
    10^5 values is too far off to see that they are all equal.
    """
    axes = tuple(range(1, z.ndim))
    rough = z.mean(axes, keepdims=True)
    rest = (z - rough).mean(axes)
    variance = jnp.square(z - rough).mean(axes) - jnp.square(rest)
    return rough.reshape(-1) + rest, jnp.maximum(variance, 0)


def repair_member(spec: WeightSpec, fitted: Repair, vector: Array) -> Array:
    """`repair` of one network float32[D]; pure, for use inside other compiled functions."""
    _check_fitted(spec, fitted)
    act, params = activation_fn(spec.activation), weights.unflatten(spec, vector)
    x, form = _columns(fitted.inputs), conv.default_form(jax.default_backend())
    for layer, target_mean, target_std in zip(spec.layers, fitted.means, fitted.stds, strict=True):
        z = preactivation(layer, params[layer.name], x, form)
        mean, variance = moments(z)
        # "<=", so that NaN is not taken for a constant neuron, but stays NaN
        flat = variance <= jnp.square(_FLAT * mean)
        std = jnp.sqrt(jnp.where(flat, 1, variance))  # gradients have no sqrt(0)
        scale = jnp.where(flat, 1, jnp.clip(target_std / std, *SCALES))
        shift = target_mean - scale * mean
        _rescale(layer, params[layer.name], scale, shift)
        # Pooling commutes with positive scales and with shifts: nothing is computed twice.
        rows = range(1, z.ndim)
        z = jnp.expand_dims(scale, rows) * z + jnp.expand_dims(shift, rows)
        x = activate(layer, act, z)
    return weights.flatten(spec, params)


def _rescale(layer: LayerSpec, params: dict[str, Array], scale: Array, shift: Array) -> None:
    """Multiply what neurons compute and add to it: by their normalisation, or their weights."""
    if layer.norm:
        params["scale"] *= scale
        params["shift"] = scale * params["shift"] + shift
    else:
        outputs = jnp.expand_dims(scale, range(params["kernel"].ndim - 1))  # the last axis
        params["kernel"] = outputs * params["kernel"]
        params["bias"] = scale * params["bias"] + shift


def _check_fitted(spec: WeightSpec, fitted: Repair) -> None:
    check_repairable(spec, fitted.inputs.shape)
    neurons = [(layer.num_neurons,) for layer in spec.layers]
    for targets in (fitted.means, fitted.stds):
        if [np.shape(target) for target in targets] != neurons:
            raise HyperJaxError(
                f"the repair was fitted to layers of {[len(t) for t in targets]} neurons; this "
                f"architecture ({', '.join(spec.names)}) has {[n for (n,) in neurons]}"
            )


# --- many networks ----------------------------------------------------------------------


def fit_repair(
    spec: WeightSpec, vectors: Array, inputs: Array, *, batch_size: int | None = None
) -> Repair:
    """What the neurons of aligned members float32[M, D] are like on inputs float32[n, H, W, C].

    The targets are the means over members of each neuron's mean and of its standard deviation. Of
    more than `MAX_MEMBERS` members, as many in evenly spaced rows are used. Members with values
    that are not finite are left out.

    Args:
      spec: a sequential architecture (`check_repairable`).
      vectors: aligned members (`hyperjax.symmetry.alignment`); a neuron must mean the same in all.
      inputs: of `gaussian_inputs` or `image_inputs`.
      batch_size: members that are computed at once, which bounds the memory; the result does not
        depend on it.

    Raises HyperJaxError for specs, inputs and vectors that do not fit, and if no member is left.
    """
    check_repairable(spec, inputs.shape)
    check_batch(spec, vectors, inputs)
    vectors = np.asarray(vectors)  # of which few are copied: they may be more than memory holds
    rows = np.flatnonzero([np.isfinite(np.asarray(row, np.float32)).all() for row in vectors])
    if len(rows) == 0:
        raise HyperJaxError("a repair needs a member with finite weights, and there is none")
    index = np.linspace(0, len(rows) - 1, min(len(rows), MAX_MEMBERS)).round().astype(int)
    chosen = jnp.asarray(vectors[rows[index]], jnp.float32)
    inputs = jnp.asarray(inputs, jnp.float32)
    return Repair(inputs, *_mean_moments(spec, chosen, inputs, batch_size))


@functools.partial(jax.jit, static_argnames=("spec", "batch_size"))
def _mean_moments(spec: WeightSpec, vectors: Array, inputs: Array, batch_size: int | None):
    """Per layer the mean over networks of the neurons' means, and of their deviations."""

    def one(vector):
        pairs = [moments(z) for z in preactivations(spec, vector, inputs)]
        return tuple(mean for mean, _ in pairs), tuple(jnp.sqrt(var) for _, var in pairs)

    return jax.tree.map(lambda rows: rows.mean(0), over_networks(one, vectors, batch_size))


@functools.partial(jax.jit, static_argnames=("spec", "batch_size"))
def repair(
    spec: WeightSpec, fitted: Repair, vectors: Array, *, batch_size: int | None = None
) -> Array:
    """Networks float32[M, D] whose neurons have the fitted moments on the fitted inputs.

    Layer by layer, on what the repaired layers before hand on: a neuron of mean m and deviation s
    gets its weights multiplied by a = clip(s* / s, .2, 5) and the bias a (b - m) + m*. A constant
    neuron (s = 0) is shifted only. A network with values that are not finite becomes NaN from there
    on, and no other does. Works inside other compiled functions, `spec` being static.

    Raises HyperJaxError if the repair was fitted to another architecture.
    """
    check_repairable(spec, fitted.inputs.shape)
    check_batch(spec, vectors, fitted.inputs)

    def one(vector):
        return repair_member(spec, fitted, vector)

    return over_networks(one, jnp.asarray(vectors, jnp.float32), batch_size)


def repair_all(spec: WeightSpec, fitted: Repair, vectors: Array) -> np.ndarray:
    """`repair` of any number of networks float32[M, D], on the host, by all devices of this
    process: each repairs networks of its own, to the same values as one device would. Raises
    HyperJaxError as that does.

    >>> repair_all(zoo.spec, fitted, samples).shape
    (100, 2464)
    """
    vectors = np.asarray(vectors, np.float32)
    check_repairable(spec, fitted.inputs.shape)
    check_batch(spec, vectors, fitted.inputs)
    if not (count := len(vectors)):
        return vectors
    devices = jax.local_devices()
    mesh = placement.make_mesh(devices, len(devices))
    size = placement.rounded(count)
    shared = distributed.put(fitted, NamedSharding(mesh, P()))
    members = placement.place_members(mesh, vectors, size)
    return np.asarray(_spread(spec, mesh, shared, members))[:count]


@functools.partial(jax.jit, static_argnames=("spec", "mesh"))
def _spread(spec: WeightSpec, mesh: Mesh, fitted: Repair, vectors: Array) -> Array:
    local, mesh = functools.partial(repair, spec), placement.mesh_for(mesh, len(vectors))
    specs = {"in_specs": (P(), P("member")), "out_specs": P("member")}
    # check_vma: the loop over networks starts from constants, which do not vary over the members
    return jax.shard_map(local, mesh=mesh, **specs, check_vma=False)(fitted, vectors)


def check_batch(spec: WeightSpec, vectors: Array, inputs: Array) -> None:
    """Raises HyperJaxError unless networks `vectors` [M, D] and normalised inputs are of `spec`."""
    check_inputs(spec, inputs.shape)
    if np.issubdtype(inputs.dtype, np.integer):
        raise HyperJaxError("inputs are integers; expected normalised images, or draws")
    if np.shape(vectors)[1:] != (spec.num_params,):
        raise HyperJaxError(
            f"vectors of shape {np.shape(vectors)}; expected [M, {spec.num_params}] of the layers "
            f"{', '.join(spec.names)}"
        )


def over_networks(fn: Callable[[Array], Any], vectors: Array, batch_size: int | None) -> Any:
    """`fn` of each row, `batch_size` rows at once."""
    if batch_size is None:
        batch_size = 1 if jax.default_backend() == "cpu" else _AT_ONCE
    if batch_size == 1 or len(vectors) < 2:
        return lax.map(fn, vectors)
    return lax.map(fn, vectors, batch_size=min(batch_size, len(vectors)))
