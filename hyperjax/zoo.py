"""A model zoo: a population's weights and metrics over its training, as arrays.

Populations decoded by a sampler have the same type, so that everything downstream treats
trained and generated models alike.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from hyperjax.errors import HyperJaxError
from hyperjax.weights import WeightSpec

METRICS = tuple(
    f"{split}_{name}" for split in ("train", "val", "test") for name in ("loss", "accuracy")
)


@dataclasses.dataclass(frozen=True)
class Zoo:
    """Struct of arrays over M members and E snapshots.

    Attributes:
      spec: layout of the flat vectors.
      weights: float32[M, E, D]; may be memory-mapped.
      epochs: int32[E], increasing: the epochs at which snapshots were taken (0: initial).
      members: int64[M]: the members' ids, their seeds.
      metrics: {name: float32[M, E]}; train metrics are running means over an epoch.
      info: data set, hyper-parameters, versions; anything JSON can hold.
    """

    spec: WeightSpec
    weights: np.ndarray
    epochs: np.ndarray
    members: np.ndarray
    metrics: dict[str, np.ndarray]
    info: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        shape = (len(self.members), len(self.epochs), self.spec.num_params)
        if self.weights.shape != shape:
            raise HyperJaxError(f"zoo weights have shape {self.weights.shape}, expected {shape}")
        if 0 in shape[:2]:
            raise HyperJaxError("the zoo is empty: expected at least one member and one snapshot")
        for name, values in self.metrics.items():
            if values.shape != shape[:2]:
                raise HyperJaxError(
                    f"zoo metric {name!r} has shape {values.shape}, expected {shape[:2]}"
                )


class Split(NamedTuple):
    """Rows of a zoo, by member: int64 arrays."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def snapshot_index(zoo: Zoo, epochs) -> np.ndarray:
    """Columns of `epochs`. Raises HyperJaxError for an epoch without a snapshot."""
    missing = sorted(set(np.asarray(epochs).tolist()) - set(zoo.epochs.tolist()))
    if missing:
        raise HyperJaxError(
            f"the zoo has no snapshot of epochs {missing}; it has {zoo.epochs.tolist()}"
        )
    return np.searchsorted(zoo.epochs, epochs)


def valid_members(zoo: Zoo, max_abs_weight: float = 0.0) -> np.ndarray:
    """Which members never diverged, bool[M]: all weights finite and none beyond the threshold.

    A threshold of 0 is none.
    """
    largest = float(np.finfo(np.float32).max)  # infinite weights are never valid
    limit = min(max_abs_weight or largest, largest)
    return np.array([bool(np.all(np.abs(member) <= limit)) for member in zoo.weights])


def split_members(zoo: Zoo, shares, seed: int, max_abs_weight: float = 0.0) -> Split:
    """Split the valid members by model; every part gets at least one.

    Depends on the members' ids and the seed, not on their order in memory.
    """
    rows = np.flatnonzero(valid_members(zoo, max_abs_weight))
    if len(rows) < 3:
        raise HyperJaxError(
            f"the zoo has {len(rows)} usable members of {len(zoo.members)}; a train, validation "
            "and test split needs at least 3 whose weights are finite and within "
            f"zoo.max_abs_weight = {max_abs_weight}"
        )
    rows = rows[np.argsort(zoo.members[rows], kind="stable")]
    rows = np.random.default_rng(seed).permutation(rows)
    val = min(max(1, round(shares[1] * len(rows))), len(rows) - 2)
    test = min(max(1, round(shares[2] * len(rows))), len(rows) - val - 1)
    train = len(rows) - val - test
    return Split(*(np.sort(part) for part in np.split(rows, [train, train + val])))


def init_correlation(zoo: Zoo) -> dict[str, float]:
    """Per layer, correlation of the last snapshot with the initial weights, over all members.

    Near 1: the weights are mostly initialisation noise, and an autoencoder has nothing to
    learn from them. NaN for a layer whose weights do not vary. Needs a snapshot of epoch 0.
    """
    first = snapshot_index(zoo, [0])[0]
    sums = np.zeros((6, zoo.spec.num_params))
    for member in zoo.weights:  # one at a time: a zoo may be larger than memory
        pair = np.asarray(member[[first, -1]], np.float64)
        finite = np.isfinite(pair).all(axis=0)
        x, y = np.where(finite, pair, 0)
        sums += (finite, x, y, x * x, y * y, x * y)
    correlations = {}
    for name, part in zip(zoo.spec.names, zoo.spec.slices, strict=True):
        n, x, y, xx, yy, xy = sums[:, part].sum(axis=1)
        variances = (n * xx - x * x) * (n * yy - y * y)
        varies = variances > 0
        correlations[name] = float((n * xy - x * y) / np.sqrt(variances)) if varies else math.nan
    return correlations
