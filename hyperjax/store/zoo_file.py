"""Zoos and populations on disk: one safetensors file, memory-mapped.

Tensors: `weights` float32[M, E, D], `members` int64[M], `epochs` int32[E] and one float32[M, E]
per metric. The header's metadata hold the schema's version, the WeightSpec and the info (data
set, hyper-parameters, seeds). Any safetensors reader can open it.

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


def _header(
    spec: WeightSpec, members: Array, epochs: Array, info: dict[str, Any], metrics: tuple[str, ...]
) -> tuple[bytes, int]:
    """The file's first bytes, and the number of data bytes that follow them."""
    count, snapshots = len(members), len(epochs)
    layout = {"members": (np.dtype("<i8"), (count,)), "epochs": (np.dtype("<i4"), (snapshots,))}
    layout |= {f"metrics/{name}": (np.dtype("<f4"), (count, snapshots)) for name in metrics}
    layout["weights"] = (np.dtype("<f4"), (count, snapshots, spec.num_params))
    fields: dict[str, Any] = {
        "__metadata__": {
            "format": FORMAT,
            "schema": str(SCHEMA),
            "spec": weights.to_json(spec),
            "info": json.dumps(info, sort_keys=True),
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


def allocate(
    path: Path,
    spec: WeightSpec,
    members: Array,
    epochs: Array,
    info: dict[str, Any],
    metrics: tuple[str, ...] = METRICS,
) -> Zoo:
    """Create a file of full size, filled with zeros, and map it for writing.

    Raises HyperJaxError if the disk cannot hold it: better now than in the middle of a run.
    """
    head, size = _header(spec, members, epochs, info, metrics)
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


def write(path: Path, zoo: Zoo) -> None:
    """Write a zoo that is in memory; the file appears whole or not at all."""
    head, _ = _header(zoo.spec, zoo.members, zoo.epochs, zoo.info, tuple(zoo.metrics))
    arrays = [(zoo.members, "<i8"), (zoo.epochs, "<i4")]
    arrays += [(values, "<f4") for values in zoo.metrics.values()]
    arrays += [(zoo.weights, "<f4")]
    body = [memoryview(np.ascontiguousarray(array, dtype)).cast("B") for array, dtype in arrays]
    atomic_write(path, head, *body)


def read(path: str | Path, *, writable: bool = False) -> Zoo:
    """Map a zoo file. Nothing but the header is read until it is used.

    Raises HyperJaxError for a file that is missing, truncated, foreign or of another schema.
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
