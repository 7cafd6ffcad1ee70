"""Ensembles of the models of a population (paper figure 5)."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from hyperjax.analysis import metrics
from hyperjax.errors import HyperJaxError
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.types import Array, Images


class Ensembles(NamedTuple):
    """Ensembles of one population."""

    single: np.ndarray  # float32[M]: test accuracy of its models
    sizes: np.ndarray  # int32[S]: models in an ensemble
    accuracy: np.ndarray  # float32[S, draws]: of ensembles of randomly chosen models


def ensembles(
    populations: Mapping[str, Array],
    task: Task,
    *,
    sizes: Sequence[int],
    draws: int,
    seed: int,
) -> dict[str, Ensembles]:
    """Ensembles of the networks float32[M, D] of each population, on test images.

    An ensemble has distinct models. Sizes that a population does not have are left out, as are
    networks that are not finite.
    """
    return {
        name: of_population(task, task.test, vectors, sizes, draws, seed)
        for name, vectors in populations.items()
    }


def of_population(
    task: Task,
    images: Images,
    vectors: Array,
    sizes: Sequence[int],
    draws: int,
    seed: int,
) -> Ensembles:
    """`draws` random ensembles of every size of the networks float32[M, D]."""
    vectors = vectors[np.isfinite(vectors).all(axis=1)]
    if not len(vectors):
        raise HyperJaxError("no model of the population is finite: there is no ensemble")
    probabilities = jax.nn.softmax(evaluation.logits(task, vectors, images))
    labels = np.asarray(images.labels)
    count, rng = len(vectors), np.random.default_rng(seed)
    possible = np.array([size for size in sizes if size <= count], np.int32)
    ranks = rng.permuted(np.tile(np.arange(count), (draws, 1)), axis=1)
    # The first models of one random order: larger ensembles of a draw contain its smaller ones.
    members = (ranks[None] < possible[:, None, None]).reshape(-1, count)
    accuracy = np.asarray(metrics.ensemble_accuracy(probabilities, labels, members))
    single = np.asarray(metrics.ensemble_accuracy(probabilities, labels, np.eye(count, dtype=bool)))
    return Ensembles(single, possible, accuracy.reshape(len(possible), draws))
