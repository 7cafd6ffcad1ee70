"""The paper's appendix E: a variational autoencoder in place of the regularised autoencoder."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import numpy as np

from hyperjax import hyperrep
from hyperjax.analysis import decoded, reconstruction
from hyperjax.analysis.decoded import Fig4
from hyperjax.analysis.reconstruction import Fig2
from hyperjax.hyperrep import HyperRep
from hyperjax.hyperrep.weight_data import WeightData
from hyperjax.population.evaluation import Task
from hyperjax.types import Key
from hyperjax.zoo import Zoo

INACTIVE = 0.01  # nats; a latent that says less of its network has collapsed to the prior


class Latents(NamedTuple):
    """What a VAE's latents say of the members of one split, over all epochs seen."""

    nats: np.ndarray  # float32[Z]: KL divergence of each latent, mean over networks
    inactive: float  # share of the latents below `INACTIVE`
    variance: float  # of all posteriors together, mean over active latents: 1 fits the prior
    loss: float  # reconstruction + KL penalty: up to a factor, the negative bound
    reconstruction: float


class Vae(NamedTuple):
    reconstructions: Fig2  # of every hyper-representation, by (name, split)
    latents: dict[tuple[str, str], Latents]  # of those that are VAEs, by (name, split)
    populations: Fig4  # as decoded


def run(
    hyperreps: Mapping[str, HyperRep],
    data: WeightData,
    populations: Mapping[str, Zoo],
    scratch: Zoo,
    epoch: int,
    task: Task,
    key: Key,
    *,
    bootstrap: int,
    seed: int,
) -> Vae:
    """Compare hyper-representations by what they reconstruct, and by populations as decoded.

    `scratch` are models trained from scratch, compared after `epoch` epochs. The key is that of
    the noise in the bounds; `bootstrap` resamples, by the seed, give the intervals.
    """
    latents = {
        (name, part): _latents(model, members.reshape(-1, members.shape[-1]), part_key)
        for name, model in hyperreps.items()
        if model.config.kl
        for part, members, part_key in zip(
            ("train", "heldout"), (data.train, data.test), jax.random.split(key), strict=True
        )
    }
    return Vae(
        reconstruction.run(hyperreps, data, task),
        latents,
        decoded.run(
            populations, scratch, epoch, data.train[:, -1], task, bootstrap=bootstrap, seed=seed
        ),
    )


def _latents(model: HyperRep, vectors: np.ndarray, key: Key) -> Latents:
    mean, log_variance = hyperrep.posterior(model, vectors)
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
