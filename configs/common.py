"""What the configurations share: the autoencoders of two scales, and a scale for tests.

A configuration has `get_config(scale)`; what stands after the colon on the command line is the
scale, `--config=configs/mnist.py:small`. Any field can be overridden, `--config.zoo.epochs=10`.
"""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from hyperjax.config import (
    ArchitectureConfig,
    AugmentConfig,
    AutoencoderConfig,
    Config,
    DenoiserConfig,
    DiffusionConfig,
    EvaluationConfig,
    GanConfig,
    GraphConfig,
    LossConfig,
    OptimizationConfig,
    SamplersConfig,
    TrainingConfig,
    WeightDataConfig,
    ZooConfig,
    to_dict,
)
from hyperjax.errors import unknown

# Small enough for two CPU cores.
SMALL_AUTOENCODER = AutoencoderConfig(
    architecture=ArchitectureConfig(
        dim=64, heads=4, mlp_dim=128, blocks=2, latent=256, dropout=0.0, compression="linear",
        projection_layers=2, projection_hidden=64, projection_dim=32,
    ),
    data=WeightDataConfig(augment=AugmentConfig(noise=0.5, erase=0.0)),
    loss=LossConfig(beta=0.95),
    training=OptimizationConfig(
        steps=200, batch_size=64, learning_rate=1e-4, weight_decay=1e-2, warmup_steps=20,
        eval_every=50, eval_models=50,
    ),
)  # fmt: skip

# Minutes on two CPU cores. More members bear more steps and width: `large_denoiser`.
SMALL_DENOISER = DenoiserConfig(
    snapshots=3,
    training=OptimizationConfig(
        optimizer="muon", steps=900, batch_size=64, learning_rate=8e-3, weight_decay=1e-2,
        warmup_steps=100, eval_every=100,
    ),
)  # fmt: skip
# Of thousands of members a graph learns what carries over to others (docs/design.md).
LARGE_AUTOENCODER = dataclasses.replace(
    SMALL_AUTOENCODER,
    architecture=dataclasses.replace(
        SMALL_AUTOENCODER.architecture, network="graph", graph=GraphConfig(rounds=2)
    ),
    training=dataclasses.replace(
        SMALL_DENOISER.training, steps=1500, eval_every=250, eval_models=50
    ),
    variants=(),
)
LARGE_DENOISER = dataclasses.replace(
    SMALL_DENOISER,
    graph=GraphConfig(edge_dim=96, edge_hidden=192),
    average=0.9995,
    training=dataclasses.replace(
        SMALL_DENOISER.training, steps=14_000, warmup_steps=200, eval_every=250
    ),
)
# As in every run of docs/reproduce.md.
LARGE_SAMPLERS = SamplersConfig(diffusion=DiffusionConfig(temperature=0.7))

# The paper's, as far as it is known: sizes and optimiser from the code of its predecessor on the
# same zoo (its own configuration is not public), losses and augmentation from its published code.
# The last step is the one that is kept; the published plateau schedule has no counterpart here.
PAPER_AUTOENCODER = AutoencoderConfig(
    architecture=ArchitectureConfig(
        dim=800, heads=4, mlp_dim=900, blocks=2, latent=700, dropout=0.1, compression="token",
        tanh=True, linear_path=False, projection_layers=4, projection_hidden=400,
        projection_dim=50,
    ),
    data=WeightDataConfig(
        epochs_seen=(21, 22, 23, 24, 25), align=False, center=False, scale=False,
        augment=AugmentConfig(permute=True, mix=0.0, noise=0.0, erase=0.5),
    ),
    loss=LossConfig(lwln=True, beta=0.9, temperature=0.1, target="view"),
    training=OptimizationConfig(
        steps=3500, batch_size=500, learning_rate=1e-4, weight_decay=1e-9, schedule="constant",
        warmup_steps=0, clip_norm=0.0, eval_every=70, select="last",
    ),
)  # fmt: skip


def small_zoo(members: int, activation: str) -> ZooConfig:
    """A population for two CPU cores, with an optimiser by which members forget their initial
    weights in the time that there is (`zoo.init_correlation`)."""
    return ZooConfig(
        num_members=members, epochs=25, activation=activation, init="torch_default",
        training=TrainingConfig(learning_rate=5e-3, weight_decay=1e-2, batch_size=32),
    )  # fmt: skip


def large(config: Config, members: int) -> Config:
    """A scale of thousands of members, a twentieth of them held out, with an autoencoder on the
    networks' graphs, and a denoiser."""
    snapshots = tuple(sorted({0, 1, 5, 15, *config.autoencoder.data.epochs_seen}))
    zoo = dataclasses.replace(
        config.zoo,
        num_members=members,
        split=(0.95, 0.025, 0.025),
        snapshots=snapshots,
        tested="last",
    )
    evaluation = dataclasses.replace(config.evaluation, num_samples=200)
    return dataclasses.replace(
        config, zoo=zoo, autoencoder=LARGE_AUTOENCODER, denoiser=LARGE_DENOISER,
        samplers=LARGE_SAMPLERS, evaluation=evaluation,
    )  # fmt: skip


def at_scale(scale: str, scales: Mapping[str, Config]) -> ConfigDict:
    """The configuration of a scale, "smoke" included, as a tree that flags can override."""
    known = {**scales, "smoke": smoke(scales["small"])}
    if scale not in known:
        raise unknown("scale", scale, known)
    return ConfigDict(to_dict(known[scale]), convert_dict=True)


def smoke(config: Config) -> Config:
    """Every stage once, in about a minute on two cores: for tests, not for results."""
    return dataclasses.replace(
        config,
        num_train=120,
        num_val=60,
        zoo=dataclasses.replace(config.zoo, num_members=8, epochs=3),
        autoencoder=AutoencoderConfig(
            architecture=ArchitectureConfig(
                dim=16, heads=2, mlp_dim=16, blocks=1, latent=8, dropout=0.0,
                compression="linear", projection_layers=1, projection_hidden=8, projection_dim=4,
            ),
            data=dataclasses.replace(config.autoencoder.data, epochs_seen=(2, 3)),
            loss=config.autoencoder.loss,
            training=dataclasses.replace(
                config.autoencoder.training, steps=20, batch_size=8, warmup_steps=2,
                eval_every=10, eval_models=4,
            ),
            variants=("no_lwln", "vae"),
        ),
        denoiser=DenoiserConfig(
            graph=GraphConfig(
                edge_dim=8, edge_hidden=8, node_dim=8, node_hidden=8, heads=2, rounds=1,
                condition_dim=8,
            ),
            folds=2,
            training=dataclasses.replace(
                SMALL_DENOISER.training, steps=0, batch_size=8, warmup_steps=2, eval_every=3
            ),
        ),
        samplers=SamplersConfig(pca_components=4, gan=GanConfig(hidden=16, steps=50)),
        evaluation=EvaluationConfig(
            num_samples=4, epochs=(0, 1), bootstrap=199, unseen_models=15, pairs=4, points=3,
            noise_levels=(0.0, 0.1, 1.0), probe_snapshots=3,
        ),
    )  # fmt: skip
