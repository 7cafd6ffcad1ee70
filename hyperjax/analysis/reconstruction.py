"""What reconstruction keeps of weights and of accuracy, of members that the autoencoder saw and of
others (paper figure 2)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hyperjax import hyperrep
from hyperjax.analysis import metrics
from hyperjax.hyperrep import HyperRep, losses
from hyperjax.hyperrep.weight_data import WeightData
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task


class Reconstruction(NamedTuple):
    """Members of one split, before and after the autoencoder; accuracy on test images."""

    r2: dict[str, float]  # "all" and per layer, over all epochs seen
    original_accuracy: np.ndarray  # float32[M], last epoch seen
    accuracy: np.ndarray  # float32[M], reconstructed
    disagreement: float  # mean share of test images on which two reconstructions differ
    original: np.ndarray  # float32[M, D], last epoch seen
    reconstructed: np.ndarray  # float32[M, D]


Reconstructions = dict[tuple[str, str], Reconstruction]  # by (hyper-representation, split)


def reconstructions(
    hyperreps: Mapping[str, HyperRep], data: WeightData, task: Task
) -> Reconstructions:
    """Reconstruct train and test members; the test split took no part in any choice."""
    result = {}
    for part, members in (("train", data.train), ("heldout", data.test)):
        original = evaluation.evaluate(task, members[:, -1], task.test).accuracy
        for name, model in hyperreps.items():
            vectors = members.reshape(-1, members.shape[-1])
            outputs = hyperrep.reconstruct(model, vectors, aligned=True)
            mean, std = data.train_vectors.mean(0), np.asarray(model.statistics.layer_std)
            last = outputs.reshape(members.shape)[:, -1]
            measured = evaluation.evaluate(task, last, task.test)
            result[name, part] = Reconstruction(
                r2=losses.r_squared(model.spec, outputs, vectors, mean, std),
                original_accuracy=original,
                accuracy=measured.accuracy,
                disagreement=float(metrics.pairwise_disagreement(measured.predictions)),
                original=members[:, -1],
                reconstructed=last,
            )
    return result
