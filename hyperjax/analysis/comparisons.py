"""Populations against each other: as decoded (paper figure 4), while they are fine-tuned (table 1),
and member by member (figure 6). Copies of one network are no sample of a population: they are in no
comparison."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hyperjax.analysis import metrics, statistics
from hyperjax.analysis.statistics import Comparison, Summary
from hyperjax.population.evaluation import Task
from hyperjax.symmetry import nearest
from hyperjax.symmetry.nearest import TrainModels
from hyperjax.types import Array, Key
from hyperjax.zoo import Zoo, test_accuracy

Pairs = list[tuple[str, str, Comparison]]


class Decoded(NamedTuple):
    """One population before any step of training."""

    accuracy: np.ndarray  # float32[M] on test images; NaN: weights that are not finite
    summary: Summary
    disagreement: float  # 0 for copies of one model
    novelty: float  # 0 for copies of train models, see `nearest.novelty`


class AsDecoded(NamedTuple):
    populations: dict[str, Decoded]
    scratch: np.ndarray  # float32[M]: B_T
    scratch_epoch: int  # epochs that B_T was trained
    comparisons: Pairs  # all pairs with B_T, Holm-corrected


class Tuned(NamedTuple):
    """One population at several epochs of fine-tuning."""

    accuracy: dict[int, np.ndarray]  # float32[M] on test images, by epoch; NaN: diverged
    summary: dict[int, Summary]
    disagreement: float  # at the first epoch: 0 for copies of one model


class OverEpochs(NamedTuple):
    populations: dict[str, Tuned]
    comparisons: dict[int, Pairs]  # by epoch, Holm-corrected


def as_decoded(
    populations: Mapping[str, Zoo],
    scratch: Zoo,
    epoch: int,
    train: TrainModels,
    task: Task,
    *,
    bootstrap: int,
    seed: int,
) -> AsDecoded:
    """Compare populations at epoch 0, and with models that were trained for `epoch` epochs."""
    rows = {}
    for name, models in populations.items():
        vectors, accuracy = np.asarray(models.weights[:, 0]), test_accuracy(models, 0)
        far = nearest.novelty(train, vectors)
        rows[name] = Decoded(
            accuracy=accuracy,
            summary=statistics.summarize(accuracy, bootstrap=bootstrap, seed=seed),
            disagreement=metrics.disagreement(task, vectors),
            novelty=float(np.nanmean(far)) if np.isfinite(far).any() else float("nan"),
        )
    trained = test_accuracy(scratch, epoch)
    samples = {name: row.accuracy for name, row in rows.items() if row.disagreement > 0}
    return AsDecoded(rows, trained, epoch, statistics.compare_all({"B_T": trained, **samples}))


def over_epochs(
    populations: Mapping[str, Zoo], epochs: Sequence[int], task: Task, *, bootstrap: int, seed: int
) -> OverEpochs:
    """Summarise and compare populations at those of `epochs` that they have."""
    rows = {
        name: Tuned(
            *at_epochs(models, epochs, bootstrap=bootstrap, seed=seed),
            metrics.disagreement(task, np.asarray(models.weights[:, 0])),
        )
        for name, models in populations.items()
    }
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
    return OverEpochs(rows, comparisons)


def at_epochs(
    models: Zoo, epochs: Sequence[int], *, bootstrap: int, seed: int
) -> tuple[dict[int, np.ndarray], dict[int, Summary]]:
    """Test accuracy, and its summary, at those of `epochs` that a population has."""
    accuracy = {int(e): test_accuracy(models, e) for e in epochs if e in models.epochs}
    summary = {
        epoch: statistics.summarize(values, bootstrap=bootstrap, seed=seed)
        for epoch, values in accuracy.items()
    }
    return accuracy, summary


ORIGINAL, RECONSTRUCTED, NOISY = "original", "reconstructed", "original + noise"


class Convergence(NamedTuple):
    """Populations of the same M members, by name; E epochs of fine-tuning."""

    epochs: np.ndarray  # int32[E]
    accuracy: dict[str, np.ndarray]  # float32[E, M] on test images
    distance: dict[str, np.ndarray]  # float32[E, M]: Euclidean, to the original at that epoch
    cosine: dict[str, np.ndarray]  # float32[E, M]: cosine of the angle to the original then


def with_noise(vectors: Array, reconstructed: Array, key: Key) -> np.ndarray:
    """Originals float32[M, D], as far from themselves as their reconstructions, but in random
    directions: tells what a reconstruction's direction is worth."""
    noise = np.asarray(jax.random.normal(key, vectors.shape))
    size = np.linalg.norm(reconstructed - vectors, axis=1, keepdims=True)
    return vectors + noise * size / np.linalg.norm(noise, axis=1, keepdims=True)


def convergence(populations: dict[str, Zoo]) -> Convergence:
    """Compare populations of the same members, fine-tuned with the same order of images.

    `populations` has ORIGINAL, and others whose member i started near original i.
    """
    original = populations[ORIGINAL]
    accuracy, distance, cosine = {}, {}, {}
    for name, models in populations.items():
        accuracy[name] = np.stack([test_accuracy(models, epoch) for epoch in models.epochs])
        if name != ORIGINAL:
            pairs = np.asarray(original.weights, np.float64), np.asarray(models.weights, np.float64)
            norms = [np.linalg.norm(weights, axis=2) for weights in pairs]
            distance[name] = np.linalg.norm(pairs[0] - pairs[1], axis=2).T
            cosine[name] = (np.sum(pairs[0] * pairs[1], axis=2) / (norms[0] * norms[1])).T
    return Convergence(np.asarray(original.epochs), accuracy, distance, cosine)
