"""STL-10 at 28x28: 5,000 + 8,000 labelled colour images.

    python train.py --config=configs/stl10.py:small --workdir=runs/stl10

Images are looked for in `--config.data_dir` (default: data). Without `:small` it is the
paper's zoo: 1,000 members, 50 epochs, batches of 10, with the published hyper-parameters. That
is work for an accelerator.
"""

from hyperjax.app import presets
from hyperjax.config import Config, TrainingConfig, ZooConfig

FULL = Config(
    dataset="stl10",
    num_val=800,
    zoo=ZooConfig(
        num_members=1000,
        epochs=50,
        activation="tanh",
        init="kaiming_uniform",
        training=TrainingConfig(learning_rate=1e-4, weight_decay=1e-3),
    ),
)


def get_config(scale: str = "full"):
    return presets.scaled(FULL, presets.small(FULL), scale)
