"""Networks that were trained elsewhere: a hyper-representation of them, and what it can do.

    python train.py --config=configs/zoo_folder.py --config.zoo.path=networks \\
        --config.zoo.activation=relu --workdir=runs/mine

The path is a zoo file, or whatever `hyperjax import` reads: a folder or pattern of PyTorch or
safetensors state dicts, a published zoo. With `--config.dataset=mnist` (and num_val, image_size as
they were trained) networks are evaluated on its images and fine-tuned as well; without one, a
report holds what needs no images.

Scales: small (the default), for two CPU cores; large, with an autoencoder on graphs and a denoiser,
for thousands of networks; smoke.
"""

import dataclasses

from configs import common
from hyperjax.config import Config, EvaluationConfig, WeightDataConfig, ZooConfig

_SEEN = WeightDataConfig(epochs_seen=(), augment=common.SMALL_AUTOENCODER.data.augment)
SMALL = Config(
    dataset="",
    num_val=1000,
    zoo=ZooConfig(path="networks", model="", activation="relu"),
    autoencoder=dataclasses.replace(common.SMALL_AUTOENCODER, data=_SEEN),
    evaluation=EvaluationConfig(num_samples=40, epochs=(0, 1, 5), pairs=100, unseen_models=15),
)
LARGE = dataclasses.replace(
    SMALL,
    autoencoder=dataclasses.replace(common.LARGE_AUTOENCODER, data=_SEEN),
    denoiser=common.LARGE_DENOISER,
    samplers=common.LARGE_SAMPLERS,
)


def get_config(scale: str = "small"):
    tree = common.at_scale(scale, {"small": SMALL, "large": LARGE})
    if scale == "smoke":
        tree.autoencoder.data.epochs_seen = ()
    return tree
