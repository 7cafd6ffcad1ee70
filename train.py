"""Train a model zoo, then its hyper-representation with and without LWLN.

    python train.py --config=configs/digits.py --workdir=runs/digits
    python train.py --config=configs/mnist.py:small --workdir=runs/mnist --config.data_dir=data

The part after the colon chooses a scale: smoke (a minute), small (two CPU cores), full (the
paper's). Any field can be overridden, e.g. --config.zoo.num_members=500. The same command on
the same workdir resumes; on a finished one it says so.
"""

from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from hyperjax.app import cli

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file, see above.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if it is not there.")
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: list[str]) -> None:
    def task():
        from hyperjax import config
        from hyperjax.app import train

        cli.refuse_arguments(argv)
        train.run(config.from_dict(_CONFIG.value.to_dict()), Path(_WORKDIR.value))

    cli.run(task)


if __name__ == "__main__":
    app.run(main, flags_parser=cli.parse_flags)
