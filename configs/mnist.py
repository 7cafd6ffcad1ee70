"""MNIST: 60,000 + 10,000 images, from the IDX files or tensorflow-datasets.

    python train.py --config=configs/mnist.py:small --workdir=runs/mnist

Scales: full (the default), paper, small, large, smoke. Images are looked for in
`--config.data_dir` (default: data). `large` is `small` with 2,000 members (of 94.9 % test
accuracy), an autoencoder on graphs and a denoiser: 29 minutes for the zoo, 17 for the autoencoder
and 40 for 5,000 of the denoiser's steps, these two in bfloat16, on two cores (AMD EPYC, Zen 4) that
had other work too. `paper` and `full` have the published zoo, 1,000 members with the published
hyper-parameters; `paper` has the paper's autoencoder as well, `full` ours at its size. Both are
work for an accelerator, and were not run by us.

Expected of `small`, on two cores: 3 minutes for 100 members of about 95 % test accuracy.
"""

import dataclasses

from configs import common
from hyperjax.config import Config, EvaluationConfig, TrainingConfig, ZooConfig

FULL = Config(
    dataset="mnist",
    num_val=10_000,
    zoo=ZooConfig(
        num_members=1000,
        epochs=50,
        activation="tanh",
        init="uniform",
        training=TrainingConfig(learning_rate=3e-4, weight_decay=0.0, batch_size=10),
    ),
)
PAPER = dataclasses.replace(FULL, autoencoder=common.PAPER_AUTOENCODER)
SMALL = Config(
    dataset="mnist",
    num_train=2_000,
    num_val=500,
    zoo=common.small_zoo(100, "tanh"),
    autoencoder=common.SMALL_AUTOENCODER,
    evaluation=EvaluationConfig(num_samples=40, epochs=(0, 1, 5), pairs=25, unseen_models=15),
)
LARGE = common.large(SMALL, 2000)


def get_config(scale: str = "full"):
    return common.at_scale(scale, {"full": FULL, "paper": PAPER, "small": SMALL, "large": LARGE})
