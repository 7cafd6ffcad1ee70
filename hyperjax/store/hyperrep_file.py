"""A trained hyper-representation on disk: one safetensors file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from hyperjax import config as config_lib
from hyperjax import weights
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, Statistics
from hyperjax.store.files import atomic_write

SCHEMA = 2  # 1: attention with separate q, k and v
FORMAT = "hyperjax-hyperrep"


def write(path: Path, hyperrep: HyperRep, info: dict[str, Any]) -> None:
    """Write parameters, statistics and the alignment's reference; `info` goes in the header."""
    tensors = traverse_util.flatten_dict({"params": hyperrep.params}, sep="/")
    tensors |= {f"statistics/{k}": v for k, v in hyperrep.statistics._asdict().items()}
    tensors["reference"] = hyperrep.reference
    metadata = {
        "format": FORMAT,
        "schema": str(SCHEMA),
        "spec": weights.to_json(hyperrep.spec),
        "config": json.dumps(dataclasses.asdict(hyperrep.config)),
        "info": json.dumps(info),
    }
    arrays = {k: np.ascontiguousarray(np.asarray(v, np.float32)) for k, v in tensors.items()}
    atomic_write(path, save(arrays, metadata))


def read(path: Path) -> tuple[HyperRep, dict[str, Any]]:
    """The hyper-representation and its info.

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
    if meta.get("format") != FORMAT or meta.get("schema") != str(SCHEMA):
        raise HyperJaxError(
            f"{path}: format {meta.get('format')!r}, schema {meta.get('schema')!r}; expected "
            f"{FORMAT!r}, schema '{SCHEMA}'; delete it and run train.py again to make it anew"
        )
    try:
        tree = traverse_util.unflatten_dict(tensors, sep="/")
        hyperrep = HyperRep(
            config=config_lib.autoencoder_from_dict(json.loads(meta["config"])),
            spec=weights.from_json(meta["spec"]),
            params=tree["params"],
            statistics=Statistics(**tree["statistics"]),
            reference=tree["reference"],
        )
        return hyperrep, json.loads(meta["info"])
    except (KeyError, TypeError, ValueError) as error:
        raise HyperJaxError(f"{path}: damaged: {error!r}") from error
    except HyperJaxError as error:
        raise HyperJaxError(f"{path}: damaged: {error}") from error
