"""Zoos and populations on disk: one safetensors file, memory-mapped.

Tensors: `weights` float32[M, E, D], `members` int64[M], `epochs` int32[E], one float32[M, E] per
metric, `latents` float32[M, Z] of samples, and `second_moments` float32[M, E, D] where they were
kept. The header's metadata hold the schema's version, the WeightSpec and the info (data set,
hyper-parameters, seeds). Any safetensors reader can open it.

A file is allocated first and filled in place while a population trains, so that neither
writing nor reading ever needs a second copy in memory; it gets its name when it is whole.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from hyperjax import weights
from hyperjax.errors import HyperJaxError
from hyperjax.store.files import atomic_write
from hyperjax.types import Array
from hyperjax.weights import WeightSpec
from hyperjax.zoo import METRICS, Zoo

SCHEMA = 1
FORMAT = "hyperjax-zoo"
_DTYPES = {"F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100_000_000  # bytes, the limit of the safetensors format


def _header(zoo: Zoo) -> tuple[bytes, int]:
    """The file's first bytes, and the number of data bytes that follow them."""
    layout = {
        name: (np.dtype(dtype), np.shape(array)) for name, (array, dtype) in _tensors(zoo).items()
    }
    fields: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "schema": str(SCHEMA),
            "spec": weights.to_json(zoo.spec),
            "info": json.dumps(zoo.info, sort_keys=True),
        }
    }
    offset = 0
    for name, (dtype, shape) in layout.items():
        end = offset + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        fields[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": (offset, end)}
        offset = end
    text = json.dumps(fields).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    return len(text).to_bytes(8, "little") + text, offset


def _tensors(zoo: Zoo) -> dict[str, tuple[np.ndarray, str]]:
    """Arrays and their types in the file, in the order of their data."""
    arrays = {"members": (zoo.members, "<i8"), "epochs": (zoo.epochs, "<i4")}
    arrays |= {f"metrics/{name}": (values, "<f4") for name, values in zoo.metrics.items()}
    arrays |= {} if zoo.latents is None else {"latents": (zoo.latents, "<f4")}
    moments = zoo.second_moments
    arrays |= {} if moments is None else {"second_moments": (moments, "<f4")}
    return arrays | {"weights": (zoo.weights, "<f4")}


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
    zero = np.zeros((), np.float32)  # of any shape, without its memory
    shape = (len(members), len(epochs))
    metrics = {name: np.broadcast_to(zero, shape) for name in METRICS}
    vectors = np.broadcast_to(zero, (*shape, spec.num_params))
    second_moments = vectors if moments else None
    head, size = _header(
        Zoo(spec, vectors, epochs, members, metrics, info, second_moments=second_moments)
    )
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
        raise HyperJaxError(
            f"cannot allocate {size / 1e6:.1f} MB for {path}: {error.strerror or error}"
        ) from error
    zoo = read(path, writable=True)
    zoo.members[:] = members
    zoo.epochs[:] = epochs
    return zoo


def flush(zoo: Zoo) -> None:
    """Write a mapped zoo's changes to disk."""
    zoo.weights.flush()


def publish(partial: Path, path: Path) -> None:
    """Give a filled file its name."""
    with open(partial, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(partial, path)


def write(path: str | Path, zoo: Zoo) -> None:
    """Write a zoo that is in memory; the file appears whole or not at all.

    Raises HyperJaxError if the system refuses (a full disk, no permission).

    >>> hj.write_zoo("mine.safetensors", zoo)
    >>> hj.read_zoo("mine.safetensors").weights.shape == zoo.weights.shape
    True
    """
    arrays = (np.ascontiguousarray(array, dtype) for array, dtype in _tensors(zoo).values())
    atomic_write(path, _header(zoo)[0], *(memoryview(array).cast("B") for array in arrays))


def read(path: str | Path, *, writable: bool = False) -> Zoo:
    """Map a zoo file, of a zoo or of any population: `hyperjax.write_zoo` writes them, and so do
    the commands. Nothing but the header is read until it is used.

    Raises HyperJaxError for a file that is missing, truncated, foreign or of another schema.

    >>> hj.read_zoo("runs/digits/zoo/zoo.safetensors").weights.dtype
    dtype('float32')
    """
    path = Path(path)
    fields, start, size = _read_header(path)
    meta = fields.pop("__metadata__", {})
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise HyperJaxError(f"{path}: a safetensors file, but not a HyperJAX zoo or population")
    if meta.get("schema") != str(SCHEMA):
        raise HyperJaxError(
            f"{path}: schema version {meta.get('schema')}, this HyperJAX reads version {SCHEMA}"
        )
    data = np.memmap(path, np.uint8, "r+" if writable else "r")
    arrays = {}
    try:
        for name, field in fields.items():
            begin, end = field["data_offsets"]
            if not 0 <= begin <= end <= size - start:
                raise HyperJaxError(
                    f"truncated: tensor {name!r} ends at byte {start + end}, the file at {size}"
                )
            values = data[start + begin : start + end].view(_DTYPES[field["dtype"]])
            arrays[name] = values.reshape(field["shape"])
        metrics = {
            name.removeprefix("metrics/"): array
            for name, array in arrays.items()
            if name.startswith("metrics/")
        }
        return Zoo(
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


def _read_header(path: Path) -> tuple[dict[str, Any], int, int]:
    """Header fields, offset of the data, size of the file."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _MAX_HEADER):
                raise HyperJaxError(f"{path}: not a safetensors file, or a truncated one")
            text = file.read(length)
    except FileNotFoundError as error:
        raise HyperJaxError(f"{path}: there is no such zoo or population file") from error
    except OSError as error:
        raise HyperJaxError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict):
            raise ValueError("no JSON object")
    except ValueError as error:
        raise HyperJaxError(f"{path}: not a safetensors file: no JSON header") from error
    return fields, 8 + length, size
