"""Architectures that no hyper-representation was trained on (paper section 4.2.4, Table 4).

All take 28 x 28 images and end like the zoo CNN, in a flatten (channel-major) of 4 x 3 x 3.

* "3-conv + res-skip": the zoo CNN, each convolution with a parallel path (overlapping
  max-pooling, then a convolution 1x1) that is added after the activation. 2562 parameters for
  one input channel, 2978 for three: the skip paths' are more than a generated network has.
* "4-conv": conv 5x5 -> pool -> act, conv 5x5 -> act, conv 4x4 -> act, conv 3x3 -> act,
  dense 18 -> act, dense 10; no biases in the last three convolutions, tanh always. As many
  parameters as the zoo CNN: 2464 or 2864.
* "4-conv + id.-skip": the same, and the output of the second convolution's activation, cropped
  and subsampled to 3 x 3, is added to that of the last one's.

`assign` makes the zoo CNN's weights their initial weights. Of "3-conv + res-skip" the five layers
are copied by name, and the skip convolutions stay as they were initialised. For the two 4-conv
architectures there are two rules:

* "refill": the new network's parameters are filled in order from the flat vector. The paper
  says no more than that weights are re-distributed, and no code for it is published; this is the
  plainest reading. It happens to keep the first convolution and four whole filters of the second,
  but hands all later layers weights of other layers, in other units and in no order.
* "transplant": every layer is given what plays its role, so that the new network computes
  nearly what the old one did.
  - conv1 and conv2, fc1 and fc2 keep their neurons. Where there is room for fewer (4 filters of
    conv2 instead of 6, 18 neurons of fc1 instead of 20), those whose outgoing weights are the
    smallest are dropped, with these weights.
  - conv3 (2x2, on 2x2 max-pooled maps) becomes a 4x4 convolution on the maps themselves, each
    weight spread over its window: pooling by the mean. Two more filters keep random weights.
  - conv4 is new: each of its neurons hands the filter of the same number of conv3 on (as in
    Net2Net, Chen et al. 2016). It starts at 1 for that, and at 0 for everything else, the random
    filters included. Windows that stood two pixels apart now stand one apart, so the
    outer outputs look one pixel farther inward than they did.
  Biases that have no place are dropped.

Both rules are deterministic and need no images.
"""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hyperjax import weights
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.models import initialise
from hyperjax.models.architectures import NUM_CLASSES, zoo_cnn_spec
from hyperjax.models.sequential import Layer, activation_fn, columns
from hyperjax.types import Array, Key
from hyperjax.weights import LayerSpec, WeightSpec

SKIPS = ("skip1", "skip2", "skip3")


def res_skip_spec(in_channels: int, activation: str) -> WeightSpec:
    """Layout of "3-conv + res-skip": the zoo CNN's vector, then the three skip convolutions."""
    zoo = zoo_cnn_spec(in_channels, activation)
    fans = ((8, in_channels), (6, 8), (4, 6))
    skips = [LayerSpec(name, "conv", (*fan, 1, 1)) for name, fan in zip(SKIPS, fans, strict=True)]
    return WeightSpec((*zoo.layers, *skips), activation)


def four_conv_spec(in_channels: int, activation: str = "tanh") -> WeightSpec:
    """Layout of "4-conv", with or without identity skip. Its activation is tanh, whatever the
    zoo's is, as in the published code."""
    del activation
    layers = (
        LayerSpec("conv1", "conv", (8, in_channels, 5, 5), pool="max"),
        LayerSpec("conv2", "conv", (4, 8, 5, 5), bias=False),
        LayerSpec("conv3", "conv", (6, 4, 4, 4), bias=False),
        LayerSpec("conv4", "conv", (4, 6, 3, 3), bias=False),
        LayerSpec("fc1", "dense", (18, 36)),
        LayerSpec("fc2", "dense", (NUM_CLASSES, 18)),
    )
    return WeightSpec(layers, "tanh")


def init_vector(spec: WeightSpec, name: str, key: Key) -> Array:
    """Random weights of one network as a flat vector, float32[D]: initialised by `name`, skip
    convolutions by kaiming_uniform; every bias is 0.01."""
    key_main, key_skips = jax.random.split(key)
    is_skip = np.isin(spec.names, SKIPS)[weights.layer_ids(spec)]
    main = initialise.init_vector(spec, name, key_main)
    skips = initialise.init_vector(spec, "kaiming_uniform", key_skips)
    return jnp.where(is_skip, skips, main)


def window_max(x_CxHxWxN: Array, size: int, stride: int) -> Array:
    """Max-pooling by windows that may overlap: [C, H, W, N] -> [C, H', W', N].

    H and W must be multiples of the stride. Equal maxima share the gradient, where PyTorch gives
    it to the first.
    """
    x = x_CxHxWxN
    for axis in (1, 2):  # columns of maxima of rows
        shape, count = x.shape, (x.shape[axis] - size) // stride + 1
        # Strided slices are slow on CPU: cut rows by their position within a stride instead.
        x = x.reshape(*shape[:axis], shape[axis] // stride, stride, *shape[axis + 1 :])
        planes = [lax.index_in_dim(x, i, axis + 1, keepdims=False) for i in range(stride)]
        parts = [
            lax.slice_in_dim(planes[i % stride], i // stride, i // stride + count, axis=axis)
            for i in range(size)
        ]
        x = functools.reduce(jnp.maximum, parts)
    return x


class ResSkipCNN(nn.Module):
    """float32[N, 28, 28, C] -> logits float32[N, 10], as `Sequential`."""

    spec: WeightSpec
    conv_form: str = "patches"

    @nn.compact
    def __call__(self, images_NxHxWxC: Array) -> Array:
        act, layer, x = *_tools(self), columns(images_NxHxWxC)
        skip = layer["skip1"](window_max(x, 5, 2))
        x = act(layer["conv1"](x)) + skip
        skip = layer["skip2"](window_max(x, 5, 2))
        x = act(layer["conv2"](x)) + skip
        skip = layer["skip3"](window_max(x, 2, 1))
        x = act(layer["conv3"](x)) + skip
        x = act(layer["fc1"](x))
        return layer["fc2"](x).T


class FourConvCNN(nn.Module):
    """float32[N, 28, 28, C] -> logits float32[N, 10], as `Sequential`."""

    spec: WeightSpec
    conv_form: str = "patches"
    identity_skip: bool = False

    @nn.compact
    def __call__(self, images_NxHxWxC: Array) -> Array:
        act, layer, x = *_tools(self), columns(images_NxHxWxC)
        x = act(layer["conv1"](x))
        early = x = act(layer["conv2"](x))
        x = act(layer["conv3"](x))
        x = act(layer["conv4"](x))
        if self.identity_skip:
            x = x + early[:, 1:-1:2, 1:-1:2]  # 8 x 8 without its rim, every second: 3 x 3
        x = act(layer["fc1"](x))
        return layer["fc2"](x).T


def _tools(module: nn.Module):
    """The activation and the layers of a module, by name."""
    layers = {
        layer.name: Layer(layer, module.conv_form, name=layer.name) for layer in module.spec.layers
    }
    return activation_fn(module.spec.activation), layers


class FourConvSkipCNN(FourConvCNN):
    """`FourConvCNN` with the identity skip."""

    identity_skip: bool = True


@dataclasses.dataclass(frozen=True)
class Variant:
    """An architecture: its name in the paper, its module (of a spec and a form of convolutions),
    and its layout from the number of input channels and the zoo's activation."""

    title: str
    model: type[nn.Module]
    spec: Callable[[int, str], WeightSpec]


VARIANTS = {
    "res_skip": Variant("3-conv + res-skip", ResSkipCNN, res_skip_spec),
    "four_conv": Variant("4-conv", FourConvCNN, four_conv_spec),
    "four_conv_skip": Variant("4-conv + id.-skip", FourConvSkipCNN, four_conv_spec),
}


RULES = ("refill", "transplant")

Layers = dict[str, tuple[np.ndarray, np.ndarray]]  # weights f[N, *shape] and biases f[N, out or 0]


def assign(
    rule: str, source: WeightSpec, target: WeightSpec, vectors: Array, random: Array
) -> np.ndarray:
    """Networks float32[N, D] of the zoo CNN `source` -> initial weights float32[N, D'] of `target`.

    `random` float32[N, D'] are `target`'s own random weights, of which some stay. Raises
    HyperJaxError for an unknown rule, or an architecture that it does not know.
    """
    if rule not in RULES:
        raise unknown("rule of assignment", rule, RULES)
    vectors, random = np.asarray(vectors, np.float32), np.asarray(random, np.float32)
    if target.layers[: len(source.layers)] == source.layers:
        return np.concatenate([vectors, random[:, source.num_params :]], axis=1)
    if target.names != ("conv1", "conv2", "conv3", "conv4", "fc1", "fc2"):
        raise HyperJaxError(
            f"no rule assigns weights of {', '.join(source.names)} to {', '.join(target.names)}; "
            "see hyperjax.models.variants"
        )
    if rule == "refill":
        if source.num_params != target.num_params:
            raise HyperJaxError(
                f"refill needs equal numbers of parameters, got {source.num_params} for "
                f"{target.num_params}"
            )
        return vectors.copy()
    return _join(target, _transplant(_split(source, vectors), _split(target, random)))


def _transplant(old: Layers, new: Layers) -> Layers:
    """The zoo CNN's layers in those of "4-conv", of which `new` is a random one."""
    (w1, b1), (w2, _), (w3, _), (w4, b4), (w5, b5) = old.values()
    kept = _largest(w3, new["conv2"][0].shape[1])
    w2, w3 = _take(w2, kept, 1), _take(w3, kept, 2)
    kept = _largest(w5, new["fc1"][0].shape[1])
    w4, b4, w5 = _take(w4, kept, 1), _take(b4, kept, 1), _take(w5, kept, 2)
    spread = w3.repeat(2, axis=3).repeat(2, axis=4) / 4
    outputs = w3.shape[1]
    conv3, conv4 = new["conv3"][0].copy(), np.zeros_like(new["conv4"][0])
    conv3[:, :outputs] = spread
    conv4[:, range(outputs), range(outputs), 1, 1] = 1
    none = new["conv2"][1]
    return {
        "conv1": (w1, b1),
        "conv2": (w2, none),
        "conv3": (conv3, none),
        "conv4": (conv4, none),
        "fc1": (w4, b4),
        "fc2": (w5, b5),
    }


def _largest(outgoing: np.ndarray, count: int) -> np.ndarray:
    """The `count` inputs of a layer [N, out, in, ...] with the largest weights, in order."""
    norms = np.square(outgoing).sum(axis=(1, *range(3, outgoing.ndim)))
    return np.sort(np.argsort(-norms, axis=1, kind="stable")[:, :count], axis=1)


def _take(values: np.ndarray, index: np.ndarray, axis: int) -> np.ndarray:
    """Along an axis of [N, ...], entries of each network's own int[N, count]."""
    shape = [1] * values.ndim
    shape[0], shape[axis] = index.shape
    return np.take_along_axis(values, index.reshape(shape), axis)


def shuffle(seed: int, spec: WeightSpec, vectors: Array) -> np.ndarray:
    """Shuffle each layer's weights, and its biases, within each network float32[N, D].

    Every layer keeps its values, hence their scale and distribution, and loses all structure.
    """
    rng = np.random.default_rng(seed)

    def shuffled(values: np.ndarray) -> np.ndarray:
        return rng.permuted(values.reshape(len(values), -1), axis=1).reshape(values.shape)

    layers = _split(spec, np.asarray(vectors, np.float32))
    return _join(spec, {name: (shuffled(w), shuffled(b)) for name, (w, b) in layers.items()})


def _split(spec: WeightSpec, vectors: np.ndarray) -> Layers:
    parts = zip(spec.layers, spec.slices, strict=True)
    return {layer.name: weights.split_layer(layer, vectors[:, part]) for layer, part in parts}


def _join(spec: WeightSpec, layers: Layers) -> np.ndarray:
    rows = [part.reshape(len(part), -1) for name in spec.names for part in layers[name]]
    return np.concatenate(rows, axis=1)
