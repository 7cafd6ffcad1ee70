"""The weights that a hyper-representation learns from and is judged on."""

from typing import NamedTuple

import numpy as np

from hyperjax import zoo
from hyperjax.config import WeightDataConfig
from hyperjax.symmetry import alignment
from hyperjax.zoo import Split, Zoo

_CHUNK_BYTES = 2**26  # of trajectories that are aligned together
_REFERENCE_MEMBERS = 1000


class WeightData(NamedTuple):
    """Aligned weights of the epochs that the autoencoder sees, by member.

    Each is float32[members, epochs, D]; `quality` float32[members, epochs] is the train
    members' accuracy on validation images, by which the best are chosen, NaN where unknown.
    """

    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    quality: np.ndarray

    @property
    def train_vectors(self) -> np.ndarray:
        """All train samples, float32[N, D]."""
        return self.train.reshape(-1, self.train.shape[-1])


def find_reference(config: WeightDataConfig, models: Zoo, parts: Split, seed: int) -> np.ndarray:
    """The network that members are aligned to, float32[D], from train members alone.

    Of a large zoo a sample of them is enough: more would hardly move their mean, but take more
    time and memory.
    """
    column = zoo.snapshot_index(models, config.epochs_seen)[-1]
    rows = parts.train
    if not config.align:
        return np.array(models.weights[rows[0], column])
    if len(rows) > _REFERENCE_MEMBERS:
        chosen = np.random.default_rng(seed).choice(rows, _REFERENCE_MEMBERS, replace=False)
        rows = np.sort(chosen)
    last = models.weights[rows, column]
    return alignment.find_reference(models.spec, last, seed=seed).reference


def load(config: WeightDataConfig, models: Zoo, parts: Split, reference: np.ndarray) -> WeightData:
    """Select epochs and align, each member by its last epoch, so that its trajectory stays one.

    The zoo may be larger than memory: what is returned is the only copy that is made.
    """
    columns = zoo.snapshot_index(models, config.epochs_seen)
    place = parts.train[:, None], columns[None]
    unknown = np.full((len(parts.train), len(columns)), np.nan, np.float32)
    accuracy = models.metrics.get("val_accuracy")
    quality = unknown if accuracy is None else np.asarray(accuracy[place])
    return WeightData(*(aligned(config, models, rows, reference) for rows in parts), quality)


def aligned(
    config: WeightDataConfig, models: Zoo, rows: np.ndarray, reference: np.ndarray
) -> np.ndarray:
    """A copy of what is seen of the members in `rows`, float32[len(rows), epochs, D], aligned if
    the configuration says so."""
    columns = zoo.snapshot_index(models, config.epochs_seen)
    vectors = models.weights[rows[:, None], columns[None]]
    if config.align and len(rows):
        size = max(1, _CHUNK_BYTES // vectors[0].nbytes)
        for begin in range(0, len(rows), size):
            chunk = vectors[begin : begin + size]
            chunk[:] = alignment.align_trajectories(models.spec, chunk, reference)
    return vectors
