"""Any number of networks on the images of a task."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from hyperjax import cost, distributed
from hyperjax.errors import HyperJaxError
from hyperjax.population import engine as engines
from hyperjax.population.engine import Engine, Evaluation
from hyperjax.types import Array, Images

_IMAGES_PER_CALL = 400_000
_MEMORY_SHARE = 0.5  # of a device's memory, for activations
_UNKNOWN_MEMORY = 16e9  # bytes, of a device that does not say what it has


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
    """Place `Images`, or a data set with `train`, `val` and `test` images, on the devices."""
    if isinstance(images, Images):
        return Task(engine, engines.place_images(engine, images))
    parts = (images.train, images.val, images.test)
    return Task(engine, *(engines.place_images(engine, part) for part in parts))


def members_per_call(engine: Engine, num_images: int) -> int:
    """Members that are trained or evaluated together: some seconds of an epoch's work where
    members run one after another, what fits in memory where they run at once."""
    if engine.mapping == "map":
        size = max(1, _IMAGES_PER_CALL // num_images)
    else:
        each = cost.activation_bytes(engine.spec) * engine.micro_batch
        room = _MEMORY_SHARE * _memory(engine.mesh.local_devices[0])
        size = distributed.agree(max(1, int(room * engine.mesh.size / each)))
    return engines.padded(engine, size)


def _memory(device: jax.Device) -> float:
    """Bytes that a device has for us, the same at every call."""
    stats = device.memory_stats() or {}
    return float(stats.get("bytes_limit", _UNKNOWN_MEMORY))


def evaluate(task: Task, vectors: Array, images: Images) -> Evaluation:
    """Evaluate flat vectors float32[M, D] as networks; host arrays over M."""
    return _in_parts(engines.evaluate, task, vectors, images)


def logits(task: Task, vectors: Array, images: Images) -> np.ndarray:
    """Outputs float32[M, N, 10] of networks float32[M, D] on N images."""
    return _in_parts(engines.logits, task, vectors, images)


def _in_parts(fn: Callable, task: Task, vectors: Array, images: Images) -> Any:
    count = len(vectors)
    if count == 0:
        raise HyperJaxError("the population is empty: expected at least one model to evaluate")
    size = members_per_call(task.engine, len(task.train.labels))
    size = min(size, engines.padded(task.engine, _rounded(count)))
    parts = []
    for begin in range(0, count, size):
        rows = np.asarray(vectors[begin : begin + size], np.float32)
        placed = engines.place_members(task.engine, rows, size)
        result = fn(task.engine, placed, images)
        parts.append(distributed.fetch(result))
    return jax.tree.map(lambda *leaves: np.concatenate(leaves)[:count], *parts)


def _rounded(count: int) -> int:
    """A little more, so that populations of many sizes share a few compiled programs: at most a
    fourth above `count`, and four sizes between a power of two and the next."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step
