"""Zoos and populations on disk: one safetensors file, memory-mapped.

Tensors: `weights` float32[M, E, D], `members` int64[M], `epochs` int32[E], one float32[M, E] per
metric, `latents` float32[M, Z] of samples, and `second_moments` float32[M, E, D] where they were
kept; and of each of them, `x`, `checksums/x` uint32[M], CRC-32 by member (of `epochs` uint32[1]).
The header's metadata hold the schema's version, the WeightSpec, the info (data set,
hyper-parameters, seeds) and the header's own checksum. Any safetensors reader can open it.

A file is allocated first and filled in place while a population trains, so that neither
writing nor reading ever needs a second copy in memory; members are sealed, that is, get their
checksums, when they are done, and the file gets its name when it is whole. Several processes fill
one file, each with its own members (`put`).
"""

import fcntl
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from hyperjax import weights
from hyperjax.errors import HyperJaxError
from hyperjax.store import checksums
from hyperjax.store.files import atomic_write, cannot_write
from hyperjax.types import Array
from hyperjax.weights import WeightSpec
from hyperjax.zoo import METRICS, Zoo

SCHEMA = 1
FORMAT = "hyperjax-zoo"
SUMS = "checksums/"  # before the name of a tensor, that of its checksums
_WITHOUT_MEMBERS = ("epochs",)  # tensors that have one checksum
_PAGE = 2**16  # bytes, at least those of a page
_SMALL = 2**24  # bytes; a file up to this is checked whenever it is read
_DTYPES = {
    "F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"), "U32": np.dtype("<u4"),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def _header(zoo: Zoo) -> tuple[bytes, int]:
    """The file's first bytes, and the number of data bytes that follow them."""
    fields: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "schema": str(SCHEMA),
            "header": checksums.BLANK,
            "spec": weights.to_json(zoo.spec),
            "info": json.dumps(zoo.info, sort_keys=True),
        }
    }
    offset = 0
    for name, (array, dtype) in _layout(zoo).items():
        end = offset + np.dtype(dtype).itemsize * math.prod(np.shape(array))
        fields[name] = {
            "dtype": _NAMES[np.dtype(dtype)],
            "shape": np.shape(array),
            "data_offsets": (offset, end),
        }
        offset = end
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    return checksums.sealed(len(text).to_bytes(8, "little") + text), offset


def _tensors(zoo: Zoo) -> dict[str, tuple[np.ndarray, str]]:
    """Arrays and their types in the file."""
    arrays = {"members": (zoo.members, "<i8"), "epochs": (zoo.epochs, "<i4")}
    arrays |= {f"metrics/{name}": (values, "<f4") for name, values in zoo.metrics.items()}
    arrays |= {} if zoo.latents is None else {"latents": (zoo.latents, "<f4")}
    moments = zoo.second_moments
    arrays |= {} if moments is None else {"second_moments": (moments, "<f4")}
    return arrays | {"weights": (zoo.weights, "<f4")}


def _layout(zoo: Zoo) -> dict[str, tuple[np.ndarray, str]]:
    """The same with checksums, which are zero, in the order of their data."""
    arrays = _tensors(zoo)
    last = {"weights": arrays.pop("weights")}
    sums = {
        SUMS + name: (np.zeros(1 if name in _WITHOUT_MEMBERS else len(zoo.members)), "<u4")
        for name in (*arrays, *last)
    }
    return arrays | sums | last


def allocate(
    path: Path,
    spec: WeightSpec,
    members: Array,
    epochs: Array,
    info: dict[str, Any],
    *,
    moments: bool = False,
) -> Zoo:
    """Create a file of full size, filled with zeros, and map it for writing; with second moments,
    if asked.

    Raises HyperJaxError if the disk cannot hold it: better now than in the middle of a run.
    """
    head, size = _header(blank(spec, members, epochs, info, moments=moments))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            file.write(head)
            file.flush()
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), len(head), size)
            else:  # macOS: a sparse file, so a full disk is noticed later
                file.truncate(len(head) + size)
    except OSError as error:
        if path.is_file():
            path.unlink()
        raise cannot_write(path, error, size) from error
    zoo = read(path, writable=True)
    zoo.members[:] = members
    zoo.epochs[:] = epochs
    return zoo


def blank(
    spec: WeightSpec, members: Array, epochs: Array, info: dict[str, Any], *, moments: bool
) -> Zoo:
    """A zoo of zeros, without their memory; with second moments, if asked."""
    zero, shape = np.zeros((), np.float32), (len(members), len(epochs))
    metrics = {name: np.broadcast_to(zero, shape) for name in METRICS}
    vectors = np.broadcast_to(zero, (*shape, spec.num_params))
    second_moments = vectors if moments else None
    return Zoo(spec, vectors, epochs, members, metrics, info, second_moments=second_moments)


def put(path: Path, rows: np.ndarray, column: int, tensors: dict[str, np.ndarray]) -> None:
    """Write one snapshot of members into a file that `allocate` has made. Several processes may
    fill one file at once, each with its own members; `sync` has to follow before others read it.

    Args:
      rows: int[R], of the members.
      column: of the snapshot.
      tensors: by their names in the file, values [R] or [R, D].

    Raises HyperJaxError if the system refuses.
    """
    fields, _, start, _ = _fields(path)
    with _writing(path) as file:
        for name, values in tensors.items():
            field = fields[name]
            values = np.ascontiguousarray(values, _DTYPES[field["dtype"]])
            size = values[:1].nbytes
            begin = start + field["data_offsets"][0] + column * size
            _write_at(file, begin + np.asarray(rows) * field["shape"][1] * size, values)


def seal(path: Path, rows: Iterable[int] | None = None, names: Collection[str] = ()) -> None:
    """Write the checksums of members of a file, as they are now; of a file that has any.

    Args:
      path: of a file that is whole, or that `allocate` has made.
      rows: members; None: all of them.
      names: tensors; empty: all of them.
    """
    fields, _, start, _ = _fields(path)
    tensors = _mapped(path)[0]
    with _writing(path) as file:
        for name, array in tensors.items():
            if name.startswith(SUMS) or SUMS + name not in tensors or (names and name not in names):
                continue
            blocks, begin = _blocks(name, array), start + fields[SUMS + name]["data_offsets"][0]
            every = rows is None or name in _WITHOUT_MEMBERS
            those = np.arange(len(blocks)) if every else np.asarray(rows, int)
            sums = checksums.crc32_of_rows(blocks, those).astype("<u4")
            if every:  # in one piece
                those, sums = those[:1], sums[None]
            _write_at(file, begin + 4 * those, sums)


@contextmanager
def _writing(path: Path) -> Iterator[Any]:
    try:
        with open(path, "rb+", buffering=0) as file:
            yield file
    except OSError as error:
        size = path.stat().st_size if path.exists() else 0
        raise cannot_write(path, error, size) from error


def _write_at(file: Any, places: np.ndarray, values: np.ndarray) -> None:
    """Write `values[i]` at the byte `places[i]`. Of several processes none writes meanwhile on the
    pages between the first and the last: where they lie on NFS, each reads and writes back whole
    pages, and they see each other's bytes only through locks."""
    if not len(places):
        return
    first = int(places.min()) // _PAGE * _PAGE
    length, several = int(places.max()) + values[0].nbytes - first, jax.process_count() > 1
    length = -(-length // _PAGE) * _PAGE
    if several:
        fcntl.lockf(file, fcntl.LOCK_EX, length, first)
    for place, value in zip(places.tolist(), values, strict=True):
        left = value.tobytes()
        while left:
            written = os.pwrite(file.fileno(), left, place)
            left, place = left[written:], place + written
    if several:
        fcntl.lockf(file, fcntl.LOCK_UN, length, first)


def _blocks(name: str, array: np.ndarray) -> np.ndarray:
    """What each checksum of a tensor is of: a row."""
    return array[None] if name in _WITHOUT_MEMBERS else array


def damaged(path: str | Path) -> dict[str, np.ndarray] | None:
    """Compare all of a file with its checksums.

    Returns the rows, int64[K], of members whose bytes are not as they were written, by tensor;
    damaged `epochs` have none. None: the file has no checksums.

    Raises HyperJaxError as `read` does.
    """
    return _damaged(Path(path), _mapped(Path(path))[0])


def _damaged(path: Path, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    if not any(name.startswith(SUMS) for name in tensors):
        return None
    found = {}
    for name in sorted(name for name in tensors if not name.startswith(SUMS)):
        blocks, sums = _blocks(name, tensors[name]), tensors.get(SUMS + name)
        if sums is None or sums.shape != (len(blocks),):
            raise HyperJaxError(f"{path}: damaged header: no checksums of {name}")
        wrong = np.flatnonzero(checksums.crc32_of_rows(blocks, range(len(blocks))) != sums)
        if len(wrong):
            found[name] = wrong[:0] if name in _WITHOUT_MEMBERS else wrong
    return found


def digest(path: str | Path) -> int | None:
    """What tells members' weights from others, without reading them: of their checksums. None: the
    file has none. Raises HyperJaxError as `read` does."""
    sums = _mapped(Path(path))[0].get(SUMS + "weights")
    return None if sums is None else checksums.crc32(sums)


def damage(path: str | Path, found: dict[str, np.ndarray]) -> HyperJaxError:
    """The error for what `damaged` has found."""
    parts = [
        f"{name} of the members in rows {checksums.ranges(rows)}" if len(rows) else name
        for name, rows in found.items()
    ]
    return HyperJaxError(f"{path}: damaged: {'; '.join(parts)}; {checksums.ADVICE}")


def restore_frame(path: Path, frame: Zoo) -> None:
    """Give a damaged file the header and the size of `frame`, a `blank` one; its data stay."""
    head, size = _header(frame)
    with open(path, "rb+") as file:
        file.write(head)
        file.truncate(len(head) + size)


def flush(zoo: Zoo) -> None:
    """Write a mapped zoo's changes to disk."""
    zoo.weights.flush()


def sync(path: Path) -> None:
    """Write to disk what this process has put into a file."""
    with _writing(path) as file:
        os.fsync(file.fileno())


def publish(partial: Path, path: Path) -> None:
    """Give a filled file its name."""
    sync(partial)
    os.replace(partial, path)


def write(path: str | Path, zoo: Zoo) -> None:
    """Write a zoo that is in memory; the file appears whole or not at all.

    Raises HyperJaxError if the system refuses (a full disk, no permission).

    >>> hj.write_zoo("mine.safetensors", zoo)
    >>> hj.read_zoo("mine.safetensors").weights.shape == zoo.weights.shape
    True
    """
    arrays = {n: np.ascontiguousarray(array, dtype) for n, (array, dtype) in _layout(zoo).items()}
    for name in _tensors(zoo):
        blocks = _blocks(name, arrays[name])
        arrays[SUMS + name][:] = checksums.crc32_of_rows(blocks, range(len(blocks)))
    parts = (memoryview(array).cast("B") for array in arrays.values())
    atomic_write(path, _header(zoo)[0], *parts)


def read(path: str | Path, *, writable: bool = False) -> Zoo:
    """Map a zoo file, of a zoo or of any population: `hyperjax.write_zoo` writes them, and so do
    the commands. A file up to 16 MB is checked; of a larger one nothing but the header is read
    until it is used (`hyperjax verify` checks it).

    Raises HyperJaxError for a file that is missing, damaged, foreign or of another schema.

    >>> hj.read_zoo("runs/digits/zoo/zoo.safetensors").weights.dtype
    dtype('float32')
    """
    path, prefix = Path(path), "metrics/"
    arrays, meta = _mapped(path, writable=writable)
    metrics = {n.removeprefix(prefix): x for n, x in arrays.items() if n.startswith(prefix)}
    try:
        found = Zoo(
            spec=weights.from_json(meta["spec"]),
            weights=arrays["weights"],
            epochs=arrays["epochs"],
            members=arrays["members"],
            metrics=metrics,
            info=json.loads(meta["info"]),
            latents=arrays.get("latents"),
            second_moments=arrays.get("second_moments"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise HyperJaxError(f"{path}: damaged header: {error!r}") from error
    except HyperJaxError as error:
        raise HyperJaxError(f"{path}: damaged: {error}") from error
    if not writable and path.stat().st_size <= _SMALL:
        wrong = _damaged(path, arrays)
        if wrong:
            raise damage(path, wrong)
    return found


def about(path: str | Path) -> tuple[WeightSpec, dict[str, Any]]:
    """What the header alone says: architecture and info, whatever has become of the data.

    Raises HyperJaxError as `read` does.
    """
    meta = _fields(Path(path))[1]
    try:
        return weights.from_json(meta["spec"]), json.loads(meta["info"])
    except (KeyError, TypeError, ValueError) as error:
        raise HyperJaxError(f"{path}: damaged header: {error!r}") from error


def _fields(path: Path) -> tuple[dict[str, Any], dict[str, Any], int, int]:
    """The header's tensors, its metadata, where the data begin and the file ends."""
    header, size = checksums.header_of(path, "zoo or population file")
    fields = _parsed(path, header)
    meta = fields.pop("__metadata__", {})
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise HyperJaxError(f"{path}: a safetensors file, but not a HyperJAX zoo or population")
    if meta.get("schema") != str(SCHEMA):
        raise HyperJaxError(
            f"{path}: schema version {meta.get('schema')}, this HyperJAX reads version {SCHEMA}"
        )
    summed = "header" in meta or any(name.startswith(SUMS) for name in fields)
    if checksums.is_sealed(path, header) != summed:
        raise HyperJaxError(f"{path}: damaged header: its checksum; {checksums.ADVICE}")
    return fields, meta, len(header), size


def _mapped(path: Path, *, writable: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The tensors by name, memory-mapped, and the metadata."""
    fields, meta, start, size = _fields(path)
    data = np.memmap(path, np.uint8, "r+" if writable else "r")
    arrays, last = {}, 0
    try:
        for name, field in fields.items():
            begin, end = field["data_offsets"]
            if not 0 <= begin <= end <= size - start:
                raise HyperJaxError(
                    f"truncated: tensor {name!r} ends at byte {start + end}, the file at {size}"
                )
            values = data[start + begin : start + end].view(_DTYPES[field["dtype"]])
            arrays[name] = values.reshape(field["shape"])
            last = max(last, end)
    except (KeyError, TypeError, ValueError) as error:
        raise HyperJaxError(f"{path}: damaged header: {error!r}") from error
    except HyperJaxError as error:
        raise HyperJaxError(f"{path}: damaged: {error}") from error
    if start + last != size:
        raise HyperJaxError(
            f"{path}: damaged: {size - start - last} bytes follow the last tensor; "
            f"{checksums.ADVICE}"
        )
    return arrays, meta


def _parsed(path: Path, header: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(header[8:])
        if not isinstance(fields, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise HyperJaxError(f"{path}: not a safetensors file: no JSON header") from error
    return fields
