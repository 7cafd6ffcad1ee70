"""Models decoded from the latents of another data set's models (paper table 3)."""

from typing import NamedTuple

import numpy as np

from hyperjax import hyperrep
from hyperjax.analysis import ensembles
from hyperjax.analysis.ensembles import Ensembles
from hyperjax.hyperrep import HyperRep, losses
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.symmetry import alignment
from hyperjax.types import Array


class Conditioned(NamedTuple):
    """Models of an unseen zoo before and after the autoencoder; all on that zoo's test images."""

    original: np.ndarray  # float32[M]: accuracy of the unseen zoo's models
    decoded: np.ndarray  # float32[M]: of their reconstructions
    ensembles: np.ndarray  # float32[draws]: of ensembles of reconstructions
    ensemble_size: int
    control: np.ndarray  # float32[T]: of the autoencoder's own train members, reconstructed
    control_ensembles: np.ndarray  # float32[draws]
    r2: float  # of the reconstructions, 0: no better than the autoencoder's mean


def condition(
    model: HyperRep,
    unseen: Array,
    own: Array,
    task: Task,
    *,
    ensemble_size: int,
    draws: int,
    seed: int,
) -> Conditioned:
    """Encode and decode models float32[M, D] of a zoo that the autoencoder never saw.

    They are aligned to the autoencoder's reference first. `own` float32[T, D] are its train
    members, aligned: what their reconstructions reach on the unseen data set needs no
    conditioning at all. `task` is that of the unseen zoo's data set.
    """
    aligned = unseen
    if model.config.data.align:
        spec = task.engine.spec  # with the unseen networks' activation, hence their symmetries
        aligned = alignment.align(spec, unseen, np.asarray(model.reference))[0]
    decoded = hyperrep.reconstruct(model, aligned, aligned=True)
    stats = model.statistics
    r2 = losses.r_squared(model.spec, decoded, aligned, own.mean(0), np.asarray(stats.layer_std))[
        "all"
    ]

    size = min(ensemble_size, len(unseen), len(own))  # the same of both, which are compared

    def together(vectors: np.ndarray) -> Ensembles:
        return ensembles.of_population(task, task.test, vectors, (size,), draws, seed)

    mine, theirs = together(decoded), together(hyperrep.reconstruct(model, own, aligned=True))
    return Conditioned(
        original=evaluation.evaluate(task, unseen, task.test).accuracy,
        decoded=mine.single,
        ensembles=mine.accuracy[0],
        ensemble_size=size,
        control=theirs.single,
        control_ensembles=theirs.accuracy[0],
        r2=r2,
    )
