"""Scales of a configuration: the data set's own (full), this kind of machine, a minute."""

import dataclasses

from ml_collections import ConfigDict

from hyperjax.config import AugmentConfig, Config, GanConfig, TrainingConfig, to_dict
from hyperjax.errors import unknown

SCALES = ("full", "small", "smoke")


def scaled(full: Config, small: Config, scale: str) -> ConfigDict:
    """The configuration at `scale` as a tree that the command line can override."""
    if scale not in SCALES:
        raise unknown("scale", scale, SCALES)
    chosen = {"full": full, "small": small, "smoke": smoke(small)}[scale]
    return ConfigDict(to_dict(chosen), convert_dict=True)


def small(config: Config) -> Config:
    """For two CPU cores: fewer members, images and steps, and an optimiser with which members
    forget their initial weights in the time that there is (`zoo.init_correlation`)."""
    replace = dataclasses.replace
    digits = config.dataset == "digits"
    zoo = replace(
        config.zoo,
        num_members=200 if digits else 100,  # test images cost as much as training
        epochs=25,
        init="torch_default",
        training=TrainingConfig(learning_rate=5e-3, weight_decay=1e-2, batch_size=32),
    )
    autoencoder = replace(
        config.autoencoder,
        dim=64, heads=4, mlp_dim=128, blocks=2, latent=256, dropout=0.0, compression="linear",
        projection_layers=2, projection_hidden=64, projection_dim=32,
        augment=AugmentConfig(noise=0.5, erase=0.0), beta=0.95,
        steps=200, batch_size=64, learning_rate=1e-4, weight_decay=1e-2, warmup_steps=20,
        eval_every=50, eval_models=50,
    )  # fmt: skip
    evaluation = replace(
        config.evaluation, num_samples=40, epochs=(0, 1, 5), pairs=100 if digits else 25,
        unseen_models=15,
    )  # fmt: skip
    return replace(
        config,
        num_train=0 if digits else 2_000,
        num_val=min(config.num_val, 500),
        zoo=zoo,
        autoencoder=autoencoder,
        evaluation=evaluation,
    )


def smoke(config: Config) -> Config:
    """Every stage once, in about a minute on two cores: for tests, not for results."""
    replace = dataclasses.replace
    zoo = replace(config.zoo, num_members=8, epochs=3)
    autoencoder = replace(
        config.autoencoder,
        dim=16, heads=2, mlp_dim=16, blocks=1, latent=8, projection_layers=1,
        projection_hidden=8, projection_dim=4, epochs_seen=(2, 3), steps=20, batch_size=8,
        warmup_steps=2, eval_every=10, eval_models=4,
    )  # fmt: skip
    samplers = replace(config.samplers, pca_components=4, gan=GanConfig(hidden=16, steps=50))
    evaluation = replace(
        config.evaluation, num_samples=4, epochs=(0, 1), bootstrap=199, pairs=4, points=3,
        noise_levels=(0.0, 0.1, 1.0), probe_snapshots=3,
    )  # fmt: skip
    return replace(
        config, num_train=120, num_val=60, zoo=zoo, autoencoder=autoencoder, samplers=samplers,
        evaluation=evaluation,
    )  # fmt: skip
