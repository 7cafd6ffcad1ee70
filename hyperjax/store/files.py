"""Files that appear whole or not at all, and what JSON files can hold."""

import dataclasses
import errno
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax import distributed
from hyperjax.errors import HyperJaxError

_PARTIAL = re.compile(r"\..+\.\d+\.[0-9a-f]{8}\.partial")


def atomic_write(path: str | os.PathLike, *parts: bytes | memoryview) -> None:
    """Write a file by write-then-rename, and its folders where they are missing.

    A reader sees the old contents or the new, never a part; a failure leaves the old file and
    nothing else. Raises HyperJaxError naming the path if the system refuses (a full disk, no
    permission). With several processes the first one writes and the others do nothing.
    """
    atomic_stream(path, parts, sum(memoryview(part).nbytes for part in parts))


def atomic_stream(path: str | os.PathLike, parts: Iterable[bytes | memoryview], size: int) -> None:
    """`atomic_write` of parts that are made one after another, of `size` bytes in all."""
    if not distributed.is_writer():
        return
    path = Path(path)
    # in the same folder: a rename across file systems would not be atomic
    partial = partial_of(path, os.getpid(), secrets.randbits(32))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(partial, "xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())  # else a crash may leave the new name on no data
            os.replace(partial, path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise cannot_write(path, error, size) from error


def partial_of(path: Path, process: int, token: int) -> Path:
    """The name of a file while it is written, of which `remove_partials` knows it."""
    return path.with_name(f".{path.name}.{process}.{token:08x}.partial")


def cannot_write(path: Path, error: OSError, size: int) -> HyperJaxError:
    """The error where the system refuses a file or folder of `size` bytes."""
    text = f"cannot write {path}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        text += f"; it needs {size / 1e6:.3g} MB. With room there, the same command goes on"
    return HyperJaxError(text)


def held(paths: Iterable[Path]) -> int:
    """Bytes of the disk that files have, as far as they are there."""
    return sum(512 * path.stat().st_blocks for path in paths if path.is_file())


def remove_partials(paths: Iterable[Path]) -> None:
    """Remove those that `atomic_write` was writing when it was killed. The caller sees to it that
    nobody writes there now."""
    if distributed.is_writer():
        for path in paths:
            if _PARTIAL.fullmatch(path.name):
                path.unlink(missing_ok=True)


def remove(*paths: Path) -> None:
    """Remove files, and folders with all that is in them, where they are."""
    if distributed.is_writer():
        for path in paths:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def remove_if_empty(folder: Path) -> None:
    """Remove a folder in which nothing is left."""
    if distributed.is_writer() and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def to_jsonable(value: Any) -> Any:
    """Mappings, sequences, dataclasses, named tuples, arrays and scalars -> what JSON can hold.

    Numbers that are not finite become null, which JSON has no other way to say.
    """
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields}
    if hasattr(value, "_asdict"):  # a NamedTuple
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(name): to_jsonable(entry) for name, entry in value.items()}
    if isinstance(value, tuple | list):
        return [to_jsonable(entry) for entry in value]
    if hasattr(value, "__array__"):  # NumPy and JAX, arrays and scalars
        return to_jsonable(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
