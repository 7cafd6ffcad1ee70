"""CIFAR-10 at 28x28: 50,000 + 10,000 colour images.

    python train.py --config=configs/cifar10.py:small --workdir=runs/cifar10

Scales: full (the default), paper, cnn3, small, smoke. Images are looked for in `--config.data_dir`
(default: data). `paper` and `full` have the published zoo, 1,000 members with the published
hyper-parameters; `paper` has the paper's autoencoder as well, `full` ours at its size, and
`cnn3` the published zoos' larger network on images of 32x32. All are work for an accelerator, and
were not run by us.

`small` was run on small files only: its images were not at hand.
"""

import dataclasses

from configs import common
from hyperjax.config import Config, EvaluationConfig, TrainingConfig, ZooConfig

FULL = Config(
    dataset="cifar10",
    num_val=8_000,
    zoo=ZooConfig(
        num_members=1000,
        epochs=50,
        activation="gelu",
        init="kaiming_uniform",
        training=TrainingConfig(learning_rate=1e-4, weight_decay=1e-2, batch_size=10),
    ),
)
PAPER = dataclasses.replace(FULL, autoencoder=common.PAPER_AUTOENCODER)
CNN3 = dataclasses.replace(
    FULL, image_size=32, zoo=dataclasses.replace(FULL.zoo, model="cnn3", activation="gelu")
)
SMALL = Config(
    dataset="cifar10",
    num_train=2_000,
    num_val=500,
    zoo=common.small_zoo(100, "gelu"),
    autoencoder=common.SMALL_AUTOENCODER,
    evaluation=EvaluationConfig(num_samples=40, epochs=(0, 1, 5), pairs=25, unseen_models=15),
)


def get_config(scale: str = "full"):
    return common.at_scale(scale, {"full": FULL, "paper": PAPER, "cnn3": CNN3, "small": SMALL})
