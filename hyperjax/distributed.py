"""Several processes, one per host, that run the same program over all their devices.

Every process computes the same decisions from the same inputs; where a clock or a file could
make them differ, process 0 decides (`agree`). Files lie in a folder that all of them can read and
write. Process 0 makes them; a population's each process fills with members of its own
(`own_parts`). With one process every function here is free.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding

from hyperjax.errors import HyperJaxError


def is_writer() -> bool:
    return jax.process_index() == 0


def agree(value: int) -> int:
    """Process 0's value (of 32 bits), in every process. All of them must come here."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def exists(path: Path) -> bool:
    """Whether process 0 sees the file. All of them must come here.

    Where one is to write it and the others wait for that, they must not look for themselves: who
    comes late would find it written, and not wait.
    """
    return bool(agree(path.exists()))


def is_of_transport(error: Exception) -> bool:
    """Whether it is the transport between processes that failed: another one was lost."""
    transport = ("Gloo", "NCCL")  # of these XLA raises a ValueError too
    signs = (*transport, "UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED")
    if not isinstance(error, jax.errors.JaxRuntimeError):
        signs = transport if isinstance(error, ValueError) else ()
    return any(sign in str(error) for sign in signs)


def any_of(flag: bool) -> bool:
    """Whether it is true in some process. All of them must come here."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.int32(flag)).max())


def barrier(name: str) -> None:
    """Wait until all processes are here, so that what process 0 wrote can be read."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def put(tree: Any, sharding: Sharding) -> Any:
    """Place host arrays, the same in every process, on the devices of all processes."""

    def one(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])

    return jax.device_put(tree, sharding) if jax.process_count() == 1 else jax.tree.map(one, tree)


def share(tree: Any, mesh: Mesh) -> Any:
    """Host arrays on every device of a mesh, never to be donated. The virtual devices of one CPU
    share one copy of each: what begins at a multiple of 64 bytes XLA uses where it is."""

    def aligned(leaf):
        leaf = np.asarray(leaf)
        buffer = np.empty(leaf.nbytes + 64, np.uint8)
        start = -buffer.ctypes.data % 64
        copy = buffer[start : start + leaf.nbytes].view(leaf.dtype).reshape(leaf.shape)
        copy[...] = leaf
        copy.flags.writeable = False
        return copy

    return put(jax.tree.map(aligned, tree), NamedSharding(mesh, PartitionSpec()))


def fetch(tree: Any) -> Any:
    """Arrays that are spread over all processes, as NumPy arrays in each of them."""

    def one(leaf):
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return np.asarray(leaf)
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.tree.map(one, tree)


def own_parts(arrays: dict[str, jax.Array]) -> list[tuple[int, dict[str, np.ndarray]]]:
    """Parts, along the first axis, of equally placed arrays that lie on this process's devices: the
    row where each begins, and its values. All processes together have every row once."""
    shards = [
        [shard for shard in array.addressable_shards if shard.replica_id == 0]
        for array in arrays.values()
    ]
    return [
        (
            part[0].index[0].start or 0,
            {n: np.asarray(x.data) for n, x in zip(arrays, part, strict=True)},
        )
        for part in zip(*shards, strict=True)
    ]


def same_number_of_each(devices: list[Any], batch: int, least: int, field: str) -> list[Any]:
    """As many devices as divide the batch, the same number of every process.

    A device is used if at least `least` examples come to it, except for each process's first.
    Raises HyperJaxError, naming the `field` of the configuration, if the processes do not divide
    the batch.
    """
    groups = [
        [device for device in devices if device.process_index == process]
        for process in sorted({device.process_index for device in devices})
    ]
    counts = [
        each
        for each in range(1, min(map(len, groups)) + 1)
        if batch % (each * len(groups)) == 0
        and (each == 1 or batch // (each * len(groups)) >= least)
    ]
    if not counts:
        raise HyperJaxError(
            f"config field {field}.training.batch_size = {batch} cannot be divided among "
            f"{len(groups)} processes; expected a multiple of it"
        )
    return [device for group in groups for device in group[: max(counts)]]
