"""Table 3 of the paper: models decoded from the latents of another data set's models."""

from typing import NamedTuple

import numpy as np

from hyperjax import hyperrep
from hyperjax.analysis import ensembles
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


def run(
    model: HyperRep,
    unseen: Array,
    own: Array,
    task: Task,
    *,
    ensemble_size: int,
    draws: int,
    how: str,
    seed: int,
) -> Conditioned:
    """Encode and decode models float32[M, D] of a zoo that the autoencoder never saw.

    They are aligned to the autoencoder's reference first. `own` float32[T, D] are its train
    members, aligned: what their reconstructions reach on the unseen data set needs no
    conditioning at all. `task` is that of the unseen zoo's data set.
    """
    aligned = unseen
    if model.config.align:
        spec = task.engine.spec  # with the unseen networks' activation, hence their symmetries
        aligned = alignment.align_trajectories(spec, unseen[:, None], model.reference)[:, 0]
    decoded = hyperrep.reconstruct(model, aligned)
    stats = model.statistics
    r2 = losses.r_squared(model.spec, decoded, aligned, own.mean(0), stats.layer_std)["all"]

    size = min(ensemble_size, len(unseen), len(own))  # the same of both, which are compared

    def combined(vectors: np.ndarray) -> ensembles.Ensembles:
        return ensembles.of_population(task, task.test, vectors, (size,), draws, how, seed)

    mine, theirs = combined(decoded), combined(hyperrep.reconstruct(model, own))
    return Conditioned(
        original=evaluation.evaluate(task, unseen, task.test).accuracy,
        decoded=mine.single,
        ensembles=mine.accuracy[0],
        ensemble_size=size,
        control=theirs.single,
        control_ensembles=theirs.accuracy[0],
        r2=r2,
    )
