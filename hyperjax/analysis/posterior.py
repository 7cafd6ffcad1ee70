"""What the latents of a variational autoencoder say of their networks (paper appendix E)."""

from typing import NamedTuple

import numpy as np

from hyperjax import hyperrep
from hyperjax.hyperrep import HyperRep
from hyperjax.types import Array, Key

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
