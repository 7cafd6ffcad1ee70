"""What no single field of a configuration can say: rules of `hyperjax.config.Config`."""

import math
from typing import Any

from hyperjax.errors import HyperJaxError, unknown

VARIANTS = ("lwln", "no_lwln", "vae")


def check_zoo(config: Any) -> None:
    zoo, seen = config.zoo, config.autoencoder.data.epochs_seen
    if len(zoo.split) != 3 or not min(zoo.split) > 0 or not abs(sum(zoo.split) - 1) < 1e-6:
        raise HyperJaxError(
            f"config field zoo.split: got {zoo.split}, expected three shares that sum to 1"
        )
    if not zoo.path and not config.dataset:
        raise HyperJaxError("config field dataset: to train a zoo, images are needed; name them")
    if zoo.path and zoo.repair:
        raise HyperJaxError(
            "config field zoo.repair: a zoo that was trained elsewhere cannot be trained again; "
            "delete the workdir's zoo to bring it anew"
        )
    if not zoo.path and not zoo.model:
        raise HyperJaxError("config field zoo.model: to train a zoo, name its architecture")
    if zoo.save_moments and not zoo.path and zoo.training.optimizer == "sgd":
        raise HyperJaxError(
            "config field zoo.save_moments: sgd has no second moments; expected "
            "zoo.training.optimizer adam or adamw"
        )
    for field, epochs in (
        ("zoo.snapshots", zoo.snapshots),
        ("autoencoder.data.epochs_seen", seen),
        ("evaluation.epochs", config.evaluation.epochs),
    ):
        if list(epochs) != sorted(set(epochs)) or min(epochs, default=0) < 0:
            raise HyperJaxError(f"config field {field}: got {epochs}, expected rising epochs")
    if zoo.path:  # whose snapshots are those that it has
        return
    if zoo.snapshots and (set(seen) - set(zoo.snapshots) or max(zoo.snapshots) != zoo.epochs):
        raise HyperJaxError(
            "config field zoo.snapshots: must hold autoencoder.data.epochs_seen and end with "
            f"zoo.epochs = {zoo.epochs}"
        )
    if not seen or seen[-1] > zoo.epochs:
        raise HyperJaxError(
            f"config field autoencoder.data.epochs_seen: got {seen}, "
            f"expected epochs between 0 and zoo.epochs = {zoo.epochs}"
        )


def check_autoencoder(config: Any) -> None:
    c = config.autoencoder
    if c.architecture.dim % c.architecture.heads:
        raise HyperJaxError(
            "config field autoencoder.architecture.dim: must be a multiple of its heads"
        )
    if c.architecture.variational and c.architecture.tanh:
        raise HyperJaxError(
            "config field autoencoder.architecture.variational: the latents of a variational "
            "autoencoder cannot be bounded, its prior is N(0, 1); expected tanh=False"
        )
    if 0 < c.architecture.dropout < 1 / 256:
        raise HyperJaxError(
            f"config field autoencoder.architecture.dropout: got {c.architecture.dropout}, "
            "expected 0 or at least 1/256, the steps in which values are dropped"
        )
    for name in c.variants:
        if name not in VARIANTS:
            raise unknown("value of config field autoencoder.variants", name, VARIANTS)


def check_asked(c: Any) -> None:
    """Of an autoencoder that is going to be trained: finished workdirs may have what is refused
    here, which was not always.

    Raises HyperJaxError.
    """
    if c.data.augment.mix and not c.data.align:
        raise HyperJaxError(
            "config field autoencoder.data.augment.mix: means of networks that are not aligned are "
            "no networks; expected 0, or autoencoder.data.align=True"
        )
    if c.micro_batch and draws(c.architecture):
        raise HyperJaxError(
            f"config field autoencoder.micro_batch: got {c.micro_batch}, expected 0: the random "
            "numbers of dropout and of a variational autoencoder are those of a whole batch"
        )


def draws(architecture: Any) -> bool:
    """Whether an autoencoder draws random numbers itself."""
    dropped = architecture.network == "tokens" and architecture.dropout > 0
    return architecture.variational or dropped


def check_denoiser(config: Any) -> None:
    for name, graph in (
        ("denoiser.graph", config.denoiser.graph),
        ("autoencoder.architecture.graph", config.autoencoder.architecture.graph),
    ):
        if graph.node_dim % graph.heads:
            raise HyperJaxError(f"config field {name}.node_dim: must be a multiple of its heads")
    for name, levels in (
        ("denoiser", config.denoiser),
        ("samplers.diffusion", config.samplers.diffusion),
    ):
        if not levels.sigma_min < levels.sigma_max:
            raise HyperJaxError(
                f"config field {name}.sigma_min: got {levels.sigma_min}, expected less than "
                f"sigma_max = {levels.sigma_max}"
            )


def check_evaluation(evaluation: Any) -> None:
    if 0 not in evaluation.epochs:
        raise HyperJaxError(
            "config field evaluation.epochs: must contain 0, the samples as decoded"
        )
    if min(evaluation.ensemble_sizes, default=0) < 1:
        raise HyperJaxError("config field evaluation.ensemble_sizes: expected numbers of models")
    levels = evaluation.noise_levels
    if levels[:1] != (0,) or list(levels) != sorted(set(levels)) or not levels[-1] < math.inf:
        raise HyperJaxError(
            f"config field evaluation.noise_levels: got {levels}, expected rising levels from 0"
        )
