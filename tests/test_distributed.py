"""With one process; tests/test_scripts.py runs two."""

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
    chosen = distributed.same_number_of_each(devices(*counts), batch, least=8)
    assert len(chosen) == len(set(chosen)) == used
    each = [sum(d.process_index == p for d in chosen) for p in range(len(counts))]
    assert set(each) == {used // len(counts)}


def test_processes_that_cannot_share_a_batch():
    with pytest.raises(HyperJaxError, match=r"batch_size = 10 .* 3 processes"):
        distributed.same_number_of_each(devices(1, 1, 1), 10, least=8)


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
