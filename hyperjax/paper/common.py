"""What the sections of several experiments share."""

from collections.abc import Sequence

import numpy as np

from hyperjax.analysis import statistics
from hyperjax.config import Config
from hyperjax.report import plots
from hyperjax.report.tables import Spread
from hyperjax.types import Array

HYPERREPS = {"lwln": "with LWLN", "no_lwln": "without LWLN"}
PARTS = {"train": "train members", "heldout": "held-out members"}


def spread(values: Array) -> Spread:
    """Mean and standard deviation of the values that are finite."""
    finite = np.asarray(values, np.float64)[np.isfinite(values)]
    if not len(finite):
        return Spread(float("nan"), float("nan"))
    return Spread(float(np.mean(finite)), float(np.std(finite)))


def percent(accuracy: np.ndarray) -> Spread:
    """The same in percent."""
    return Spread(*(100 * part for part in spread(accuracy)))


def band(x: Array, values: Sequence[Array], config: Config) -> plots.Series:
    """Means of the values f[N] at each x, with their 95 % bootstrap intervals."""
    resamples, seed = config.evaluation.bootstrap, config.seed
    all_of = [statistics.summarize(at, bootstrap=resamples, seed=seed) for at in values]
    low, high = (np.array([s.mean_ci[end] for s in all_of]) for end in (0, 1))
    return np.asarray(x), np.array([s.mean for s in all_of]), low, high
