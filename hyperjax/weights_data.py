"""The weights that a hyper-representation learns from and is judged on."""

from typing import NamedTuple

import numpy as np

from hyperjax import alignment, symmetry, zoo
from hyperjax.config import Config
from hyperjax.types import Array
from hyperjax.weights import WeightSpec
from hyperjax.zoo import Split, Zoo


class WeightData(NamedTuple):
    """Aligned weights of the epochs that the autoencoder sees, by member.

    Each is float32[members, epochs, D]; `quality` float32[members, epochs] is the train
    members' accuracy on validation images, by which the best are chosen.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    quality: np.ndarray

    @property
    def train_vectors(self) -> np.ndarray:
        """All train samples, float32[N, D]."""
        return self.train.reshape(-1, self.train.shape[-1])


def split(config: Config, models: Zoo) -> Split:
    return zoo.split_members(models, config.zoo.split, config.seed, config.zoo.max_abs_weight)


def find_reference(config: Config, models: Zoo, parts: Split) -> np.ndarray:
    """The network that members are aligned to, float32[D], from train members alone."""
    column = zoo.snapshot_index(models, config.autoencoder.epochs_seen)[-1]
    last = np.asarray(models.weights[parts.train, column])
    if not config.autoencoder.align:
        return last[0]
    return alignment.find_reference(models.spec, last, seed=config.seed).reference


def load(config: Config, models: Zoo, parts: Split, reference: np.ndarray) -> WeightData:
    """Select epochs and align, each member by its last epoch, so that its trajectory stays one."""
    columns = zoo.snapshot_index(models, config.autoencoder.epochs_seen)

    def aligned(rows: np.ndarray) -> np.ndarray:
        vectors = models.weights[rows[:, None], columns[None]]
        return align(models.spec, vectors, reference) if config.autoencoder.align else vectors

    return WeightData(
        *(aligned(rows) for rows in parts),
        quality=models.metrics["val_accuracy"][parts.train[:, None], columns[None]],
    )


def align(spec: WeightSpec, trajectories: Array, reference: Array) -> np.ndarray:
    """Align trajectories float32[M, E, D] by their last snapshots."""
    _, transform = alignment.align(spec, trajectories[:, -1], reference)
    snapshots = range(trajectories.shape[1])
    return np.stack(
        [np.asarray(symmetry.apply(spec, transform, trajectories[:, e])) for e in snapshots], axis=1
    )
