"""A trained hyper-representation on disk: one safetensors file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from hyperjax import config as config_lib
from hyperjax import weights
from hyperjax.config import AutoencoderConfig
from hyperjax.errors import HyperJaxError
from hyperjax.hyperrep import HyperRep, Statistics
from hyperjax.store import tensors as tensors_file
from hyperjax.store.files import to_jsonable
from hyperjax.store.tensors import digest
from hyperjax.store.upgrade import upgraded

SCHEMA = 3  # 2: configuration not grouped, no digest; 1: attention with separate q, k and v
_READABLE = ("2", "3")
FORMAT = "hyperjax-hyperrep"


def write(path: Path, hyperrep: HyperRep, info: dict[str, Any]) -> None:
    """Write parameters, statistics and the alignment's reference; `info` goes in the header. Equal
    content gives equal bytes."""
    arrays = _tensors(hyperrep)
    metadata = {
        "format": FORMAT,
        "schema": str(SCHEMA),
        "spec": weights.to_json(hyperrep.spec),
        "config": json.dumps(dataclasses.asdict(hyperrep.config)),
        "info": json.dumps(to_jsonable(info), sort_keys=True),
        "digest": digest(arrays),
    }
    tensors_file.write(path, arrays, metadata)


def _tensors(hyperrep: HyperRep) -> dict[str, np.ndarray]:
    tensors = traverse_util.flatten_dict({"params": hyperrep.params}, sep="/")
    tensors |= {f"statistics/{k}": v for k, v in hyperrep.statistics._asdict().items()}
    tensors["reference"] = hyperrep.reference
    return {k: np.ascontiguousarray(np.asarray(v, np.float32)) for k, v in tensors.items()}


def read(path: Path) -> tuple[HyperRep, dict[str, Any]]:
    """The hyper-representation and its info, with the "digest" of its tensors.

    Raises HyperJaxError for a file that is missing, damaged, foreign or of another schema.
    """
    tensors, meta = tensors_file.read(path, "hyper-representation", FORMAT, _READABLE)
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
        info = json.loads(meta["info"]) | {"digest": meta.get("digest") or digest(tensors)}
        older = hyperrep.config.architecture.network == "graph" and (
            "readout" not in hyperrep.params["encoder"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HyperJaxError(f"{path}: damaged: {error!r}") from error
    except HyperJaxError as error:
        raise HyperJaxError(f"{path}: damaged: {error}") from error
    if older:
        raise HyperJaxError(
            f"{path}: made by an older version, whose autoencoders on graphs had other parameters; "
            "delete it and train it again"
        )
    return hyperrep, info
