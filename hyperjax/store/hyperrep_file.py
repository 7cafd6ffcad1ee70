"""A trained hyper-representation on disk: one safetensors file."""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hyperjax import config as config_lib
from hyperjax import weights
from hyperjax.config import AutoencoderConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, Statistics
from hyperjax.store.files import atomic_write, to_jsonable
from hyperjax.store.upgrade import upgraded

SCHEMA = 3  # 2: configuration not grouped, no digest; 1: attention with separate q, k and v
_READABLE = ("2", "3")
FORMAT = "hyperjax-hyperrep"


def write(path: Path, hyperrep: HyperRep, info: dict[str, Any]) -> None:
    """Write parameters, statistics and the alignment's reference; `info` goes in the header."""
    arrays = _tensors(hyperrep)
    metadata = {
        "format": FORMAT,
        "schema": str(SCHEMA),
        "spec": weights.to_json(hyperrep.spec),
        "config": json.dumps(dataclasses.asdict(hyperrep.config)),
        "info": json.dumps(to_jsonable(info)),
        "digest": _digest(arrays),
    }
    atomic_write(path, save(arrays, metadata))


def _tensors(hyperrep: HyperRep) -> dict[str, np.ndarray]:
    tensors = traverse_util.flatten_dict({"params": hyperrep.params}, sep="/")
    tensors |= {f"statistics/{k}": v for k, v in hyperrep.statistics._asdict().items()}
    tensors["reference"] = hyperrep.reference
    return {k: np.ascontiguousarray(np.asarray(v, np.float32)) for k, v in tensors.items()}


def _digest(arrays: dict[str, np.ndarray]) -> str:
    """16 hexadecimal digits of the SHA-256 of all tensors: the same wherever they were made."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name}{arrays[name].shape}".encode())
        digest.update(arrays[name])
    return digest.hexdigest()[:16]


def read(path: Path) -> tuple[HyperRep, dict[str, Any]]:
    """The hyper-representation and its info, with the "digest" of its tensors.

    Raises HyperJaxError for a file that is missing, damaged, foreign or of another schema.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            meta = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise HyperJaxError(f"{path}: there is no such hyper-representation") from error
    except (OSError, SafetensorError) as error:
        raise HyperJaxError(f"{path}: not a whole safetensors file: {error}") from error
    if meta.get("format") != FORMAT or meta.get("schema") not in _READABLE:
        raise HyperJaxError(
            f"{path}: format {meta.get('format')!r}, schema {meta.get('schema')!r}; expected "
            f"{FORMAT!r}, schema '{SCHEMA}'; delete it and run train.py again to make it anew"
        )
    try:
        tree = traverse_util.unflatten_dict(tensors, sep="/")
        tree_of_config = upgraded(json.loads(meta["config"]), "autoencoder.")
        hyperrep = HyperRep(
            config=config_lib.build(AutoencoderConfig, tree_of_config, "autoencoder."),
            spec=weights.from_json(meta["spec"]),
            params=tree["params"],
            statistics=Statistics(**tree["statistics"]),
            reference=tree["reference"],
        )
        info = json.loads(meta["info"])
        return hyperrep, info | {"digest": meta.get("digest") or _digest(tensors)}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HyperJaxError(f"{path}: damaged: {error!r}") from error
    except HyperJaxError as error:
        raise HyperJaxError(f"{path}: damaged: {error}") from error
