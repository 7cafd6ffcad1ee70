"""Table 1 of the paper: populations at epoch 0 (as decoded) and while they are fine-tuned."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hyperjax import lab, metrics, stats
from hyperjax.lab import Lab
from hyperjax.stats import Comparison, Summary
from hyperjax.zoo import Zoo, snapshot_index


class Population(NamedTuple):
    """One row of the table."""

    accuracy: dict[int, np.ndarray]  # float32[M] on test images, by epoch; NaN: diverged
    summary: dict[int, Summary]
    disagreement: float  # at the first epoch: 0 for copies of one model
    novelty: float  # at the first epoch: 0 for copies of train models, see `novelty`


class Tab1(NamedTuple):
    populations: dict[str, Population]
    comparisons: dict[int, list[tuple[str, str, Comparison]]]  # by epoch, Holm-corrected


def run(
    populations: Mapping[str, Zoo],
    train_vectors: np.ndarray,
    lab_: Lab,
    *,
    bootstrap: int,
    seed: int,
) -> Tab1:
    """Summarise and compare populations at every epoch that they have.

    `train_vectors` float32[T, D] are the aligned train models that samples may replay. Copies
    of one network (no disagreement at epoch 0) are no sample of a population, and are left out
    of the comparisons at epoch 0.
    """
    rows = {}
    for name, models in populations.items():
        accuracy = {int(epoch): _accuracy(models, epoch) for epoch in models.epochs}
        rows[name] = Population(
            accuracy=accuracy,
            summary={
                epoch: stats.summarize(values, bootstrap=bootstrap, seed=seed)
                for epoch, values in accuracy.items()
            },
            disagreement=disagreement(np.asarray(models.weights[:, 0]), lab_),
            novelty=novelty(np.asarray(models.weights[:, 0]), train_vectors)
            if models.info["kind"] == "population"  # zoo members are not aligned here
            else float("nan"),
        )
    epochs = sorted({epoch for row in rows.values() for epoch in row.accuracy})
    comparisons = {
        epoch: stats.compare_all(
            {
                name: row.accuracy[epoch]
                for name, row in rows.items()
                if epoch in row.accuracy and (epoch or row.disagreement > 0)
            }
        )
        for epoch in epochs
    }
    return Tab1(rows, comparisons)


def disagreement(vectors: np.ndarray, lab_: Lab) -> float:
    """Mean share of test images on which two models of float32[M, D] differ; NaN for M = 1."""
    finite = vectors[np.isfinite(vectors).all(axis=1)]
    if len(finite) < 2:
        return float("nan")
    predictions = lab.evaluate(lab_, finite, lab_.test).predictions
    return float(metrics.pairwise_disagreement(predictions))


def novelty(vectors: np.ndarray, train_vectors: np.ndarray) -> float:
    """Mean distance of models float32[M, D] to their nearest train model, in units of the mean
    distance of train models to their nearest other: 0 replays, 1 is as far as another member.

    Both must be aligned to one reference.
    """
    finite = vectors[np.isfinite(vectors).all(axis=1)]
    if len(train_vectors) < 2 or not len(finite):
        return float("nan")
    among = metrics.nearest_distance(train_vectors, train_vectors, exclude_self=True)
    return float(np.mean(metrics.nearest_distance(finite, train_vectors)) / np.mean(among))


def _accuracy(models: Zoo, epoch: int) -> np.ndarray:
    """Test accuracy, NaN for members that have diverged."""
    column = snapshot_index(models, [epoch])[0]
    finite = np.isfinite(models.weights[:, column]).all(axis=1)
    return np.where(finite, models.metrics["test_accuracy"][:, column], np.nan)
