"""Moments of a data set's images on disk: one safetensors file.

Tensors `mean` float32[H, W, C] and `covariance` float32[P, P]; equal moments give equal bytes.
"""

from pathlib import Path
from typing import Any

import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.population.repair import Moments
from hyperjax.store import tensors as tensors_file
from hyperjax.store.files import to_jsonable

SCHEMA = 1
FORMAT = "hyperjax-moments"
_ROUNDING = 1e-5  # of the largest variance: what symmetric entries may differ by


def write(path: str | Path, moments: Moments, info: dict[str, Any]) -> None:
    """Write moments; the file appears whole or not at all, and `info` goes in the header.

    Raises HyperJaxError for moments that `read` would refuse, or if the system refuses.
    """
    arrays = {
        name: np.ascontiguousarray(values, np.float32) for name, values in moments._asdict().items()
    }
    _check(path, **arrays)
    fields = {"format": FORMAT, "schema": SCHEMA, "info": to_jsonable(info)}
    tensors_file.write(path, arrays, fields)


def read(path: str | Path) -> tuple[Moments, dict[str, Any]]:
    """The moments and their info.

    Raises HyperJaxError for a file that is missing, truncated, foreign, of another schema, or whose
    tensors are no moments.
    """
    tensors, fields = tensors_file.read(Path(path), "file of image moments", FORMAT, (SCHEMA,))
    if set(tensors) != set(Moments._fields) or not isinstance(fields.get("info"), dict):
        raise HyperJaxError(
            f"{path}: damaged: tensors {', '.join(sorted(tensors))}, info {fields.get('info')!r}; "
            f"expected {', '.join(Moments._fields)} and a dictionary"
        )
    _check(path, **tensors)
    return Moments(**tensors), fields["info"]


def _check(path: str | Path, mean: np.ndarray, covariance: np.ndarray) -> None:
    """Raises HyperJaxError naming the file unless these can be moments of images."""
    problem = _problem(mean, covariance)
    if problem:
        raise HyperJaxError(f"{path}: no moments of images: {problem}")


def _problem(mean: np.ndarray, covariance: np.ndarray) -> str:
    shapes = f"mean {mean.dtype}{list(mean.shape)}, covariance {list(covariance.shape)}"
    if {mean.dtype, covariance.dtype} != {np.dtype(np.float32)} or mean.ndim != 3 or not mean.size:
        return f"{shapes}; expected float32[H, W, C] and float32[H W C, H W C]"
    if covariance.shape != (mean.size, mean.size):
        return f"{shapes}; expected [{mean.size}, {mean.size}]"
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return "some values are not finite"
    variances = np.diag(covariance)
    if variances.min() < 0:
        return "a variance is negative"
    if np.abs(covariance - covariance.T).max() > _ROUNDING * variances.max():
        return "the covariance is not symmetric"
    return ""
