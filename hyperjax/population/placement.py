"""Which device computes which members, and which of their images.

A mesh has two axes. Along "member" devices have members of their own, which never communicate.
Where a population has fewer members than there are devices, several of one process share each
member: they lie along "image", each computes a part of the member's images, and what they find is
summed up.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hyperjax import distributed
from hyperjax.errors import HyperJaxError
from hyperjax.types import Array


def make_mesh(devices: Any, members: int) -> Mesh:
    """Of so many members at once."""
    grid = np.asarray(devices).reshape(members, -1)
    return Mesh(grid, ("member", "image"), axis_types=(AxisType.Auto,) * 2)


def mesh_for(mesh: Mesh, count: int) -> Mesh:
    """The same devices for a population of `count` members, a number that `padded` gives."""
    devices = mesh.devices.ravel()
    return make_mesh(devices, min(count, devices.size))


def padded(mesh: Mesh, count: int) -> int:
    """Smallest number of members >= `count` that the devices divide, or that divides those of each
    process: who shares a member need not wait for a network."""
    processes = len({device.process_index for device in mesh.devices.flat})
    fewer = range(max(count, 1), mesh.size)
    sizes = (n for n in fewer if mesh.size % n == 0 and n % processes == 0)
    return next(sizes, -(-count // mesh.size) * mesh.size)


def rounded(count: int) -> int:
    """A little more, so that populations of many sizes share a few compiled programs: at most a
    fourth above `count`, and four sizes between a power of two and the next."""
    step = 1 << max(0, count.bit_length() - 3)
    return -(-count // step) * step


def place_members(mesh: Mesh, tree: Any, size: int = 0) -> Any:
    """Split a tree with a leading member axis over the devices.

    The last member is repeated until there are `size` members and the devices divide them, or they
    the devices; callers drop the extra ones from what they read back.
    """
    count = len(jax.tree.leaves(tree)[0])
    if count == 0:
        raise HyperJaxError("the population is empty: expected at least one member")
    size = padded(mesh, max(size, count))
    index = np.minimum(np.arange(size), count - 1)
    rows = jax.tree.map(lambda leaf: np.asarray(leaf)[index], tree)
    mesh = mesh_for(mesh, size)
    spec = P("member") if mesh.shape["member"] > 1 else P()  # as XLA names it, or it compiles twice
    return distributed.put(rows, NamedSharding(mesh, spec))


def sharers(mesh: Mesh) -> int:
    """Devices that share a member."""
    return mesh.shape["image"]


def summed(mesh: Mesh, tree: Any) -> Any:
    """Over the devices that share a member."""
    return lax.psum(tree, "image") if sharers(mesh) > 1 else tree


def part_of(mesh: Mesh, batch: Array) -> Array:
    """This device's part of a batch that the devices divide."""
    return batch.reshape(sharers(mesh), -1)[lax.axis_index("image")]


def batches(mesh: Mesh, size: int, count: int) -> Array:
    """Indices of this device's images, int32[batches, size]; those that are left when `count`
    images do not fill all batches are `count` and above."""
    each = -(-count // (size * sharers(mesh)))
    first = lax.axis_index("image") * each * size if sharers(mesh) > 1 else 0
    return first + jnp.arange(each * size).reshape(each, size)


def joined(mesh: Mesh, results: Array, count: int) -> Array:
    """Results of all devices' `batches`, [batches, size, ...] -> [count, ...]."""
    results = results.reshape(-1, *results.shape[2:])
    if sharers(mesh) > 1:
        results = lax.all_gather(results, "image", tiled=True)
    return results[:count]
