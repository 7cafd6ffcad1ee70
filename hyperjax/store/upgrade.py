"""Configurations as older versions of HyperJAX wrote them.

A field that has been added since gets its default. What is here is the rest: fields that have
moved, and fields that are gone, whose value is now fixed.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from hyperjax.config import AugmentConfig, AutoencoderConfig, flat, nested
from hyperjax.errors import HyperJaxError

_PARTS = {
    field.name: field.default
    for field in dataclasses.fields(AutoencoderConfig)
    if dataclasses.is_dataclass(field.default)
}
_MOVED = {  # 0.1: the autoencoder's fields were not grouped
    f"autoencoder.{field.name}": f"autoencoder.{part}.{field.name}"
    for part, default in _PARTS.items()
    for field in dataclasses.fields(default)
} | {
    f"autoencoder.augment.{field.name}": f"autoencoder.data.augment.{field.name}"
    for field in dataclasses.fields(AugmentConfig)
} | {"zoo.members": "zoo.mapping", "evaluation.vae_kl": "autoencoder.loss.kl"}  # fmt: skip
_GONE = {
    "autoencoder.kl_warmup": 0,
    "autoencoder.augment.erase_scale": (0.02, 0.33),
    "zoo.max_abs_weight": 0.0,
    "samplers.neigh.cube": False,
    "evaluation.ensemble": "softmax",
}


def upgraded(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A stored configuration, or the part of it below `prefix` ("autoencoder."), with the fields
    that there are now. Raises HyperJaxError if it depends on one that is gone."""
    fields = {f"{prefix}{name}": value for name, value in flat(tree).items()}
    for name, fixed in _GONE.items():
        if fields.pop(name, fixed) != fixed:
            raise HyperJaxError(
                f"made by an older version with config field {name}, which is now always {fixed!r}"
            )
    if "autoencoder.kl" in fields:
        noise = fields.pop("autoencoder.kl")
        fields["autoencoder.variational"] = noise > 0
        if noise:
            fields["evaluation.vae_kl"] = noise
    twin = fields.pop("autoencoder.train_baseline", None)
    if twin is not None:
        fields["autoencoder.variants"] = ("lwln", "no_lwln") if twin else ()
    moved = {_MOVED.get(name, name): value for name, value in fields.items()}
    found = nested({name: value for name, value in moved.items() if name.startswith(prefix)})
    return found.get(prefix.removesuffix("."), {}) if prefix else found
