"""Network weights as parameter trees, flat vectors and neuron tokens.

A flat vector holds a network's layers in order, each layer's weights row-major in
PyTorch's axis order (out, in, height, width) or (out, in), followed by its biases.
This is the order of the published model zoos. It is spelled out here, because JAX
sorts dictionary keys: `ravel_pytree` would put biases first and is no file format.

A token is one neuron (output channel): its incoming weights, then its bias.

Every function is pure and takes any leading batch axes, written `...`.
"""

import dataclasses
import functools
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from hyperjax.errors import HyperJaxError, unknown
from hyperjax.types import Array, Params

KINDS = ("conv", "dense")
POOLS = ("", "max", "mean")
NORMS = ("", "batch", "group")
STATISTICS = ("mean", "var")  # running, of batch normalisation
_BLOCK_BYTES = 2**26  # of vectors that are looked at together


@dataclasses.dataclass(frozen=True)
class LayerSpec:
    """One layer with weights of `shape` in PyTorch's axis order, and a bias per output or none.

    Attributes:
      name: key of the layer in the parameter tree.
      kind: "conv" (shape (out, in, height, width)) or "dense" (shape (out, in)).
      shape: shape of the weights.
      bias: whether the layer has biases.
      stride: of a convolution, in both directions.
      padding: zeros on each side of a convolution's input.
      pool: "max" or "mean" after a convolution, "": none.
      window: height, width and stride of the pooling; 0: all positions (global).
      pool_last: whether pooling comes after the activation, in place of before.
      norm: normalisation of the outputs, before pooling and activation, with a scale and a shift
        per neuron: "batch", by running statistics, which are weights too, and "group", by those of
        an example over all positions of `groups` groups of neurons; "": none.
      groups: of "group"; 1 is layer normalisation.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    bias: bool = True
    stride: int = 1
    padding: int = 0
    pool: str = ""
    window: int = 2
    pool_last: bool = False
    norm: str = ""
    groups: int = 1

    def __post_init__(self):
        if self.kind not in KINDS or len(self.shape) != (4 if self.kind == "conv" else 2):
            raise HyperJaxError(
                f"layer {self.name!r}: kind {self.kind!r} with shape {self.shape}; expected "
                "'conv' with 4 axes or 'dense' with 2"
            )
        if self.pool not in POOLS:
            raise unknown(f"pooling of layer {self.name!r}", self.pool, POOLS)
        if self.norm not in NORMS:
            raise unknown(f"normalisation of layer {self.name!r}", self.norm, NORMS)
        if self.groups < 1 or self.num_neurons % self.groups:
            raise HyperJaxError(
                f"layer {self.name!r}: {self.num_neurons} neurons in {self.groups} groups"
            )
        plain = (self.stride, self.padding, self.pool) == (1, 0, "")
        if self.kind == "dense" and not plain:
            raise HyperJaxError(
                f"layer {self.name!r} is dense: it has no stride, padding or pooling"
            )
        if min(self.shape) < 1 or self.stride < 1 or self.padding < 0 or self.window < 0:
            raise HyperJaxError(
                f"layer {self.name!r}: shape {self.shape}, stride {self.stride}, padding "
                f"{self.padding}, window {self.window}; expected sizes"
            )

    @property
    def num_neurons(self) -> int:
        return self.shape[0]

    @property
    def values(self) -> tuple[str, ...]:
        """What each neuron has besides its incoming weights, in the order of the vector."""
        affine = ("scale", "shift") if self.norm else ()
        running = STATISTICS if self.norm == "batch" else ()
        return (*(("bias",) if self.bias else ()), *affine, *running)

    @property
    def token_size(self) -> int:
        """Incoming weights of one neuron, and its values."""
        return math.prod(self.shape[1:]) + len(self.values)

    @property
    def num_weights(self) -> int:
        """Without the neurons' values."""
        return math.prod(self.shape)

    @property
    def num_params(self) -> int:
        return self.num_neurons * self.token_size


@dataclasses.dataclass(frozen=True)
class WeightSpec:
    """Layout of one architecture's weights. Hashable, hence static under `jit`.

    Attributes:
      layers: from input to output.
      activation: nonlinearity between the layers; decides the symmetries.
      image_size: height and width of the images that the network takes.
    """

    layers: tuple[LayerSpec, ...]
    activation: str
    image_size: tuple[int, int] = (28, 28)

    def __post_init__(self):
        if not self.layers or len(set(self.names)) < len(self.layers):
            raise HyperJaxError(
                f"an architecture of the layers {self.names}; expected one or more, each of a name "
                "of its own"
            )

    @property
    def channels(self) -> int:
        """Of the images that the network takes."""
        first = self.layers[0]
        return first.shape[1] // (1 if first.kind == "conv" else math.prod(self.image_size))

    @property
    def num_classes(self) -> int:
        return self.layers[-1].num_neurons

    @property
    def num_params(self) -> int:
        return sum(layer.num_params for layer in self.layers)

    @property
    def num_tokens(self) -> int:
        return sum(layer.num_neurons for layer in self.layers)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(layer.name for layer in self.layers)

    @functools.cached_property
    def slices(self) -> tuple[slice, ...]:
        """The part of the flat vector that belongs to each layer."""
        ends = np.cumsum([0] + [layer.num_params for layer in self.layers]).tolist()
        return tuple(slice(a, b) for a, b in itertools.pairwise(ends))


def to_json(spec: WeightSpec) -> str:
    return json.dumps(dataclasses.asdict(spec))


def from_json(text: str) -> WeightSpec:
    """Inverse of `to_json`. Raises HyperJaxError on anything that is no WeightSpec."""
    try:
        fields = json.loads(text)
        layers = tuple(_layer_from_json(layer) for layer in fields["layers"])
        size = tuple(fields.get("image_size", (28, 28)))
        return WeightSpec(layers=layers, activation=fields["activation"], image_size=size)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise HyperJaxError(f"not a weight specification: {error!r}") from error


def _layer_from_json(fields: dict[str, Any]) -> LayerSpec:
    """Files of version 0.2 and before know max-pooling by windows of two alone."""
    fields = {**fields, "shape": tuple(fields["shape"])}
    if fields.pop("pooled", False):
        fields["pool"] = "max"
    return LayerSpec(**fields)


def layer_ids(spec: WeightSpec) -> np.ndarray:
    """Index of the layer that each scalar of the flat vector belongs to, int32[D]."""
    sizes = [layer.num_params for layer in spec.layers]
    return np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)


def running_statistics(spec: WeightSpec) -> np.ndarray:
    """Which scalars of the flat vector are running statistics of normalisation, bool[D]: nothing
    that is learned."""
    parts = []
    for layer in spec.layers:
        parts.append(np.zeros(layer.num_weights, bool))
        parts += [np.full(layer.num_neurons, name in STATISTICS) for name in layer.values]
    return np.concatenate(parts)


def split_layer(layer: LayerSpec, block: Array) -> tuple[Array, Array]:
    """One layer's part of a flat vector -> weights [..., *shape] and bias [..., out].

    The bias of a layer without one is [..., 0]; of a layer that is normalised, all values of its
    neurons follow, one kind after another.
    """
    cut = layer.num_weights
    return block[..., :cut].reshape(*block.shape[:-1], *layer.shape), block[..., cut:]


def join_layer(weights: Array, bias: Array) -> Array:
    """Inverse of `split_layer`."""
    lead = bias.shape[:-1]
    return jnp.concatenate([weights.reshape(*lead, -1), bias], axis=-1)


def unflatten(spec: WeightSpec, vectors: Array) -> Params:
    """Flat vectors [..., D] -> linen parameters {layer: {kernel, bias}} with leading axes `...`.

    Kernels get Flax's axis order: (height, width, in, out) or (in, out). Layers without bias
    get a kernel alone, those that are normalised also scale, shift and running mean and var.

    >>> params = hj.unflatten(zoo.spec, zoo.weights[0, -1])
    >>> params["fc1"]["kernel"].shape, params["fc1"]["bias"].shape
    ((36, 20), (20,))
    """
    _check_last_axis(spec, vectors)
    params, batch, lead = {}, vectors.shape[:-1], tuple(range(vectors.ndim - 1))
    sizes = [(x.num_weights, *[x.num_neurons] * len(x.values)) for x in spec.layers]
    # One split, not slices: its gradient is one concatenation.
    blocks = iter(jnp.split(vectors, np.cumsum([n for each in sizes for n in each])[:-1], axis=-1))
    for layer in spec.layers:
        weights = next(blocks).reshape(*batch, *layer.shape)
        order = (-2, -1, -3, -4) if layer.kind == "conv" else (-1, -2)
        kernel = weights.transpose(*lead, *(weights.ndim + axis for axis in order))
        params[layer.name] = {"kernel": kernel} | {name: next(blocks) for name in layer.values}
    return params


def flatten(spec: WeightSpec, params: Params) -> Array:
    """Inverse of `unflatten`. Raises HyperJaxError if a layer is missing or of another shape.

    >>> hj.flatten(zoo.spec, hj.unflatten(zoo.spec, zoo.weights)).shape == zoo.weights.shape
    True
    """
    blocks = []
    for layer in spec.layers:
        try:
            kernel = params[layer.name]["kernel"]
            values = [params[layer.name][name] for name in layer.values]
        except KeyError as error:
            raise HyperJaxError(
                f"parameters have no {layer.name}/{error.args[0]}; expected layers {spec.names}"
            ) from error
        order = (-1, -2, -4, -3) if layer.kind == "conv" else (-1, -2)
        expected = tuple(layer.shape[i] for i in ((2, 3, 1, 0) if len(order) == 4 else (1, 0)))
        lead = tuple(range(kernel.ndim - len(order)))
        batch = kernel.shape[: len(lead)]
        for name, value in zip(layer.values, values, strict=True):
            if kernel.shape == (*batch, *expected) and value.shape == (*batch, layer.num_neurons):
                continue
            raise HyperJaxError(
                f"layer {layer.name}: kernel of shape {kernel.shape} and {name} of shape "
                f"{value.shape}; expected {expected} and {(layer.num_neurons,)}"
            )
        if kernel.shape != (*batch, *expected):
            raise HyperJaxError(
                f"layer {layer.name}: kernel of shape {kernel.shape}; expected {expected}"
            )
        weights = kernel.transpose(*lead, *(kernel.ndim + axis for axis in order))
        blocks += [weights.reshape(*batch, -1), *values]
    return jnp.concatenate(blocks, axis=-1)


def tokenize(spec: WeightSpec, vectors: Array) -> tuple[Array, ...]:
    """Flat vectors [..., D] -> one array [..., neurons, token_size] per layer."""
    _check_last_axis(spec, vectors)
    tokens, lead = [], vectors.shape[:-1]
    for layer, part in zip(spec.layers, spec.slices, strict=True):
        weights, values = split_layer(layer, vectors[..., part])
        incoming = weights.reshape(*lead, layer.num_neurons, -1)
        values = values.reshape(*lead, len(layer.values), layer.num_neurons).swapaxes(-1, -2)
        tokens.append(jnp.concatenate([incoming, values], axis=-1))
    return tuple(tokens)


def detokenize(spec: WeightSpec, tokens: Sequence[Array]) -> Array:
    """Inverse of `tokenize`."""
    blocks = []
    for layer, token in zip(spec.layers, tokens, strict=True):
        lead, cut = token.shape[:-2], token.shape[-1] - len(layer.values)
        incoming, values = token[..., :cut], token[..., cut:].swapaxes(-1, -2)
        size = layer.num_params - layer.num_weights
        blocks += [incoming.reshape(*lead, layer.num_weights), values.reshape(*lead, size)]
    return jnp.concatenate(blocks, axis=-1)


def layer_std(spec: WeightSpec, vectors: Array, floor: float = 1e-4) -> np.ndarray:
    """Standard deviation of each layer's values over all of `vectors` [N, ..., D], float32[layers].

    Weights and biases pooled, unbiased (n - 1), floored: the coefficients of layer-wise
    loss normalisation (paper section 3.1).
    """
    _check_last_axis(spec, vectors)
    if len(vectors) == 0:
        raise HyperJaxError("standard deviation of no vectors: the population is empty")
    count = math.prod(vectors.shape[:-1])
    mean = sum(block.sum(0, dtype=np.float64) for block in blocks(vectors)) / count
    centre = np.concatenate([np.full(p.stop - p.start, mean[p].mean()) for p in spec.slices])
    squares = sum(((block - centre) ** 2).sum(0) for block in blocks(vectors))
    counts = np.array([count * (p.stop - p.start) - 1 for p in spec.slices])
    with np.errstate(invalid="ignore", divide="ignore"):
        stds = np.sqrt([squares[p].sum() for p in spec.slices] / counts)
    return np.maximum(stds, floor).astype(np.float32)


def blocks(vectors: Array, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Vectors [N, ..., D], or those in some `rows` of them, as float32[n, D], some at a time: they
    may be the memory map of a file that is larger than memory."""
    each = max(1, _BLOCK_BYTES // (4 * math.prod(vectors.shape[1:])))
    for begin in range(0, len(vectors if rows is None else rows), each):
        part = slice(begin, begin + each)  # no copy where all are wanted
        block = np.asarray(vectors[part if rows is None else rows[part]], np.float32)
        yield block.reshape(-1, vectors.shape[-1])


def _check_last_axis(spec: WeightSpec, vectors: Array) -> None:
    if vectors.shape[-1] != spec.num_params:
        raise HyperJaxError(
            f"flat vectors have {vectors.shape[-1]} values; this architecture "
            f"({', '.join(spec.names)}) has {spec.num_params}"
        )
