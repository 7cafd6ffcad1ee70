"""Networks on images: one as two pure functions, and any number of them on the images of a task."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hyperjax import cost, distributed, weights
from hyperjax.errors import HyperJaxError
from hyperjax.models.initialise import init_vector
from hyperjax.models.sequential import Sequential, output_sizes
from hyperjax.population import engine as engines
from hyperjax.population import placement
from hyperjax.population.engine import Engine, Evaluation
from hyperjax.types import Array, Images, Key
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Zoo

_IMAGES_PER_CALL = 400_000
_MEMORY_SHARE = 0.5  # of a device's memory, for members
STATES = 2.5  # times what a member trains with: also a snapshot and a checkpoint, while written
_UNKNOWN_MEMORY = 16e9  # bytes, of a host whose devices do not say what they have


class Task(NamedTuple):
    """A data set as networks see it: images on the devices, and the engine that runs networks."""

    engine: Engine
    train: Images
    val: Images | None = None
    test: Images | None = None

    @property
    def num_images(self) -> dict[str, int]:
        """Of each split that there is."""
        parts = {name: getattr(self, name) for name in ("train", "val", "test")}
        return {name: len(part.labels) for name, part in parts.items() if part is not None}


def make_task(engine: Engine, images: Any) -> Task:
    """Place `Images`, or a data set with `train`, `val` and `test` images, on the devices.

    Raises HyperJaxError for a split without images.
    """
    if isinstance(images, Images):
        return Task(engine, _placed(engine, images, "train"))
    parts = {name: getattr(images, name) for name in ("train", "val", "test")}
    return Task(engine, **{name: _placed(engine, part, name) for name, part in parts.items()})


def _placed(engine: Engine, images: Images, split: str) -> Images:
    if not len(images.labels):
        raise HyperJaxError(f"there are no {split} images; expected one or more in each split")
    return engines.place_images(engine, images)


def members_per_call(engine: Engine, num_images: int) -> int:
    """Members that are trained or evaluated together: what fits in memory, and where members run
    one after another no more than some seconds of an epoch's work; no fewer than there are
    devices."""
    each, most = STATES * cost.member_bytes(engine.spec), _IMAGES_PER_CALL // num_images
    if engine.mapping == "vmap":
        each, most = each + cost.activation_bytes(engine.spec) * engine.micro_batch, math.inf
    room = _MEMORY_SHARE * _memory(engine.mesh.local_devices[0])
    size = distributed.agree(int(min(most, room * engine.mesh.size / each)))
    return engines.padded(engine, max(size, engine.mesh.size))


def _memory(device: jax.Device) -> float:
    """Bytes that a device has for us, the same at every call."""
    stats = device.memory_stats() or {}
    return float(stats.get("bytes_limit", _UNKNOWN_MEMORY / jax.local_device_count()))


def evaluate(task: Task, vectors: Array, images: Images) -> Evaluation:
    """Evaluate flat vectors float32[M, D] as networks; host arrays over M."""
    return _in_parts(engines.evaluate, task, vectors, images)


def tested(task: Task, models: Zoo) -> Zoo:
    """A population in memory with its accuracy and loss on test images at every snapshot, measured
    now where its zoo was not tested (`ZooConfig.tested`): where the accuracy is not known. A loss
    that is known stays."""
    names = "test_loss", "test_accuracy"
    if not all(name in models.metrics for name in names):
        return models
    found = {name: np.array(models.metrics[name]) for name in names}
    missing = np.isnan(found["test_accuracy"]) & np.isfinite(models.weights).all(axis=2)
    for column in np.flatnonzero(missing.any(axis=0)):
        rows = np.flatnonzero(missing[:, column])
        measured = evaluate(task, models.weights[rows, column], task.test)
        known = found["test_loss"][rows, column]
        found["test_loss"][rows, column] = np.where(np.isnan(known), measured.loss, known)
        found["test_accuracy"][rows, column] = measured.accuracy
    return dataclasses.replace(models, metrics={**models.metrics, **found})


def logits(task: Task, vectors: Array, images: Images) -> np.ndarray:
    """Outputs float32[M, N, classes] of networks float32[M, D] on N images."""
    return _in_parts(engines.logits, task, vectors, images)


def _in_parts(fn: Callable, task: Task, vectors: Array, images: Images) -> Any:
    count = len(vectors)
    if count == 0:
        raise HyperJaxError("the population is empty: expected at least one model to evaluate")
    size = members_per_call(task.engine, len(task.train.labels))
    size = min(size, engines.padded(task.engine, placement.rounded(count)))
    parts = []
    for begin in range(0, count, size):
        rows = np.asarray(vectors[begin : begin + size], np.float32)
        placed = engines.place_members(task.engine, rows, size)
        result = fn(task.engine, placed, images)
        parts.append(distributed.fetch(result))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


class Network(NamedTuple):
    """A pair of functions, like a transformation of Optax; both work under jit, vmap and grad.

    Attributes:
      init: `init(key, name="torch_default") -> float32[D]`, initial weights by the name of an
        initialisation (`ZooConfig.init`).
      apply: `apply(vector float32[D], images) -> logits float32[N, classes]`. `Images` are
        normalised by their mean and standard deviation, an array float32[N, H, W, C] is taken as it
        is.
    """

    init: Callable[..., Array]
    apply: Callable[[Array, Images | Array], Array]


def network(spec: WeightSpec) -> Network:
    """The network that a spec lays out.

    Raises HyperJaxError if it is no sequence of layers; `apply` does so for images that the network
    does not take.

    >>> net = hj.network(zoo.spec)
    >>> net.apply(zoo.weights[0, -1], images.test).shape
    (450, 10)
    """
    output_sizes(spec)
    return Network(functools.partial(_init, spec), functools.partial(_apply, spec))


def _init(spec: WeightSpec, key: Key, name: str = "torch_default") -> Array:
    return init_vector(spec, name, key)


def _apply(spec: WeightSpec, vector: Array, images: Images | Array) -> Array:
    if isinstance(images, Images):
        scale, shift = 1 / (255 * images.std), -images.mean / images.std
        x = images.pixels * scale[None, None, None] + shift[None, None, None]
    elif np.issubdtype(images.dtype, np.integer):
        raise HyperJaxError(
            "pixels without their normalisation: expected hyperjax.Images, or floats that have "
            "been normalised as the zoo's images were"
        )
    else:
        x = images
    expected = (*spec.image_size, spec.channels)
    if x.ndim != 4 or x.shape[1:] != expected:
        raise HyperJaxError(
            f"images of shape {x.shape}; expected [N, {', '.join(map(str, expected))}]"
        )
    params = weights.unflatten(spec, jnp.asarray(vector))
    return Sequential(spec).apply({"params": params}, jnp.asarray(x, jnp.float32))
