"""Zoo files that are filled in place: allocated, written member by member, sealed, published."""

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from store_cases import INFO, SPEC, assert_same, make_zoo

from hyperjax.errors import HyperJaxError
from hyperjax.store import zoo_file
from hyperjax.zoo import METRICS, Zoo


@pytest.fixture
def zoo():
    return make_zoo()


def test_allocate_fill_publish(tmp_path, zoo):
    partial, path = tmp_path / "zoo" / "partial", tmp_path / "zoo" / "zoo.safetensors"
    mapped = zoo_file.allocate(partial, SPEC, zoo.members, zoo.epochs, INFO)
    size = partial.stat().st_size
    assert size > 5 * 3 * 9 * 4
    assert partial.stat().st_blocks * 512 >= size  # really allocated, no sparse file
    assert not mapped.weights.any()
    assert set(mapped.metrics) == set(METRICS)
    for row in range(5):  # in place, a member at a time
        mapped.weights[row] = zoo.weights[row]
        for name, values in zoo.metrics.items():
            mapped.metrics[name][row] = values[row]
    zoo_file.seal(partial)
    zoo_file.flush(mapped)
    assert not path.exists()
    # a restarted run goes on with the file
    assert_same(zoo_file.read(partial, writable=True), zoo)
    zoo_file.publish(partial, path)
    assert os.listdir(path.parent) == [path.name]
    assert path.stat().st_size == size
    assert_same(zoo_file.read(path), zoo)


def test_several_writers_fill_one_file_each_with_its_members(tmp_path, zoo):
    """Rows that lie between each other's, at once; in the end it is the file written by one."""
    partial, whole = tmp_path / "partial", tmp_path / "whole"
    moments = np.random.default_rng(3).random(zoo.weights.shape, np.float32)
    zoo_file.allocate(partial, SPEC, zoo.members, zoo.epochs, INFO, moments=True)

    def fill(rows):
        for column in (2, 0, 1):
            place = rows, column
            tensors = {f"metrics/{name}": values[place] for name, values in zoo.metrics.items()}
            tensors |= {"weights": zoo.weights[place], "second_moments": moments[place]}
            zoo_file.put(partial, rows, column, tensors)
        zoo_file.seal(partial, rows)
        zoo_file.sync(partial)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(fill, [np.array([4, 0, 2]), np.array([1, 3])]))
    zoo_file.write(whole, dataclasses.replace(zoo, second_moments=moments))
    assert partial.read_bytes() == whole.read_bytes()


def test_what_is_put_changes_nothing_beside_it(tmp_path, zoo):
    path = tmp_path / "zoo"
    zoo_file.write(path, zoo)
    new = np.full((1, 9), 7, np.float64)  # becomes float32
    zoo_file.put(path, np.array([3]), 1, {"weights": new})
    expected = np.array(zoo.weights)
    expected[3, 1] = 7
    found = zoo_file.read(path, writable=True)  # which is not checked
    assert_same(found, dataclasses.replace(zoo, weights=expected))
    assert {k: v.tolist() for k, v in zoo_file.damaged(path).items()} == {"weights": [3]}
    path.unlink()
    with pytest.raises(HyperJaxError, match="there is no such"):
        zoo_file.put(path, np.array([3]), 1, {"weights": new})
    with pytest.raises(HyperJaxError, match=r"cannot write .*No such file"):
        zoo_file.sync(path)


def test_no_member_is_sealed_that_is_not_asked_for(tmp_path, zoo):
    """Not even the only one."""
    path = tmp_path / "zoo"
    one = Zoo(SPEC, zoo.weights[:1, :1], np.int32([3]), np.array([7]),
              {name: values[:1, :1] for name, values in zoo.metrics.items()}, INFO)  # fmt: skip
    zoo_file.allocate(path, SPEC, one.members, one.epochs, INFO)
    zoo_file.put(path, np.array([0]), 0, {"weights": one.weights[:, 0]})
    zoo_file.seal(path, [])
    assert {"weights", "members"} <= zoo_file.damaged(path).keys()
    assert "epochs" not in zoo_file.damaged(path)
    zoo_file.seal(path, [0])
    assert not zoo_file.damaged(path)


def test_short_writes_are_gone_on_with(tmp_path, zoo, monkeypatch):
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, at: write(file, data[:5], at))
    path = tmp_path / "zoo"
    zoo_file.allocate(path, SPEC, zoo.members, zoo.epochs, INFO)
    for column in range(3):
        tensors = {f"metrics/{name}": values[:, column] for name, values in zoo.metrics.items()}
        zoo_file.put(path, np.arange(5), column, tensors | {"weights": zoo.weights[:, column]})
    zoo_file.seal(path)
    assert not zoo_file.damaged(path)
    assert_same(zoo_file.read(path), zoo)


def test_of_several_processes_one_at_a_time_writes_a_page(tmp_path, zoo, monkeypatch):
    """Every byte is written while its page is locked, and all locks are given back."""
    path, held, written = tmp_path / "zoo", [], []
    zoo_file.allocate(path, SPEC, zoo.members, zoo.epochs, INFO)
    write = os.pwrite

    def lock(file, how, length, first):
        if how == zoo_file.fcntl.LOCK_EX:
            held.append((first, first + length))
        else:
            held.remove((first, first + length))

    def locked_write(file, data, at):
        ((first, last),) = held
        assert first <= at // 4096 * 4096
        assert -(-(at + len(data)) // 4096) * 4096 <= last
        written.append(at)
        return write(file, data, at)

    monkeypatch.setattr(zoo_file.jax, "process_count", lambda: 2)
    monkeypatch.setattr(zoo_file.fcntl, "lockf", lock)
    monkeypatch.setattr(os, "pwrite", locked_write)
    zoo_file.put(path, np.array([1, 4]), 2, {"weights": zoo.weights[[1, 4], 2]})
    zoo_file.seal(path, [1, 4])
    assert not held
    assert len(written) > 4
