"""A trained denoiser of weights on disk: one safetensors file."""

from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from hyperjax import config as config_lib
from hyperjax import weights
from hyperjax.config import DenoiserConfig
from hyperjax.diffusion import Denoiser, Wiener
from hyperjax.errors import HyperJaxError
from hyperjax.store import tensors as tensors_file
from hyperjax.store.files import to_jsonable

FORMAT, SCHEMA = "hyperjax-denoiser", "1"


def write(path: Path, denoiser: Denoiser, info: dict[str, Any]) -> None:
    """Write parameters, Wiener denoiser, scale and the alignment's reference; `info` goes in the
    header. Equal content gives equal bytes."""
    arrays = traverse_util.flatten_dict({"params": denoiser.params}, sep="/")
    arrays |= {f"wiener/{name}": leaf for name, leaf in denoiser.wiener._asdict().items()}
    arrays |= {"scale": denoiser.scale, "reference": denoiser.reference}
    arrays = {k: np.asarray(v, np.float32, order="C") for k, v in arrays.items()}
    meta = {
        "format": FORMAT,
        "schema": SCHEMA,
        "spec": weights.to_json(denoiser.spec),
        "config": config_lib.to_dict(denoiser.config),
        "info": to_jsonable(info),
        "digest": tensors_file.digest(arrays),
    }
    tensors_file.write(path, arrays, meta)


def read(path: Path) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser and its info, with the "digest" of its tensors.

    Raises HyperJaxError for a file that is missing, damaged, foreign or of another schema.
    """
    tensors, meta = tensors_file.read(path, "denoiser", FORMAT, (SCHEMA,))
    try:
        tree = traverse_util.unflatten_dict(tensors, sep="/")
        denoiser = Denoiser(
            config=config_lib.build(DenoiserConfig, meta["config"], "denoiser."),
            spec=weights.from_json(meta["spec"]),
            params=tree["params"],
            wiener=Wiener(**tree["wiener"]),
            scale=tree["scale"],
            reference=tree["reference"],
        )
        return denoiser, meta["info"] | {"digest": meta["digest"]}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise HyperJaxError(f"{path}: damaged: {error!r}") from error
    except HyperJaxError as error:
        raise HyperJaxError(f"{path}: damaged: {error}") from error
