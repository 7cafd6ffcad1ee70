"""With one process; tests/app/test_processes.py runs two."""

from typing import NamedTuple

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from hyperjax import distributed
from hyperjax.errors import HyperJaxError


class Device(NamedTuple):
    process_index: int
    id: int


def devices(*counts):
    return [Device(process, i) for process, count in enumerate(counts) for i in range(count)]


@pytest.mark.parametrize(
    ("counts", "batch", "used"),
    [
        ((1,), 64, 1),
        ((4,), 64, 4),
        ((16,), 64, 8),  # at least 8 examples a device
        ((4,), 60, 4),
        ((4,), 27, 3),
        ((4,), 7, 1),
        ((4, 4), 64, 8),
        ((8, 8), 64, 8),
        ((3, 2), 64, 4),  # the same number of each process
        ((1, 1, 1, 1), 8, 4),  # no process is without a device
    ],
)
def test_devices_that_share_a_batch(counts, batch, used):
    chosen = distributed.same_number_of_each(devices(*counts), batch, least=8, field="denoiser")
    assert len(chosen) == len(set(chosen)) == used
    each = [sum(d.process_index == p for d in chosen) for p in range(len(counts))]
    assert set(each) == {used // len(counts)}


def test_processes_that_cannot_share_a_batch():
    with pytest.raises(HyperJaxError, match=r"batch_size = 10 .* 3 processes"):
        distributed.same_number_of_each(devices(1, 1, 1), 10, least=8, field="denoiser")


def test_put_and_fetch():
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("x",)), P("x"))
    tree = {"a": np.arange(8.0, dtype=np.float32), "b": np.arange(16).reshape(8, 2)}
    placed = distributed.put(tree, sharding)
    assert placed["a"].sharding == sharding
    back = distributed.fetch(placed)
    assert all(isinstance(leaf, np.ndarray) for leaf in back.values())
    jax.tree.map(np.testing.assert_array_equal, back, tree)
    assert distributed.agree(3) == 3
    assert distributed.is_writer()


SHARED = {
    "pixels": np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)[:, ::-1],  # not contiguous
    "labels": np.arange(7, dtype=np.int32),
    "mean": np.float32(0.25),
    "count": np.array(5, np.int32),
    "half": np.arange(6, dtype=np.float16).reshape(3, 2).T,
    "large": np.random.default_rng(0).normal(size=(129, 65)).astype(np.float32),
    "flags": np.array([True, False, True]),
    "nothing": np.zeros((0, 3), np.float32),
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="other devices have memory of their own")
def test_virtual_devices_share_one_buffer():
    mesh = Mesh(np.asarray(jax.devices()), ("x",))
    assert mesh.size == 4
    placed = distributed.share(SHARED, mesh)
    for name, leaf in placed.items():
        assert leaf.sharding == NamedSharding(mesh, P())
        shards = [shard.data for shard in leaf.addressable_shards]
        assert len(shards) == 4
        assert all(shard.shape == SHARED[name].shape for shard in shards)
        if leaf.size:
            assert len({shard.unsafe_buffer_pointer() for shard in shards}) == 1
            assert shards[0].unsafe_buffer_pointer() % 64 == 0


def test_what_is_shared_keeps_its_values():
    """Whatever its type, shape and order in memory, and whatever becomes of the original."""
    originals = {name: np.array(leaf) for name, leaf in SHARED.items()}
    placed = distributed.share(originals, Mesh(np.asarray(jax.devices()), ("x",)))
    for leaf in originals.values():
        leaf[...] = 0
    for name, leaf in placed.items():
        assert leaf.dtype == SHARED[name].dtype
        for shard in leaf.addressable_shards:
            np.testing.assert_array_equal(shard.data, SHARED[name])
    fetched = distributed.fetch(placed)
    jax.tree.map(np.testing.assert_array_equal, fetched, SHARED)
    doubled = jax.jit(lambda tree: jax.tree.map(lambda x: x + x, tree))(placed)
    np.testing.assert_array_equal(doubled["large"], 2 * SHARED["large"])


@pytest.mark.parametrize("axes", [("a", "b"), ("a",), ()])
def test_own_parts_are_the_whole_array_once(axes):
    """Also where devices hold the same rows."""
    mesh = Mesh(np.asarray(jax.devices()).reshape(2, 2), ("a", "b"))
    arrays = {"x": np.arange(24.0).reshape(8, 3), "y": np.arange(8)}
    sharding = NamedSharding(mesh, P(axes or None))
    parts = distributed.own_parts(jax.device_put(arrays, sharding))
    assert [first for first, _ in parts] == list(range(0, 8, 8 // len(parts)))
    assert len(parts) == 2 ** len(axes)
    for name, values in arrays.items():
        found = np.concatenate([tensors[name] for _, tensors in parts])
        np.testing.assert_array_equal(found, values)
