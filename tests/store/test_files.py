import errno
import os
import threading

import pytest

from hyperjax.errors import HyperJaxError
from hyperjax.store.files import atomic_write, held


def test_writes_replaces_and_makes_folders(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    atomic_write(path, b"\x00old")
    assert path.read_bytes() == b"\x00old"
    atomic_write(str(path), b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file.bin"]


def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").write_bytes(b"")
    atomic_write(tmp_path / "atomic", b"")
    assert (tmp_path / "atomic").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_alone(tmp_path, monkeypatch, step):
    path = tmp_path / "file"
    atomic_write(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(HyperJaxError, match=r"cannot write .*file: No space left on device"):
        atomic_write(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_an_interrupt_cleans_up_and_goes_on(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "file", b"new")
    assert os.listdir(tmp_path) == []


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(HyperJaxError, match="cannot write"):
        atomic_write(tmp_path / "a" / "b", b"")
    with pytest.raises(HyperJaxError, match="cannot write"):
        atomic_write(tmp_path, b"")


def test_writers_at_once_never_mix(tmp_path):
    path = tmp_path / "file"
    contents = [bytes([n]) * 100_000 for n in range(8)]
    threads = [threading.Thread(target=atomic_write, args=(path, data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in contents
    assert os.listdir(tmp_path) == ["file"]


def test_the_disk_that_files_have(tmp_path):
    """What is there; of a file with a hole, what is written."""
    path, hole = tmp_path / "a", tmp_path / "b"
    path.write_bytes(bytes([1]) * 1_000_000)
    with open(hole, "wb") as file:
        file.truncate(10**9)
    found = held([path, hole, tmp_path / "none", tmp_path])
    assert 1_000_000 <= found < 1_200_000
