"""The weights that a hyper-representation learns from and is judged on."""

from typing import NamedTuple

import numpy as np

from hyperjax import zoo
from hyperjax.config import Config
from hyperjax.symmetry import alignment
from hyperjax.zoo import Split, Zoo

_CHUNK_BYTES = 2**26  # of trajectories that are aligned together
_REFERENCE_MEMBERS = 1000


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
    """The network that members are aligned to, float32[D], from train members alone.

    Of a large zoo a sample of them is enough: more would hardly move their mean, but take more
    time and memory.
    """
    column = zoo.snapshot_index(models, config.autoencoder.epochs_seen)[-1]
    rows = parts.train
    if not config.autoencoder.align:
        return np.array(models.weights[rows[0], column])
    if len(rows) > _REFERENCE_MEMBERS:
        chosen = np.random.default_rng(config.seed).choice(rows, _REFERENCE_MEMBERS, replace=False)
        rows = np.sort(chosen)
    last = models.weights[rows, column]
    return alignment.find_reference(models.spec, last, seed=config.seed).reference


def load(config: Config, models: Zoo, parts: Split, reference: np.ndarray) -> WeightData:
    """Select epochs and align, each member by its last epoch, so that its trajectory stays one.

    The zoo may be larger than memory: what is returned is the only copy that is made.
    """
    columns = zoo.snapshot_index(models, config.autoencoder.epochs_seen)

    def aligned(rows: np.ndarray) -> np.ndarray:
        vectors = models.weights[rows[:, None], columns[None]]
        if config.autoencoder.align:
            size = max(1, _CHUNK_BYTES // vectors[0].nbytes)
            for begin in range(0, len(rows), size):
                chunk = vectors[begin : begin + size]
                chunk[:] = alignment.align_trajectories(models.spec, chunk, reference)
        return vectors

    return WeightData(
        *(aligned(rows) for rows in parts),
        quality=models.metrics["val_accuracy"][parts.train[:, None], columns[None]],
    )
