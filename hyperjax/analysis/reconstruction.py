"""What passes through the autoencoder: members that it saw and others (paper figure 2), models of
another data set (table 3), and what the latents of a VAE say of their networks (appendix E)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from hyperjax import hyperrep
from hyperjax.analysis import ensembles, metrics
from hyperjax.analysis.ensembles import Ensembles
from hyperjax.hyperrep import HyperRep, losses
from hyperjax.hyperrep.weight_data import WeightData
from hyperjax.population import evaluation
from hyperjax.population.evaluation import Task
from hyperjax.symmetry import alignment
from hyperjax.types import Array, Key


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
    hyperreps: Mapping[str, HyperRep], data: WeightData, task: Task | None
) -> Reconstructions:
    """Reconstruct train and test members; the test split took no part in any choice. Without a
    task, accuracies and disagreement are NaN."""
    result = {}
    for part, members in (("train", data.train), ("heldout", data.test)):
        original, _ = _on_images(task, members[:, -1])
        for name, model in hyperreps.items():
            vectors = members.reshape(-1, members.shape[-1])
            outputs = hyperrep.reconstruct(model, vectors, aligned=True)
            mean, std = data.train_vectors.mean(0), np.asarray(model.statistics.layer_std)
            last = outputs.reshape(members.shape)[:, -1]
            accuracy, disagreement = _on_images(task, last)
            result[name, part] = Reconstruction(
                r2=losses.r_squared(model.spec, outputs, vectors, mean, std),
                original_accuracy=original,
                accuracy=accuracy,
                disagreement=disagreement,
                original=members[:, -1],
                reconstructed=last,
            )
    return result


def _on_images(task: Task | None, vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Test accuracy of networks, and how much they disagree; NaN without images."""
    if task is None:
        return np.full(len(vectors), np.nan, np.float32), float("nan")
    found = evaluation.evaluate(task, vectors, task.test)
    return found.accuracy, float(metrics.pairwise_disagreement(found.predictions))


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


INACTIVE = 0.01  # nats; a latent that says less of its network has collapsed to the prior


class Latents(NamedTuple):
    """What a VAE's latents say of the members of one split, over all epochs seen."""

    nats: np.ndarray  # float32[Z]: KL divergence of each latent, mean over networks
    inactive: float  # share of the latents below `INACTIVE`
    variance: float  # of all posteriors together, mean over active latents: 1 fits the prior
    loss: float  # reconstruction + KL penalty: up to a factor, the negative bound
    reconstruction: float


def latents(model: HyperRep, vectors: Array, key: Key) -> Latents:
    """Of aligned networks float32[N, D]; the key is that of the noise in the bound."""
    mean, log_variance = hyperrep.posterior(model, vectors, aligned=True)
    bound = hyperrep.bound(model, vectors, key)
    active = bound.nats >= INACTIVE
    # the variance of a mixture: that of its parts' means, and the mean of their variances
    variance = mean.var(axis=0) + np.exp(log_variance).mean(axis=0)
    return Latents(
        nats=bound.nats,
        inactive=float(np.mean(~active)),
        variance=float(variance[active].mean()) if active.any() else float("nan"),
        loss=bound.loss,
        reconstruction=bound.reconstruction,
    )
