"""Safetensors files of a few named tensors, whole in memory, and what they are known by."""

import hashlib
import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from hyperjax.errors import HyperJaxError

# of the metadata, where one holds all: safetensors writes several in random order
FIELD = "hyperjax"


def one_field(meta: dict[str, Any]) -> dict[str, str]:
    """Metadata as one field, by which equal content gives equal bytes; `read` takes it apart."""
    return {FIELD: json.dumps(meta, sort_keys=True)}


def read(
    path: Path, what: str, form: str, schemas: Collection[str | int]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors and metadata of a file.

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
    return tensors, meta


def _parsed(path: Path, text: str) -> dict[str, Any]:
    try:
        meta = json.loads(text)
    except ValueError as error:
        raise HyperJaxError(f"{path}: damaged: {error!r}") from error
    if not isinstance(meta, dict):
        raise HyperJaxError(f"{path}: damaged: metadata {text}; expected a dictionary")
    return meta


def digest(arrays: dict[str, np.ndarray]) -> str:
    """16 hexadecimal digits of the SHA-256 of all tensors: the same wherever they were made."""
    found = hashlib.sha256()
    for name in sorted(arrays):
        found.update(f"{name}{arrays[name].shape}".encode())
        found.update(arrays[name])
    return found.hexdigest()[:16]
