"""Table 1 of the paper: populations at epoch 0 (as decoded) and while they are fine-tuned."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from hyperjax.analysis import metrics, statistics
from hyperjax.analysis.statistics import Comparison, Summary
from hyperjax.population.evaluation import Task
from hyperjax.zoo import Zoo, snapshot_index


class Population(NamedTuple):
    """One row of the table."""

    accuracy: dict[int, np.ndarray]  # float32[M] on test images, by epoch; NaN: diverged
    summary: dict[int, Summary]
    disagreement: float  # at the first epoch: 0 for copies of one model


class Tab1(NamedTuple):
    populations: dict[str, Population]
    comparisons: dict[int, list[tuple[str, str, Comparison]]]  # by epoch, Holm-corrected


def run(
    populations: Mapping[str, Zoo],
    epochs: Sequence[int],
    task: Task,
    *,
    bootstrap: int,
    seed: int,
) -> Tab1:
    """Summarise and compare populations at those of `epochs` that they have.

    Copies of one network (no disagreement at epoch 0) are no sample of a population, and are
    left out of the comparisons at epoch 0.
    """
    rows = {}
    for name, models in populations.items():
        accuracy = {
            int(epoch): test_accuracy(models, epoch) for epoch in epochs if epoch in models.epochs
        }
        rows[name] = Population(
            accuracy=accuracy,
            summary={
                epoch: statistics.summarize(values, bootstrap=bootstrap, seed=seed)
                for epoch, values in accuracy.items()
            },
            disagreement=metrics.disagreement(task, np.asarray(models.weights[:, 0])),
        )
    comparisons = {
        epoch: statistics.compare_all(
            {
                name: row.accuracy[epoch]
                for name, row in rows.items()
                if epoch in row.accuracy and (epoch or row.disagreement > 0)
            }
        )
        for epoch in sorted({epoch for row in rows.values() for epoch in row.accuracy})
    }
    return Tab1(rows, comparisons)


def test_accuracy(models: Zoo, epoch: int) -> np.ndarray:
    """Test accuracy float32[M] after an epoch, NaN for members that have diverged."""
    column = snapshot_index(models, [epoch])[0]
    finite = np.isfinite(models.weights[:, column]).all(axis=1)
    return np.where(finite, models.metrics["test_accuracy"][:, column], np.nan)
