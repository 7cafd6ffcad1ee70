"""Safetensors files of a few named tensors, whole in memory, and what they are known by."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hyperjax.errors import HyperJaxError
from hyperjax.store import checksums
from hyperjax.store.files import atomic_write

# of the metadata, where one holds all: safetensors writes several in random order
FIELD = "hyperjax"


def write(path: str | Path, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Write tensors with a checksum of each; equal content gives equal bytes, and the file appears
    whole or not at all.

    Raises HyperJaxError if the system refuses.
    """
    sums = {name: f"{checksums.crc32(array):08x}" for name, array in arrays.items()}
    meta = meta | {"checksums": sums, "header": checksums.BLANK}
    data = memoryview(save(arrays, {FIELD: json.dumps(meta, sort_keys=True)}))
    start = 8 + int.from_bytes(data[:8], "little")
    atomic_write(path, checksums.sealed(bytes(data[:start])), data[start:])


def read(
    path: Path, what: str, form: str, schemas: Collection[str | int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata of a file; all of its bytes are checked, if it has checksums.

    Raises HyperJaxError naming the file, which is to be `what`, for one that is missing, damaged,
    foreign or of another schema.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise HyperJaxError(f"{path}: there is no such {what}") from error
    except (OSError, SafetensorError) as error:
        raise HyperJaxError(f"{path}: not a whole safetensors file: {error}") from error
    if FIELD in meta:
        meta = _parsed(path, meta[FIELD])
    if meta.get("format") != form or meta.get("schema") not in schemas:
        raise HyperJaxError(
            f"{path}: format {meta.get('format')!r}, schema {meta.get('schema')!r}; expected "
            f"{form!r}, schema {max(schemas)!r}; delete it and run train.py again to make it anew"
        )
    _check(path, checksums.header_of(path, what)[0], tensors, meta)
    return tensors, meta


def form_of(path: Path) -> tuple[str | None, bool]:
    """The format that a safetensors file says it has, of HyperJAX or not, and whether it has
    checksums. Raises HyperJaxError if it is missing or its header is damaged."""
    header, _ = checksums.header_of(path, "file")
    sealed = checksums.is_sealed(path, header)
    fields = _parsed(path, header[8:])
    meta = fields.get("__metadata__")
    meta = meta if isinstance(meta, dict) else {}
    if FIELD in meta:
        meta = _parsed(path, meta[FIELD])
    return meta.get("format"), sealed


def _check(path: Path, header: bytes, tensors: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    """Raises HyperJaxError naming the tensors that are not as they were written."""
    sealed, sums = checksums.is_sealed(path, header), meta.get("checksums")
    if not sealed and sums is None and "header" not in meta:
        return  # of an older version
    if not sealed or not isinstance(sums, dict) or sums.keys() != tensors.keys():
        raise HyperJaxError(f"{path}: damaged: its checksums; {checksums.ADVICE}")
    wrong = [name for name, x in tensors.items() if f"{checksums.crc32(x):08x}" != sums[name]]
    if wrong:
        raise HyperJaxError(f"{path}: damaged: tensor {', '.join(wrong)}; {checksums.ADVICE}")


def _parsed(path: Path, text: str | bytes) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except (TypeError, ValueError) as error:
        raise HyperJaxError(f"{path}: damaged: {error!r}") from error
    if not isinstance(meta, dict):
        raise HyperJaxError(f"{path}: damaged: metadata {text!r}; expected a dictionary")
    return meta


def digest(arrays: dict[str, np.ndarray]) -> str:
    """16 hexadecimal digits of the SHA-256 of all tensors: the same wherever they were made."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name}{arrays[name].shape}".encode())
        found.update(arrays[name])
    return found.hexdigest()[:16]
