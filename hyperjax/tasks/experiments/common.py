"""What the sections of several experiments share."""

import numpy as np

from hyperjax.io.tables import Spread

HYPERREPS = {"lwln": "with LWLN", "no_lwln": "without LWLN"}
PARTS = {"train": "train members", "heldout": "held-out members"}


def percent(accuracy: np.ndarray) -> Spread:
    """Mean and standard deviation, in percent, of the values that are finite."""
    finite = np.asarray(accuracy, np.float64)[np.isfinite(accuracy)]
    if not len(finite):
        return Spread(float("nan"), float("nan"))
    return Spread(100 * float(np.mean(finite)), 100 * float(np.std(finite)))
