"""A model zoo: a population's weights and metrics over its training, as arrays.

Populations decoded by a sampler have the same type, so that everything downstream treats
trained and generated models alike.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from hyperjax.errors import HyperJaxError, unknown
from hyperjax.weights import WeightSpec

METRICS = tuple(
    f"{split}_{name}" for split in ("train", "val", "test") for name in ("loss", "accuracy")
)


class Split(NamedTuple):
    """Rows of a zoo, by member: int64 arrays."""

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Zoo:
    """Struct of arrays over M members and E snapshots.

    Attributes:
      spec: layout of the flat vectors.
      weights: float32[M, E, D]; may be memory-mapped.
      epochs: int32[E], increasing: the epochs at which snapshots were taken (0: initial).
      members: int64[M]: the members' ids, their seeds.
      metrics: {name: float32[M, E]}; train metrics are running means over an epoch.
      info: data set, hyper-parameters, versions; anything JSON can hold.
      latents: float32[M, Z], of members that were decoded from them; None: of no others.
      split: which members train, validate and test; None: nobody has said.
      second_moments: float32[M, E, D], Adam's: running means of the squared gradient of each
        weight, as PyTorch's exp_avg_sq not yet divided by 1 - beta2^steps; zero for running
        statistics. None: nobody has kept them.
    """

    spec: WeightSpec
    weights: np.ndarray
    epochs: np.ndarray
    members: np.ndarray
    metrics: dict[str, np.ndarray]
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    latents: np.ndarray | None = None
    split: Split | None = None
    second_moments: np.ndarray | None = None

    def __post_init__(self):
        shape = (len(self.members), len(self.epochs), self.spec.num_params)
        if self.weights.shape != shape:
            raise HyperJaxError(f"zoo weights have shape {self.weights.shape}, expected {shape}")
        if self.second_moments is not None and self.second_moments.shape != shape:
            raise HyperJaxError(
                f"zoo second moments have shape {self.second_moments.shape}, expected {shape}"
            )
        if 0 in shape[:2]:
            raise HyperJaxError("the zoo is empty: expected at least one member and one snapshot")
        for name, values in self.metrics.items():
            if values.shape != shape[:2]:
                raise HyperJaxError(
                    f"zoo metric {name!r} has shape {values.shape}, expected {shape[:2]}"
                )
        if self.latents is not None and self.latents.shape[:1] != shape[:1]:
            raise HyperJaxError(
                f"zoo latents have shape {self.latents.shape}, expected {shape[0]} rows"
            )

    def select(self, part: Any = None, *, epoch: int | Sequence[int] | None = None) -> "Zoo":
        """Some members, at some snapshots, in memory.

        Args:
          part: "train", "val" or "test" of the zoo's split, or rows int[K]; None: all.
          epoch: of one or more snapshots, in whatever order; None: all.

        Raises HyperJaxError for an epoch without a snapshot, and for a part that is not known.

        >>> zoo.select([0, 1], epoch=3).weights.shape
        (2, 1, 2464)
        """
        rows, split = np.arange(len(self.members)), None
        if isinstance(part, str):
            if self.split is None or part not in Split._fields:
                known = Split._fields if self.split else ("rows: the zoo has no split",)
                raise unknown("part of a zoo", part, known)
            rows = getattr(self.split, part)
        elif part is not None:
            rows = np.asarray(part)
        else:
            split = self.split
        epochs = self.epochs if epoch is None else np.unique(epoch)
        columns, moments = snapshot_index(self, epochs), self.second_moments
        return dataclasses.replace(
            self,
            weights=np.asarray(self.weights[rows[:, None], columns[None]]),
            epochs=np.asarray(self.epochs)[columns],
            members=np.asarray(self.members)[rows],
            metrics={
                name: np.asarray(values[rows[:, None], columns[None]])
                for name, values in self.metrics.items()
            },
            latents=None if self.latents is None else np.asarray(self.latents)[rows],
            split=split,
            second_moments=None if moments is None else moments[rows[:, None], columns[None]],
        )


def concatenate(one: Zoo, other: Zoo) -> Zoo:
    """The members of two zoos of the same spec and epochs, in memory, with the metrics that both
    have; without split or second moments.

    Raises HyperJaxError if they differ.
    """
    if one.spec != other.spec or not np.array_equal(one.epochs, other.epochs):
        raise HyperJaxError(
            f"two zoos of one architecture with the same snapshots were expected, got snapshots "
            f"{one.epochs.tolist()} and {other.epochs.tolist()}, {one.spec.num_params} and "
            f"{other.spec.num_params} weights"
        )
    weights = np.concatenate([one.weights, other.weights])
    members = np.concatenate([one.members, other.members])
    metrics = {
        name: np.concatenate([one.metrics[name], other.metrics[name]])
        for name in one.metrics
        if name in other.metrics
    }
    return Zoo(one.spec, weights, np.asarray(one.epochs), members, metrics)


def snapshot_index(zoo: Zoo, epochs) -> np.ndarray:
    """Columns of `epochs`. Raises HyperJaxError for an epoch without a snapshot, and if the zoo's
    do not rise."""
    there = np.asarray(zoo.epochs).tolist()
    if there != sorted(set(there)):
        raise HyperJaxError(f"the zoo's epochs are {there}; expected them to rise")
    missing = sorted(set(np.asarray(epochs).tolist()) - set(there))
    if missing:
        raise HyperJaxError(f"the zoo has no snapshot of epochs {missing}; it has {there}")
    return np.searchsorted(zoo.epochs, epochs)


def test_accuracy(zoo: Zoo, epoch: int) -> np.ndarray:
    """Test accuracy float32[M] after an epoch, NaN for members that have diverged, or of which it
    was not measured."""
    column = snapshot_index(zoo, [epoch])[0]
    finite = np.isfinite(zoo.weights[:, column]).all(axis=1)
    measured = zoo.metrics.get("test_accuracy")
    return np.where(finite, np.nan if measured is None else measured[:, column], np.nan)


def valid_members(zoo: Zoo) -> np.ndarray:
    """Which members never diverged, bool[M]: all weights finite."""
    return np.array([bool(np.isfinite(member).all()) for member in zoo.weights])


def split_members(zoo: Zoo, shares, seed: int) -> Split:
    """Split the valid members by model; every part gets at least one.

    Depends on the members' ids and the seed, not on their order in memory.
    """
    rows = np.flatnonzero(valid_members(zoo))
    if len(rows) < 3:
        raise HyperJaxError(
            f"the zoo has {len(rows)} usable members of {len(zoo.members)}; a train, validation "
            "and test split needs at least 3 whose weights are finite"
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
