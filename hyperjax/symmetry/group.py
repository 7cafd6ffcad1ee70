"""Symmetries of a network: transformations of its weights that leave its function unchanged.

Hidden neurons can be reordered. Where the activation is odd (tanh), a neuron can also
flip the sign of all its weights; where it is positively homogeneous (ReLU), the neuron
can be scaled. `Transform` is an element of that group. It acts on flat vectors
(`hyperjax.weights`), as in the permutation augmentation of the paper (section 3).

Everything here is pure JAX and works under `jit` and `vmap`, with `spec` static.
`hyperjax.symmetry.alignment` finds the transforms that bring networks close to each other.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hyperjax.errors import HyperJaxError
from hyperjax.types import Array, Key
from hyperjax.weights import WeightSpec

ODD = ("tanh",)  # f(-x) = -f(x)
HOMOGENEOUS = ("relu", "leakyrelu")  # f(a x) = a f(x) for a > 0


class Transform(NamedTuple):
    """An element of the symmetry group: one array per hidden layer (all layers but the last).

    Attributes:
      permutations: int32[..., neurons]; new neuron o is old neuron permutations[l][..., o].
      scales: float32[..., neurons], not zero; multiplies the incoming weights and the bias of
        new neuron o and divides its outgoing weights. ±1 for signs, positive for ReLU.
    """

    permutations: tuple[Array, ...]
    scales: tuple[Array, ...]


def sign_symmetric(spec: WeightSpec) -> tuple[bool, ...]:
    """Per hidden layer: whether flipping a neuron's sign leaves the function unchanged.

    Needs an odd activation and no max-pooling, because max(-x) is not -max(x). Layers that are
    normalised are permuted only: what of their signs and scales is free is left as it is.
    """
    return tuple(
        spec.activation in ODD and layer.pool != "max" and not layer.norm
        for layer in spec.layers[:-1]
    )


def scale_symmetric(spec: WeightSpec) -> tuple[bool, ...]:
    """Per hidden layer: whether positive scaling leaves the function unchanged.

    Pooling commutes with positive scales, so pooled layers count too.
    """
    return tuple(spec.activation in HOMOGENEOUS and not layer.norm for layer in spec.layers[:-1])


def input_blocks(spec: WeightSpec) -> tuple[tuple[int, int], ...]:
    """Per layer (inputs, block): a neuron's incoming weights are `inputs` blocks of `block`.

    Block i stands for neuron i of the layer before, be it a kernel (convolution), one
    weight (dense), or all positions of a channel (dense after a flattened convolution,
    channel-major: 36 columns are 4 blocks of 9 in the zoo CNN). The first layer has one block.

    Raises HyperJaxError if a layer does not fit the one before.
    """
    blocks = [(1, math.prod(spec.layers[0].shape[1:]))]
    for before, layer in itertools.pairwise(spec.layers):
        if before.norm == "group" and 1 < before.groups < before.num_neurons:
            raise HyperJaxError(
                f"layer {before.name!r} is normalised in {before.groups} groups of neurons, which "
                "cannot be permuted; symmetries are known for one group, or one for each neuron"
            )
        inputs, size = before.num_neurons, math.prod(layer.shape[1:])
        if layer.shape[1] % inputs or (layer.kind == "conv" and layer.shape[1] != inputs):
            raise HyperJaxError(
                f"layer {layer.name!r} has {layer.shape[1]} inputs, which does not fit the "
                f"{inputs} neurons of layer {before.name!r} before it"
            )
        blocks.append((inputs, size // inputs))
    return tuple(blocks)


def identity(spec: WeightSpec) -> Transform:
    """The transform that changes nothing."""
    sizes = [layer.num_neurons for layer in spec.layers[:-1]]
    return Transform(
        permutations=tuple(jnp.arange(size, dtype=jnp.int32) for size in sizes),
        scales=tuple(jnp.ones(size, jnp.float32) for size in sizes),
    )


def random_transform(
    key: Key, spec: WeightSpec, *, permute: bool = True, signs: bool = True, scale: float = 0.0
) -> Transform:
    """Draw a transform uniformly from the permutations and symmetric signs (paper section 3).

    Args:
      key: one key; `vmap` over keys for one transform per vector.
      spec: the architecture.
      permute: whether to permute neurons.
      signs: whether to flip signs in the layers where that is a symmetry.
      scale: standard deviation of the logarithm of the scales, in the layers where scaling
        is a symmetry.
    """
    permutations, scales = [], []
    flags = zip(spec.layers[:-1], sign_symmetric(spec), scale_symmetric(spec), strict=True)
    for i, (layer, signed, scaled) in enumerate(flags):
        key_permutation, key_scale = jax.random.split(jax.random.fold_in(key, i))
        neurons, ones = jnp.arange(layer.num_neurons, dtype=jnp.int32), jnp.ones(layer.num_neurons)
        if permute:
            neurons = jax.random.permutation(key_permutation, neurons)
        if signs and signed:
            ones = jax.random.rademacher(key_scale, ones.shape, jnp.float32)
        elif scaled:
            ones = jnp.exp(scale * jax.random.normal(key_scale, ones.shape))
        permutations.append(neurons)
        scales.append(ones)
    return Transform(tuple(permutations), tuple(scales))


def apply(spec: WeightSpec, transform: Transform, vectors: Array) -> Array:
    """Transform flat vectors [..., D]; their functions do not change.

    Leading axes of the transform run along the first axes of `vectors`: a single transform
    acts on all vectors, and [N, neurons] transforms act on [N, D] vectors as well as on
    [N, snapshots, D] trajectories.
    """
    if vectors.shape[-1] != spec.num_params:
        raise HyperJaxError(
            f"flat vectors have {vectors.shape[-1]} values; this architecture "
            f"({', '.join(spec.names)}) has {spec.num_params}"
        )
    batch = transform.scales[0].ndim - 1 if transform.scales else 0
    gather = functools.partial(_gather, spec)
    for _ in range(batch):
        gather = jax.vmap(gather)
    index, scale = gather(transform)
    middle = tuple(range(batch, vectors.ndim - 1))
    index, scale = jnp.expand_dims(index, middle), jnp.expand_dims(scale, middle)
    return jnp.take_along_axis(vectors, index, axis=-1) * scale


def for_moments(transform: Transform) -> Transform:
    """The transform of squared gradients, per weight: of second moments, or a diagonal Fisher.

    Where `apply` multiplies a weight by a, it divides the loss's gradient by a: squares follow
    permutations, know no signs, and take the inverse squares of positive scales.
    """
    return transform._replace(scales=tuple(scale**-2 for scale in transform.scales))


def invert(transform: Transform) -> Transform:
    """The transform that undoes `transform`."""
    permutations = tuple(jnp.argsort(p, axis=-1) for p in transform.permutations)
    scales = (
        1 / jnp.take_along_axis(s, p, axis=-1)
        for s, p in zip(transform.scales, permutations, strict=True)
    )
    return Transform(permutations, tuple(scales))


def compose(second: Transform, first: Transform) -> Transform:
    """The transform that applies `first`, then `second`; both with the same leading axes."""
    permutations, scales = [], []
    for p2, s2, p1, s1 in zip(*second, *first, strict=True):
        permutations.append(jnp.take_along_axis(p1, p2, axis=-1))
        scales.append(s2 * jnp.take_along_axis(s1, p2, axis=-1))
    return Transform(tuple(permutations), tuple(scales))


def _gather(spec: WeightSpec, transform: Transform) -> tuple[Array, Array]:
    """One transform as index int32[D] and scale float32[D]: new = old[index] * scale."""
    last = spec.layers[-1].num_neurons
    permutations = (*transform.permutations, jnp.arange(last, dtype=jnp.int32))
    scales = (*transform.scales, jnp.ones(last, jnp.float32))
    source, divisor = jnp.zeros(1, jnp.int32), jnp.ones(1, jnp.float32)  # of the layer's inputs
    parts = zip(spec.layers, spec.slices, input_blocks(spec), permutations, scales, strict=True)
    index, scale = [], []
    for layer, part, (inputs, block), target, factor in parts:
        positions = (target[:, None] * inputs + source[None])[:, :, None] * block
        positions = positions + jnp.arange(block, dtype=jnp.int32)[None, None]
        ratio = factor[:, None] / divisor[None]
        index.append(part.start + positions.ravel())
        scale.append(jnp.repeat(ratio.ravel(), block))
        for number in range(len(layer.values)):
            index.append(part.start + layer.num_weights + number * layer.num_neurons + target)
            scale.append(factor)  # one, where there are more values than a bias
        source, divisor = target, factor
    return jnp.concatenate(index), jnp.concatenate(scale)
