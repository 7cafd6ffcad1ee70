"""Members of the zoo over their training, in the neuron order that hyper-representations know."""

from collections.abc import Sequence

import numpy as np

from hyperjax import zoo
from hyperjax.app.train import Trained
from hyperjax.symmetry import alignment


def raw(trained: Trained, rows: np.ndarray, epochs: Sequence[int]) -> np.ndarray:
    """Weights float32[len(rows), len(epochs), D] of members as they were trained.

    Raises HyperJaxError for an epoch of which the zoo has no snapshot.
    """
    columns = zoo.snapshot_index(trained.zoo, epochs)
    return np.asarray(trained.zoo.weights[rows[:, None], columns[None]])


def aligned(trained: Trained, rows: np.ndarray, epochs: Sequence[int]) -> np.ndarray:
    """The same, aligned as the hyper-representation's own data: each member by the last epoch
    that the autoencoder sees, whatever the `epochs`."""
    seen, model = trained.config.autoencoder, next(iter(trained.hyperreps.values()))
    if not seen.align:
        return raw(trained, rows, epochs)
    vectors = raw(trained, rows, [*epochs, seen.epochs_seen[-1]])  # the last one decides
    return alignment.align_trajectories(trained.zoo.spec, vectors, model.reference)[:, :-1]
