"""MNIST: 60,000 + 10,000 images, from the IDX files or tensorflow-datasets.

    python train.py --config=configs/mnist.py:small --workdir=runs/mnist

Images are looked for in `--config.data_dir` (default: data). Without `:small` it is the
paper's zoo: 1,000 members, 50 epochs, batches of 10, with the published hyper-parameters. That
is work for an accelerator.
"""

from hyperjax.app import presets
from hyperjax.config import Config, TrainingConfig, ZooConfig

FULL = Config(
    dataset="mnist",
    num_val=10_000,
    zoo=ZooConfig(
        num_members=1000,
        epochs=50,
        activation="tanh",
        init="uniform",
        training=TrainingConfig(learning_rate=3e-4),
    ),
)


def get_config(scale: str = "full"):
    return presets.scaled(FULL, presets.small(FULL), scale)
