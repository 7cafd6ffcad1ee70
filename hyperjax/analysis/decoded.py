"""Figure 4 of the paper: every sampler as decoded, against training from scratch."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hyperjax.analysis import metrics, statistics
from hyperjax.analysis.comparisons import test_accuracy
from hyperjax.analysis.statistics import Comparison, Summary
from hyperjax.population.evaluation import Task
from hyperjax.zoo import Zoo


class Decoded(NamedTuple):
    """One population before any step of training."""

    accuracy: np.ndarray  # float32[M] on test images; NaN: weights that are not finite
    summary: Summary
    disagreement: float  # 0 for copies of one model
    novelty: float  # 0 for copies of train models, see `metrics.novelty`


class Fig4(NamedTuple):
    populations: dict[str, Decoded]
    scratch: np.ndarray  # float32[M]: B_T
    scratch_epoch: int  # epochs that B_T was trained
    comparisons: list[tuple[str, str, Comparison]]  # all pairs with B_T, Holm-corrected


def run(
    populations: Mapping[str, Zoo],
    scratch: Zoo,
    epoch: int,
    train_vectors: np.ndarray,
    task: Task,
    *,
    bootstrap: int,
    seed: int,
) -> Fig4:
    """Compare populations at epoch 0, and with models that were trained for `epoch` epochs.

    `train_vectors` float32[T, D] are the aligned train models that samples may replay. Copies
    of one network are no sample of a population, and are left out of the comparisons.
    """
    rows = {}
    for name, models in populations.items():
        vectors, accuracy = np.asarray(models.weights[:, 0]), test_accuracy(models, 0)
        rows[name] = Decoded(
            accuracy=accuracy,
            summary=statistics.summarize(accuracy, bootstrap=bootstrap, seed=seed),
            disagreement=metrics.disagreement(task, vectors),
            novelty=metrics.novelty(vectors, train_vectors),
        )
    trained = test_accuracy(scratch, epoch)
    samples = {name: row.accuracy for name, row in rows.items() if row.disagreement > 0}
    return Fig4(rows, trained, epoch, statistics.compare_all({"B_T": trained, **samples}))
