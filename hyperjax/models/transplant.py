"""Weights of the zoo CNN as initial weights of other architectures (paper section 4.2.4).

`hyperjax.models.variants` describes the architectures. "3-conv + res-skip" contains the zoo CNN:
its five layers are copied by name, the skip convolutions stay as they were initialised. The two
4-conv architectures have exactly as many parameters as the zoo CNN, and there are two rules:

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

import numpy as np

from hyperjax import weights
from hyperjax.errors import HyperJaxError, unknown
from hyperjax.types import Array
from hyperjax.weights import WeightSpec

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
